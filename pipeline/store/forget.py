"""Deletes one person from the tables, whole and in one transaction: whatever dies, it has happened or it has not. Of a long history
events go ahead, some hundreds at a time.

What stays is pseudonymous: tombstones of the ids, hashed; the ids of the profiles; and where on the log the person's records stand, whose
bytes are erased next.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Connection, bindparam, delete, func, or_, select, text, update

from pipeline.outcome import APPLY
from pipeline.privacy.marks import mark
from pipeline.privacy.placeholder import erased_resolved
from pipeline.profile import base62, message_key
from pipeline.store import accepted, bulk, schema, withdrawn
from pipeline.store.accepted import Row
from pipeline.store.erasures import PERSON, bury, key_of
from pipeline.store.graph import load
from pipeline.store.ledger import OUTSTANDING
from pipeline.store.letters import Place, give_up
from pipeline.store.splits import family_of
from schemas.changes import ProfileChange
from schemas.events import ExternalId, Origin, decode_resolved
from schemas.exact_json import json_dumps, json_loads
from schemas.topics import INTERNAL_SOURCE

_TOLD: Final = (
    64  # corrections that a split may have caused at most: one for each side, and one for each when it was lifted
)
_SOME: Final = 500  # origins in one statement
_ENDED: Final = ("delivered", "filtered", "dead", "purged")
_BY_KEY: Final = {
    "nodes": ("key",),
    "edges": ("a", "b"),
    "links": ("node",),
    "moves": ("key",),
    "violations": ("key",),
}
_BY_PROFILE: Final = {
    "merges": ("absorbed", "survivor"),
    "moves": ("left_profile", "joined"),
    "splits": ("profile", "other"),
    "resolutions": ("profile",),
    "violations": ("profile",),
    "profile_reads": ("profile",),
    "profiles": ("id",),
}
_SPLITS: Final = "SELECT id FROM splits WHERE {} {{}}"
_RESOLUTIONS: Final = "SELECT id FROM resolutions WHERE profile {}"
_DISPUTES: Final = "DELETE FROM disputes WHERE merge IN (SELECT id FROM merges WHERE {} {{}}) RETURNING merge"
_REFUSED_HERE: Final = "SELECT count FROM violations WHERE key {}"


@dataclass(slots=True)
class Gone:
    """A person who was deleted: how many rows went from where; the canonical profile (empty: there was none) and all that it had
    absorbed; the ids; other profiles that some of the events were counted to, before a split; and how many events of other
    people named one of the ids and were refused it: those are theirs."""

    rows: Counter[str] = field(default_factory=Counter)
    profile: str = ""
    profiles: Sequence[str] = ()
    ids: Sequence[str] = ()
    formerly: Sequence[str] = ()
    left: int = 0
    at: int = 0


class Extent(NamedTuple):
    """How much there is of whoever has an id: ids, profiles, about how many events, and rows at destinations."""

    ids: Sequence[str]
    profiles: Sequence[str]
    events: int
    listed: int


class Ahead(NamedTuple):
    """Events that were taken out ahead of their person: rows by table, other profiles that some were counted to, and when the last
    one happened."""

    rows: Counter[str]
    formerly: Sequence[str]
    latest: int


def extent(connection: Connection, subject: ExternalId) -> Extent:
    """Of a person as of now."""
    family = family_of(connection, keys=[str(subject)], lock=False)
    profiles = sorted(family.profiles)
    table = schema.exceptions
    listed = select(func.count()).select_from(table).where(table.c.profile.in_(profiles))
    return Extent(
        sorted(family.nodes),
        profiles,
        sum(one.events for one in family.profiles.values()),
        connection.execute(listed).scalar_one(),
    )


def some_events(
    connection: Connection,
    subject: ExternalId,
    ids: Sequence[str],
    profiles: Collection[str],
    regulation: str,
    most: int,
) -> Ahead:
    """Takes up to `most` events of these ids out of the tables ahead of the person, so that a long history keeps nobody waiting. Of ids
    that are the person's still: a split may have come in between."""
    graph = load(connection, [str(subject), *ids])
    owner = graph.profile_of(subject)
    theirs = [key for key in ids if owner is not None and graph.profile_of(ExternalId(*key.split(":", 1))) == owner]
    events = accepted.delete(connection, theirs, most) if theirs else []
    now = time.time_ns() // 1000
    rows = Counter(events=len(events))
    formerly = sorted({row.profile for row in events if row.profile} - set(profiles))
    _list_erased(connection, events, regulation, now)
    _transformed(connection, rows, events)
    if formerly:
        origins = {Origin(row.partition, row.offset) for row in events}
        rows.update(sweep(connection, (), formerly, origins, {row.key for row in events}))
    return Ahead(rows, formerly, max((row.at for row in events), default=0))


