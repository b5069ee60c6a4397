"""Kill -9 of anything at any moment loses nothing that was answered 200, and doubles nothing.

A minute of it each, MILLRACE_CRASH_SECONDS for another time. A failure prints the seed; MILLRACE_CRASH_SEED repeats it as
far as timing lets it.
"""

import asyncio
import json
import math
import os
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random, SystemRandom
from typing import Any, Final

import pytest

from pipeline.store.database import Database
from tests.crash.deployment import WRITE_KEY, Deployment
from tests.crash.load import Load
from tests.crash.shop import population
from tests.crash.storm import Blow, Storm
from tests.crash.verdict import (
    Sent,
    Verdict,
    applied_messages,
    balance_faults,
    first_sightings,
    loaded,
    on_the_way,
    profile_faults,
    resolved_order,
    warehouse_faults,
    webhook_faults,
)
from tests.services.kafka import KafkaBroker
from tests.services.postgres import PostgresServer

SECONDS: Final = float(os.environ.get("MILLRACE_CRASH_SECONDS", "60"))
SEED: Final = int(os.environ.get("MILLRACE_CRASH_SEED", SystemRandom().randrange(1 << 32)))
RATE: Final = 1_000  # messages per second that the clients offer
MESSAGES: Final = 850  # different ones per second of the storm that must be answered: 51,000 in a minute, repeats apart
PEOPLE: Final = 1_500
QUIET: Final = 120.0  # seconds in which what is on its way must have become less, until all of it has arrived
BROKER_RESTS: Final = 15.0  # seconds between two kills of the broker, which is back after four
BACKEND_RESTS: Final = 4.0
FREEZE_RESTS: Final = 20.0

pytestmark = [pytest.mark.crash, pytest.mark.timeout(SECONDS + 3 * QUIET + 240)]


async def test_nothing_is_lost_or_doubled_on_one_machine(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, seed=SEED)
    await survive(deployment, {"freeze": (freezing(deployment, "process-1", 2.0), FREEZE_RESTS)})


@pytest.mark.kafka
@pytest.mark.postgres
async def test_nothing_is_lost_or_doubled_on_kafka_and_postgresql(
    tmp_path: Path, own_kafka_broker: KafkaBroker, postgres_server: PostgresServer, empty_postgres_url: str
) -> None:
    async def broker() -> None:
        await asyncio.to_thread(own_kafka_broker.kill)
        await asyncio.to_thread(own_kafka_broker.start)

    async def backend() -> None:
        await asyncio.to_thread(postgres_server.wait_until_ready)  # a busy machine may still be at the kill before
        await asyncio.to_thread(postgres_server.kill_backend, empty_postgres_url)
        await asyncio.to_thread(postgres_server.wait_until_ready)

    deployment = Deployment(
        tmp_path, seed=SEED, log=f"kafka://{own_kafka_broker.bootstrap}", database=empty_postgres_url
    )
    await survive(
        deployment,
        {
            "broker": (broker, BROKER_RESTS),
            "backend": (backend, BACKEND_RESTS),
            # For longer than the group waits for a member.
            "freeze process": (freezing(deployment, "process-1", 9.0), FREEZE_RESTS),
            "freeze deliver": (freezing(deployment, "deliver-1", 9.0), FREEZE_RESTS),
        },
    )


def freezing(deployment: Deployment, role: str, seconds: float) -> Blow:
    """A role that is believed dead, and comes back with its work half done."""

    async def freeze() -> None:
        await deployment.roles[role].freeze(seconds)

    return freeze


