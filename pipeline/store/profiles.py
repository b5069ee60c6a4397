"""Reads profiles for people and programs: by any external id, or by any profile id there ever was."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from sqlalchemy import Connection, text

from pipeline.profile import Traits
from pipeline.store import bulk
from pipeline.store.glances import Asking, Question, answered
from schemas.events import ExternalId
from schemas.exact_json import json_loads

HEAD: Final = ", ".join(
    f"profiles.{name}"
    for name in (
        "id",
        "merged_into",
        "collection",
        "traits",
        "created_at",
        "events",
        "first_seen",
        "last_seen",
        "source",
        "message_id",
        "last_source",
        "last_message",
    )
)
_BY_NODE: Final = (
    f"SELECT nodes.key, {HEAD} FROM nodes JOIN profiles ON profiles.id = nodes.profile WHERE nodes.key {{}}"
)
_BY_ID: Final = f"SELECT profiles.id, {HEAD} FROM profiles WHERE profiles.id {{}}"
_SURVIVORS: Final = f"""
    WITH RECURSIVE up(start, id) AS (
      SELECT id, id FROM profiles WHERE id {{}}
      UNION ALL SELECT up.start, profiles.merged_into FROM profiles JOIN up ON profiles.id = up.id
        WHERE profiles.merged_into IS NOT NULL
    )
    SELECT up.start, {HEAD} FROM up JOIN profiles ON profiles.id = up.id WHERE profiles.merged_into IS NULL
"""
_FAMILY: Final = """
    WITH RECURSIVE family(id) AS (
      SELECT id FROM profiles WHERE id = :id
      UNION SELECT profiles.id FROM profiles JOIN family ON profiles.merged_into = family.id
    )
