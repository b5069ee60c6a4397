"""Requests to delete and to suppress: what was asked for, how far it is, and what stays behind of it.

Nothing personal stays once a request has ended: ids are kept hashed. While it is under way its `work` holds them in clear."""

import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, delete, insert, select, text, tuple_, update

from pipeline.privacy.marks import mark
from pipeline.store import bulk, schema
from schemas.events import ExternalId, Origin
from schemas.exact_json import json_dumps, json_loads

PERSON: Final = "person"
IDENTIFIER: Final = "identifier"
_KEY_BYTES: Final = 32
_LATER: Final = (
    "CASE WHEN excluded.deleted_at > tombstones.deleted_at THEN excluded.deleted_at ELSE tombstones.deleted_at END"
)
_LIFT: Final = "DELETE FROM suppressions WHERE mark {} RETURNING mark"
_SUPPRESSED: Final = "SELECT mark FROM suppressions WHERE mark {}"
_HIDE: Final = "UPDATE suppressions SET id = NULL WHERE mark {} RETURNING mark"


@dataclass(frozen=True, slots=True)
class Regulation:
    """A request. `work` is None once it has ended. Times are microseconds."""

    id: str
    kind: str
    status: str
    created_at: int
    finished_at: int | None
    marks: Sequence[str]
    work: Mapping[str, Any] | None
    receipt: Mapping[str, Any]


class Telling(NamedTuple):
    """What becomes of a request at one destination. `barrier` is how far the destination must be on each partition of
    `resolved` before it is told; None: that is not known yet."""

    regulation: str
    destination: str
    status: str
    barrier: Mapping[int, int] | None
    attempts: int
    next_at: int
    error: str
    finished_at: int | None


# ── The key ───────────────────────────────────────────────────────────────────────────────────────────────────────


def key_of(connection: Connection) -> bytes:
    """What ids are hashed with; made when it is first asked for by a writer."""
    table = schema.privacy_key
    found = connection.execute(select(table.c.key)).scalar()
    if found is not None:
        return bytes(found)
    fresh = secrets.token_bytes(_KEY_BYTES)
    connection.execute(
        text("INSERT INTO privacy_key (id, key) VALUES (1, :key) ON CONFLICT (id) DO NOTHING"), {"key": fresh}
    )
    return bytes(connection.execute(select(table.c.key)).scalar_one())


def known_key(connection: Connection) -> bytes | None:
    """The same for readers: None while nothing was ever deleted or suppressed."""
    found = connection.execute(select(schema.privacy_key.c.key)).scalar()
    return None if found is None else bytes(found)


# ── Requests ──────────────────────────────────────────────────────────────────────────────────────────────────────


def add(connection: Connection, one: Regulation, destinations: Mapping[str, str]) -> None:
    """Files a request; `destinations` are those to be told, each with its first status."""
    connection.execute(
        insert(schema.regulations).values(
            id=one.id,
            kind=one.kind,
            status=one.status,
            created_at=one.created_at,
            finished_at=one.finished_at,
            marks=_json(list(one.marks)),
            work=None if one.work is None else _json(dict(one.work)),
            receipt=_json(dict(one.receipt)),
        )
    )
    bulk.insert(
        connection,
        schema.regulation_destinations,
        [(one.id, name, status, None, 0, 0, "", None) for name, status in sorted(destinations.items())],
    )


def find(connection: Connection, regulation: str) -> Regulation | None:
    """A request by id."""
    row = connection.execute(select(schema.regulations).where(schema.regulations.c.id == regulation)).first()
    return None if row is None else _regulation(row)


def page(connection: Connection, *, before: int | None, most: int) -> list[Regulation]:
    """Requests, the latest first, made before a time."""
    table = schema.regulations
    statement = select(table).order_by(table.c.created_at.desc(), table.c.id.desc()).limit(most)
    if before is not None:
        statement = statement.where(table.c.created_at < before)
    return [_regulation(row) for row in connection.execute(statement)]


