"""The delivery engine: from the log to a destination that does nothing, and to a webhook on this machine.

`python -m benchmarks.delivery [--events N] [--database URL] [--json FILE]`. Events are about 1 KB, of 13,000 profiles, of which
one in a hundred has a tenth of the events, on an embedded log. (Were a third of them of a single profile, two processes could not
halve the time: its events are of one partition, and one process delivers them.) The floor of the engine is to read and decode
the same records; the floor of the webhook is the same requests without the engine. CPU is user + system of the delivering
processes; the sink is a process of its own. The webhook is delivered to by one process, then by two that share the partitions.
"""

import argparse
import asyncio
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import orjson
import structlog
import uvloop

from benchmarks.results import Result, finish, result
from destinations import webhook
from destinations.contract import DELIVERED, Action, Definition, Env, Outcome, RawEvent, Settings
from destinations.guard import Outbound
from destinations.http.client import session
from destinations.http.request import Request
from millrace.process import settle
from pipeline.delivery.engine import Destination, World, run_delivery
from pipeline.log import Log, Record, open_log
from pipeline.store import schema
from pipeline.store.database import Database
from pipeline.store.migrate import migrate
from schemas.events import TYPES, Event, Origin, decode_resolved, encode_event, encode_resolved, materialize
from schemas.topics import RESOLVED

PEOPLE: Final = 13_000
AT: Final = 1_790_000_000_000_000


class Run(NamedTuple):
    """What a run took. `cpu` is seconds of this process."""

    wall: float
    cpu: float


# ── Destinations ──────────────────────────────────────────────────────────────────────────────────────────────────


class NoSettings(Settings):
    """Nothing to set."""


async def take(client: None, batch: Sequence[RawEvent]) -> Sequence[Outcome]:
    """Delivers to nowhere."""
    return [DELIVERED] * len(batch)


async def check(client: None) -> None:
    """There is nothing that could be wrong."""


@asynccontextmanager
async def connect(settings: NoSettings, env: Env) -> AsyncIterator[None]:
    """Nothing to open."""
    yield None


def nowhere(name: str, *, max_batch: int, atomic: bool) -> Destination:
    """A destination that costs nothing itself."""
    action = Action(
        name="take", payload=None, types=TYPES, max_batch=max_batch, deliver=take, atomic=atomic, concurrency=8
    )
    definition = Definition(
        name="nowhere",
        description="Takes everything.",
        settings=NoSettings,
        connect=connect,
        check=check,
        actions=(action,),
    )
    return Destination(name=name, definition=definition, settings=NoSettings())


def hook(name: str, url: str, batch_size: int) -> Destination:
    """A webhook at the sink."""
    settings = webhook.WebhookSettings.model_validate({"url": url, "batch_size": batch_size})
    return Destination(name=name, definition=webhook.definition, settings=settings)


# ── Events ────────────────────────────────────────────────────────────────────────────────────────────────────────


