"""Order across a merge: an event with fences goes when what they name is over, and nothing waits for ever."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from destinations.contract import DELIVERED, Outcome, RawEvent, Rejected, Retry
from pipeline.delivery.engine import Limits
from pipeline.store import ledger, replays
from pipeline.store.ledger import Change, Progress, Row, Standing
from pipeline.store.replays import Wanted
from schemas.config import FilterConfig
from schemas.events import Fence, Origin, decode_resolved, encode_event, encode_resolved
from tests.unit.delivery_world import Book, DeliveryWorld, Listed, by_id, resolved

ANN, BOB = 0, 1  # the partitions in which their events stand; bob is absorbed by ann
QUICK = Limits(backoff=0.004, longest_backoff=0.01, silence=0.0, rest=0.004, longest_rest=0.01, ask=0.002, look=0.01)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[DeliveryWorld]:
    world = DeliveryWorld(tmp_path, partitions=2, limits=QUICK)
    yield world
    if world.task is not None and not world.task.done():
        await world.crash()
    world.close()


class Gate:
    """A service that answers some events only once it is told to."""

    def __init__(self, *slow: str) -> None:
        self.slow, self.open, self.asked = slow, asyncio.Event(), asyncio.Event()

    async def __call__(self, batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        if any(one["messageId"] in self.slow for one in batch):
            self.asked.set()
            await self.open.wait()
        return [DELIVERED] * len(batch)


async def a_merge(world: DeliveryWorld, end: int = 1) -> None:
    """Bob's event, and ann's by which she absorbed him, which is read first."""
    await world.emit("ann 1", "ann", partition=ANN, fences=[Fence("bob", BOB, end)])
    await world.emit("bob 1", "bob", partition=BOB)


async def test_an_event_waits_until_what_its_profile_absorbed_is_delivered(world: DeliveryWorld) -> None:
    gate = Gate("bob 1")
    world.add(gate)
    await a_merge(world)
    await world.emit("ann 2", "ann", partition=ANN)
    await world.emit("eve 1", "eve", partition=ANN)
    world.start()
    await gate.asked.wait()
    assert world.tried() in ([("eve 1", "bob 1")], [("bob 1", "eve 1")])
    gate.open.set()
    await world.until_idle()
    assert world.tried()[1:] == [("ann 1",), ("ann 2",)]


async def test_an_event_waits_for_what_was_under_way_when_it_was_read(world: DeliveryWorld) -> None:
    gate = Gate("bob 1")
    world.limits = replace(QUICK, patience=0.01)
    world.add(gate)
    await world.emit("bob 1", "bob", partition=BOB)
    world.start()
    await gate.asked.wait()
    await world.emit("ann 1", "ann", partition=ANN, fences=[Fence("bob", BOB, 1)])
    await world.emit("eve 1", "eve", partition=ANN)
    await world.until(lambda: _delivered(world, 1))
    gate.open.set()
    await world.until_idle()
    assert world.tried() == [("bob 1",), ("eve 1",), ("ann 1",)]


async def test_an_event_waits_while_what_its_profile_absorbed_is_tried_again(world: DeliveryWorld) -> None:
    world.add(by_id({"bob 1": [Retry("http 503"), Retry("http 503")]}))
    await a_merge(world)
    await world.run_until_idle()
    assert world.tried() == [("bob 1",), ("bob 1",), ("bob 1",), ("ann 1",)]


async def test_what_came_of_a_profile_since_is_not_waited_for(world: DeliveryWorld) -> None:
    """As after a split: bob is somebody again, and his next event is read together with the one that waits for those before."""
    world.add(by_id({}), max_batch=1, concurrency=1)
    await world.emit("bob 1", "bob", partition=BOB)
    await world.emit("ann 1", "ann", partition=BOB, fences=[Fence("bob", BOB, 1)])
    await world.emit("bob 2", "bob", partition=BOB)
    await world.run_until_idle()
    await world.emit("ann 2", "ann", partition=BOB, fences=[Fence("bob", BOB, 3)])
    await world.emit("bob 3", "bob", partition=BOB)
    await world.run_until_idle()
    assert world.tried()[:3] in (
        [("bob 1",), ("ann 1",), ("bob 2",)],
        [("bob 1",), ("bob 2",), ("ann 1",)],
    )
    assert sorted(world.tried()[3:]) == [("ann 2",), ("bob 3",)]


async def test_a_dead_event_holds_back_nobody(world: DeliveryWorld) -> None:
    world.add(by_id({"bob 1": [Rejected("http 422")]}))
    await a_merge(world)
    await world.run_until_idle()
    assert world.tried() == [("bob 1",), ("ann 1",)]
    assert await world.listed() == [Listed("bob 1", "dead", 1, "http 422")]


async def test_later_events_of_an_absorbed_profile_hold_back_nobody(world: DeliveryWorld) -> None:
    """Its ids may be taken apart again; then it goes on, and may in turn wait for the other."""
    gate = Gate("bob 2")
    world.add(gate, max_batch=1)
    await world.emit("bob 1", "bob", partition=BOB)
    await world.emit("bob 2", "bob", partition=BOB)
    await world.emit("ann 1", "ann", partition=ANN, fences=[Fence("bob", BOB, 1)])
    world.start()
    await world.until(lambda: _delivered(world, 2))
    gate.open.set()
    await world.until_idle()
    assert sorted(world.tried()) == [("ann 1",), ("bob 1",), ("bob 2",)]


async def test_what_stands_in_the_same_partition_is_waited_for_as_well(world: DeliveryWorld) -> None:
    world.add(by_id({"bob 1": [Retry("http 503")]}))
    await world.emit("bob 1", "bob", partition=ANN)
    await world.emit("ann 1", "ann", partition=ANN, fences=[Fence("bob", ANN, 1)])
    await world.run_until_idle()
    assert world.tried() == [("bob 1",), ("bob 1",), ("ann 1",)]


async def test_merges_in_a_row_go_in_that_order(world: DeliveryWorld) -> None:
    world.add(by_id({"eve 1": [Retry("http 503")]}))
    await world.emit("ann 1", "ann", partition=ANN, fences=[Fence("bob", BOB, 2), Fence("eve", BOB, 2)])
    await world.emit("eve 1", "eve", partition=BOB)
    await world.emit("bob 1", "bob", partition=BOB, fences=[Fence("eve", BOB, 1)])
    await world.run_until_idle()
    assert world.tried() == [("eve 1",), ("eve 1",), ("bob 1",), ("ann 1",)]


async def test_events_that_go_together_are_cut_at_a_fence(world: DeliveryWorld) -> None:
    gate = Gate("bob 1")
    world.add(gate, atomic=True)
    await world.emit("ann 0", "ann", partition=ANN)
    await a_merge(world)
    world.start()
    await gate.asked.wait()
    assert world.tried() == [("ann 0", "bob 1")]
    gate.open.set()
    await world.until_idle()
    assert world.tried() == [("ann 0", "bob 1"), ("ann 1",)]


# ── Filters ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_filtered_event_waits_too_so_that_what_follows_it_does(world: DeliveryWorld) -> None:
    """The event of a merge is mostly an identify, and many destinations take none."""
    world.add(by_id({"bob 1": [Retry("http 503")]}), filter_=FilterConfig(types=("track",), events=None))
    await world.emit("ann 1", "ann", partition=ANN, fences=[Fence("bob", BOB, 1)], type="identify")
    await world.emit("ann 2", "ann", partition=ANN)
    await world.emit("bob 1", "bob", partition=BOB)
    await world.run_until_idle()
    assert world.tried() == [("bob 1",), ("bob 1",), ("ann 2",)]
    assert await world.book() == Book(delivered=2, filtered=1)


async def test_what_waited_and_is_filtered_is_told_with_its_reason(world: DeliveryWorld) -> None:
    world.add(by_id({"bob 1": [Retry("http 503")]}), filter_=FilterConfig(types=("track",), events=None))
    await world.emit("ann 1", "ann", partition=ANN, fences=[Fence("bob", BOB, 1)], type="identify")
    await world.emit("bob 1", "bob", partition=BOB)
    await world.run_until_idle()
    listed = [one for one in await world.listed() if one.message_id == "ann 1"]
    spans = [one for one in await world.filtered() if one]
    assert listed == [Listed("ann 1", "filtered", 1, "FILTERED_BY_RULES")] or spans == [{"FILTERED_BY_RULES": [[0, 1]]}]


async def test_a_body_that_nobody_can_read_waits_like_any_other(world: DeliveryWorld) -> None:
    world.add(by_id({"bob 1": [Retry("http 503")]}))
    whole = decode_resolved(resolved("ann 1", "ann", Origin(0, 7)))
    value = encode_event(whole.event._replace(body=b"{"))
    fences = [Fence("bob", BOB, 1)]
    await world.put(encode_resolved("ann", whole.origin, (), value, fences=fences), "ann", ANN)
    await world.emit("ann 2", "ann", partition=ANN, origin=Origin(0, 8))
    await world.emit("bob 1", "bob", partition=BOB)
    await world.run_until_idle()
    assert world.tried() == [("bob 1",), ("bob 1",), ("ann 2",)]
    assert (await world.book()).dead == 1


# ── Restarts ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_fence_holds_again_after_a_restart(world: DeliveryWorld) -> None:
    gate = Gate("bob 1")
    world.add(gate)
    world.limits = Limits(patience=0.001, grace=0.001, ask=0.002, look=0.01)
    await a_merge(world)
    world.start()
    await world.until(lambda: _outstanding(world, 2))
    await world.crash()
    assert {one.state for one in await world.listed()} == {"held"}
    gate.asked.clear()
    world.start()
    await gate.asked.wait()
    gate.open.set()
    await world.until_idle()
    assert world.tried()[-1] == ("ann 1",)
    assert set(world.tried()[:-1]) == {("bob 1",)}


async def test_a_filtered_event_that_was_held_is_filtered_after_a_restart(world: DeliveryWorld) -> None:
    gate = Gate("bob 1")
    world.add(gate, filter_=FilterConfig(types=("track",), events=None))
    world.limits = Limits(patience=0.001, grace=0.001, ask=0.002, look=0.01)
    await world.emit("ann 1", "ann", partition=ANN, fences=[Fence("bob", BOB, 1)], type="identify")
    await world.emit("ann 2", "ann", partition=ANN)
    await world.emit("bob 1", "bob", partition=BOB)
    world.start()
    await world.until(lambda: _outstanding(world, 3))
    await world.crash()
    gate.open.set()
    world.start()
    await world.until_idle()
    assert world.tried()[-1] == ("ann 2",)
    assert await world.book() == Book(delivered=2, filtered=1)


async def test_a_destination_that_was_paused_goes_on_in_order(world: DeliveryWorld) -> None:
    world.add(by_id({"bob 1": [Retry("http 503")] * 3}))
    world.limits = replace(QUICK, failures=1)
    await a_merge(world)
    await world.run_until_idle()
    assert world.tried() == [("bob 1",)] * 4 + [("ann 1",)]


# ── Nothing waits for ever ────────────────────────────────────────────────────────────────────────────────────────


async def test_what_retention_has_removed_is_not_waited_for(world: DeliveryWorld) -> None:
    """A destination that is added later reads what is left; of bob's partition that is nothing."""
    world.add()
    world.log.earliest[BOB] = 7
    await world.emit("ann 1", "ann", partition=ANN, fences=[Fence("bob", BOB, 7)])
    await world.run_until_idle()
    assert world.tried() == [("ann 1",)]


