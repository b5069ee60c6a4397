"""Where the client connects to, and whom it trusts."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from destinations.guard import Outbound, trusting
from destinations.http.client import Client, session
from destinations.http.dial import Address, Dialer, interleaved, judged
from destinations.http.failure import ADDRESS_REFUSED, HOST_NOT_FOUND, REFUSED, TIMEOUT, TLS_FAILED, ExchangeFailed
from tests.unit.http_client.service import HOME, LONG, OK, Peer, Service, answering, get, serving, silent
from tests.unit.test_destinations_guard import certificate


class Names:
    """A name service that answers as told, the last for ever, and remembers what it was asked."""

    def __init__(self, *answers: Sequence[Address] | OSError) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, host: str, port: int) -> Sequence[Address]:
        self.asked.append(host)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, OSError):
            raise answer
        return answer


def named(names: Names, monkeypatch: pytest.MonkeyPatch | None = None) -> Client:
    if monkeypatch is not None:
        monkeypatch.setattr("destinations.http.dial.REMEMBERED", -1.0)
    return Client(Dialer(HOME, resolve=names))


def test_of_several_addresses_only_those_are_tried_that_may_be_connected_to() -> None:
    addresses: list[Address] = [("10.0.0.1", 80), ("127.0.0.1", 80), ("fd00::1", 80, 0, 0), ("1.1.1.1", 80)]
    assert judged(addresses, HOME.allow) == [("127.0.0.1", 80), ("1.1.1.1", 80)]


async def test_a_name_whose_addresses_may_not_be_connected_to_is_refused() -> None:
    async with named(Names([("10.0.0.1", 80), ("169.254.169.254", 80), ("fd00::1", 80, 0, 0)])) as http:
        with pytest.raises(ExchangeFailed, match=ADDRESS_REFUSED):
            await http.request("GET", "http://shop.example/", timeout=LONG)


async def test_a_name_that_changes_its_address_is_judged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(answering(OK, close=True)) as service:
        names = Names([("127.0.0.1", service.port)], [("10.0.0.1", service.port)])
        async with named(names, monkeypatch) as http:
            assert (await http.request("GET", "http://shop.example/", timeout=LONG)).body == b"ok"
            await service.ended.get()
            with pytest.raises(ExchangeFailed, match=ADDRESS_REFUSED):
                await http.request("GET", "http://shop.example/", timeout=LONG)
    assert len(names.asked) == 2


async def test_a_name_is_looked_up_once_for_all_that_connect_at_a_time() -> None:
    async with serving(answering(OK)) as service:
        names = Names([("127.0.0.1", service.port)])
        async with named(names) as http:
            await asyncio.gather(*(http.request("GET", "http://shop.example/", timeout=LONG) for _ in range(5)))
    assert (names.asked, service.connections) == (["shop.example"], 5)


async def test_a_name_that_was_not_found_is_looked_up_again() -> None:
    async with serving(answering(OK)) as service:
        names = Names(OSError("no such name"), OSError("still none"), [("127.0.0.1", service.port)])
        async with named(names) as http:
            for _ in range(2):
                with pytest.raises(ExchangeFailed, match=HOST_NOT_FOUND):
                    await http.request("GET", "http://shop.example/", timeout=LONG)
            assert (await http.request("GET", "http://shop.example/", timeout=LONG)).body == b"ok"


async def test_a_name_service_that_hangs_has_its_time_and_holds_up_nobody_else() -> None:
    """Whatever waits for it: each client looks up by itself."""
    answered = threading.Event()

    def hang(host: str, port: int) -> Sequence[Address]:
        answered.wait(LONG)
        return [("127.0.0.1", service.port)]

    async with serving(answering(OK)) as service, Client(Dialer(HOME, resolve=hang)) as stuck, session(HOME) as http:
        try:
            waiting = asyncio.create_task(stuck.request("GET", "http://shop.example/", timeout=LONG))
            for name in ("shop", "shop", "two", "three"):
                with pytest.raises(ExchangeFailed, match=TIMEOUT):
                    await stuck.request("GET", f"http://{name}.example/", timeout=0.02)
            assert (await get(http, service)).body == b"ok"
        finally:
            answered.set()
        assert (await waiting).body == b"ok"


def full() -> tuple[socket.socket, list[socket.socket]]:
    """A port whose queue is full, so that connecting hangs; and what fills it."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    fillers = [socket.socket() for _ in range(4)]
    for one in fillers:
        one.setblocking(False)
        one.connect_ex(listener.getsockname())
    return listener, fillers


