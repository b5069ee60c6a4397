"""The collector: requests to a real uvicorn over a real log, against a floor of the same server answering 200 at once.

`python -m benchmarks.collector [--seconds S] [--connections N] [--log URL] [--json FILE]`. Singles are ~700 B, batches hold 100 events of
~1 KB; every message id is its own, and events sent at one time are of different persons and milliseconds. Server and load generator are
processes of their own, on this machine. CPU is user + system of the server alone, in the best half second of ten rounds that take turns with
the floor, and in the median one: what else a machine does comes in phases, and can only add. Without `--log`: the embedded log, fsynced, in a
temporary folder for each round.

Then latency at 70 % of what the server takes when requests are sent as they are due, whether or not others are answered: timed from when
they were due, so that what waits for a connection counts. The generator shares the cores and is late itself at times; how late is
a figure of its own. And two server processes on one port with twice the load that one had, 30 % of what that takes: where CPU per event
stays, they scale with the cores. (What they take at most says little here: the generator needs one of two cores then.)
"""

import argparse
import asyncio
import gc
import math
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import orjson
import psutil
import structlog
import uvicorn
import uvloop

from benchmarks.results import Result, finish, result
from collector.app import Message, Receive, Scope, Send, create_collector
from collector.protocol import protocol_class
from millrace.process import settle
from pipeline.log import open_log

WRITE_KEY: Final = "benchmark"
SUCCESS: Final = b'{"success": true}'
WARM_UP: Final = 1.0  # seconds
WINDOW: Final = 0.5
FLOOR: Final = "floor"
LINUX: Final = sys.platform.startswith("linux")


class Shape(NamedTuple):
    """A kind of request: how many events each brings, and how many connections send it at once."""

    name: str
    events: int
    connections: int


class Load(NamedTuple):
    """What one run of the load generator saw."""

    events_per_second: float
    cpu_per_event: Sequence[float]  # microseconds, in each half second
    p50: float  # milliseconds
    p99: float
    late: float  # milliseconds that the generator itself was late, at the 99th percentile; 0 without a rate


# ── The server's process ──────────────────────────────────────────────────────────────────────────────────────────


async def answer_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    """The floor: the body is received, nothing is done with it."""
    while (await receive()).get("more_body", False):
        pass
    await send(_START)
    await send({"type": "http.response.body", "body": SUCCESS})


_START: Final[Message] = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(SUCCESS))],
}


def serve(log_url: str, port: int = 0) -> None:
    """Prints its port and nothing else, then serves until it is terminated. `FLOOR` instead of a log's URL serves the floor."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listening.bind(("127.0.0.1", port))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(log_url, listening))


async def _serve(log_url: str, listening: socket.socket) -> None:
    if log_url == FLOOR:
        await _answer(_server(answer_at_once), listening)
        return
    async with open_log(log_url, partitions=8) as log:
        collector = create_collector(log=log, sources={WRITE_KEY: "benchmark"})
        settle()
        await _answer(_server(collector, protocol_class(collector.intake)), listening)


async def _answer(server: uvicorn.Server, listening: socket.socket) -> None:
    listening.listen()
    print(listening.getsockname()[1], flush=True)  # from now on a connection is taken, or waits to be
    await server.serve([listening])


def _server(app: Any, http: Any = "httptools") -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(app, http=http, ws="none", lifespan="off", access_log=False, log_level="warning")
    )


# ── The load generator's process ──────────────────────────────────────────────────────────────────────────────────


def request_of(shape: Shape, first: int = 0) -> tuple[bytearray, list[int]]:
    """A request's bytes, and where in them the digits stand that make its message ids distinct. Each event is of another person and
    another millisecond, counted from `first`."""
    if shape.events == 1:
        sent_at = f"2026-01-01T00:00:01.{first % 1000:03d}Z"
        body = orjson.dumps({**_event(first, 300), "writeKey": WRITE_KEY, "sentAt": sent_at})
    else:
        batch = [_event(first + number, 600) for number in range(shape.events)]
        body = orjson.dumps({"batch": batch, "writeKey": WRITE_KEY, "sentAt": "2026-01-01T00:00:00.500Z"})
    path = "/v1/t" if shape.events == 1 else "/v1/batch"
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    whole = bytearray(head.encode() + body)
    return whole, list(_occurrences(whole, b"000000000000"))


def _event(number: int, padding: int) -> dict[str, Any]:
    return {
        "type": "track",
        "event": "Product Viewed",
        "messageId": f"ajs-next-1767225600000-{'0' * 12}-{number:04d}",
        "anonymousId": f"5f2c7d3e-4f50-6172-8394-a5b6c7d8{number:04d}",
        "timestamp": f"2026-01-01T00:00:00.{number % 1000:03d}Z",
        "properties": {"sku": "G-32", "price": 18.99, "note": "n" * (padding - 250)},
        "context": {
            "library": {"name": "analytics.js", "version": "next-1.84.1"},
            "page": {"path": "/p", "url": "https://shop.example/p?x=1", "title": "P"},
            "userAgent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/129.0",
            "locale": "en-GB",
        },
    }


def _occurrences(whole: bytearray, digits: bytes) -> Iterator[int]:
    at = whole.find(digits)
    while at >= 0:
        yield at
        at = whole.find(digits, at + 1)


class Connection(asyncio.Protocol):
    """Sends a request, waits for its answer, sends the next; ids are patched into the prepared bytes."""

    def __init__(self, shape: Shape, number: int, counter: Iterator[int], pace: "Pace | None") -> None:
        self._pace = pace
        self.latencies: list[float] = []
        self.error: Exception | None = None
        self._request, self._places = request_of(shape, number * shape.events)
        self._counter = counter
        self._received = b""
        self._due_at = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._next()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._received.endswith(SUCCESS):
            if not self._received.startswith(b"HTTP/1.1 200"):
                self.error = RuntimeError(f"answered {self._received[:300]!r}")
            return
        self._received = b""
        self.latencies.append(time.perf_counter() - self._due_at)
        self._next()

    def _next(self) -> None:
        if self._pace is None:
            self.send(time.perf_counter())
        else:
            self._pace.next(self)

    def send(self, due_at: float) -> None:
        digits = b"%012d" % next(self._counter)
        for at in self._places:
            self._request[at : at + 12] = digits
        self._due_at = due_at
        assert self._transport is not None
        self._transport.write(bytes(self._request))


class Pace:
    """Hands requests to connections when they are due; one that finds none free waits, and its time runs. Looks once a millisecond, or as
    often as this process gets to it."""

    LOOK_EVERY: Final = 0.001

    def __init__(self, rate: float) -> None:
        self.free: deque[Connection] = deque()
        self.due: deque[float] = deque()
        self.late: list[float] = []
        self._rate = rate

    def next(self, connection: "Connection") -> None:
        if self.due:
            connection.send(self.due.popleft())
        else:
            self.free.append(connection)

    async def run(self) -> None:
        at = time.perf_counter()
        while True:
            now = time.perf_counter()
            while at <= now:
                if self.free:
                    self.free.popleft().send(at)
                else:
                    self.due.append(at)
                self.late.append(now - at)
                at += 1 / self._rate
            await asyncio.sleep(self.LOOK_EVERY)


def load(port: int, servers: Sequence[int], shape: Shape, seconds: float, rate: float) -> Load:
    """`rate` in requests per second; 0: each connection sends again as soon as it is answered."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_load(port, servers, shape, seconds, rate))


