"""What retention had removed before a destination was there, by source: its books begin after that."""

from collections.abc import Mapping
from typing import Final

from sqlalchemy import Connection, select

from pipeline.store import bulk, schema

_COUNTED: Final = ""  # no source is called that: it marks a destination as counted


def counted(connection: Connection, destination: str) -> bool:
    """Whether the destination's baseline is known, or it has begun without one."""
    known, positions = schema.destination_baselines, schema.destination_positions
    return any(
        connection.execute(select(table.c.destination).where(table.c.destination == destination).limit(1)).first()
        for table in (known, positions)
    )


def note(connection: Connection, destination: str, accepted: Mapping[str, int]) -> None:
    """Keeps a baseline, unless there is one: whoever counted first is right, since nothing was read before."""
    rows = [(destination, _COUNTED, 0), *((destination, source, count) for source, count in sorted(accepted.items()))]
    if not counted(connection, destination):
        bulk.upsert(connection, schema.destination_baselines, rows)


def read(connection: Connection) -> dict[str, dict[str, int]]:
    """Events by destination and source. A destination that has missed none has an entry without sources; one that has not
    begun has none."""
    found: dict[str, dict[str, int]] = {}
    table = schema.destination_baselines
    for name, source, count in connection.execute(select(table.c.destination, table.c.source, table.c.accepted)):
        by_source = found.setdefault(name, {})
        if source != _COUNTED:
            by_source[source] = count
    return found
