"""The pipeline: from the log through the database back to the log, against a floor of writing the same rows.

`python -m benchmarks.pipeline [--events N] [--database URL …] [--json FILE]`. Users follow a power law, 30 % of the calls are
identify, an event is about 1 KB and says its user agent, one of fifty. First what each stage costs, one after the other in one
thread; then one process and two that share the partitions, as `millrace up --processors 2` runs them. Without `--database`: SQLite, and
PostgreSQL where a server can be started; the tables of one that is named are emptied.
"""

import argparse
import asyncio
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.synchronize import Barrier
from multiprocessing.synchronize import Event as Flag
from pathlib import Path
from typing import Any, Final
from unittest import mock

import orjson
import psutil
import uvloop
from sqlalchemy import Connection, text

from benchmarks.results import Result, finish, result
from millrace.process import settle
from pipeline.emission import emit
from pipeline.enrich import Enrichment, UserAgents
from pipeline.identity import DEFAULT
from pipeline.log import Log, Record, open_log
from pipeline.parse import parse
from pipeline.store import accepted, intake, schema
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


def measure(url: str, count: int, folder: str) -> list[Result]:
    """The stages, then the whole with one process and with two."""
    database = Database(url)
    migrate(database)
    name = "PostgreSQL" if database.postgres else "SQLite"
    results = [
        result(f"pipeline, {name}: {stage}", spent / count * 1e6, "µs/event")
        for stage, spent in uvloop.run(stages(database, count, f"{folder}/stages")).items()
    ]
    for processes in (1, 2):
        empty(database)
        run = uvloop.run(throughput(database, count, f"{folder}/{processes}", processes))
        label = f"pipeline, {name}, {processes} process{'es' if processes > 1 else ''}"
        floor = copy_again(database, count)
        results += [
            result(f"{label} (floor: write its event rows)", count / run["wall"], "events/s", floor=count / floor),
            result(f"{label}: CPU", run["ours"] / count * 1e6, "µs/event"),
        ]
        if "server" in run:
            results.append(result(f"{label}: CPU of the server", run["server"] / count * 1e6, "µs/event"))
    database.close()
    return results


