"""The profile API: traits of random people at a fixed rate while the pipeline works, against a floor of the same server's /health.

`python -m benchmarks.profile_api [--seconds S] [--rate N] [--events N] [--people N] [--database URL …] [--json FILE]`. The collect and process
roles run as they do for people, each a process of its own, and `--events` per second go through the pipeline meanwhile (about half
of what it can do). The load is open: a request is due when the clock says so, whatever became of the ones before, and its latency
counts from then. Each person has 50 traits, all of which are asked for. Without `--database`: SQLite, and PostgreSQL where a server
can be started.
"""

import argparse
import asyncio
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, cast

import orjson
import psutil
import uvloop

from benchmarks.pipeline import AT, databases, event
from benchmarks.results import Result, finish, result
from pipeline.log import Log, Record, open_log
from schemas.events import Event, encode_event
from schemas.topics import EVENTS, RESOLVED

TOKEN: Final = "benchmark"
CONNECTIONS: Final = 64
WARM_UP: Final = 2.0  # seconds
TRAITS: Final = 50
TICK: Final = 0.01  # seconds between two appends of the pipeline's load
_AUTHORIZATION: Final = "Basic " + b64encode(f"{TOKEN}:".encode()).decode()


class Load(NamedTuple):
    """What the clients saw: milliseconds, requests per second, and microseconds of the server per request."""

    p50: float
    p99: float
    rate: float
    cpu: float