def under_way(connection: Connection) -> list[Regulation]:
    """Requests that have not ended, the earliest first."""
    table = schema.regulations
    statement = (
        select(table).where(table.c.status.in_(("INITIALIZED", "RUNNING"))).order_by(table.c.created_at, table.c.id)
    )
    return [_regulation(row) for row in connection.execute(statement)]


def advance(
    connection: Connection, regulation: str, status: str, work: Mapping[str, Any], receipt: Mapping[str, Any]
) -> None:
    """Notes how far a request is."""
    table = schema.regulations
    connection.execute(
        update(table)
        .where(table.c.id == regulation)
        .values(status=status, work=_json(dict(work)), receipt=_json(dict(receipt)))
    )


def finish(connection: Connection, regulation: str, status: str, receipt: Mapping[str, Any], at: int) -> None:
    """Ends a request. Its ids in clear go."""
    table = schema.regulations
    connection.execute(
        update(table)
        .where(table.c.id == regulation)
        .values(status=status, work=None, receipt=_json(dict(receipt)), finished_at=at)
    )


def _regulation(row: Any) -> Regulation:
    return Regulation(
        row.id,
        row.kind,
        row.status,
        row.created_at,
        row.finished_at,
        json_loads(row.marks),
        None if row.work is None else json_loads(row.work),
        json_loads(row.receipt),
    )


# ── At destinations ───────────────────────────────────────────────────────────────────────────────────────────────


def tellings(connection: Connection, *, regulation: str | None = None, destination: str | None = None) -> list[Telling]:
    """What becomes of a request everywhere, or of all that a destination has yet to be told."""
    table = schema.regulation_destinations
    statement = select(table).order_by(table.c.regulation, table.c.destination)
    if regulation is not None:
        statement = statement.where(table.c.regulation == regulation)
    if destination is not None:
        statement = statement.where(
            table.c.destination == destination,
            table.c.status.in_(("INITIALIZED", "RUNNING")),
            table.c.barrier.is_not(None),
        )
    return [
        Telling(
            row.regulation,
            row.destination,
            row.status,
            None if row.barrier is None else {int(p): o for p, o in json_loads(row.barrier).items()},
            row.attempts,
            row.next_at,
            row.error,
            row.finished_at,
        )
        for row in connection.execute(statement)
    ]


def set_barrier(connection: Connection, regulation: str, barrier: Mapping[int, int]) -> None:
    """From now on destinations may be told, each once it is that far."""
    table = schema.regulation_destinations
    values = _json({str(partition): offset for partition, offset in barrier.items()})
    connection.execute(
        update(table).where(table.c.regulation == regulation, table.c.barrier.is_(None)).values(barrier=values)
    )


def told(connection: Connection, one: Telling) -> None:
    """Notes what came of telling a destination."""
    table = schema.regulation_destinations
    connection.execute(
        update(table)
        .where(table.c.regulation == one.regulation, table.c.destination == one.destination)
        .values(
            status=one.status, attempts=one.attempts, next_at=one.next_at, error=one.error, finished_at=one.finished_at
        )
    )


def give_up(connection: Connection, regulation: str, error: str, at: int) -> None:
    """The destinations that could not be told are not tried any more."""
    table = schema.regulation_destinations
    connection.execute(
        update(table)
        .where(table.c.regulation == regulation, table.c.status.in_(("INITIALIZED", "RUNNING")))
        .values(status="FAILED", error=error, finished_at=at)
    )


# ── Suppression ───────────────────────────────────────────────────────────────────────────────────────────────────


