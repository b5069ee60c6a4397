"""A collector behind a real uvicorn, and a client that speaks raw bytes to it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple

import uvicorn


class Server(uvicorn.Server):
    """Signals belong to the tests."""

    def __init__(self, app: Any, http: Any) -> None:
        options = {"http": http, "ws": "none", "lifespan": "off", "access_log": False, "server_header": False}
        super().__init__(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", **options))
        self._leaving = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[int]:
        """The port it listens on. Leaving the context shuts down as SIGTERM does."""
        serving = asyncio.create_task(self.serve())
        while not self.started:  # uvicorn has no event for it
            assert not serving.done()
            await asyncio.sleep(0.005)
        try:
            yield self.servers[0].sockets[0].getsockname()[1]
        finally:
            self.leave()
            await serving

    def leave(self) -> None:
        """Begins to shut down, as SIGTERM does."""
        self._leaving.set()

    async def main_loop(self) -> None:
        """Leaves at once when it is to: uvicorn looks every 100 ms."""
        await self.on_tick(0)
        await self._leaving.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends as soon as nobody is connected: uvicorn waits 100 ms for connections to end, whether there are any or not."""
        for _ in range(10):
            if not (self.server_state.connections or self.server_state.tasks):
                break
            await asyncio.sleep(0.001)  # the ends of clients that have gone are on their way
        else:
            await super().shutdown(sockets)
            return
        for server in self.servers:
            server.close()
            await server.wait_closed()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Reply(NamedTuple):
    """A response. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def send(self, *parts: bytes) -> None:
        self._writer.write(b"".join(parts))

    async def reply(self, *, head_only: bool = False) -> Reply:
        """The next response. EOFError when the server has closed the connection."""
        top = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = top.split("\r\n")[:-2]
        pairs = [line.partition(": ") for line in lines]
        headers = {name.lower(): value for name, _, value in pairs}
        status = int(first.split()[1])
        size = 0 if head_only or status == 100 else int(headers["content-length"])
        return Reply(status, headers, await self._reader.readexactly(size))

    async def status(self) -> int:
        return (await self.reply()).status

    async def is_closed(self) -> bool:
        """Whether the server says nothing more and closes; waits for it."""
        try:
            return await self._reader.read() == b""
        except ConnectionError:
            return True

    def say_end(self) -> None:
        """Sends the end of the stream, and goes on reading."""
        self._writer.write_eof()

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    def abort(self) -> None:
        self._writer.transport.abort()


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


def head(path: str, *lines: str, method: str = "POST", version: str = "1.1", host: bool = True) -> bytes:
    first = (f"{method} {path} HTTP/{version}", *(("Host: cdp.example",) if host else ()))
    return "\r\n".join((*first, *lines, "", "")).encode("latin-1")


def post(path: str, body: bytes, *lines: str) -> bytes:
    return head(path, *lines, f"Content-Length: {len(body)}") + body


def chunked(body: bytes, size: int = 1 << 30) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