async def fill(log: Log, count: int) -> None:
    """Lets the log have `count` events."""
    chance = random.Random(7)
    for start in range(0, count, 1_000):
        events = [event(number, chance) for number in range(start, min(start + 1_000, count))]
        await log.append(EVENTS, [Record(one.key, encode_event(one), one.received_at // 1000) for one in events])


# ── Stages ────────────────────────────────────────────────────────────────────────────────────────────────────────

POLL: Final = 4_000
_STEPS: Final = (
    ("find what came before", accepted, "find"),
    ("load the graph", intake, "load"),
    ("resolve", intake, "_resolve"),
    ("save the graph", intake, "save"),
    ("write event rows", accepted, "insert"),
)


async def stages(database: Database, count: int, folder: str) -> dict[str, float]:
    """Seconds of CPU that each stage takes of us, one poll after the other."""
    enrichment, stop = Enrichment(_user_agents()), asyncio.Event()
    spent: defaultdict[str, float] = defaultdict(float)
    async with open_log(f"embedded://{folder}/log") as log:
        await fill(log, count)
        settle()
        with ExitStack() as patched:
            for stage, module, function in _STEPS:
                clocked = _clocked(spent, stage, getattr(module, function))
                patched.enter_context(mock.patch.object(module, function, clocked))
            emitted = dict.fromkeys(range(log.partitions(EVENTS)), 0)
            async with log.subscribe(EVENTS, group="stages", max_records=POLL) as subscription:
                polls = aiter(subscription)
                for _ in range(count):
                    with _spending(spent, "read the log"):
                        batches = await anext(polls)
                    with _spending(spent, "decode, extract and enrich"):
                        work = parse(batches, enrichment, DEFAULT)
                    with _spending(spent, "transaction"):
                        apply = partial(intake.apply, work=work, emitted=emitted, rules=DEFAULT)
                        emissions = database.run_sync(apply)
                    with _spending(spent, "emit"):
                        await emit(log, emissions, stop)
                    emitted.update(work.ends)
                    if sum(emitted.values()) == count:
                        break
    named = {stage: spent[stage] for stage, _, _ in _STEPS}
    whole = spent.pop("transaction")
    return {
        "read the log": spent["read the log"],
        "decode, extract and enrich": spent["decode, extract and enrich"],
        **named,
        "the rest of the transaction, and its commit": whole - sum(named.values()),
        "emit": spent["emit"],
    }


def _clocked(spent: defaultdict[str, float], stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **named: Any) -> Any:
        with _spending(spent, stage):
            return function(*arguments, **named)

    return run


@contextmanager
def _spending(spent: defaultdict[str, float], stage: str) -> Iterator[None]:
    began = time.process_time_ns()
    yield
    spent[stage] += (time.process_time_ns() - began) / 1e9


# ── Processes ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def throughput(database: Database, count: int, folder: str, processes: int) -> dict[str, float]:
    """Lets processes work off a log of `count` events: seconds of wall time, and of CPU, ours and the database server's where it
    runs here."""
    context = multiprocessing.get_context("spawn")
    start, stop, used = context.Barrier(processes + 1), context.Event(), context.Queue()
    url = f"embedded://{folder}/log"
    async with open_log(url) as log:
        await fill(log, count)
        workers = [context.Process(target=work, args=(database.url, url, start, stop, used)) for _ in range(processes)]
        for worker in workers:
            worker.start()
        await asyncio.to_thread(start.wait)
        began, server = time.perf_counter(), _server_cpu(database)
        while sum(end for _, end in (await log.bounds(RESOLVED)).values()) < count:
            if any(worker.exitcode is not None for worker in workers):
                raise RuntimeError("a worker died; what it said is above")
            await asyncio.sleep(0.02)
        run = {"wall": time.perf_counter() - began}
        if server is not None:
            run["server"] = (_server_cpu(database) or 0.0) - server
        stop.set()
        run["ours"] = sum([await asyncio.to_thread(used.get) for _ in workers])
        for worker in workers:
            worker.join()
        return run


def work(database_url: str, log_url: str, start: Barrier, stop: Flag, used: "multiprocessing.Queue[float]") -> None:
    """A process of the pipeline, as the role runs it."""

    async def main() -> None:
        database = Database(database_url)
        async with open_log(log_url) as log:
            enrichment, stopping = Enrichment(_user_agents()), asyncio.Event()
            settle()
            await asyncio.to_thread(start.wait)
            began = cpu()
            worker = asyncio.create_task(run_worker(log, database, stop=stopping, enrichment=enrichment))
            stopped = asyncio.create_task(asyncio.to_thread(stop.wait))
            await asyncio.wait((worker, stopped), return_when=asyncio.FIRST_COMPLETED)
            used.put(cpu() - began)
            stopping.set()
            await worker
        database.close()

    uvloop.run(main())


def _user_agents() -> UserAgents:
    user_agents = UserAgents()
    user_agents.describe(BROWSER)  # the expressions are compiled once in the life of a process
    return user_agents


def cpu() -> float:
    """User and system seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _server_cpu(database: Database) -> float | None:
    """Seconds of CPU of the processes of a PostgreSQL server on this machine."""
    if not database.postgres:
        return None
    ours = database.read_sync(lambda c: int(c.execute(text("SELECT pg_backend_pid()")).scalar_one()))
    try:
        server = psutil.Process(ours).parent()
    except psutil.NoSuchProcess:
        return None
    assert server is not None, "a backend has a postmaster"
    return sum(sum(one.cpu_times()[:2]) for one in (server, *server.children()))


# ── The floor ─────────────────────────────────────────────────────────────────────────────────────────────────────


def empty(database: Database) -> None:
    """Takes every row out of every table."""
    _delete_all(database, (table.name for table in schema.metadata.sorted_tables))


def _delete_all(database: Database, tables: Iterable[str]) -> None:
    for table in tables:
        database.run_sync(partial(Connection.execute, statement=text(f"DELETE FROM {table}")))


def copy_again(database: Database, count: int) -> float:
    """Seconds to write the event rows once more, in the same order and polls, into a table of the same shape."""
    rows = database.read_sync(
        lambda c: [
            accepted.Row(*row)
            for row in c.execute(text('SELECT * FROM events ORDER BY processed_at, partition, "offset"'))
        ]
    )
    _delete_all(database, ("events", "event_keys", "event_keys_new", "event_times"))
    began = time.perf_counter()
    for start in range(0, count, 4_000):
        part = rows[start : start + 4_000]
        database.run_sync(partial(accepted.insert, rows=part))
    return time.perf_counter() - began


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
            results += measure(url, asked.events, f"{folder}/{number}")
    return finish("pipeline", results, asked.json)


if __name__ == "__main__":
    main()
