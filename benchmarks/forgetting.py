"""What deleting people costs: `python -m benchmarks.forgetting [--events N] [--json FILE]`. SQLite and the embedded log.

An event once tombstones exist, against one before there were any; how long one person with a tenth of the events keeps SQLite's writer,
against the same in one transaction; and erasing from the log, against reading it.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import orjson
from sqlalchemy import Connection

from benchmarks.pipeline import BROWSER, cpu, event
from benchmarks.results import Result, finish, result
from millrace.process import settle
from pipeline.enrich import Enrichment, UserAgents
from pipeline.identity import Rules
from pipeline.log import Record, open_log
from pipeline.log.contract import Erasable, Log
from pipeline.privacy.eraser import Eraser, Limits
from pipeline.privacy.hunt import Hunt, Hunted
from pipeline.query.privacy import regulate
from pipeline.store import erasures, forget
from pipeline.store.database import Database
from pipeline.store.migrate import migrate
from pipeline.worker import run_worker
from schemas.events import Event, ExternalId, encode_event
from schemas.topics import EVENTS, RESOLVED

TOMBSTONES = 10_000
BUSY = "somebody-busy"
T = TypeVar("T")


async def measure(count: int, folder: str) -> list[Result]:
    database = Database(f"sqlite:///{folder}/millrace.sqlite")
    migrate(database)
    chance, user_agents = random.Random(7), UserAgents()
    user_agents.describe(BROWSER)
    enrichment = Enrichment(user_agents)
    async with open_log(f"embedded://{folder}/log") as log:
        settle()
        await process(
            log, database, [event(n, chance) for n in range(count)], enrichment
        )  # the store is not empty then
        before = await process(log, database, [event(n, chance) for n in range(count, 2 * count)], enrichment)
        marks = [chance.randbytes(16) for _ in range(TOMBSTONES)]
        database.run_sync(lambda c: erasures.key_of(c))
        database.run_sync(lambda c: erasures.bury(c, marks, erasures.PERSON, time.time_ns() // 1000))
        after = await process(log, database, [event(n, chance) for n in range(2 * count, 3 * count)], enrichment)
        await process(log, database, [busy(n) for n in range(count // 10)], enrichment)
        began = time.perf_counter()
        gone = database.run_sync(lambda c: forget.person(c, ExternalId("user_id", BUSY), "reg_bench"))
        at_once = time.perf_counter() - began
        assert gone.rows["events"] == count // 10
        floor, walked = await scrub(log, Hunted())
        origins = set(database.read_sync(lambda c: erasures.erased_between(c, dict.fromkeys(range(8), (0, 1 << 62)))))
        erasing, _ = await scrub(log, Hunted(dict.fromkeys(gone.ids, gone.at), set(gone.profiles), origins))
        await process(log, database, [busy(n, "again") for n in range(count // 10)], enrichment)
        holds = await delete(log, database)
    database.close()
    return [
        result(f"CPU per event with {TOMBSTONES:,} tombstones (floor: without any)", after, "µs", floor=before),
        result(
            f"longest hold of the writer for a person with {count // 10:,} events (floor: in one transaction)",
            max(holds) * 1e3,
            "ms",
            floor=at_once * 1e3,
        ),
        result(
            f"all its {len(holds)} transactions, the log's among them (floor: in one)",
            sum(holds) * 1e3,
            "ms",
            floor=at_once * 1e3,
        ),
        result(
            f"erasing one event in {walked // (count // 10)} from the log (floor: looking for nobody)",
            walked / erasing,
            "records/s",
            floor=walked / floor,
        ),
    ]


async def delete(log: Log, database: Database) -> list[float]:
    """Deletes the busy person as the eraser does; seconds of each of its transactions, with the commit."""
    holds: list[float] = []
    run = database.run

    async def timed(work: Callable[[Connection], T]) -> T:
        began = time.perf_counter()
        try:
            return await run(work)
        finally:
            holds.append(time.perf_counter() - began)

    database.run = timed  # type: ignore[method-assign]  # the seam would be there for this alone
    made = await regulate(database, {"regulationType": "DELETE_ONLY", "subjectIds": [f"user_id:{BUSY}"]}, (), ())
    eraser = Eraser(log, database, None, Limits())
    await eraser.turn()
    found = database.read_sync(lambda c: erasures.find(c, made.data.regulateId))
    assert found is not None
    assert found.receipt["erased"]["people"] == 1
    return holds


def busy(number: int, run: str = "busy") -> Event:
    body = orjson.dumps({"type": "track", "event": "Clicked", "userId": BUSY, "properties": {"text": "x" * 700}})
    at = time.time_ns() // 1_000
    return Event("web", "track", f"{run}-{number}", None, BUSY, at, None, at, "server", None, None, body)


async def process(log: Log, database: Database, events: list[Event], enrichment: Enrichment) -> float:
    """Appends events and lets a worker catch up; CPU microseconds per event of the worker."""
    for start in range(0, len(events), 1_000):
        some = events[start : start + 1_000]
        await log.append(EVENTS, [Record(one.key, encode_event(one), one.received_at // 1000) for one in some])
    end = sum(offset for _, offset in (await log.bounds(RESOLVED)).values()) + len(events)
    stop, used = asyncio.Event(), cpu()
    worker = asyncio.create_task(run_worker(log, database, stop=stop, enrichment=enrichment))
    while sum(offset for _, offset in (await log.bounds(RESOLVED)).values()) < end:
        if worker.done():
            worker.result()
        await asyncio.sleep(0.02)
    spent = cpu() - used
    stop.set()
    await worker
    return spent / len(events) * 1e6


async def scrub(log: Log, hunted: Hunted) -> tuple[float, int]:
    """Seconds for all of `events`, and how many records that were."""
    assert isinstance(log, Erasable)
    hunt = Hunt(hunted, Rules(), lambda keys: ())
    began, at, end, walked = time.perf_counter(), 0, False, 0
    while not end:
        at, seen, _, end = await log.scrub(EVENTS, at, hunt.judges[EVENTS])
        walked += seen
    return time.perf_counter() - began, walked


def main(argv: list[str] | None = None) -> list[Result]:
    """Runs and prints; returns the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forgetting", description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        results = asyncio.run(measure(asked.events, folder))
    return finish("forgetting", results, asked.json)


if __name__ == "__main__":
    main()
