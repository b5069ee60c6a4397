"""Puts people where other rules have put their events: one transaction for all profiles whose ids are mixed with each other, beside
the running pipeline, which is kept from these people meanwhile as it is when a profile is taken apart."""

import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, insert, select, update

from pipeline.graph import Graph
from pipeline.identity import Rules
from pipeline.outcome import Known, Outcome, Seen, Terms, same_people, settle, still_disputed
from pipeline.profile import Stamp
from pipeline.split import Family
from pipeline.store import accepted, bulk, partings, schema, withdrawn
from pipeline.store.accepted import Row
from pipeline.store.consent import recount
from pipeline.store.graph import save
from pipeline.store.scratches import Changed
from pipeline.store.shadow import any_maimed, watermark
from pipeline.store.splits import family_of, rank
from schemas.events import ExternalId
from schemas.exact_json import json_dumps, json_loads

_HELD: Final = "SELECT key FROM nodes WHERE profile IS NOT NULL AND key {}"
_VIOLATIONS: Final = (
    f"SELECT {', '.join(one.name for one in schema.violations.columns)} FROM violations WHERE profile {{}}"
)
_DISPUTES: Final = "SELECT merge, category, stamp FROM disputes WHERE merge {}"
_MOVES: Final = f"SELECT {', '.join(one.name for one in schema.moves.columns)} FROM moves WHERE key {{}}"
_LINKS: Final = f"SELECT {', '.join(one.name for one in schema.links.columns)} FROM links WHERE {{}} {{{{}}}}"
_SPLITS: Final = "SELECT id FROM splits WHERE {} {{}}"


@dataclass(slots=True)
class Tally:
    """What was done: profiles that came apart, that are several joined, ids gained and lost, events that hang on another id now."""

    split: int = 0
    merged: int = 0
    gained: int = 0
    lost: int = 0
    events: int = 0
    settled: int = 0  # groups of people
    left: int = 0  # groups that were changing all the while

    def add(self, counts: Mapping[str, int]) -> None:
        for name, count in counts.items():
            setattr(self, name, getattr(self, name) + count)


@dataclass(slots=True)
class _Mixed:
    """People whose ids are mixed with each other, as they are and as the rules make them, and all their events."""

    before: Family
    after: Family
    events: list[Seen] = field(default_factory=list)
    rows: dict[bytes, Row] = field(default_factory=dict)  # those in the store that is in use


def resettle(
    connection: Connection, shadow: Connection, start: str, rules: Rules, mark: Sequence[int], taken: Mapping[int, int]
) -> Mapping[str, int] | None:
    """Settles everybody who is mixed with the owner of an id. `taken` says how far the events of each partition are resolved. None when
    there are later ones, or some are being deleted: try again; or when the scratch store lacks what some of them did. Raises Changed
    when people have been deleted or taken apart since `mark`."""
    mixed = _mixed(connection, shadow, start, taken)
    if watermark(connection) != list(mark):
        raise Changed
    if mixed is None or any_maimed(shadow, mixed.before.nodes.keys() | mixed.after.nodes.keys()):
        return None
    if _is_settled(mixed):
        return {}
    at = time.time_ns() // 1000
    terms = Terms(rank(rules), rules.windowed, lambda key: _normal(key, rules), rules.version)
    counts = dict(same_people(mixed.before, mixed.after))
    outcome = settle(mixed.before, mixed.after, mixed.events, terms, at)
    _write(connection, mixed, outcome)
    _disputes(connection, shadow, mixed, outcome)
    _sightings(connection, shadow, mixed, outcome)
    accepted.hang(
        connection,
        [(mixed.rows[key], node, outcome.family.root_of(node) if node else "") for key, node in outcome.moved.items()],
    )
    _note(connection, outcome.known, at, rules.version)
    _disturb_splits(connection, outcome.family.profiles)
    return counts | {"events": len(outcome.moved), "settled": 1}


