"""Deletes one identifier of a person, who stays: whole, in one transaction.

State hangs on ids, so what the id had contributed goes to the id that the person is looked up by, and so does the evidence that held it to
others: traits, events, sums and how the profile came about stay as they were. A tombstone keeps older events from bringing it back."""

import time
from dataclasses import replace
from typing import Final, NamedTuple

from sqlalchemy import Connection

from pipeline.graph import Edge, Graph, Sighting
from pipeline.identity import Rules
from pipeline.privacy.marks import mark
from pipeline.profile import Node, combined, inherit
from pipeline.split import Family
from pipeline.store import bulk, sightings, withdrawn
from pipeline.store.erasures import IDENTIFIER, bury, key_of
from pipeline.store.forget import note_deletion, scrub_splits
from pipeline.store.graph import load, save
from pipeline.store.splits import family_of
from schemas.changes import identifier_hash
from schemas.errors import Refused
from schemas.events import ExternalId

LOOKED_UP_BY: Final = "user_id"
_LINKS: Final = "SELECT account, count, first_at, last_at, source, message_id FROM links WHERE node {}"


class Forgotten(NamedTuple):
    """The profile that an id was taken from, and when: microseconds."""

    profile: str
    at: int


def delete(connection: Connection, person: ExternalId, target: ExternalId, rules: Rules) -> Forgotten:
    """Takes `target` from the profile that `person`, a user_id, leads to. Refused with the reference's codes."""
    if person.type != LOOKED_UP_BY:
        raise Refused("bad_request", "Look the profile up by a user_id, such as user_id:u1.")
    if rules.type(target.type).collection == "accounts":
        raise Refused("unsupported_eid_type", f"A {target.type} is an account's; it cannot be deleted from a person.")
    if person == target:
        raise Refused(
            "bad_request",
            "A profile keeps the id that it is looked up by; look it up by another user_id, or delete the person.",
        )
    load(connection, [str(person), str(target)])
    family = family_of(connection, keys=[str(person)], lock=True)
    if str(person) not in family.nodes:
        raise Refused("not_found", "Profile was not found.", status=404)
    if str(target) not in family.nodes:
        raise Refused(
            "eid_not_found", "The profile has no such identifier; its external_ids are what it has.", status=404
        )
    return _delete(connection, family, str(person), str(target), target, rules)


def _delete(
    connection: Connection, family: Family, heir: str, gone: str, target: ExternalId, rules: Rules
) -> Forgotten:
    root = family.root_of(gone)
    events = withdrawn.of_nodes(connection, [gone])
    at = max([time.time_ns() // 1000, *(row.at for row in events)])
    node = inherited(family.nodes[heir], family.nodes[gone])
    left = {key: one for key, one in family.nodes.items() if key != gone} | {heir: node}
    save_graph = Graph(
        nodes={heir: node},
        profiles={root: combined(family.profiles[root], left.values(), rules.windowed)},
        edges=_rewired(family, heir, gone),
        links=_links(connection, heir, gone),
        changed_nodes={heir},
        changed_profiles={root},
    )
    withdrawn.move(connection, gone, heir)
    for table, column in (("nodes", "key"), ("edges", "a"), ("edges", "b"), ("links", "node"), ("moves", "key")):
        bulk.select(connection, f"DELETE FROM {table} WHERE {column} {{}} RETURNING 1", [gone])
    save(connection, save_graph)
    sightings.save(connection, save_graph)
    scrub_splits(connection, [gone])
    bury(connection, [mark(key_of(connection), gone)], IDENTIFIER, at)
    note_deletion(connection, "identifier", root, at, target.type, identifier_hash(target))
    return Forgotten(root, at)


def inherited(heir: Node, gone: Node) -> Node:
    """The heir with what the other node holds as well."""
    made = replace(heir, traits=dict(heir.traits), apart=list(heir.apart))
    inherit(made, gone)
    return made


def _rewired(family: Family, heir: str, gone: str) -> dict[tuple[str, str], Edge]:
    """What tied others to the id ties them to the heir, so that the profile holds together."""
    edges: dict[tuple[str, str], Edge] = {}
    for (a, b), edge in family.edges.items():
        if gone in (a, b) and heir not in (a, b):
            other = a if b == gone else b
            edges[(heir, other) if heir < other else (other, heir)] = edge
    return edges


def _links(connection: Connection, heir: str, gone: str) -> dict[tuple[str, str], Sighting]:
    return {
        (heir, account): Sighting(first_at, last_at, source, message_id, "group", 0, count)
        for account, count, first_at, last_at, source, message_id in bulk.select(connection, _LINKS, [gone])
    }
