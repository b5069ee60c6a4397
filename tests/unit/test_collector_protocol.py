"""The short cut below ASGI: what it adds to the contract of `tests/contracts/test_http.py`, and what it leans on."""

import asyncio
import inspect
import itertools
import json
import socket
from collections.abc import AsyncIterator

import pytest
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from collector.app import Collector, Message, Receive, Scope, Send, create_collector
from collector.headers import Headers
from collector.known_heads import MOST, KnownHeads
from collector.protocol import Limits, protocol_class
from collector.routes import Route
from tests.contracts.test_http import BATCH, SUCCESS, single
from tests.http import Client, Server, chunked, connected, head, post
from tests.unit.test_collector import RecordingLog

FAST = Limits(head_seconds=0.3, body_seconds=0.3, request_seconds=1.0, idle_seconds=0.3, linger_seconds=0.3)


@pytest.fixture
async def log() -> RecordingLog:
    return RecordingLog()


@pytest.fixture
def collector(log: RecordingLog) -> Collector:
    return create_collector(log=log, sources={"wk": "web"})


@pytest.fixture
async def port(collector: Collector) -> AsyncIterator[int]:
    async with Server(collector, protocol_class(collector.intake)).running() as port:
        yield port


async def code(client: Client) -> tuple[int, str]:
    reply = await client.reply()
    return reply.status, json.loads(reply.body)["code"]


# ── Broken HTTP ───────────────────────────────────────────────────────────────────────────────────────────────────