async def test_a_courier_that_is_full_of_what_waits_reads_on(world: DeliveryWorld) -> None:
    """What they wait for may be what it has not read yet."""
    world.limits = replace(QUICK, outstanding=3, records=1)
    world.add(max_batch=1)
    for number in range(8):
        await world.emit(f"ann {number}", f"ann {number}", partition=ANN, fences=[Fence("bob", BOB, 1)])
    await world.emit("bob 1", "bob", partition=BOB)
    await world.run_until_idle()
    assert world.tried()[0] == ("bob 1",)
    assert len(world.tried()) == 9


# ── Replays ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def replayed(world: DeliveryWorld, ranges: Mapping[int, tuple[int, int]]) -> list[tuple[str, ...]]:
    """What a replay of a merge tries, to a destination that had wanted nothing of it."""
    nothing = FilterConfig(types=None, events=())
    world.add(filter_=nothing)
    await a_merge(world)
    await world.run_until_idle()
    assert world.tried() == []
    world.destinations.clear()
    world.add(by_id({"bob 1": [Retry("http 503")]}))
    wanted = Wanted("crm", 0, 1 << 60, (), "", 1e6, again=False)
    replay = await world.database.run(lambda connection: replays.create(connection, wanted, ranges, 1))

    async def ended() -> bool:
        found = await world.database.read(lambda connection: replays.find(connection, replay.id))
        return found is not None and found.state == "done"

    world.start()
    await world.until(ended)
    await world.finish()
    return world.tried()


