"""What an event costs the pipeline while the store grows: `python -m benchmarks.growth [--events N] [--database URL …]`.

The stream of `benchmarks.pipeline`, processed a hundred thousand events at a time; the worker's CPU per event with the first of
them in the store is the floor of what it costs with all of them. What a PostgreSQL server of our own uses is part of it.
"""

import argparse
import asyncio
import os
import random
import tempfile
from contextlib import suppress
from pathlib import Path

from benchmarks.pipeline import BROWSER, cpu, databases, event
from benchmarks.results import Result, finish, result
from millrace.process import settle
from pipeline.enrich import Enrichment, UserAgents
from pipeline.log import Log, Record, open_log
from pipeline.log.contract import Retention
from pipeline.store.database import Database
from pipeline.store.migrate import migrate
from pipeline.worker import run_worker
from schemas.events import encode_event
from schemas.topics import EVENTS, RESOLVED

STEP = 100_000
KEPT = Retention(bytes=1 << 30)


async def measure(url: str, count: int, folder: str) -> list[Result]:
    """CPU microseconds per event of the first step and of the median of the last five."""
    database = Database(url)
    migrate(database)
    chance, costs = random.Random(7), list[float]()
    user_agents = UserAgents()
    user_agents.describe(BROWSER)
    async with open_log(f"embedded://{folder}/log", retention=KEPT) as log:
        settle()
        for start in range(0, count, STEP):
            await fill(log, start, chance)
            costs.append(await process(log, database, start + STEP, Enrichment(user_agents)))
            print(f"{start + STEP:>9,} events: {costs[-1]:.1f} µs", flush=True)
    name = "PostgreSQL" if database.postgres else "SQLite"
    database.close()
    late = sorted(costs[-5:])[len(costs[-5:]) // 2]
    return [
        result(f"{name}: CPU per event with {count:,} in the store (floor: with {STEP:,})", late, "µs", floor=costs[0])
    ]


async def fill(log: Log, start: int, chance: random.Random) -> None:
    for first in range(start, start + STEP, 1_000):
        events = [event(number, chance) for number in range(first, first + 1_000)]
        await log.append(EVENTS, [Record(one.key, encode_event(one), one.received_at // 1000) for one in events])


async def process(log: Log, database: Database, end: int, enrichment: Enrichment) -> float:
    """Lets a worker catch up; CPU microseconds per event."""
    stop, used = asyncio.Event(), cpu() + servers()
    worker = asyncio.create_task(run_worker(log, database, stop=stop, enrichment=enrichment))
    while sum(offset for _, offset in (await log.bounds(RESOLVED)).values()) < end:
        if worker.done():
            worker.result()
        await asyncio.sleep(0.02)
    spent = cpu() + servers() - used
    stop.set()
    await worker
    return spent / STEP * 1e6


def servers() -> float:
    """User and system seconds of our child processes and of theirs, those that ended among them."""
    parents, used = dict[int, int](), dict[int, int]()
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # ended meanwhile
            fields = file.read_text().rpartition(")")[2].split()
            parents[int(file.parent.name)], used[int(file.parent.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    ours, found = {os.getpid()}, set[int]()
    while ours:
        ours = {pid for pid, parent in parents.items() if parent in ours}
        found |= ours
    return sum(used[pid] for pid in found) / os.sysconf("SC_CLK_TCK")


def main(argv: list[str] | None = None) -> list[Result]:
    """Runs and prints; returns the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--database", action="append", default=[])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(argv)
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder, databases(asked.database, folder) as urls:
        for number, url in enumerate(urls):
            results += asyncio.run(measure(url, asked.events, f"{folder}/{number}"))
    return finish("growth", results, asked.json)


if __name__ == "__main__":
    main()