BODY = single("m1")
LENGTH = f"Content-Length: {len(BODY)}"
BROKEN = {
    "a length and chunks": head("/v1/t", LENGTH, "Transfer-Encoding: chunked") + chunked(BODY),
    "chunks and a length": head("/v1/t", "Transfer-Encoding: chunked", LENGTH) + chunked(BODY),
    "two lengths": head("/v1/t", LENGTH, LENGTH) + BODY,
    "two lengths in one": head("/v1/t", f"{LENGTH}, {len(BODY)}") + BODY,
    "a length with a sign": head("/v1/t", f"Content-Length: +{len(BODY)}") + BODY,
    "a negative length": head("/v1/t", "Content-Length: -1") + BODY,
    "a length beyond all numbers": head("/v1/t", f"Content-Length: {'9' * 40}") + BODY,
    "a space before the colon": head("/v1/t", f"Content-Length : {len(BODY)}") + BODY,
    "no chunk size": head("/v1/t", "Transfer-Encoding: chunked") + b"\r\n" + chunked(BODY),
    "a chunk size that is no number": head("/v1/t", "Transfer-Encoding: chunked") + b"zz\r\n{}\r\n0\r\n\r\n",
    "a chunk size with 0x": head("/v1/t", "Transfer-Encoding: chunked") + b"0x2\r\n{}\r\n0\r\n\r\n",
    "a chunk size that overflows": head("/v1/t", "Transfer-Encoding: chunked") + b"f" * 17 + b"\r\n{}\r\n0\r\n\r\n",
    "a chunk longer than it says": head("/v1/t", "Transfer-Encoding: chunked") + b"1\r\n{}\r\n0\r\n\r\n",
    "a chunk size ended by a bare LF": head("/v1/t", "Transfer-Encoding: chunked") + b"2\n{}\r\n0\r\n\r\n",
    "a folded header": head("/v1/t", "X-Folded: a\r\n b", LENGTH) + BODY,
    "a folded header of those that vary": head("/v1/t", "User-Agent: a\r\n b", LENGTH) + BODY,
    "NUL in a header of those that vary": head("/v1/t", "User-Agent: a\0b", LENGTH) + BODY,
    "a bare CR in a header of those that vary": head("/v1/t", "X-Forwarded-For: 1.2.3.4\rX: b", LENGTH) + BODY,
    "a folded transfer encoding": head("/v1/t", "Transfer-Encoding:\r\n chunked") + chunked(BODY),
    "an unknown transfer encoding": head("/v1/t", "Transfer-Encoding: xchunked") + chunked(BODY),
    "chunked below another encoding": head("/v1/t", "Transfer-Encoding: gzip, chunked") + chunked(BODY),
    "chunked above another encoding": head("/v1/t", "Transfer-Encoding: chunked, identity") + chunked(BODY),
    "chunked twice": head("/v1/t", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked") + chunked(BODY),
    "chunks in HTTP/1.0": head("/v1/t", "Transfer-Encoding: chunked", version="1.0") + chunked(BODY),
    "a length in the trailer": head("/v1/t", "Transfer-Encoding: chunked") + b"0\r\nContent-Length: 5\r\n\r\n",
    "no host": head("/v1/t", LENGTH, host=False) + BODY,
    "two hosts": head("/v1/t", "Host: other.example", LENGTH) + BODY,
    "lines ended by a bare LF": post("/v1/t", BODY).replace(b"\r\n", b"\n"),
    "a bare CR in a header": head("/v1/t", "X: a\rY: b", LENGTH) + BODY,
    "NUL in a header": head("/v1/t", "X: a\0b", LENGTH) + BODY,
    "a space in the path": head("/v1 /t", LENGTH) + BODY,
    "HTTP/0.9": b"POST /v1/t\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/3": head("/v1/t", LENGTH, version="3.0") + BODY,
    "an unknown method": head("/v1/t", LENGTH, method="BREW-IT") + BODY,
    "TLS": bytes.fromhex("16030100c0010000bc0303") + b"\0" * 100,
    "noise": bytes(range(256)),
    "a head that is too large": head("/v1/t", f"X: {'x' * 40_000}", LENGTH) + BODY,
    "a URL that is too long": post(f"/v1/t?{'x' * 40_000}", BODY),
    "a head of too many lines": head("/v1/t", *[f"X-{n}: y" for n in range(4_000)], LENGTH) + BODY,
}


@pytest.mark.parametrize("request_bytes", BROKEN.values(), ids=BROKEN)
async def test_broken_http_is_answered_and_the_connection_closed(
    port: int, log: RecordingLog, request_bytes: bytes
) -> None:
    """A valid request behind it, which another reader might see as the body's, is not taken."""
    async with connected(port) as client:
        client.send(post("/v1/t", single("before")) + request_bytes + post("/v1/t", single("smuggled")))
        assert await client.status() == 200
        assert await code(client) == (400, "bad_http")
        assert await client.is_closed()
    assert [event.message_id for event in log.events] == ["before"]


@pytest.mark.parametrize("request_bytes", BROKEN.values(), ids=BROKEN)
async def test_broken_http_in_pieces_is_answered_and_the_connection_closed(port: int, request_bytes: bytes) -> None:
    async with connected(port) as client:
        for at in range(0, len(request_bytes), 997):
            client.send(request_bytes[at : at + 997])
            await asyncio.sleep(0.001)
        assert await code(client) == (400, "bad_http")
        assert await client.is_closed()


async def test_broken_http_on_a_path_of_the_application_is_answered_too(port: int) -> None:
    async with connected(port) as client:
        client.send(head("/v1/m", "Transfer-Encoding: chunked") + b"2\r\n{}\r\nzz\r\n")
        assert await code(client) == (400, "bad_http")
        assert await client.is_closed()


async def test_a_client_that_sends_a_body_too_large_to_its_end_still_reads_the_answer(port: int) -> None:
    async with connected(port) as client:
        client.send(head("/v1/b", "Content-Length: 5000000"), b" " * 5_000_000)
        assert await code(client) == (400, "body_too_large")
        assert await client.is_closed()


# ── Slow clients ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "begun",
    [
        b"POST /v1/t HT",
        head("/v1/t", LENGTH)[:-2],
        head("/v1/t", LENGTH),
        head("/v1/t", LENGTH) + BODY[:20],
        head("/v1/t", "Transfer-Encoding: chunked") + b"5\r\n{",
        head("/v1/m", LENGTH) + BODY[:20],
    ],
)
async def test_a_request_that_does_not_go_on_is_ended(collector: Collector, begun: bytes) -> None:
    server = Server(collector, protocol_class(collector.intake, limits=FAST))
    async with server.running() as port, connected(port) as client:
        client.send(begun)
        assert await client.status() == 503
        assert await client.is_closed()
    assert collector.in_flight_bytes == 0


