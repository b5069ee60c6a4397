"""What comes back, from services that answer well, oddly and with malice."""

from itertools import combinations

import pytest

from destinations.http.client import session
from destinations.http.connection import MAX_HEAD_BYTES, Connection
from destinations.http.failure import LOST, MALFORMED
from tests.unit.http_client.service import HOME, LONG, OK, Peer, Service, Wire, answering, get, serving, told

ANSWERS = {
    "a length": (b"HTTP/1.1 201 Made\r\nContent-Length: 3\r\n\r\nyes", (201, b"yes")),
    "chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nye\r\n1\r\ns\r\n0\r\n\r\n",
        (200, b"yes"),
    ),
    "chunks and trailers": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nyes\r\n0\r\nX-Sum: 1\r\n\r\n",
        (200, b"yes"),
    ),
    "nothing": (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"")),
    "not modified, with the length of what is not sent": (b"HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n", (304, b"")),
    "an error": (b"HTTP/1.1 503 Busy\r\nRetry-After: 3\r\nContent-Length: 0\r\n\r\n", (503, b"")),
    "no words": (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", (200, b"")),
    "HTTP/1.0 that keeps the connection": (
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nyes",
        (200, b"yes"),
    ),
    "interim answers": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK,
        (200, b"ok"),
    ),
}


@pytest.mark.parametrize(("sent", "seen"), ANSWERS.values(), ids=ANSWERS)
async def test_an_answer_is_understood_and_its_connection_serves_again(sent: bytes, seen: tuple[int, bytes]) -> None:
    async with serving(answering(sent)) as service, session(HOME) as http:
        answers = [await get(http, service) for _ in range(3)]
    assert [(one.status, one.body, one.whole) for one in answers] == [(*seen, True)] * 3
    assert service.connections == 1


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n", b"HTTP/1.0 200 OK\r\n"]
)
async def test_an_answer_that_ends_with_its_connection_is_whole(head: bytes) -> None:
    async with serving(answering(head + b"\r\nyes", close=True)) as service, session(HOME) as http:
        answers = [await get(http, service) for _ in range(2)]
    assert [(one.status, one.body, one.whole) for one in answers] == [(200, b"yes", True)] * 2
    assert service.connections == 2


async def test_names_of_headers_are_in_lower_case_and_values_of_one_name_in_a_row() -> None:
    sent = b"HTTP/1.1 200 OK\r\nX-One: a\r\nRETRY-AFTER: 7\r\nx-one: \xfc\r\nContent-Length: 0\r\n\r\n"
    async with serving(answering(sent)) as service, session(HOME) as http:
        answer = await get(http, service)
    assert answer.headers == {"x-one": "a, ü", "retry-after": "7", "content-length": "0"}


async def test_the_answer_to_head_has_no_body_whatever_it_says() -> None:
    sent = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    async with serving(answering(sent)) as service, session(HOME) as http:
        answers = [await http.request("HEAD", service.url, timeout=LONG) for _ in range(2)]
    assert [(one.status, one.body, one.whole) for one in answers] == [(200, b"", True)] * 2
    assert service.connections == 2


async def test_a_service_that_says_it_will_close_is_not_asked_again_on_that_connection() -> None:
    sent = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
    async with serving(answering(sent)) as service, session(HOME) as http:
        assert [(await get(http, service)).body for _ in range(2)] == [b"ok"] * 2
    assert [number for number, _ in service.requests] == [1, 2]


async def test_an_answer_is_the_same_however_it_is_cut_into_reads() -> None:
    whole = b"HTTP/1.1 103 Early\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\nT: u\r\n\r\n"
    seen = set()
    for first, second in combinations(range(1, len(whole)), 2):
        connection = Connection(lambda _: None)
        connection.connection_made(Wire())
        future = connection.exchange(b"", first=LONG * 1e6, total=LONG * 1e6, most=100, head_only=False)
        for part in (whole[:first], whole[first:second], whole[second:]):
            connection.data_received(part)
        answer = future.result()
        seen.add((answer.status, tuple(answer.raw), answer.body, answer.whole, connection.reusable))
        connection.connection_lost(None)
    assert seen == {(200, ((b"Transfer-Encoding", b"chunked"), (b"X", b"y")), b"abc", True, True)}


async def test_an_answer_may_come_byte_by_byte() -> None:
    async def drip(peer: Peer, service: Service) -> None:
        await peer.request()
        await peer.say(*(bytes([one]) for one in OK))
        await peer.hung_up()

    async with serving(drip) as service, session(HOME) as http:
        assert (await get(http, service)).body == b"ok"


GARBAGE = {
    "another protocol": b"220 smtp.example.com ESMTP\r\n",
    "another version": b"HTTP/2 200\r\n\r\n",
    "another kind of data": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a status of two digits": b"HTTP/1.1 99 What\r\n\r\n",
    "a status of four digits": b"HTTP/1.1 2000 What\r\n\r\n",
    "line feeds alone": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "a length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a length below nothing": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    "a length beyond counting": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    "a space before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
    "a header that goes on in the next line": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "a zero in a header": b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
    "a change of protocol": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nyes",
    "a change of protocol to nothing": b"HTTP/1.1 101 Switching\r\n\r\n" + OK,
    "a head without end": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 4 * MAX_HEAD_BYTES,
    "headers without end": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * MAX_HEAD_BYTES,
    "interim answers without end": b"HTTP/1.1 100 Continue\r\n\r\n" * MAX_HEAD_BYTES,
}


@pytest.mark.parametrize("sent", GARBAGE.values(), ids=GARBAGE)
async def test_what_is_no_answer_is_a_failure_and_ends_the_connection(sent: bytes) -> None:
    async def script(peer: Peer, service: Service) -> None:
        await peer.request()
        await peer.say(sent)
        await peer.hung_up()

    async with serving(script) as service, session(HOME) as http:
        assert await told(http, service) == MALFORMED
        assert await service.ended.get() == 1


HALVES = {
    "a body that breaks off": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nyes", b"yes"),
    "chunks that break off": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nyes\r\n", b"yes"),
    "chunks that are none": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nyes\r\nzz\r\n", b"yes"),
    "a longer body than wanted": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nyesno", b"yesn"),
    "a body without end": (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1_000_000, b"xxxx"),
    "a trailer without end": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nyes\r\n0\r\nX: " + b"y" * 4 * MAX_HEAD_BYTES,
        b"yes",
    ),
    "a chunk's name without end": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nyes\r\n3;x=" + b"y" * 4 * MAX_HEAD_BYTES,
        b"yes",
    ),
}


@pytest.mark.parametrize(("sent", "kept"), HALVES.values(), ids=HALVES)
async def test_a_status_stands_though_its_body_does_not_come_whole(sent: bytes, kept: bytes) -> None:
    async with serving(answering(sent, close=True)) as service, session(HOME) as http:
        answers = [await get(http, service, most=4) for _ in range(2)]
    assert [(one.status, one.body, one.whole) for one in answers] == [(200, kept, False)] * 2
    assert service.connections == 2


@pytest.mark.parametrize(
    "sent", [b"", b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 100 Continue\r\n\r\n"]
)
@pytest.mark.parametrize("how", ["closed", "reset"])
async def test_a_connection_that_ends_before_the_status_is_lost(sent: bytes, how: str) -> None:
    """And the request is not repeated: the service may have it."""

    async def script(peer: Peer, service: Service) -> None:
        service.requests.append((peer.number, await peer.request()))
        await peer.say(sent)
        if how == "reset":
            peer.reset()

    async with serving(script) as service, session(HOME) as http:
        assert await told(http, service) == LOST
    assert len(service.requests) == 1
