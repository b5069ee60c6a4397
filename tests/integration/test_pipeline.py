"""The pipeline's process over a real log and a real database: what it emits, what it repeats, what it answers."""

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from starlette.types import ASGIApp, Message

from pipeline.enrich import Enrichment, UserAgents
from pipeline.log import Log, Record, open_log
from pipeline.query.app import create_api
from pipeline.query.balance import balance as audited
from pipeline.query.paths import Tail
from pipeline.store.database import Database
from pipeline.worker import run_worker
from schemas.api import EventPath
from schemas.errors import Unavailable
from schemas.events import Event, Resolved, decode_resolved, encode_event, materialize
from schemas.topics import EVENTS, RESOLVED
from tests.stores import prepare


async def balance(log: Any, database: Database, names: Sequence[str]) -> dict[str, Any]:
    return (await audited(log, database, names)).json_object()


class Crash(Exception):
    """Stands for the end of a process."""


class Failing:
    """A log whose next appends to `resolved` fail with the given errors, after writing what `partly` says."""

    def __init__(self, log: Log, *errors: Exception, partly: int = 0) -> None:
        self._log, self._errors, self._partly = log, list(errors), partly

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def append(self, topic: str, records: Sequence[Record]) -> None:
        if topic == RESOLVED and self._errors:
            await self._log.append(topic, records[: self._partly])
            raise self._errors.pop(0)
        await self._log.append(topic, records)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[Log]:
    async with open_log(f"embedded://{tmp_path}/log", partitions=3) as opened:
        yield opened


@pytest.fixture
def database(tmp_path: Path) -> Any:
    opened = Database(f"sqlite:///{tmp_path}/millrace.sqlite")
    prepare(opened)
    yield opened
    opened.close()


def visit(number: int, **fields: Any) -> Event:
    person = f"p{number % 5}"
    body = {"type": "track", "event": "Visited", "messageId": f"m{number}", "anonymousId": person}
    at = 1_700_000_000_000_000 + number
    return Event(
        "web", "track", f"m{number}", person, None, at, None, at, "server", None, None, orjson.dumps(body)
    )._replace(**fields)


