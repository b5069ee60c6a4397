"""Rules of identity applied to what was recorded before they were there, beside the running pipeline.

The recorded events are resolved in a scratch store by the rules in force. Then people who are others there than in the store in use
are settled, one group after the other, each in a transaction of its own; who gets events meanwhile is taken up again once those are
resolved too. Whoever is stopped goes on where it stood: the scratch store knows how far it is, and a group is settled or it is not.
Whoever is deleted meanwhile leaves the scratch store as well. People whom the rules mix with them are left alone then, and settled when
all was gone over once more.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from sqlalchemy import Connection, select, text

from pipeline.identity import Rules
from pipeline.log import Log
from pipeline.recorded import Recording
from pipeline.scratch import Scratched, held
from pipeline.store import schema
from pipeline.store.comparison import different
from pipeline.store.database import Database
from pipeline.store.resettle import Tally, resettle
from pipeline.store.scratches import Changed
from pipeline.store.shadow import Shadow, came_apart, watermark
from schemas.errors import Refused
from schemas.topics import RESOLVED

ROUNDS: Final = 5
"""Times that people who were changing are tried again."""
WORK: Final = "identity apply"
_BEGINNINGS: Final = 3
_CAUGHT_UP: Final = 200  # groups after which new events are taken in
_PAGE: Final = 50_000
_NODES: Final = text(
    "SELECT key, profile FROM nodes WHERE key > :after AND profile IS NOT NULL ORDER BY key LIMIT :most"
)
_PROFILES: Final = text("SELECT id, merged_into FROM profiles WHERE id > :after ORDER BY id LIMIT :most")

T = TypeVar("T")
Advance = Callable[[str, int, int], None]
"""Hears of progress: what is counted, how much of it is done, and how much there is."""


async def resolve_again(log: Log, database: Database, rules: Rules, folder: Path, advance: Advance) -> Tally:
    """Makes everybody who they would be had these rules, which are in force, always been. `folder` is this work's own: what is in it is
    gone on with, and it is empty at the end. Refused while another process works in it, and when people are taken apart or joined by hand
    each time."""
    with held(database, folder, WORK) as scratch:
        tally = Tally()
        for beginning in range(1, _BEGINNINGS + 1):
            try:
                async with _Applied(log, database, rules, scratch, advance).opened() as work:
                    whole = await work.settle(tally)
            except Changed:
                done = False
            else:
                done = whole or beginning == _BEGINNINGS
            await asyncio.to_thread(scratch.clear)
            if done:
                return tally
    raise Refused(
        "still_changing",
        "People were taken apart or joined each time while their history was gone through. "
        "What was settled stays; run it again once nobody does that.",
        status=409,
    )


class _Applied:
    """One run over the history."""

    def __init__(self, log: Log, database: Database, rules: Rules, scratch: Scratched, advance: Advance) -> None:
        self._log, self._database, self._rules, self._advance = log, database, rules, advance
        self._scratch = scratch
        self._mark: Sequence[int] = ()
        self._taken: Mapping[int, int] = {}
        self._compared = -1  # place in the scratch store up to which events were compared
        self._shadow: Shadow
        self._copy: sqlite3.Connection | None = None  # of the nodes in use, while there is one

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["_Applied"]:
        """With a scratch store that is begun, or gone on with."""
        if not self._scratch.is_kept:
            await asyncio.to_thread(self._scratch.begin)
        self._mark = await self._database.read(watermark)
        self._shadow = await self._open()
        try:
            if not await asyncio.to_thread(self._shadow.is_begun, self._mark):
                self._shadow.close()
                await asyncio.to_thread(self._scratch.begin)
                self._shadow = await self._open()
                first = await self._first()
                await asyncio.to_thread(self._shadow.begin, self._database, (first + 1) * 1_000 if first else 0)
            yield self
        finally:
            self._shadow.close()

    async def settle(self, tally: Tally) -> bool:
        """Goes over everybody who differs, until nobody does or only those who get events faster than they are resolved again. False:
        some were mixed with people who were deleted meanwhile, and were left alone."""
        await self._catch_up()
        left = await asyncio.to_thread(self._differing)
        for _ in range(ROUNDS):
            left = list(dict.fromkeys([*left, *await asyncio.to_thread(self._misplaced)]))
            if not left:
                break
            left = await self._round(left, tally)
            await self._catch_up()
        maimed = await asyncio.to_thread(lambda: self._shadow.is_maimed)
        tally.left = max(len(left), int(maimed))
        return not maimed

    async def _round(self, keys: Sequence[str], tally: Tally) -> list[str]:
        """Settles who can be; answers the others."""
        left = []
        for number, key in enumerate(keys):
            self._advance("people", number, len(keys))
            if number % _CAUGHT_UP == _CAUGHT_UP - 1:
                await self._catch_up()
            counts = await self._settle(key)
            if counts is None:
                left.append(key)
            else:
                tally.add(counts)
        return left

    async def _settle(self, key: str) -> Mapping[str, int] | None:
        def work(connection: Connection) -> Mapping[str, int] | None:
            with self._shadow.database.engine.connect() as shadow:
                return resettle(connection, shadow, key, self._rules, self._mark, self._taken)

        counts = await self._known(work)
        if counts is None:  # it has new events: once more, when they are resolved too
            await self._catch_up()
            counts = await self._known(work)
        return counts

    async def _known(self, work: Callable[[Connection], T]) -> T:
        """What comes of a transaction with the scratch store as deletions have left it."""
        while True:
            try:
                return await self._database.run(work)
            except Changed:
                await asyncio.to_thread(self._forget)

    def _heed(self) -> None:
        """Takes out of the scratch store whoever was deleted, if anybody was since the last time."""
        while self._scratch.heed():
            if self._forget():
                self._scratch.heeded()

    def _forget(self) -> bool:
        """Raises Changed when people were taken apart."""
        mark = self._database.read_sync(watermark)
        if came_apart(self._mark, mark):
            raise Changed
        clean = self._shadow.forget(self._database, mark, self._copy)
        self._mark = mark
        return clean

    async def _open(self) -> Shadow:
        return await asyncio.to_thread(Shadow, self._scratch.folder / "shadow.sqlite", self._rules, self._heed)

    async def _first(self) -> int:
        """The time (Unix ms) from which the log holds everything; 0 when it holds all there ever was."""
        first = 0
        for number, (begin, end) in (await self._log.bounds(RESOLVED)).items():
            if 0 < begin < end and (batch := await self._log.read(RESOLVED, number, begin, max_records=1)):
                first = max(first, batch.records[0].timestamp)
        return first

    async def _catch_up(self) -> None:
        """Resolves what was recorded since."""
        positions = schema.positions.c
        emitted = await self._database.read(
            lambda connection: {
                row.partition: row.emitted for row in connection.execute(select(positions.partition, positions.emitted))
            }
        )
        places = await asyncio.to_thread(self._shadow.places)
        recording = Recording(self._log, 0 if places else await self._first(), places)
        async for some in recording.events(partial(self._advance, "events")):
            await asyncio.to_thread(self._shadow.take, self._database, some, recording.places)
        await asyncio.to_thread(self._shadow.take, self._database, (), recording.places)
        self._taken = emitted

    def _misplaced(self) -> list[str]:
        """An id of everybody who has an event that is somebody else's by the rules, among those not compared yet."""
        found: list[str] = []
        while True:
            some, end = self._shadow.misplaced(self._database, self._compared)
            if end == self._compared:
                return found
            found += some
            self._compared = end

    def _differing(self) -> list[str]:
        """An id of each group of people who are not as the rules make them."""
        path = self._scratch.folder / "present.sqlite"
        path.unlink(missing_ok=True)
        try:
            with closing(sqlite3.connect(path)) as self._copy:
                self._copy_nodes(self._copy)
            return list(different(path, self._shadow.path))
        finally:
            self._copy = None
            path.unlink(missing_ok=True)

    def _copy_nodes(self, copy: sqlite3.Connection) -> None:
        copy.execute("PRAGMA secure_delete=ON")
        copy.execute("CREATE TABLE nodes (key TEXT PRIMARY KEY, profile TEXT) WITHOUT ROWID")
        copy.execute("CREATE TABLE profiles (id TEXT PRIMARY KEY, merged_into TEXT) WITHOUT ROWID")
        for table, statement in (("profiles", _PROFILES), ("nodes", _NODES)):
            after = ""
            while rows := self._database.read_sync(
                lambda connection: connection.execute(statement, {"after": after, "most": _PAGE}).all()  # noqa: B023 - called at once
            ):
                copy.executemany(f"INSERT INTO {table} VALUES (?, ?)", [tuple(row) for row in rows])
                after = rows[-1][0]
                self._heed()
        copy.execute("CREATE INDEX profiles_by_survivor ON profiles (merged_into)")
        copy.commit()
