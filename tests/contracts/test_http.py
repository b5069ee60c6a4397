"""What HTTP clients of the collector may rely on, whichever way takes their requests: as one suite.

`protocol` is the short cut below ASGI, the others are uvicorn's own protocol classes with the ASGI application."""

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any

import pytest

from collector.app import Collector, create_collector
from collector.body import BODY_LIMIT
from collector.protocol import protocol_class
from collector.sources import Policy
from schemas.errors import Unavailable
from tests.http import Server, chunked, connected, head, post
from tests.unit.test_collector import RecordingLog

TRACK = {"type": "track", "event": "A", "userId": "u"}
BATCH = json.dumps({"writeKey": "wk", "batch": [TRACK] * 3}).encode()
SUCCESS = b'{"success": true}'


def single(message_id: str, **fields: Any) -> bytes:
    return json.dumps({**TRACK, "messageId": message_id, "writeKey": "wk", **fields}).encode()


@pytest.fixture
async def log() -> RecordingLog:
    return RecordingLog()


@pytest.fixture
def collector(log: RecordingLog) -> Collector:
    return create_collector(log=log, sources={"wk": "web"}, append_timeout=0.3)


@pytest.fixture(params=["protocol", "httptools", "h11"])
def serving(request: pytest.FixtureRequest) -> Callable[[Collector], Server]:
    def over(collector: Collector) -> Server:
        return Server(collector, protocol_class(collector.intake) if request.param == "protocol" else request.param)

    return over


@pytest.fixture
def server(collector: Collector, serving: Callable[[Collector], Server]) -> Server:
    return serving(collector)


async def test_success_is_one_small_json_object_with_the_date_and_cors(server: Server) -> None:
    async with server.running() as port, connected(port) as client:
        client.send(post("/v1/t", single("m1")))
        reply = await client.reply()
    assert (reply.status, reply.body) == (200, SUCCESS)
    assert reply.headers.pop("date")  # OAuth clients derive their clock's skew from it
    assert reply.headers == {
        "content-type": "application/json",
        "content-length": "17",
        "access-control-allow-origin": "*",
        "access-control-expose-headers": "Retry-After, X-RateLimit-Reset",
    }


async def test_one_connection_carries_plain_gzipped_chunked_and_broken_requests(
    server: Server, log: RecordingLog
) -> None:
    packed = gzip.compress(BATCH)
    async with server.running() as port, connected(port) as client:
        client.send(post("/v1/b", BATCH))
        assert (await client.reply()).body == SUCCESS
        client.send(head("/v1/b", "Content-Encoding: gzip", "Transfer-Encoding: chunked"), chunked(packed, 11))
        assert (await client.reply()).body == SUCCESS
        client.send(post("/v1/b", b'{"batch":[,]}'))
        assert await client.status() == 400
        client.send(post("/v1/import/?a=b", BATCH, "Authorization: Basic d2s6"))
        assert (await client.reply()).body == SUCCESS
        client.send(post("/v1/b", BATCH, "Authorization: Basic bm86"))
        assert json.loads((await client.reply()).body)["code"] == "unknown_source"
    assert len(log.events) == 9


async def test_a_body_compressed_twice_may_say_so_on_two_lines(server: Server, log: RecordingLog) -> None:
    packed = gzip.compress(zlib.compress(single("m1")))
    async with server.running() as port, connected(port) as client:
        client.send(post("/v1/t", packed, "Content-Encoding: deflate", "Content-Encoding: gzip"))
        assert (await client.reply()).body == SUCCESS
    assert [event.message_id for event in log.events] == ["m1"]


async def test_many_connections_at_once_are_each_answered_with_their_own(
    serving: Callable[[Collector], Server], log: RecordingLog
) -> None:
    """Pages of two sites, wrong calls and batches between calls of the usual kind."""
    server = serving(create_collector(log=log, sources={"wk": "web"}))
    origins = {0: "https://a.example", 1: "https://b.example"}
    async with server.running() as port, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(port)) for _ in range(30)]
        for _ in range(3):
            for number, client in enumerate(clients):
                origin = (f"Origin: {origins[number % 3]}",) if number % 3 in origins else ()
                body = BATCH if number % 10 == 5 else b"{" if number % 10 == 7 else single(f"m{number}")
                client.send(post("/v1/b" if number % 10 == 5 else "/v1/t", body, *origin))
            replies = [await client.reply() for client in clients]
            assert [reply.status for reply in replies] == [400 if n % 10 == 7 else 200 for n in range(30)]
            allowed = [reply.headers["access-control-allow-origin"] for reply in replies]
            assert allowed == [origins.get(number % 3, "*") for number in range(30)]
    assert len(log.events) == 3 * (24 + 3 * 3)


async def test_an_error_carries_cors_for_the_page_that_asked(server: Server) -> None:
    async with server.running() as port, connected(port) as client:
        client.send(post("/v1/t", b"{", "Origin: https://shop.example"))
        reply = await client.reply()
    assert (reply.status, json.loads(reply.body)["code"]) == (400, "invalid_request")
    assert reply.headers["access-control-allow-origin"] == "https://shop.example"
    assert reply.headers["vary"] == "Origin"


