"""The collector behind a real uvicorn, spoken to over raw sockets."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import uvicorn

from collector.app import create_collector
from tests.unit.test_collector import RecordingLog

BATCH = json.dumps({"writeKey": "wk", "batch": [{"type": "track", "event": "A", "userId": "u"}] * 3}).encode()


class Server(uvicorn.Server):
    """Signals belong to the tests."""

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
            self.should_exit = True
            await serving

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@pytest.fixture
async def log() -> RecordingLog:
    return RecordingLog()


@pytest.fixture(params=["httptools", "h11"])
def server(log: RecordingLog, request: pytest.FixtureRequest) -> Server:
    app = create_collector(log=log, sources={"wk": "web"})
    config = uvicorn.Config(app, host="127.0.0.1", port=0, http=request.param, log_level="warning", lifespan="on")
    return Server(config)


def head(path: str, *lines: str) -> bytes:
    return "\r\n".join((f"POST {path} HTTP/1.1", "Host: cdp.example", *lines, "", "")).encode()


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    top = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = next(int(line.partition(":")[2]) for line in top.split("\r\n") if line.startswith("content-length"))
    assert "\r\ndate: " in top  # OAuth clients derive their clock's skew from it
    return int(top.split()[1]), await reader.readexactly(length)


SUCCESS = (200, b'{"success": true}')


async def test_one_connection_carries_plain_gzipped_chunked_and_broken_requests(
    server: Server, log: RecordingLog
) -> None:
    packed = gzip.compress(BATCH)
    broken = b'{"batch":[,]}'
    async with server.running() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head("/v1/b", f"Content-Length: {len(BATCH)}") + BATCH)
        assert await answer(reader) == SUCCESS
        writer.write(head("/v1/b", "Content-Encoding: gzip", "Transfer-Encoding: chunked") + chunked(packed, 11))
        assert await answer(reader) == SUCCESS
        writer.write(head("/v1/b", f"Content-Length: {len(broken)}") + broken)
        assert (await answer(reader))[0] == 400
        writer.write(head("/v1/import/", "Authorization: Basic d2s6", f"Content-Length: {len(BATCH)}") + BATCH)
        assert await answer(reader) == SUCCESS
        writer.close()
    assert len(log.events) == 9


async def test_a_body_that_says_it_is_too_large_is_answered_before_it_is_sent(server: Server) -> None:
    async with server.running() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head("/v1/b", "Content-Length: 100000000"))
        assert (await answer(reader))[0] == 400
        writer.close()


async def test_a_request_in_flight_is_answered_when_the_server_shuts_down(server: Server, log: RecordingLog) -> None:
    log.gate.clear()
    async with server.running() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head("/v1/b", f"Content-Length: {len(BATCH)}") + BATCH)
        await log.reached.wait()
        server.should_exit = True
        await asyncio.sleep(0.15)  # uvicorn looks for the wish to exit every tenth of a second
        log.gate.set()
        assert await answer(reader) == SUCCESS
        writer.close()
    assert len(log.events) == 3


async def test_a_client_that_hangs_up_after_its_request_has_its_events_kept(server: Server, log: RecordingLog) -> None:
    log.gate.clear()
    async with server.running() as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head("/v1/b", f"Content-Length: {len(BATCH)}") + BATCH)
        await log.reached.wait()
        writer.close()
        await writer.wait_closed()
        log.gate.set()
    assert len(log.events) == 3