async def test_a_request_that_trickles_is_ended_all_the_same(collector: Collector) -> None:
    server = Server(collector, protocol_class(collector.intake, limits=FAST))
    async with server.running() as port, connected(port) as client:
        client.send(head("/v1/t", LENGTH))
        waiting = asyncio.ensure_future(client.status())
        while not waiting.done():
            client.send(b" ")
            await asyncio.sleep(0.05)
        assert await waiting == 503


async def test_a_connection_without_requests_is_closed_in_the_end(collector: Collector) -> None:
    server = Server(collector, protocol_class(collector.intake, limits=FAST))
    async with server.running() as port, connected(port) as fresh, connected(port) as used:
        used.send(post("/v1/t", single("m1")))
        assert await used.status() == 200
        assert await fresh.is_closed()
        assert await used.is_closed()


async def test_a_client_that_waits_for_the_log_is_not_taken_for_a_slow_one(
    collector: Collector, log: RecordingLog
) -> None:
    log.gate.clear()
    server = Server(collector, protocol_class(collector.intake, limits=FAST))
    async with server.running() as port, connected(port) as client:
        client.send(post("/v1/t", single("m1")))
        await asyncio.sleep(1.5)  # past every limit and a round of the sweeper
        log.gate.set()
        assert await client.status() == 200


async def test_a_client_that_never_reads_is_not_read_from(port: int, log: RecordingLog) -> None:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.setblocking(False)
    _, writer = await asyncio.open_connection(sock=client, limit=1)
    request = post("/v1/t", single("m1"))
    for _ in range(2_000):
        writer.write(request * 200)
        try:
            await asyncio.wait_for(writer.drain(), 0.2)
        except TimeoutError:
            break
    else:
        pytest.fail("400,000 requests were read without one answer being taken")
    writer.transport.abort()


# ── Order, half-closed connections, the end ───────────────────────────────────────────────────────────────────────


async def test_answers_wait_for_those_before_them(log: RecordingLog) -> None:
    """The application is slow; what comes behind it is in the log meanwhile, and is answered in its turn."""
    go_on = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        start: Message = {"type": "http.response.start", "status": 204, "headers": [(b"content-length", b"0")]}
        await send(start)
        await send({"type": "http.response.body", "body": b""})

    collector = create_collector(log=log, sources={"wk": "web"}, fallback=slow)
    async with Server(collector, protocol_class(collector.intake)).running() as port, connected(port) as client:
        client.send(post("/v1/t", single("m1")), head("/slow", method="GET"), post("/v1/t", single("m2")))
        assert await client.status() == 200
        while len(log.events) < 2:
            await asyncio.sleep(0)
        go_on.set()
        assert [await client.status(), await client.status()] == [204, 200]


async def test_a_client_that_has_said_its_last_word_is_answered(port: int, log: RecordingLog) -> None:
    log.gate.clear()
    async with connected(port) as client:
        client.send(post("/v1/t", single("m1")), post("/v1/t", single("m2")))
        client.say_end()
        await log.reached.wait()
        log.gate.set()
        assert [await client.status(), await client.status()] == [200, 200]
        assert await client.is_closed()


async def test_many_requests_at_once_share_appends(port: int, log: RecordingLog) -> None:
    log.gate.clear()
    async with connected(port) as client:
        client.send(*[post("/v1/t", single(f"m{n}")) for n in range(50)])
        await log.reached.wait()
        log.gate.set()
        assert [(await client.reply()).body for _ in range(50)] == [SUCCESS] * 50
    assert len(log.events) == 50
    assert log.appends < 10


