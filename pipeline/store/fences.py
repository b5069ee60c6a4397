"""Which profiles the ids of an event were of before it, kept from the transaction that applies it until it is emitted: what is
emitted again after a crash waits for the same."""

from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import Connection, delete, select

from pipeline.store import bulk, schema
from schemas.events import Origin


def keep(connection: Connection, left: Iterable[tuple[Origin, Sequence[str]]], emitted: Mapping[int, int]) -> None:
    """Adds what new events left, and removes what is known to be emitted, of the same partitions: a batch without merges pays nothing."""
    rows = [(*origin, profile) for origin, profiles in left for profile in profiles]
    bulk.insert(connection, schema.fences, rows)
    table = schema.fences
    for partition in sorted({partition for partition, _, _ in rows}):
        done = emitted.get(partition, 0)
        connection.execute(delete(table).where(table.c.partition == partition, table.c.offset < done))


def kept(connection: Connection, spans: Mapping[int, tuple[int, int]]) -> dict[Origin, Sequence[str]]:
    """What events that are applied have left, for offsets [first, end) of each partition."""
    table = schema.fences
    found: dict[Origin, list[str]] = {}
    for partition, (first, end) in spans.items():
        span = (table.c.partition == partition, table.c.offset >= first, table.c.offset < end)
        for offset, profile in connection.execute(select(table.c.offset, table.c.profile).where(*span)):
            found.setdefault(Origin(partition, offset), []).append(profile)
    return {origin: sorted(profiles) for origin, profiles in found.items()}