async def _load(port: int, servers: Sequence[int], shape: Shape, seconds: float, rate: float) -> Load:
    loop = asyncio.get_running_loop()
    gc.disable()  # latencies are kept, nothing is garbage
    counter = iter(range(10**12))
    pace = Pace(rate) if rate else None
    opened = [
        await loop.create_connection(partial(Connection, shape, number, counter, pace), "127.0.0.1", port)
        for number in range(shape.connections)
    ]
    pacing = asyncio.create_task(pace.run()) if pace else None
    connections = [connection for _, connection in opened]
    await asyncio.sleep(WARM_UP)
    for connection in connections:
        connection.latencies.clear()
    if pace is not None:
        pace.late.clear()
    began = time.perf_counter()
    spent, answered = [_cpu(servers)], [0]
    while time.perf_counter() - began < seconds:
        await asyncio.sleep(WINDOW)
        spent.append(_cpu(servers))
        answered.append(sum([len(connection.latencies) for connection in connections]))
    took = time.perf_counter() - began
    if pacing is not None:
        pacing.cancel()
    latencies = [latency for connection in connections for latency in connection.latencies]
    for transport, connection in opened:
        transport.abort()
        if connection.error is not None:
            raise connection.error
    windows = zip(pairwise(spent), pairwise(answered), strict=True)
    cpu = [
        (after - before) / (last - first) / shape.events * 1e6
        for (before, after), (first, last) in windows
        if last > first
    ]
    late = _percentile(pace.late, 99) if pace is not None else 0.0
    rate = answered[-1] * shape.events / took
    return Load(rate, cpu, _percentile(latencies, 50), _percentile(latencies, 99), late)


def _percentile(seconds: Sequence[float], percent: int) -> float:
    return statistics.quantiles(seconds, n=100)[percent - 1] * 1e3


def _cpu(servers: Sequence[int]) -> float:
    """Seconds of all threads. Linux has a clock for each process, exact to the nanosecond; what psutil reads has ticks of ten milliseconds."""
    if LINUX:
        return sum(time.clock_gettime((~server << 3) | 2) for server in servers)
    return sum(sum(psutil.Process(server).cpu_times()[:2]) for server in servers)


# ── Both ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def serving(log_url: str, workers: int = 1) -> Iterator[tuple[int, list[int]]]:
    """Port and process ids of servers that share it."""
    port, ids = 0, []
    with ExitStack() as stack:
        for _ in range(workers):
            command = [sys.executable, "-m", "benchmarks.collector", "--serve", log_url, "--port", str(port)]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(process.terminate)
            assert process.stdout is not None
            port = int(process.stdout.readline())
            ids.append(process.pid)
        yield port, ids


