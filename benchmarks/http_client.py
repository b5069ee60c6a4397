"""Our HTTP client: what a request costs, beside aiohttp's client and the least that a socket and an event loop take.

`python -m benchmarks.http_client [--requests N] [--json FILE]`. POST requests of 1 KB with the headers of a webhook, as many at
once as a destination has under way, to a sink in a process of its own. The floor is the same bytes, written ready made, with whatever comes back
taken for the answer. Rounds of the three take turns; of each the best counts. CPU is user + system of this process.
"""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Final, NamedTuple, cast

import aiohttp
import uvloop

from benchmarks.delivery import cpu, sink
from benchmarks.results import Result, finish, result
from destinations.guard import Outbound
from destinations.http.client import session
from destinations.http.request import Request
from millrace.process import settle

AT_ONCE: Final = 8
ROUNDS: Final = 5
TIMEOUT: Final = 10.0  # seconds
BODY: Final = b"[" + b"x" * 1_000 + b"]"
SAME: Final = {"User-Agent": "Millrace/0", "Content-Type": "application/json"}
OTHER: Final = {"Idempotency-Key": "0123456789abcdef0123456789abcdef"}

Run = Callable[[str, int], Awaitable[None]]


class Cost(NamedTuple):
    """Of one request: microseconds of CPU and of time."""

    cpu: float
    wall: float


class Wire(asyncio.Protocol):
    """Writes ready bytes, and takes the next thing it reads for the answer."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass of it
        self.answered: asyncio.Future[None] | None = None

    def data_received(self, data: bytes) -> None:
        """The answer."""
        if self.answered is not None:
            self.answered.set_result(None)


async def bare(url: str, count: int) -> None:
    """The floor."""
    request = Request("POST", url, SAME)
    data, loop = request.written(BODY, OTHER), asyncio.get_running_loop()

    async def send(times: int) -> None:
        _, wire = await loop.create_connection(Wire, request.origin.host, request.origin.port)
        for _ in range(times):
            wire.answered = loop.create_future()
            wire.transport.write(data)
            await wire.answered
        wire.transport.abort()

    await asyncio.gather(*(send(count // AT_ONCE) for _ in range(AT_ONCE)))


async def ours(url: str, count: int) -> None:
    """The client that destinations have."""
    request = Request("POST", url, SAME)

    async def send(times: int) -> None:
        for _ in range(times):
            await http.send(request, BODY, OTHER, timeout=TIMEOUT)

    async with session(Outbound(allow=(ip_network("127.0.0.0/8"),))) as http:
        await asyncio.gather(*(send(count // AT_ONCE) for _ in range(AT_ONCE)))


async def theirs(url: str, count: int) -> None:
    """aiohttp's."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)

    async def send(times: int) -> None:
        for _ in range(times):
            async with http.post(url, data=BODY, headers=SAME | OTHER, timeout=timeout) as response:
                await response.read()

    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
        await asyncio.gather(*(send(count // AT_ONCE) for _ in range(AT_ONCE)))


async def timed(run: Run, url: str, count: int) -> Cost:
    """One round."""
    began, used = time.perf_counter(), cpu()
    await run(url, count)
    return Cost((cpu() - used) / count * 1e6, (time.perf_counter() - began) / count * 1e6)


async def measure(url: str, count: int) -> list[Result]:
    """All rounds."""
    settle()
    runs: dict[str, Run] = {"floor": bare, "ours": ours, "aiohttp": theirs}
    costs: dict[str, list[Cost]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            costs[name].append(await timed(run, url, count))
    best = {name: Cost(*map(min, zip(*those, strict=True))) for name, those in costs.items()}
    floor = best.pop("floor")
    return [
        figure
        for name, cost in best.items()
        for figure in (
            result(f"{name}: CPU", cost.cpu, "µs/request", floor=floor.cpu),
            result(f"{name}: throughput", 1e6 / cost.wall, "requests/s", floor=1e6 / floor.wall),
        )
    ]


def main(argv: list[str] | None = None) -> list[Result]:
    """Runs and prints; returns the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000, help="of each round")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(argv)
    with sink() as url:
        results = uvloop.run(measure(url, asked.requests))
    return finish("HTTP client", results, asked.json)


if __name__ == "__main__":
    main()
