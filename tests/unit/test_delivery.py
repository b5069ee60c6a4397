"""What the engine does with events, destinations and faults, told by its effects in order."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from structlog.testing import capture_logs

from destinations.contract import DELIVERED, UNTRIED, Outcome, RawEvent, Rejected, Retry
from destinations.deadline import time_left
from pipeline.delivery.engine import Limits, World
from pipeline.latency import bucket
from pipeline.store import ledger, schema
from schemas.config import FilterConfig
from schemas.errors import CredentialsRejected, Unavailable
from schemas.events import Origin
from tests.unit.delivery_world import (
    QUICK,
    Appended,
    Book,
    Committed,
    DeliveryWorld,
    Listed,
    Tried,
    Wrote,
    by_id,
)

# ── The plain way ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[DeliveryWorld]:
    one = DeliveryWorld(tmp_path)
    yield one
    if one.task is not None and not one.task.done():
        await one.crash()
    one.close()


async def test_an_event_is_delivered_then_written_then_committed(world: DeliveryWorld) -> None:
    world.add()
    await world.emit("m1", "ann")
    await world.emit("m2", "bob")
    await world.run_until_idle()
    assert world.did == [Tried("crm", ("m1", "m2")), Wrote("crm", 0, 2), Committed(0, 2)]
    assert await world.books() == {"web": Book(delivered=2)}
    assert await world.listed() == []


async def test_dead_letters_are_durable_before_the_position_moves(world: DeliveryWorld) -> None:
    world.add(by_id({"m1": [Rejected("http 422")]}))
    await world.emit("m1")
    await world.run_until_idle()
    assert world.did == [
        Tried("crm", ("m1",)),
        Appended("dead-letters", 1),
        Wrote("crm", 0, 1),
        Committed(0, 1),
    ]
    assert await world.books() == {"web": Book(dead=1)}
    assert await world.listed() == [Listed("m1", "dead", 1, "http 422")]


async def test_a_dead_letter_says_where_it_came_from_and_keeps_the_bytes(world: DeliveryWorld) -> None:
    world.add(by_id({"m1": [Rejected("http 422")]}))
    value = await world.emit("m1")
    await world.run_until_idle()
    (letter,) = world.letters()
    assert letter._replace(at=0) == (
        "delivery", "crm", "http 422", 1, 0, "resolved", 0, 0, value,
    )  # fmt: skip


async def test_a_record_that_cannot_be_read_is_dead_and_stops_nothing(world: DeliveryWorld) -> None:
    world.add()
    await world.put(b"poison")
    await world.emit("m1")
    await world.run_until_idle()
    assert world.tried() == [("m1",)]
    assert await world.books() == {"": Book(dead=1), "web": Book(delivered=1)}
    assert [one.value for one in world.letters()] == [b"poison"]


async def test_a_repeat_is_neither_delivered_nor_counted(world: DeliveryWorld) -> None:
    world.add()
    first = await world.emit("m1", origin=Origin(3, 7))
    await world.put(first)
    await world.run_until_idle()
    await world.put(first)
    await world.emit("m2", origin=Origin(3, 8))
    await world.run_until_idle()
    assert world.tried() == [("m1",), ("m2",)]
    assert await world.books() == {"web": Book(delivered=2)}


async def test_origins_of_different_partitions_are_told_apart(world: DeliveryWorld) -> None:
    world.add()
    await world.emit("m1", "ann", origin=Origin(0, 9))
    await world.emit("m2", "bob", origin=Origin(1, 2))
    await world.run_until_idle()
    assert world.tried() == [("m1", "m2")]


async def test_filtered_events_are_listed_as_runs_by_reason(world: DeliveryWorld) -> None:
    world.add(sources=frozenset({"web"}), filter_=FilterConfig(types=("track",), events=None))
    for number in range(3):
        await world.emit(f"a{number}", source="app")
    await world.emit("m1")
    await world.emit("p1", type="page")
    await world.emit("a3", source="app")
    await world.run_until_idle()
    assert await world.filtered() == [
        {"SOURCE_NOT_CONNECTED": [[0, 3], [5, 1]], "FILTERED_BY_RULES": [[4, 1]]},
    ]
    assert await world.books() == {"app": Book(filtered=4), "web": Book(delivered=1, filtered=1)}


# ── Order per profile ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_call_holds_one_event_per_profile(world: DeliveryWorld) -> None:
    world.add()
    for message, profile in (("a1", "ann"), ("a2", "ann"), ("b1", "bob"), ("a3", "ann")):
        await world.emit(message, profile)
    await world.run_until_idle()
    assert world.tried() == [("a1", "b1"), ("a2",), ("a3",)]


async def test_an_atomic_call_holds_a_profile_in_order(world: DeliveryWorld) -> None:
    world.add(atomic=True)
    for message, profile in (("a1", "ann"), ("b1", "bob"), ("a2", "ann")):
        await world.emit(message, profile)
    await world.run_until_idle()
    assert world.tried() == [("a1", "a2", "b1")]


async def test_events_without_a_profile_wait_for_nobody(world: DeliveryWorld) -> None:
    world.add()
    for message in ("x1", "x2", "x3"):
        await world.emit(message, "")
    await world.run_until_idle()
    assert world.tried() == [("x1", "x2", "x3")]


@pytest.mark.parametrize("atomic", [False, True])
async def test_a_failing_event_holds_back_its_profile_only(world: DeliveryWorld, atomic: bool) -> None:
    world.add(by_id({"a1": [Retry("http 503")] * 3}), atomic=atomic, max_batch=1)
    for message, profile in (("a1", "ann"), ("a2", "ann"), ("b1", "bob"), ("b2", "bob")):
        await world.emit(message, profile)
    await world.run_until_idle()
    tried = [one for (one,) in world.tried()]
    assert [one for one in tried if one[0] == "a"] == ["a1", "a1", "a1", "a1", "a2"]
    assert [one for one in tried if one[0] == "b"] == ["b1", "b2"]
    assert await world.listed() == [Listed("a1", "delivered", 4, ""), Listed("a2", "delivered", 1, "")]


async def test_followers_of_an_atomic_destination_go_with_the_one_that_held_them(world: DeliveryWorld) -> None:
    world.add(by_id({"a1": [Retry("http 503")]}), atomic=True, max_batch=2)
    for message in ("a1", "a2", "a3", "a4"):
        await world.emit(message)
    world.limits = QUICK
    await world.run_until_idle()
    assert world.tried()[0] == ("a1", "a2")
    assert [one for ids in world.tried()[1:] for one in ids] == ["a1", "a3", "a4"]


async def test_an_event_that_comes_while_its_profile_waits_is_held(world: DeliveryWorld) -> None:
    gone_on = asyncio.Event()

    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        return [DELIVERED if gone_on.is_set() or one["profileId"] != "ann" else Retry("http 503") for one in batch]

    world.add(script)
    await world.emit("a1", "ann")
    world.start()
    await world.until(lambda: _is(world, {"web": Book(outstanding=1)}))
    await world.emit("a2", "ann")
    await world.emit("b1", "bob")
    await world.until(lambda: _is(world, {"web": Book(delivered=1, outstanding=2)}))
    assert [(one.message_id, one.state) for one in await world.listed()] == [("a1", "retry"), ("a2", "held")]
    gone_on.set()
    await world.until_idle()
    await world.finish()
    assert [ids for ids in world.tried() if "a2" in ids] == [("a2",)]
    assert world.tried()[-1] == ("a2",)


async def _is(world: DeliveryWorld, books: dict[str, Book]) -> bool:
    return await world.books() == books


async def test_calls_in_flight_never_share_a_profile(world: DeliveryWorld) -> None:
    flying: set[str] = set()
    most = 0

    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        nonlocal most
        profiles = {one["profileId"] for one in batch}
        assert not profiles & flying
        flying.update(profiles)
        most = max(most, len(flying))
        await asyncio.sleep(0)
        flying.difference_update(profiles)
        return [DELIVERED] * len(batch)

    world.add(script, max_batch=2, concurrency=3)
    for number in range(40):
        await world.emit(f"m{number}", f"p{number % 7}")
    await world.run_until_idle()
    assert most == 6
    assert await world.books() == {"web": Book(delivered=40)}


# ── Retries ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_one_bad_item_never_fails_its_neighbours(world: DeliveryWorld) -> None:
    world.add(by_id({"m3": [Rejected("http 400")], "m4": [Retry("http 429", after=0.1)]}))
    for number in range(1, 6):
        await world.emit(f"m{number}", f"p{number}")
    await world.run_until_idle()
    assert world.tried() == [("m1", "m2", "m3", "m4", "m5"), ("m4",)]
    assert await world.listed() == [Listed("m3", "dead", 1, "http 400"), Listed("m4", "delivered", 2, "")]
    assert await world.books() == {"web": Book(delivered=4, dead=1)}


async def test_an_event_that_fails_for_too_long_is_dead_with_its_bytes(world: DeliveryWorld) -> None:
    world.limits = Limits(backoff=0.001, age=0.02)
    world.add(by_id({"m1": [Retry("http 503")] * 1_000}))
    value = await world.emit("m1")
    await world.emit("m2")
    await world.run_until_idle()
    first, second = await world.listed()
    assert (first.state, first.reason, first.attempts) == ("dead", "http 503", len(world.tried()) - 1)
    assert second == Listed("m2", "delivered", 1, "")
    assert [one.value for one in world.letters()] == [value]


async def test_an_unknown_exception_is_traced_to_the_event_that_causes_it(world: DeliveryWorld) -> None:
    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        if any(one["messageId"] == "bad" for one in batch):
            raise RuntimeError("no")
        return [DELIVERED] * len(batch)

    world.add(script)
    for number in range(9):
        await world.emit(f"m{number}", f"p{number}")
    await world.emit("bad", "bad")
    with capture_logs() as told:
        await world.run_until_idle()
    assert [one["event"] for one in told].count("destination raised") == 1, (
        "a bug that raises often is told now and then"
    )
    assert await world.books() == {"web": Book(delivered=9, dead=1)}
    assert [one for one in await world.listed() if one.state == "dead"] == [Listed("bad", "dead", 4, "RuntimeError")]


async def test_a_wrong_number_of_outcomes_is_no_outcome(world: DeliveryWorld) -> None:
    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        return [DELIVERED] * (len(batch) + 1)

    world.add(script)
    await world.emit("m1")
    await world.run_until_idle()
    assert await world.listed() == [Listed("m1", "dead", 3, "ValueError")]


async def test_a_call_that_hangs_is_ended_and_tried_again(world: DeliveryWorld) -> None:
    hung = False

    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        nonlocal hung
        if not hung:
            hung = True
            await asyncio.get_running_loop().create_future()
        return [DELIVERED] * len(batch)

    world.limits = Limits(attempt=0.2, backoff=0.001)
    world.add(script)
    await world.emit("m1")
    await world.run_until_idle()
    assert await world.listed() == [Listed("m1", "delivered", 2, "")]


async def test_what_a_call_had_no_time_for_goes_again_at_once_and_in_order_and_counts_as_no_failure(
    world: DeliveryWorld,
) -> None:
    left: list[float] = []

    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        left.append(time_left())
        return [DELIVERED] + [UNTRIED] * (len(batch) - 1)

    world.add(script, atomic=True)
    for name in ("m1", "m2", "m3"):
        await world.emit(name, "ann")
    await world.run_until_idle()
    assert world.tried() == [("m1", "m2", "m3"), ("m2", "m3"), ("m3",)]
    assert await world.books() == {"web": Book(delivered=3)}
    assert await world.listed() == []
    assert all(0 < one <= world.limits.attempt for one in left)


async def test_the_position_does_not_wait_for_a_call_that_hangs(world: DeliveryWorld) -> None:
    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        if batch[0]["messageId"] == "slow":
            await asyncio.get_running_loop().create_future()
        return [DELIVERED] * len(batch)

    world.limits = Limits(patience=0.2, grace=0.01)
    world.add(script, max_batch=1)
    await world.emit("slow", "ann")
    await world.emit("b1", "bob")
    world.start()
    await world.until(lambda: _is(world, {"web": Book(delivered=1, outstanding=1)}))
    await world.emit("b2", "bob")
    await world.emit("a2", "ann")
    await world.until(lambda: _is(world, {"web": Book(delivered=2, outstanding=2)}))
    await world.finish()
    assert [one.state for one in await world.listed()] == ["held", "held"]


# ── Outages ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_retries_that_hang_leave_room_for_new_events(world: DeliveryWorld) -> None:
    hung = asyncio.Event()

    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        (name,) = (one["messageId"] for one in batch)
        if name == "new":
            return [DELIVERED]
        if world.tried().count((name,)) == 1:
            return [Retry("http 503", after=0.05)]
        hung.set()
        await asyncio.get_running_loop().create_future()
        return []

    world.limits = replace(QUICK, grace=0.01)
    world.add(script, max_batch=1, concurrency=2)
    for name in ("a1", "b1"):
        await world.emit(name, name)
    world.start()
    await world.until(lambda: _is(world, {"web": Book(outstanding=2)}))
    await hung.wait()
    await world.emit("new", "cid")
    await world.until(lambda: _is(world, {"web": Book(delivered=1, outstanding=2)}))
    await world.finish()


async def test_an_outage_does_not_turn_the_log_into_rows(world: DeliveryWorld) -> None:
    up = asyncio.Event()

    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        return [DELIVERED if up.is_set() else Retry("http 503") for _ in batch]

    world.add(script, max_batch=1, concurrency=1)
    for number in range(3_000):
        await world.emit(f"m{number}", f"p{number}")
    world.start()

    async def probed() -> bool:
        return len(world.tried()) >= 12

    await world.until(probed)
    state, reason = (await world.states())["crm"]
    assert (state, reason[:22]) == ("unreachable", "one event is tried at ")
    assert (await world.book()).outstanding < 20
    up.set()
    await world.until_idle()
    await world.finish()
    assert (await world.states())["crm"][0] == "delivering"
    assert await world.books() == {"web": Book(delivered=3_000)}


async def test_a_service_that_is_back_gets_at_once_what_waited_for_our_schedule(world: DeliveryWorld) -> None:
    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        return [Retry("http 503") if len(world.tried()) <= world.limits.failures else DELIVERED for _ in batch]

    world.limits = replace(QUICK, backoff=1_000.0, longest_backoff=1_000.0)
    world.add(script, max_batch=1)
    for number in range(world.limits.failures):
        await world.emit(f"m{number}", f"p{number}")
    await world.run_until_idle()
    assert await world.book() == Book(delivered=world.limits.failures)


async def test_a_few_events_that_always_fail_do_not_count_as_an_outage(world: DeliveryWorld) -> None:
    world.add(by_id({"m1": [Retry("http 503")] * 30}))
    await world.emit("m1", "ann")
    await world.run_until_idle()
    assert len(world.tried()) == 31
    assert (await world.states())["crm"][0] == "delivering"


async def test_rejected_credentials_pause_and_lose_nothing(world: DeliveryWorld) -> None:
    corrected = asyncio.Event()
    checks = 0

    async def check() -> None:
        nonlocal checks
        checks += 1
        if checks < 3:
            raise CredentialsRejected("http 401")
        if checks < 4:
            raise Unavailable("host not found")
        corrected.set()

    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        if not corrected.is_set():
            raise CredentialsRejected("http 401")
        return [DELIVERED] * len(batch)

    world.add(script, check=check, max_batch=2, concurrency=1)
    for number in range(5):
        await world.emit(f"m{number}", f"p{number}")
    with capture_logs() as told:
        await world.run_until_idle()
    assert [one["event"].partition(":")[0] for one in told] == ["destination paused", "destination resumed"]
    assert world.tried()[0] == ("m0", "m1")
    assert sorted(one for ids in world.tried()[1:] for one in ids) == ["m0", "m1", "m2", "m3", "m4"]
    assert checks == 4
    assert await world.books() == {"web": Book(delivered=5)}
    assert await world.listed() == []


async def test_credentials_that_pass_the_check_only_are_told_of_once(world: DeliveryWorld) -> None:
    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        if len(world.tried()) < 4:
            raise CredentialsRejected("http 401")
        return [DELIVERED] * len(batch)

    world.add(script)
    await world.emit("m1")
    with capture_logs() as told:
        await world.run_until_idle()
    assert len(world.tried()) == 4
    assert [one["event"].partition(":")[0] for one in told].count("destination paused") == 1


async def test_reading_stops_when_too_much_is_outstanding(world: DeliveryWorld) -> None:
    up = asyncio.Event()

    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        return [DELIVERED if up.is_set() else Retry("http 503") for _ in batch]

    world.limits = Limits(backoff=0.002, longest_backoff=0.004, outstanding=3, records=1, failures=1_000)
    world.add(script, max_batch=2)
    for number in range(10):
        await world.emit(f"m{number}", f"p{number}")
    world.start()

    async def full() -> bool:
        return (await world.states()).get("crm", ("", ""))[0] == "full" and len(world.tried()) > 10

    await world.until(full)
    assert (await world.positions(), (await world.book()).outstanding) == ({0: 4}, 4)
    up.set()
    await world.until_idle()
    await world.finish()
    assert await world.books() == {"web": Book(delivered=10)}


# ── Isolation ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_one_destination_hangs_and_the_other_goes_on(world: DeliveryWorld) -> None:
    async def hangs(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    world.limits = Limits(grace=0.01)
    world.add(hangs, name="hung")
    world.add(name="crm")
    for number in range(3):
        await world.emit(f"m{number}", f"p{number}")
    world.start()
    await world.until(lambda: _is(world, {"web": Book(delivered=3)}))
    await world.finish()
    assert world.tried("hung") == [("m0", "m1", "m2")]
    assert await world.books("hung") == {}


async def test_a_destination_that_cannot_connect_is_tried_again_and_harms_no_other(world: DeliveryWorld) -> None:
    broken = world.add(name="broken")
    tries = 0
    connect = broken.definition.connect

    def connecting(settings: object, env: object) -> object:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise RuntimeError("no")
        return connect(settings, env)  # type: ignore[arg-type]  # handed through

    object.__setattr__(broken.definition, "connect", connecting)
    world.add(name="crm")
    await world.emit("m1")
    await world.run_until_idle()
    assert tries == 3
    assert (await world.books("broken"), await world.books("crm")) == (
        {"web": Book(delivered=1)},
        {"web": Book(delivered=1)},
    )


# ── Crashes and partitions ────────────────────────────────────────────────────────────────────────────────────────


async def test_a_crash_between_delivery_and_transaction_repeats_the_delivery(world: DeliveryWorld) -> None:
    crashed = asyncio.Event()

    async def crash() -> None:
        if world.tried() and not crashed.is_set():
            crashed.set()
            await asyncio.get_running_loop().create_future()

    world.database.before = crash
    world.add()
    await world.emit("m1")
    world.start()
    await crashed.wait()
    await world.crash()
    assert await world.books() == {}
    await world.run_until_idle()
    assert world.tried() == [("m1",), ("m1",)]
    assert await world.books() == {"web": Book(delivered=1)}


async def test_what_is_outstanding_survives_a_crash_in_order(world: DeliveryWorld) -> None:
    world.limits = Limits(backoff=1_000)
    world.add(by_id({"a1": [Retry("http 503", after=0.02)]}))
    for message in ("a1", "a2", "a3"):
        await world.emit(message)
    world.start()
    await world.until(lambda: _is(world, {"web": Book(outstanding=3)}))
    await world.crash()
    await world.run_until_idle()
    assert world.tried() == [("a1",), ("a1",), ("a2",), ("a3",)]
    assert await world.listed() == [
        Listed("a1", "delivered", 2, ""),
        Listed("a2", "delivered", 1, ""),
        Listed("a3", "delivered", 1, ""),
    ]


async def test_how_long_an_event_took_is_told_though_a_crash_lay_in_between(world: DeliveryWorld) -> None:
    accepted = 1_700_000_000
    began = time.time()
    world.clock = World(chance=lambda: 1.0, now=lambda: accepted + time.time() - began)
    world.limits = Limits(backoff=1_000)
    world.add(by_id({"m1": [Retry("http 503", after=0.05)]}))
    await world.emit("m1")
    world.start()
    await world.until(lambda: _is(world, {"web": Book(outstanding=1)}))
    await world.crash()
    await world.run_until_idle()
    rows = await world.rows(schema.destination_minutes)
    took = [(index < bucket(600_000_000), count) for row in rows for index, count in orjson.loads(row.latency)]
    assert took == [(True, 1)], "within ten minutes"


async def test_a_lost_partition_is_taken_up_where_the_ledger_stands(world: DeliveryWorld) -> None:
    world.add()
    await world.emit("m1")
    world.start()
    await world.until_idle()
    await world.log.lose("destination.crm", 0)
    await world.emit("m2")
    await world.until_idle()
    await world.finish()
    assert world.tried() == [("m1",), ("m2",)]
    assert await world.books() == {"web": Book(delivered=2)}


async def test_an_owner_that_was_replaced_writes_nothing(world: DeliveryWorld, tmp_path: Path) -> None:
    """Two engines believe that they own the partition; the later claim wins, the other writes neither counts nor rows."""
    reached, let_go = asyncio.Event(), asyncio.Event()

    async def slow(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        reached.set()
        await let_go.wait()
        return [DELIVERED] * len(batch)

    world.add(slow)
    await world.emit("m1")
    world.start()
    await reached.wait()
    other = DeliveryWorld(tmp_path)
    other.log.topics = world.log.topics
    other.add()
    await other.run_until_idle()
    other.close()
    let_go.set()
    await world.emit("m2", "bob")
    await world.until_idle()
    await world.finish()
    assert await world.books() == {"web": Book(delivered=2)}
    assert await world.positions() == {0: 2}


async def test_stopping_writes_what_is_known_and_leaves_the_rest_in_the_log(world: DeliveryWorld) -> None:
    reached, let_go = asyncio.Event(), asyncio.Event()

    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        reached.set()
        await let_go.wait()
        return [DELIVERED] * len(batch)

    world.add(script, max_batch=2, concurrency=1)
    for number in range(6):
        await world.emit(f"m{number}", f"p{number}")
    world.start()
    await reached.wait()
    world.stop.set()
    let_go.set()
    await world.finish()
    assert (await world.positions(), await world.books()) == ({0: 2}, {"web": Book(delivered=2)})
    await world.run_until_idle()
    assert world.tried() == [("m0", "m1"), ("m2", "m3"), ("m4", "m5")]


async def test_an_attempt_that_outlasts_the_grace_is_given_up_and_repeated_later(world: DeliveryWorld) -> None:
    reached = asyncio.Event()

    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        if not reached.is_set():
            reached.set()
            await asyncio.get_running_loop().create_future()
        return [DELIVERED] * len(batch)

    world.limits = Limits(grace=0.01)
    world.add(script)
    await world.emit("m1")
    world.start()
    await reached.wait()
    await world.finish()
    assert await world.books() == {}
    await world.run_until_idle()
    assert world.tried() == [("m1",), ("m1",)]


async def test_stopping_writes_what_is_known_though_another_event_cannot_be_read_back(
    world: DeliveryWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, loop = asyncio.Event(), asyncio.get_running_loop()

    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        if batch[0]["messageId"] == "c1":
            await loop.create_future()
        return [Retry("http 503", after=0.05) if one["messageId"] == "a1" else DELIVERED for one in batch]

    def away(*_: object) -> None:
        loop.call_soon_threadsafe(asked.set)
        raise Unavailable("no", after=0.001)

    async def c1_hangs() -> bool:
        return ("c1",) in world.tried()

    world.limits = Limits(grace=0.2)
    world.add(script, max_batch=1)
    await world.emit("a1", "ann")
    world.start()
    await world.until(lambda: _is(world, {"web": Book(outstanding=1)}))
    await world.crash()
    monkeypatch.setattr(ledger, "values", away)
    await world.emit("b1", "bob")
    await world.emit("c1", "cid")
    world.start()
    await asked.wait()
    await world.until(c1_hangs)
    await world.finish()
    assert await world.books() == {"web": Book(delivered=1, outstanding=1)}


async def test_a_database_that_is_away_delays_and_loses_nothing(world: DeliveryWorld) -> None:
    fails = 2

    async def away() -> None:
        nonlocal fails
        if world.tried() and fails:
            fails -= 1
            raise Unavailable("no", after=0.001)

    world.database.before = away
    world.add()
    await world.emit("m1")
    await world.run_until_idle()
    assert world.tried() == [("m1",)]
    assert await world.books() == {"web": Book(delivered=1)}


async def test_an_attempt_of_an_earlier_ownership_ends_before_the_next_begins(world: DeliveryWorld) -> None:
    """The partition is lost and regained while a retry is in flight: the ledger's copy of the event waits for it."""
    reached, let_go = asyncio.Event(), asyncio.Event()
    flying = 0

    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        nonlocal flying
        assert flying == 0
        flying += 1
        if len(world.tried()) == 2:
            reached.set()
            await let_go.wait()
        flying -= 1
        return [Retry("http 503") if len(world.tried()) == 1 else DELIVERED] * len(batch)

    async def claimed_again() -> bool:
        return [row.epoch for row in await world.rows(schema.destination_positions)] == [2]

    world.add(script)
    await world.emit("m1")
    world.start()
    await reached.wait()
    await world.log.lose("destination.crm", 0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await world.until(claimed_again)
    let_go.set()
    await world.until_idle()
    await world.finish()
    assert world.tried() == [("m1",)] * 3
    assert await world.books() == {"web": Book(delivered=1)}


async def test_a_log_that_goes_away_ends_nothing_that_is_known(world: DeliveryWorld) -> None:
    """The reader fails while an attempt is in flight: its outcome is written, then the destination begins anew."""
    reached, let_go = asyncio.Event(), asyncio.Event()

    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        if len(world.tried()) == 2:
            reached.set()
            await let_go.wait()
        return [Retry("http 503") if len(world.tried()) == 1 else DELIVERED] * len(batch)

    world.add(script)
    await world.emit("m1")
    world.start()
    await reached.wait()
    world.log.away = Unavailable("broker gone")
    async with world.log.news:
        world.log.news.notify_all()
    await asyncio.sleep(0)
    world.log.away = None
    let_go.set()
    await world.until_idle()
    await world.finish()
    assert world.tried() == [("m1",), ("m1",)]


async def test_after_six_hours_of_outage_everything_is_delivered_in_order(world: DeliveryWorld) -> None:
    """Time runs fast: a real second is two hours."""
    began, speed = time.monotonic(), 7_200.0

    def now() -> float:
        return 1.8e9 + (time.monotonic() - began) * speed

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds / speed)

    end = now() + 6 * 3_600
    seen: dict[str, list[str]] = {}
    most = 0

    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        nonlocal most
        if now() < end:
            most = max(most, (await world.book()).outstanding)
            return [Retry("http 503") for _ in batch]
        for one in batch:
            seen.setdefault(one["profileId"], []).append(one["messageId"])
        return [DELIVERED] * len(batch)

    world.limits = Limits(records=500, outstanding=2_000, outstanding_down=300)
    world.clock = World(now=now, sleep=sleep)
    world.add(script, max_batch=10)
    for number in range(2_000):
        await world.emit(f"m{number:04d}", f"p{number % 200}")
    await world.run_until_idle()
    assert await world.books() == {"web": Book(delivered=2_000)}
    assert all(ids == sorted(ids) and len(ids) == 10 for ids in seen.values())
    assert 0 < most <= 800
