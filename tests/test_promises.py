"""The promises of `pipeline/README.md`, one test each, over the real log, database, engine and warehouse. What they are
worth under fire is in `tests/crash`."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import duckdb
import orjson
import pytest
from sqlalchemy import text

from collector.accept import accept
from collector.routes import ROUTES
from destinations.registry import definition
from pipeline.delivery.engine import run_delivery
from pipeline.delivery.limits import Destination, Limits
from pipeline.identity import Rules
from pipeline.log import Log, Record, open_log
from pipeline.query.balance import balance as audited
from pipeline.store import schema, splits
from pipeline.store.database import Database
from pipeline.store.profiles import find
from pipeline.telling import tell
from pipeline.worker import run_worker
from schemas.events import Event, decode_event, encode_event
from schemas.topics import EVENTS
from tests.stores import prepare

ROOT = Path(__file__).parents[1]


async def balance(log: Log, database: Database, names: Sequence[str]) -> dict[str, Any]:
    return (await audited(log, database, names)).json_object()


def event(number: int, person: str = "p1", **body: Any) -> Event:
    kind = body.pop("type", "track")
    full = {"type": kind, "messageId": f"m{number}", "anonymousId": person, **body}
    if kind == "track":
        full.setdefault("event", "Visited")
    at = 1_790_000_000_000_000 + number
    return Event(
        "web", kind, f"m{number}", person, body.get("userId"), at, None, at, "server", None, None, orjson.dumps(full)
    )


class Place:
    """A data folder with the whole pipeline over it."""

    def __init__(self, folder: Path, log: Log, name: str = "millrace") -> None:
        self.folder, self.log = folder, log
        self.database = Database(f"sqlite:///{folder}/{name}.sqlite")
        prepare(self.database)

    async def accept(self, *events: Event) -> None:
        await self.log.append(EVENTS, [Record(one.key, encode_event(one), one.received_at // 1000) for one in events])

    @asynccontextmanager
    async def running(self, **destinations: dict[str, Any]) -> AsyncIterator[None]:
        """The pipeline, and an engine with destinations as name -> settings, `type` among them."""
        stop = asyncio.Event()
        mounted = [self._mounted(name, dict(settings)) for name, settings in destinations.items()]
        quick = Limits(backoff=0.01, probe=0.01, longest_backoff=0.05, grace=0.2)
        async with asyncio.TaskGroup() as group:
            group.create_task(run_worker(self.log, self.database, stop=stop))
            group.create_task(
                run_delivery(self.log, self.database, mounted, stop=stop, folder=self.folder, limits=quick)
            )
            yield
            stop.set()

    def _mounted(self, name: str, settings: dict[str, Any]) -> Destination:
        found = definition(settings.pop("type"))
        return Destination(name=name, definition=found, settings=found.settings(**settings))

    async def settled(self, name: str, count: int, source: str = "web") -> dict[str, int]:
        """The books of a destination once `count` events of a source are delivered, filtered or dead there."""

        async def row() -> dict[str, int] | None:
            books: dict[str, int] = (await balance(self.log, self.database, [name]))["destinations"][name].get(
                source, {}
            )
            done = bool(books) and books["delivered"] + books["filtered"] + books["dead"]
            return books if done == count else None

        found: dict[str, int] = await eventually(row)
        return found


async def eventually(ask: Callable[[], Awaitable[Any]]) -> Any:
    """The first answer that is not None."""
    async with asyncio.timeout(30):
        while (found := await ask()) is None:
            await asyncio.sleep(0.02)
    return found


def recorded(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        made = Place(tmp_path, await stack.enter_async_context(open_log(f"embedded://{tmp_path}/log", partitions=3)))
        yield made
        made.database.close()


async def test_a_200_means_durable(tmp_path):
    """A collector that is killed the moment it has answered has lost nothing."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
    environment |= {"MILLRACE_WRITE_KEY": "wk", "MILLRACE_DATA": str(tmp_path), "MILLRACE_PORT": "0"}
    answered = []
    for life in range(3):
        collector = subprocess.Popen([sys.executable, "-m", "millrace", "collect"], env=environment, cwd=tmp_path)
        (tmp_path / "address").unlink(missing_ok=True)

        async def address() -> str | None:
            return (tmp_path / "address").read_text().strip() if (tmp_path / "address").exists() else None

        url = await eventually(address)
        async with aiohttp.ClientSession() as session:
            for number in range(10):
                body = {"writeKey": "wk", "userId": "u1", "event": "X", "messageId": f"{life}-{number}"}
                async with session.post(f"{url}/v1/track", json=body) as answer:
                    assert answer.status == 200
                    answered.append(body["messageId"])
        collector.send_signal(signal.SIGKILL)
        collector.wait()
    async with open_log(f"embedded://{tmp_path}/log") as log:
        kept: list[str] = []
        for partition in range(log.partitions(EVENTS)):
            while (batch := await log.read(EVENTS, partition, len(kept))) is not None:
                kept += [decode_event(record.value).message_id for record in batch.records]
            if kept:
                break
    assert kept == answered


