"""Runs every destination, each in a task of its own: what befalls one never reaches another."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path

import structlog

from pipeline.delivery.connecting import connected, rest
from pipeline.delivery.courier import Courier
from pipeline.delivery.forgetting import beside, keep_forgetting
from pipeline.delivery.hearing import keep_hearing
from pipeline.delivery.limits import Destination, Limits, World, rate_of
from pipeline.delivery.observing import observed
from pipeline.delivery.poll import micros
from pipeline.delivery.replay import run_replays
from pipeline.delivery.retry import ceiling
from pipeline.delivery.throttle import Throttle
from pipeline.log import Log
from pipeline.query.balance import begin, come_back, leave
from pipeline.running import steadily
from pipeline.store import folding, ledger, observations
from pipeline.store.database import Database
from schemas.errors import CredentialsRejected, PartitionLost, Unavailable

__all__ = ["Destination", "Limits", "World", "run_delivery"]

log = structlog.get_logger()

_MINUTE = 60_000_000  # microseconds
_STEADY = 60.0  # seconds of work after which an earlier failure is forgotten


async def run_delivery(
    events: Log,
    database: Database,
    destinations: Sequence[Destination],
    *,
    stop: asyncio.Event,
    folder: str | Path,
    limits: Limits | None = None,
    world: World | None = None,
    first: bool = True,
) -> None:
    """Delivers `resolved` to every destination until `stop` is set, then writes what is known and returns.

    `folder` is the data folder, for destinations that keep files. Raises nothing of a destination's: a destination that
    cannot work is tried again, with growing intervals, and the ledger's `destination_state` says why. Several processes share the
    partitions; of those that one machine was told to run, only the `first` has destinations that take one process, and replays."""
    limits, world = limits or Limits(), world or World()
    throttles = {one.name: Throttle(rate_of(one)) for one in destinations}
    async with asyncio.TaskGroup() as group:
        for one in destinations:
            if one.definition.exclusive and not first:
                continue
            keeping = _keep(one, events, database, stop, str(folder), limits, world, throttles[one.name])
            group.create_task(keeping, name=one.group)
        if first:
            replaying = run_replays(
                events,
                database,
                destinations,
                stop=stop,
                folder=str(folder),
                limits=limits,
                world=world,
                throttles=throttles,
            )
            group.create_task(replaying)
            group.create_task(_leave(events, database, [one.name for one in destinations], stop))
        group.create_task(_tidy(database, stop, limits, world))


async def _leave(events: Log, database: Database, configured: Sequence[str], stop: asyncio.Event) -> None:
    """Notes which destinations were removed from the configuration."""
    with suppress(Unavailable):  # asked to stop during an outage: the next start does it
        for name in await steadily(
            lambda: leave(events, database, configured), stop, "noting which destinations are gone"
        ):
            log.info("destination is not configured any more", destination=name)


async def _tidy(database: Database, stop: asyncio.Event, limits: Limits, world: World) -> None:
    """Removes from the ledger what need not be remembered, and joins old commits minute by minute. Only the path of old
    events depends on it, so it may fail."""
    folded = 0
    while not stop.is_set():
        now = world.now()
        before = micros(now - limits.fresh) // _MINUTE * _MINUTE
        try:
            await database.run(partial(ledger.purge, before=micros(now - limits.remember)))
            await database.run(partial(observations.purge, before=micros(now) - observations.KEPT))
            await database.run(partial(folding.fold, since=folded, before=before, span=_MINUTE))
            folded = before
        except Unavailable as error:
            log.warning("ledger not tidied", error=str(error))
        await rest(limits.tidy, stop, world)


async def _keep(
    destination: Destination,
    events: Log,
    database: Database,
    stop: asyncio.Event,
    folder: str,
    limits: Limits,
    world: World,
    throttle: Throttle,
) -> None:
    """Starts the destination again whenever it ends before it should."""
    told = log.bind(destination=destination.name)
    failures = 0
    while not stop.is_set():
        began = world.now()
        try:
            await _deliver(destination, events, database, stop, folder, limits, world, throttle)
            return
        except CredentialsRejected as error:
            state, reason, longest = "paused", str(error), limits.longest_pause
            if failures == 0:
                told.error("destination paused: credentials rejected; correct them, nothing is lost", error=reason)
        except Unavailable as error:
            if stop.is_set():
                told.warning("destination stopped with outcomes unwritten; they are delivered again", error=str(error))
                return
            state, reason, longest = "failed", str(error), limits.longest_probe
            told.warning("destination failed, trying again", error=reason)
        except Exception as error:
            state, reason, longest = "failed", type(error).__name__, limits.longest_probe
            told.exception("destination failed, trying again", error=reason)
        failures = 1 if world.now() - began > _STEADY else failures + 1
        await _note(database, destination, state, reason, world)
        await rest(ceiling(failures - 1, limits.probe, longest), stop, world)


async def _deliver(
    destination: Destination,
    events: Log,
    database: Database,
    stop: asyncio.Event,
    folder: str,
    limits: Limits,
    world: World,
    throttle: Throttle,
) -> None:
    """Connects once; joins the group again when a partition turned out to be another's."""
    if missed := await come_back(events, database, destination.name):
        log.warning(
            "retention took events while the destination was not configured; they cannot be delivered any more",
            destination=destination.name,
            missed=dict(missed),
        )
    async with AsyncExitStack() as stack:
        client, insert = await stack.enter_async_context(connected(destination, folder, world))
        telling = keep_forgetting(destination, client, database, stop=stop, limits=limits, world=world)
        await stack.enter_async_context(beside(telling))
        hearing = keep_hearing(destination, client, events, stop=stop, limits=limits, world=world)
        await stack.enter_async_context(beside(hearing))
        observer = await stack.enter_async_context(observed(destination, database, world))
        await begin(events, database, destination.name)
        while not stop.is_set():
            courier = Courier(
                destination,
                client,
                events,
                database,
                stop=stop,
                limits=limits,
                world=world,
                insert=insert,
                observer=observer,
                throttle=throttle,
            )
            try:
                await courier.run()
            except PartitionLost:
                await rest(limits.probe * world.chance(), stop, world)


async def _note(database: Database, destination: Destination, state: str, reason: str, world: World) -> None:
    """For people only: it may fail with everything else."""
    at = micros(world.now())
    try:
        await database.run(lambda connection: ledger.note_state(connection, destination.name, state, reason, at))
    except Unavailable as error:
        log.warning("destination state not noted", destination=destination.name, error=str(error))
