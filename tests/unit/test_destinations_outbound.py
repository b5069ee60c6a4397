"""What an HTTP answer means, and what a failed exchange is called."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from ipaddress import ip_network

import pytest

from destinations.contract import DELIVERED, Outcome, Rejected, Retry
from destinations.guard import Outbound
from destinations.http.client import MAX_BODY_BYTES, Client, session
from destinations.http.dial import Address, Dialer
from destinations.outbound import MAX_RETRY_AFTER, post, verdict, wait_of
from schemas.errors import CredentialsRejected

HOME = Outbound(allow=(ip_network("127.0.0.0/8"),))
RETRIED = [408, 423, 429, 500, *range(502, 600)]
REJECTED = [300, 301, 302, 307, 308, 400, 402, *range(404, 408), *range(409, 423), 424, 428, 431, 451, 499, 501]


@pytest.mark.parametrize("status", [200, 201, 202, 204, 207, 299])
def test_2xx_is_delivered(status: int) -> None:
    assert verdict(status, None, 0.0) == DELIVERED


@pytest.mark.parametrize("status", RETRIED)
def test_what_may_pass_is_retried(status: int) -> None:
    assert verdict(status, None, 0.0) == Retry(f"http {status}")


@pytest.mark.parametrize("status", REJECTED)
def test_what_no_retry_can_help_is_rejected_with_its_status(status: int) -> None:
    assert verdict(status, None, 0.0) == Rejected(f"http {status}")


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_are_for_the_operator(status: int) -> None:
    with pytest.raises(CredentialsRejected, match=f"http {status}"):
        verdict(status, None, 0.0)


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        (None, None),
        ("", None),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("86400", MAX_RETRY_AFTER),
        ("Thu, 01 Jan 1970 00:00:30 GMT", 20.0),
        ("Thu, 01 Jan 1970 00:00:30 -0000", 20.0),
        ("Thu, 01 Jan 1970 00:00:05 GMT", 0.0),
        ("Fri, 01 Jan 2100 00:00:00 GMT", MAX_RETRY_AFTER),
        ("soon", None),
        ("-3", None),
        ("1.5", None),
        ("٣", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_at_most_an_hour(header: str | None, wait: float | None) -> None:
    assert wait_of(header, now=10.0) == wait
    assert verdict(429, header, now=10.0) == Retry("http 429", wait)


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def exchange(answer: Answer, timeout: float = 5.0) -> Outcome:
    """One post to a bare TCP server that reads the request's head and then does as told."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await answer(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, session(HOME) as http:
        return await post(http, f"http://127.0.0.1:{port}/", b"[]", {}, timeout=timeout, now=0.0)


async def test_a_connection_that_drops_before_the_answer_is_retried() -> None:
    async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        return

    assert await exchange(drop) == Retry("connection lost")


async def test_silence_is_a_timeout() -> None:
    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    assert await exchange(silence, timeout=0.05) == Retry("timeout")


async def test_gibberish_is_retried() -> None:
    async def gibberish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 smtp.example.com\r\n\r\n")
        await writer.drain()

    assert await exchange(gibberish) == Retry("http exchange failed")


async def test_an_answer_without_end_is_not_read_on() -> None:
    """The status stands; the body is cut off instead of filling memory or outlasting the timeout."""
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                writer.write(b"x" * MAX_BODY_BYTES)
                await writer.drain()
                sent += MAX_BODY_BYTES
        except ConnectionError:
            return

    assert await exchange(flood, timeout=2.0) == DELIVERED
    assert sent < 512 * MAX_BODY_BYTES  # what the sockets' buffers took


async def test_an_answer_that_breaks_off_keeps_its_status() -> None:
    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nfew")
        await writer.drain()

    assert await exchange(broken) == DELIVERED


async def test_a_closed_port_is_a_refused_connection() -> None:
    with socket.socket() as taken:  # bound, not listening: nobody else can take the port meanwhile
        taken.bind(("127.0.0.1", 0))
        async with session(HOME) as http:
            url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
            assert await post(http, url, b"[]", {}, timeout=5, now=0.0) == Retry("connection refused")


def nowhere(host: str, port: int) -> list[Address]:
    raise OSError("Name or service not known")


async def test_a_name_that_does_not_resolve_is_named_so() -> None:
    async with Client(Dialer(HOME, resolve=nowhere)) as http:
        outcome = await post(http, "http://nowhere.invalid/", b"[]", {}, timeout=5, now=0.0)
    assert outcome == Retry("host not found")


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        ("http://127.0.0.1:1/\r\nX: y", {}),
        ("ftp://127.0.0.1:1/", {}),
        ("https://", {}),
        ("http://127.0.0.1:port/", {}),
        ("http://127.0.0.1:1/", {"X-Key": "geheim\r\nX: y"}),
    ],
)
async def test_what_cannot_be_sent_says_so_without_its_secrets(url: str, headers: dict[str, str]) -> None:
    async with session(HOME) as http:
        outcome = await post(http, url, b"[]", headers, timeout=5, now=0.0)
    assert isinstance(outcome, Retry)
    assert outcome.reason.startswith("request cannot be sent: ")
    assert "geheim" not in outcome.reason
