"""What the books say of single events: where the pipeline put them and what became of them at each destination."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import orjson
from sqlalchemy import ColumnElement, Connection, select, tuple_

from pipeline.store import schema
from pipeline.store.books import is_destination


class Batch(NamedTuple):
    """One commit of a destination on a partition of `resolved`: offsets [first, next)."""

    destination: str
    partition: int
    first: int
    next: int
    at: int
    filtered: Mapping[str, Sequence[Sequence[int]]]  # reason -> runs of (first offset, count)


State = Literal["pending", "held", "retry", "delivered", "filtered", "dead", "purged", "settled"]


class Exceptional(NamedTuple):
    """What a position alone cannot tell of an event. `ended_at` is when it ended, or when it is tried again."""

    state: State  # held, retry, delivered, filtered, dead or purged
    attempts: int
    reason: str
    at: int


class Outcome(NamedTuple):
    """Where an event stands at a destination: pending, held, retry, delivered, filtered, dead, purged, or settled
    when the details are no longer kept. `at` is when that was
    settled, for `retry` when it is due; None when it is pending or too long ago."""

    outcome: State
    reason: str = ""
    at: int | None = None
    attempts: int = 0


def refusals(connection: Connection, message_id: str, most: int = 10) -> list[dict[str, Any]]:
    """Refused events with this messageId, the latest first."""
    table = schema.refusals
    rows = connection.execute(
        select(table).where(table.c.message_id == message_id).order_by(table.c.received_at.desc()).limit(most)
    )
    return [dict(row._mapping) for row in rows]


class Place(NamedTuple):
    """Where a refusal stands among all, by time."""

    received_at: int
    partition: int
    offset: int


def refusals_before(
    connection: Connection, before: Place | None, *, source: str | None, code: str | None, since: int | None, most: int
) -> list[dict[str, Any]]:
    """Refused events, the latest first, beginning after `before`. `since` in microseconds."""
    table = schema.refusals
    place = (table.c.received_at, table.c.partition, table.c.offset)
    statement = select(table).order_by(*[column.desc() for column in place]).limit(most)
    if before is not None:
        statement = statement.where(tuple_(*place) < tuple_(*before))
    for column, wanted in ((table.c.source, source), (table.c.code, code)):
        if wanted is not None:
            statement = statement.where(column == wanted)
    if since is not None:
        statement = statement.where(table.c.received_at >= since)
    return [dict(row._mapping) for row in connection.execute(statement)]


def known_sources(connection: Connection) -> list[str]:
    """Every source that ever sent something."""
    return [name for (name,) in connection.execute(select(schema.intake.c.source).distinct())]


def destination_positions(connection: Connection) -> dict[tuple[str, int], int]:
    """The next offset each destination reads, per partition of `resolved`."""
    table = schema.destination_positions
    return {
        (row.destination, row.partition): row.offset
        for row in connection.execute(
            select(table.c.destination, table.c.partition, table.c.offset).where(is_destination(table.c.destination))
        )
    }


def exceptions_at(connection: Connection, partition: int, offsets: Iterable[int]) -> dict[tuple[str, int], Exceptional]:
    """What is listed for these offsets, by destination and offset."""
    table = schema.exceptions
    return _exceptions(connection, table.c.partition == partition, table.c.offset.in_(list(offsets)))


def exceptions_between(
    connection: Connection, names: Collection[str], partition: int, first: int, end: int
) -> dict[tuple[str, int], Exceptional]:
    """What is listed at these destinations for offsets [first, end), by destination and offset."""
    table = schema.exceptions
    span = (table.c.offset >= first, table.c.offset < end)
    return _exceptions(connection, table.c.destination.in_(names), table.c.partition == partition, *span)


def _exceptions(connection: Connection, *conditions: ColumnElement[bool]) -> dict[tuple[str, int], Exceptional]:
    table = schema.exceptions
    rows = connection.execute(
        select(table.c.destination, table.c.offset, table.c.state, table.c.attempts, table.c.reason, table.c.next_at)
        .where(*conditions)
        .order_by(table.c.destination)
    )
    return {
        (row.destination, row.offset): Exceptional(
            "retry" if row.state == "again" else row.state, row.attempts, row.reason, row.next_at
        )
        for row in rows
    }


def batches_since(connection: Connection, at: int) -> list[Batch]:
    """Commits at `at` or later."""
    table = schema.destination_batches
    return [_batch(row) for row in connection.execute(select(table).where(table.c.at >= at))]


def batches_around(connection: Connection, partition: int, offset: int) -> list[Batch]:
    """The commit of each destination that holds an offset."""
    table = schema.destination_batches
    rows = connection.execute(
        select(table).where(
            table.c.partition == partition, table.c.first_offset <= offset, table.c.next_offset > offset
        )
    )
    return [_batch(row) for row in rows]


def batches_between(
    connection: Connection, names: Collection[str], partition: int, first: int, end: int
) -> list[Batch]:
    """The commits of these destinations that hold any of the offsets [first, end), in order."""
    table = schema.destination_batches
    rows = connection.execute(
        select(table)
        .where(
            table.c.destination.in_(names),
            table.c.partition == partition,
            table.c.next_offset > first,
            table.c.first_offset < end,
        )
        .order_by(table.c.destination, table.c.next_offset)
    )
    return [_batch(row) for row in rows]


def outcome(offset: int, position: int | None, exception: Exceptional | None, batch: Batch | None) -> Outcome:
    """What position, exception and batch together say of the event at `offset`."""
    if exception is not None:
        settled = Outcome(exception.state, exception.reason, exception.at, exception.attempts)
        return settled._replace(at=None) if exception.state == "held" else settled
    if position is None or offset >= position:
        return Outcome("pending")
    if batch is None:
        return Outcome("settled", "delivered or filtered, longer ago than details are kept")
    for reason, runs in batch.filtered.items():
        if any(first <= offset < first + count for first, count in runs):
            return Outcome("filtered", reason, batch.at)
    return Outcome("delivered", "", batch.at, 1)


def _batch(row: Any) -> Batch:
    return Batch(row.destination, row.partition, row.first_offset, row.next_offset, row.at, orjson.loads(row.filtered))
