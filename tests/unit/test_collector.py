"""The collector as an ASGI application over a recording log: what is answered, when, and what the log got."""

import asyncio
import gzip
import json
import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import brotli
import pytest
import zstandard
from structlog.testing import capture_logs

from collector.app import Collector, Message, Scope, create_collector
from collector.body import BODY_LIMIT
from collector.exchanges import CALM
from collector.headers import KeepIp
from collector.sources import Policy
from pipeline.log.contract import Batch, Record, Start, Subscription
from schemas.errors import Unavailable
from schemas.events import Event, decode_event
from schemas.topics import EVENTS

NOW = 1_767_225_602_000_000
TRACK = {"event": "A", "userId": "u", "messageId": "m1", "writeKey": "wk"}


class RecordingLog:
    """Remembers what was appended. `gate` holds appends back, `failure` makes them raise."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.appends = 0
        self.reached = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: Exception | None = None

    async def append(self, topic: str, records: Sequence[Record]) -> None:
        assert topic == EVENTS
        self.appends += 1
        self.reached.set()
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.events += [decode_event(record.value) for record in records]

    def subscribe(
        self, topic: str, *, group: str, start: Start | None = None, max_records: int = 2_000
    ) -> AbstractAsyncContextManager[Subscription]:
        raise NotImplementedError

    async def read(self, topic: str, partition: int, offset: int, *, max_records: int = 1_000) -> Batch | None:
        raise NotImplementedError

    async def bounds(self, topic: str) -> Mapping[int, tuple[int, int]]:
        raise NotImplementedError

    async def offset_at(self, topic: str, partition: int, timestamp: int) -> int:
        raise NotImplementedError

    async def committed(self, topic: str, group: str) -> Mapping[int, int]:
        raise NotImplementedError

    def partitions(self, topic: str) -> int:
        return 1


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def call(
    app: Collector,
    method: str,
    target: str,
    body: bytes | Iterable[bytes] = b"",
    headers: Mapping[str, str] | None = None,
    *,
    gone_after: int | None = None,
    scheme: str = "http",
) -> Answer:
    """One request. The body's parts arrive one by one; after `gone_after` of them the client is gone."""
    parts = [body] if isinstance(body, bytes) else list(body)
    messages: list[Message] = [
        {"type": "http.request", "body": part, "more_body": n + 1 < len(parts)} for n, part in enumerate(parts)
    ]
    if gone_after is not None:
        messages[gone_after:] = [{"type": "http.disconnect"}]
    arriving = iter(messages)
    answer = Answer()

    async def receive() -> Message:
        return next(arriving)

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            assert not answer.status, "answered twice"
            answer.status = message["status"]
            answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            answer.body += message["body"]

    path, _, query = target.partition("?")
    scope: Scope = {
        "type": "http",
        "method": method,
        "scheme": scheme,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
        "client": ("203.0.113.7", 50_000),
        "server": ("127.0.0.1", 8080),
        "http_version": "1.1",
    }
    await app(scope, receive, send)
    return answer


@pytest.fixture
async def log() -> AsyncIterator[RecordingLog]:
    recording = RecordingLog()
    yield recording
    recording.gate.set()


@pytest.fixture
def app(log: RecordingLog) -> Collector:
    return create_collector(log=log, sources={"wk": "web"}, clock=lambda: NOW)


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


# ── Success ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_success_is_answered_exactly_as_sdks_want_it(app: Collector, log: RecordingLog) -> None:
    answer = await call(app, "POST", "/v1/t", dumped(TRACK), {"content-type": "text/plain"})
    assert answer == Answer(
        200,
        {
            "content-type": "application/json",
            "content-length": "17",
            "access-control-allow-origin": "*",
            "access-control-expose-headers": "Retry-After, X-RateLimit-Reset",
        },
        b'{"success": true}',
    )
    assert log.events == [
        Event("web", "track", "m1", None, "u", NOW, None, NOW, "client", "203.0.113.7", None, dumped(TRACK))
    ]


