"""Takes profiles apart and lets them be one again, each in one transaction beside the running pipeline.

SQLite has one writer. On PostgreSQL everything that belongs to the profile is locked in the pipeline's order (ids, then
profiles) and read again until nothing has joined it meanwhile.
"""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Table, bindparam, delete, insert, or_, select, update

from pipeline.changes import changes_of_split
from pipeline.graph import Edge, Graph, Merge
from pipeline.identity import Rules
from pipeline.split import Change, Correction, Family, Split, cut, lift, undo
from pipeline.store import bulk, partings, schema
from pipeline.store.consent import note_differing, recount
from pipeline.store.graph import load, read_profiles, save
from schemas.changes import ProfileChange
from schemas.errors import Refused
from schemas.events import ExternalId
from schemas.exact_json import json_dumps, json_loads

_TOLD_OF: Final = (schema.splits, schema.resolutions)
_UNTOLD: Final = '{"pending":[[', '{"changes":[['  # how the detail of a split begins that somebody was not told of
_FAMILY: Final = """
    WITH RECURSIVE family(id) AS (
      SELECT id FROM profiles WHERE id {}
      UNION SELECT profiles.id FROM profiles JOIN family ON profiles.merged_into = family.id
    )
    SELECT id FROM family
"""
_ROOTS: Final = """
    WITH RECURSIVE up(id, merged_into) AS (
      SELECT id, merged_into FROM profiles WHERE id {}
      UNION SELECT profiles.id, profiles.merged_into FROM profiles JOIN up ON profiles.id = up.merged_into
    )
    SELECT id FROM up WHERE merged_into IS NULL
"""
_NODES: Final = "SELECT key FROM nodes WHERE profile {}"
_EDGES: Final = "SELECT a, b, count, first_at, last_at, source, message_id, type, rules, seq FROM edges WHERE a {}"
_MERGES: Final = """
    SELECT id, undone_by, survivor, absorbed, at, source, message_id, type, rules, seq FROM merges WHERE absorbed {}
"""


@dataclass(frozen=True, slots=True)
class Done:
    """What was done, or would be: the split, what changed with it, and the profiles as they were before."""

    split: Split
    change: Change
    before: Family
    told: Sequence[Correction]


# ── What an operator asks for ─────────────────────────────────────────────────────────────────────────────────────


def unmerge(connection: Connection, merge: str, rules: Rules, *, dry_run: bool = False) -> Done:
    """Undoes a merge. Refused when there is none of that id, or it is undone already."""
    row = connection.execute(select(schema.merges).where(schema.merges.c.id == merge)).first()
    if row is None:
        raise Refused(
            "not_found",
            f"There is no merge {merge}; `millrace identity explain ID` lists those of a profile.",
            status=404,
        )
    if row.undone_by is not None:
        raise Refused(
            "already_undone",
            f"{merge} is undone by {row.undone_by}; `millrace identity remerge` lifts that.",
            status=409,
        )
    family = family_of(connection, profiles=[row.survivor], lock=not dry_run)
    if merge not in family.merges:
        return unmerge(connection, merge, rules, dry_run=dry_run)  # undone while we waited for the locks
    split, change = undo(family, merge, _now(), rank(rules), rules.windowed)
    return _apart(connection, split, change, family, write=not dry_run)


def unmerge_ids(connection: Connection, a: ExternalId, b: ExternalId, rules: Rules, *, dry_run: bool = False) -> Done:
    """Takes two ids apart. Refused when one is not known, or they are not of one profile."""
    keys = [str(one) for one in (a, b)]
    if a == b:
        raise Refused("validation_error", f"{a} cannot be taken apart from itself; name two ids.")
    family = family_of(connection, keys=keys, lock=not dry_run)
    for key in keys:
        if key not in family.nodes:
            raise Refused(
                "not_found", f"No profile has {key}; `millrace identity explain ID` lists the ids of one.", status=404
            )
    if family.root_of(keys[0]) != family.root_of(keys[1]):
        raise Refused("not_together", f"{a} and {b} are ids of two profiles already.", status=409)
    split, change = cut(family, str(a), str(b), _now(), rank(rules), rules.windowed)
    return _apart(connection, split, change, family, write=not dry_run)