async def test_pipelined_requests_are_answered_in_order_and_none_is_lost(server: Server, log: RecordingLog) -> None:
    """Some are the collector's, some the application's, and some are wrong: each answer tells which it is."""
    requests = [
        (post("/v1/t", single("m1")), 200),
        (head("/v1/projects/none/settings", method="GET"), 404),
        (post("/v1/t", b"{"), 400),
        (post("/v1/t", single("m2")), 200),
        (head("/v1/t", method="PUT") + b"", 405),
        (head("/v1/projects/wk/settings", method="GET"), 200),
        (head("/v1/t", "Transfer-Encoding: chunked") + chunked(single("m3"), 9), 200),
    ] * 5
    async with server.running() as port, connected(port) as client:
        client.send(*[request for request, _ in requests])
        statuses = [await client.status() for _ in requests]
    assert statuses == [status for _, status in requests]
    assert sorted(event.message_id for event in log.events) == sorted(["m1", "m2", "m3"] * 5)


async def test_requests_may_be_cut_anywhere_on_their_way(server: Server, log: RecordingLog) -> None:
    """Each piece ends one head, brings more than a head may hold, and begins another head."""
    request = post("/v1/t", single("m1"))
    stream, count = request * 1_000, 40_000 // len(request)
    cut = [0, *range(20, len(stream), count * len(request)), len(stream)]
    async with server.running() as port, connected(port) as client:
        for start, end in pairwise(cut):
            client.send(stream[start:end])
            await asyncio.sleep(0.01)
        assert [await client.status() for _ in range(1_000)] == [200] * 1_000
    assert len(log.events) == 1_000


async def test_a_request_that_arrives_byte_by_byte_is_taken(server: Server, log: RecordingLog) -> None:
    async with server.running() as port, connected(port) as client:
        for byte in post("/v1/t", single("m1")):
            client.send(bytes((byte,)))
            await asyncio.sleep(0)
        assert await client.status() == 200
    assert [event.message_id for event in log.events] == ["m1"]


async def test_connection_close_is_obeyed(server: Server) -> None:
    async with server.running() as port, connected(port) as client:
        client.send(post("/v1/t", single("m1"), "Connection: close"))
        reply = await client.reply()
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert await client.is_closed()


async def test_http_1_0_is_answered_and_closed(server: Server) -> None:
    body = single("m1")
    async with server.running() as port, connected(port) as client:
        client.send(head("/v1/t", f"Content-Length: {len(body)}", version="1.0"), body)
        assert await client.status() == 200
        assert await client.is_closed()


async def test_a_client_that_waits_for_100_continue_gets_it(server: Server) -> None:
    body = single("m1")
    async with server.running() as port, connected(port) as client:
        client.send(head("/v1/t", f"Content-Length: {len(body)}", "Expect: 100-continue"))
        assert await client.status() == 100
        client.send(body)
        assert await client.status() == 200


async def test_head_gets_headers_only(server: Server) -> None:
    async with server.running() as port, connected(port) as client:
        client.send(head("/v1/t", method="HEAD", host=True))
        assert (await client.reply(head_only=True)).status == 405
        client.send(post("/v1/t", single("m1")))
        assert await client.status() == 200


async def test_a_preflight_is_answered(server: Server) -> None:
    asked = ("Origin: https://shop.example", "Access-Control-Request-Headers: authorization,x-retry-count")
    async with server.running() as port, connected(port) as client:
        client.send(head("/v1/t", *asked, method="OPTIONS"))
        reply = await client.reply()
    assert (reply.status, reply.headers["access-control-allow-headers"]) == (
        200,
        "Authorization, Content-Type, X-Retry-Count",
    )


async def test_an_attempt_to_upgrade_is_a_request_like_any_other(collector: Collector) -> None:
    """Java's client asks for HTTP/2 with its first request. uvicorn on its own would lose the body."""
    server = Server(collector, protocol_class(collector.intake))
    upgrade = (
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAA",
    )
    async with server.running() as port, connected(port) as client:
        client.send(post("/v1/t", single("m1"), *upgrade) + post("/v1/t", single("m2")))
        assert [await client.status(), await client.status()] == [200, 200]
        client.send(head("cdp.example:443", method="CONNECT"))
        assert await client.status() == 400


async def test_a_body_that_says_it_is_too_large_is_answered_before_it_is_sent(server: Server) -> None:
    async with server.running() as port, connected(port) as client:
        client.send(head("/v1/b", "Content-Length: 100000000"))
        reply = await client.reply()
        assert (reply.status, json.loads(reply.body)["code"]) == (400, "body_too_large")


