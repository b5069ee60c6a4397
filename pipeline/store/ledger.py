"""The ledger of deliveries: positions and exceptions, never a row per event and destination.

What a destination has finished is a position per partition of `resolved`; what is still out, or ended otherwise than at the
first attempt, is listed in `exceptions`. Positions, counters and exceptions move in one transaction, fenced by an epoch:
whoever claims a partition raises it, and an owner of an older epoch writes nothing. Writes are numbered: one of which nobody
knows whether it was committed, since the connection broke, may be repeated.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import orjson
from sqlalchemy import Connection, func, select, text

from pipeline.store import bulk, schema
from schemas.causes import cause_of
from schemas.events import FENCED_HEADER, Fence, decode_resolved

OUTSTANDING: Final = ("held", "retry", "again")
"""The states of events that are still to be delivered. `again`: a dead letter that a person put back and no owner of its
partition has taken up yet."""


class Listed(NamedTuple):
    """An event of `exceptions`, without its bytes. Times are microseconds; `next_at` is when to try again."""

    offset: int
    state: str  # held, retry
    source: str
    profile: str
    message_id: str
    attempts: int
    reason: str
    first_at: int
    next_at: int
    done: str = ""  # JSON: what became of mappings that need not be tried again


@dataclass(frozen=True, slots=True)
class Claim:
    """A partition of `resolved` as its new owner finds it."""

    partition: int
    epoch: int
    offset: int  # next to read
    marks: Mapping[int, int]  # partition of `events` -> highest offset seen
    outstanding: Sequence[Listed]  # by offset
    writes: int = 0  # made so far
    fences: Mapping[int, Sequence[Fence]] = field(default_factory=dict)  # of those that were held, by offset


class Standing(NamedTuple):
    """How far a destination is: the next offset of each partition, and the first outstanding one of those (partition, profile) that
    were asked for and have any."""

    positions: Mapping[int, int]
    outstanding: Mapping[tuple[int, str], int]


class Counts(NamedTuple):
    """What to add for one source. Negative numbers never occur."""

    delivered: int
    filtered: int
    dead: int
    redriven: int = 0
    purged: int = 0


class Range(NamedTuple):
    """Records that a position moves past: offsets [first, next)."""

    first: int
    next: int
    filtered: Mapping[str, Sequence[Sequence[int]]]  # reason -> runs of (first offset, count)


class Row(NamedTuple):
    """A new exception, with its bytes. `next_at` is when it ended, once it has."""

    offset: int
    state: str  # held, retry, dead
    source: str
    profile: str
    message_id: str
    attempts: int
    reason: str
    first_at: int
    next_at: int
    value: bytes
    done: str = ""


class Change(NamedTuple):
    """What became of an exception that is listed already. Delivered and filtered ones lose their bytes."""

    offset: int
    state: str  # retry, delivered, filtered, dead
    attempts: int
    reason: str
    next_at: int
    done: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """What one partition has to say: where it stands now, and everything that happened on the way there."""

    partition: int
    epoch: int
    offset: int
    marks: Mapping[int, int]
    range: Range | None
    counts: Mapping[str, Counts]
    rows: Sequence[Row]
    changes: Sequence[Change]
    writes: int = 0  # made before this one


_CLAIM: Final = text("""
    INSERT INTO destination_positions (destination, partition, epoch, "offset", marks, updated_at)
    VALUES (:destination, :partition, 1, 0, '{}', :at)
    ON CONFLICT (destination, partition) DO UPDATE SET epoch = destination_positions.epoch + 1
    RETURNING epoch, "offset", marks, writes
""")
_OUTSTANDING: Final = text("""
    SELECT "offset", state, source, profile, message_id, attempts, reason, first_at, next_at, done
    FROM exceptions
    WHERE destination = :destination AND partition = :partition AND state IN ('held', 'retry')
    ORDER BY "offset"
""")
_FENCED: Final = text("""
    SELECT "offset", value FROM exceptions
    WHERE destination = :destination AND partition = :partition AND state = 'held' AND substr(value, 1, 5) = :header
""")
_BETWEEN: Final = text(_OUTSTANDING.text.replace("ORDER", 'AND "offset" BETWEEN :first AND :last ORDER'))
_ADVANCE: Final = text("""
    UPDATE destination_positions SET "offset" = :offset, marks = :marks, updated_at = :at, writes = writes + 1
    WHERE destination = :destination AND partition = :partition AND epoch = :epoch AND writes = :writes
""")
_MADE: Final = text("""
    SELECT 1 FROM destination_positions
    WHERE destination = :destination AND partition = :partition AND epoch = :epoch AND writes > :writes
