"""A log, a database, the pipeline's worker and the eraser, in steps that a test takes one by one."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from pipeline.identity import Rules
from pipeline.log import Log, open_log
from pipeline.log.contract import Record
from pipeline.privacy.eraser import Eraser, Limits
from pipeline.query.balance import balance
from pipeline.query.privacy import regulate, regulation
from pipeline.store.database import Database
from pipeline.store.intake import applied_positions
from pipeline.store.profiles import find
from pipeline.store.verify import verify
from pipeline.worker import run_worker
from schemas.events import Event, Resolved, decode_event, decode_resolved, encode_event
from schemas.topics import EVENTS, RESOLVED

SECOND = 1_000_000
START = 1_790_000_000 * SECOND


class World:
    """See the module. Events are received a second apart."""

    def __init__(self, log: Log, database: Database, folder: Path, limits: Limits) -> None:
        self.log, self.database, self.folder = log, database, folder
        self.eraser = Eraser(log, database, folder, limits)
        self.clock = START

    # ── What happens ──────────────────────────────────────────────────────────────────────────────────────────────

    def event(self, message: str, user: str | None = None, anonymous: str | None = None, **body: Any) -> Event:
        """A call; with `traits` an identify. `at` and `received` are set apart from the clock."""
        self.clock += SECOND
        at, received = body.pop("at", self.clock), body.pop("received", self.clock)
        kind = body.pop("kind", "identify" if "traits" in body else "track")
        full = {"type": kind, "messageId": message, "userId": user, "anonymousId": anonymous, **body}
        raw = orjson.dumps({name: value for name, value in full.items() if value is not None})
        return Event("web", kind, message, anonymous, user, at, None, received, "server", "192.0.2.7", None, raw)

    async def arrive(self, *events: Event) -> None:
        await self.log.append(EVENTS, [Record(one.key, encode_event(one), one.received_at // 1000) for one in events])

    async def happen(self, *events: Event) -> None:
        """They arrive, are applied, and emitted."""
        await self.arrive(*events)
        await self.process()

    async def process(self, *, emitted: int = 0) -> None:
        """The pipeline applies what stands in the log, and goes on until `resolved` has so many records."""
        stop = asyncio.Event()
        task = asyncio.create_task(run_worker(self.log, self.database, stop=stop))
        ends = {partition: end for partition, (_, end) in (await self.log.bounds(EVENTS)).items()}
        async with asyncio.timeout(30):
            while not all(applied >= ends[p] for p, applied in (await self._applied(ends)).items()):
                await asyncio.sleep(0.005)
            while sum(end for _, end in (await self.log.bounds(RESOLVED)).values()) < emitted:
                await asyncio.sleep(0.005)
        stop.set()
        await task

    async def _applied(self, ends: dict[int, int]) -> dict[int, int]:
        return dict.fromkeys((p for p, end in ends.items() if end), 0) | await self.database.read(applied_positions)

    async def ask(self, kind: str, *ids: str, destinations: Sequence[str] = (), forgetful: Sequence[str] = ()) -> str:
        body = {"regulationType": kind, "subjectIds": list(ids)}
        made = await regulate(self.database, body, destinations, forgetful)
        return made.data.regulateId

    async def carried_out(self, name: str) -> dict[str, Any]:
        """Turns of the eraser until a request has ended; its view."""
        async with asyncio.timeout(30):
            while True:
                await self.eraser.turn()
                found = (await regulation(self.database, name)).data.json_object()
                if found["overallStatus"] not in ("INITIALIZED", "RUNNING"):
                    return found
                await asyncio.sleep(0.01)

    async def forget(self, *ids: str, kind: str = "DELETE_ONLY") -> dict[str, Any]:
        return await self.carried_out(await self.ask(kind, *ids))

    # ── What there is ─────────────────────────────────────────────────────────────────────────────────────────────

    def profile(self, address: str) -> Any:
        kind, colon, value = address.partition(":")
        return self.database.read_sync(lambda c: find(c, *((kind, value) if colon else ("profile_id", address))))

    def ids(self, address: str) -> list[str]:
        found = self.profile(address)
        return [] if found is None else sorted(str(one.external) for one in found.external_ids)

    async def off(self) -> int | None:
        return (await balance(self.log, self.database, ["x"])).off

    async def books(self) -> dict[str, Any]:
        whole = await balance(self.log, self.database, ["x"])
        return whole.sources["web"].json_object()

    def differences(self) -> list[str]:
        return [f"{d.subject} {d.says}" for piece in verify(self.database, Rules()) for d in piece.differences]

    async def resolved(self) -> list[Resolved]:
        """Without repeats: what each worker found not known to be emitted, it emitted again."""
        found = [decode_resolved(record.value) async for record in self.records(RESOLVED)]
        return list({one.origin: one for one in reversed(found)}.values())[::-1]

    async def accepted(self) -> list[Event]:
        return [decode_event(record.value) async for record in self.records(EVENTS)]

    async def records(self, topic: str) -> AsyncIterator[Record]:
        for partition in range(self.log.partitions(topic)):
            offset = 0
            while (batch := await self.log.read(topic, partition, offset)) is not None:
                for record in batch.records:
                    yield record
                offset = batch.next_offset

    def found_in(self, *values: str) -> list[str]:
        """Where any of these stands, in files of the data folder and in tables of a server."""
        return sorted({*_files(self.folder, values), *self._tables(values)})

    def _tables(self, values: Sequence[str]) -> Iterator[str]:
        if not self.database.postgres:
            return
        from sqlalchemy import text

        from pipeline.store import schema

        def read(connection: Any) -> list[str]:
            return [
                f"{table.name}: {value}"
                for table in schema.metadata.sorted_tables
                for row in connection.execute(text(f"SELECT * FROM {table.name}")).mappings()
                for value in values
                if any(value.encode() in _bytes(one) for one in row.values())
            ]

        yield from self.database.read_sync(read)


def _bytes(value: Any) -> bytes:
    return bytes(value) if isinstance(value, bytes | memoryview) else str(value).encode()


def _files(folder: Path, values: Sequence[str]) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            raw = path.read_bytes().lower()
            yield from (f"{path.relative_to(folder)}: {value}" for value in values if value.lower().encode() in raw)


@asynccontextmanager
async def opened(folder: Path, database: Database, **limits: float) -> AsyncIterator[World]:
    async with open_log(f"embedded://{folder}/log", partitions=2) as log:
        yield World(log, database, folder, Limits(**{"look": 0.01, "grace": 0.05, **limits}))
