"""Other rules of identity, tried on recorded events: both sets of rules resolve the same events in the same order, each in a scratch
store of its own, and the two are compared. Nothing is sent, and the store that is in use is not touched. Splits that people made
are no events and count on neither side.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from sqlalchemy import Connection

from pipeline.identity import Rules
from pipeline.log import Batch, Log, Record
from pipeline.parse import nothing, parse
from pipeline.recorded import Recording
from pipeline.scratch import Scratched, held
from pipeline.store.comparison import Comparison, compare
from pipeline.store.database import Database
from pipeline.store.erasures import erased_among
from pipeline.store.intake import apply
from pipeline.store.migrate import migrate
from pipeline.store.scratches import Changed
from schemas.errors import Refused
from schemas.events import encode_event
from schemas.topics import EVENTS

WORK: Final = "identity simulate"
_BEGINNINGS: Final = 3


@dataclass(frozen=True, slots=True)
class Simulation:
    """What came of it: how many events were resolved both ways, and how the results differ."""

    events: int
    comparison: Comparison


async def simulate(
    log: Log,
    database: Database,
    present: Rules,
    other: Rules,
    *,
    since: int,
    folder: Path,
    examples: int,
    advance: Callable[[int, int], None],
) -> Simulation:
    """Resolves what was recorded since a time (Unix ms) by both rules. `folder` is this work's own, on a disk with room for two stores,
    and empty at the end; `database` tells who was deleted. `advance` hears of records done and of all. Memory does not grow with the
    number of events. Refused while another process works in the folder, and when people are deleted each time."""
    with held(database, folder, WORK) as scratch:
        for _ in range(_BEGINNINGS):
            try:
                await asyncio.to_thread(scratch.begin)
                sides = [_Side(folder / "present.sqlite", present), _Side(folder / "other.sqlite", other)]
                events = await _resolve(Recording(log, since), database, sides, scratch, advance)
                return Simulation(events, await asyncio.to_thread(_compared, sides, examples))
            except Changed:
                continue
            finally:
                await asyncio.to_thread(scratch.clear)
    raise Refused(
        "still_changing",
        "People were deleted each time while the events were gone through; run it again once nobody does that.",
        status=409,
    )


async def _resolve(
    recording: Recording,
    database: Database,
    sides: "Sequence[_Side]",
    scratch: Scratched,
    advance: Callable[[int, int], None],
) -> int:
    """Puts every event through both sides; how many that were."""
    events = 0
    try:
        async for some in recording.events(advance):
            await asyncio.to_thread(scratch.check)
            gone = await database.read(lambda c: erased_among(c, (one.origin for one in some)))  # noqa: B023 - awaited within the turn
            kept = [one for one in some if one.origin not in gone]
            batch = [Record(b"", encode_event(one.event), one.stamp, events + n) for n, one in enumerate(kept)]
            events += len(batch)
            for side in sides if batch else ():
                await side.database.run(partial(side.take, batch=batch))
    finally:
        for side in sides:
            side.database.close()
    return events


def _compared(sides: "Sequence[_Side]", examples: int) -> Comparison:
    return compare(sides[0].path, sides[1].path, examples=examples)


class _Side:
    def __init__(self, path: Path, rules: Rules) -> None:
        self.path, self.rules = path, rules
        self.database = Database(f"sqlite:///{path}", repeatable=True)
        migrate(self.database)

    def take(self, connection: Connection, batch: Sequence[Record]) -> None:
        work = parse([Batch(EVENTS, 0, batch, batch[-1].offset + 1)], nothing, self.rules)
        apply(connection, work, {}, self.rules)
