"""The sixteen acceptance checks of delivery, in their order. Those that have a place of their own are named by `ELSEWHERE`."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from statistics import quantiles
from typing import Any

import pytest

from destinations.contract import DELIVERED, Outcome, RawEvent, Rejected, Retry
from destinations.guard import Outbound
from destinations.http.client import session
from destinations.outbound import verdict
from destinations.registry import definition
from destinations.webhook import WebhookSettings
from pipeline.delivery.engine import Destination, Limits, World
from pipeline.language.filters import FilterError, compile_filter
from pipeline.language.triggers import compile_trigger
from pipeline.log import Log, Record, open_log
from pipeline.query import letters
from pipeline.worker import run_worker
from schemas.config import FilterConfig
from schemas.errors import CredentialsRejected
from schemas.events import decode_resolved, encode_event
from schemas.topics import EVENTS, RESOLVED
from tests.test_promises import Place, event, eventually, recorded
from tests.unit.delivery_world import Book, DeliveryWorld, by_id
from tests.unit.simulated import now, simulated, simulated_world

ROOT = Path(__file__).parents[2]
DAY = 86_400.0

ELSEWHERE = {
    1: ("tests/unit/test_destinations_outbound.py", "test_a_closed_port_is_a_refused_connection"),
    8: ("tests/unit/test_mappings.py", "test_a_directive_gives"),
    9: ("tests/crash/test_crash.py", "test_nothing_is_lost_or_doubled_on_kafka_and_postgresql"),
    10: ("tests/integration/test_pipeline.py", "test_a_process_that_dies_before_it_has_emitted_is_made_up_for"),
    13: ("tests/contracts/test_replays.py", "test_a_second_replay_sends_nothing"),
    14: (
        "tests/unit/test_destinations_oauth.py",
        "test_a_token_that_runs_out_mid_batch_is_renewed_and_no_event_is_lost_or_doubled",
    ),
}


@pytest.mark.parametrize("number", ELSEWHERE)
def test_what_stands_elsewhere_is_there(number: int) -> None:
    file, name = ELSEWHERE[number]
    assert f"def {name}(" in (ROOT / file).read_text()


@pytest.fixture(autouse=True)
def few_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of days that are no subject here."""
    monkeypatch.setattr("pipeline.delivery.forgetting.LOOK", 600.0)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[DeliveryWorld]:
    one = DeliveryWorld(tmp_path)
    yield one
    one.close()


def hours_long(folder: Path, **limits: Any) -> DeliveryWorld:
    """A world in simulated time."""
    folder.mkdir(exist_ok=True)
    bounds = replace(Limits(look=600.0), **limits)
    return DeliveryWorld(folder, limits=bounds, clock=simulated_world(), patience=30 * DAY)


# ── 1: each status is retried or not, as the table says ───────────────────────────────────────────────────────────


RETRIED = {408, 423, 429, *range(500, 600)} - {501}


@pytest.mark.parametrize("status", [*range(200, 600)])
def test_1_each_status_is_retried_or_not(status: int) -> None:
    if status in (401, 403):  # a person has to act: the destination pauses, nothing is lost
        with pytest.raises(CredentialsRejected):
            verdict(status, None, 0.0)
        return
    kind = {2: type(DELIVERED), 3: Rejected, 4: Rejected, 5: Retry}[status // 100]
    if status // 100 > 2:
        kind = Retry if status in RETRIED else Rejected
    assert type(verdict(status, None, 0.0)) is kind


# ── 2: an endpoint that answers 500 for ten minutes ───────────────────────────────────────────────────────────────


@simulated
async def test_2_after_ten_minutes_of_500_all_of_100_events_are_delivered_once_in_order_and_none_is_lost(
    tmp_path: Path,
) -> None:
    world = hours_long(tmp_path)
    began = now()
    came: list[tuple[float, str]] = []

    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        if now() < began + 600:
            return [Retry("http 500")] * len(batch)
        came.extend((now() - began, one["messageId"]) for one in batch)
        return [DELIVERED] * len(batch)

    world.add(script, max_batch=10)
    for number in range(100):
        await world.emit(f"m{number:02d}", f"person {number % 20}")
    await world.run_until_idle()
    assert sorted(name for _, name in came) == [f"m{number:02d}" for number in range(100)]
    for person in range(20):
        names = [name for _, name in came if int(name[1:]) % 20 == person]
        assert names == sorted(names)
    assert 600 <= came[0][0] <= 960  # the first probe after it: after 30, 60, 120, 240 and 480 seconds
    assert came[-1][0] - came[0][0] <= 60
    assert await world.book() == Book(delivered=100)
    world.close()


# ── 3: the connection drops before the answer ─────────────────────────────────────────────────────────────────────


async def test_3_a_connection_that_drops_before_the_answer_is_followed_by_the_same_idempotency_key(
    tmp_path: Path,
) -> None:
    got: list[tuple[str, bytes]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:-2])
                got.append((headers["idempotency-key"], await reader.readexactly(int(headers["content-length"]))))
                if len(got) == 1:  # it has the events, and says nothing
                    break
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    here = Outbound(allow=(IPv4Network("127.0.0.0/8"),))
    world = DeliveryWorld(tmp_path, clock=World(chance=lambda: 1.0, http=partial(session, here)))
    settings = WebhookSettings.model_validate({"url": f"http://127.0.0.1:{port}/"})
    world.destinations.append(Destination(name="crm", definition=definition("webhook"), settings=settings))
    for number in range(3):
        await world.emit(f"m{number}", f"p{number}")
    async with server:
        await world.run_until_idle()
    assert len(got) == 2
    assert got[0] == got[1]
    assert await world.book() == Book(delivered=3)
    world.close()


