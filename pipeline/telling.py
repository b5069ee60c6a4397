"""Tells of splits, of their lifting and of deletions: destinations through `events`, others through `profile-changes`. What is still to
be told stands in the database from the transaction that did it, and whoever comes first tells it."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from pipeline.corrections import event_of
from pipeline.log import Log, Record
from pipeline.running import steadily
from pipeline.store import deletions, splits
from pipeline.store.database import Database
from schemas.changes import ProfileChange, encode_change
from schemas.errors import Unavailable
from schemas.events import encode_event
from schemas.topics import EVENTS, PROFILE_CHANGES

INTERVAL: Final = 30.0  # seconds after which what somebody left behind is told


async def tell(log: Log, database: Database) -> int:
    """Appends what is still to be told and notes it; how much that was. Told twice is told once: messageIds and the ids of changes
    are made from what is told of."""
    return await _tell_splits(log, database) + await _tell_deletions(log, database)


async def _tell_splits(log: Log, database: Database) -> int:
    count = 0
    for one in await database.read(splits.pending):
        now = time.time_ns() // 1000
        events = [event_of(correction, now) for correction in one.corrections]
        await append_changes(log, one.changes)
        await log.append(EVENTS, [Record(each.key, encode_event(each), now // 1000) for each in events])
        await database.run(partial(splits.told, one=one))
        count += len(events)
    return count


async def _tell_deletions(log: Log, database: Database) -> int:
    count = 0
    while pending := await database.read(deletions.pending):
        await append_changes(log, list(pending.values()))
        await database.run(partial(deletions.told, deletions=pending.keys()))
        count += len(pending)
    return count


async def append_changes(log: Log, changes: Sequence[ProfileChange]) -> None:
    """Appends to `profile-changes`, keyed by profile and stamped with the present."""
    if changes:
        now = time.time_ns() // 1_000_000
        records = [Record(one.profile.encode(), encode_change(one), now) for one in changes]
        await log.append(PROFILE_CHANGES, records)


async def keep_telling(log: Log, database: Database, stop: asyncio.Event) -> None:
    """Tells what others left behind, until `stop` is set."""
    while not stop.is_set():
        try:
            await steadily(lambda: tell(log, database), stop, "telling of splits and deletions")
        except Unavailable:
            return  # asked to stop during an outage; the database lists it still
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), INTERVAL)