async def accept(log: Log, *events: Event) -> None:
    await log.append(EVENTS, [Record(one.key, encode_event(one), one.received_at // 1000) for one in events])


async def emitted(log: Log) -> list[Resolved]:
    found = []
    for partition in range(log.partitions(RESOLVED)):
        offset = 0
        while (batch := await log.read(RESOLVED, partition, offset)) is not None:
            found += [decode_resolved(record.value) for record in batch.records]
            offset = batch.next_offset
    return found


def without_repeats(records: Sequence[Resolved]) -> list[Resolved]:
    """What a destination sees: per origin partition the offsets only grow."""
    marks: dict[int, int] = {}
    fresh = []
    for one in records:
        if one.origin.offset > marks.get(one.origin.partition, -1):
            marks[one.origin.partition] = one.origin.offset
            fresh.append(one)
    return fresh


@asynccontextmanager
async def working(
    log: Any, database: Database, enrichment: Enrichment | None = None
) -> AsyncIterator["asyncio.Task[None]"]:
    stop = asyncio.Event()
    task = asyncio.create_task(run_worker(log, database, stop=stop, enrichment=enrichment))
    try:
        yield task
    finally:
        stop.set()
        with suppress(Crash):
            await task


async def until_applied(log: Log, database: Database, count: int) -> None:
    async with asyncio.timeout(20):
        while (await balance(log, database, ["x"]))["sources"].get("web", {}).get("accepted", 0) < count:
            await asyncio.sleep(0.01)


async def until_emitted(log: Log, count: int) -> None:
    async with asyncio.timeout(20):
        while sum(end for _, end in (await log.bounds(RESOLVED)).values()) < count:
            await asyncio.sleep(0.01)


async def test_every_accepted_event_is_emitted_with_its_profile_in_the_order_of_the_device(log, database):
    await accept(log, *(visit(number) for number in range(50)))
    async with working(log, database):
        await until_emitted(log, 50)

    found = await emitted(log)
    by_device: dict[str | None, list[str]] = {}
    for one in found:
        by_device.setdefault(one.event.anonymous_id, []).append(one.event.message_id)
    assert by_device == {f"p{p}": [f"m{number}" for number in range(p, 50, 5)] for p in range(5)}
    assert len({one.profile_id for one in found}) == 5


async def test_a_process_that_dies_before_it_has_emitted_is_made_up_for(log, database):
    await accept(log, *(visit(number) for number in range(20)))
    async with working(Failing(log, Crash(), partly=7), database) as task:
        await asyncio.wait((task,))
    assert len(await emitted(log)) == 7

    async with working(log, database):
        await until_emitted(log, 27)
    by_profile: dict[str, list[Resolved]] = {}
    for one in await emitted(log):
        by_profile.setdefault(one.profile_id, []).append(one)
    seen = [one.event.message_id for records in by_profile.values() for one in without_repeats(records)]
    assert sorted(seen) == sorted(f"m{number}" for number in range(20))
    assert (await balance(log, database, ["x"]))["destinations"]["x"]["web"] == {
        "accepted": 20,
        "delivered": 0,
        "filtered": 0,
        "dead": 0,
        "purged": 0,
        "pending": 20,
        "missed": 0,
        "off": 0,
    }


async def test_what_is_applied_but_not_emitted_is_pending(log, database):
    await accept(log, *(visit(number) for number in range(20)))
    async with working(Failing(log, Crash(), partly=7), database) as task:
        await asyncio.wait((task,))

    row = (await balance(log, database, ["x"]))["destinations"]["x"]["web"]
    assert (row["accepted"], row["pending"], row["off"]) == (20, 20, 0)


async def test_an_outage_of_the_log_holds_the_pipeline_up_and_loses_nothing(log, database):
    await accept(log, *(visit(number) for number in range(20)))
    async with working(Failing(log, Unavailable("down", after=0.01), Unavailable("down", after=0.01)), database):
        await until_emitted(log, 20)
    assert sorted(one.event.message_id for one in await emitted(log)) == sorted(f"m{n}" for n in range(20))


async def test_what_is_told_of_a_sender_stands_beside_the_event_which_stays_as_it_came(log, database):
    """So every destination gets the same, and again in a replay, whatever is known of user agents by then."""
    body = orjson.dumps({"event": "Visited", "context": {"userAgent": "Googlebot/2.1", "os": {"name": "Mine"}}})
    await accept(log, visit(0, body=body), visit(1))
    async with working(log, database, Enrichment(UserAgents())):
        await until_emitted(log, 2)

    told = {one.event.message_id: one for one in await emitted(log)}
    assert {name: (one.event.body == body, one.context) for name, one in told.items()} == {
        "m0": (True, b'{"browser":{"name":"Googlebot","version":"2.1"},"bot":true}'),
        "m1": (False, None),
    }
    assert materialize(told["m0"])["context"] == {
        "userAgent": "Googlebot/2.1",
        "os": {"name": "Mine"},
        "browser": {"name": "Googlebot", "version": "2.1"},
        "bot": True,
    }


async def test_a_refused_and_a_poison_record_let_the_others_pass(log, database):
    await log.append(EVENTS, [Record(b"p0", b"not an event", 0)])
    await accept(log, visit(0, refused="event_not_string"), visit(1))
    async with working(log, database):
        await until_emitted(log, 1)
        await until_applied(log, database, 1)

    books = await balance(log, database, [])
    assert [one.event.message_id for one in await emitted(log)] == ["m1"]
    assert books["sources"]["web"] | {"waiting": 0} == {
        "accepted": 1,
        "duplicates": 0,
        "refused": 1,
        "unresolved": 0,
        "waiting": 0,
    }


# ── The API ───────────────────────────────────────────────────────────────────────────────────────────────────────

TOKEN = {"authorization": "Basic " + base64.b64encode(b"secret:").decode()}


async def ask(app: ASGIApp, path: str, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """GET without a socket."""
    path, _, query = path.partition("?")
    status, body = 0, b""

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status, body
        status = message.get("status", status)
        body += message.get("body", b"")

    await app(
        {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "scheme": "http",
            "server": ("127.0.0.1", 80),
            "headers": [(k.encode(), v.encode()) for k, v in (TOKEN if headers is None else headers).items()],
        },
        receive,
        send,
    )
    return status, orjson.loads(body) if body.startswith((b"{", b"[")) else body.decode()


async def test_the_api_shows_a_profile_an_event_and_the_balance(log, database):
    identify = orjson.dumps({"traits": {"email": "Mia@Shop.test", "plan": "team", "city": "Turku"}})
    await accept(log, visit(0), visit(5, type="identify", user_id="u1", body=identify))
    async with working(log, database):
        await until_emitted(log, 2)
    app = create_api(log, database, token="secret", destinations=["crm"])

    status, profile = await ask(app, "/api/profiles/email:MIA@shop.test")
    assert status == 200
    assert [(one["type"], one["id"]) for one in profile["external_ids"]] == [
        ("anonymous_id", "p0"),
        ("email", "mia@shop.test"),
        ("user_id", "u1"),
    ]
    assert (profile["traits"], profile["events"]) == ({"city": "Turku", "email": "Mia@Shop.test", "plan": "team"}, 2)

    base = "/v1/spaces/default/collections/users/profiles/user_id:u1"
    _, first = await ask(app, f"{base}/traits?limit=1")
    assert (first["traits"], first["cursor"]["has_more"]) == ({"city": "Turku"}, True)
    _, rest = await ask(app, f"{base}/traits?limit=2&next={first['cursor']['next']}")
    assert (list(rest["traits"]), rest["cursor"]["has_more"]) == (["email", "plan"], False)
    _, page = await ask(app, f"{base}/external_ids?include=email")
    assert [one["id"] for one in page["data"]] == ["mia@shop.test"]

    status, found = await ask(app, "/api/events/m5")
    [event] = found["events"]
    assert (event["profile"]["id"], event["destinations"]["crm"]["outcome"]) == (profile["id"], "pending")
    status, books = await ask(app, "/api/balance")
    assert (books["sources"]["web"]["accepted"], books["off"]) == (2, 0)
    status, text = await ask(app, "/metrics", {})
    assert 'millrace_pipeline_events_total{result="accepted",source="web"} 2.0' in text


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/api/profiles/user_id:nobody", 404, "not_found"),
        ("/api/profiles/user_id:", 400, "invalid_request_error"),
        ("/api/events/none", 404, "not_found"),
        ("/nowhere", 404, "not_found"),
    ],
)
async def test_the_api_names_what_is_wrong(log, database, path, status, code):
    app = create_api(log, database, token="secret", destinations=[])
    answered, body = await ask(app, path)
    assert (answered, body["error"]["code"]) == (status, code)


@pytest.mark.parametrize("header", ["", "Bearer wrong", "Basic !!!", "Basic " + base64.b64encode(b"wrong:").decode()])
async def test_the_api_opens_to_its_token_only(log, database, header):
    app = create_api(log, database, token="secret", destinations=[])
    status, body = await ask(app, "/api/balance", {"authorization": header})
    assert (status, body["error"]["code"]) == (401, "authentication_error")
    assert (await ask(app, "/api/balance", {"authorization": "Bearer secret"}))[0] == 200


async def test_an_event_that_the_pipeline_has_not_reached_is_found(log, database):
    await accept(log, visit(3))
    await accept(log, visit(8))
    async with working(log, database):
        await until_emitted(log, 2)
    await accept(log, visit(13))

    status, found = await ask(create_api(log, database, token="secret", destinations=[]), "/api/events/m13")
    [event] = found["events"]
    assert (status, event["messageId"], event["profile"]) == (200, "m13", None)


async def test_tail_shows_an_event_when_it_comes_and_when_it_has_a_profile(log, database):
    lines: list[EventPath] = []

    async def follow() -> None:
        async for line in Tail(log, database, ["crm"]).lines(interval=0.01):
            assert isinstance(line, EventPath)
            lines.append(line)
            if line.profile or line.refused:
                return

    tail = asyncio.create_task(follow())
    await asyncio.sleep(0.1)
    await accept(log, visit(0))
    async with asyncio.timeout(5):
        while not lines:
            await asyncio.sleep(0.01)
        async with working(log, database):
            await tail
    assert [(line.message_id, line.profile is not None, line.complete) for line in lines] == [
        ("m0", False, False),
        ("m0", True, False),
    ]