async def test_success_is_answered_only_after_the_append_has_returned(app: Collector, log: RecordingLog) -> None:
    log.gate.clear()
    request = asyncio.create_task(call(app, "POST", "/v1/t", dumped(TRACK)))
    await log.reached.wait()
    for _ in range(10):
        await asyncio.sleep(0)
    assert (request.done(), log.events, app.counts.accepted) == (False, [], {})
    log.gate.set()
    assert ((await request).status, len(log.events)) == (200, 1)


async def test_a_batch_with_refused_events_is_one_append_and_a_success(app: Collector, log: RecordingLog) -> None:
    """Vector 8 of the tracking API."""
    large = {"type": "track", "event": "A", "userId": "u", "properties": {"p": "x" * 40_000}}
    batch = {"batch": [{"type": "track", **TRACK}, large], "writeKey": "wk"}
    assert (await call(app, "POST", "/v1/batch", dumped(batch))).status == 200
    assert ([event.refused for event in log.events], log.appends) == ([None, "message_too_large"], 1)
    assert app.counts.accepted == {"web": 1}
    assert app.counts.refused == {("web", "message_too_large"): 1}
    assert app.counts.requests == {("web", 200): 1}
    assert app.counts.bytes == {"web": len(dumped(batch))}


async def test_an_empty_batch_is_a_success_without_an_append(app: Collector, log: RecordingLog) -> None:
    assert (await call(app, "POST", "/v1/batch", dumped({"batch": [], "writeKey": "wk"}))).status == 200
    assert log.appends == 0


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
async def test_gzip_in_chunks_under_any_content_type_is_accepted(
    app: Collector, log: RecordingLog, content_type: str | None
) -> None:
    """Vectors 3 and 4 of the tracking API."""
    wire = gzip.compress(dumped({"batch": [{"type": "track", **TRACK}], "writeKey": "wk"}))
    headers = {"content-encoding": "gzip"} | ({"content-type": content_type} if content_type else {})
    chunks = [wire[at : at + 7] for at in range(0, len(wire), 7)]
    assert (await call(app, "POST", "/v1/b", chunks, headers)).status == 200
    assert [event.message_id for event in log.events] == ["m1"]


@pytest.mark.parametrize("credentials", [b"wk:", b"wk"])
async def test_basic_auth_alone_authorises_with_and_without_colon(
    app: Collector, log: RecordingLog, credentials: bytes
) -> None:
    """Vectors 5 and 14 of the tracking API."""
    body = dumped({"batch": [{"type": "track", "event": "A", "userId": "u"}]})
    headers = {"authorization": "Basic " + b64encode(credentials).decode()}
    assert (await call(app, "POST", "/v1/import/", body, headers)).status == 200
    assert [(event.source, event.ip) for event in log.events] == [("web", None)]


async def test_the_address_comes_from_the_trusted_proxy(log: RecordingLog) -> None:
    app = create_collector(log=log, sources={"wk": "web"}, trusted_hops=1)
    await call(app, "POST", "/v1/t", dumped(TRACK), {"x-forwarded-for": "6.6.6.6, 198.51.100.9"})
    assert [event.ip for event in log.events] == ["198.51.100.9"]


@pytest.mark.parametrize(
    ("keep", "kept"),
    [("all", ["198.51.100.9", "2001:db8::7"]), ("ipv4", ["198.51.100.9", None]), ("none", [None, None])],
)
async def test_which_addresses_are_kept_is_for_the_operator_to_say(
    log: RecordingLog, keep: KeepIp, kept: list[str | None]
) -> None:
    app = create_collector(log=log, sources={"wk": "web"}, trusted_hops=1, keep_ip=keep)
    for address in ("::ffff:198.51.100.9", "[2001:db8::7]:443"):
        await call(app, "POST", "/v1/t", dumped(TRACK), {"x-forwarded-for": address})
    assert [event.ip for event in log.events] == kept


async def test_a_duplicate_is_a_success_like_any_other(app: Collector, log: RecordingLog) -> None:
    """Vector 9: the collector stores both, the pipeline keeps one."""
    answers = [await call(app, "POST", "/v1/t", dumped(TRACK)) for _ in range(2)]
    assert ([answer.status for answer in answers], len(log.events)) == ([200, 200], 2)


# ── Calls that arrive together ────────────────────────────────────────────────────────────────────────────────────


