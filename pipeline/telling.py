"""Tells destinations of splits and of their lifting: a split lists what is still to be told, in its own transaction, and
whoever comes first tells it."""

import asyncio
import time
from contextlib import suppress
from typing import Final

from pipeline.corrections import event_of
from pipeline.log import Log, Record
from pipeline.running import steadily
from pipeline.store import splits
from pipeline.store.database import Database
from schemas.errors import Unavailable
from schemas.events import encode_event
from schemas.topics import EVENTS

INTERVAL: Final = 30.0  # seconds after which corrections that somebody left behind are told


async def tell(log: Log, database: Database) -> int:
    """Appends what is still to be told and notes it; how much that was. Told twice is told once: messageIds are the splits'."""
    count = 0
    for split, corrections in await database.read(splits.pending):
        now = time.time_ns() // 1000
        events = [event_of(one, now) for one in corrections]
        await log.append(EVENTS, [Record(one.key, encode_event(one), now // 1000) for one in events])
        messages = [one.message for one in corrections]
        await database.run(lambda connection: splits.told(connection, split, messages))  # noqa: B023 - awaited within the turn
        count += len(messages)
    return count


async def keep_telling(log: Log, database: Database, stop: asyncio.Event) -> None:
    """Tells what others left behind, until `stop` is set."""
    while not stop.is_set():
        try:
            await steadily(lambda: tell(log, database), stop, "telling destinations of splits")
        except Unavailable:
            return  # asked to stop during an outage; the split lists it still
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), INTERVAL)
