"""Which connections are kept and used again, how many there are, and what becomes of them when nobody wants the answer any more."""

import asyncio
import gc
import random
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest

from destinations.http.answer import Answer
from destinations.http.client import Client, session
from destinations.http.connection import Connection
from destinations.http.dial import Dialer
from destinations.http.failure import LOST, MALFORMED, TIMEOUT, ExchangeFailed
from destinations.http.request import Origin
from tests.unit.http_client.service import HOME, LONG, OK, Peer, Script, Service, Wire, answering, get, serving, told


async def test_a_connection_that_the_service_closed_meanwhile_is_not_used() -> None:
    async with serving(answering(OK, close=True)) as service, session(HOME) as http:
        for _ in range(3):
            assert (await get(http, service)).body == b"ok"
            await service.ended.get()
    assert [number for number, _ in service.requests] == [1, 2, 3]


def closing_at_the_second(sent: bytes) -> Script:
    """Answers the first request of a connection and ends it at the second."""

    async def script(peer: Peer, service: Service) -> None:
        service.requests.append((peer.number, await peer.request()))
        await peer.say(OK)
        service.requests.append((peer.number, await peer.request()))
        await peer.say(sent)
        peer.reset()

    return script


async def test_a_request_that_meets_a_closing_connection_is_sent_again_on_a_new_one() -> None:
    async with serving(closing_at_the_second(b"")) as service, session(HOME) as http:
        assert [(await get(http, service)).body for _ in range(3)] == [b"ok"] * 3
    assert [number for number, _ in service.requests] == [1, 1, 2, 2, 3]


async def test_it_is_sent_again_once_and_not_on_another_old_connection() -> None:
    """Two connections rest; both will be closed when they are used, and new ones before they answer."""
    both = asyncio.Event()

    async def script(peer: Peer, service: Service) -> None:
        service.requests.append((peer.number, await peer.request()))
        if peer.number > 2:
            return
        if peer.number == 2:
            both.set()
        await both.wait()
        await peer.say(OK)
        service.requests.append((peer.number, await peer.request()))

    async with serving(script) as service, session(HOME) as http:
        await asyncio.gather(get(http, service), get(http, service))
        assert await told(http, service) == LOST
    assert [number for number, _ in service.requests[2:]][-1] == 3
    assert len(service.requests) == 4


async def test_it_is_not_sent_again_when_a_part_of_an_answer_came() -> None:
    async with serving(closing_at_the_second(b"HTTP")) as service, session(HOME) as http:
        await get(http, service)
        assert await told(http, service) == LOST
    assert len(service.requests) == 2


async def test_it_is_not_sent_again_after_its_time() -> None:
    async def script(peer: Peer, service: Service) -> None:
        service.requests.append((peer.number, await peer.request()))
        await peer.say(OK)
        service.requests.append((peer.number, await peer.request()))
        await peer.hung_up()

    async with serving(script) as service, session(HOME) as http:
        await get(http, service)
        assert await told(http, service, timeout=0.05) == TIMEOUT
    assert len(service.requests) == 2


async def test_it_is_not_sent_again_when_the_service_only_keeps_silent() -> None:
    async def script(peer: Peer, service: Service) -> None:
        service.requests.append((peer.number, await peer.request()))
        await peer.say(OK)
        service.requests.append((peer.number, await peer.request()))
        await peer.hung_up()

    async with serving(script) as service, Client(Dialer(HOME), first_byte=0.05) as http:
        await get(http, service)
        assert await told(http, service) == TIMEOUT
    assert len(service.requests) == 2


async def test_it_is_sent_again_on_a_new_connection_though_it_has_to_wait_for_one_and_is_handed_an_old_one() -> None:
    """The second of two takes the place of the connection that closed, and its own is fit for use when the first gets the place back."""

    async def script(peer: Peer, service: Service) -> None:
        service.requests.append((peer.number, await peer.request()))
        await peer.say(OK)
        service.requests.append((peer.number, await peer.request()))
        if peer.number > 1:
            await peer.say(OK)

    async with serving(script) as service, Client(Dialer(HOME), connections=1) as http:
        await get(http, service)
        assert [one.body for one in await asyncio.gather(get(http, service), get(http, service))] == [b"ok"] * 2
    assert [number for number, _ in service.requests] == [1, 1, 2, 3]