def numbered(number: int, **fields: Any) -> bytes:
    return dumped({**TRACK, "messageId": f"m{number}", **fields})


async def test_calls_that_arrive_together_are_one_append_in_their_order_and_each_is_answered_for_itself(
    log: RecordingLog,
) -> None:
    sources = {"wk": "web", "other": "app", "old": "closed"}
    policies = {"closed": Policy(enabled=False)}
    app = create_collector(log=log, sources=sources, policies=policies, clock=lambda: NOW)
    basic = {"authorization": f"Basic {b64encode(b'other:').decode()}"}
    batch = dumped({"batch": [{"type": "track", **TRACK, "messageId": "m6"}], "writeKey": "wk"})
    answers = await asyncio.gather(
        call(app, "POST", "/v1/t", numbered(1)),
        call(app, "POST", "/v1/t", numbered(2, event="\u00dc")),
        call(app, "POST", "/v1/t", b"{"),
        call(app, "POST", "/v1/i", numbered(3), basic),
        call(app, "POST", "/v1/t", numbered(4, writeKey="nobody")),
        call(app, "POST", "/v1/t", gzip.compress(numbered(5)), {"content-encoding": "gzip"}),
        call(app, "POST", "/v1/batch", batch),
        call(app, "POST", "/v1/t", numbered(7, writeKey="old")),
        call(app, "POST", "/v1/t", numbered(8, event=7)),
        call(app, "POST", "/v1/t", numbered(9)),
    )
    codes = [answer.json.get("code") for answer in answers]
    assert codes == [None, None, "invalid_request", None, "unknown_source", None, None, None, None, None]
    assert log.appends == 1
    assert [(event.message_id, event.type, event.source, event.refused) for event in log.events] == [
        ("m1", "track", "web", None),
        ("m2", "track", "web", None),
        ("m3", "identify", "app", None),
        ("m5", "track", "web", None),
        ("m6", "track", "web", None),
        ("m7", "track", "closed", "source_disabled"),
        ("m8", "track", "web", "event_not_string"),
        ("m9", "track", "web", None),
    ]
    assert app.counts.accepted == {"web": 5, "app": 1}
    assert app.counts.requests == {
        ("web", 200): 6,
        ("app", 200): 1,
        ("closed", 200): 1,
        ("", 400): 2,
    }
    assert app.counts.bytes["app"] == len(numbered(3))
    assert app.in_flight_bytes == 0


async def test_calls_of_usual_shape_are_counted_by_source(app: Collector, log: RecordingLog) -> None:
    answers = await asyncio.gather(*(call(app, "POST", "/v1/t", numbered(number)) for number in range(5)))
    assert {answer.status for answer in answers} == {200}
    assert ([event.message_id for event in log.events], log.appends) == ([f"m{n}" for n in range(5)], 1)
    assert (app.counts.accepted, app.counts.requests) == ({"web": 5}, {("web", 200): 5})
    assert (app.counts.bytes, app.in_flight_bytes) == ({"web": 5 * len(numbered(0))}, 0)


async def test_of_calls_that_arrive_together_those_beyond_the_rate_are_turned_away(log: RecordingLog) -> None:
    policies = {"web": Policy(events_per_second=0.2)}  # two at once after a pause, the last of which may overdraw
    app = create_collector(log=log, sources={"wk": "web"}, policies=policies)
    answers = await asyncio.gather(*(call(app, "POST", "/v1/t", numbered(number)) for number in range(5)))
    assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]
    assert [event.message_id for event in log.events] == ["m0", "m1", "m2"]
    assert app.in_flight_bytes == 0


async def test_calls_that_arrive_together_at_a_slow_log_are_told_so_and_counted_once_they_are_kept(
    log: RecordingLog,
) -> None:
    app = create_collector(log=log, sources={"wk": "web"}, append_timeout=0.02)
    log.gate.clear()
    answers = await asyncio.gather(*(call(app, "POST", "/v1/t", numbered(number)) for number in range(3)))
    assert [(answer.status, answer.headers["retry-after"]) for answer in answers] == [(503, "5")] * 3
    assert (app.counts.accepted, app.in_flight_bytes > 0) == ({}, True)
    log.gate.set()
    while app.in_flight_bytes:
        await asyncio.sleep(0)
    assert (app.counts.accepted, app.counts.requests) == ({"web": 3}, {("web", 503): 3})


