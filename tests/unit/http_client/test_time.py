"""Everything has its time."""

import asyncio
from collections.abc import Callable

import pytest

from destinations.http.client import Client, session
from destinations.http.connection import Connection
from destinations.http.dial import Dialer
from destinations.http.failure import TIMEOUT, ExchangeFailed
from destinations.http.request import Origin
from tests.unit.http_client.service import HOME, LONG, OK, Peer, Script, Service, get, serving, silent, told


def slowly(first: bytes, *, again: bytes) -> Script:
    """Says `first`, and `again` until it is hung up on."""

    async def script(peer: Peer, service: Service) -> None:
        await peer.request()
        await peer.say(first)
        gone = asyncio.create_task(peer.hung_up())
        while not gone.done():
            await peer.say(again)
            await asyncio.sleep(0.005)

    return script


async def test_silence_has_its_time_and_ends_the_connection() -> None:
    async with serving(silent) as service, session(HOME) as http:
        assert await told(http, service, timeout=0.5) == TIMEOUT
        assert await service.ended.get() == 1


async def test_the_first_byte_may_have_less_time_than_the_whole() -> None:
    async with serving(silent) as service, Client(Dialer(HOME), first_byte=0.05) as http:
        assert await told(http, service, timeout=LONG) == TIMEOUT


async def test_an_answer_that_has_begun_has_all_the_time() -> None:
    script = slowly(b"HTTP/1.1 200 OK\r\n\r\n", again=b"x")
    async with serving(script) as service, Client(Dialer(HOME), first_byte=0.5) as http:
        answer = await get(http, service, most=30)
    assert (answer.body, answer.whole) == (b"x" * 30, False)


async def test_a_head_in_drips_has_no_more_time_for_it() -> None:
    async with serving(slowly(b"HTTP/1.1 200 OK\r\nX: ", again=b"x")) as service, session(HOME) as http:
        assert await told(http, service, timeout=0.1) == TIMEOUT


async def test_a_body_in_drips_is_cut_off_at_its_time_and_the_status_stands() -> None:
    async with serving(slowly(b"HTTP/1.1 202 OK\r\n\r\n", again=b"x")) as service, session(HOME) as http:
        answer = await get(http, service, timeout=0.5)
    assert (answer.status, answer.whole) == (202, False)
    assert set(answer.body) == {ord("x")}


async def test_each_request_has_its_own_time_on_a_connection_that_is_kept() -> None:
    """A short one after a long one, and the other way round: the timer that is set already must not decide."""
    heard = asyncio.Event()

    async def script(peer: Peer, service: Service) -> None:
        for _ in range(2):
            await peer.request()
            await peer.say(OK)
        heard.set()
        await peer.hung_up()

    async with serving(script) as service, session(HOME) as http:
        assert [(await get(http, service, timeout=each)).status for each in (1.0, LONG)] == [200, 200]
        await heard.wait()
        assert await told(http, service, timeout=0.05) == TIMEOUT


async def hanging(origin: Origin, made: Callable[[], Connection]) -> Connection:
    """A network that swallows everything."""
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.parametrize(("connect", "timeout"), [(0.05, LONG), (LONG, 0.05)])
async def test_connecting_has_its_time(connect: float, timeout: float) -> None:
    async with asyncio.timeout(LONG), Client(hanging, connect=connect, connections=1) as http:
        for _ in range(2):  # the place is free again
            with pytest.raises(ExchangeFailed, match=TIMEOUT):
                await http.request("GET", "http://a.example/", timeout=timeout)