async def test_a_body_that_grows_too_large_is_answered_while_it_is_sent(server: Server, collector: Collector) -> None:
    part = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    async with server.running() as port, connected(port) as client:
        client.send(head("/v1/b", "Transfer-Encoding: chunked"), part * (BODY_LIMIT // 0x10000 + 2))
        reply = await client.reply()
        assert (reply.status, json.loads(reply.body)["code"]) == (400, "body_too_large")
        assert collector.in_flight_bytes == 0


async def test_what_cannot_be_kept_now_is_put_off(server: Server, log: RecordingLog) -> None:
    log.failure = Unavailable("the disk is full", after=3)
    async with server.running() as port, connected(port) as client:
        client.send(post("/v1/t", single("m1")))
        reply = await client.reply()
        assert (reply.status, reply.headers["retry-after"]) == (503, "3")
        log.failure = None
        client.send(post("/v1/t", single("m1")))
        assert await client.status() == 200


@pytest.mark.parametrize("headers", [(), ("Authorization: Basic d2s6",)])
async def test_a_source_that_sends_too_much_is_told_when_to_try_again(
    serving: Callable[[Collector], Server], log: RecordingLog, headers: tuple[str, ...]
) -> None:
    collector = create_collector(log=log, sources={"wk": "web"}, policies={"web": Policy(events_per_second=0.2)})
    async with serving(collector).running() as port:
        statuses, replies = [], []
        for _ in range(3):
            async with connected(port) as client:
                client.send(post("/v1/b", BATCH, *headers))
                replies.append(await client.reply())
    statuses = [reply.status for reply in replies]
    assert (statuses, len(log.events), collector.in_flight_bytes) == ([200, 429, 429], 3, 0)
    assert json.loads(replies[1].body)["code"] == "too_many_requests"
    assert 1 <= int(replies[1].headers["retry-after"]) <= 300
    assert replies[1].headers["x-ratelimit-reset"] == replies[1].headers["retry-after"]


@pytest.mark.parametrize("headers", [(), ("Authorization: Basic d2s6",)])
async def test_a_source_takes_events_of_its_own_pages_only(
    serving: Callable[[Collector], Server], log: RecordingLog, headers: tuple[str, ...]
) -> None:
    origins = frozenset({"https://shop.example"})
    collector = create_collector(log=log, sources={"wk": "web"}, policies={"web": Policy(origins=origins)})
    told = []
    async with serving(collector).running() as port:
        for origin in ("https://shop.example", "https://SHOP.example", "https://elsewhere.example", None):
            async with connected(port) as client:
                page = (f"Origin: {origin}",) if origin else ()
                client.send(post("/v1/b", BATCH, *headers, *page))
                reply = await client.reply()
                told.append((reply.status, json.loads(reply.body).get("code")))
    assert told == [(200, None), (200, None), (400, "origin_not_allowed"), (200, None)]
    assert len(log.events) == 9


async def test_while_the_log_is_stuck_requests_are_put_off_at_once_and_taken_again_afterwards(
    server: Server, log: RecordingLog, collector: Collector
) -> None:
    log.gate.clear()
    async with server.running() as port, connected(port) as first, connected(port) as second:
        first.send(post("/v1/t", single("m1")))
        assert (await first.reply()).status == 503  # after its time
        appends = log.appends
        second.send(post("/v1/t", single("m2")))
        reply = await second.reply()
        assert (reply.status, reply.headers["retry-after"], log.appends) == (503, "5", appends)
        log.gate.set()
        while collector.in_flight_bytes:
            await asyncio.sleep(0)
    following = Server(collector, server.config.http)
    async with following.running() as port, connected(port) as client:
        client.send(post("/v1/t", single("m3")))
        assert await client.status() == 200
    assert [event.message_id for event in log.events] == ["m1", "m3"]


async def test_requests_in_flight_are_answered_when_the_server_shuts_down(server: Server, log: RecordingLog) -> None:
    log.gate.clear()
    async with server.running() as port, connected(port) as client:
        client.send(post("/v1/b", BATCH))
        await log.reached.wait()
        server.leave()
        await asyncio.sleep(0.15)  # uvicorn looks for the wish to exit every tenth of a second
        log.gate.set()
        reply = await client.reply()
        assert reply.status == 200
        assert await client.is_closed()
    assert len(log.events) == 3


async def test_a_client_that_hangs_up_after_its_request_has_its_events_kept(server: Server, log: RecordingLog) -> None:
    log.gate.clear()
    async with server.running() as port, connected(port) as client:
        client.send(post("/v1/b", BATCH))
        await log.reached.wait()
        await client.close()
        log.gate.set()
    assert len(log.events) == 3


async def test_a_client_that_leaves_within_its_body_leaves_nothing(
    server: Server, log: RecordingLog, collector: Collector
) -> None:
    async with server.running() as port, connected(port) as client:
        client.send(head("/v1/b", "Content-Length: 1000"), b"{")
        while not collector.in_flight_bytes:
            await asyncio.sleep(0)
        client.abort()
        while collector.in_flight_bytes:
            await asyncio.sleep(0)
    assert (log.appends, collector.counts.disconnected) == (0, 1)