@pytest.mark.parametrize(
    ("failure", "status"), [(Unavailable("the disk is full", after=2.5), 503), (RuntimeError("a bug"), 500)]
)
async def test_calls_that_arrive_together_are_acknowledged_by_nothing_but_the_log(
    app: Collector, log: RecordingLog, failure: Exception, status: int
) -> None:
    log.failure = failure
    answers = await asyncio.gather(*(call(app, "POST", "/v1/t", numbered(number)) for number in range(3)))
    assert [answer.status for answer in answers] == [status] * 3
    assert (app.counts.accepted, app.counts.requests) == ({}, {("web", status): 3})
    assert app.in_flight_bytes == 0


async def test_calls_that_wait_for_the_log_are_received_when_they_arrive(log: RecordingLog) -> None:
    """To five milliseconds, which is less than the way of any of them took."""
    now = [NOW]
    app = create_collector(log=log, sources={"wk": "web"}, clock=lambda: now[0])
    log.gate.clear()
    requests = []
    for number, at in enumerate((0, 1_000, 5_000, 10_001, 10_002)):
        now[0] = NOW + at
        requests.append(asyncio.create_task(call(app, "POST", "/v1/t", numbered(number))))
        for _ in range(5):
            await asyncio.sleep(0)
    now[0] = NOW + 1_000_000
    log.gate.set()
    assert {(await request).status for request in requests} == {200}
    assert [event.received_at - NOW for event in log.events] == [0, 1_000, 1_000, 10_001, 10_001]


async def test_one_call_that_breaks_the_collector_does_not_harm_those_that_arrive_with_it(log: RecordingLog) -> None:
    """By a message id that cannot be made: only the call that needs one is hurt."""

    def broken() -> str:
        raise RuntimeError("no randomness")

    app = create_collector(log=log, sources={"wk": "web"}, new_id=broken)
    without_id = dumped({"event": "A", "userId": "u", "writeKey": "wk"})
    with capture_logs() as logged:
        answers = await asyncio.gather(
            *(call(app, "POST", "/v1/t", body) for body in (numbered(1), without_id, numbered(2)))
        )
    assert [answer.status for answer in answers] == [200, 500, 200]
    assert [event.message_id for event in log.events] == ["m1", "m2"]
    assert [line["event"] for line in logged] == ["requests failed together, each is tried alone", "request failed"]


# ── Errors ────────────────────────────────────────────────────────────────────────────────────────────────────────

REMEDIES = {
    "invalid_request": "send one object",
    "unknown_source": "send the key of a configured source",
    "body_too_large": "a body holds at most",
    "invalid_encoding": "compress it so, or leave Content-Encoding out",
    "unsupported_encoding": "use gzip, deflate, br, zstd or none|at most 3 times",
}


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b'{"batch":[,],"sentAt":"x"}', {}, 400, "invalid_request"),  # vector 7
        (dumped({"batch": []}), {}, 400, "unknown_source"),
        (dumped({"batch": [], "writeKey": "wk"}), {"authorization": "Basic bm86"}, 400, "unknown_source"),
        (b" " * (BODY_LIMIT + 1), {}, 400, "body_too_large"),
        (b"", {"content-length": str(10 * BODY_LIMIT)}, 400, "body_too_large"),
        (gzip.compress(b" " * (20 << 20)), {"content-encoding": "gzip"}, 400, "body_too_large"),
        (brotli.compress(b" " * (200 << 20), quality=5), {"content-encoding": "br"}, 400, "body_too_large"),
        (zstandard.compress(b" " * (200 << 20)), {"content-encoding": "zstd"}, 400, "body_too_large"),
        (b"x", {"content-encoding": "gzip"}, 400, "invalid_encoding"),
        (b"x", {"content-encoding": "br"}, 400, "invalid_encoding"),
        (b"x", {"content-encoding": "zstd"}, 400, "invalid_encoding"),
        (b"x", {"content-encoding": "gzip, gzip, gzip, gzip"}, 400, "unsupported_encoding"),
        (b"x", {"content-encoding": "lzma"}, 400, "unsupported_encoding"),
    ],
)
async def test_an_error_can_be_read_by_every_sdk_and_by_the_browser(
    app: Collector, log: RecordingLog, body: bytes, headers: Mapping[str, str], status: int, code: str
) -> None:
    answer = await call(app, "POST", "/v1/batch", body, {"origin": "https://shop.example", **headers})
    assert (answer.status, log.appends, app.in_flight_bytes) == (status, 0, 0)
    assert answer.json["success"] is False
    assert answer.json["code"] == code
    assert answer.json["message"] == answer.json["error"]
    assert re.search(REMEDIES[code], answer.json["message"])
    assert answer.headers == {
        "content-type": "application/json",
        "content-length": str(len(answer.body)),
        "access-control-allow-origin": "https://shop.example",
        "access-control-allow-credentials": "true",
        "vary": "Origin",
        "access-control-expose-headers": "Retry-After, X-RateLimit-Reset",
    }