async def test_a_replay_is_in_order_across_a_merge(world: DeliveryWorld) -> None:
    assert await replayed(world, {ANN: (0, 1), BOB: (0, 1)}) == [("bob 1",), ("bob 1",), ("ann 1",)]


@pytest.mark.parametrize("ranges", [{ANN: (0, 1)}, {ANN: (0, 1), BOB: (0, 0)}])
async def test_a_replay_does_not_wait_for_what_is_not_part_of_it(
    world: DeliveryWorld, ranges: Mapping[int, tuple[int, int]]
) -> None:
    assert await replayed(world, ranges) == [("ann 1",)]


# ── Two processes ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_another_process_has_to_deliver_is_asked_of_the_ledger(world: DeliveryWorld) -> None:
    world.add()
    world.log.count = 1  # the other partition is another's
    await a_merge(world)
    world.start()
    await world.until(lambda: _outstanding(world, 1))
    assert world.tried() == []
    await world.database.run(lambda connection: _passed(connection, 1))
    await world.until(lambda: _delivered(world, 1))
    assert world.tried() == [("ann 1",)]


async def test_what_another_process_tries_again_is_waited_for(
    world: DeliveryWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add()
    world.log.count = 1
    await a_merge(world)

    asked = asyncio.Semaphore(0)
    read = world.database.read

    async def told(work: Callable[[Connection], Any]) -> Any:
        result = await read(work)
        if isinstance(result, Standing):
            asked.release()
        return result

    monkeypatch.setattr(world.database, "read", told)
    await world.database.run(lambda connection: _passed(connection, 1, [_retried("bob 1", "bob")]))
    world.start()
    for _ in range(3):
        await asked.acquire()
    assert world.tried() == []
    await world.database.run(lambda connection: _passed(connection, 1, [], [_settled()]))
    await world.until(lambda: _delivered(world, 1))
    assert world.tried() == [("ann 1",)]


# ── Words ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _delivered(world: DeliveryWorld, count: int) -> bool:
    return (await world.book()).delivered == count


async def _outstanding(world: DeliveryWorld, count: int) -> bool:
    return (await world.book()).outstanding == count


def _passed(connection: Connection, offset: int, rows: Sequence[Row] = (), changes: Sequence[Change] = ()) -> None:
    """What another process writes of bob's partition."""
    (owned,) = ledger.claim(connection, "crm", [BOB], 1).values()
    progress = Progress(BOB, owned.epoch, offset, {}, None, {}, rows, changes, owned.writes)
    assert ledger.record(connection, "crm", 1, [progress]) == frozenset()


def _retried(message_id: str, profile: str) -> Row:
    return Row(0, "retry", "web", profile, message_id, 1, "http 503", 1, 1, b"")


def _settled() -> Change:
    return Change(0, "delivered", 2, "", 1)
