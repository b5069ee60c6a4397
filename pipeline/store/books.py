"""The counters behind the balance and the metrics, read in one snapshot."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select

from pipeline.store import baselines, schema
from pipeline.store.baselines import Baseline
from pipeline.store.ledger import OUTSTANDING


@dataclass(frozen=True, slots=True)
class Intake:
    """What the pipeline has counted for one source."""

    accepted: int
    duplicates: int
    refused: int
    unresolved: int


@dataclass(frozen=True, slots=True)
class Settled:
    """What one destination has counted for one source."""

    delivered: int = 0
    filtered: int = 0
    died: int = 0  # ever; only this and `purged` never fall
    redriven: int = 0
    purged: int = 0

    @property
    def dead(self) -> int:
        """Dead letters that are there now."""
        return self.died - self.redriven - self.purged

    @property
    def ended(self) -> int:
        """Events that nothing more is done with now."""
        return self.delivered + self.filtered + self.dead + self.purged


@dataclass(frozen=True, slots=True)
class Books:
    """One snapshot. Keys are (destination, source), except `intake` by source, `applied` and `emitted` by partition of `events`, `positions` by
    (destination, partition of `resolved`)."""

    intake: Mapping[str, Intake]
    settled: Mapping[tuple[str, str], Settled]
    outstanding: Mapping[tuple[str, str], int]
    applied: Mapping[int, int]
    emitted: Mapping[int, int]
    positions: Mapping[tuple[str, int], tuple[int, str]]  # next offset, marks as JSON
    oldest: Mapping[str, int]  # destination -> when its oldest outstanding event was first tried
    replays: Mapping[str, "Replayed"]  # by name in the ledger
    baselines: Mapping[str, Baseline]  # by destination


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay has counted, of all sources."""

    settled: Settled
    outstanding: int


def read(connection: Connection) -> Books:
    """Everything, in the snapshot of the transaction it runs in."""
    intake, counts, listed = schema.intake, schema.destination_counts, schema.exceptions
    positions, out = schema.destination_positions, schema.exceptions.c.state.in_(OUTSTANDING)
    whole = [func.sum(intake.c[name]) for name in ("accepted", "duplicates", "refused", "unresolved")]
    settled = [func.sum(counts.c[name]) for name in ("delivered", "filtered", "dead", "redriven", "purged")]
    pipeline = connection.execute(select(schema.positions)).all()
    return Books(
        intake={
            source: Intake(*map(int, rest))
            for source, *rest in connection.execute(select(intake.c.source, *whole).group_by(intake.c.source))
        },
        settled={
            (name, source): Settled(*map(int, rest))
            for name, source, *rest in connection.execute(
                select(counts.c.destination, counts.c.source, *settled)
                .where(is_destination(counts.c.destination))
                .group_by(counts.c.destination, counts.c.source)
            )
        },
        outstanding={
            (name, source): int(count)
            for name, source, count in connection.execute(
                select(listed.c.destination, listed.c.source, func.count())
                .where(out, is_destination(listed.c.destination))
                .group_by(listed.c.destination, listed.c.source)
            )
        },
        applied={row.partition: row.applied for row in pipeline},
        emitted={row.partition: row.emitted for row in pipeline},
        positions={
            (name, partition): (offset, marks)
            for name, partition, offset, marks in connection.execute(
                select(positions.c.destination, positions.c.partition, positions.c.offset, positions.c.marks).where(
                    is_destination(positions.c.destination)
                )
            )
        },
        oldest={
            name: int(first)
            for name, first in connection.execute(
                select(listed.c.destination, func.min(listed.c.first_at))
                .where(out, is_destination(listed.c.destination))
                .group_by(listed.c.destination)
            )
        },
        replays=_replays(connection, settled),
        baselines=baselines.read(connection),
    )


def _replays(connection: Connection, sums: list[Any]) -> dict[str, Replayed]:
    counts, listed = schema.destination_counts, schema.exceptions
    outstanding = connection.execute(
        select(listed.c.destination, func.count())
        .where(listed.c.state.in_(OUTSTANDING), ~is_destination(listed.c.destination))
        .group_by(listed.c.destination)
    )
    waiting = {name: int(count) for name, count in outstanding}
    rows = connection.execute(
        select(counts.c.destination, *sums)
        .where(~is_destination(counts.c.destination))
        .group_by(counts.c.destination)
        .order_by(counts.c.destination)
    )
    settled = {name: Settled(*map(int, rest)) for name, *rest in rows}
    return {name: Replayed(settled.get(name, Settled()), waiting.get(name, 0)) for name in sorted({*settled, *waiting})}


def is_destination(name: ColumnElement[str]) -> ColumnElement[bool]:
    """Of a name in the ledger: whether it is a destination's own, and not that of a replay."""
    return ~name.contains(":")