def record(number: int, chance: random.Random) -> Record:
    """A resolved event of about 1 KB."""
    profile = f"profile-{int(PEOPLE * chance.random() ** 2):020d}"
    body: dict[str, Any] = {
        "type": "track",
        "event": "Product Viewed",
        "integrations": {},
        "context": {"library": {"name": "bench"}, "page": {"url": "https://shop.test/" + "p" * 500}},
        "properties": {"sku": number % 997, "price": 9.5, "note": "n" * 200},
    }
    event = Event(
        source="web",
        type="track",
        message_id=f"message-{number:09d}",
        anonymous_id=profile,
        user_id=None,
        timestamp=AT + number,
        sent_at=None,
        received_at=AT + number,
        channel="server",
        ip=None,
        refused=None,
        body=orjson.dumps(body),
    )
    value = encode_resolved(profile, Origin(number % 8, number), (), encode_event(event))
    return Record(profile.encode(), value, AT // 1000)


async def fill(log: Log, count: int) -> None:
    """Appends the stream."""
    chance = random.Random(7)
    for start in range(0, count, 1_000):
        await log.append(RESOLVED, [record(number, chance) for number in range(start, min(start + 1_000, count))])


# ── Runs ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def read_and_decode(log: Log, count: int) -> Run:
    """The floor of every destination: the same group reads, nothing but decoding."""
    began, used, left = time.perf_counter(), cpu(), count
    async with log.subscribe(RESOLVED, group="floor", start=_from_the_start) as subscription:
        async for batches in subscription:
            for batch in batches:
                for one in batch.records:
                    decode_resolved(one.value)
                left -= len(batch.records)
            if left == 0:
                break
    return Run(time.perf_counter() - began, cpu() - used)


async def _from_the_start(partitions: Sequence[int]) -> dict[int, int]:
    return dict.fromkeys(partitions, 0)


async def deliver(log: Log, database: Database, destinations: Sequence[Destination], count: int, folder: str) -> Run:
    """The engine, until every destination has everything."""
    stop, began, used = asyncio.Event(), time.perf_counter(), cpu()
    engine = asyncio.create_task(
        run_delivery(log, database, destinations, stop=stop, folder=folder, world=_this_machine())
    )
    names = {one.name for one in destinations}
    while await database.read(lambda connection: _delivered(connection, names)) < count * len(names):
        if engine.done():
            engine.result()
        await asyncio.sleep(0.02)
    run = Run(time.perf_counter() - began, cpu() - used)
    stop.set()
    await engine
    return run


async def deliver_by_two(folder: str, url: str, name: str, address: str, batch_size: int, count: int) -> Run:
    """The same webhook by two processes, each begun and waiting before the clock is."""
    command = [sys.executable, "-m", "benchmarks.delivery", "--member", folder, url, name, address, str(batch_size)]
    members = [
        await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)
    ]
    database = Database(url)
    pipes = [(one.stdin, one.stdout) for one in members if one.stdin is not None and one.stdout is not None]
    for _, told in pipes:
        await told.readline()
    began = time.perf_counter()
    for asked, _ in pipes:
        asked.write(b"go\n")
    while await database.read(lambda connection: _delivered(connection, {name})) < count:
        if any(one.returncode is not None for one in members):
            raise RuntimeError("a member of the benchmark ended before its time; run it alone to see why")
        await asyncio.sleep(0.02)
    wall = time.perf_counter() - began
    for asked, _ in pipes:
        asked.close()
    used = [float(await told.readline()) for _, told in pipes]
    for one in members:
        await one.wait()
    database.close()
    return Run(wall, sum(used))


async def member(folder: str, url: str, name: str, address: str, batch_size: str) -> None:
    """One of the two: begins at the first line from its parent, ends when the pipe is closed, and prints what it used."""
    database, stop, loop = Database(url), asyncio.Event(), asyncio.get_running_loop()
    one = hook(name, address, int(batch_size))
    async with open_log(f"embedded://{folder}") as log:
        settle()
        print("ready", flush=True)
        await loop.run_in_executor(None, sys.stdin.readline)
        used = cpu()
        engine = asyncio.create_task(
            run_delivery(log, database, [one], stop=stop, folder=folder, world=_this_machine())
        )
        await loop.run_in_executor(None, sys.stdin.read)
        print(cpu() - used, flush=True)
        stop.set()
        await engine
    database.close()


def _this_machine() -> World:
    """A world in which the sink may be connected to."""
    return World(http=partial(session, Outbound(allow=(ip_network("127.0.0.0/8"),))))


def _delivered(connection: Any, names: set[str]) -> int:
    table = schema.destination_counts
    return sum(row.delivered for row in connection.execute(table.select()) if row.destination in names)


async def post_only(log: Log, url: str, batch_size: int, count: int) -> Run:
    """The floor of the webhook: its requests, made ready beforehand, eight at a time."""
    events = []
    for partition in range(log.partitions(RESOLVED)):
        offset = 0
        while batch := await log.read(RESOLVED, partition, offset):
            events += [orjson.dumps(materialize(decode_resolved(one.value))) for one in batch.records]
            offset = batch.next_offset
    bodies = [b"[" + b",".join(events[at : at + batch_size]) + b"]" for at in range(0, count, batch_size)]
    request = Request("POST", url, {"Content-Type": "application/json"})
    began, used = time.perf_counter(), cpu()
    async with _this_machine().http() as http:

        async def send() -> None:
            while bodies:
                await http.send(request, bodies.pop(), timeout=10.0)

        await asyncio.gather(*(send() for _ in range(8)))
    return Run(time.perf_counter() - began, cpu() - used)


