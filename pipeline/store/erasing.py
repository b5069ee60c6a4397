"""What the eraser asks of the tables beside the requests themselves."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from sqlalchemy import Connection, bindparam, select, text, update

from pipeline.store import replays, schema
from pipeline.store.books import is_destination
from schemas.events import Origin

_FENCE: Final = text("""
    UPDATE destination_positions SET epoch = epoch + 1
    WHERE destination = :destination AND partition = :partition AND "offset" < :barrier
""")


def origins(connection: Connection, regulations: Collection[str]) -> set[Origin]:
    """Where on `events` the records stand that these requests erase."""
    table = schema.erased
    rows = connection.execute(
        select(table.c.partition, table.c.offset).where(table.c.regulation.in_(sorted(regulations)))
    )
    return {Origin(*row) for row in rows}


def unseen(connection: Connection, regulation: str) -> dict[Origin, str]:
    """Those that are not known to have been emitted: below the position they are."""
    table, positions = schema.erased, schema.positions
    known = {
        row.partition: row.emitted for row in connection.execute(select(positions.c.partition, positions.c.emitted))
    }
    rows = connection.execute(
        select(table.c.partition, table.c.offset, table.c.profile).where(
            table.c.regulation == regulation, table.c.emitted == 0, table.c.profile != ""
        )
    )
    return {Origin(row.partition, row.offset): row.profile for row in rows if row.offset >= known.get(row.partition, 0)}


def since(connection: Connection) -> int:
    """When the pipeline last moved a position (µs): what is not known to be emitted is hardly older."""
    return min((row.updated_at for row in connection.execute(select(schema.positions.c.updated_at))), default=0)


def note_seen(connection: Connection, places: Iterable[Origin]) -> None:
    """They are done: seen on `resolved`, or erased where they came alone."""
    table = schema.erased
    values = [{"_p": one.partition, "_o": one.offset} for one in places]
    if values:
        connection.execute(
            update(table)
            .where(table.c.partition == bindparam("_p"), table.c.offset == bindparam("_o"))
            .values(emitted=1),
            values,
        )


def strays(connection: Connection, most: int) -> list[Origin]:
    """Records that came after their person was deleted, or were suppressed, and whose bytes are still there."""
    table = schema.erased
    rows = connection.execute(
        select(table.c.partition, table.c.offset)
        .where(table.c.regulation == "", table.c.emitted == 0)
        .order_by(table.c.partition, table.c.offset)
        .limit(most)
    )
    return [Origin(*row) for row in rows]


def behind(connection: Connection, barrier: Mapping[int, int]) -> list[tuple[str, int]]:
    """Destinations and partitions whose position has not reached a barrier: what they read earlier may still be in memory. Replays
    are among them while they are going; they end before it."""
    table = schema.destination_positions
    replaying = [one.name for one in replays.going(connection)]
    rows = connection.execute(
        select(table.c.destination, table.c.partition, table.c.offset).where(
            is_destination(table.c.destination) | table.c.destination.in_(replaying)
        )
    )
    return sorted((row.destination, row.partition) for row in rows if row.offset < barrier.get(row.partition, 0))


def position_of(connection: Connection, destination: str) -> dict[int, int]:
    """How far a destination is, by partition."""
    table = schema.destination_positions
    rows = connection.execute(select(table.c.partition, table.c.offset).where(table.c.destination == destination))
    return {row.partition: row.offset for row in rows}


def fence(connection: Connection, places: Sequence[tuple[str, int]], barrier: Mapping[int, int]) -> None:
    """Takes the partitions from who holds them: whatever they had read is read again, as it is now, and nothing that they
    remember is written."""
    values = [
        {"destination": name, "partition": partition, "barrier": barrier[partition]} for name, partition in places
    ]
    if values:
        connection.execute(_FENCE, values)
