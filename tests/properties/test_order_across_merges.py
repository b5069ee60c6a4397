"""Order across merges and splits: whoever applies, emits and delivers, and whatever crashes, a person's events reach a destination in the order in
which they were applied, those of the profiles that became that person too, and those of the one that it was taken out of."""

import asyncio
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, select

from destinations.contract import DELIVERED, Outcome, RawEvent, Rejected, Retry
from pipeline.delivery.engine import Limits, World, run_delivery
from pipeline.emission import emit
from pipeline.identity import DEFAULT
from pipeline.log import Batch, Record, Subscription
from pipeline.log.contract import Start
from pipeline.parse import parse
from pipeline.split import Split
from pipeline.store import schema, splits
from pipeline.store.database import Database
from pipeline.store.intake import Emission, apply
from schemas.config import FilterConfig
from schemas.errors import Refused
from schemas.events import Event, encode_event
from schemas.topics import EVENTS, RESOLVED, partition_of
from tests.unit.delivery_world import DeliveryWorld, MemoryLog, MemorySubscription

PARTITIONS = 3
PROCESSES = ("one", "two")
LIMITS = Limits(
    backoff=0.001,
    longest_backoff=0.003,
    silence=0.0,
    rest=0.001,
    longest_rest=0.003,
    probe=0.001,
    longest_probe=0.003,
    failures=3,
    look=0.004,
    ask=0.001,
    outstanding=6,
    records=3,
)


# ── What may happen ───────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Send:
    """An event of a device, perhaps of somebody who is logged in, or of a server, which knows of the user only; what attempts at it come to,
    then delivered."""

    device: int | None
    user: int | None
    kind: str
    answers: tuple[str, ...]

    @property
    def place(self) -> int:
        """What its partition is found by: the device, else the user."""
        return self.device if self.device is not None else 100 + (self.user or 0)


@dataclass(frozen=True)
class Emit:
    """What was applied by a member of the pipeline gets to `resolved`. It may die before the n-th append, or after it."""

    member: int
    dies_at: int | None
    after: bool


@dataclass(frozen=True)
class Crash:
    """A process that delivers dies; the other has its partitions. If `back`, it comes back without any."""

    process: int
    back: bool


@dataclass(frozen=True)
class Move:
    """A partition goes to another process."""

    partition: int
    process: int


@dataclass(frozen=True)
class Part:
    """The latest merge that holds is undone."""


@dataclass(frozen=True)
class Settle:
    """Everything ends."""


devices = st.integers(0, 7)
answers = st.sampled_from([(), ("retry",), ("retry", "retry"), ("retry", "rejected"), ("rejected",)])
kinds = st.sampled_from(["track", "track", "identify"])
sends = st.builds(Send, devices, st.sampled_from([None, None, 0, 0, 1]), kinds, answers) | st.builds(
    Send, st.none(), st.sampled_from([0, 0, 1]), kinds, answers
)


@st.composite
def visits(draw: st.DrawFn) -> list[Send]:
    """Somebody looks around, logs in, and goes on: most often two profiles become one."""
    device, user = draw(devices), draw(st.sampled_from([0, 0, 1]))
    before, after = draw(answers), draw(answers)
    return [
        Send(device, None, "track", before),
        Send(device, user, draw(kinds), ()),
        Send(device, draw(st.sampled_from([None, user])), "track", after),
    ]


@st.composite
def errands(draw: st.DrawFn) -> list[Any]:
    """A server knows somebody whom a device does not know yet: the device's login merges what the server goes on with, whoever emits first."""
    device, user = draw(devices), draw(st.sampled_from([0, 1]))
    emitted = draw(st.lists(st.builds(Emit, st.integers(0, 1), st.none(), st.just(True)), max_size=1))
    return [
        Send(device, None, "track", ()),
        Send(None, user, "track", draw(answers)),
        Send(device, user, draw(kinds), ()),
        *emitted,
        Send(None, user, "track", ()),
    ]


steps = st.lists(
    st.one_of(
        sends.map(lambda one: [one]),
        visits(),
        visits(),
        visits(),
        errands(),
        st.builds(Emit, st.integers(0, 1), st.none() | st.integers(0, 2), st.booleans()).map(lambda one: [one]),
        st.builds(Emit, st.integers(0, 1), st.none(), st.just(True)).map(lambda one: [one]),
        st.builds(Crash, st.integers(0, 1), st.booleans()).map(lambda one: [one]),
        st.builds(Move, st.integers(0, PARTITIONS - 1), st.integers(0, 1)).map(lambda one: [one]),
        st.just([Settle()]),
        st.just([Part()]),
    ),
    min_size=6,
    max_size=16,
).map(lambda parts: [step for part in parts for step in part])


# ── The log, as several processes share it ────────────────────────────────────────────────────────────────────────


class Died(Exception):
    """A member of the pipeline is gone, in the middle of its work."""


