"""Recorded events, sent again: what goes and what does not, through crashes, on SQLite and on PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from destinations.contract import DELIVERED, Outcome, RawEvent, Rejected, Retry
from pipeline.delivery.decide import FILTERED_BY_RULES, rules
from pipeline.delivery.limits import World
from pipeline.delivery.replay import (
    ALREADY_DELIVERED,
    DEAD_LETTER,
    NOT_CHOSEN,
    PURGED,
    STILL_PENDING,
    Recorded,
    verdict,
)
from pipeline.query import replays as api
from pipeline.store import books, letters, paths, replays
from pipeline.store.books import Replayed, Settled
from pipeline.store.letters import Place
from pipeline.store.replays import Progress, Replay, Wanted
from schemas.config import FilterConfig
from schemas.errors import Refused
from schemas.topics import RESOLVED
from tests.unit.delivery_world import QUICK, DeliveryWorld, Script, Tried, by_id, takes_all

LIMITS = replace(QUICK, look=0.005)
FILTERED = FilterConfig(types=None, events=("Wanted",), where=None)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[DeliveryWorld]:
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else ""
    one = DeliveryWorld(tmp_path, url=url, limits=LIMITS)
    yield one
    if one.task is not None and not one.task.done():
        await one.crash()
    one.close()


async def history(world: DeliveryWorld, script: Script = takes_all) -> None:
    """Ten events of five profiles, of which crm was to have the even ones only; then it is to have all of them."""
    world.add(script, filter_=FILTERED)
    for number in range(10):
        await world.emit(f"m{number}", f"p{number % 5}", event="Other" if number % 2 else "Wanted")
    await world.run_until_idle()
    world.did.clear()
    world.destinations.clear()
    world.add(script)


async def begin(
    world: DeliveryWorld,
    *,
    again: bool = False,
    rate: float = 1e6,
    filter: str = "",  # noqa: A002 - the field's name
    sources: Sequence[str] = (),
) -> Replay:
    wanted = Wanted("crm", 0, 1 << 60, sources, filter, rate, again)
    ranges = {0: (0, len(world.log.topics[RESOLVED][0]))}
    return await world.database.run(lambda c: replays.create(c, wanted, ranges, 1))


async def state(world: DeliveryWorld, replay: Replay) -> str:
    found = await world.database.read(partial(replays.find, number=replay.id))
    assert found is not None
    return found.state


async def run_to_the_end(world: DeliveryWorld, replay: Replay, end: str = "done") -> None:
    async def ended() -> bool:
        return await state(world, replay) == end

    world.start()
    await world.until(ended)
    await world.finish()


def sent(world: DeliveryWorld) -> list[str]:
    return [name for one in world.did if isinstance(one, Tried) for name in one.ids]


async def progress(world: DeliveryWorld, replay: Replay) -> Progress:
    return await world.database.read(partial(replays.progress, replay=replay))


async def test_what_was_filtered_and_would_pass_now_is_sent_and_nothing_that_was_delivered(
    world: DeliveryWorld,
) -> None:
    await history(world)
    replay = await begin(world)
    await run_to_the_end(world, replay)
    assert sorted(sent(world)) == ["m1", "m3", "m5", "m7", "m9"]
    assert await progress(world, replay) == Progress(10, 10, 5, 5, 0, 0, 0, {ALREADY_DELIVERED: 5})


async def test_the_book_of_the_destination_stays_as_it_is_and_the_replay_has_one_of_its_own(
    world: DeliveryWorld,
) -> None:
    await history(world)
    before = await world.database.read(books.read)
    replay = await begin(world)
    await run_to_the_end(world, replay)
    after = await world.database.read(books.read)
    assert (after.settled, after.outstanding, after.positions) == (before.settled, before.outstanding, before.positions)
    assert before.settled == {("crm", "web"): Settled(delivered=5, filtered=5)}
    assert after.replays == {"crm:replay-1": Replayed(Settled(delivered=5, filtered=5), 0)}


async def test_a_second_replay_sends_nothing(world: DeliveryWorld) -> None:
    await history(world)
    await run_to_the_end(world, await begin(world))
    world.did.clear()
    second = await begin(world)
    await run_to_the_end(world, second)
    assert sent(world) == []
    assert (await progress(world, second)).reasons == {ALREADY_DELIVERED: 10}


async def test_again_sends_what_was_delivered_too_in_order_per_profile(world: DeliveryWorld) -> None:
    await history(world)
    replay = await begin(world, again=True)
    await run_to_the_end(world, replay)
    names = sent(world)
    assert sorted(names) == [f"m{number}" for number in range(10)]
    assert all(names.index(f"m{number}") < names.index(f"m{number + 5}") for number in range(5))


async def test_filters_and_sources_choose(world: DeliveryWorld) -> None:
    await history(world)
    first = await begin(world, filter='event = "Other" and messageId != "m1"')
    await run_to_the_end(world, first)
    assert sorted(sent(world)) == ["m3", "m5", "m7", "m9"]
    assert (await progress(world, first)).reasons == {NOT_CHOSEN: 6}
    world.did.clear()
    second = await begin(world, sources=["app"])
    await run_to_the_end(world, second)
    assert sent(world) == []
    third = await begin(world)  # what the first did not choose, nobody has sent
    await run_to_the_end(world, third)
    assert sent(world) == ["m1"]


async def test_the_rules_of_today_hold_for_what_is_replayed(world: DeliveryWorld) -> None:
    await history(world)
    world.destinations.clear()
    world.add(filter_=FILTERED)
    replay = await begin(world)
    await run_to_the_end(world, replay)
    assert sent(world) == []
    assert (await progress(world, replay)).reasons == {ALREADY_DELIVERED: 5, FILTERED_BY_RULES: 5}


async def test_a_crash_in_the_middle_goes_on_where_the_ledger_stands(world: DeliveryWorld) -> None:
    halfway = asyncio.Event()

    async def slow(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        if batch[0]["messageId"] == "m5" and not halfway.is_set():
            halfway.set()
            await asyncio.Event().wait()
        return [DELIVERED] * len(batch)

    await history(world, slow)
    replay = await begin(world, rate=5.0)  # one at a time
    clock = Skipping()
    world.clock = World(now=clock.now, sleep=clock.sleep, chance=lambda: 1.0)
    world.start()
    await asyncio.wait_for(halfway.wait(), 10)
    await world.crash()
    assert sent(world) == ["m1", "m3", "m5"]
    world.did.clear()
    clock.seconds += 60  # the lease of the process that is gone
    await run_to_the_end(world, replay)
    assert sent(world) == ["m5", "m7", "m9"]  # m5 was not answered
    assert (await progress(world, replay)).delivered == 5


class Skipping:
    """Time that passes while somebody waits for it."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def now(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0.002)
        self.seconds += min(seconds, 0.25)