async def test_once_in_the_profile_once_in_the_warehouse(place):
    events = [event(number, type="identify", traits={"visits": number}) for number in range(40)]
    warehouse = {"type": "duckdb", "path": "w.duckdb"}
    await place.accept(*events, *events[:20])
    async with place.running(warehouse=warehouse):
        await place.settled("warehouse", 40)
    await place.accept(*events[10:])
    async with place.running(warehouse=warehouse):
        await place.accept(event(40))
        await place.settled("warehouse", 41)

    person = place.database.read_sync(lambda c: find(c, "anonymous_id", "p1"))
    with duckdb.connect(str(place.folder / "w.duckdb")) as loaded:
        rows = loaded.sql("select id from web.identifies").fetchall()
    assert person.events == 41
    assert Counter(rows) == Counter((f"m{number}",) for number in range(40))


async def test_in_order_per_person_to_each_destination(place):
    """One profile fails three times; its events wait for it, those of the other do not wait, and both keep their order."""
    await place.accept(*(event(number, person=f"p{number % 2}") for number in range(20)))
    async with place.running(shaky={"type": "hostile", "profiles": {"p0": 3}, "record": "seen.ndjson"}):
        assert (await place.settled("shaky", 20))["delivered"] == 20

    delivered = [one for one in recorded(place.folder / "seen.ndjson") if one["answer"] == "delivered"]
    order = [one["messageId"] for one in delivered]
    assert [m for m in order if int(m[1:]) % 2 == 0] == [f"m{number}" for number in range(0, 20, 2)]
    assert [m for m in order if int(m[1:]) % 2 == 1] == [f"m{number}" for number in range(1, 20, 2)]
    assert order.index("m19") < order.index("m0"), "the other profile did not wait"


async def test_in_order_per_person_to_each_destination_across_a_merge(place):
    """Six people look around on a second device, whose events fail twice, and log in there: two profiles of each become one."""
    failing = {"hostile": {"do": "retry", "times": 2}}
    visits = [
        (f"{kind}{person}", {"userId": f"u{person}"} if known else {}, {"properties": properties})
        for kind, known, properties in (
            ("phone", True, {}),
            ("laptop", False, failing),
            ("laptop", True, {}),
            ("laptop", False, {}),
        )
        for person in range(6)
    ]
    events = [event(number, device, **who, **what) for number, (device, who, what) in enumerate(visits)]
    async with place.running(crm={"type": "hostile", "record": "seen.ndjson"}):
        await place.accept(*events[:6])
        await place.settled("crm", 6)
        await place.accept(*events[6:])
        assert (await place.settled("crm", 24))["delivered"] == 24

    delivered = [one for one in recorded(place.folder / "seen.ndjson") if one["answer"] == "delivered"]
    numbers = [int(one["messageId"][1:]) for one in delivered]
    assert [[number for number in numbers if number % 6 == person] for person in range(6)] == [
        [person, person + 6, person + 12, person + 18] for person in range(6)
    ]


async def test_isolation(place):
    """One destination hangs for ever, one raises, one has rejected credentials; the fourth has everything."""
    await place.accept(*(event(number, person=f"p{number % 7}") for number in range(100)))
    async with place.running(
        hangs={"type": "hostile", "plan": [{"do": "hang", "times": 1000}]},
        raises={"type": "hostile", "plan": [{"do": "raise", "times": 1000}]},
        locked={"type": "hostile", "connect": "credentials"},
        works={"type": "hostile"},
    ):
        assert (await place.settled("works", 100))["delivered"] == 100
        books = await balance(place.log, place.database, ["hangs", "raises", "locked", "works"])
    assert books["off"] == 0
    assert books["destinations"]["locked"]["web"]["pending"] == 100


async def test_the_books_balance(place):
    """Delivered, rejected, filtered and waiting events add up to what was accepted, while it goes on."""
    await place.accept(
        *(event(number, person=f"p{number}", properties={"hostile": "rejected"}) for number in range(10)),
        *(event(number, person=f"p{number}") for number in range(10, 30)),
        *(event(number, person=f"p{number}", integrations={"All": False}) for number in range(30, 35)),
        *(
            event(number, person=f"p{number}", properties={"hostile": {"do": "retry", "after": 600}})
            for number in range(35, 39)
        ),
    )
    seen: list[dict[str, Any]] = []
    async with place.running(crm={"type": "hostile"}):
        while not seen or seen[-1]["destinations"]["crm"].get("web", {}).get("pending") != 4:
            seen.append(await balance(place.log, place.database, ["crm"]))
    assert {books["off"] for books in seen} == {0}
    assert seen[-1]["destinations"]["crm"]["web"] == {
        "accepted": 39,
        "delivered": 20,
        "filtered": 5,
        "dead": 10,
        "purged": 0,
        "pending": 4,
        "missed": 0,
        "off": 0,
    }