class SharedLog(MemoryLog):
    """Finds partitions by key. `owner` says which process has which partition."""

    def __init__(self) -> None:
        super().__init__(PARTITIONS)
        self.owner = {number: (PROCESSES[number % 2], 0) for number in range(PARTITIONS)}  # and since which rebalance
        self.dies_at: int | None = None  # how many appends from now
        self.after = False

    async def append(self, topic: str, records: Sequence[Record]) -> None:
        dies = topic == RESOLVED and self.dies_at == 0
        if topic == RESOLVED and self.dies_at is not None:
            self.dies_at -= 1
        if dies and not self.after:
            raise Died
        for record in records:
            await self.put(topic, partition_of(record.key, self.count), record)
        if dies:
            raise Died

    async def rebalance(self, changes: Mapping[int, str]) -> None:
        for number, process in changes.items():
            before, since = self.owner[number]
            self.owner[number] = (process, since + (process != before))
        async with self.news:
            self.news.notify_all()


class Seat:
    """The log as one process sees it."""

    def __init__(self, log: SharedLog, process: str) -> None:
        self.log, self.process = log, process
        self.append, self.read, self.bounds = log.append, log.read, log.bounds
        self.offset_at, self.committed, self.partitions = log.offset_at, log.committed, log.partitions

    @asynccontextmanager
    async def subscribe(
        self, topic: str, *, group: str, start: Start | None = None, max_records: int = 2_000
    ) -> AsyncIterator[Subscription]:
        yield Member(self, topic, group, start, max_records)


class Member(MemorySubscription):
    """A member of the group that has what its process owns."""

    def __init__(self, seat: Seat, topic: str, group: str, start: Start | None, max_records: int) -> None:
        super().__init__(seat.log, topic, group, start, max_records)
        self.seat = seat
        self.since: dict[int, int] = {}

    async def __aiter__(self) -> AsyncIterator[Sequence[Batch]]:
        while True:
            if (ours := self._ours()) != self.since:
                kept = {number for number in self.held if ours.get(number) == self.since[number]}
                missing = sorted(ours.keys() - kept)
                self.held, self.since = set(ours), ours
                begun = await self.start(missing) if self.start and missing else {}
                self.positions |= {one: begun.get(one, 0) for one in missing}
            elif batches := self._batches():
                yield batches
                await asyncio.sleep(0)
            else:
                async with self.log.news:
                    await self.log.news.wait_for(self._stirred)

    def _ours(self) -> dict[int, int]:
        """Our partitions, and since which rebalance."""
        owner = self.seat.log.owner
        return {number: since for number, (process, since) in owner.items() if process == self.seat.process}

    def _stirred(self) -> bool:
        ends = {number: len(self.log.topics[self.topic][number]) for number in self.held}
        return self._ours() != self.since or any(self.positions[number] < end for number, end in ends.items())


# ── The pipeline ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Worker:
    """A member of the pipeline with its partition of `events`: applies each event as it comes, emits when told to."""

    database: Database
    log: SharedLog
    partition: int
    records: list[Record] = field(default_factory=list)
    emitted: int = 0
    pending: list[Emission] = field(default_factory=list)

    async def send(self, event: Event) -> str:
        """The profile it went to."""
        self.records.append(Record(event.key, encode_event(event), 0, len(self.records)))
        (emission,) = await self._apply(self.records[-1:])
        self.pending.append(emission)
        return emission.profile

    async def emit(self, step: Emit) -> None:
        self.log.dies_at, self.log.after = step.dies_at, step.after
        try:
            await emit(self.log, self.pending, asyncio.Event())
            self.pending, self.emitted = [], len(self.records)
        except Died:
            self.pending = await self._apply(self.records[self.emitted :])
        finally:
            self.log.dies_at = None

    async def _apply(self, records: Sequence[Record]) -> list[Emission]:
        work = parse([Batch(EVENTS, self.partition, records, records[-1].offset + 1)])
        emitted = {self.partition: self.emitted}
        return await self.database.run(partial(apply, work=work, emitted=emitted, rules=DEFAULT))