async def test_requests_that_are_refused_are_said_when_they_begin_and_counted(log: RecordingLog) -> None:
    now = NOW
    app = create_collector(log=log, sources={"wk": "web"}, clock=lambda: now)

    async def refused(key: str, count: int) -> None:
        for _ in range(count):
            assert (await call(app, "POST", "/v1/track", b"{", {"authorization": f"Basic {key}"})).status == 400

    with capture_logs() as lines:
        await refused("bm86", 3)
        await refused("d2s6", 2)
        now += CALM - 1
        await refused("bm86", 1)
        now += CALM
        await refused("bm86", 1)
    assert [(line["event"], line["source"], line["code"]) for line in lines] == [
        ("requests refused", "", "unknown_source"),
        ("requests refused", "web", "invalid_request"),
        ("requests refused", "", "unknown_source"),
    ]
    assert app.counts.turned_away == {("", "unknown_source"): 5, ("web", "invalid_request"): 2}


async def test_a_single_call_that_is_too_large_is_an_error_though_the_log_keeps_it(
    app: Collector, log: RecordingLog
) -> None:
    answer = await call(app, "POST", "/v1/track", dumped({**TRACK, "properties": {"p": "x" * 40_000}}))
    assert (answer.status, answer.json["code"]) == (400, "message_too_large")
    assert [event.refused for event in log.events] == ["message_too_large"]


async def test_an_unavailable_log_is_a_503_with_the_seconds_to_wait(app: Collector, log: RecordingLog) -> None:
    log.failure = Unavailable("the disk is full", after=2.5)
    answer = await call(app, "POST", "/v1/t", dumped(TRACK))
    assert (answer.status, answer.headers["retry-after"]) == (503, "3")
    assert (answer.json["code"], answer.json["message"]) == ("unavailable", "the disk is full")
    assert (app.counts.accepted, app.in_flight_bytes) == ({}, 0)
    assert app.counts.requests == {("web", 503): 1}


async def test_a_bug_acknowledges_nothing_and_is_answered_in_json(app: Collector, log: RecordingLog) -> None:
    log.failure = RuntimeError("a bug")
    answer = await call(app, "POST", "/v1/t", dumped(TRACK))
    assert (answer.status, answer.json["code"], app.in_flight_bytes) == (500, "internal", 0)
    assert answer.headers["access-control-allow-origin"] == "*"


async def test_a_log_that_is_too_slow_is_a_503_while_the_append_stays_charged_until_it_ends(
    log: RecordingLog,
) -> None:
    app = create_collector(log=log, sources={"wk": "web"}, append_timeout=0.02)
    log.gate.clear()
    answers: list[Answer] = []
    sent = asyncio.Event()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answers.append(Answer(message["status"], {n.decode(): v.decode() for n, v in message["headers"]}))
        else:
            sent.set()

    async def receive() -> Message:
        return {"type": "http.request", "body": dumped(TRACK)}

    scope: Scope = {"type": "http", "method": "POST", "path": "/v1/t", "headers": [], "client": None}
    request = asyncio.create_task(app(scope, receive, send))
    await sent.wait()
    assert [(answer.status, answer.headers["retry-after"]) for answer in answers] == [(503, "5")]
    assert app.in_flight_bytes > len(dumped(TRACK))
    log.gate.set()
    await request
    while app.in_flight_bytes:
        await asyncio.sleep(0)
    assert (len(answers), len(log.events)) == (1, 1)
    assert (app.counts.requests, app.counts.accepted) == ({("web", 503): 1}, {"web": 1})


