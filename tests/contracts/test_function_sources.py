"""Functions of sources within the pipeline: before identity, exactly once, and in the books; on both databases."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from pipeline.functions.runner import Runner
from pipeline.functions.source import Ran, through
from pipeline.identity import Rules
from pipeline.log import Batch, Log, Record, open_log
from pipeline.parse import Work, parse
from pipeline.query.paths import find
from pipeline.store.books import read as read_books
from pipeline.store.database import Database
from pipeline.store.intake import Emission
from pipeline.store.transformed import any_left, apply_transformed
from pipeline.worker import run_worker
from schemas.events import Event, decode_event, decode_resolved, encode_event
from schemas.topics import EVENTS, RESOLVED
from tests.stores import prepare
from tests.unit.functions_world import function

AT = 1_700_000_000_000_000
RULES = Rules()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    local = f"sqlite:///{tmp_path}/millrace.sqlite"
    opened = Database(local if request.param == "sqlite" else request.getfixturevalue("postgres_url"))
    prepare(opened)
    yield opened
    opened.close()


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[Log]:
    async with open_log(f"embedded://{tmp_path}/log", partitions=1) as opened:
        yield opened


def event(message: str, name: str = "Ordered", *, source: str = "web", **properties: Any) -> Event:
    body = {"type": "track", "event": name, "messageId": message, "properties": properties}
    return Event(source, "track", message, "a1", None, AT, None, AT, "client", None, None, orjson.dumps(body))


async def accept(log: Log, *events: Event) -> None:
    await log.append(EVENTS, [Record(one.key, encode_event(one), AT // 1000) for one in events])


@asynccontextmanager
async def working(log: Any, database: Database, functions: Mapping[str, Runner]) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(run_worker(log, database, stop=stop, functions=functions))
    try:
        yield
    finally:
        stop.set()
        await task


async def emitted(log: Log, count: int) -> list[tuple[str, str, Any]]:
    """messageId, name and properties of the first `count` events of `resolved`."""
    async with asyncio.timeout(20):
        while (await log.bounds(RESOLVED))[0][1] < count:
            await asyncio.sleep(0.01)
    batch = await log.read(RESOLVED, 0, 0)
    assert batch is not None
    return [told(decode_resolved(record.value).event) for record in batch.records]


def told(event: Event) -> tuple[str, str, Any]:
    body = orjson.loads(event.body)
    return event.message_id, body["event"], body["properties"]


SHOP = """
    from millrace.functions import Drop, Retry
    tries = 0

    def on_track(event, settings):
        global tries
        match event["event"]:
            case "Test": raise Drop()
            case "Cart": return [event | {"event": "Line", "properties": {"n": n}} for n in event["properties"]["lines"]]
            case "Flaky":
                tries += 1
                if tries < 3: raise Retry("not yet")
            case "Hopeless": raise Retry("never")
            case "Broken": return 1 / 0
            case "Login": return event | {"userId": event["properties"]["user"]}
        return event | {"properties": event["properties"] | {"seen": True}}