def person(connection: Connection, subject: ExternalId, regulation: str, latest: int = 0) -> Gone:
    """Deletes whoever has an id: nodes, evidence, merges, profiles, events, what was refused, what waits at destinations. The
    tombstones say that nothing from before now passes, and nothing that was received by now; nor by `latest`, when the last of the
    events happened that were taken out ahead."""
    load(connection, [str(subject)])  # waits for whoever is just adding it
    family = family_of(connection, keys=[str(subject)], lock=True)
    ids = sorted({str(subject), *family.nodes})
    profiles = sorted(family.profiles)
    events = withdrawn.of_nodes(connection, ids)
    events += withdrawn.of_keys(connection, _corrections(connection, profiles))
    gone = Gone(
        profile=next((name for name, one in family.profiles.items() if one.merged_into is None), ""),
        profiles=profiles,
        ids=ids,
        formerly=sorted({row.profile for row in events if row.profile} - set(profiles)),
        at=max([time.time_ns() // 1000, latest, *(row.at for row in events)]),
    )
    gone.left = sum(count for (count,) in bulk.select(connection, _REFUSED_HERE, ids))
    _pending(connection, gone, events)
    _leave(connection, gone, events, regulation)
    gone.rows["events"] += withdrawn.remove(connection, events)
    _transformed(connection, gone.rows, events)
    scrub_splits(connection, ids)
    gone.rows.update(take_out(connection, ids, profiles))
    return gone


def take_out(connection: Connection, ids: Sequence[str], profiles: Sequence[str]) -> Counter[str]:
    """Deletes what the tables hold of these ids and profiles, beside events; rows by table."""
    rows: Counter[str] = Counter()
    for table, columns in _BY_KEY.items():
        for column in columns:
            rows[table] += _delete(connection, table, column, ids)
    for column in _BY_PROFILE["merges"]:
        bulk.select(connection, _DISPUTES.format(column), profiles)
    for table, columns in _BY_PROFILE.items():
        for column in columns:
            rows[table] += _delete(connection, table, column, profiles)
    return rows


def _delete(connection: Connection, table: str, column: str, values: Sequence[str]) -> int:
    return len(bulk.select(connection, f"DELETE FROM {table} WHERE {column} {{}} RETURNING 1", values))


def _corrections(connection: Connection, profiles: Sequence[str]) -> list[bytes]:
    """Keys of the events of ours by which destinations may have been told of this person."""
    splits = {
        split
        for column in ("profile", "other")
        for (split,) in bulk.select(connection, _SPLITS.format(column), profiles)
    }
    names = [f"{split}:unmerge:{side}" for split in splits for side in ("a", "b")]
    names += [f"{split}:remerge:{number}" for split in splits for number in range(_TOLD)]
    names += [f"{one}:{APPLY}:0" for (one,) in bulk.select(connection, _RESOLUTIONS, profiles)]
    return [message_key(INTERNAL_SOURCE, name) for name in names]


def _leave(connection: Connection, gone: Gone, events: Sequence[Row], regulation: str) -> None:
    """What stays behind of a person."""
    key = key_of(connection)
    bury(connection, (mark(key, one) for one in gone.ids), PERSON, gone.at)
    _list_erased(connection, events, regulation, gone.at)
    bulk.upsert(connection, schema.deleted_profiles, [(one, gone.at, regulation) for one in gone.profiles])
    if gone.profile:
        note_deletion(connection, "profile", gone.profile, gone.at)


def _list_erased(connection: Connection, events: Sequence[Row], regulation: str, at: int) -> None:
    rows = [(row.partition, row.offset, row.profile, regulation, at, 0) for row in events]
    bulk.upsert(connection, schema.erased, rows)


def note_deletion(connection: Connection, kind: str, profile: str, at: int, type_: str = "", hashed: str = "") -> None:
    """Lists what `profile-changes` is to be told of: a profile is gone, or one of its identifiers."""
    name = f"del_{at:x}_" + base62(message_key(f"{profile}\0{kind}", f"{type_}\0{hashed}"), 22)
    bulk.upsert(connection, schema.deletions, [(name, at, kind, profile, type_, hashed)])


def _transformed(connection: Connection, counted: Counter[str], events: Sequence[Row]) -> None:
    """What functions made of events that were perhaps not emitted. Their placeholders are."""
    if connection.execute(select(schema.transformed.c.partition).limit(1)).first() is None:
        return
    table = schema.transformed.c
    statement = delete(schema.transformed).where(table.partition == bindparam("_p"), table.offset == bindparam("_o"))
    for start in range(0, len(events), _SOME):
        places = [{"_p": row.partition, "_o": row.offset} for row in events[start : start + _SOME]]
        counted["transformed"] += max(0, connection.execute(statement, places).rowcount)


# ── What waits at destinations ────────────────────────────────────────────────────────────────────────────────────


def _pending(connection: Connection, gone: Gone, events: Sequence[Row]) -> None:
    keys = {row.key for row in events}
    origins = {Origin(row.partition, row.offset) for row in events}
    gone.rows.update(sweep(connection, gone.profiles, gone.formerly, origins, keys))


def sweep(
    connection: Connection,
    profiles: Collection[str],
    formerly: Collection[str],
    origins: Collection[Origin],
    keys: Collection[bytes] = (),
) -> Counter[str]:
    """Takes the bytes from what destinations have listed of these profiles; of `formerly`, only what stands at `origins` or has
    one of `keys`. Events that are still out keep their rows, so that the books hold: they are filtered when their turn
    comes. What has ended goes."""
    theirs = [
        row
        for row in _listed(connection, sorted({*profiles, *formerly}), None)
        if _concerns(row, profiles, origins, keys)
    ]
    return _swept(connection, theirs)


def sweep_some(connection: Connection, profiles: Collection[str], most: int) -> Counter[str]:
    """`sweep` of up to `most` rows of these profiles; as many as there are in what is returned."""
    return _swept(connection, _listed(connection, sorted(profiles), most))


_listed_columns: Final = [schema.exceptions.c[name] for name in (
    "destination", "partition", "offset", "state", "source", "profile", "message_id", "reason", "value"
)]  # fmt: skip


def _listed(connection: Connection, profiles: Sequence[str], most: int | None) -> Sequence[Any]:
    """Rows of which something is still to be taken."""
    table = schema.exceptions.c
    left = or_(table.state.in_(_ENDED), table.message_id != "", table.reason != "")
    chosen = select(*_listed_columns).where(table.profile.in_(profiles), left).limit(most)
    return connection.execute(chosen.with_for_update()).all()


def _swept(connection: Connection, rows: Iterable[Any]) -> Counter[str]:
    """A letter is given up with its person: nobody can put it back, so it counts as purged."""
    done: Counter[str] = Counter()
    table, now = schema.exceptions, time.time_ns() // 1000
    ended: dict[str, list[Place]] = {}
    letters: dict[str, list[Place]] = {}
    for row in rows:
        place = Place(row.partition, row.offset)
        if row.state in _ENDED:
            ended.setdefault(row.destination, []).append(place)
            if row.state == "dead":
                letters.setdefault(row.destination, []).append(place)
            done[f"exceptions_{row.state}"] += 1
            continue
        value = None if row.value is None else erased_resolved(bytes(row.value))
        changed = update(table).where(*_at(row.destination, place)).values(value=value, message_id="", reason="")
        connection.execute(changed)
        done["exceptions_outstanding"] += 1
    for destination, places in letters.items():
        give_up(connection, destination, places, now)
    for destination, places in ended.items():
        for place in places:
            connection.execute(delete(table).where(*_at(destination, place)))
    return done


def _at(destination: str, place: Place) -> tuple[ColumnElement[bool], ...]:
    table = schema.exceptions.c
    return table.destination == destination, table.partition == place.partition, table.offset == place.offset


def _concerns(row: Any, profiles: Collection[str], origins: Collection[Origin], keys: Collection[bytes]) -> bool:
    if row.profile in profiles:
        return True
    if row.message_id and message_key(row.source, row.message_id) in keys:
        return True
    if row.value is None:
        return False
    try:
        return decode_resolved(bytes(row.value)).origin in origins
    except ValueError:
        return False  # nobody could tell whose it is


def outstanding(connection: Connection, profiles: Collection[str]) -> dict[str, int]:
    """How many events of these profiles each destination still has listed."""
    table = schema.exceptions
    rows = connection.execute(
        select(table.c.destination).where(
            table.c.profile.in_(sorted(profiles)), table.c.state.in_(OUTSTANDING), table.c.message_id == ""
        )
    )
    return dict(Counter(row.destination for row in rows))


def forget_samples(connection: Connection) -> int:
    """Removes the examples of errors whose events are gone; how many. Nothing personal stands in them but their messageIds."""
    table = schema.destination_samples
    rows = connection.execute(select(table.c.destination, table.c.code, table.c.message, table.c.message_id)).all()
    sources = [name for (name,) in connection.execute(select(schema.intake.c.source).distinct())]
    keys = {row.message_id: {message_key(source, row.message_id) for source in sources} for row in rows}
    known = accepted.find(connection, {key for some in keys.values() for key in some}).keys()
    gone = [row for row in rows if known.isdisjoint(keys[row.message_id])]
    for row in gone:
        connection.execute(
            delete(table).where(
                table.c.destination == row.destination, table.c.code == row.code, table.c.message == row.message
            )
        )
    return len(gone)


# ── What splits remember ──────────────────────────────────────────────────────────────────────────────────────────


def scrub_splits(connection: Connection, ids: Collection[str]) -> int:
    """Takes ids out of what splits keep for their lifting; how many splits named one."""
    table, wanted = schema.splits, frozenset(ids)
    changed = 0
    for row in connection.execute(select(table.c.id, table.c.detail).with_for_update()).all():
        detail = json_loads(row.detail)
        left = _without(detail, wanted)
        if left != detail:
            connection.execute(update(table).where(table.c.id == row.id).values(detail=json_dumps(left).decode()))
            changed += 1
    return changed


def _without(detail: Mapping[str, Any], ids: frozenset[str]) -> dict[str, Any]:
    left = dict(detail)
    left["cut"] = [one for one in detail["cut"] if one not in ids]
    left["ends"] = {side: [one for one in keys if one not in ids] for side, keys in detail["ends"].items()}
    left["edges"] = [edge for edge in detail["edges"] if ids.isdisjoint(edge[:2])]
    left["nodes"] = {key: rest for key, rest in detail["nodes"].items() if key not in ids}
    left["pending"] = [
        [message, profile, node, [one for one in keys if one not in ids], gone]
        for message, profile, node, keys, gone in detail["pending"]
        if node not in ids
    ]
    if "changes" in detail:
        changes = msgspec.convert(detail["changes"], list[ProfileChange])
        left["changes"] = msgspec.to_builtins(
            [one._replace(ids=[each for each in one.ids if str(each) not in ids]) for one in changes]
        )
    return left


# ── Refused events ────────────────────────────────────────────────────────────────────────────────────────────────

_REFUSALS: Final = text("""
    SELECT partition, "offset", body FROM refusals
    WHERE (partition, "offset") > (:partition, :offset) AND body <> :nothing
    ORDER BY partition, "offset" LIMIT :most
""")
_FORGET_REFUSAL: Final = text("""
    UPDATE refusals SET body = :nothing, message_id = '' WHERE partition = :partition AND "offset" = :offset
""")


def refusals_after(connection: Connection, place: Origin, most: int) -> list[tuple[Origin, bytes]]:
    """Refused events that still have their bytes, behind a place."""
    rows = connection.execute(
        _REFUSALS, {"partition": place.partition, "offset": place.offset, "most": most, "nothing": b""}
    )
    return [(Origin(row.partition, row.offset), bytes(row.body)) for row in rows]


def forget_refusals(connection: Connection, places: Sequence[Origin], regulation: str, at: int) -> None:
    """Takes the bytes of refused events; that they were refused stays, since the books count it."""
    if places:
        connection.execute(_FORGET_REFUSAL, [{**one._asdict(), "nothing": b""} for one in places])
        known = {tuple(one) for one in places}
        bulk.upsert(
            connection,
            schema.erased,
            [(*one, "", regulation, at, 0) for one in sorted(known)],
            set_={name: f"erased.{name}" for name in ("profile", "regulation", "at", "emitted")},
        )
