"""From events to the warehouse's tables of who is who: what they say is what the database says."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
from sqlalchemy import text

from destinations.contract import Delivered, Retry
from destinations.registry import definition
from pipeline.delivery.engine import Destination, run_delivery
from pipeline.delivery.hearing import changes_in, keep_hearing
from pipeline.delivery.limits import Limits, World
from pipeline.identity import Rules
from pipeline.log import Batch, Log, Record, open_log
from pipeline.store import splits
from pipeline.store.database import Database
from pipeline.store.profiles import find
from pipeline.telling import tell
from pipeline.worker import run_worker
from schemas.changes import Cause, ProfileChange, encode_change
from schemas.events import encode_event
from schemas.topics import EVENTS, PROFILE_CHANGES, RESOLVED
from tests.contracts.test_intake import event
from tests.stores import prepare

CHANGES = [
    ProfileChange(f"created:p{n}", "created", f"p{n}", n, Cause("web", f"m{n}", "track", n, n), profiles=(f"p{n}",))
    for n in range(5)
]


async def caught_up(log: Log, topic: str, group: str) -> None:
    """Waits until a group has committed all of a topic."""
    while True:
        ends = await log.bounds(topic)
        known = await log.committed(topic, group)
        if all(known.get(partition, 0) >= end for partition, (_, end) in ends.items()):
            return
        await asyncio.sleep(0.01)


async def test_the_tables_say_what_the_database_says(tmp_path: Path) -> None:
    """A random history, with a merge undone in the middle and lifted in the end."""
    chance = random.Random(5)
    database = Database(f"sqlite:///{tmp_path}/millrace.sqlite")
    prepare(database)
    async with open_log(f"embedded://{tmp_path}/log", partitions=3) as log:
        async with running(log, database, tmp_path):
            await put(log, chance, 0)
        merge = database.read_sync(lambda c: c.execute(text("SELECT id FROM merges ORDER BY seq")).scalars().all())[0]
        split = (await database.run(lambda c: splits.unmerge(c, merge, Rules()))).split
        await tell(log, database)
        async with running(log, database, tmp_path):
            await put(log, chance, 1)
        assert in_warehouse(tmp_path) == in_database(database)
        await database.run(lambda c: splits.remerge(c, split.id, Rules()))
        await tell(log, database)
        async with running(log, database, tmp_path):
            pass
        assert in_warehouse(tmp_path) == in_database(database)
    database.close()


@asynccontextmanager
async def running(log: Log, database: Database, folder: Path) -> AsyncIterator[None]:
    """The pipeline and a warehouse; ends once all is through."""
    stop, duck = asyncio.Event(), definition("duckdb")
    mounted = Destination(name="w", definition=duck, settings=duck.settings.model_validate({"profiles": True}))
    async with asyncio.TaskGroup() as group:
        group.create_task(run_worker(log, database, stop=stop))
        group.create_task(run_delivery(log, database, [mounted], stop=stop, folder=folder))
        yield
        await caught_up(log, EVENTS, "pipeline")
        await caught_up(log, RESOLVED, mounted.group)
        await caught_up(log, PROFILE_CHANGES, f"{mounted.group}.profiles")
        stop.set()


async def put(log: Log, chance: random.Random, part: int) -> None:
    """A hundred events of a few people with several devices."""
    records, began = [], time.time_ns() // 1000 - 100_000
    for number in range(100):
        person, now = chance.randrange(12), began + number * 1_000  # destinations see milliseconds
        user = f"u{person}" if chance.random() < 0.4 else None
        body: dict[str, Any] = {}
        if chance.random() < 0.5:
            body["traits"] = {"plan": chance.choice(["free", "pro", None]), "n": chance.randrange(3)}
        one = event(f"m{part}-{number}", user=user, anonymous=f"a{person}-{chance.randrange(4)}", **body)
        one = one._replace(timestamp=now, received_at=now)
        records.append(Record(one.key, encode_event(one), 0))
    await log.append(EVENTS, records)


State = tuple[set[tuple[str, str]], set[tuple[str, str]], set[tuple[str, str, str]]]


def in_database(database: Database) -> State:
    """Where each profile leads, and each id; the traits of each profile."""

    def read(connection: Any) -> State:
        into = dict(connection.execute(text("SELECT id, merged_into FROM profiles")).all())

        def root(one: str) -> str:
            while into[one] is not None:
                one = into[one]
            return one

        ids = connection.execute(text("SELECT key, profile FROM nodes WHERE profile IS NOT NULL")).all()
        profiles = {(one, root(one)) for one in into}
        people = [find(connection, "profile_id", one) for one, canonical in profiles if one == canonical]
        traits = {
            (one.id, name, str(write[3]))
            for one in people
            if one
            for name, write in one.traits.items()
            if write[3] is not None
        }
        return profiles, {(key, root(profile)) for key, profile in ids}, traits

    return database.read_sync(read)


def in_warehouse(folder: Path) -> State:
    with duckdb.connect(str(folder / "warehouse.duckdb"), read_only=True) as con:
        graph = set(con.execute("SELECT segment_id, canonical_segment_id FROM profiles.id_graph").fetchall())
        merges = set(con.execute("SELECT segment_id, canonical_segment_id FROM profiles.profile_merges").fetchall())
        ids = con.execute("SELECT type || ':' || value, canonical_segment_id FROM profiles.user_identifiers").fetchall()
        traits = con.execute("SELECT canonical_segment_id, name, value FROM profiles.user_traits").fetchall()
    assert graph == merges
    return graph, set(ids), set(traits)


# ── Hearing ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_changes_that_were_not_taken_in_are_told_until_they_are_and_committed_only_then(tmp_path: Path) -> None:
    heard: list[list[str]] = []
    stop = asyncio.Event()

    async def hear(_: Any, changes: Sequence[ProfileChange]) -> Delivered | Retry:
        assert await log.committed(PROFILE_CHANGES, "destination.w.profiles") == {}
        heard.append([one.id for one in changes])
        if len(heard) < 3:
            return Retry("down", 0.001)
        return Delivered()

    async with open_log(f"embedded://{tmp_path}/log", partitions=1) as log:
        await log.append(PROFILE_CHANGES, [Record(one.profile.encode(), encode_change(one), 0) for one in CHANGES])
        duck = definition("duckdb")
        told = replace(duck, hear=lambda settings: hear)
        mounted = Destination(name="w", definition=told, settings=duck.settings())
        hearing = asyncio.create_task(keep_hearing(mounted, None, log, stop=stop, limits=Limits(), world=World()))
        await caught_up(log, PROFILE_CHANGES, "destination.w.profiles")
        stop.set()
        await hearing
    assert heard == [[one.id for one in CHANGES]] * 3


def test_what_was_erased_and_what_is_no_change_is_left_out() -> None:
    values = [encode_change(CHANGES[0]), b"", b"junk", encode_change(CHANGES[1])]
    records = [Record(b"p", value, 0, offset) for offset, value in enumerate(values)]
    assert changes_in([Batch(PROFILE_CHANGES, 0, records, 4)]) == CHANGES[:2]