"""


async def test_events_are_changed_dropped_and_split_before_everything_else(tmp_path, database, log):
    await accept(
        log,
        event("m1"),
        event("m2", "Test"),
        event("m3", "Cart", lines=[1, 2, 3]),
        event("m4", "Test", source="app"),
        event("m5", "Flaky"),
        event("m6", "Hopeless"),
        event("m7", "Broken"),
        event("m8", "Login", user="u1"),
    )
    async with function(tmp_path / "functions", SHOP, role="source") as runner, working(log, database, {"web": runner}):
        assert await emitted(log, 7) == [
            ("m1", "Ordered", {"seen": True}),
            ("m3", "Line", {"n": 1}),
            ("m4", "Test", {}),
            ("m5", "Flaky", {"seen": True}),
            ("m8", "Login", {"user": "u1"}),
            ("m3/2", "Line", {"n": 2}),
            ("m3/3", "Line", {"n": 3}),
        ]
    books = database.read_sync(read_books).intake["web"]
    assert (books.accepted, books.refused, books.duplicates) == (6, 3, 0)
    (path,) = (await find(log, database, ["x"], "m8")).events
    assert (path.user_id, path.complete, path.refused) == (None, False, None)


@pytest.mark.parametrize(
    ("name", "code", "remedy"),
    [
        ("Test", "FILTERED_AT_INSERT_FUNCTION", "The function dropped it; nothing to do, unless it should not."),
        ("Hopeless", "RETRY_ERROR", "The function asked for another try each time; see what it waits for."),
        (
            "Broken",
            "FUNCTION_RAISED: ZeroDivisionError at shop.py:14",
            "Mend the function; try it on the event with `millrace functions test`.",
        ),
    ],
)
async def test_the_path_of_a_refused_event_says_why_and_shows_what_came(tmp_path, database, log, name, code, remedy):
    await accept(log, event("m1", name, secret="kept"), event("m2", source="app"))
    async with function(tmp_path / "functions", SHOP, role="source") as runner, working(log, database, {"web": runner}):
        await emitted(log, 1)
    (path,) = (await find(log, database, [], "m1")).events
    assert (path.refused, path.remedy, orjson.loads(path.body or "")["properties"]) == (
        code,
        remedy,
        {"secret": "kept"},
    )


# ── Replays ───────────────────────────────────────────────────────────────────────────────────────────────────────


def batch(*events: Event) -> Batch:
    return Batch(EVENTS, 0, [Record(one.key, encode_event(one), 0, at) for at, one in enumerate(events)], len(events))


def applied(database: Database, ran: Ran, emitted: int = 0) -> list[Emission]:
    work = parse(ran.batches)
    whole = Work(work.events, [*work.refusals, *ran.refusals], work.ends)
    return database.run_sync(
        lambda connection: apply_transformed(connection, whole, ran, {0: emitted}, RULES, lambda again: parse(again))
    )


def values(emissions: list[Emission]) -> list[tuple[str, str, Any]]:
    return [told(decode_event(one.value)) for one in emissions]


FICKLE = """
    from millrace.functions import Drop
    times = 0
    def on_track(event, settings):
        global times
        times += 1
        if event["event"] == "Kept": return event
        if event["event"] == "Gone" and times < 4: raise Drop()
        if event["event"] == "Late" and times > 4: raise Drop()
        return event | {"properties": {"times": times}}
"""


async def test_what_was_applied_is_emitted_as_it_was_applied_whatever_the_function_says_later(tmp_path, database):
    poll = [batch(event("m1", "Kept"), event("m2", "Count"), event("m3", "Gone"), event("m4", "Late"))]
    async with function(tmp_path / "functions", FICKLE, role="source") as runner:
        first = applied(database, await through({"web": runner}, poll))
        replayed = applied(database, await through({"web": runner}, poll))
    assert values(first) == [("m1", "Kept", {}), ("m2", "Count", {"times": 2}), ("m4", "Late", {"times": 4})]
    assert replayed == first
    assert database.read_sync(any_left)


async def test_it_holds_when_the_function_is_no_longer_configured(tmp_path, database):
    poll = [batch(event("m1", "Count"))]
    async with function(tmp_path / "functions", FICKLE, role="source") as runner:
        first = applied(database, await through({"web": runner}, poll))
    assert applied(database, await through({}, poll)) == first


async def test_nothing_is_kept_once_it_is_emitted(tmp_path, database):
    async with function(tmp_path / "functions", FICKLE, role="source") as runner:
        applied(database, await through({"web": runner}, [batch(event("m1", "Count"))]))
    applied(database, Ran([Batch(EVENTS, 0, [], 1)]), emitted=1)
    assert not database.read_sync(any_left)


async def test_what_a_split_adds_is_past_the_function_and_counts_once(tmp_path):
    code = "def on_track(event, settings):\n    return [event, event | {'event': 'Copy'}]\n"
    poll = [batch(event("m1"))]
    async with function(tmp_path / "functions", code, role="source") as runner:
        ran, again = [await through({"web": runner}, poll) for _ in range(2)]
        added = [record for _, record in ran.added]
        assert [told(decode_event(one.value)) for one in added] == [("m1/2", "Copy", {})]
        assert again.added == ran.added
        further = await through({"web": runner}, [Batch(EVENTS, 0, [added[0]._replace(offset=1)], 2)])
    assert (further.originals, further.added) == ({}, [])


async def test_events_of_a_slow_function_are_not_refused_for_those_before_them(tmp_path):
    code = "import time\n\ndef on_track(event, settings):\n    time.sleep(0.03)\n    return event\n"
    events = [event(f"m{number}") for number in range(6)]
    async with function(tmp_path / "functions", code, role="source", within=0.05) as runner:
        ran = await through({"web": runner}, [batch(*events)])
    assert ([one.code for one in ran.refusals], len(ran.originals)) == ([], 6)


async def test_records_that_are_none_are_left_to_parsing(tmp_path):
    poll = [
        Batch(
            EVENTS,
            0,
            [Record(b"", b"poison", 0, 0), Record(b"", encode_event(event("m")._replace(refused="x")), 0, 1)],
            2,
        )
    ]
    async with function(tmp_path / "functions", FICKLE, role="source") as runner:
        ran = await through({"web": runner}, poll)
    assert (ran.batches, ran.originals) == (poll, {})