async def test_no_more_than_the_rate_is_handed_on(world: DeliveryWorld) -> None:
    await history(world)
    replay = await begin(world, again=True, rate=10.0)
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(round(seconds, 3))

    clock = World(now=lambda: 5.0 + sum(waits), sleep=sleep)
    recorded = Recorded(world.log, world.database, replay, rules(world.destinations[0]), clock)
    sizes = []
    async for (part,) in recorded.parts(None, 1_000):
        sizes.append(len(part.records))
        if sum(sizes) == 10:
            break
    assert (sizes, waits) == ([2, 2, 2, 2, 2], [0.2, 0.2, 0.2, 0.2])


async def test_dead_letters_and_what_is_pending_are_left_to_their_own_ways(world: DeliveryWorld) -> None:
    world.add(by_id({"m0": [Rejected("http 422")], "m1": [Retry("http 503")] * 99}))
    world.limits = replace(LIMITS, backoff=3_600.0, longest_backoff=3_600.0)
    for number in range(3):
        await world.emit(f"m{number}", f"p{number}")
    world.start()

    async def listed() -> bool:
        return sorted(one.state for one in await world.listed()) == ["dead", "retry"]

    await world.until(listed)
    await world.finish()
    await world.emit("m3")  # the live flow has not come to it
    world.did.clear()
    world.destinations.clear()
    replay = await begin(world, again=True)
    await world.database.run(lambda c: letters.give_up(c, "crm", [Place(0, 9)], 1))
    world.add(takes_all)
    judged = Recorded(world.log, world.database, replay, rules(world.destinations[0]), world.clock)
    async for (part,) in judged.parts(None, 1_000):
        assert len(part.records) == 4
        break
    assert list(judged._reasons.values()) == [DEAD_LETTER, STILL_PENDING, None, STILL_PENDING]


