"""Ten destinations, four of them in trouble: what the other six notice. `python -m benchmarks.isolation [--rate N] [--seconds N]`.

Events arrive at a steady rate while one process delivers them. Six take a millisecond for a call; of the four, one hangs, one
answers 500, one 429 with a wait of 30 seconds, and one takes a hundred times as long. The floor of each figure of the six is
the same figure of a run without the four. The runs take turns, and the median of each figure counts.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median, quantiles

import structlog
import uvloop

from benchmarks.delivery import NoSettings, check, connect, cpu, record
from benchmarks.results import Result, finish, result
from destinations.contract import DELIVERED, Action, Definition, Outcome, RawEvent, Retry
from millrace.process import settle
from pipeline.delivery.engine import Destination, run_delivery
from pipeline.log import open_log
from pipeline.store.database import Database
from pipeline.store.migrate import migrate
from schemas.events import TYPES
from schemas.topics import RESOLVED

Deliver = Callable[[None, Sequence[RawEvent]], Awaitable[Sequence[Outcome]]]
CALL = 0.001  # seconds
TURNS = 3


class Good:
    """Takes everything, and notes when."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}

    async def __call__(self, client: None, batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        """One call."""
        await asyncio.sleep(CALL)
        now = time.perf_counter()
        self.at.update((one["messageId"], now) for one in batch)
        return [DELIVERED] * len(batch)


async def hang(client: None, batch: Sequence[RawEvent]) -> Sequence[Outcome]:
    """Never answers."""
    await asyncio.Event().wait()
    return []


async def fail(client: None, batch: Sequence[RawEvent]) -> Sequence[Outcome]:
    """500."""
    return [Retry("http 500")] * len(batch)


async def throttle(client: None, batch: Sequence[RawEvent]) -> Sequence[Outcome]:
    """429."""
    return [Retry("http 429", after=30.0)] * len(batch)


async def crawl(client: None, batch: Sequence[RawEvent]) -> Sequence[Outcome]:
    """A hundred times slower."""
    await asyncio.sleep(CALL * 100)
    return [DELIVERED] * len(batch)


def destination(name: str, deliver: Deliver) -> Destination:
    """A destination of batches by a hundred."""
    action = Action(name="take", payload=None, types=TYPES, max_batch=100, deliver=deliver, atomic=True, concurrency=8)
    definition = Definition(
        name="script",
        description="Does as it is told.",
        settings=NoSettings,
        connect=connect,
        check=check,
        actions=(action,),
    )
    return Destination(name=name, definition=definition, settings=NoSettings())


class Figures:
    """Of one run: latencies of the six in milliseconds, CPU µs per event of the process, how long they took for everything."""

    def __init__(self, latencies: Sequence[float], cpu: float, seconds: float) -> None:
        cuts = quantiles(latencies, n=100)
        self.p50, self.p99 = cuts[49] * 1e3, cuts[98] * 1e3
        self.cpu, self.seconds = cpu, seconds


async def run(folder: Path, rate: int, seconds: float, troubled: Sequence[Deliver]) -> Figures:
    """Delivers a stream to six good destinations and four others."""
    database = Database(f"sqlite:///{folder}/bench.sqlite", repeatable=True)
    await asyncio.to_thread(migrate, database)
    good = [Good() for _ in range(6)]
    destinations = [destination(f"good{n}", one) for n, one in enumerate(good)]
    destinations += [destination(f"other{n}", one) for n, one in enumerate(troubled)]
    chance, sent, step = random.Random(7), dict[str, float](), max(1, rate // 50)
    stop, count = asyncio.Event(), int(rate * seconds)
    async with open_log(f"embedded://{folder}/log") as log:
        engine = asyncio.create_task(run_delivery(log, database, destinations, stop=stop, folder=str(folder)))
        await asyncio.sleep(1)
        began, used = time.perf_counter(), cpu()
        for start in range(0, count, step):
            await asyncio.sleep(max(0.0, began + start / rate - time.perf_counter()))
            now = time.perf_counter()
            sent.update((f"message-{number:09d}", now) for number in range(start, start + step))
            await log.append(RESOLVED, [record(number, chance) for number in range(start, start + step)])
        while any(len(one.at) < len(sent) for one in good):
            if engine.done():
                engine.result()
            await asyncio.sleep(0.01)
        wall, spent = time.perf_counter() - began, cpu() - used
        stop.set()
        await engine
    database.close()
    return Figures([one.at[name] - at for one in good for name, at in sent.items()], spent / len(sent) * 1e6, wall)


def main(argv: list[str] | None = None) -> list[Result]:
    """Runs and prints; returns the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.isolation", description=__doc__)
    parser.add_argument("--rate", type=int, default=1_000, help="events per second")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(argv)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    settle()
    calm: list[Figures] = []
    troubled: list[Figures] = []
    for _ in range(TURNS):
        for into, others in ((calm, []), (troubled, [hang, fail, throttle, crawl])):
            with tempfile.TemporaryDirectory() as folder:
                once = partial(run, Path(folder), asked.rate, asked.seconds, others)
                into.append(uvloop.run(once()))
    results = [
        result(f"six beside four in trouble: {what}", middle(troubled, name), unit, floor=middle(calm, name))
        for what, name, unit in (
            ("latency p50", "p50", "ms"),
            ("latency p99", "p99", "ms"),
            ("time for all events", "seconds", "s"),
            ("CPU of the process", "cpu", "µs/event"),
        )
    ]
    return finish("isolation", results, asked.json)


def middle(runs: Sequence[Figures], name: str) -> float:
    """The median of a figure."""
    return float(median(getattr(one, name) for one in runs))


if __name__ == "__main__":
    main()