def _normal(key: str, rules: Rules) -> str:
    kind, _, value = key.partition(":")
    return str(ExternalId(kind, rules.normalize(kind, value)))


# ── Who is mixed with whom ────────────────────────────────────────────────────────────────────────────────────────


def _mixed(connection: Connection, shadow: Connection, start: str, taken: Mapping[int, int]) -> _Mixed | None:
    keys, profiles = {start}, set[str]()
    while True:
        found = _families(connection, shadow, keys, profiles)
        more = _gather(connection, shadow, found, taken)
        if more is None or not more:
            return None if more is None else found
        keys |= more


def _families(connection: Connection, shadow: Connection, keys: set[str], profiles: set[str]) -> _Mixed:
    """Closes both sets: whoever has one of these ids or profiles on either side belongs to them with all that is theirs."""
    while True:
        before = family_of(connection, keys=keys, profiles=profiles, lock=True)
        after = family_of(shadow, keys=keys, profiles=profiles, lock=False)
        size = len(keys), len(profiles)
        keys |= before.nodes.keys() | after.nodes.keys()
        profiles |= before.profiles.keys() | after.profiles.keys()
        if (len(keys), len(profiles)) == size:
            return _Mixed(before, after)


def _gather(connection: Connection, shadow: Connection, mixed: _Mixed, taken: Mapping[int, int]) -> set[str] | None:
    """Finds the events. Answers ids of others that some of them hang on, who belong to these people too; None when an event is so
    new that it is not resolved again yet, or is being deleted."""
    mine = {row.key: row for row in withdrawn.of_nodes(connection, mixed.before.nodes)}
    theirs = {row.key: row for row in withdrawn.of_nodes(shadow, mixed.after.nodes)}
    elsewhere = {row.key: row for row in withdrawn.with_keys(shadow, mine.keys() - theirs.keys())}
    others = {row.key: row for row in withdrawn.with_keys(connection, theirs.keys() - mine.keys())}
    more = {row.node for row in (*elsewhere.values(), *others.values()) if row.node}
    if more:
        return more
    if theirs.keys() - mine.keys() - others.keys():
        return None  # a long history goes ahead of its person
    mixed.events, mixed.rows = [], mine | others
    for key, row in mixed.rows.items():
        again = theirs.get(key) or elsewhere.get(key)
        if again is None and row.offset >= taken.get(row.partition, 0):
            return None
        mixed.events.append(Seen(key, row.at, row.node, None if again is None else again.node))
    return set()


def _is_settled(mixed: _Mixed) -> bool:
    """Whether everybody has the ids and the events already."""

    def people(family: Family) -> set[frozenset[str]]:
        owned: defaultdict[str, set[str]] = defaultdict(set)
        for key in family.nodes:
            owned[family.root_of(key)].add(key)
        return {frozenset(keys) for keys in owned.values()}

    moved = any(event.now is not None and event.now != event.node for event in mixed.events)
    return not moved and people(mixed.before) == people(mixed.after)


# ── Writing ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _write(connection: Connection, mixed: _Mixed, outcome: Outcome) -> None:
    before, after = mixed.before, outcome.family
    _delete(connection, "nodes", "key", outcome.gone)
    _delete(connection, "edges", "a", before.nodes)
    _delete(connection, "merges", "id", before.merges.keys() - after.merges.keys())
    save(
        connection,
        Graph(
            nodes=after.nodes,
            profiles=after.profiles,
            edges=after.edges,
            changed_nodes=set(after.nodes),
            changed_profiles=set(after.profiles),
        ),
    )
    bulk.upsert(
        connection,
        schema.merges,
        [
            (name, m.survivor, m.absorbed, m.at, m.source, m.message_id, m.type, m.rules, m.seq, None)
            for name, m in sorted(after.merges.items())
        ],
    )