async def test_a_cancelled_replay_settles_what_waits_and_sends_nothing_more(world: DeliveryWorld) -> None:
    async def never(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        return [DELIVERED if one["messageId"] == "m1" else Retry("http 503") for one in batch]

    await history(world)
    world.destinations.clear()
    world.add(never)
    world.limits = replace(LIMITS, failures=100)
    replay = await begin(world)
    world.start()

    async def waits() -> bool:
        return (await progress(world, replay)).pending == 4

    await world.until(waits)
    await world.database.run(partial(replays.cancel, number=replay.id))

    async def ended() -> bool:
        return await state(world, replay) == "cancelled"

    await world.until(ended)
    await world.finish()
    done = await progress(world, replay)
    assert (done.delivered, done.filtered, done.pending) == (1, 9, 0)


async def test_a_dead_letter_of_a_replay_is_put_back_and_the_replay_goes_on_for_it(world: DeliveryWorld) -> None:
    script = by_id({"m3": [Rejected("http 422")]})
    await history(world, script)
    replay = await begin(world)
    await run_to_the_end(world, replay)
    assert (await progress(world, replay)).dead == 1
    world.did.clear()
    assert await world.database.run(lambda c: letters.put_back(c, replay.name, [Place(0, 3)], 5)) == 1
    assert await state(world, replay) == "running"
    await run_to_the_end(world, replay)
    assert sent(world) == ["m3"]
    done = await progress(world, replay)
    assert (done.delivered, done.dead, done.pending) == (5, 0, 0)


async def test_a_replay_ends_only_when_nothing_of_it_waits_for_another_try(world: DeliveryWorld) -> None:
    await history(world, by_id({"m9": [Retry("http 503")] * 5}))
    world.limits = replace(LIMITS, backoff=0.05, longest_backoff=0.05)
    replay = await begin(world)
    await run_to_the_end(world, replay)
    done = await progress(world, replay)
    assert (done.delivered, done.pending, sent(world).count("m9")) == (5, 0, 6)


async def test_a_replay_without_its_destination_waits_and_says_so(world: DeliveryWorld) -> None:
    await history(world)
    replay = await begin(world)
    world.destinations.clear()
    world.start()

    async def noted() -> bool:
        found = await world.database.read(partial(replays.find, number=replay.id))
        return found is not None and found.note == "no destination is called crm; configure it, or cancel"

    await world.until(noted)
    await world.finish()
    assert await state(world, replay) == "running"


async def test_the_path_of_an_event_names_the_replay_that_sent_it(world: DeliveryWorld) -> None:
    await history(world)
    await run_to_the_end(world, await begin(world))
    found = await world.database.read(lambda c: paths.batches_around(c, 0, 1))
    assert sorted(one.destination for one in found) == ["crm", "crm:replay-1"]
    assert await world.database.read(lambda c: set(paths.destination_positions(c))) == {("crm", 0)}


async def test_two_replays_to_one_destination_do_not_go_at_once(world: DeliveryWorld) -> None:
    await history(world)
    body = {"destination": "crm", "since": "2020-01-01", "rate": 5}
    first = await api.begin(world.log, world.database, ["crm"], body)
    assert (first.id, first.state, first.destination, first.rate) == (1, "running", "crm", 5.0)
    with pytest.raises(Refused) as caught:
        await api.begin(world.log, world.database, ["crm"], body)
    assert (caught.value.code, caught.value.status) == ("replay_going", 409)
    assert (await api.cancel(world.database, "1")).state == "cancelling"
    assert [one.id for one in (await api.page(world.database, {}, "/x")).data] == [1]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"destination": "crm"}, "validation_error"),
        ({"destination": "crm", "since": "soon"}, "validation_error"),
        ({"destination": "crm", "since": "2026-01-01", "rate": 0}, "validation_error"),
        ({"destination": "crm", "since": "2026-01-01", "filter": "event ="}, "invalid_filter"),
        ({"destination": "crm", "since": "2026-01-01", "filter": "a\0"}, "invalid_filter"),
        ({"destination": "erp", "since": "2026-01-01"}, "unknown_destination"),
    ],
)
async def test_what_makes_no_sense_is_refused(tmp_path: Path, body: Mapping[str, object], code: str) -> None:
    world = DeliveryWorld(tmp_path)
    with pytest.raises(Refused) as caught:
        await api.begin(world.log, world.database, ["crm"], dict(body))
    assert caught.value.code == code
    world.close()


@pytest.mark.parametrize(
    ("here", "once", "again"),
    [
        (["pending"], STILL_PENDING, STILL_PENDING),
        (["held"], STILL_PENDING, STILL_PENDING),
        (["retry"], STILL_PENDING, STILL_PENDING),
        (["dead"], DEAD_LETTER, DEAD_LETTER),
        (["delivered"], ALREADY_DELIVERED, None),
        (["settled"], ALREADY_DELIVERED, None),
        (["purged"], PURGED, None),
        (["filtered"], None, None),
        (["filtered", "delivered"], ALREADY_DELIVERED, None),
        (["filtered", "dead"], DEAD_LETTER, DEAD_LETTER),
        (["filtered", "retry"], STILL_PENDING, STILL_PENDING),
        (["delivered", "filtered"], ALREADY_DELIVERED, None),
        (["filtered", "filtered"], None, None),
    ],
)
def test_what_the_ledger_says_decides(here: Sequence[paths.State], once: str | None, again: str | None) -> None:
    outcomes = [paths.Outcome(one) for one in here]
    assert (verdict(outcomes, again=False), verdict(outcomes, again=True)) == (once, again)
