"""Other rules of identity, tried on recorded events: both sets of rules resolve the same events in the same order, each in a scratch
store of its own, and the two are compared. Nothing is sent, and the store that is in use is not touched. Splits that people made
are no events and count on neither side.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import Connection

from pipeline.identity import Rules
from pipeline.log import Batch, Log, Record
from pipeline.parse import nothing, parse
from pipeline.recorded import Recording
from pipeline.store.comparison import Comparison, compare
from pipeline.store.database import Database
from pipeline.store.intake import apply
from pipeline.store.migrate import migrate
from schemas.events import encode_event
from schemas.topics import EVENTS


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
        async for some in Recording(log, since).events(advance):
            batch = [Record(b"", encode_event(one.event), one.stamp, events + n) for n, one in enumerate(some)]
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