""")
# The cast: PostgreSQL takes one parameter for one type, and a column is no text to it.
_CHANGE: Final = text("""
    UPDATE exceptions
    SET state = :state, attempts = :attempts, reason = :reason, cause = :cause, next_at = :next_at, done = :done,
        value = CASE WHEN CAST(:state AS VARCHAR) IN ('delivered', 'filtered') THEN NULL ELSE value END
    WHERE destination = :destination AND partition = :partition AND "offset" = :offset
""")
_AGAIN: Final = """
    SELECT partition, "offset" FROM exceptions WHERE destination {} AND state = 'again' AND partition IN (%s)
    ORDER BY partition, "offset" LIMIT %d
"""
_EPOCH: Final = text("""
    SELECT epoch FROM destination_positions WHERE destination = :destination AND partition = :partition
""")
_TAKE_UP: Final = text("""
    UPDATE exceptions SET state = 'retry'
    WHERE destination = :destination AND partition = :partition AND "offset" = :offset AND state = 'again'
""")
_ASKED: Final = 500  # profiles in one statement
_STATE: Final = text("""
    INSERT INTO destination_state (destination, state, since, reason) VALUES (:destination, :state, :at, :reason)
    ON CONFLICT (destination) DO UPDATE SET state = excluded.state, reason = excluded.reason,
      since = CASE WHEN destination_state.state = excluded.state THEN destination_state.since ELSE excluded.since END