async def measure(url: str, count: int, folder: str, sink: str) -> list[Result]:
    """Batched runs over `count` events, unbatched ones over a fifth."""
    database = Database(url)
    await asyncio.to_thread(migrate, database)
    settle()
    results: list[Result] = []

    def add(name: str, run: Run, events: int, floor: Run, floor_events: int) -> None:
        throughput, most = events / run.wall, floor_events / floor.wall
        results.append(result(f"{name}: throughput", throughput, "events/s", floor=most))
        cost, least = run.cpu / events * 1e6, floor.cpu / floor_events * 1e6
        results.append(result(f"{name}: CPU", cost, "µs/event", floor=least))

    async with open_log(f"embedded://{folder}/many") as log:
        await fill(log, count)
        least = await read_and_decode(log, count)
        together = nowhere("together", max_batch=1_000, atomic=True)
        add("nowhere, 1,000 a call", await deliver(log, database, [together], count, folder), count, least, count)
        apart = nowhere("apart", max_batch=100, atomic=False)
        add("nowhere, 100 profiles a call", await deliver(log, database, [apart], count, folder), count, least, count)
        ten = [nowhere(f"ten{number}", max_batch=1_000, atomic=True) for number in range(10)]
        add("each of ten", await deliver(log, database, ten, count, folder), count * 10, least, count)
        fifty = [nowhere(f"fifty{number}", max_batch=1_000, atomic=True) for number in range(50)]
        add("each of fifty", await deliver(log, database, fifty, count, folder), count * 50, least, count)
        posted = await post_only(log, sink, 100, count)
        run = await deliver(log, database, [hook("hundreds", sink, 100)], count, folder)
        add("webhook, 100 a request", run, count, posted, count)
        run = await deliver_by_two(f"{folder}/many", url, "hundreds2", sink, 100, count)
        add("webhook, 100 a request, two processes", run, count, posted, count)
    few = count // 5
    async with open_log(f"embedded://{folder}/few") as log:
        await fill(log, few)
        least = await read_and_decode(log, few)
        one = nowhere("one", max_batch=1, atomic=False)
        add("nowhere, one a call", await deliver(log, database, [one], few, folder), few, least, few)
        posted = await post_only(log, sink, 1, few)
        run = await deliver(log, database, [hook("ones", sink, 1)], few, folder)
        add("webhook, one a request", run, few, posted, few)
        run = await deliver_by_two(f"{folder}/few", url, "ones2", sink, 1, few)
        add("webhook, one a request, two processes", run, few, posted, few)
    database.close()
    return results


# ── The sink ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Sink(asyncio.Protocol):
    """Answers 200 to every POST with a Content-Length, at the least cost."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A new client."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass of it
        self._buffer = bytearray()

    def data_received(self, data: bytes) -> None:
        """Answers what is complete."""
        self._buffer += data
        while (head := self._buffer.find(b"\r\n\r\n")) >= 0:
            headers = bytes(self._buffer[:head]).lower()
            at = headers.index(b"content-length:") + 15
            end = head + 4 + int(headers[at:].split(b"\r\n", 1)[0])
            if len(self._buffer) < end:
                return
            del self._buffer[:end]
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


async def serve_sink() -> None:
    """Serves until the pipe to its parent is closed; prints its port."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Sink, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


@contextmanager
def sink() -> Iterator[str]:
    """The address of a sink in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.delivery", "--sink"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/"
        process.stdin.close()


def cpu() -> float:
    """User and system seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main(argv: list[str] | None = None) -> list[Result]:
    """Runs and prints; returns the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--database", help="default: SQLite in a temporary folder")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sink", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--member", nargs=5, help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if asked.member:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
        uvloop.run(member(*asked.member))
        return []
    if asked.sink:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve_sink())
        return []
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    with (
        tempfile.TemporaryDirectory() as folder,
        sink() as address,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        url = asked.database or f"sqlite:///{folder}/bench.sqlite"
        results = runner.run(measure(url, asked.events, folder, address))
    return finish("delivery", results, asked.json)


if __name__ == "__main__":
    main()