def run(log_url: str, shape: Shape, seconds: float, *, rate: float = 0, workers: int = 1) -> Load:
    """One round. Without a URL on an embedded log of its own."""
    with ExitStack() as stack:
        url = log_url or f"embedded://{stack.enter_context(tempfile.TemporaryDirectory())}"
        port, ids = stack.enter_context(serving(url, workers))
        asked = orjson.dumps([port, ids, tuple(shape), seconds, rate]).decode()
        command = [sys.executable, "-m", "benchmarks.collector", "--load", asked]
        return Load(*orjson.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))


ROUNDS: Final = 10


def in_turns(*runs: Callable[[], Load]) -> list[Load]:
    """Of each the round that had the half second with the least CPU, its rate and latencies, and the half seconds of all rounds."""
    rounds = [[run() for run in runs] for _ in range(ROUNDS)]
    best = [min(loads, key=_best_cpu) for loads in zip(*rounds, strict=True)]
    windows = [[cpu for load in loads for cpu in load.cpu_per_event] for loads in zip(*rounds, strict=True)]
    return [one._replace(cpu_per_event=cpu) for one, cpu in zip(best, windows, strict=True)]


def _best_cpu(load: Load) -> float:
    return min(load.cpu_per_event, default=math.inf)


def measure(log_url: str, shape: Shape, seconds: float) -> list[Result]:
    floor, load = in_turns(partial(run, FLOOR, shape, seconds), partial(run, log_url, shape, seconds))
    figures: Sequence[tuple[str, str, Callable[[Load], float]]] = (
        ("events/s", "events/s", lambda one: one.events_per_second),
        ("CPU per event", "µs", _best_cpu),
        ("CPU per event, median half second", "µs", lambda one: statistics.median(one.cpu_per_event)),
        ("latency p50", "ms", lambda one: one.p50),
        ("latency p99", "ms", lambda one: one.p99),
    )
    results = [result(f"{shape.name}: {name}", of(load), unit, floor=of(floor)) for name, unit, of in figures]
    return [*results, *at_seventy_percent(log_url, shape, seconds, load), *by_two(log_url, shape, seconds, load)]


ATTEMPTS: Final = 3


def at_seventy_percent(log_url: str, shape: Shape, seconds: float, closed: Load) -> list[Result]:
    """A generator that sends what is due has more to do than one that waits for answers, so the capacity is that of such a run. Where less
    was taken than 70 % of it, the machine had something else to do meanwhile, and both are measured again."""
    shape, seconds = shape._replace(connections=4 * shape.connections), 3 * seconds
    for _ in range(ATTEMPTS):
        most = run(log_url, shape, seconds, rate=closed.events_per_second / shape.events)
        paced = run(log_url, shape, seconds, rate=0.7 * most.events_per_second / shape.events)
        if paced.events_per_second > 0.67 * most.events_per_second:
            break
    name = f"{shape.name} at 70 %"
    return [
        result(f"{name}: events/s", paced.events_per_second, "events/s", floor=most.events_per_second),
        result(f"{name}: latency p50", paced.p50, "ms"),
        result(f"{name}: latency p99", paced.p99, "ms"),
        result(f"{name}: the generator's own lateness p99", paced.late, "ms"),
    ]


def by_two(log_url: str, shape: Shape, seconds: float, closed: Load) -> list[Result]:
    rate = 0.3 * closed.events_per_second / shape.events
    twice = shape._replace(connections=2 * shape.connections)
    one, two = in_turns(
        partial(run, log_url, shape, seconds, rate=rate),
        partial(run, log_url, twice, seconds, rate=2 * rate, workers=2),
    )
    most = run(log_url, twice, seconds, workers=2)
    name = f"{shape.name}, two processes"
    return [
        result(f"{name}, twice the load: CPU per event", _best_cpu(two), "µs", floor=_best_cpu(one)),
        result(f"{name}, twice the load: events/s", two.events_per_second, "events/s", floor=one.events_per_second),
        result(f"{name}: events/s at most", most.events_per_second, "events/s", floor=closed.events_per_second),
    ]


def main(argv: list[str] | None = None) -> list[Result]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.collector", description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--log", help="kafka://host:port or embedded:///folder")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a round")
    parser.add_argument("--connections", type=int, default=64, help="of singles; batches come on an eighth as many")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if asked.serve is not None:
        serve(asked.serve, asked.port)
        return []
    if asked.load is not None:
        port, servers, shape, seconds, rate = orjson.loads(asked.load)
        print(orjson.dumps(tuple(load(port, servers, Shape(*shape), seconds, rate))).decode())
        return []
    shapes = (
        Shape("singles", 1, asked.connections),
        Shape("batches of 100", 100, max(1, asked.connections // 8)),
    )
    results = [one for shape in shapes for one in measure(asked.log or "", shape, asked.seconds)]
    return finish(f"collector on {(asked.log or 'embedded').partition(':')[0]}", results, asked.json)


if __name__ == "__main__":
    main()