async def test_what_is_in_flight_is_bounded_and_beyond_it_requests_are_put_off(log: RecordingLog) -> None:
    app = create_collector(log=log, sources={"wk": "web"}, max_in_flight_bytes=1_000)
    log.gate.clear()
    first = asyncio.create_task(call(app, "POST", "/v1/t", dumped({**TRACK, "properties": {"p": "x" * 5_000}})))
    await log.reached.wait()
    held = app.in_flight_bytes
    declared = {"content-length": str(len(dumped(TRACK)))}
    put_off = [
        await call(app, "POST", "/v1/t", dumped(TRACK), declared),
        await call(app, "POST", "/v1/t", [dumped(TRACK)[:5], dumped(TRACK)[5:]]),
    ]
    assert [(answer.status, answer.headers["retry-after"]) for answer in put_off] == [(503, "1")] * 2
    assert (log.appends, app.in_flight_bytes) == (1, held)
    log.gate.set()
    assert (await first).status == 200
    assert app.in_flight_bytes == 0
    assert (await call(app, "POST", "/v1/t", dumped(TRACK), declared)).status == 200


async def test_a_client_that_leaves_before_its_body_is_complete_leaves_nothing(
    app: Collector, log: RecordingLog
) -> None:
    answer = await call(app, "POST", "/v1/t", [b"{", b"}"], {"content-length": "2"}, gone_after=1)
    assert (answer, log.appends, app.in_flight_bytes, app.counts.disconnected) == (Answer(), 0, 0, 1)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_other_methods_are_refused(app: Collector, method: str) -> None:
    answer = await call(app, method, "/v1/track")
    assert (answer.status, answer.json["code"]) == (405, "method_not_allowed")
    assert (answer.headers["access-control-allow-origin"], answer.headers["allow"]) == ("*", "POST, OPTIONS")


# ── CORS ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/v1/projects/wk/settings", "GET, HEAD, OPTIONS"),
        ("DELETE", "/v1/pixel/track", "GET, HEAD, OPTIONS"),
        ("GET", "/m/", "POST, OPTIONS"),
    ],
)
async def test_the_other_paths_of_sdks_name_the_methods_they_take(
    app: Collector, method: str, path: str, allow: str
) -> None:
    answer = await call(app, method, path, headers={"origin": "https://shop.example"})
    assert (answer.status, answer.json["code"], answer.headers["allow"]) == (405, "method_not_allowed", allow)
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"


@pytest.mark.parametrize("path", ["/v1/t", "/b", "/v1/import/", "/v1/projects/wk/settings", "/v1/m"])
async def test_a_preflight_is_answered_on_every_path_of_the_tracking_api(app: Collector, path: str) -> None:
    headers = {"origin": "https://shop.example", "access-control-request-headers": "authorization,x-retry-count"}
    answer = await call(app, "OPTIONS", path, headers=headers)
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"
    assert answer.headers["access-control-allow-headers"] == "Authorization, Content-Type, X-Retry-Count"
    assert answer.headers["access-control-allow-methods"] == "GET, POST, OPTIONS"


async def test_a_page_gets_its_own_origin_back_so_that_it_may_send_credentials(app: Collector) -> None:
    answer = await call(app, "POST", "/v1/t", dumped(TRACK), {"origin": "https://shop.example"})
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert answer.headers["vary"] == "Origin"