async def test_merges_are_explained_and_reversible(place):
    """Each edge and each merge names the event that made it. Undone, everybody has what each would have had, destinations are
    told, and the same evidence does not join them again; lifted, every row is as before."""
    async with place.running(works={"type": "hostile"}):
        await place.accept(event(0, "a1", userId="u1"), event(1, "a2"))
        await place.settled("works", 2)
        await place.accept(event(2, "a2", userId="u1"))
        await place.settled("works", 3)

    def read(connection: Any) -> tuple[Sequence[Any], Sequence[Any]]:
        edges = connection.execute(text("SELECT a, b, source, message_id, type FROM edges ORDER BY a")).all()
        return edges, connection.execute(text("SELECT source, message_id, type FROM merges")).all()

    edges, merges = place.database.read_sync(read)
    assert {(row[0], row[1], row[3]) for row in edges} == {
        ("anonymous_id:a1", "user_id:u1", "m0"),
        ("anonymous_id:a2", "user_id:u1", "m2"),
    }
    assert [tuple(row) for row in merges] == [("web", "m2", "track")]

    def rows(connection: Any) -> list[Any]:
        tables = ("profiles", "nodes", "edges", "merges")
        return [sorted(map(str, connection.execute(text(f"SELECT * FROM {one}")))) for one in tables]

    def people() -> Any:
        found = place.database.read_sync(lambda c: [find(c, "user_id", "u1"), find(c, "anonymous_id", "a2")])
        return [(one.id, sorted(str(each.external) for each in one.external_ids)) for one in found if one is not None]

    before = place.database.read_sync(rows)
    [merge] = place.database.read_sync(lambda c: c.execute(text("SELECT id FROM merges")).scalars().all())
    done = place.database.run_sync(lambda c: splits.unmerge(c, merge, Rules()))
    place.database.run_sync(lambda c: splits.remerge(c, done.split.id, Rules()))
    assert place.database.read_sync(rows) == before
    done = place.database.run_sync(lambda c: splits.unmerge(c, merge, Rules()))
    apart = [
        (done.split.profile, ["anonymous_id:a1", "user_id:u1"]),
        (done.split.other, ["anonymous_id:a2"]),
    ]
    assert people() == apart
    assert await tell(place.log, place.database) == 6
    async with place.running(works={"type": "hostile"}):
        await place.accept(event(3, "a2", userId="u1"))
        await place.settled("works", 4)
        assert (await place.settled("works", 6, "millrace"))["off"] == 0
    assert people() == apart


async def test_convergence(place):
    """The same log, processed from the start by another pipeline, gives the same graph to the letter."""
    await place.accept(
        *(event(n, f"a{n % 6}", userId=f"u{n % 4}", type="identify", traits={"n": n}) for n in range(0, 60, 2)),
        *(event(n, f"a{n % 5}") for n in range(1, 60, 2)),
    )
    tables = ("profiles", "nodes", "edges", "merges")

    async def graph(name: str) -> list[Any]:
        other = Place(place.folder, place.log, name)
        stop = asyncio.Event()
        worker = asyncio.create_task(run_worker(place.log, other.database, stop=stop, max_records=7))
        async with asyncio.timeout(20):
            while (await balance(place.log, other.database, []))["sources"].get("web", {}).get("accepted") != 60:
                await asyncio.sleep(0.02)
        stop.set()
        await worker
        found = other.database.read_sync(lambda c: [rows(c, table) for table in tables])
        other.database.close()
        return found

    def rows(connection: Any, table: str) -> list[Any]:
        """All but `seq`, which is a time of processing."""
        columns = [column.name for column in schema.metadata.tables[table].columns if column.name != "seq"]
        return list(connection.execute(text(f"SELECT {', '.join(columns)} FROM {table} ORDER BY 1, 2")))

    assert await graph("first") == await graph("second")


def test_bad_input_is_an_answer():
    """The good events of a batch go on; each bad one has its reason and its bytes."""
    batch = [
        {"type": "track", "event": "Good", "userId": "u1"},
        "not an object",
        {"type": "track", "userId": "u1"},
        {"type": "identify", "traits": {}},
        {"type": "track", "event": "Also good", "anonymousId": "a1"},
    ]
    accepted = accept(
        orjson.dumps({"batch": batch}),
        ROUTES["/v1/batch"],
        source="web",
        sources={},
        received_at=1_790_000_000_000_000,
        ip=None,
        new_id=lambda: "made",
    )
    events = [decode_event(record.value) for record in accepted.records]
    assert [one.refused for one in events] == [None, "bad_request", "event_not_defined", "no_user_anon_id", None]
    assert [orjson.loads(one.body) for one in events] == batch


def test_every_promise_has_a_test_of_its_name():
    text = (ROOT / "pipeline" / "README.md").read_text().split("## Decisions")[0]
    promised = {
        "test_" + re.sub(r"\W+", "_", one).strip("_").lower() for one in re.findall(r"^\d\. \*\*(.+?)\*\*", text, re.M)
    }
    tests = {name for name in globals() if name.startswith("test_")} - {"test_every_promise_has_a_test_of_its_name"}
    assert promised <= tests
    assert [one for one in tests if not one.startswith(tuple(promised))] == [], "tests of no promise"
