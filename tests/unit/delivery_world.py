"""A small world for tests of the delivery engine: a log in memory, a real database, destinations that do as they are told.
It notes every effect in order."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import orjson
from sqlalchemy import Connection, select

from destinations.contract import DELIVERED, Action, Definition, Env, Outcome, RawEvent, Settings
from pipeline.delivery.engine import Destination, Limits, World, run_delivery
from pipeline.log import Batch, Record, Subscription
from pipeline.log.contract import Start
from pipeline.store import schema
from pipeline.store.database import Database
from pipeline.store.ledger import OUTSTANDING
from schemas.config import FilterConfig
from schemas.dead_letters import DeadLetter, decode_dead_letter
from schemas.errors import PartitionLost
from schemas.events import TYPES, Event, Fence, Origin, encode_event, encode_resolved
from schemas.topics import DEAD_LETTERS, RESOLVED, TOPICS

T = TypeVar("T")


# ── The log ───────────────────────────────────────────────────────────────────────────────────────────────────────


class MemoryLog:
    """One member per group. `lose` takes a partition away and gives it back, as a rebalance does."""

    def __init__(self, partitions: int = 1, did: list[Any] | None = None) -> None:
        self.count = partitions
        self.topics: dict[str, list[list[Record]]] = {name: [[] for _ in range(partitions)] for name in TOPICS}
        self.did = did if did is not None else []
        self.members: dict[str, MemorySubscription] = {}
        self.offsets: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
        self.news = asyncio.Condition()
        self.away: Exception | None = None
        self.earliest: dict[int, int] = {}  # by partition of `resolved`, what retention has left

    async def append(self, topic: str, records: Sequence[Record]) -> None:
        for record in records:
            await self.put(topic, 0, record)
        self.did.append(Appended(topic, len(records)))

    async def put(self, topic: str, partition: int, record: Record) -> int:
        records = self.topics[topic][partition]
        records.append(record._replace(offset=len(records)))
        async with self.news:
            self.news.notify_all()
        return len(records) - 1

    @asynccontextmanager
    async def subscribe(
        self, topic: str, *, group: str, start: Start | None = None, max_records: int = 2_000
    ) -> AsyncIterator[Subscription]:
        member = self.members[group] = MemorySubscription(self, topic, group, start, max_records)
        yield member

    async def lose(self, group: str, partition: int) -> None:
        """The partition goes to another member, and comes back when the iterator is awaited next."""
        member = self.members[group]
        member.held.discard(partition)
        member.positions.pop(partition, None)
        async with self.news:
            self.news.notify_all()

    async def read(self, topic: str, partition: int, offset: int, *, max_records: int = 1_000) -> Batch | None:
        records = self.topics[topic][partition][offset : offset + max_records]
        return Batch(topic, partition, records, records[-1].offset + 1) if records else None

    async def bounds(self, topic: str) -> Mapping[int, tuple[int, int]]:
        earliest = self.earliest if topic == RESOLVED else {}
        return {number: (earliest.get(number, 0), len(records)) for number, records in enumerate(self.topics[topic])}

    async def offset_at(self, topic: str, partition: int, timestamp: int) -> int:
        return 0

    async def committed(self, topic: str, group: str) -> Mapping[int, int]:
        return self.offsets[topic, group]

    def partitions(self, topic: str) -> int:
        return self.count


class MemorySubscription:
    def __init__(self, log: MemoryLog, topic: str, group: str, start: Start | None, max_records: int) -> None:
        self.log, self.topic, self.group, self.start, self.max_records = log, topic, group, start, max_records
        self.held: set[int] = set()
        self.positions: dict[int, int] = {}

    @property
    def assigned(self) -> frozenset[int]:
        return frozenset(self.held)

    async def __aiter__(self) -> AsyncIterator[Sequence[Batch]]:
        while True:
            missing = [one for one in range(self.log.count) if one not in self.held]
            if missing:
                self.held.update(missing)
                begun = await self.start(missing) if self.start else {}
                self.positions |= {one: begun.get(one, 0) for one in missing}
            if batches := self._batches():
                yield batches
                await asyncio.sleep(0)
            elif len(self.held) == self.log.count:  # none was lost while it began
                async with self.log.news:
                    await self.log.news.wait()
                if self.log.away is not None:
                    raise self.log.away

    def _batches(self) -> list[Batch]:
        batches, room = [], self.max_records
        for number in sorted(self.held):
            records = self.log.topics[self.topic][number][self.positions[number] :][:room]
            if records:
                batches.append(Batch(self.topic, number, records, records[-1].offset + 1))
                self.positions[number] = records[-1].offset + 1
                room -= len(records)
        return batches

    async def commit(self, batches: Sequence[Batch]) -> None:
        lost = {batch.partition for batch in batches} - self.held
        for batch in batches:
            if batch.partition in self.held:
                self.log.offsets[self.topic, self.group][batch.partition] = batch.next_offset
                self.log.did.append(Committed(batch.partition, batch.next_offset))
        if lost:
            raise PartitionLost(lost)


# ── Effects ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Appended:
    topic: str
    count: int


class Committed(NamedTuple):
    partition: int
    offset: int


class Tried(NamedTuple):
    """A call of `deliver`, by message id."""

    destination: str
    ids: tuple[str, ...]


class Wrote(NamedTuple):
    """A transaction moved a position."""

    destination: str
    partition: int
    offset: int


class Listed(NamedTuple):
    """A row of `exceptions`."""

    message_id: str
    state: str
    attempts: int
    reason: str


class Book(NamedTuple):
    delivered: int = 0
    filtered: int = 0
    dead: int = 0
    outstanding: int = 0


class Watched(Database):
    """A database that tells of each transaction, and can be told to fail."""

    def __init__(self, url: str, did: list[Any]) -> None:
        super().__init__(url)
        self.did = did
        self.changed = asyncio.Condition()
        self.known: dict[tuple[str, int], int] = {}
        self.before: Callable[[], Awaitable[None]] | None = None
        self.after: Callable[[], Awaitable[None]] | None = None
        schema.metadata.create_all(self.engine)

    async def run(self, work: Callable[[Connection], T]) -> T:
        if self.before is not None:
            await self.before()
        result = await super().run(work)
        table = schema.destination_positions
        rows = await super().run(lambda connection: connection.execute(select(table)).all())
        for row in rows:
            key = (row.destination, row.partition)
            if row.offset != self.known.get(key, 0):
                self.known[key] = row.offset
                self.did.append(Wrote(*key, row.offset))
        async with self.changed:
            self.changed.notify_all()
        if self.after is not None:
            await self.after()
        return result


# ── The world ─────────────────────────────────────────────────────────────────────────────────────────────────────


class NoSettings(Settings):
    """Nothing to set."""


Script = Callable[[Sequence[RawEvent]], Awaitable[Sequence[Outcome]]]


async def takes_all(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
    return [DELIVERED] * len(batch)


def by_id(answers: Mapping[str, Sequence[Outcome]]) -> Script:
    """Answers each event from its own list, then delivered."""
    left = {name: list(outcomes) for name, outcomes in answers.items()}

    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        return [left[one["messageId"]].pop(0) if left.get(one["messageId"]) else DELIVERED for one in batch]

    return script


QUICK = Limits(
    backoff=0.004,
    longest_backoff=0.01,
    silence=0.0,
    rest=0.004,
    longest_rest=0.01,
    probe=0.004,
    longest_probe=0.01,
    longest_pause=0.01,
    grace=1.0,
)


@dataclass
class DeliveryWorld:
    folder: Path
    partitions: int = 1
    url: str = ""
    limits: Limits = QUICK
    patience: float = 20.0  # seconds that `until` and `finish` wait, of the running loop
    clock: World = field(default_factory=lambda: World(chance=lambda: 1.0))
    did: list[Any] = field(default_factory=list)
    first: bool = True  # of the processes of this machine

    def __post_init__(self) -> None:
        self.log = MemoryLog(self.partitions, self.did)
        self.database = Watched(self.url or f"sqlite:///{self.folder}/world.db", self.did)
        self.destinations: list[Destination] = []
        self.origin = 0
        self.events = 0
        self.task: asyncio.Task[None] | None = None
        self.stop = asyncio.Event()

    def add(
        self,
        script: Script = takes_all,
        *,
        name: str = "crm",
        check: Callable[[], Awaitable[None]] | None = None,
        sources: frozenset[str] | None = None,
        filter_: FilterConfig | None = None,
        types: Sequence[str] = TYPES,
        max_batch: int = 100,
        atomic: bool = False,
        concurrency: int = 8,
        warehouse: bool = False,
    ) -> Destination:
        """A destination that does as `script` says."""

        async def deliver(_: None, batch: Sequence[RawEvent]) -> Sequence[Outcome]:
            self.did.append(Tried(name, tuple(one["messageId"] for one in batch)))
            outcomes = await script(batch)
            await self.told()
            return outcomes

        async def checked(_: None) -> None:
            if check is not None:
                await check()

        @asynccontextmanager
        async def connect(settings: Settings, env: Env) -> AsyncIterator[None]:
            yield None

        action = Action(
            name="send_events",
            payload=None,
            types=types,
            max_batch=max_batch,
            deliver=deliver,
            atomic=atomic,
            concurrency=concurrency,
        )
        one = Destination(
            name=name,
            definition=Definition(
                name="scripted",
                description="Does as it is told.",
                settings=NoSettings,
                connect=connect,
                check=checked,
                actions=(action,),
                warehouse=warehouse,
            ),
            settings=NoSettings(),
            sources=sources,
            filter=filter_ or FilterConfig(types=None, events=None),
        )
        self.destinations.append(one)
        return one

    async def told(self) -> None:
        async with self.database.changed:
            self.database.changed.notify_all()

    # ── Events ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def emit(
        self,
        message_id: str,
        profile: str = "ann",
        *,
        partition: int = 0,
        origin: Origin | None = None,
        **rest: Any,
    ) -> bytes:
        """Appends a resolved event; returns its value, to be appended again."""
        if origin is None:
            origin, self.origin = Origin(0, self.origin), self.origin + 1
        value = resolved(message_id, profile, origin, **rest)
        await self.put(value, profile, partition)
        return value

    async def put(self, value: bytes, profile: str = "ann", partition: int = 0) -> None:
        await self.log.put(RESOLVED, partition, Record(profile.encode(), value, 0))

    # ── Running ───────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(
            run_delivery(
                self.log,
                self.database,
                self.destinations,
                stop=self.stop,
                folder=self.folder,
                limits=self.limits,
                world=self.clock,
                first=self.first,
            )
        )

    async def finish(self) -> None:
        """Asks the engine to stop and waits until it has."""
        assert self.task is not None
        self.stop.set()
        await asyncio.wait_for(self.task, self.patience)

    async def crash(self) -> None:
        """The process is gone, with everything in memory."""
        assert self.task is not None
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task

    async def until(self, met: Callable[[], Awaitable[bool]]) -> None:
        """Waits until something is so, looking after each transaction and each delivery."""
        async with asyncio.timeout(self.patience), self.database.changed:
            while not await met():
                assert self.task is not None
                if self.task.done():
                    self.task.result()
                await self.database.changed.wait()

    async def until_idle(self) -> None:
        """Waits until every destination has read everything and nothing is outstanding."""
        await self.until(self._is_idle)

    async def _is_idle(self) -> bool:
        ends = {number: len(records) for number, records in enumerate(self.log.topics[RESOLVED]) if records}
        for one in self.destinations:
            positions = await self.positions(one.name)
            if any(positions.get(number, 0) < end for number, end in ends.items()):
                return False
            if (await self.book(one.name)).outstanding:
                return False
        return True

    async def run_until_idle(self) -> None:
        self.start()
        await self.until_idle()
        await self.finish()

    # ── What is written ───────────────────────────────────────────────────────────────────────────────────────────

    async def rows(self, table: Any) -> list[Any]:
        return await Database.run(self.database, lambda connection: list(connection.execute(select(table)).all()))

    async def positions(self, name: str = "crm") -> dict[int, int]:
        rows = await self.rows(schema.destination_positions)
        return {row.partition: row.offset for row in rows if row.destination == name}

    async def books(self, name: str = "crm") -> dict[str, Book]:
        """By source."""
        sums: dict[str, Counter[str]] = defaultdict(Counter)
        for row in await self.rows(schema.destination_counts):
            if row.destination == name:
                for what in ("delivered", "filtered", "dead"):
                    sums[row.source][what] += getattr(row, what)
                sums[row.source]["dead"] -= row.redriven + row.purged
        for row in await self.rows(schema.exceptions):
            if row.destination == name and row.state in OUTSTANDING:
                sums[row.source]["outstanding"] += 1
        return {source: Book(**counts) for source, counts in sorted(sums.items())}

    async def book(self, name: str = "crm") -> Book:
        return Book(*(sum(column) for column in zip(Book(), *(await self.books(name)).values(), strict=True)))

    async def listed(self, name: str = "crm") -> list[Listed]:
        rows = sorted(await self.rows(schema.exceptions), key=lambda row: (row.partition, row.offset))
        return [Listed(row.message_id, row.state, row.attempts, row.reason) for row in rows if row.destination == name]

    async def filtered(self, name: str = "crm") -> list[dict[str, list[list[int]]]]:
        rows = sorted(await self.rows(schema.destination_batches), key=lambda row: (row.partition, row.next_offset))
        return [orjson.loads(row.filtered) for row in rows if row.destination == name]

    async def states(self) -> dict[str, tuple[str, str]]:
        return {row.destination: (row.state, row.reason) for row in await self.rows(schema.destination_state)}

    def letters(self) -> list[DeadLetter]:
        return [decode_dead_letter(one.value) for records in self.log.topics[DEAD_LETTERS] for one in records]

    def tried(self, name: str = "crm") -> list[tuple[str, ...]]:
        return [one.ids for one in self.did if isinstance(one, Tried) and one.destination == name]

    def close(self) -> None:
        self.database.close()


def resolved(
    message_id: str,
    profile: str,
    origin: Origin,
    *,
    source: str = "web",
    type: str = "track",  # noqa: A002 - the field's name
    fences: Sequence[Fence] = (),
    **body: Any,
) -> bytes:
    """The value of a resolved record."""
    event = Event(
        source=source,
        type=type,
        message_id=message_id,
        anonymous_id=profile or None,
        user_id=None,
        timestamp=1_700_000_000_000_000,
        sent_at=None,
        received_at=1_700_000_000_000_000,
        channel="client",
        ip=None,
        refused=None,
        body=orjson.dumps({"type": type, "event": "Clicked"} | body),
    )
    return encode_resolved(profile, origin, (), encode_event(event), fences=fences)
