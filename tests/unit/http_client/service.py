"""A service made of raw bytes, and what is known of the client that it meets."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_network
from typing import Any

import pytest

from destinations.guard import Outbound
from destinations.http.answer import Answer
from destinations.http.client import Client
from destinations.http.failure import ExchangeFailed

HOME = Outbound(allow=(ip_network("127.0.0.0/8"), ip_network("::1/128")))
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LONG = 20.0  # seconds that no test waits for


class Peer:
    """One connection as the service sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self._reader, self._writer, self.number = reader, writer, number

    async def request(self) -> bytes:
        """The next whole request."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        sizes = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        return head + await self._reader.readexactly(int(sizes[0]) if sizes else 0)

    async def head(self) -> bytes:
        """No more than that."""
        return await self._reader.readuntil(b"\r\n\r\n")

    async def say(self, *parts: bytes) -> None:
        """Each part in a packet of its own, as far as one can choose."""
        for part in parts:
            self._writer.write(part)
            await self._writer.drain()
            await asyncio.sleep(0)

    async def hung_up(self) -> None:
        """Waits until the client has."""
        with suppress(ConnectionError):
            while await self._reader.read(65_536):
                pass

    def reset(self) -> None:
        """Breaks the connection off."""
        self._writer.transport.abort()


class Service:
    """What happened at a service, and where it is."""

    def __init__(self) -> None:
        self.port = 0
        self.connections = 0
        self.requests: list[tuple[int, bytes]] = []
        self.ended: asyncio.Queue[int] = asyncio.Queue()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


Script = Callable[[Peer, Service], Awaitable[None]]


@asynccontextmanager
async def serving(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Service]:
    """Runs `script` for each connection, and then closes it."""
    service = Service()
    tasks = set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        service.connections += 1
        peer = Peer(reader, writer, service.connections)
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                await script(peer, service)
        finally:
            writer.close()
            service.ended.put_nowait(peer.number)
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    service.port = server.sockets[0].getsockname()[1]
    try:
        async with asyncio.timeout(LONG):
            yield service
    finally:
        server.close()
        for task in tasks.copy():
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def answering(*answers: bytes, close: bool = False) -> Script:
    """Answers each request on a connection with the next of `answers`, the last for ever; with `close`, hangs up after the last."""

    async def script(peer: Peer, service: Service) -> None:
        left = list(answers)
        while left or not close:
            service.requests.append((peer.number, await peer.request()))
            await peer.say(left[0])
            if len(left) > 1 or close:
                left.pop(0)

    return script


async def get(http: Client, service: Service, **more: Any) -> Answer:
    given: dict[str, Any] = {"timeout": LONG, "body": b"{}"} | more
    return await http.request("POST", service.url, **given)


async def told(http: Client, service: Service, **more: Any) -> str:
    """The reason why there was no answer."""
    with pytest.raises(ExchangeFailed) as caught:
        await get(http, service, **more)
    assert str(caught.value) == caught.value.reason
    return caught.value.reason


async def silent(peer: Peer, service: Service) -> None:
    """Takes what comes."""
    await peer.hung_up()


class Wire(asyncio.Transport):
    """A transport that goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    close = abort

    def get_write_buffer_size(self) -> int:
        return 0