# ── The other routes ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_everything_else_goes_to_the_fallback(app: Collector) -> None:
    async def fallback(scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    app.fallback = fallback
    assert await call(app, "GET", "/health") == Answer(204, {}, b"/health")


@pytest.mark.parametrize(
    "path", ["//v1/track", "//track", "/v1//track", "//v1//track/", "///v1///track", "//v1/v1/track", "/v1//v1/track"]
)
async def test_a_host_that_was_configured_with_a_slash_at_its_end_is_understood(
    app: Collector, log: RecordingLog, path: str
) -> None:
    assert (await call(app, "POST", path, dumped(TRACK))).status == 200
    assert [(event.type, event.channel) for event in log.events] == [("track", "server")]
    settings = await call(app, "GET", path.partition("track")[0] + "projects/wk/settings")
    assert settings.json["integrations"]["Segment.io"]["apiKey"] == "wk"


async def test_slashes_within_a_value_of_a_path_are_left_alone(app: Collector) -> None:
    told: list[Scope] = []

    async def fallback(scope: Scope, receive: Any, send: Any) -> None:
        told.append(scope)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    app.fallback = fallback
    for start in ("", "/"):
        await call(app, "GET", f"{start}/v1/spaces/s/users/profiles/page:http://a//b")
    assert [(scope["path"], scope["raw_path"]) for scope in told] == [
        ("/v1/spaces/s/users/profiles/page:http://a//b", b"/v1/spaces/s/users/profiles/page:http://a//b")
    ] * 2


async def test_settings_keep_the_sdks_of_every_platform_with_us(app: Collector) -> None:
    answer = await call(app, "GET", "/v1/projects/wk/settings", headers={"host": "cdp.example:8080"}, scheme="https")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.headers["access-control-allow-origin"] == "*"
    ourselves = answer.json["integrations"]["Segment.io"]
    assert (ourselves["apiKey"], ourselves["apiHost"]) == ("wk", "cdp.example:8080/v1")
    assert "protocol" not in ourselves
    assert answer.json["metrics"] == {"sampleRate": 0}
    assert b"null" not in answer.body


@pytest.mark.parametrize(
    ("prefix", "host"),
    [("/shop/data/", "cdp.example/shop/data/v1"), ("//evil.example", "cdp.example/v1"), ("/a?b", "cdp.example/v1")],
)
async def test_settings_keep_the_path_that_a_proxy_has_mounted_us_under(app: Collector, prefix: str, host: str) -> None:
    headers = {"host": "cdp.example", "x-forwarded-prefix": prefix}
    answer = await call(app, "GET", "/v1/projects/wk/settings", headers=headers)
    assert answer.json["integrations"]["Segment.io"]["apiHost"] == host


@pytest.mark.parametrize(
    ("hops", "forwarded", "host"),
    [
        (0, "elsewhere.example", "internal:8080"),
        (1, "cdp.example", "cdp.example"),
        (1, "elsewhere.example, cdp.example", "cdp.example"),
        (2, "elsewhere.example, cdp.example, inner", "cdp.example"),
        (2, "cdp.example", "cdp.example"),  # the inner proxy kept the Host
        (1, " , ", "internal:8080"),
    ],
)
async def test_settings_name_the_host_that_a_trusted_proxy_was_asked_for(
    log: RecordingLog, hops: int, forwarded: str, host: str
) -> None:
    app = create_collector(log=log, sources={"wk": "web"}, trusted_hops=hops)
    headers = {"host": "internal:8080", "x-forwarded-host": forwarded}
    answer = await call(app, "GET", "/v1/projects/wk/settings", headers=headers)
    assert answer.json["integrations"]["Segment.io"]["apiHost"] == f"{host}/v1"


async def test_settings_name_the_consent_categories_of_the_sources_destinations(log: RecordingLog) -> None:
    app = create_collector(log=log, sources={"wk": "web", "other": "app"}, consent={"web": ["ads", "analytics"]})
    said = [(await call(app, "GET", f"/v1/projects/{key}/settings")).json["consentSettings"] for key in ("wk", "other")]
    assert said == [
        {"allCategories": ["ads", "analytics"], "hasUnmappedDestinations": True},
        {"allCategories": [], "hasUnmappedDestinations": True},
    ]


async def test_settings_of_an_unknown_key_are_a_404_that_the_browser_may_read(app: Collector) -> None:
    """Vector 13 of the tracking API."""
    answer = await call(app, "GET", "/v1/projects/other/settings", headers={"origin": "https://shop.example"})
    assert (answer.status, answer.json["code"]) == (404, "unknown_source")
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"


async def test_metrics_of_sdks_are_taken_and_discarded(app: Collector, log: RecordingLog) -> None:
    answer = await call(app, "POST", "/v1/m", b'{"series":[]}', {"content-type": "text/plain"})
    assert (answer.status, answer.body, log.appends) == (200, b"{}", 0)


DEEP = "data=" + urlsafe_b64encode(b'{"a":' * 300 + b"1" + b"}" * 300).decode()


def pixel_data(event: Mapping[str, Any]) -> list[str]:
    raw = dumped(event)
    return [
        b64encode(raw).decode().replace("+", "%20"),
        urlsafe_b64encode(raw).decode(),
        urlsafe_b64encode(raw).decode().rstrip("="),
    ]


@pytest.mark.parametrize("data", pixel_data({**TRACK, "event": "Öffnung ~~?>>", "context": {"ip": "0.0.0.0"}}))
async def test_a_pixel_takes_base64_of_either_alphabet(app: Collector, log: RecordingLog, data: str) -> None:
    answer = await call(app, "GET", f"/v1/pixel/track?data={data}", headers={"user-agent": "Mail/1.0"})
    assert (answer.status, answer.headers["content-type"], answer.body[:6]) == (200, "image/gif", b"GIF89a")
    assert answer.headers["cache-control"] == "no-store"
    (event,) = log.events
    body = json.loads(event.body)
    assert (event.type, event.channel, event.ip) == ("track", "client", "203.0.113.7")
    assert (body["event"], body["context"]) == ("Öffnung ~~?>>", {"ip": "0.0.0.0", "userAgent": "Mail/1.0"})


async def test_a_pixel_takes_dotted_paths(app: Collector, log: RecordingLog) -> None:
    query = "writeKey=wk&userId=u1&event=Email%20Opened&properties.subject=Hi&context.page.title=T"
    assert (await call(app, "GET", f"/v1/pixel/track?{query}")).status == 200
    assert json.loads(log.events[0].body) == {
        "writeKey": "wk",
        "userId": "u1",
        "event": "Email Opened",
        "properties": {"subject": "Hi"},
        "context": {"page": {"title": "T"}},
    }


@pytest.mark.parametrize(
    "query", ["data=%%%", "data=e30", "data=W10=", "", "a.__proto__.b=1&writeKey=wk", "a=1&a.b=2", "data=äö", DEEP]
)
async def test_a_pixel_is_a_picture_whatever_it_is_sent(app: Collector, log: RecordingLog, query: str) -> None:
    """Vector 12 of the tracking API."""
    answer = await call(app, "GET", f"/v1/pixel/page?{query}")
    assert (answer.status, answer.headers["content-type"], log.events) == (200, "image/gif", [])


async def test_who_only_looks_whether_the_picture_is_there_has_not_seen_it(app: Collector, log: RecordingLog) -> None:
    """Scanners of mail ask so, before anybody has opened it."""
    answer = await call(app, "HEAD", "/v1/pixel/track?writeKey=wk&userId=u&event=A")
    assert (answer.status, answer.headers["content-type"], log.events) == (200, "image/gif", [])


async def test_a_pixel_on_a_page_that_may_not_send_is_not_taken(log: RecordingLog) -> None:
    """As scripts load it; what a mail or a page shows as a picture names no origin."""
    policy = Policy(origins=frozenset({"https://shop.example"}))
    app = create_collector(log=log, sources={"wk": "web"}, policies={"web": policy})
    for origin in ({}, {"origin": "https://shop.example"}, {"origin": "https://elsewhere.example"}):
        answer = await call(app, "GET", "/v1/pixel/track?writeKey=wk&userId=u&event=A", headers=origin)
        assert (answer.status, answer.headers["content-type"]) == (200, "image/gif")
    assert len(log.events) == 2


async def test_a_pixel_is_a_picture_even_when_the_log_is_away(app: Collector, log: RecordingLog) -> None:
    log.failure = Unavailable("away")
    answer = await call(app, "GET", "/v1/pixel/track?writeKey=wk&userId=u&event=A")
    assert (answer.status, answer.headers["content-type"]) == (200, "image/gif")
