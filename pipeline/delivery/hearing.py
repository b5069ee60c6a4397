"""Lets a destination hear of changes of profiles: `profile-changes` out to those that keep profiles, beside their events.

Changes are no events: nothing is filtered, nothing dies, no books are kept. What a destination does not have yet waits in the log, under
a consumer group of its own.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import structlog

from destinations.contract import Delivered, Hear
from pipeline.delivery.limits import Destination, Limits, World
from pipeline.delivery.retry import delay
from pipeline.log import Batch, Log
from pipeline.running import until
from schemas.changes import ProfileChange, decode_change
from schemas.errors import PartitionLost, Unavailable
from schemas.topics import PROFILE_CHANGES

log = structlog.get_logger()


async def keep_hearing(
    destination: Destination, client: Any, events: Log, *, stop: asyncio.Event, limits: Limits, world: World
) -> None:
    """Tells the destination of changes until it is cancelled, or `stop` is set."""
    wanted = destination.definition.hear
    hear = None if wanted is None else wanted(destination.settings)
    if hear is None:
        return
    told = log.bind(destination=destination.name)
    while not stop.is_set():
        try:
            await _follow(destination, client, events, hear, stop, limits, world)
        except PartitionLost:
            await world.sleep(limits.probe * world.chance())
        except Unavailable as error:
            told.warning("changes of profiles not read for now", error=str(error))
            await world.sleep(limits.probe)
        except Exception as error:
            told.exception("changes of profiles failed, trying again", error=type(error).__name__)
            await world.sleep(limits.longest_probe)


async def _follow(
    destination: Destination,
    client: Any,
    events: Log,
    hear: Hear[Any],
    stop: asyncio.Event,
    limits: Limits,
    world: World,
) -> None:
    async with events.subscribe(
        PROFILE_CHANGES, group=f"{destination.group}.profiles", max_records=limits.records
    ) as subscription:
        async for batches in until(stop, aiter(subscription)):
            changes = changes_in(batches)
            if changes and not await _heard(destination, client, hear, changes, stop, limits, world):
                return
            await subscription.commit(batches)


async def _heard(
    destination: Destination,
    client: Any,
    hear: Hear[Any],
    changes: Sequence[ProfileChange],
    stop: asyncio.Event,
    limits: Limits,
    world: World,
) -> bool:
    """Whether the destination has them. It is asked until it has, or until `stop` is set."""
    told, attempts = log.bind(destination=destination.name), 0
    while not stop.is_set():
        outcome = await hear(client, changes)
        if isinstance(outcome, Delivered):
            if attempts:
                told.info("changes of profiles go on", failures=attempts)
            return True
        if attempts == 0:
            told.warning("changes of profiles wait", reason=outcome.reason)
        attempts += 1
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), delay(attempts, outcome.after, world.chance(), limits))
    return False


def changes_in(batches: Sequence[Batch]) -> list[ProfileChange]:
    """The changes of a poll. Erased records say nothing any more; what is no change at all is named in the log."""
    changes = []
    for batch in batches:
        for record in batch.records:
            if not record.value:
                continue
            try:
                changes.append(decode_change(record.value))
            except ValueError as error:
                place = {"topic": batch.topic, "partition": batch.partition, "offset": record.offset}
                log.error("not a change of profiles; find out what else writes to the log", error=str(error), **place)
    return changes