async def survive(deployment: Deployment, blows: Mapping[str, tuple[Blow, float]]) -> None:
    """Load under a storm, then quiet, then the reckoning."""
    random = Random(SEED)
    load = Load(deployment.url, WRITE_KEY, population(PEOPLE, random), rate=RATE, random=random)
    storm = Storm(deployment, load, blows, random=Random(SEED))
    imbalances: list[str] = []
    clock = Clock()
    try:
        await asyncio.to_thread(deployment.start)
        await deployment.ready()
        clock.note("ready")
        async with background(watch_the_books(deployment, imbalances)):
            async with background(storm.rage(SECONDS)) as raging, background(tend_after(raging, deployment)):
                await load.run(int(SECONDS * MESSAGES), raging)
            clock.note("all sent")
            books = await until_quiet(deployment)
        clock.note("still not quiet" if on_the_way(books) else "quiet")
        told = story(deployment, load, storm, clock)
        (deployment.folder / "story.txt").write_text(told)
        verdict = await reckon(deployment, load, books, imbalances)
        assert verdict == Verdict(), f"{verdict}\n{told}"
    finally:
        deployment.remove()


class Clock:
    """When things happened, in seconds since the beginning."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.notes: list[str] = []

    def note(self, what: str) -> None:
        self.notes.append(f"{time.monotonic() - self._began:.0f} {what}")


@asynccontextmanager
async def background(work: Coroutine[Any, Any, None]) -> AsyncIterator["asyncio.Task[None]"]:
    """A task that ends with the block."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def tend_after(raging: "asyncio.Task[None]", deployment: Deployment) -> None:
    """What the storm left unable to start is started again while there is still something to send."""
    await asyncio.wait([raging])
    while True:
        deployment.tend()
        await asyncio.sleep(0.5)


async def watch_the_books(deployment: Deployment, imbalances: list[str]) -> None:
    """The books balance at every moment, in the middle of the storm too."""
    while True:
        books = await deployment.balance()
        if books is not None and books["off"] not in (0, None):
            imbalances.append(f"on the way: {json.dumps(books)}")
        await asyncio.sleep(3)


async def until_quiet(deployment: Deployment) -> Any:
    """The books once nothing is on its way any more, or when patience ends; the verdict says what is missing then."""
    began = moved = time.monotonic()
    least: float = math.inf
    while True:
        books, now = await deployment.balance(), time.monotonic()
        left = on_the_way(books)
        if left < least:
            least, moved = left, now
        if left == 0 or now > min(moved + QUIET, began + 3 * QUIET):
            return books
        deployment.tend()
        await asyncio.sleep(0.5)


async def reckon(deployment: Deployment, load: Load, books: Any, imbalances: Sequence[str]) -> Verdict:
    """Stops everything and compares what there is with what was sent."""
    told = json.loads(await asyncio.to_thread(deployment.run, "balance", "--json"))
    codes = await asyncio.to_thread(deployment.stop)
    sent = Sent(load.sent, load.answered)
    database = Database(deployment.database)
    try:
        applied = applied_messages(database, sent)
        profiles = profile_faults(database, applied)
    finally:
        database.close()
    return Verdict(
        clients=tuple(load.surprises),
        processes=(
            *deployment.tracebacks(),
            *(f"{name} ended with {code} when asked to stop" for name, code in codes.items() if code != 0),
        ),
        warehouse=warehouse_faults(loaded(deployment.data / "warehouse.duckdb"), sent),
        profiles=profiles,
        webhook=webhook_faults(first_sightings(deployment.sightings), await resolved_order(deployment.log), sent),
        balance=(
            *imbalances,
            *balance_faults(books, len(applied)),
            *(() if told == books else (f"the command line says {told}, the API said {books}",)),
        ),
    )


def story(deployment: Deployment, load: Load, storm: Storm, clock: Clock) -> str:
    """What a person needs who has to find the cause."""
    return "\n".join(
        (
            f"seed {SEED}: repeat with MILLRACE_CRASH_SEED={SEED} MILLRACE_CRASH_SECONDS={SECONDS:g}",
            f"{len(load.sent)} messages sent, {len(load.answered)} answered, {load.repeats} repeated, "
            f"{load.failures} requests failed",
            f"seconds: {', '.join(clock.notes)}",
            f"killed: {', '.join(storm.kills)}",
            *(f"by itself: {one}" for one in deployment.ended[-8:]),
            deployment.last_words(),
        )
    )
