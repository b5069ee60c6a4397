"""What functions of sources made of events, kept from the transaction that applies them until it is emitted.

A function may answer differently when it is asked again. So a record below the applied position is what it was when it was applied,
whatever the function says now: its row here, or without one the record as it came.
"""

from collections.abc import Callable, Mapping, Sequence

from sqlalchemy import Connection, delete, exists, select

from pipeline.functions.source import Ran
from pipeline.identity import Rules
from pipeline.log import Batch, Record
from pipeline.parse import Work
from pipeline.store import bulk, schema
from pipeline.store.intake import Emission, apply
from schemas.events import Origin
from schemas.topics import EVENTS

Reparse = Callable[[Sequence[Batch]], Work]


def any_left(connection: Connection) -> bool:
    """Whether something is kept, be it of functions that are no longer configured."""
    return bool(connection.execute(select(exists(select(schema.transformed)))).scalar_one())


def apply_transformed(
    connection: Connection, work: Work, ran: Ran, emitted: Mapping[int, int], rules: Rules, reparse: Reparse
) -> list[Emission]:
    """`apply`, for a poll that went through functions."""
    applied = _lock(connection, work)
    emissions = apply(connection, _as_applied(connection, work, ran, applied, reparse), emitted, rules)
    table = schema.transformed
    fresh = [
        (*origin, value) for origin, value in ran.made.items() if origin.offset >= applied.get(origin.partition, 0)
    ]
    bulk.insert(connection, table, fresh)
    for partition in work.ends:
        done = emitted.get(partition, 0)
        connection.execute(delete(table).where(table.c.partition == partition, table.c.offset < done))
    return emissions


def _lock(connection: Connection, work: Work) -> dict[int, int]:
    table = schema.positions
    statement = select(table.c.partition, table.c.applied).where(table.c.partition.in_(sorted(work.ends)))
    return {row.partition: row.applied for row in connection.execute(statement.order_by("partition").with_for_update())}


def _as_applied(connection: Connection, work: Work, ran: Ran, applied: Mapping[int, int], reparse: Reparse) -> Work:
    """The poll with its records below the applied position as they were applied."""
    values = {
        origin: value for origin, value in ran.originals.items() if origin.offset < applied.get(origin.partition, 0)
    } | _stored(connection, work, ran, applied)
    if not values:
        return work
    then = reparse([_batch(origin, value) for origin, value in sorted(values.items())])
    events = [one for one in work.events if one.origin not in values] + list(then.events)
    refusals = [one for one in work.refusals if one.origin not in values] + list(then.refusals)
    return Work(sorted(events, key=lambda one: one.origin), sorted(refusals, key=lambda one: one.origin), work.ends)


def _stored(connection: Connection, work: Work, ran: Ran, applied: Mapping[int, int]) -> dict[Origin, bytes]:
    table = schema.transformed
    return {
        Origin(partition, offset): bytes(value)
        for partition, end in work.ends.items()
        for offset, value in connection.execute(
            select(table.c.offset, table.c.value).where(
                table.c.partition == partition,
                table.c.offset >= ran.starts.get(partition, end),
                table.c.offset < min(end, applied.get(partition, 0)),
            )
        )
    }


def _batch(origin: Origin, value: bytes) -> Batch:
    return Batch(EVENTS, origin.partition, [Record(b"", value, 0, origin.offset)], origin.offset + 1)
