"""A thousand idle connections and a burst of short ones: the collector goes on answering, and gives back what they took."""

import asyncio
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from millrace import data_folder
from tests.acceptance.conftest import until
from tests.acceptance.test_drain import a_collector
from tests.http import connected, post

IDLE = 1_000
CONNECTS = 10_000
EVENT = json.dumps({"event": "A", "userId": "u", "writeKey": "wk"}).encode()


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[tuple[psutil.Process, int]]:
    process = a_collector(tmp_path / "data")
    try:
        until(lambda: data_folder.recall(tmp_path / "data", data_folder.ADDRESS) is not None)
        port = urlsplit(data_folder.recall(tmp_path / "data", data_folder.ADDRESS) or "").port
        assert port is not None
        yield psutil.Process(process.pid), port
    finally:
        process.kill()
        process.wait()


@pytest.fixture(autouse=True)
def enough_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4_096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def one_event(port: int) -> None:
    async with connected(port) as client:
        client.send(post("/v1/t", EVENT, "Connection: close"))
        assert await client.status() == 200


async def test_a_thousand_idle_connections_and_ten_thousand_connects_a_minute(
    collector: tuple[psutil.Process, int],
) -> None:
    process, port = collector
    idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(IDLE)]
    began, before = time.monotonic(), process.memory_info().rss
    for _ in range(CONNECTS // 20):
        await asyncio.gather(*[one_event(port) for _ in range(20)])
    took = time.monotonic() - began
    assert took < 60
    assert process.memory_info().rss - before < 64 << 20
    for _, writer in idle:
        writer.write(post("/v1/t", EVENT))
    answers = await asyncio.gather(*[reader.readuntil(b"\r\n\r\n") for reader, _ in idle])
    assert {answer.split(b" ")[1] for answer in answers} == {b"200"}
    for _, writer in idle:
        writer.transport.abort()
