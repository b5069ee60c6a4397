"""From the request to the webhook, through every process of `millrace up`: time per event at half load, and memory.

`python -m benchmarks.end_to_end [--seconds S] [--events N] [--json FILE]`. A burst first shows what the whole machine carries (load
generator and receiver included); then events come at half that rate, each with the moment it was sent, and the receiver
notes how long it took. Last, memory of all processes is read while N events run through.
"""

import argparse
import asyncio
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import psutil
from aiohttp import web

from benchmarks.results import Result, finish, result

KEY = "bench-write-key"
BATCH = 50


class Sink:
    """A webhook receiver that counts, and times events that say when they were sent."""

    def __init__(self) -> None:
        self.count = 0
        self.delays: list[float] = []

    async def receive(self, request: web.Request) -> web.Response:
        """One delivery: a JSON array of events."""
        events = orjson.loads(await request.read())
        now = time.time()
        self.count += len(events)
        self.delays += [now - event["properties"]["sent"] for event in events if "sent" in event["properties"]]
        return web.Response()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Serves on a free port; yields the address."""
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/", self.receive)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
        finally:
            await runner.cleanup()


@asynccontextmanager
async def deployment(folder: Path, sink: str) -> AsyncIterator[tuple[str, psutil.Process]]:
    """`millrace up` on the embedded defaults, with a webhook beside the DuckDB warehouse."""
    config = folder / "millrace.yaml"
    config.write_text(
        "sources:\n  web:\n    write_key: " + KEY + "\n"
        "outbound:\n  allow: [127.0.0.0/8]\n"
        "destinations:\n"
        "  hook:\n    type: webhook\n    settings:\n      url: " + sink + "\n"
        "  warehouse:\n    type: duckdb\n"
    )
    command = [sys.executable, "-m", "millrace", "up", "--config", str(config), "--data", str(folder / "data")]
    process = await asyncio.create_subprocess_exec(
        *command,
        "--port",
        "0",
        stdout=asyncio.subprocess.PIPE,
        stderr=(folder / "errors.log").open("wb"),
        env=environment(),
    )
    assert process.stdout is not None
    try:
        address = ""
        async with asyncio.timeout(30):
            while "http://" not in address:
                line = (await process.stdout.readline()).decode()
                if not line:
                    raise RuntimeError((folder / "errors.log").read_text())
                address = line
        drain = asyncio.create_task(process.stdout.read())
        address = "http://" + address.split("http://")[1].split()[0].rstrip("/")
        yield address, psutil.Process(process.pid)
        drain.cancel()
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


def environment() -> dict[str, str]:
    """Ours, without settings that would lead elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}


class Load:
    """A stream of events of returning visitors, in batches, each body made once and patched."""

    def __init__(self, session: aiohttp.ClientSession, address: str) -> None:
        self._session, self._url = session, f"{address}/v1/batch"
        self._chance = random.Random(5)
        self.sent = 0

    def _event(self, sent: float | None) -> dict[str, Any]:
        self.sent += 1
        person = int(self._chance.paretovariate(0.7)) % 5_000
        return {
            "type": "track",
            "event": "Product Viewed",
            "messageId": f"m{self.sent}-{self._chance.getrandbits(48):x}",
            "anonymousId": f"device-{person}",
            "properties": {"sku": person % 97, "note": "n" * 600} | ({} if sent is None else {"sent": sent}),
        }

    async def batch(self, *, timed: bool) -> None:
        """Sends one batch, as often as it takes."""
        sent = time.time() if timed else None
        body = orjson.dumps({"batch": [self._event(sent) for _ in range(BATCH)], "writeKey": KEY})
        while True:
            async with self._session.post(self._url, data=body) as answer:
                if answer.status == 200:
                    return
                await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))

    async def burst(self, count: int) -> None:
        """Sends `count` events as fast as they are taken."""

        async def worker(batches: int) -> None:
            for _ in range(batches):
                await self.batch(timed=False)

        await asyncio.gather(*(worker(count // BATCH // 8) for _ in range(8)))

    async def steady(self, rate: float, seconds: float) -> None:
        """Sends `rate` events a second, whatever the answers take."""
        began, running = time.perf_counter(), set[asyncio.Task[None]]()
        for number in range(int(rate * seconds / BATCH)):
            await asyncio.sleep(max(0.0, began + number * BATCH / rate - time.perf_counter()))
            task = asyncio.create_task(self.batch(timed=True))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)


async def until(sink: Sink, count: int) -> None:
    """Returns when the receiver has seen `count` events."""
    async with asyncio.timeout(600):
        while sink.count < count:
            await asyncio.sleep(0.01)


def memory(process: psutil.Process) -> dict[str, float]:
    """MiB per role, resident."""
    sizes: dict[str, float] = {}
    for one in process.children(recursive=True):
        role = next((word for word in ("collect", "process", "deliver") if word in one.cmdline()), None)
        if role is not None:
            sizes[role] = sizes.get(role, 0.0) + one.memory_info().rss / (1 << 20)
    return sizes


async def measure(seconds: float, events: int) -> list[Result]:
    """The three parts, on one deployment."""
    sink = Sink()
    with tempfile.TemporaryDirectory() as folder:
        async with (
            sink.listening() as url,
            deployment(Path(folder), url) as (address, process),
            aiohttp.ClientSession() as session,
        ):
            load = Load(session, address)
            await load.burst(4_000)
            await until(sink, load.sent)
            began, before = time.perf_counter(), sink.count
            await load.burst(40_000)
            await until(sink, load.sent)
            capacity = (sink.count - before) / (time.perf_counter() - began)
            await asyncio.sleep(2)
            await load.steady(capacity / 2, seconds)
            await until(sink, load.sent)
            delays = sorted(sink.delays)
            results = [
                result("end to end: what the machine carries", capacity, "events/s"),
                result("end to end at half load: p50", statistics.median(delays) * 1e3, "ms"),
                result("end to end at half load: p99", delays[int(len(delays) * 0.99)] * 1e3, "ms"),
            ]
            sink.delays.clear()
            first = memory(process)
            while load.sent < events:
                await load.burst(20_000)
                await until(sink, load.sent - 100_000)
            await until(sink, load.sent)
            last = memory(process)
            results += [
                result(f"memory of {role} after {load.sent:,} events", last[role], "MiB", floor=first[role])
                for role in sorted(last)
            ]
            return results


def main(argv: list[str] | None = None) -> list[Result]:
    """Runs and prints; returns the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(argv)
    return finish("end to end (memory: floor = before)", asyncio.run(measure(asked.seconds, asked.events)), asked.json)


if __name__ == "__main__":
    main()
