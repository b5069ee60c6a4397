"""The pipeline: from the log through the database back to the log, against a floor of writing the same rows.

`python -m benchmarks.pipeline [--events N] [--database URL …] [--json FILE]`. Users follow a power law, 30 % of the calls are
identify, an event is about 1 KB and says its user agent, one of fifty. Without `--database`: SQLite, and PostgreSQL where a server can be started.
"""

import argparse
import asyncio
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import text

from benchmarks.results import Result, finish, result
from millrace.process import settle
from pipeline.enrich import Enrichment, UserAgents
from pipeline.log import Record, open_log
from pipeline.store import accepted
from pipeline.store.database import Database
from pipeline.store.migrate import migrate
from pipeline.worker import run_worker
from schemas.events import Event, encode_event
from schemas.topics import EVENTS, RESOLVED

PEOPLE = 13_000
BROWSER = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{}.0.0.0 Safari/537.36"
)
AT = 1_790_000_000_000_000


def event(number: int, chance: random.Random) -> Event:
    """One call of a shop's stream: returning devices, logins, some with an e-mail address."""
    person = int(chance.paretovariate(0.7)) % PEOPLE
    kind = "identify" if chance.random() < 0.3 else "track"
    device, user = f"device-{person}-{chance.randrange(2)}", f"user-{person}" if chance.random() < 0.5 else None
    message = f"message-{number:09d}-{chance.getrandbits(64):016x}"
    body: dict[str, Any] = {
        "type": kind,
        "messageId": message,
        "anonymousId": device,
        "userId": user,
        "context": {
            "library": {"name": "bench"},
            "page": {"url": "https://shop.test/" + "p" * 400},
            "userAgent": BROWSER.format(100 + person % 50),
        },
    }
    if kind == "identify":
        body["traits"] = {"email": f"{person}@shop.test", "name": f"Person {person}", "plan": chance.choice("abc")}
    else:
        body |= {"event": "Product Viewed", "properties": {"sku": number % 997, "price": 9.5, "note": "n" * 200}}
    raw = orjson.dumps(body)
    return Event("web", kind, message, device, user, AT + number, None, AT + number, "server", None, None, raw)


async def measure(url: str, count: int, folder: str) -> list[Result]:
    """Fills a log, then lets one worker process it."""
    database = Database(url)
    migrate(database)
    chance = random.Random(7)
    async with open_log(f"embedded://{folder}/log") as log:
        for start in range(0, count, 1_000):
            events = [event(number, chance) for number in range(start, min(start + 1_000, count))]
            await log.append(EVENTS, [Record(one.key, encode_event(one), one.received_at // 1000) for one in events])
        user_agents = UserAgents()
        user_agents.describe(BROWSER)  # the expressions are compiled once in the life of a process
        settle()  # as the process role does
        stop, began, used = asyncio.Event(), time.perf_counter(), cpu()
        worker = asyncio.create_task(run_worker(log, database, stop=stop, enrichment=Enrichment(user_agents)))
        while sum(end for _, end in (await log.bounds(RESOLVED)).values()) < count:
            if worker.done():
                worker.result()
            await asyncio.sleep(0.02)
        wall, spent = time.perf_counter() - began, cpu() - used
        stop.set()
        await worker
    floor = copy_again(database, count)
    name = "PostgreSQL" if database.postgres else "SQLite"
    database.close()
    return [
        result(f"pipeline, {name} (floor: write its event rows)", count / wall, "events/s", floor=count / floor),
        result(f"pipeline, {name}: CPU of the worker", spent / count * 1e6, "µs/event"),
    ]


def copy_again(database: Database, count: int) -> float:
    """Seconds to write the event rows once more, in the same order and polls, into a table of the same shape."""
    rows = database.read_sync(
        lambda c: [
            accepted.Row(*row)
            for row in c.execute(text('SELECT * FROM events ORDER BY processed_at, partition, "offset"'))
        ]
    )
    for table in ("events", "event_keys", "event_keys_new", "event_times"):
        database.run_sync(lambda c, table=table: c.execute(text(f"DELETE FROM {table}")))  # type: ignore[misc]  # bound now
    began = time.perf_counter()
    for start in range(0, count, 4_000):
        part = rows[start : start + 4_000]
        database.run_sync(partial(accepted.insert, rows=part))
    return time.perf_counter() - began


def cpu() -> float:
    """User and system seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@contextmanager
def databases(wanted: list[str], folder: str) -> Iterator[list[str]]:
    """The databases to measure: those asked for, else SQLite and a PostgreSQL server of our own."""
    if wanted:
        yield wanted
        return
    from tests.services.postgres import PostgresServer, postgres_binaries
    from tests.services.process import ServiceAbsent

    urls = [f"sqlite:///{folder}/bench.sqlite"]
    try:
        server = PostgresServer(postgres_binaries())
    except ServiceAbsent as error:
        print(f"PostgreSQL left out: {error}", file=sys.stderr)
        yield urls
        return
    server.start()
    try:
        yield [*urls, server.create_database()]
    finally:
        server.stop()


def main(argv: list[str] | None = None) -> list[Result]:
    """Runs and prints; returns the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--database", action="append", default=[])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(argv)
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder, databases(asked.database, folder) as urls:
        for number, url in enumerate(urls):
            part = f"{folder}/{number}"
            results += asyncio.run(measure(url, asked.events, part))
    return finish("pipeline", results, asked.json)


if __name__ == "__main__":
    main()
