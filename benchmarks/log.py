"""What the log costs: `python -m benchmarks.log [--log URL] [--json FILE] [--events N]`.

CPU is user + system of this process with its threads, per event of 700 bytes; on Kafka that is the client's share alone. The floor of appending
is a bare loop of write and fdatasync of the same bytes to a new file, that of reading is os.read of the same bytes, both
measured in turn with ours, so that a noisy machine strikes both.
"""

import argparse
import asyncio
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple
from uuid import uuid4

import structlog
import uvloop

from benchmarks.results import Result, finish, result
from pipeline.log import Log, Record, open_log
from schemas.topics import EVENTS, RESOLVED

KEY_BYTES, VALUE_BYTES = 36, 664
EVENT_BYTES: Final = KEY_BYTES + VALUE_BYTES
GROUPS: Final = (1, 10, 100, 1_000)
ROUNDS: Final = 5
READ_GROUP: Final = 100
CALLERS: Final = 256
SUBSCRIPTIONS: Final = 5
IDLE_SECONDS: Final = 3.0
PROBES: Final = 300


class Cost(NamedTuple):
    """Seconds per event."""

    cpu: float
    wall: float


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Measures, prints a table, writes JSON where asked; returns the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.log", description=__doc__)
    parser.add_argument("--log", metavar="URL", help="a log to measure; a new embedded one when left out")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows there too")
    parser.add_argument("--events", metavar="N", type=int, default=100_000, help="events per round at most")
    options = parser.parse_args(argv)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder:
        url = options.log or f"embedded://{folder}/log"
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # the loop of every role
            results = runner.run(_measure(url, Path(folder), options.events))
    return finish("log", results, options.json)