async def test_a_request_that_meets_the_shutdown_is_answered_as_the_last_one(
    collector: Collector, log: RecordingLog
) -> None:
    server = Server(collector, protocol_class(collector.intake))
    async with server.running() as port, connected(port) as client:
        client.send(post("/v1/t", single("m1")))
        assert await client.status() == 200
        server.leave()
        while server.servers[0].is_serving():
            await asyncio.sleep(0.005)
        client.send(post("/v1/t", single("m2")))
        reply = await client.reply()
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert await client.is_closed()
    assert [event.message_id for event in log.events] == ["m1", "m2"]


async def test_a_body_under_way_when_the_server_shuts_down_is_still_taken(
    collector: Collector, log: RecordingLog
) -> None:
    server = Server(collector, protocol_class(collector.intake))
    async with server.running() as port, connected(port) as client:
        client.send(head("/v1/b", f"Content-Length: {len(BATCH)}") + BATCH[:10])
        while not collector.in_flight_bytes:
            await asyncio.sleep(0)
        server.leave()
        await asyncio.sleep(0.15)
        client.send(BATCH[10:])
        assert await client.status() == 200
    assert len(log.events) == 3


# ── uvicorn ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_internals_of_uvicorn_that_the_short_cut_leans_on_are_as_they_were() -> None:
    """When this fails, read `collector.protocol` beside the new uvicorn before changing it."""
    assert list(inspect.signature(HttpToolsProtocol.__init__).parameters) == [
        "self",
        "config",
        "server_state",
        "app_state",
        "_loop",
    ]
    assert list(inspect.signature(RequestResponseCycle.__init__).parameters) == [
        "self",
        "scope",
        "transport",
        "flow",
        "logger",
        "access_logger",
        "access_log",
        "default_headers",
        "message_event",
        "expect_100_continue",
        "keep_alive",
        "on_response",
    ]
    assert {name for name, value in vars(HttpToolsProtocol).items() if inspect.isfunction(value)} == {
        "__init__",
        "_get_upgrade",
        "_should_upgrade",
        "_should_upgrade_to_ws",
        "_start_asgi_task",
        "_unset_keepalive_if_required",
        "_unsupported_upgrade_warning",
        "connection_lost",
        "connection_made",
        "data_received",
        "eof_received",
        "handle_websocket_upgrade",
        "on_body",
        "on_header",
        "on_headers_complete",
        "on_message_begin",
        "on_message_complete",
        "on_response_complete",
        "on_url",
        "pause_writing",
        "resume_writing",
        "send_400_response",
        "shutdown",
        "timeout_keep_alive_handler",
    }
    complete = inspect.getsource(HttpToolsProtocol.on_headers_complete)
    assert "existing_cycle is None" in complete
    assert "self._start_asgi_task(self.cycle, app)" in complete
    assert "on_response=self.on_response_complete" in complete
    assert STATUS_LINE[200] == b"HTTP/1.1 200 OK\r\n"


# ── Heads that are known ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def known(collector: Collector) -> AsyncIterator[tuple[int, KnownHeads]]:
    """A server, and the heads it has come to know."""
    protocol = protocol_class(collector.intake)
    async with Server(collector, protocol).running() as port:
        yield port, protocol.known_heads


async def statuses(port: int, *requests: bytes) -> list[int]:
    """Each sent whole, after the answer to the one before."""
    async with connected(port) as client:
        found = []
        for one in requests:
            client.send(one)
            found.append((await client.reply()).status)
        return found


async def test_a_head_that_comes_again_is_taken_as_it_was_the_first_time(
    known: tuple[int, KnownHeads], log: RecordingLog
) -> None:
    port, heads = known
    numbered = [post("/v1/t", single(f"m{n}")) for n in range(5)]
    assert await statuses(port, *numbered) == [200] * 5
    assert len(heads) == 1
    assert [event.message_id for event in log.events] == [f"m{n}" for n in range(5)]


