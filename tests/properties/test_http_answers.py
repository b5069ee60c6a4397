"""Whatever bytes a service sends, cut however: a request ends, what is kept is bounded, and nothing of ours breaks."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from destinations.http.answer import Answer
from destinations.http.connection import Connection
from destinations.http.failure import LOST, MALFORMED, ExchangeFailed
from tests.unit.http_client.service import OK, Wire

MOST = 2
FAR = 1e9  # beyond the loop's clock
PARTS = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.0 503 Busy\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/1.1 204 None\r\n\r\n",
        b"Content-Length: 3\r\n",
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"Upgrade: x\r\nConnection: upgrade\r\n",
        b"X:\r\n",
        b"\r\n",
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"0\r\nX: y\r\n\r\n",
        b"9;x=y\r\n",
        b"abcdefgh",
        OK,
    ]
)
READS = st.lists(st.lists(PARTS | st.binary(max_size=4), max_size=6).map(b"".join), max_size=6)


@given(reads=READS, head_only=st.booleans())
async def test_any_bytes_end_a_request(reads: list[bytes], head_only: bool) -> None:
    connection, wire = Connection(lambda _: None), Wire()
    connection.connection_made(wire)
    future = connection.exchange(b"", first=FAR, total=FAR, most=MOST, head_only=head_only)
    for read in reads:
        if wire.closed:
            break
        connection.data_received(read)
    answered = future.done()
    reusable = connection.reusable
    connection.connection_lost(None)
    error = future.exception()
    if error is not None:
        assert isinstance(error, ExchangeFailed)
        assert error.reason in (LOST, MALFORMED)
        assert not reusable
        return
    answer = future.result()
    assert isinstance(answer, Answer)
    assert 200 <= answer.status <= 999
    assert len(answer.body) <= MOST
    assert not reusable or (answered and answer.whole)
    assert not head_only or (answer.whole and answer.body == b"")


@given(reads=READS)
async def test_what_comes_unasked_spoils_a_connection_or_is_empty_lines(reads: list[bytes]) -> None:
    connection = Connection(lambda _: None)
    connection.connection_made(Wire())
    for read in reads:
        connection.data_received(read)
    future = connection.exchange(b"", first=FAR, total=FAR, most=MOST, head_only=False)
    connection.data_received(OK)
    await asyncio.wait([future])
    assert (future.exception() is None) == (b"".join(reads).strip(b"\r\n") == b"")
    connection.connection_lost(None)