# ── The law ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Model:
    """What has to come before what. `together`: one member applies everything, so the order of application is the order of the log;
    else that is so for each device."""

    together: bool
    before: dict[str, set[str]] = field(default_factory=dict)
    left: dict[str, list[str]] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)
    broken: list[str] = field(default_factory=list)
    _people: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    _places: dict[str, int] = field(default_factory=dict)
    _merged: set[str] = field(default_factory=set)

    def applied(self, message_id: str, step: Send, profile: str, merges: Sequence[tuple[str, str, str]]) -> None:
        for merge, survivor, absorbed in merges:
            if merge not in self._merged:
                self._people[survivor] += self._people.pop(absorbed, [])
        self._merged.update(merge for merge, _, _ in merges)
        before = {one for one in self._people[profile] if self.together or self._places[one] == step.place}
        self.before[message_id] = before
        self.left[message_id] = list(step.answers)
        if step.kind == "track":  # the others are filtered
            self._people[profile].append(message_id)
            self._places[message_id] = step.place

    def parted(self, profile: str, other: str) -> None:
        """What comes of either side comes after what the whole had."""
        self._people[other] = list(self._people[profile])

    @property
    def meant(self) -> set[str]:
        """All that the destination is to get."""
        return set(self._places)

    async def deliver(self, batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        ids = [one["messageId"] for one in batch]
        for number, one in enumerate(ids):
            if waiting := self.before[one] - self.settled - set(ids[:number]):
                self.broken.append(f"{one} before {sorted(waiting)}")
        said = [self.left[one].pop(0) if self.left[one] else "delivered" for one in ids]
        self.settled.update(one for one, word in zip(ids, said, strict=True) if word != "retry")
        return [_OUTCOMES[word] for word in said]


_OUTCOMES: dict[str, Outcome] = {
    "delivered": DELIVERED,
    "retry": Retry("http 503"),
    "rejected": Rejected("http 422"),
}


# ── A life ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Deployment:
    """A pipeline of one or two members, and two processes that deliver."""

    def __init__(self, folder: Path, *, members: int, atomic: bool, url: str = "") -> None:
        self.model = Model(together=members == 1)
        self.folder = folder
        self.log = SharedLog()
        self.world = DeliveryWorld(folder, partitions=PARTITIONS, limits=LIMITS, url=url, clock=World())
        self.world.log = self.log
        only_tracks = FilterConfig(types=("track",), events=None)
        self.world.add(self.model.deliver, atomic=atomic, concurrency=2, max_batch=3, filter_=only_tracks)
        self.workers = [Worker(self.world.database, self.log, number) for number in range(members)]
        self.engines: dict[str, asyncio.Task[None]] = {}
        self.sent = 0

    def start(self, process: str) -> None:
        if process not in self.engines:
            self.engines[process] = asyncio.create_task(
                run_delivery(
                    Seat(self.log, process),
                    self.world.database,
                    self.world.destinations,
                    stop=asyncio.Event(),
                    folder=self.folder,
                    limits=LIMITS,
                    world=World(),
                )
            )

    async def end(self, process: str) -> None:
        task = self.engines.pop(process, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def send(self, step: Send) -> None:
        number, self.sent = self.sent, self.sent + 1
        message_id = f"m{number}"
        worker = self.workers[step.place % len(self.workers)]
        profile = await worker.send(_event(message_id, number, step))
        table = schema.merges.c
        merges = await self.world.database.read(
            lambda connection: connection.execute(
                select(table.id, table.survivor, table.absorbed).order_by(table.seq)
            ).all()
        )
        self.model.applied(message_id, step, profile, [tuple(one) for one in merges])

    async def part(self) -> None:
        def undo(connection: Connection) -> Split | None:
            merges = schema.merges.c
            holding = select(merges.id).where(merges.undone_by.is_(None)).order_by(merges.seq.desc())
            merge = connection.execute(holding.limit(1)).scalar()
            return None if merge is None else splits.unmerge(connection, merge, DEFAULT).split

        with suppress(Refused):  # nothing is left of one of the two
            split = await self.world.database.run(undo)
            if split is not None:
                self.model.parted(split.profile, split.other)

    async def crash(self, step: Crash) -> None:
        process, other = PROCESSES[step.process], PROCESSES[1 - step.process]
        await self.end(process)
        self.start(other)
        await self.log.rebalance(dict.fromkeys(range(PARTITIONS), other))
        if step.back:
            self.start(process)

    async def move(self, step: Move) -> None:
        process = PROCESSES[step.process]
        if process in self.engines:
            await self.log.rebalance({step.partition: process})

    async def settle(self) -> None:
        for worker in self.workers:
            if worker.pending:
                await worker.emit(Emit(worker.partition, None, True))
        async with asyncio.timeout(10), self.world.database.changed:
            while not await self.world._is_idle():
                await self.world.database.changed.wait()

    async def live(self, plan: Sequence[Any]) -> None:
        for process in PROCESSES:
            self.start(process)
        try:
            for step in [*plan, Settle()]:
                match step:
                    case Send():
                        await self.send(step)
                    case Emit():
                        if (worker := self.workers[step.member % len(self.workers)]).pending:
                            await worker.emit(step)
                    case Crash():
                        await self.crash(step)
                    case Move():
                        await self.move(step)
                    case Part():
                        await self.part()
                    case Settle():
                        await self.settle()
            assert (self.model.broken, self.model.settled) == ([], self.model.meant)
        finally:
            for process in PROCESSES:
                await self.end(process)
            self.world.close()


def _event(message_id: str, number: int, step: Send) -> Event:
    at = 1_700_000_000_000_000 + number * 1_000_000
    device, user = (None if one is None else f"{name}{one}" for name, one in (("d", step.device), ("u", step.user)))
    named = {name: value for name, value in (("anonymousId", device), ("userId", user)) if value is not None}
    body = {"type": step.kind, "messageId": message_id, "event": "Clicked", **named}
    return Event("web", step.kind, message_id, device, user, at, None, at, "client", None, None, orjson.dumps(body))


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
@given(plan=steps, members=st.sampled_from([1, 1, 2]), atomic=st.booleans())
def test_a_persons_events_arrive_in_the_order_in_which_they_were_applied(
    plan: Sequence[Any], members: int, atomic: bool
) -> None:
    async def life(folder: Path) -> None:
        await Deployment(folder, members=members, atomic=atomic).live(plan)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(life(Path(folder)))