async def test_a_known_head_may_have_bodies_of_any_length(known: tuple[int, KnownHeads], log: RecordingLog) -> None:
    port, heads = known
    lengths = [post("/v1/t", single(f"m{n}", properties={"p": "x" * n})) for n in (0, 7, 70, 700, 7_000)]
    assert await statuses(port, *lengths, post("/v1/t", b""), post("/v1/t", b"{")) == [200] * 5 + [400] * 2
    assert (len(heads), len(log.events)) == (1, 5)


async def test_bodies_of_known_heads_may_be_cut_anywhere_and_run_into_each_other(
    known: tuple[int, KnownHeads], log: RecordingLog
) -> None:
    """As a stream in pieces of every size; what lies between them is for the parser again."""
    port, heads = known
    ids = [f"m{n}" for n in range(40)]
    requests = [post("/v1/t", single(one, properties={"p": "x" * (17 * n)})) for n, one in enumerate(ids)]
    assert await statuses(port, requests[0]) == [200]
    stream = b"".join(requests)
    async with connected(port) as client:
        at = 0
        for size in itertools.cycle((1, 300, 41, 977, 5_000, 7)):
            client.send(stream[at : at + size])
            await asyncio.sleep(0.001)
            at += size
            if at >= len(stream):
                break
        assert [await client.status() for _ in requests] == [200] * 40
    assert [event.message_id for event in log.events] == ["m0", *ids]
    assert len(heads) == 1


async def test_a_number_that_is_not_the_bodys_does_not_become_known(known: tuple[int, KnownHeads]) -> None:
    port, heads = known
    length = f"Content-Length: {len(BODY)}"
    for other in ("X-Length: 5", "X-Content-Length: 5", "Content-Length : 5"):
        request = head("/v1/t", other, length) + BODY
        async with connected(port) as client:
            client.send(request)
            await client.reply()
    assert len(heads) == 0


async def test_who_hangs_up_within_the_body_of_a_known_head_leaves_nothing(
    known: tuple[int, KnownHeads], collector: Collector, log: RecordingLog
) -> None:
    port, _ = known
    request = post("/v1/t", BODY)
    assert await statuses(port, request) == [200]
    async with connected(port) as client:
        client.send(request[:-5])
    while not collector.counts.disconnected:
        await asyncio.sleep(0.01)
    assert (len(log.events), collector.in_flight_bytes) == (1, 0)


async def test_who_falls_silent_within_the_body_of_a_known_head_is_told_to_send_again(collector: Collector) -> None:
    request = post("/v1/t", BODY)
    async with Server(collector, protocol_class(collector.intake, limits=FAST)).running() as port:
        assert await statuses(port, request) == [200]
        async with connected(port) as client:
            client.send(request[:-5])
            assert await client.status() == 503
            assert await client.is_closed()
    assert collector.in_flight_bytes == 0


async def test_a_body_of_a_known_head_that_says_it_is_too_large_is_answered_before_it_is_sent(
    known: tuple[int, KnownHeads],
) -> None:
    port, _ = known
    assert await statuses(port, post("/v1/t", BODY)) == [200]
    async with connected(port) as client:
        client.send(head("/v1/t", "Content-Length: 9000000") + b"{")
        assert await code(client) == (400, "body_too_large")
        assert await client.is_closed()


async def test_a_known_head_says_nothing_of_another_body(known: tuple[int, KnownHeads]) -> None:
    port, heads = known
    request = post("/v1/t", single("m1"))
    async with connected(port) as client:
        client.send(request)
        first = (await client.reply()).status
        client.send(request + request)  # two at once
        both = [(await client.reply()).status, (await client.reply()).status]
        client.send(request[:-5])
        client.send(request[-5:])
        parted = (await client.reply()).status
    assert (first, both, parted, len(heads)) == (200, [200, 200], 200, 1)
    assert await statuses(port, request[:-1] + b"!") == [400]


