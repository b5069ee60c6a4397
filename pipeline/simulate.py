"""Other rules of identity, tried on recorded events: both sets of rules resolve the same events in the same order, each in a scratch
store of its own, and the two are compared. Nothing is sent, and the store that is in use is not touched.

Events are taken from `resolved`, as functions of sources left them, in the order in which they were processed; where partitions ran
side by side, by the time of their emission. Splits that people made are no events and count on neither side; what we tell
ourselves is no evidence and is passed over.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import merge
from pathlib import Path
from typing import Final

from sqlalchemy import Connection

from pipeline.identity import Rules
from pipeline.log import Batch, Log, Record
from pipeline.parse import nothing, parse
from pipeline.store.comparison import Comparison, compare
from pipeline.store.database import Database
from pipeline.store.intake import apply
from pipeline.store.migrate import migrate
from schemas.events import decode_resolved, encode_event
from schemas.topics import EVENTS, INTERNAL_SOURCE, RESOLVED

_AT_ONCE: Final = 4_000
_READ: Final = 1_000


@dataclass(frozen=True, slots=True)
class Simulation:
    """What came of it: how many events were resolved both ways, and how the results differ."""

    events: int
    comparison: Comparison


async def simulate(
    log: Log,
    present: Rules,
    other: Rules,
    *,
    since: int,
    folder: Path,
    examples: int,
    advance: Callable[[int, int], None],
) -> Simulation:
    """Resolves what was recorded since a time (Unix ms) by both rules. `folder` is empty, on a disk with room for two stores;
    `advance` hears of records done and of all. Memory does not grow with the number of events."""
    sides = [_Side(folder / "present.sqlite", present), _Side(folder / "other.sqlite", other)]
    events = 0
    try:
        async for values in _in_order(log, since, advance):
            batch = [Record(b"", value, stamp, events + n) for n, (stamp, value) in enumerate(values)]
            events += len(batch)
            for side in sides:
                await side.database.run(partial(side.take, batch=batch))
    finally:
        for side in sides:
            side.database.close()
    return Simulation(events, await asyncio.to_thread(compare, sides[0].path, sides[1].path, examples=examples))


class _Side:
    def __init__(self, path: Path, rules: Rules) -> None:
        self.path, self.rules = path, rules
        self.database = Database(f"sqlite:///{path}", repeatable=True)
        migrate(self.database)

    def take(self, connection: Connection, batch: Sequence[Record]) -> None:
        work = parse([Batch(EVENTS, 0, batch, batch[-1].offset + 1)], nothing, self.rules)
        apply(connection, work, {}, self.rules)


# ── What was recorded ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Partition:
    """One partition of `resolved` on its way to its end. `waiting` are records that were read and not taken."""

    number: int
    offset: int
    end: int
    waiting: list[tuple[int, bytes]] = field(default_factory=list)  # stamp, value of `events`
    marks: dict[int, int] = field(default_factory=dict)

    async def read(self, log: Log) -> int:
        """Reads on if nothing waits; answers how many records that were."""
        before = self.offset
        while not self.waiting and self.offset < self.end:
            batch = await log.read(RESOLVED, self.number, self.offset, max_records=_READ)
            if batch is None:
                self.offset = self.end
                break
            self.waiting = [one for record in batch.records if (one := self._fresh(record)) is not None]
            self.offset = min(batch.next_offset, self.end)
        return self.offset - before

    def _fresh(self, record: Record) -> tuple[int, bytes] | None:
        """What was emitted again after a crash is passed over, as destinations do."""
        if record.offset >= self.end:
            return None
        try:
            resolved = decode_resolved(record.value)
        except ValueError:
            return None  # a dead letter under any rules
        origin, event = resolved.origin, resolved.event
        if origin.offset <= self.marks.get(origin.partition, -1):
            return None
        self.marks[origin.partition] = origin.offset
        return None if event.source == INTERNAL_SOURCE else (record.timestamp, encode_event(event))

    def take(self, until: int) -> list[tuple[int, bytes]]:
        """Records stamped up to a time."""
        count = next((n for n, (stamp, _) in enumerate(self.waiting) if stamp > until), len(self.waiting))
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        return taken


async def _in_order(
    log: Log, since: int, advance: Callable[[int, int], None]
) -> AsyncIterator[Sequence[tuple[int, bytes]]]:
    """Every event once, by time over all partitions, some thousands at a time."""
    bounds: Mapping[int, tuple[int, int]] = await log.bounds(RESOLVED)
    partitions = [
        _Partition(number, await log.offset_at(RESOLVED, number, since), end) for number, (_, end) in bounds.items()
    ]
    total = sum(max(0, one.end - one.offset) for one in partitions)
    done, ready = 0, list[tuple[int, bytes]]()
    while True:
        done += sum([await one.read(log) for one in partitions])
        advance(done, total)
        going = [one for one in partitions if one.waiting]
        if not going:
            break
        until = min(one.waiting[-1][0] for one in going)
        ready += merge(*(one.take(until) for one in going), key=_stamp)
        if len(ready) >= _AT_ONCE:
            yield ready
            ready = []
    if ready:
        yield ready


def _stamp(one: tuple[int, bytes]) -> int:
    return one[0]