def _disputes(connection: Connection, shadow: Connection, mixed: _Mixed, outcome: Outcome) -> None:
    """On what profiles differed that merged."""
    resolved = {event.key for event in mixed.events if event.now is not None}
    kept = still_disputed(mixed.before, outcome, _disputed(connection, mixed.before.merges), resolved)
    _delete(connection, "disputes", "merge", mixed.before.merges)
    made = _disputed(shadow, outcome.family.merges)
    bulk.upsert(
        connection,
        schema.disputes,
        [
            (merge, category, json_dumps(stamp).decode())
            for merge in sorted({*kept, *made})
            for category, stamp in sorted({**kept.get(merge, {}), **made.get(merge, {})}.items())
        ],
    )
    recount(connection, [name for name, one in outcome.family.profiles.items() if one.merged_into is None])


def _disputed(connection: Connection, merges: Iterable[str]) -> dict[str, dict[str, Stamp]]:
    found: defaultdict[str, dict[str, Stamp]] = defaultdict(dict)
    for merge, category, stamp in bulk.select(connection, _DISPUTES, sorted(merges)):
        found[merge][category] = tuple(json_loads(stamp))
    return dict(found)


def _sightings(connection: Connection, shadow: Connection, mixed: _Mixed, outcome: Outcome) -> None:
    """What a rule refused these people, which ids went to their latest owner, and whose accounts they are."""
    after = outcome.family
    _delete(connection, "violations", "profile", mixed.before.profiles)
    bulk.upsert(connection, schema.violations, bulk.select(shadow, _VIOLATIONS, sorted(after.profiles)))
    both = sorted({*mixed.before.nodes, *after.nodes})
    _delete(connection, "moves", "key", both)
    bulk.insert(connection, schema.moves, bulk.select(shadow, _MOVES, both))
    for column in ("node", "account"):
        _delete(connection, "links", column, outcome.gone)
    keys = sorted(after.nodes)
    links = {tuple(row) for column in ("node", "account") for row in bulk.select(shadow, _LINKS.format(column), keys)}
    ends = sorted({one for row in links for one in row[:2]})
    held = {key for (key,) in bulk.select(connection, _HELD, ends)}
    most = "GREATEST" if connection.dialect.name == "postgresql" else "MAX"
    bulk.upsert(
        connection,
        schema.links,
        sorted(row for row in links if held.issuperset(row[:2])),
        set_={"count": f"{most}(links.count, excluded.count)"}
        | {name: f"links.{name}" for name in ("first_at", "last_at", "source", "message_id")},
    )


def _delete(connection: Connection, table: str, column: str, values: Iterable[str]) -> None:
    bulk.select(connection, f"DELETE FROM {table} WHERE {column} {{}} RETURNING 1", sorted(values))


def _note(connection: Connection, known: Sequence[Known], at: int, version: int) -> None:
    """What is still to be told of it, and who waits for whom then, in the transaction that did it."""
    partings.note(connection, [each for one in known for each in one.changes], at)
    for one in known:
        detail: dict[str, Any] = {}
        if one.changes:
            detail["changes"] = msgspec.to_builtins(one.changes)
        detail["pending"] = [list(each) for each in one.corrections]
        values = {
            "id": one.id,
            "at": at,
            "profile": one.profile,
            "rules": version,
            "detail": json_dumps(detail).decode(),
        }
        connection.execute(insert(schema.resolutions).values(values))


def _disturb_splits(connection: Connection, profiles: Collection[str]) -> None:
    """A split of these people cannot be put back as it was any more: lifting it merges whoever holds its sides then."""
    table = schema.splits
    names = {
        one
        for column in ("profile", "other")
        for (one,) in bulk.select(connection, _SPLITS.format(column), sorted(profiles))
    }
    for row in connection.execute(select(table.c.id, table.c.detail).where(table.c.id.in_(sorted(names)))).all():
        detail = json_loads(row.detail)
        if not detail.get("disturbed"):
            detail["disturbed"] = True
            connection.execute(update(table).where(table.c.id == row.id).values(detail=json_dumps(detail).decode()))