async def _measure(url: str, folder: Path, most: int) -> list[Result]:
    results: list[Result] = []
    async with open_log(url) as log:
        for group in GROUPS:
            calls = max(1, min(400, most // group))
            ours, floor = await _append(log, folder, group, calls)
            results += _rows(f"append, groups of {group}", ours, floor)
        ours, floor = await _append_singles(log, folder, min(20_000, most))
        results += _rows(f"append, singles of {CALLERS} callers", ours, floor)
        ours, floor = await _read(log, folder, most)
        results += _rows(f"read, groups of {READ_GROUP}", ours, floor)
        results += await _latency(log, url)
        results.append(await _idle(log))
    return results


def _rows(name: str, ours: Cost, floor: Cost) -> list[Result]:
    return [
        result(f"{name}: CPU", ours.cpu * 1e6, "µs/event", floor=floor.cpu * 1e6),
        result(f"{name}: rate", 1 / ours.wall, "events/s", floor=1 / floor.wall),
    ]


# ── Appending ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _records(count: int) -> list[Record]:
    now = int(time.time() * 1000)
    return [Record(os.urandom(KEY_BYTES // 2).hex().encode(), os.urandom(VALUE_BYTES), now) for _ in range(count)]


async def _append(log: Log, folder: Path, group: int, calls: int) -> tuple[Cost, Cost]:
    records = _records(group)

    async def append() -> None:
        for _ in range(calls):
            await log.append(EVENTS, records)

    data = os.urandom(EVENT_BYTES * group)
    return await _both(append, lambda: _write(folder, data, calls), group * calls)


async def _append_singles(log: Log, folder: Path, count: int) -> tuple[Cost, Cost]:
    """Many callers, each waiting for its event before it sends the next. The floor has them in perfect groups."""
    records = _records(CALLERS)

    async def caller(record: Record) -> None:
        for _ in range(count // CALLERS):
            await log.append(EVENTS, [record])

    async def append() -> None:
        await asyncio.gather(*map(caller, records))

    calls = max(1, count // CALLERS)
    data = os.urandom(EVENT_BYTES * CALLERS)
    return await _both(append, lambda: _write(folder, data, calls), calls * CALLERS)


def _write(folder: Path, data: bytes, calls: int) -> None:
    """To a file that stays, as the log's do: removing it would hand its warm pages to the next round."""
    descriptor, _ = tempfile.mkstemp(dir=folder, prefix="floor-")
    for _ in range(calls):
        os.write(descriptor, data)
        os.fdatasync(descriptor)
    os.close(descriptor)


# ── Reading ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def _read(log: Log, folder: Path, count: int) -> tuple[Cost, Cost]:
    records = _records(READ_GROUP)
    for _ in range(-(-count // READ_GROUP)):
        await log.append(RESOLVED, records)
    path = folder / "floor"
    path.write_bytes(os.urandom(EVENT_BYTES * 1_000) * -(-count // 1_000))

    async def read() -> None:
        seen = 0
        async with log.subscribe(RESOLVED, group=uuid4().hex) as subscription:
            async for batches in subscription:
                seen += sum(len(batch.records) for batch in batches)
                await subscription.commit(batches)
                if seen >= count:
                    break

    def floor() -> None:
        descriptor = os.open(path, os.O_RDONLY)
        while os.read(descriptor, 512 << 10):
            pass
        os.close(descriptor)

    return await _both(read, floor, count)


# ── Waiting ───────────────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def _listening(log: Log, heard: Callable[[int], None]) -> AsyncIterator[None]:
    """A member that is told the time at which each record arrived."""
    ready = asyncio.Event()

    async def listen() -> None:
        async with log.subscribe(EVENTS, group=uuid4().hex, start=from_the_end) as subscription:
            async for batches in subscription:
                now = time.perf_counter_ns()
                for _ in range(sum(len(batch.records) for batch in batches)):
                    heard(now)

    async def from_the_end(partitions: Sequence[int]) -> dict[int, int]:
        bounds = await log.bounds(EVENTS)
        ready.set()
        return {partition: bounds[partition][1] for partition in partitions}

    task = asyncio.create_task(listen())
    try:
        await ready.wait()
        await asyncio.sleep(0.5)
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _latency(log: Log, url: str) -> list[Result]:
    """From an append's return to the record's arrival at a member that has the log open on its own, as another process has."""
    arrived: asyncio.Queue[int] = asyncio.Queue()
    delays = []
    record = _records(1)
    async with open_log(url) as other, _listening(other, arrived.put_nowait):
        for probe in range(PROBES):
            await asyncio.sleep(0.002 if probe % 2 else 0.02)
            await log.append(EVENTS, record)
            durable = time.perf_counter_ns()
            delays.append(max(0, await arrived.get() - durable) / 1e6)
    percentiles = statistics.quantiles(delays, n=100)
    return [
        result("durable to arrival elsewhere: p50", percentiles[49], "ms"),
        result("durable to arrival elsewhere: p99", percentiles[98], "ms"),
    ]


async def _idle(log: Log) -> Result:
    """The share of a core that waiting subscriptions cost."""
    async with asyncio.TaskGroup() as tasks:
        done = asyncio.Event()

        async def wait() -> None:
            async with _listening(log, lambda now: None):
                await done.wait()

        for _ in range(SUBSCRIPTIONS):
            tasks.create_task(wait())
        await asyncio.sleep(3.0)
        before = _cpu()
        await asyncio.sleep(IDLE_SECONDS)
        used = _cpu() - before
        done.set()
    return result(f"{SUBSCRIPTIONS} idle subscriptions: CPU", 100 * used / IDLE_SECONDS, "% of core")


# ── Clocks ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def _both(ours: Callable[[], Awaitable[None]], floor: Callable[[], None], events: int) -> tuple[Cost, Cost]:
    """The medians of rounds taken in turn."""
    costs: tuple[list[Cost], list[Cost]] = ([], [])
    for _ in range(ROUNDS):
        cpu, wall = _cpu(), time.perf_counter()
        await ours()
        between_cpu, between = _cpu(), time.perf_counter()
        floor()
        costs[0].append(Cost((between_cpu - cpu) / events, (between - wall) / events))
        costs[1].append(Cost((_cpu() - between_cpu) / events, (time.perf_counter() - between) / events))
    return _median(costs[0]), _median(costs[1])


def _median(costs: Sequence[Cost]) -> Cost:
    return Cost(statistics.median(cost.cpu for cost in costs), statistics.median(cost.wall for cost in costs))


if __name__ == "__main__":
    main(sys.argv[1:])