def remerge(connection: Connection, split: str, rules: Rules, *, dry_run: bool = False) -> Done:
    """Lifts a split. Refused when there is none of that id, it is lifted already, or another stands in between."""
    table = schema.splits
    row = connection.execute(select(table).where(table.c.id == split).with_for_update()).first()
    if row is None:
        raise Refused(
            "not_found",
            f"There is no split {split}; `millrace identity explain ID` lists those of a profile.",
            status=404,
        )
    if row.lifted_at is not None:
        raise Refused("already_lifted", f"{split} is lifted already; there is nothing left to do.", status=409)
    detail = json_loads(row.detail)
    known = Split(
        row.id, row.at, row.profile, row.other, row.merge, detail, [Correction(*one) for one in detail["pending"]]
    )
    ends = [key for side in detail["ends"].values() for key in side]
    family = family_of(connection, keys=ends, profiles=[row.profile, row.other], lock=not dry_run)
    at = _now()
    told, change = lift(known, _held(family, split), at, rank(rules), rules.windowed)
    if not dry_run:
        note_differing(connection, family.profiles, change.added)
        _write(connection, change)
        changes = changes_of_split(split, "remerged", at, family, change)
        partings.note(connection, changes, at)
        untold = [*_changes(detail), *changes]
        detail["pending"] = [list(one) for one in (*known.pending, *told)]
        values = {"lifted_at": at, "detail": _detail(detail, untold)}
        connection.execute(update(table).where(table.c.id == split).values(values))
    return Done(known, change, family, told)


def rank(rules: Rules) -> Any:
    """How much each type of id is trusted, as splits ask for it."""
    return lambda kind: rules.type(kind).rank


# ── What others are to be told ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Untold:
    """What the log may not have yet of a split, or of what other rules changed: what destinations are to be told, and what changed of
    who is who."""

    name: str
    corrections: Sequence[Correction]
    changes: Sequence[ProfileChange]


def pending(connection: Connection) -> list[Untold]:
    """What the log may not have all of, the earliest first."""
    return [one for table in _TOLD_OF for one in _pending(connection, table)]


def _pending(connection: Connection, table: Table) -> list[Untold]:
    begins = or_(*(table.c.detail.startswith(text, autoescape=True) for text in _UNTOLD))
    rows = connection.execute(select(table.c.id, table.c.detail).where(begins).order_by(table.c.at, table.c.id))
    details = [(row.id, json_loads(row.detail)) for row in rows]
    return [Untold(name, [Correction(*one) for one in detail["pending"]], _changes(detail)) for name, detail in details]


def told(connection: Connection, one: Untold) -> None:
    """Notes that the log has these corrections and changes."""
    for table in _TOLD_OF:
        text = connection.execute(select(table.c.detail).where(table.c.id == one.name).with_for_update()).scalar()
        if text is not None:  # else it is of the other kind, or forgotten meanwhile
            _told(connection, table, one, text)


def _told(connection: Connection, table: Table, one: Untold, text: str) -> None:
    detail = json_loads(text)
    messages, changes = {each.message for each in one.corrections}, {each.id for each in one.changes}
    detail["pending"] = [each for each in detail["pending"] if each[0] not in messages]
    left = [each for each in _changes(detail) if each.id not in changes]
    connection.execute(update(table).where(table.c.id == one.name).values(detail=_detail(detail, left)))


def _changes(detail: Mapping[str, Any]) -> list[ProfileChange]:
    return msgspec.convert(detail.get("changes", ()), list[ProfileChange])


# ── Reading ───────────────────────────────────────────────────────────────────────────────────────────────────────


def family_of(connection: Connection, *, keys: Iterable[str] = (), profiles: Iterable[str] = (), lock: bool) -> Family:
    """The canonical profiles that these ids and profiles belong to, with all that is theirs."""
    lock = lock and connection.dialect.name == "postgresql"
    keys, profiles = list(keys), list(profiles)
    seen: tuple[set[str], set[str]] | None = None
    while True:
        known = _known_nodes(connection, keys)
        roots = _roots(connection, {*profiles, *known})
        members = {one for (one,) in bulk.select(connection, _FAMILY, sorted(roots))}
        held = {key for (key,) in bulk.select(connection, _NODES, sorted(members))}
        if not lock or seen == (members, held):
            break
        seen = members, held
        load(connection, held)
        read_profiles(connection, members, lock=True)
    graph = load(connection, held, lock=False)
    graph.profiles.update(read_profiles(connection, members - graph.profiles.keys()))
    return Family(graph.nodes, graph.profiles, _edges(connection, held), *_merges(connection, members))