# ── 4: one item invalid, one answered 429 ─────────────────────────────────────────────────────────────────────────


async def test_4_of_a_batch_of_five_one_is_discarded_one_comes_again_alone_and_the_others_are_done(
    world: DeliveryWorld,
) -> None:
    world.add(by_id({"m3": [Rejected("http 400")], "m4": [Retry("http 429", after=0.01)]}))
    for number in range(1, 6):
        await world.emit(f"m{number}", f"p{number}")
    await world.run_until_idle()
    assert world.tried() == [("m1", "m2", "m3", "m4", "m5"), ("m4",)]
    assert [(one.message_id, one.state, one.reason) for one in await world.listed() if one.state == "dead"] == [
        ("m3", "dead", "http 400")
    ]
    assert await world.book() == Book(delivered=4, dead=1)


# ── 5: one destination hangs ──────────────────────────────────────────────────────────────────────────────────────


@simulated
async def test_5_a_destination_that_hangs_leaves_the_95th_percentile_of_another_as_it_was(tmp_path: Path) -> None:
    async def hang(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        await asyncio.Event().wait()
        return []

    async def latency(world: DeliveryWorld) -> float:
        """The 95th percentile at `b`, over ten minutes of an event a second."""
        emitted: dict[str, float] = {}
        took: list[float] = []

        async def take(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
            await asyncio.sleep(0.2)
            took.extend(now() - emitted[one["messageId"]] for one in batch)
            return [DELIVERED] * len(batch)

        world.add(take, name="b")
        world.start()
        for number in range(200):
            emitted[f"m{number}"] = now()
            await world.emit(f"m{number}", f"p{number}")
            await asyncio.sleep(1)
        await world.until(partial(_all_came, took, 200))
        await world.crash()
        world.close()
        return quantiles(took, n=20)[-1]

    alone, beside = hours_long(tmp_path / "alone"), hours_long(tmp_path / "beside", attempt=30.0)
    beside.add(hang, name="a")
    before, after = await latency(alone), await latency(beside)
    assert 0.2 <= before <= 0.25
    assert after <= before * 1.1


async def _all_came(took: Sequence[float], count: int) -> bool:
    return len(took) == count


# ── 6: a filter that is broken ────────────────────────────────────────────────────────────────────────────────────


async def test_6_what_a_filter_cannot_judge_is_dropped_and_counted_with_a_reason(world: DeliveryWorld) -> None:
    """One that is no expression is a fault of the configuration, with its line (`tests/unit/test_config_load.py`)."""
    with pytest.raises(FilterError, match="expected"):
        compile_filter("properties.total >")
    world.add(filter_=FilterConfig(types=None, events=None, where="!(properties.total > 5)"))
    await world.emit("m1", properties={"total": 4})
    await world.emit("m2", properties={"total": "much"})
    await world.run_until_idle()
    assert world.tried() == [("m1",)]
    assert await world.filtered() == [{"FILTERED_BY_RULES": [[1, 1]]}]
    assert await world.book() == Book(delivered=1, filtered=1)


# ── 7: triggers over what is missing ──────────────────────────────────────────────────────────────────────────────


def test_7_unequal_holds_of_a_missing_property_and_contains_not_does_not() -> None:
    for missing in ({"type": "track", "properties": {}}, {"type": "track"}):
        assert compile_trigger("properties.plan != 'free'")(missing)
        assert not compile_trigger("!contains(properties.plan, 'free')")(missing)


# ── 9 and 10: one output, whoever is killed when ──────────────────────────────────────────────────────────────────


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[Log]:
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(open_log(f"embedded://{tmp_path}/log", partitions=10))


async def outputs(log: Log) -> list[Any]:
    """Every record of `resolved`."""
    found = []
    for partition, (first, end) in (await log.bounds(RESOLVED)).items():
        offset = first
        while offset < end and (batch := await log.read(RESOLVED, partition, offset)) is not None:
            found += [decode_resolved(record.value) for record in batch.records]
            offset = batch.next_offset
    return found


async def test_9_a_message_sent_a_thousand_times_over_ten_workers_with_kills_is_one_output(
    tmp_path: Path, log: Log
) -> None:
    chance = random.Random(9)
    place = Place(tmp_path, log)
    calls = [event(1, f"device {number}") for number in range(1_000)]
    stop = asyncio.Event()

    def worker() -> "asyncio.Task[None]":
        return asyncio.create_task(run_worker(log, place.database, stop=stop, max_records=20))

    workers = [worker() for _ in range(10)]
    for start in range(0, 1_000, 100):
        records = [Record(one.key, encode_event(one), one.received_at // 1000) for one in calls[start : start + 100]]
        await log.append(EVENTS, records)
        await asyncio.sleep(chance.random() * 0.02)  # so that each is killed at something else
        victim = chance.randrange(10)
        workers[victim].cancel()
        await asyncio.gather(workers[victim], return_exceptions=True)
        workers[victim] = worker()
    stop.set()
    await asyncio.gather(*workers)
    async with place.running(crm={"type": "hostile", "record": "crm.ndjson"}):
        await place.settled("crm", 1)
    assert len({one.origin for one in await outputs(log)}) == 1
    assert [one["messageId"] for one in recorded(tmp_path / "crm.ndjson")] == ["m1"]
    place.database.close()


async def test_10_what_is_published_again_after_a_kill_before_the_commit_is_read_once(world: DeliveryWorld) -> None:
    world.add()
    value = await world.emit("m1")
    await world.put(value)
    await world.run_until_idle()
    assert world.tried() == [("m1",)]
    assert await world.book() == Book(delivered=1)


# ── 11: the store is gone ─────────────────────────────────────────────────────────────────────────────────────────


async def test_11_a_store_that_is_deleted_is_made_again_from_the_log_without_duplicates(
    tmp_path: Path, log: Log
) -> None:
    first = Place(tmp_path, log, "first")
    stop = asyncio.Event()
    await first.accept(*(event(number % 50, f"p{number % 7}") for number in range(100)))
    worker = asyncio.create_task(run_worker(log, first.database, stop=stop))

    async def emitted() -> bool | None:
        return len(await outputs(log)) == 50 or None

    await eventually(emitted)
    stop.set()
    await worker
    first.database.close()

    second = Place(tmp_path, log, "second")
    async with second.running(crm={"type": "hostile", "record": "crm.ndjson"}):
        await second.accept(event(7, "p0"), event(50, "p0"))
        await second.settled("crm", 51)
    assert sorted(one["messageId"] for one in recorded(tmp_path / "crm.ndjson")) == sorted(
        f"m{number}" for number in range(51)
    )
    second.database.close()


# ── 12: older than the age limit ──────────────────────────────────────────────────────────────────────────────────


@simulated
async def test_12_an_event_older_than_the_limit_is_a_dead_letter_with_all_attempts_and_is_delivered_when_put_back(
    tmp_path: Path,
) -> None:
    world = hours_long(tmp_path)
    mended = False

    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        return [DELIVERED if mended else Retry("http 500")] * len(batch)

    world.add(script)
    began = now()
    await world.emit("m1")
    await world.run_until_idle()
    assert DAY <= now() - began <= DAY + 1_200
    (dead,) = await world.listed()
    assert (dead.state, dead.reason, dead.attempts) == ("dead", "http 500", len(world.tried()))
    assert dead.attempts > 70
    (letter,) = world.letters()
    assert letter.value is not None

    mended = True
    world.start()
    await letters.retry(world.database, ["crm"], {"destination": "crm"})
    await world.until_idle()
    await world.finish()
    assert await world.book() == Book(delivered=1)
    world.close()


# ── 15 and 16: who is not to get it ───────────────────────────────────────────────────────────────────────────────


async def test_15_an_event_for_nobody_reaches_no_destination_and_is_stored_all_the_same(world: DeliveryWorld) -> None:
    world.add(name="crm")
    world.add(name="warehouse", warehouse=True)
    await world.emit("m1", integrations={"All": False})
    await world.run_until_idle()
    assert (world.tried("crm"), world.tried("warehouse")) == ([], [("m1",)])
    assert await world.filtered("crm") == [{"FILTERED_BY_INTEGRATIONS_OBJECT": [[0, 1]]}]


@pytest.mark.parametrize(
    "said",
    [{"_metadata": {"bundled": ["Segment.io", "crm"]}}, {"_metadata": {"bundledIds": ["crm"]}}],
)
async def test_16_what_a_device_has_sent_itself_is_not_sent_twice_and_everybody_else_gets_it(
    world: DeliveryWorld, said: dict[str, Any]
) -> None:
    world.add(name="crm")
    world.add(name="mail")
    await world.emit("m1", **said)
    await world.emit("m2", integrations={"crm": True}, **said)  # it cannot ask for a second time
    await world.emit("m3")
    await world.run_until_idle()
    assert [name for call in world.tried("crm") for name in call] == ["m3"]
    assert [name for call in world.tried("mail") for name in call] == ["m1", "m2", "m3"]
    assert await world.filtered("crm") == [{"MESSAGE_SENT_CLIENT_SIDE": [[0, 2]]}]