""")
_PURGE_BATCHES: Final = text("DELETE FROM destination_batches WHERE at < :before")
_PURGE_DELIVERED: Final = text(
    "DELETE FROM exceptions WHERE state IN ('delivered', 'filtered', 'purged') AND next_at < :before"
)


def claim(connection: Connection, destination: str, partitions: Collection[int], at: int) -> dict[int, Claim]:
    """Makes us the owner of these partitions and says how they stand. A partition never read begins at offset 0."""
    return {partition: _claim(connection, destination, partition, at) for partition in sorted(partitions)}


def _claim(connection: Connection, destination: str, partition: int, at: int) -> Claim:
    key = {"destination": destination, "partition": partition}
    epoch, offset, marks, writes = connection.execute(_CLAIM, key | {"at": at}).one()
    return Claim(
        partition=partition,
        epoch=epoch,
        offset=offset,
        marks={int(origin): mark for origin, mark in orjson.loads(marks).items()},
        outstanding=[Listed(*row) for row in connection.execute(_OUTSTANDING, key)],
        fences={
            offset: decode_resolved(bytes(value)).fences
            for offset, value in connection.execute(_FENCED, key | {"header": FENCED_HEADER})
        },
        writes=writes,
    )


def record(connection: Connection, destination: str, at: int, progress: Sequence[Progress]) -> frozenset[int]:
    """Writes what happened, and returns the partitions of which nothing was written because they have another owner. What
    was written before, number for number, is not written again."""
    kept, lost = [], set()
    for one in sorted(progress, key=lambda one: one.partition):
        if _advance(connection, destination, at, one):
            kept.append(one)
        elif not _is_made(connection, destination, one):
            lost.add(one.partition)
    bulk.upsert(
        connection,
        schema.destination_counts,
        [
            (destination, one.partition, source, *counts)
            for one in kept
            for source, counts in sorted(one.counts.items())
        ],
        set_={name: f"destination_counts.{name} + excluded.{name}" for name in Counts._fields},
    )
    bulk.upsert(
        connection,
        schema.destination_batches,
        [
            (destination, one.partition, one.range.next, one.range.first, at, orjson.dumps(one.range.filtered).decode())
            for one in kept
            if one.range is not None
        ],
    )
    bulk.upsert(
        connection,
        schema.exceptions,
        [
            (destination, one.partition, row.offset, row.state, row.source, _storable(row.profile), _storable(row.message_id),
             row.attempts, _storable(row.reason), row.first_at, row.next_at, row.value, row.done, _cause(row))
            for one in kept
            for row in one.rows
        ],
    )  # fmt: skip
    changes = [
        change._asdict()
        | {
            "destination": destination,
            "partition": one.partition,
            "reason": _storable(change.reason),
            "cause": _cause(change),
        }
        for one in kept
        for change in one.changes
    ]
    if changes:
        connection.execute(_CHANGE, changes)
    return frozenset(lost)


def _advance(connection: Connection, destination: str, at: int, one: Progress) -> bool:
    marks = orjson.dumps(one.marks, option=orjson.OPT_NON_STR_KEYS).decode()
    done = connection.execute(
        _ADVANCE,
        {
            "destination": destination,
            "partition": one.partition,
            "epoch": one.epoch,
            "offset": one.offset,
            "marks": marks,
            "at": at,
            "writes": one.writes,
        },
    )
    return done.rowcount == 1


def _is_made(connection: Connection, destination: str, one: Progress) -> bool:
    """Whether the owner has made this write before: the answer to its commit was lost."""
    key = {"destination": destination, "partition": one.partition, "epoch": one.epoch, "writes": one.writes}
    return connection.execute(_MADE, key).first() is not None


def _storable(words: str) -> str:
    """PostgreSQL has no NUL in text; a reason that a service wrote is kept short."""
    return words.replace("\x00", "\ufffd")[:1_000]


def _cause(one: Row | Change) -> str:
    return cause_of(_storable(one.reason)) if one.state == "dead" else ""


def to_take_up(connection: Connection, destination: str, partitions: Iterable[int], most: int) -> dict[int, list[int]]:
    """Dead letters of these partitions that were put back and nobody has taken up yet: their offsets, at most `most`. Cheap enough
    to be asked every second, at a glance."""
    found: dict[int, list[int]] = {}
    numbers = ", ".join(map(str, sorted(partitions))) or "NULL"
    for partition, offset in bulk.select(connection, _AGAIN % (numbers, most), [destination]):
        found.setdefault(partition, []).append(offset)
    return found


def take_up(
    connection: Connection, destination: str, epochs: Mapping[int, int], wanted: Mapping[int, Sequence[int]]
) -> dict[int, Sequence[Listed]]:
    """Makes events that were put back outstanding again for the owner of these epochs, and answers those that are, by partition
    and in order of their offsets; repeated, it answers the same. Of a partition that has another owner by now nothing is taken."""
    lock = "" if connection.dialect.name == "sqlite" else " FOR UPDATE"  # SQLite has one writer
    owner = text(_EPOCH.text + lock)
    taken: dict[int, Sequence[Listed]] = {}
    for partition, offsets in sorted(wanted.items()):
        key = {"destination": destination, "partition": partition}
        if connection.execute(owner, key).scalar() == epochs.get(partition):
            connection.execute(_TAKE_UP, [key | {"offset": offset} for offset in offsets])
            taken[partition] = _listed(connection, key, offsets)
    return {partition: rows for partition, rows in taken.items() if rows}


def _listed(connection: Connection, key: dict[str, object], offsets: Collection[int]) -> Sequence[Listed]:
    """Those of these events that are outstanding."""
    among = frozenset(offsets)
    span = key | {"first": min(among), "last": max(among)}
    rows = connection.execute(_BETWEEN, span)
    return [one for row in rows if (one := Listed(*row)).offset in among]


def standing(connection: Connection, destination: str, awaited: Collection[tuple[int, str]]) -> Standing:
    """How far a destination is, and the first outstanding event of each of these (partition, profile)."""
    positions = schema.destination_positions
    read = connection.execute(
        select(positions.c.partition, positions.c.offset).where(positions.c.destination == destination)
    )
    table = schema.exceptions
    found: dict[tuple[int, str], int] = {}
    profiles = sorted({profile for _, profile in awaited})
    for start in range(0, len(profiles), _ASKED):
        rows = connection.execute(
            select(table.c.partition, table.c.profile, func.min(table.c.offset))
            .where(
                table.c.destination == destination,
                table.c.state.in_(("held", "retry")),
                table.c.profile.in_(profiles[start : start + _ASKED]),
            )
            .group_by(table.c.partition, table.c.profile)
        )
        found |= {(partition, profile): offset for partition, profile, offset in rows}
    return Standing({row.partition: row.offset for row in read}, found)


def values(connection: Connection, destination: str, places: Sequence[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
    """The bytes of listed events by (partition, offset); one that is gone is left out."""
    wanted: dict[int, list[int]] = {}
    for partition, offset in places:
        wanted.setdefault(partition, []).append(offset)
    table = schema.exceptions
    return {
        (partition, offset): bytes(value)
        for partition, offsets in wanted.items()
        for offset, value in connection.execute(
            select(table.c.offset, table.c.value).where(
                table.c.destination == destination,
                table.c.partition == partition,
                table.c.offset.in_(offsets),
                table.c.value.is_not(None),
            )
        )
    }


def note_state(connection: Connection, destination: str, state: str, reason: str, at: int) -> None:
    """How the destination fares: delivering, unreachable, paused, full, failed; since `at`, unless it did so before."""
    connection.execute(_STATE, {"destination": destination, "state": state, "at": at, "reason": _storable(reason)})


def purge(connection: Connection, before: int) -> int:
    """Forgets how events went that were settled before `before` (microseconds): their paths can no longer be told, the
    balance stays. Dead events stay until they are put back or purged by cause. Returns the rows removed."""
    return sum(
        connection.execute(statement, {"before": before}).rowcount for statement in (_PURGE_BATCHES, _PURGE_DELIVERED)
    )