def suppress(connection: Connection, ids: Iterable[ExternalId], regulation: str, at: int, *, in_clear: bool) -> int:
    """Lets no event with one of these ids pass from now on; how many of them were not suppressed before. `in_clear`: the person's
    data is kept, and so are the ids."""
    key = key_of(connection)
    wanted = {mark(key, one): str(one) for one in ids}
    known = {bytes(one) for (one,) in bulk.select(connection, _SUPPRESSED, list(wanted), kind="bytea")}
    bulk.upsert(
        connection,
        schema.suppressions,
        [(marked, one if in_clear else None, regulation, at) for marked, one in sorted(wanted.items())],
    )
    return len(wanted.keys() - known)


def unsuppress(connection: Connection, ids: Iterable[ExternalId]) -> int:
    """Lets events with these ids pass again; how many of them were suppressed."""
    key = key_of(connection)
    return len(bulk.select(connection, _LIFT, sorted({mark(key, one) for one in ids}), kind="bytea"))


def suppressed(connection: Connection, *, after: str, most: int) -> list[tuple[str, str | None, int]]:
    """Suppressed ids by their marks in hex, behind one of them: the mark, the id where it is kept, and since when."""
    table = schema.suppressions
    rows = connection.execute(
        select(table.c.mark, table.c.id, table.c.at)
        .where(table.c.mark > bytes.fromhex(after))
        .order_by(table.c.mark)
        .limit(most)
    )
    return [(bytes(row.mark).hex(), row.id, row.at) for row in rows]


def is_suppressed(connection: Connection, one: ExternalId) -> tuple[str, str | None, int] | None:
    """The entry of an id in the list, if it is there."""
    key = known_key(connection)
    if key is None:
        return None
    table = schema.suppressions
    row = connection.execute(select(table).where(table.c.mark == mark(key, one))).first()
    return None if row is None else (bytes(row.mark).hex(), row.id, row.at)


def hide(connection: Connection, marks: Sequence[bytes]) -> None:
    """The ids are kept hashed only from now on."""
    bulk.select(connection, _HIDE, list(marks), kind="bytea")


# ── What stays behind ─────────────────────────────────────────────────────────────────────────────────────────────


def bury(connection: Connection, marks: Iterable[bytes], kind: str, at: int) -> None:
    """Leaves tombstones, the later one where there are two."""
    bulk.upsert(
        connection, schema.tombstones, [(one, kind, at) for one in sorted(set(marks))], set_={"deleted_at": _LATER}
    )


def deleted_at(connection: Connection, profile: str) -> int | None:
    """When a profile was deleted; None when it was not."""
    table = schema.deleted_profiles
    return connection.execute(select(table.c.deleted_at).where(table.c.profile == profile)).scalar()


def erased_between(connection: Connection, spans: Mapping[int, tuple[int, int]]) -> dict[Origin, str]:
    """Which records of `events` between two offsets of each partition are erased or about to be, with the profile that
    they were applied to."""
    table = schema.erased
    return {
        Origin(partition, row.offset): row.profile
        for partition, (first, end) in spans.items()
        for row in connection.execute(
            select(table.c.offset, table.c.profile).where(
                table.c.partition == partition, table.c.offset >= first, table.c.offset < end
            )
        )
    }


def erased_among(connection: Connection, origins: Iterable[Origin]) -> Collection[Origin]:
    """Records of `events` that are erased or about to be, at least those of these places; they are gone through only when anything
    is."""
    if connection.execute(select(schema.erased.c.partition).limit(1)).first() is None:
        return ()
    spans: dict[int, tuple[int, int]] = {}
    for partition, offset in origins:
        first, end = spans.get(partition, (offset, offset + 1))
        spans[partition] = min(first, offset), max(end, offset + 1)
    return erased_between(connection, spans)


def forget_old(connection: Connection, before: int, most: int) -> int:
    """Removes up to `most` places of records that retention has removed; how many."""
    table = schema.erased
    place = tuple_(table.c.partition, table.c.offset)
    some = select(table.c.partition, table.c.offset).where(table.c.at < before).limit(most)
    return connection.execute(delete(table).where(place.in_(some))).rowcount


def _json(value: Any) -> str:
    return json_dumps(value).decode()