def _known_nodes(connection: Connection, keys: Sequence[str]) -> set[str]:
    """The profiles that these ids were last written with."""
    rows = bulk.select(connection, "SELECT profile FROM nodes WHERE profile IS NOT NULL AND key {}", keys)
    return {profile for (profile,) in rows}


def _roots(connection: Connection, profiles: Collection[str]) -> set[str]:
    return {one for (one,) in bulk.select(connection, _ROOTS, sorted(profiles))}


def _edges(connection: Connection, keys: Collection[str]) -> dict[tuple[str, str], Edge]:
    return {
        (a, b): Edge(first_at, last_at, source, message_id, kind, rules, seq, count)
        for a, b, count, first_at, last_at, source, message_id, kind, rules, seq in bulk.select(
            connection, _EDGES, sorted(keys)
        )
        if b in keys
    }


def _merges(connection: Connection, profiles: Collection[str]) -> tuple[dict[str, Merge], dict[str, tuple[Merge, str]]]:
    """Those that hold, and those that a split has undone."""
    holding: dict[str, Merge] = {}
    undone: dict[str, tuple[Merge, str]] = {}
    for name, undone_by, *columns in bulk.select(connection, _MERGES, sorted(profiles)):
        if undone_by is None:
            holding[name] = Merge(*columns)
        else:
            undone[name] = Merge(*columns), undone_by
    return holding, undone


def _held(family: Family, split: str) -> Family:
    """Without the canonical profiles that the split does not hold apart any more."""
    roots = {
        family.root_of(key)
        for key, node in family.nodes.items()
        if any(token.rpartition(":")[0] == split for token in node.apart)
    }
    profiles = {name: one for name, one in family.profiles.items() if family.root(name) in roots}
    nodes = {key: node for key, node in family.nodes.items() if node.profile in profiles}
    edges = {pair: edge for pair, edge in family.edges.items() if pair[0] in nodes}
    merges = {name: one for name, one in family.merges.items() if one.absorbed in profiles}
    return Family(nodes, profiles, edges, merges, family.undone)


# ── Writing ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _apart(connection: Connection, split: Split, change: Change, family: Family, *, write: bool) -> Done:
    if write:
        _write(connection, change)
        changes = changes_of_split(split.id, "unmerged", split.at, family, change)
        partings.note(connection, changes, split.at)
        connection.execute(
            insert(schema.splits).values(
                id=split.id,
                at=split.at,
                profile=split.profile,
                other=split.other,
                merge=split.merge,
                detail=_detail({"pending": [list(one) for one in split.pending], **split.detail}, changes),
            )
        )
    return Done(split, change, family, split.pending)


def _write(connection: Connection, change: Change) -> None:
    save(
        connection,
        Graph(
            nodes=change.nodes,
            profiles=change.profiles,
            edges=change.restored,
            merges=change.added,
            changed_nodes=set(change.nodes),
            changed_profiles=set(change.profiles),
        ),
    )
    edges, merges = schema.edges, schema.merges
    if change.cut:
        gone = delete(edges).where(edges.c.a == bindparam("_a"), edges.c.b == bindparam("_b"))
        connection.execute(gone, [{"_a": a, "_b": b} for a, b in sorted(change.cut)])
    if change.merges:
        changed = update(merges).where(merges.c.id == bindparam("_id"))
        connection.execute(
            changed,
            [
                {"_id": name, "survivor": survivor, "undone_by": undone_by}
                for name, (survivor, undone_by) in sorted(change.merges.items())
            ],
        )
    if change.removed:
        connection.execute(
            delete(merges).where(merges.c.id == bindparam("_id")), [{"_id": one} for one in change.removed]
        )
    recount(connection, [one.id for one in change.profiles.values() if one.merged_into is None])


def _detail(detail: Mapping[str, Any], changes: Sequence[ProfileChange]) -> str:
    """As it is stored: what nobody was told of stands in front."""
    rest = {name: value for name, value in detail.items() if name != "changes"}
    untold = {"changes": msgspec.to_builtins(changes)} if changes else {}
    return json_dumps(untold | rest).decode()


def _now() -> int:
    """The present in microseconds. Asked once all locks are held, it is also the place in the serial order."""
    return time.time_ns() // 1000
