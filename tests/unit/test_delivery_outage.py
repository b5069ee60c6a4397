"""Six hours without a service, in simulated time: what was waiting, how it goes afterwards, and how fast."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from destinations.contract import DELIVERED, Outcome, RawEvent, Retry
from pipeline.delivery.engine import Destination, Limits
from pipeline.store import replays
from pipeline.store.ledger import OUTSTANDING
from pipeline.store.replays import Wanted
from schemas.config import DestinationLimits
from tests.unit.delivery_world import Book, DeliveryWorld
from tests.unit.simulated import now, simulated, simulated_world

HOUR = 3_600.0
OUTSTANDING_MOST = 40


class Service:
    """Takes everything while it is up, and notes what came when."""

    def __init__(self, *, up: bool) -> None:
        self.up = up
        self.tries = 0
        self.came: list[tuple[float, str]] = []

    async def __call__(self, batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        if not self.up:
            self.tries += 1
            return [Retry("http 503")] * len(batch)
        self.came += [(now(), one["messageId"]) for one in batch]
        return [DELIVERED] * len(batch)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[DeliveryWorld]:
    monkeypatch.setattr("pipeline.delivery.forgetting.LOOK", 60.0)  # of hours that are no subject here, few looks
    limits = Limits(outstanding_down=OUTSTANDING_MOST, look=1.0 if "replay" in request.node.name else 60.0)
    one = DeliveryWorld(tmp_path, limits=limits, clock=simulated_world(), patience=24 * HOUR)
    yield one
    one.close()


def limited(world: DeliveryWorld, rate: float) -> Destination:
    """The destination with a rate of its own."""
    limits = DestinationLimits(events_per_second=rate, concurrency=None, retry_hours=None)
    world.destinations[:] = [replace(one, limits=limits) for one in world.destinations]
    return world.destinations[0]


@simulated
async def test_after_six_hours_of_outage_everything_is_delivered_in_order_within_the_rate_and_little_was_held(
    world: DeliveryWorld,
) -> None:
    service = Service(up=False)
    world.add(service)
    rate = 0.5
    limited(world, rate)
    world.start()
    held = []
    for number in range(120):
        await world.emit(f"{number:03d}", f"person {number % 10}")
        await asyncio.sleep(6 * HOUR / 120)
        if number % 12 == 0:
            held.append(sum(one.state in OUTSTANDING for one in await world.listed()))
    assert service.tries < 6 * HOUR / 600 + 60  # probes ten minutes apart at last, and what was under way before
    service.up = True
    back = now()
    await world.until_idle()
    await world.finish()

    orders = defaultdict(list)
    for _, name in service.came:
        orders[int(name) % 10].append(name)
    assert orders == {person: [f"{number:03d}" for number in range(person, 120, 10)] for person in range(10)}
    times = [at for at, _ in service.came]
    assert times[0] - back <= 600  # the next probe
    assert 119 / rate - 2 <= times[-1] - times[0] <= 119 / rate + 10
    assert max(held) <= OUTSTANDING_MOST + 100
    assert await world.book() == Book(delivered=120)


@simulated
async def test_a_service_that_says_too_much_gets_half_and_a_twentieth_more_every_ten_seconds(
    world: DeliveryWorld,
) -> None:
    came: list[float] = []
    refused: list[float] = []

    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        if not refused and len(came) > 210:
            refused.append(now())
            return [Retry("http 429", after=5.0)] * len(batch)
        came.extend([now()] * len(batch))
        return [DELIVERED] * len(batch)

    world.add(script, max_batch=5)
    limited(world, 10)
    for number in range(900):
        await world.emit(f"{number:04d}", f"person {number}")
    world.start()
    await world.until_idle()
    await world.finish()
    assert await world.book() == Book(delivered=900)
    (at,) = refused

    def rate(start: float) -> float:
        """Events per second in the ten seconds from so long after the refusal."""
        return sum(at + start < one <= at + start + 10 for one in came) / 10

    assert rate(-20) == pytest.approx(10, abs=0.2)
    after = [rate(10 * step) for step in range(6)]
    assert after == pytest.approx([5.0, 5.5, 6.0, 6.5, 7.0, 7.5], abs=0.2)


@simulated
async def test_a_service_that_takes_a_fifth_of_the_rate_gets_everything_in_the_end(world: DeliveryWorld) -> None:
    came: list[float] = []

    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        if sum(now() - at < 10 for at in came) + len(batch) > 20:  # two a second
            return [Retry("http 429", after=5.0)] * len(batch)
        came.extend([now()] * len(batch))
        return [DELIVERED] * len(batch)

    world.add(script, max_batch=5)
    limited(world, 10)
    for number in range(200):
        await world.emit(f"{number:03d}", f"person {number}")
    world.start()
    await world.until_idle()
    await world.finish()
    assert await world.book() == Book(delivered=200)


@simulated
async def test_while_two_sources_wait_each_has_half_of_the_rate(world: DeliveryWorld) -> None:
    came: list[tuple[float, str]] = []

    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        came.extend((now(), one["messageId"]) for one in batch)
        return [DELIVERED] * len(batch)

    world.add(script)
    limited(world, 10)
    for number in range(120):
        await world.emit(f"loud {number}", f"loud {number}", source="loud")
    for number in range(40):
        await world.emit(f"quiet {number}", f"quiet {number}", source="quiet")
    world.start()
    await world.until_idle()
    await world.finish()
    assert {name: one.delivered for name, one in (await world.books()).items()} == {"loud": 120, "quiet": 40}
    quiet = [at - came[0][0] for at, name in came if name.startswith("quiet")]
    assert quiet[-1] == pytest.approx(7, abs=1)  # 80 events, of which a second's worth goes at once
    assert came[-1][0] - came[0][0] == pytest.approx(15, abs=1)


@simulated
async def test_a_backlog_of_any_length_holds_up_nobody_where_its_source_has_a_destination_of_its_own(
    world: DeliveryWorld,
) -> None:
    fresh: list[float] = []

    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        fresh.extend(now() for one in batch if one["messageId"] == "fresh")
        return [DELIVERED] * len(batch)

    world.add(script, name="crm", sources=frozenset({"web"}))
    limited(world, 10)
    world.add(script, name="crm-import", sources=frozenset({"import"}))
    limited(world, 10)
    for number in range(2 * world.limits.records):
        await world.emit(f"old {number}", f"old {number}", source="import")
    await world.emit("fresh", "somebody", source="web")
    world.start()
    began = now()

    async def met() -> bool:
        return bool(fresh)

    await world.until(met)
    await world.crash()
    assert fresh[0] - began < 1


@simulated
async def test_a_replay_and_the_live_flow_are_within_the_rate_together_and_the_live_flow_waits_for_nobody(
    world: DeliveryWorld,
) -> None:
    came: list[tuple[float, str]] = []
    emitted: dict[str, float] = {}

    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        came.extend((now(), one["messageId"]) for one in batch)
        return [DELIVERED] * len(batch)

    world.add(script)
    limited(world, 10)
    for number in range(200):
        await world.emit(f"old {number}", f"old {number}")
    await world.run_until_idle()
    came.clear()
    wanted = Wanted("crm", 0, 1 << 60, (), "", 1_000.0, True)
    await world.database.run(lambda c: replays.create(c, wanted, {0: (0, 200)}, 1))
    world.start()
    for number in range(60):  # six a second, of ten
        emitted[f"new {number}"] = now()
        await world.emit(f"new {number}", f"new {number}")
        await asyncio.sleep(1 / 6)

    async def met() -> bool:
        return len(came) == 260

    await world.until(met)
    await world.crash()
    assert all(sum(at <= one < at + 5 for one, _ in came) <= 5 * 10 + 10 for at, _ in came)
    assert max(at - emitted[name] for at, name in came if name in emitted) < 0.5
    begun = min(at for at, name in came if name not in emitted)
    assert sum(at < begun + 9 for at, name in came if name not in emitted) == pytest.approx(4 * 9, abs=10)


@simulated
async def test_four_in_trouble_leave_the_others_everything(world: DeliveryWorld) -> None:
    async def hang(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        await asyncio.Event().wait()
        return []

    async def slow(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        await asyncio.sleep(100)
        return [DELIVERED] * len(batch)

    async def refuse(outcome: Outcome, batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        return [outcome] * len(batch)

    world.add(hang, name="hangs")
    world.add(slow, name="slow", max_batch=1, concurrency=1)
    world.add(partial(refuse, Retry("http 500")), name="fails")
    world.add(partial(refuse, Retry("http 429", after=60.0)), name="throttles")
    good = [Service(up=True) for _ in range(3)]
    for number, one in enumerate(good):
        world.add(one, name=f"good{number}")
    world.start()
    names = [f"{number:03d}" for number in range(50)]
    emitted = {}
    for name in names:
        await world.emit(name, f"person {name}")
        emitted[name] = now()
        await asyncio.sleep(1)

    async def met() -> bool:
        return all(len(one.came) == 50 for one in good)

    await world.until(met)
    assert [[name for _, name in one.came] for one in good] == [names] * 3
    assert max(at - emitted[name] for one in good for at, name in one.came) < 0.1
    await world.crash()