async def test_an_address_that_hangs_does_not_hold_up_the_next() -> None:
    listener, fillers = full()
    try:
        async with serving(answering(OK)) as service:
            names = Names([listener.getsockname(), ("127.0.0.1", service.port)])
            async with named(names) as http:
                assert (await http.request("GET", "http://shop.example/", timeout=LONG)).body == b"ok"
    finally:
        for one in (listener, *fillers):
            one.close()


async def test_when_no_address_answers_it_says_what_the_first_did() -> None:
    with socket.socket() as taken:  # bound, not listening
        taken.bind(("127.0.0.1", 0))
        async with named(Names([taken.getsockname(), taken.getsockname()])) as http:
            with pytest.raises(ExchangeFailed, match=REFUSED):
                await http.request("GET", "http://shop.example/", timeout=LONG)


def test_families_take_turns_and_the_first_begins() -> None:
    six: list[Address] = [("::1", 1, 0, 0), ("::2", 1, 0, 0)]
    four: list[Address] = [("1.1.1.1", 1), ("1.1.1.2", 1), ("1.1.1.3", 1)]
    assert interleaved([*six, *four]) == [six[0], four[0], six[1], four[1], four[2]]
    assert interleaved([four[0], six[0]]) == [four[0], six[0]]


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, Outbound]:
    """A service's side, and rules that trust its authority. The certificate is for 127.0.0.1."""
    cert, key = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    return context, Outbound(allow=HOME.allow, trust=trusting(str(cert)))


async def test_tls_is_spoken_and_its_connections_are_kept(tls: tuple[ssl.SSLContext, Outbound]) -> None:
    async with serving(answering(OK), tls[0]) as service, session(tls[1]) as http:
        url = service.url.replace("http:", "https:")
        for _ in range(2):
            assert (await http.request("POST", url, body=bytes(300_000), timeout=LONG)).body == b"ok"
    assert service.connections == 1


async def test_an_answer_over_tls_that_ends_with_its_connection_is_whole(tls: tuple[ssl.SSLContext, Outbound]) -> None:
    async with (
        serving(answering(b"HTTP/1.1 200 OK\r\n\r\nyes", close=True), tls[0]) as service,
        session(tls[1]) as http,
    ):
        answer = await http.request("GET", service.url.replace("http:", "https:"), timeout=LONG)
    assert (answer.body, answer.whole) == (b"yes", True)


async def test_a_certificate_for_somebody_else_is_refused(tls: tuple[ssl.SSLContext, Outbound]) -> None:
    async with serving(answering(OK), tls[0]) as service:
        names = Names([("127.0.0.1", service.port)])
        async with Client(Dialer(tls[1], resolve=names)) as http:
            with pytest.raises(ExchangeFailed, match=TLS_FAILED):
                await http.request("POST", "https://shop.example/", timeout=LONG)
    assert service.requests == []


async def test_a_certificate_of_an_unknown_authority_is_refused(tls: tuple[ssl.SSLContext, Outbound]) -> None:
    async with serving(answering(OK), tls[0]) as service, session(HOME) as http:
        with pytest.raises(ExchangeFailed, match=TLS_FAILED):
            await http.request("POST", service.url.replace("http:", "https:"), timeout=LONG)
    assert service.requests == []


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"])
async def test_a_service_that_speaks_no_tls_is_said_so(sent: bytes) -> None:
    async def script(peer: Peer, service: Service) -> None:
        await peer.say(sent)

    async with serving(script) as service, session(HOME) as http:
        with pytest.raises(ExchangeFailed, match=TLS_FAILED):
            await http.request("POST", service.url.replace("http:", "https:"), timeout=LONG)


async def test_a_handshake_that_hangs_has_its_time() -> None:
    async with serving(silent) as service, Client(Dialer(HOME), connect=0.05) as http:
        with pytest.raises(ExchangeFailed, match=TIMEOUT):
            await http.request("POST", service.url.replace("http:", "https:"), timeout=LONG)
        assert await service.ended.get() == 1