@pytest.mark.parametrize(
    "parts", [(OK + b"HTTP/1.1 500 No\r\n",), (OK + b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",), (OK, b"more")]
)
async def test_what_comes_behind_an_answer_is_nobodys(parts: Sequence[bytes]) -> None:
    said = asyncio.Event()

    async def script(peer: Peer, service: Service) -> None:
        await peer.request()
        await peer.say(*parts)
        said.set()
        await peer.hung_up()

    async with serving(script) as service, session(HOME) as http:
        for number in (1, 2):
            assert (await get(http, service)).body == b"ok"
            await said.wait()
            assert await service.ended.get() == number


async def test_what_a_service_says_unasked_is_no_answer() -> None:
    async def script(peer: Peer, service: Service) -> None:
        await peer.request()
        await peer.say(OK)
        await peer.say(b"HTTP/1.1 408 Slow\r\nContent-Length: 0\r\n\r\n")
        await peer.hung_up()

    async with serving(script) as service, session(HOME) as http:
        await get(http, service)
        await service.ended.get()
        assert (await get(http, service)).status == 200
    assert service.connections == 2


async def test_an_early_answer_is_taken_and_its_connection_is_not() -> None:
    """The service has not read the request to its end, so what follows would be read as a part of it."""

    async def script(peer: Peer, service: Service) -> None:
        await peer.head()
        await peer.say(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await peer.hung_up()

    async with serving(script) as service, session(HOME) as http:
        answers = [await get(http, service, body=bytes(32 << 20)) for _ in range(2)]
    assert [one.status for one in answers] == [413, 413]
    assert service.connections == 2


async def test_as_many_connections_as_there_are_requests_at_once_up_to_the_bound() -> None:
    """The third waits for one of the first two, and has its connection."""
    arrived: asyncio.Queue[Peer] = asyncio.Queue()

    async def script(peer: Peer, service: Service) -> None:
        while True:
            service.requests.append((peer.number, await peer.request()))
            arrived.put_nowait(peer)

    async with serving(script) as service, Client(Dialer(HOME), connections=2) as http:
        asked = [asyncio.create_task(get(http, service)) for _ in range(3)]
        first, second = await arrived.get(), await arrived.get()
        await second.say(OK)
        assert await arrived.get() is second
        await first.say(OK)
        await second.say(OK)
        assert [one.body for one in await asyncio.gather(*asked)] == [b"ok"] * 3
    assert (service.connections, len(service.requests)) == (2, 3)


async def test_the_bound_is_kept_free_of_connections_that_failed() -> None:
    async with serving(answering(b"nonsense\r\n")) as service, Client(Dialer(HOME), connections=1) as http:
        said = await asyncio.gather(*(told(http, service) for _ in range(5)))
    assert (said, service.connections) == ([MALFORMED] * 5, 5)


async def test_a_request_may_have_to_wait_for_a_connection_only_as_long_as_its_time() -> None:
    reached = asyncio.Event()

    async def script(peer: Peer, service: Service) -> None:
        await peer.request()
        reached.set()
        await peer.hung_up()

    async with serving(script) as service, Client(Dialer(HOME), connections=1) as http:
        busy = asyncio.create_task(told(http, service, timeout=LONG))
        await reached.wait()
        assert await told(http, service, timeout=0.05) == TIMEOUT
        busy.cancel()
        with pytest.raises(asyncio.CancelledError):
            await busy
        assert await told(http, service, timeout=0.05) == TIMEOUT  # it has the connection's place
    assert service.connections == 2


async def test_a_connection_that_nobody_uses_is_closed() -> None:
    async with serving(answering(OK)) as service, Client(Dialer(HOME), idle=0.05) as http:
        await get(http, service)
        assert await service.ended.get() == 1
        assert (await get(http, service)).body == b"ok"
    assert service.connections == 2


async def test_a_request_that_is_cancelled_closes_its_connection() -> None:
    reached = asyncio.Event()

    async def script(peer: Peer, service: Service) -> None:
        await peer.request()
        if peer.number == 1:
            reached.set()
            await peer.hung_up()
        else:
            await peer.say(OK)

    async with serving(script) as service, Client(Dialer(HOME), connections=1) as http:
        asked = asyncio.create_task(get(http, service))
        await reached.wait()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert await service.ended.get() == 1
        assert (await get(http, service)).body == b"ok"


class Wired:
    """A client whose connections go nowhere; what is said on them is said by hand."""

    def __init__(self, **more: Any) -> None:
        self.http = Client(self._dial, **more)
        self.connections: list[Connection] = []
        self.wires: list[Wire] = []

    async def _dial(self, origin: Origin, made: Callable[[], Connection]) -> Connection:
        connection, wire = made(), Wire()
        connection.connection_made(wire)
        self.connections.append(connection)
        self.wires.append(wire)
        return connection

    def get(self) -> "asyncio.Task[Answer]":
        return asyncio.create_task(self.http.request("GET", "http://a.example/", timeout=LONG))

    async def sent(self, *exchanges: int) -> None:
        """Waits until so many requests have gone out on each connection."""
        while tuple(one.exchanges for one in self.connections) != exchanges:
            await asyncio.sleep(0)

    def say(self, number: int, answer: bytes = OK) -> None:
        self.connections[number].data_received(answer)

    async def close(self) -> None:
        """As the transports would say it."""
        for connection in self.connections:
            connection.connection_lost(None)
        await self.http.close()


@pytest.fixture
async def wired() -> AsyncIterator[Wired]:
    """With one connection at a time."""
    world = Wired(connections=1)
    async with asyncio.timeout(LONG):
        yield world
    await world.close()


async def test_a_request_that_is_cancelled_when_its_answer_is_there_leaves_a_connection_that_is_fit_for_use(
    wired: Wired,
) -> None:
    """The answer has come whole, and nobody has looked at it yet."""
    asked = wired.get()
    await wired.sent(1)
    wired.say(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    again = wired.get()
    await wired.sent(2)
    wired.say(0, OK.replace(b"ok", b"2."))
    assert (await again).body == b"2."


async def test_whoever_stops_waiting_at_the_moment_of_getting_a_connection_passes_it_on(wired: Wired) -> None:
    async def in_one_step() -> Answer:
        answer = await wired.http.request("GET", "http://a.example/", timeout=LONG)
        second.cancel()
        return answer

    first = asyncio.create_task(in_one_step())
    await wired.sent(1)
    second, third = wired.get(), wired.get()
    await asyncio.sleep(0)
    wired.say(0)
    await wired.sent(2)
    wired.say(0)
    assert ((await first).body, second.cancelled(), (await third).body) == (b"ok", True, b"ok")


async def test_a_connection_that_is_lost_while_it_rests_is_let_go_of(wired: Wired) -> None:
    asked = wired.get()
    await wired.sent(1)
    wired.say(0)
    await asked
    wire = weakref.ref(wired.wires.pop())
    wired.connections.pop().connection_lost(None)
    gc.collect()
    assert wire() is None


async def test_whoever_stops_waiting_for_a_connection_leaves_it_to_the_next() -> None:
    reached: asyncio.Queue[Peer] = asyncio.Queue()

    async def script(peer: Peer, service: Service) -> None:
        while True:
            await peer.request()
            reached.put_nowait(peer)

    async with serving(script) as service, Client(Dialer(HOME), connections=1) as http:
        first = asyncio.create_task(get(http, service))
        peer = await reached.get()
        second, third = (asyncio.create_task(get(http, service)) for _ in range(2))
        await asyncio.sleep(0)
        second.cancel()
        await peer.say(OK)
        await first
        assert await reached.get() is peer
        await peer.say(OK)
        assert (await third).body == b"ok"
        assert second.cancelled()


@pytest.mark.parametrize("seed", range(3))
async def test_no_place_is_lost_whatever_services_and_callers_do(seed: int) -> None:
    """A storm of answers, ends, silence and cancellation; then as many at once as there are places get through, and nobody waits."""
    chance, together = random.Random(seed), asyncio.Barrier(4)
    answers = [
        OK,
        OK,
        OK,
        OK + b"more",
        b"nonsense\r\n",
        OK[:9],
        OK[:-1],
        b"",
        OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
    ]

    async def script(peer: Peer, service: Service) -> None:
        while True:
            if (await peer.request()).endswith(b"calm"):
                await together.wait()
                await peer.say(OK)
                continue
            await peer.say(chance.choice(answers))
            end = chance.random()
            if end < 0.2:
                peer.reset()
            elif end < 0.4:
                return

    async def ask(http: Client, service: Service) -> None:
        asked = asyncio.create_task(get(http, service, timeout=chance.choice((0.02, LONG)), most=1_000))
        if chance.random() < 0.3:
            for _ in range(chance.randrange(8)):
                await asyncio.sleep(0)
            asked.cancel()
        await asyncio.wait([asked], timeout=0.05)  # some would wait for long
        asked.cancel()
        with suppress(ExchangeFailed, asyncio.CancelledError):
            assert (await asked).status == 200

    async with serving(script) as service, Client(Dialer(HOME), connections=4) as http:
        for _ in range(4):
            await asyncio.gather(*(ask(http, service) for _ in range(25)))
        for _ in range(2):
            said = await asyncio.gather(*(get(http, service, body=b"calm") for _ in range(4)))
            assert [one.body for one in said] == [b"ok"] * 4


async def test_closing_ends_what_is_under_way_and_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("destinations.http.client.FAREWELL", LONG)  # not for these
    reached = asyncio.Event()

    async def script(peer: Peer, service: Service) -> None:
        await peer.request()
        reached.set()
        await peer.hung_up()

    async with serving(script) as service:
        http = Client(Dialer(HOME), connections=1)
        asked = [asyncio.create_task(told(http, service)) for _ in range(2)]
        await reached.wait()
        await http.close()
        assert await asyncio.gather(*asked) == [LOST] * 2
        assert await service.ended.get() == 1
        assert await told(http, service) == LOST
        with pytest.raises(ExchangeFailed, match=LOST):
            await http.request("GET", f"http://localhost:{service.port}/", timeout=LONG)
    assert service.connections == 1


async def test_a_connection_that_is_made_while_the_client_is_closed_sends_nothing() -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()
    wires: list[Wire] = []

    async def dial(origin: Origin, made: Callable[[], Connection]) -> Connection:
        reached.set()
        await go_on.wait()
        connection = made()
        wires.append(Wire())
        connection.connection_made(wires[0])
        return connection

    http = Client(dial)
    asked = asyncio.create_task(http.request("GET", "http://a.example/", timeout=LONG))
    await reached.wait()
    await http.close()
    go_on.set()
    with pytest.raises(ExchangeFailed, match=LOST):
        await asked
    assert (wires[0].written, wires[0].closed) == (b"", True)


async def test_closing_says_good_bye_to_those_that_rest() -> None:
    async with serving(answering(OK)) as service:
        async with session(HOME) as http:
            await get(http, service)
        assert await service.ended.get() == 1
