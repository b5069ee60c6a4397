"""Six hours without a service, at seven thousand times the speed: what was waiting, how it goes afterwards, and how fast."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from destinations.contract import DELIVERED, Outcome, RawEvent, Retry
from pipeline.delivery.engine import Destination, Limits, World
from pipeline.store.ledger import OUTSTANDING
from schemas.config import DestinationLimits
from tests.unit.delivery_world import Book, DeliveryWorld

SPEED = 7_200
HOUR = 3_600.0
OUTSTANDING_MOST = 40


class Clock:
    """The machine's clock, sped up."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def now(self) -> float:
        return 1_800_000_000 + (time.monotonic() - self._began) * SPEED

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / SPEED)


class Service:
    """Takes everything while it is up, and notes what came when."""

    def __init__(self, clock: Clock, *, up: bool) -> None:
        self.clock, self.up = clock, up
        self.tries = 0
        self.came: list[tuple[float, str]] = []

    async def __call__(self, batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        now = self.clock.now()
        if not self.up:
            self.tries += 1
            return [Retry("http 503")] * len(batch)
        self.came += [(now, one["messageId"]) for one in batch]
        return [DELIVERED] * len(batch)


@pytest.fixture
async def clock() -> Clock:
    return Clock()


@pytest.fixture
async def world(tmp_path: Path, clock: Clock) -> AsyncIterator[DeliveryWorld]:
    limits = Limits(outstanding_down=OUTSTANDING_MOST)
    one = DeliveryWorld(tmp_path, limits=limits, clock=World(now=clock.now, sleep=clock.sleep))
    yield one
    if one.task is not None and not one.task.done():
        await one.crash()
    one.close()


def limited(world: DeliveryWorld, rate: float) -> Destination:
    """The destination with a rate of its own."""
    limits = DestinationLimits(events_per_second=rate, concurrency=None, retry_hours=24)
    world.destinations[:] = [replace(one, limits=limits) for one in world.destinations]
    return world.destinations[0]


async def test_after_six_hours_of_outage_everything_is_delivered_in_order_within_the_rate_and_little_was_held(
    world: DeliveryWorld, clock: Clock
) -> None:
    began = clock.now()
    service = Service(clock, up=False)
    world.add(service)
    rate = 0.5
    limited(world, rate)
    world.start()
    held = []
    for number in range(300):
        await world.emit(f"{number:03d}", f"person {number % 20}")
        await clock.sleep(6 * HOUR / 300)
        if number % 30 == 0:
            held.append(sum(one.state in OUTSTANDING for one in await world.listed()))
    down = clock.now() - began
    assert down >= 6 * HOUR
    assert service.tries < down / 60 + 60  # probes a minute apart at last, and what was under way before
    service.up = True
    await world.until_idle()
    await world.finish()

    orders = defaultdict(list)
    for _, name in service.came:
        orders[int(name) % 20].append(name)
    assert orders == {person: [f"{number:03d}" for number in range(person, 300, 20)] for person in range(20)}
    times = [at for at, _ in service.came]
    assert times[-1] - times[0] >= (300 - 2) / rate * 0.98  # a second's worth may go at once
    assert max(held) <= OUTSTANDING_MOST + 100
    assert await world.book() == Book(delivered=300)


async def test_a_service_that_says_too_much_gets_half_and_everything_in_the_end(
    world: DeliveryWorld, clock: Clock
) -> None:
    came: list[float] = []

    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        now = clock.now()
        if sum(now - at < 10 for at in came) + len(batch) > 20:  # two a second
            return [Retry("http 429", after=5.0)] * len(batch)
        came.extend([now] * len(batch))
        return [DELIVERED] * len(batch)

    world.add(script, max_batch=5)
    limited(world, 10)
    for number in range(200):
        await world.emit(f"{number:03d}", f"person {number}")
    world.start()
    await world.until_idle()
    await world.finish()
    assert await world.book() == Book(delivered=200)


async def test_four_in_trouble_leave_the_others_everything(world: DeliveryWorld, clock: Clock) -> None:
    async def hang(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        await asyncio.Event().wait()
        return []

    async def slow(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        await clock.sleep(100)
        return [DELIVERED] * len(batch)

    async def refuse(outcome: Outcome, batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        return [outcome] * len(batch)

    world.add(hang, name="hangs")
    world.add(slow, name="slow", max_batch=1, concurrency=1)
    world.add(partial(refuse, Retry("http 500")), name="fails")
    world.add(partial(refuse, Retry("http 429", after=60.0)), name="throttles")
    good = [Service(clock, up=True) for _ in range(3)]
    for number, one in enumerate(good):
        world.add(one, name=f"good{number}")
    world.start()
    names = [f"{number:03d}" for number in range(100)]
    for name in names:
        await world.emit(name, f"person {name}")

    async def met() -> bool:
        return all(len(one.came) == 100 for one in good)

    await world.until(met)
    assert [sorted(name for _, name in one.came) for one in good] == [names] * 3
    await world.crash()