# ── The roles ─────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def roles(folder: Path, database: str) -> Iterator[tuple[int, int]]:
    """Starts collect and process; yields the port and the process id of the former."""
    environment = os.environ | {
        "MILLRACE_DATABASE": database,
        "MILLRACE_API_TOKEN": TOKEN,
        "MILLRACE_DATA": str(folder),
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-P", "-m", "millrace"]
    subprocess.run([*command, "migrate"], env=environment, check=True, stdout=subprocess.DEVNULL)
    with (folder / "roles.log").open("wb") as said:
        started = [
            subprocess.Popen([*command, *role], env=environment, stdout=said, stderr=said)
            for role in (["collect", "--port", str(port)], ["process"])
        ]
        try:
            yield port, started[0].pid
        finally:
            for one in started:
                one.terminate()
            for one in started:
                one.wait(30)


def person(number: int) -> Event:
    """An identify with 50 traits of the kinds that people have."""
    traits = {f"trait_{n:02d}": f"value {number} {n}" if n % 3 else number * n for n in range(TRAITS)}
    message = f"person-{number}"
    body = orjson.dumps({"type": "identify", "messageId": message, "userId": f"person-{number}", "traits": traits})
    return Event("web", "identify", message, None, f"person-{number}", AT, None, AT, "server", None, None, body)


async def append(log: Log, events: list[Event]) -> None:
    """Puts events into the log as the collector would."""
    await log.append(EVENTS, [Record(one.key, encode_event(one), one.received_at // 1000) for one in events])


# ── The load ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Connection(asyncio.Protocol):
    """Sends what is due, one after the other, and notes how late each answer came."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.error: str | None = None
        self._due: deque[tuple[float, bytes]] = deque()
        self._answer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def ask(self, due: float, request: bytes) -> None:
        self._due.append((due, request))
        if len(self._due) == 1:
            self._send()

    def data_received(self, data: bytes) -> None:
        self._answer += data
        end = self._answer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._answer[:end].lower()
        at = head.find(b"content-length: ") + 16
        size = int(head[at : head.find(b"\r\n", at) if b"\r\n" in head[at:] else None])
        if len(self._answer) < end + 4 + size:
            return
        if not head.startswith(b"http/1.1 200"):
            self.error = self._answer[:300].decode(errors="replace")
        self._answer = b""
        self.latencies.append(time.perf_counter() - self._due.popleft()[0])
        if self._due:
            self._send()

    def _send(self) -> None:
        assert self._transport is not None
        self._transport.write(self._due[0][1])


async def ask_at(port: int, server: int, paths: Iterator[str], rate: int, seconds: float) -> Load:
    """Requests at a steady rate over many connections, for `seconds` after a warm-up."""
    loop = asyncio.get_running_loop()
    opened = [await loop.create_connection(Connection, "127.0.0.1", port) for _ in range(CONNECTIONS)]
    connections = [connection for _, connection in opened]
    process, cpu = psutil.Process(server), 0.0
    began = time.perf_counter()
    counted_from = int(WARM_UP * rate)
    for number in range(int((WARM_UP + seconds) * rate)):
        due = began + number / rate
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        if number == counted_from:
            for connection in connections:
                connection.latencies.clear()
            cpu = _cpu(process)
        request = f"GET {next(paths)} HTTP/1.1\r\nHost: bench\r\nAuthorization: {_AUTHORIZATION}\r\n\r\n"
        connections[number % CONNECTIONS].ask(due, request.encode())
    await asyncio.sleep(0.2)
    spent = _cpu(process) - cpu
    latencies = [latency for connection in connections for latency in connection.latencies]
    for transport, connection in opened:
        transport.abort()
        if connection.error is not None:
            raise RuntimeError(f"answered {connection.error}")
    percentiles = statistics.quantiles(latencies, n=100)
    return Load(percentiles[49] * 1e3, percentiles[98] * 1e3, len(latencies) / seconds, spent / len(latencies) * 1e6)


def _cpu(process: psutil.Process) -> float:
    used = process.cpu_times()
    return float(used.user + used.system)


async def emitted(log: Log) -> int:
    """How many records the pipeline has emitted so far."""
    return sum(end for _, end in (await log.bounds(RESOLVED)).values())


async def feed(log: Log, per_second: int) -> None:
    """Events for the pipeline, at a steady rate until it is cancelled."""
    chance, number = random.Random(7), 0
    ready = [event(one, chance) for one in range(20_000)]
    began = time.perf_counter()
    while True:
        due = int((time.perf_counter() - began) * per_second)
        fresh = [
            ready[one % len(ready)]._replace(message_id=f"load-{one}", received_at=AT + one)
            for one in range(number, due)
        ]
        number = due
        if fresh:
            await append(log, fresh)
        await asyncio.sleep(TICK)


async def measure(database: str, folder: Path, asked: argparse.Namespace) -> list[Result]:
    """Fills the store with people, then asks for them while events pass through the pipeline."""
    chance = random.Random(11)

    def somebody() -> Iterator[str]:
        while True:
            yield (
                "/v1/spaces/default/collections/users/profiles/"
                f"user_id:person-{chance.randrange(asked.people)}/traits?limit=200"
            )

    def health() -> Iterator[str]:
        while True:
            yield "/health"

    with roles(folder, database) as (port, server):
        async with open_log(f"embedded://{folder}/log") as log:
            for start in range(0, asked.people, 1_000):
                await append(log, [person(one) for one in range(start, min(start + 1_000, asked.people))])
            await _applied(port, asked.people)
            feeding = asyncio.create_task(feed(log, asked.events))
            try:
                floor = await ask_at(port, server, health(), asked.rate, asked.seconds)
                began, before = time.perf_counter(), await emitted(log)
                load = await ask_at(port, server, somebody(), asked.rate, asked.seconds)
                through = (await emitted(log) - before) / (time.perf_counter() - began)
            finally:
                feeding.cancel()
                await asyncio.wait((feeding,))
    name = "PostgreSQL" if database.startswith("postgres") else "SQLite"
    title = f"traits, {name}, {asked.rate:,} requests/s beside {asked.events:,} events/s"
    return [
        result(f"{title}: p50 (floor: /health)", load.p50, "ms", floor=floor.p50),
        result(f"{title}: p99", load.p99, "ms", floor=floor.p99),
        result(f"{title}: answered", load.rate, "requests/s", floor=floor.rate),
        result(f"{title}: CPU of the server", load.cpu, "µs/request", floor=floor.cpu),
        result(f"{title}: through the pipeline meanwhile (floor: as fed)", through, "events/s", floor=asked.events),
    ]


async def _applied(port: int, people: int) -> None:
    """Waits until the last person is in the database."""
    path = (
        f"/v1/spaces/default/collections/users/profiles/user_id:person-{people - 1}/metadata?after=person-{people - 1}"
    )
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: b\r\nAuthorization: {_AUTHORIZATION}\r\n\r\n".encode())
            line = await reader.readline()
            writer.close()
            if b" 200 " in line:
                return
        except OSError:
            pass  # it has not begun to listen
        await asyncio.sleep(0.2)


def main(argv: list[str] | None = None) -> list[Result]:
    """Runs and prints; returns the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rate", type=int, default=1_000, help="requests per second")
    parser.add_argument("--events", type=int, default=8_000, help="events per second through the pipeline")
    parser.add_argument("--people", type=int, default=10_000)
    parser.add_argument("--database", action="append", default=[])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(argv)
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder, databases(asked.database, folder) as urls:
        for number, url in enumerate(urls):
            part = Path(folder) / str(number)
            part.mkdir()
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                results += runner.run(measure(url, part, asked))
    return finish("profile API", results, asked.json)


if __name__ == "__main__":
    main()
