"""What retention took of destinations that were not there, by source: before they came, after which their books begin, and while they
were removed from the configuration."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import Connection, select, update

from pipeline.store import bulk, schema

_COUNTED: Final = ""  # no source is called that: it marks a destination as counted, or as removed
_KEPT: Final = {name: f"destination_baselines.{name}" for name in ("accepted", "missed")}
_ADDED: Final = _KEPT | {"missed": "destination_baselines.missed + excluded.missed"}


@dataclass(frozen=True, slots=True)
class Baseline:
    """Events by source. `accepted` had gone before the destination came, `missed` went while it was removed. `off` is what its books were
    off by when it was removed; None while it is configured."""

    accepted: dict[str, int] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)
    off: dict[str, int] | None = None


def counted(connection: Connection, destination: str) -> bool:
    """Whether the destination's baseline is known, or it has begun without one."""
    known, positions = schema.destination_baselines, schema.destination_positions
    return any(
        connection.execute(select(table.c.destination).where(table.c.destination == destination).limit(1)).first()
        for table in (known, positions)
    )


def note(connection: Connection, destination: str, accepted: Mapping[str, int]) -> None:
    """Keeps a baseline, unless there is one: whoever counted first is right, since nothing was read before."""
    rows = [(destination, source, count, 0, None) for source, count in sorted({_COUNTED: 0, **accepted}.items())]
    if not counted(connection, destination):
        bulk.upsert(connection, schema.destination_baselines, rows)


def leave(connection: Connection, destination: str, off: Mapping[str, int]) -> bool:
    """Notes that a destination is not configured any more, and what its books were off by then; False when that is known."""
    if _is_removed(connection, destination):
        return False
    rows = [(destination, source, 0, 0, count) for source, count in sorted({_COUNTED: 0, **off}.items())]
    bulk.upsert(connection, schema.destination_baselines, rows, set_=_KEPT)
    return True


def come_back(connection: Connection, destination: str, missed: Mapping[str, int]) -> bool:
    """Notes that a destination is configured again, and what it has missed; False when somebody else has done so."""
    if not _is_removed(connection, destination):
        return False
    table = schema.destination_baselines
    rows = [(destination, source, 0, count, None) for source, count in sorted(missed.items())]
    bulk.upsert(connection, table, rows, set_=_ADDED)
    connection.execute(update(table).where(table.c.destination == destination).values(off=None))
    return True


def _is_removed(connection: Connection, destination: str) -> bool:
    table = schema.destination_baselines.c
    mark = select(table.off).where(table.destination == destination, table.source == _COUNTED)
    return connection.execute(mark.with_for_update()).scalar() is not None


def removed(baselines: Mapping[str, Baseline]) -> Collection[str]:
    """Those that are noted as not configured any more."""
    return {name for name, one in baselines.items() if one.off is not None}


def read(connection: Connection) -> dict[str, Baseline]:
    """By destination. One that has not begun has none."""
    found: dict[str, Baseline] = {}
    table = schema.destination_baselines.c
    rows = connection.execute(
        select(table.destination, table.source, table.accepted, table.missed, table.off).order_by(
            table.destination, table.source
        )
    )
    for name, source, accepted, missed, off in rows:  # the mark comes first
        one = found.setdefault(name, Baseline(off=None if off is None else {}))
        if source != _COUNTED:
            one.accepted[source], one.missed[source] = accepted, missed
            if one.off is not None:
                one.off[source] = off or 0
    return found