"""
_IDS: Final = text(
    f"""{_FAMILY}
    SELECT nodes.key, nodes.added_at, nodes.source, nodes.message_id, nodes.rules, nodes.home, nodes.events
    FROM nodes JOIN family ON nodes.profile = family.id ORDER BY nodes.added_at, nodes.key
    """
)
_MERGES: Final = text(
    f"""{_FAMILY}
    SELECT merges.id, merges.survivor, merges.absorbed, merges.at, merges.source, merges.message_id, merges.type,
      merges.rules, merges.seq, merges.undone_by
    FROM merges JOIN family ON merges.survivor = family.id ORDER BY merges.seq, merges.id
    """
)


class Head(NamedTuple):
    """The row of a profile. `traits` is JSON as stored; times are microseconds. `source` and `message_id` are of the event
    that created it, `last_source` and `last_message` of the latest one."""

    id: str
    merged_into: str | None
    collection: str
    traits: str
    created_at: int
    events: int
    first_seen: int
    last_seen: int
    source: str
    message_id: str
    last_source: str
    last_message: str


class Id(NamedTuple):
    """An external id of a profile, with the event that mapped it. `home` is the profile it was mapped to then; `events` hang
    on it."""

    key: str
    added_at: int
    source: str
    message_id: str
    rules: int
    home: str | None
    events: int

    @property
    def external(self) -> ExternalId:
        return ExternalId(*self.key.split(":", 1))


class Merged(NamedTuple):
    """`absorbed` became part of `survivor` because of one event. `undone_by` is the split that took it apart again."""

    id: str
    survivor: str
    absorbed: str
    at: int
    source: str
    message_id: str
    type: str
    rules: int
    seq: int
    undone_by: str | None


class Held(NamedTuple):
    """An external id in short: when it was added (µs), and the source that first sent it."""

    external: ExternalId
    added_at: int
    source: str


@dataclass(frozen=True, slots=True)
class Found:
    """A canonical profile, whole. `merged` are the profiles it absorbed, whose ids still lead here."""

    head: Head
    traits: Traits
    external_ids: Sequence[Held]  # in the order they were added
    merged: Sequence[str]

    @property
    def id(self) -> str:
        return self.head.id

    @property
    def events(self) -> int:
        return self.head.events


def heads(connection: Connection, addresses: Collection[str]) -> dict[str, Head]:
    """Canonical profiles by the address they were asked for: an external id as `type:value` in its normal form, or a
    profile id, also one that was merged away. Those that are not known are left out."""
    return answered(connection, asking_for_heads(addresses))


def asking_for_heads(addresses: Collection[str]) -> Asking[dict[str, Head]]:
    """The questions of `heads`."""
    wanted = sorted(set(addresses))
    found: dict[str, Head] = {}
    for sql, part in ((_BY_NODE, [a for a in wanted if ":" in a]), (_BY_ID, [a for a in wanted if ":" not in a])):
        if part:
            for address, *row in (yield Question(sql, part)):
                found[address] = Head(*row)
    absorbed = sorted({head.id for head in found.values() if head.merged_into is not None})
    rows = (yield Question(_SURVIVORS, absorbed)) if absorbed else []
    survivors = {start: Head(*row) for start, *row in rows}
    return {
        address: head if head.merged_into is None else survivors[head.id]
        for address, head in found.items()
        if head.merged_into is None or head.id in survivors
    }


def ids(connection: Connection, profile: str) -> list[Id]:
    """The external ids of a canonical profile in the order they were added."""
    return [Id(*row) for row in connection.execute(_IDS, {"id": profile})]


def merges(connection: Connection, profile: str) -> list[Merged]:
    """Every merge that made a canonical profile, in order, and those into it that were undone."""
    return [Merged(*row) for row in connection.execute(_MERGES, {"id": profile})]


def brought_by(merges: Sequence[Merged], profile: str) -> Mapping[str, str]:
    """For each profile that was absorbed, the merge that brought its ids to `profile`. Pure."""
    into = {one.absorbed: one for one in merges if one.undone_by is None}
    brought = {}
    for start in into:
        last, seen = into[start], {start}
        while last.survivor != profile and last.survivor in into and last.survivor not in seen:
            seen.add(last.survivor)
            last = into[last.survivor]
        brought[start] = last.id
    return brought


def find(connection: Connection, kind: str, value: str) -> Found | None:
    """The profile that an external id (in its normal form) or a profile id (`kind` is then `profile_id`) belongs to now."""
    address = value if kind == "profile_id" else str(ExternalId(kind, value))
    head = heads(connection, [address]).get(address)
    return None if head is None else whole(connection, [head])[0]


_FAMILIES: Final = """
    WITH RECURSIVE family(root, id) AS (
      SELECT id, id FROM profiles WHERE id {}
      UNION ALL SELECT family.root, profiles.id FROM profiles JOIN family ON profiles.merged_into = family.id
    )
    SELECT id, root FROM family
"""
_KEYS: Final = "SELECT profile, key, added_at, source FROM nodes WHERE profile {}"


def whole(connection: Connection, rows: Sequence[Head]) -> list[Found]:
    """Canonical profiles with their ids and those they absorbed, in as many statements however many they are."""
    root: dict[str, str] = dict(bulk.select(connection, _FAMILIES, [head.id for head in rows]))
    held: dict[str, list[tuple[int, str, str]]] = {head.id: [] for head in rows}
    for profile, key, added_at, source in bulk.select(connection, _KEYS, sorted(root)):
        held[root[profile]].append((added_at, key, source))
    merged: dict[str, list[str]] = {head.id: [] for head in rows}
    for one, into in root.items():
        if one != into:
            merged[into].append(one)
    return [
        Found(
            head,
            json_loads(head.traits),
            [Held(ExternalId(*key.split(":", 1)), at, source) for at, key, source in sorted(held[head.id])],
            sorted(merged[head.id]),
        )
        for head in rows
    ]


def bare(head: Head) -> Found:
    """A profile without its ids, where they do not matter."""
    return Found(head, json_loads(head.traits), (), ())