@pytest.mark.parametrize("request_bytes", BROKEN.values(), ids=BROKEN)
async def test_nothing_broken_becomes_known(known: tuple[int, KnownHeads], request_bytes: bytes) -> None:
    port, heads = known
    good = post("/v1/t", BODY)
    async with connected(port) as client:
        client.send(good)
        assert (await client.reply()).status == 200
        client.send(request_bytes)
        assert await code(client) == (400, "bad_http")
        assert await client.is_closed()
    assert (len(heads), len(heads.alike)) == (1, 1)


class Counting(KnownHeads):
    """Counts what the parser had to look at."""

    parsed = 0

    def learn(self, head: bytes, headers: Headers, route: Route) -> None:
        self.parsed += 1
        super().learn(head, headers, route)


async def addresses(heads: KnownHeads, *requests: bytes) -> list[str | None]:
    """What is kept as the caller's address behind a proxy of ours."""
    log = RecordingLog()
    collector = create_collector(log=log, sources={"wk": "web"}, trusted_hops=1)
    protocol = protocol_class(collector.intake, trusted_hops=1)
    protocol.known_heads = heads
    async with Server(collector, protocol).running() as port:
        assert set(await statuses(port, *requests)) == {200}
    return [event.ip for event in log.events]


def behind_a_proxy(number: int) -> bytes:
    return post(
        "/v1/t",
        BODY,
        f"x-forwarded-for: 203.0.113.{number}, 198.51.100.{number}",
        f"X-Request-ID: 0f{number:030x}",
        f"User-Agent: Mozilla/5.0 (X11; rv:{number}) Firefox/{number}",
        f"traceparent: 00-{number:032x}-{number:016x}-01",
    )


async def test_heads_that_differ_in_what_proxies_and_browsers_add_are_alike() -> None:
    heads = Counting()
    assert await addresses(heads, *map(behind_a_proxy, range(20))) == [f"198.51.100.{n}" for n in range(20)]
    assert (heads.parsed, len(heads.alike)) == (1, 1)


async def test_who_came_through_no_proxy_has_no_other_address_than_his_own() -> None:
    through, past = post("/v1/t", BODY, "X-Forwarded-For: 198.51.100.9"), post("/v1/t", BODY)
    assert await addresses(KnownHeads(), through, past, through) == ["198.51.100.9", "127.0.0.1", "198.51.100.9"]


@pytest.mark.parametrize(
    "another",
    [
        ("X-Forwarded-For: 203.0.113.7", "X-FORWARDED-FOR: 198.51.100.9"),
        ("X-Forwarded-For: 203.0.113.7", "X-Forwarded-For:198.51.100.9"),
        ("X-Forwarded-For: 203.0.113.7", "X-Forwarded-For: 198.51.100.9"),
        ("X-Forwarded-For: 198.51.100.9 ",),
        ("X-Forwarded-For:  198.51.100.9",),
        ("User-Agent: X-Forwarded-For: 203.0.113.7", "X-Forwarded-For: 198.51.100.9"),
        ("User-Agent: length: 5", "X-Forwarded-For: 198.51.100.9"),
    ],
)
async def test_an_address_is_found_however_its_field_is_spelled(another: tuple[str, ...]) -> None:
    """Of lines that are not written in the usual way nothing is guessed, nor of a head that is like one with such lines."""

    def requests(browser: str) -> list[bytes]:
        lines = ("X-Forwarded-For: 192.0.2.1",), another
        return [post("/v1/t", BODY, f"User-Agent: {browser}", *one) for one in lines]

    expected = ["192.0.2.1", "198.51.100.9"]
    assert await addresses(KnownHeads(), *requests("a"), *requests("a"), *requests("b")) == expected * 3
    assert await addresses(KnownHeads(), *requests("a")[::-1], *requests("b")[::-1]) == expected[::-1] * 2


async def test_known_heads_are_bounded(known: tuple[int, KnownHeads]) -> None:
    port, heads = known
    async with connected(port) as client:
        for n in range(MOST + 10):
            client.send(head("/v1/t", f"X-Number: {n}", LENGTH) + BODY)
            assert (await client.reply()).status == 200
    assert 0 < len(heads) <= MOST
    assert 0 < len(heads.alike) <= MOST
