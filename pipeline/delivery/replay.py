"""Sends recorded events to one destination again, beside its live flow and without a part in it.

A replay has a courier of its own, so isolation, retries, order per profile and dead letters are the same; it reads ranges of
`resolved` that lie behind the destination's position, at a bounded rate, and of the destination's own rate it has what the live flow
leaves. To the ledger it is a destination of another name: after a crash it goes on where its own position stands. What the ledger says was delivered before is passed over.
"""

import asyncio
import os
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Final

import structlog
from sqlalchemy import Connection

from pipeline.delivery.connecting import connected, rest
from pipeline.delivery.courier import Courier
from pipeline.delivery.decide import Decide, Unreadable, decode, rules
from pipeline.delivery.limits import Destination, Limits, World
from pipeline.delivery.poll import micros
from pipeline.delivery.retry import ceiling
from pipeline.delivery.throttle import Leftover, Throttle
from pipeline.language.filters import compile_filter
from pipeline.log import Batch, Log, Record, Subscription
from pipeline.log.contract import Start
from pipeline.store import leases, replays
from pipeline.store.database import Database
from pipeline.store.paths import Outcome
from pipeline.store.replays import History, Replay
from schemas.errors import CredentialsRejected, PartitionLost, Unavailable
from schemas.events import Origin, Resolved, materialize
from schemas.topics import RESOLVED

NOT_CHOSEN: Final = "REPLAY_NOT_CHOSEN"
ALREADY_DELIVERED: Final = "REPLAY_ALREADY_DELIVERED"
STILL_PENDING: Final = "REPLAY_STILL_PENDING"
DEAD_LETTER: Final = "REPLAY_DEAD_LETTER"
PURGED: Final = "REPLAY_PURGED"

_LEASE: Final = 10.0  # seconds after which another process takes over from one that is gone
_READ: Final = 1_000  # records at once
_SLICE: Final = 0.2  # seconds' worth of events handed on at once

log = structlog.get_logger()


def verdict(here: Iterable[Outcome], *, again: bool) -> str | None:
    """Why an event is not replayed, from how it stands at the destination and in other replays; None: it may be sent.

    What is under way or dead is somebody else's: the live flow's, or that of who retries dead letters. What was `settled` too
    long ago for details counts as delivered."""
    states = {one.outcome for one in here}
    if states & {"pending", "held", "retry"}:
        return STILL_PENDING
    if "dead" in states:
        return DEAD_LETTER
    if again:
        return None
    if states & {"delivered", "settled"}:
        return ALREADY_DELIVERED
    return PURGED if "purged" in states else None


def chosen(replay: Replay) -> Callable[[Resolved], bool]:
    """Whether an event is among those wanted. Raises FilterError for a filter that is none."""
    sources = frozenset(replay.wanted.sources)
    passes = compile_filter(replay.wanted.filter) if replay.wanted.filter else None

    def wanted(resolved: Resolved) -> bool:
        if sources and resolved.event.source not in sources:
            return False
        return passes is None or passes(materialize(resolved))

    return wanted


class Judge:
    """Decides of recorded events, from the replay, the ledger and the destination's rules."""

    def __init__(self, database: Database, replay: Replay, decide: Decide) -> None:
        self._database, self._replay, self._rules = database, replay, decide
        self._wanted = chosen(replay)

    async def __call__(self, batch: Batch) -> list[tuple[Record, Resolved | None, str | None]]:
        """Each record with its event and the reason why it is not sent. A record that cannot be read is sent: the courier makes
        it a dead letter."""
        history: History = await self._database.read(
            partial(
                History,
                replay=self._replay,
                partition=batch.partition,
                first=batch.records[0].offset,
                end=batch.next_offset,
            )
        )
        judged: list[tuple[Record, Resolved | None, str | None]] = []
        for record in batch.records:
            decoded = decode(record.value)
            if isinstance(decoded, Unreadable):
                judged.append((record, None, None))
            else:
                judged.append((record, decoded, self._reason(decoded, history, record.offset)))
        return judged

    def _reason(self, resolved: Resolved, history: History, offset: int) -> str | None:
        if not self._wanted(resolved):
            return NOT_CHOSEN
        reason = verdict(history.outcomes(offset), again=self._replay.wanted.again)
        if reason is not None:
            return reason
        try:
            return self._rules(resolved)
        except ValueError:
            return None  # the courier says what is wrong with it


async def recorded(log: Log, replay: Replay, partition: int, offset: int, most: int = _READ) -> Batch | None:
    """The next records of a replay in a partition; None at its end, and when retention has removed what is left."""
    _, end = replay.ranges[partition]
    batch = await log.read(RESOLVED, partition, offset, max_records=most) if offset < end else None
    records = [] if batch is None else [one for one in batch.records if one.offset < end]
    if batch is None or not records:
        return None
    return replace(batch, records=records, next_offset=min(batch.next_offset, end))


async def rehearse(
    log: Log, database: Database, replay: Replay, decide: Decide, advance: Callable[[int], None]
) -> Counter[str]:
    """What would become of the events of a replay, without sending any: how many for each reason, the empty one for those that
    would be sent. `advance` hears of the records done."""
    judge, counts, done = Judge(database, replay, decide), Counter[str](), 0
    for partition, (first, _) in replay.ranges.items():
        offset = first
        seen: dict[int, int] = {}
        while (batch := await recorded(log, replay, partition, offset)) is not None:
            for _, resolved, reason in await judge(batch):
                if resolved is not None and resolved.origin.offset > seen.get(resolved.origin.partition, -1):
                    seen[resolved.origin.partition] = resolved.origin.offset
                    counts[reason or ""] += 1
            done += batch.next_offset - offset
            offset = batch.next_offset
            advance(done)
    return counts


# ── The log as a replay sees it ───────────────────────────────────────────────────────────────────────────────────


class Recorded:
    """A log of which `resolved` is what is to be replayed, at the rate that is wanted. `decide` says what becomes of the events
    read last; `exhausted` is set once all is read, and everything before it is in the ledger."""

    def __init__(self, events: Log, database: Database, replay: Replay, decide: Decide, world: World) -> None:
        self._events, self._replay, self._world = events, replay, world
        self._rules = decide
        self._judge = Judge(database, replay, decide)
        self._reasons: dict[Origin, str | None] = {}
        self._due = 0.0  # when the next event may go, Unix seconds
        self._open = set(replay.ranges)  # partitions of which there is more to read
        self.exhausted = asyncio.Event()

    def decide(self, resolved: Resolved) -> str | None:
        """The courier's decision on a record that was read."""
        return self._reasons.get(resolved.origin) or self._rules(resolved)

    async def append(self, topic: str, records: Sequence[Record]) -> None:
        await self._events.append(topic, records)

    async def read(self, topic: str, partition: int, offset: int, *, max_records: int = 1_000) -> Batch | None:
        return await self._events.read(topic, partition, offset, max_records=max_records)

    async def bounds(self, topic: str) -> Mapping[int, tuple[int, int]]:
        """Of `resolved`, what is to be replayed of each partition that is not at its end."""
        if topic == RESOLVED:
            return {partition: self._replay.ranges[partition] for partition in self._open}
        return await self._events.bounds(topic)

    async def offset_at(self, topic: str, partition: int, timestamp: int) -> int:
        return await self._events.offset_at(topic, partition, timestamp)

    async def committed(self, topic: str, group: str) -> Mapping[int, int]:
        return await self._events.committed(topic, group)

    def partitions(self, topic: str) -> int:
        return self._events.partitions(topic)

    @asynccontextmanager
    async def subscribe(
        self, topic: str, *, group: str, start: Start | None = None, max_records: int = 2_000
    ) -> AsyncIterator[Subscription]:
        """No group of the log's: the ledger's position is all there is to know, and its epoch keeps others out."""
        self.exhausted.clear()
        self._open = set(self._replay.ranges)
        yield _Reading(self, start, min(max_records, _READ))

    async def parts(self, start: Start | None, most: int) -> AsyncIterator[Sequence[Batch]]:
        """What is to be replayed, a little at a time and roughly as it was recorded, since events wait for older ones of other
        partitions; ends never."""
        ranges = self._replay.ranges
        begun = await start(sorted(ranges)) if start is not None else {}
        each = max(1, most // max(1, len(ranges)))
        following: dict[int, Batch] = {}

        async def read(partition: int, offset: int) -> None:
            batch = await recorded(self._events, self._replay, partition, offset, each)
            if batch is None:
                self._open.discard(partition)
            else:
                following[partition] = batch

        for partition, (first, _) in sorted(ranges.items()):
            await read(partition, max(first, begun.get(partition, first)))
        while following:
            partition = min(following, key=lambda one: (following[one].records[0].timestamp, one))
            batch = following.pop(partition)
            judged = await self._judge(batch)
            self._reasons = {}
            for _, resolved, reason in judged:
                if resolved is not None:
                    self._reasons.setdefault(resolved.origin, reason)
            passing = {record.offset for record, _, reason in judged if reason is None}
            async for part in self._paced(batch, passing):
                yield [part]
            await read(partition, batch.next_offset)
        self.exhausted.set()
        await asyncio.Future()

    async def _paced(self, batch: Batch, passing: set[int]) -> AsyncIterator[Batch]:
        """Parts of a batch, each once its events may go."""
        rate = self._replay.wanted.rate
        most = max(1, int(rate * _SLICE))
        records: list[Record] = []
        going = 0
        for index, record in enumerate(batch.records):
            records.append(record)
            going += record.offset in passing
            last = index + 1 == len(batch.records)
            if last or going == most:
                await self._until_due(going / rate)
                yield replace(
                    batch,
                    records=records,
                    next_offset=batch.next_offset if last else batch.records[index + 1].offset,
                )
                records, going = [], 0

    async def _until_due(self, takes: float) -> None:
        """Waits until more may go, which then `takes` so many seconds."""
        if not takes:
            return
        now = self._world.now()
        if self._due > now:
            await self._world.sleep(self._due - now)
        self._due = max(self._due, now) + takes


class _Reading:
    """The subscription: all partitions of the replay are its own."""

    def __init__(self, recorded: Recorded, start: Start | None, most: int) -> None:
        self._recorded, self._start, self._most = recorded, start, most
        self._held: frozenset[int] = frozenset(recorded._replay.ranges)

    @property
    def assigned(self) -> frozenset[int]:
        return self._held

    def __aiter__(self) -> AsyncIterator[Sequence[Batch]]:
        return self._recorded.parts(self._start, self._most)

    async def commit(self, batches: Sequence[Batch]) -> None:
        """Nothing: the ledger is the truth."""


# ── Their lives ───────────────────────────────────────────────────────────────────────────────────────────────────


async def run_replays(
    events: Log,
    database: Database,
    destinations: Sequence[Destination],
    *,
    stop: asyncio.Event,
    folder: str,
    limits: Limits,
    world: World,
    throttles: Mapping[str, Throttle],
) -> None:
    """Works on every replay that is going, each in a task of its own, until `stop` is set. Of several processes one works
    on a replay. Raises nothing of theirs."""
    known = {one.name: one for one in destinations}
    owner = f"{os.getpid()}-{secrets.token_hex(4)}"
    tasks: dict[int, asyncio.Task[None]] = {}
    async with asyncio.TaskGroup() as group:
        while not stop.is_set():
            tasks = {number: task for number, task in tasks.items() if not task.done()}
            try:
                going = await database.read(replays.going)
            except Unavailable as error:
                log.warning("replays not looked at", error=str(error))
                going = []
            for one in going:
                if one.id not in tasks:
                    name = one.wanted.destination
                    throttle = Leftover(throttles[name]) if name in throttles else None
                    work = _Work(one, known.get(name), events, database, owner, stop, limits, world, throttle)
                    tasks[one.id] = group.create_task(work.run(folder), name=one.name)
            await rest(limits.look, stop, world)


class _Work:
    """One replay in this process, for as long as it is ours."""

    def __init__(
        self,
        replay: Replay,
        destination: Destination | None,
        events: Log,
        database: Database,
        owner: str,
        stop: asyncio.Event,
        limits: Limits,
        world: World,
        throttle: Leftover | None,
    ) -> None:
        self._throttle = throttle
        self._replay, self._destination = replay, destination
        self._events, self._database, self._owner = events, database, owner
        self._stop, self._limits, self._world = stop, limits, world
        self._over = asyncio.Event()  # nothing more is to be sent from here
        self._recorded: Recorded | None = None
        self._note = replay.note
        self._log = log.bind(replay=replay.name)

    async def run(self, folder: str) -> None:
        """Ends when the replay has ended, is another's, or when asked to stop."""
        try:
            if not await self._database.run(self._lease):
                return
            minding = asyncio.create_task(self._mind())
            try:
                await self._keep(folder)
            finally:
                self._over.set()
                await minding
            await self._database.run(self._hand_over)
        except Unavailable as error:
            self._log.warning("replay stands still until the database is back", error=str(error))
        except Exception:
            self._log.exception("replay failed, trying again")

    def _lease(self, connection: Connection) -> bool:
        now, span = micros(self._world.now()), round(_LEASE * 1e6)
        return leases.lease(connection, self._replay.name, self._owner, now, span)

    def _hand_over(self, connection: Connection) -> None:
        """Nobody works on it now, so one that was cancelled can end."""
        current = replays.find(connection, self._replay.id)
        if current is not None and current.state == "cancelling" and self._lease(connection):
            replays.finish_cancelled(connection, current, micros(self._world.now()))
        leases.release(connection, self._replay.name, self._owner)

    # ── Whether to go on ──

    async def _mind(self) -> None:
        """Keeps it ours, and sees when there is nothing more to do."""
        while not self._over.is_set():
            try:
                goes_on = not self._stop.is_set() and await self._database.run(self._goes_on)
            except Unavailable:
                goes_on = True  # the courier waits too; should another take over, its epoch is higher
            if not goes_on:
                self._over.set()
            await rest(self._limits.look, self._over, self._world)

    def _goes_on(self, connection: Connection) -> bool:
        if not self._lease(connection):
            return False
        current = replays.find(connection, self._replay.id)
        if current is None or current.state != "running":
            return False
        read = self._recorded is not None and self._recorded.exhausted.is_set()
        return not (read and replays.finish(connection, current, micros(self._world.now())))

    # ── Sending ──

    async def _keep(self, folder: str) -> None:
        """Starts again whenever it ends before it should."""
        failures = 0
        while not self._over.is_set():
            try:
                await self._send(folder)
                return
            except CredentialsRejected as error:
                words = f"credentials rejected: {error}"
            except Unavailable as error:
                words = str(error)
            except ValueError as error:  # a filter that this version does not take any more
                words = str(error)
            except Exception as error:
                words = type(error).__name__
                self._log.exception("replay failed, trying again")
            if self._over.is_set():
                return
            await self._tell(words)
            wait = ceiling(failures, self._limits.probe, self._limits.longest_probe)
            failures += 1
            await rest(wait, self._over, self._world)

    async def _send(self, folder: str) -> None:
        if self._destination is None:
            raise Unavailable(f"no destination is called {self._replay.wanted.destination}; configure it, or cancel")
        recorded = Recorded(self._events, self._database, self._replay, rules(self._destination), self._world)
        self._recorded = recorded
        named = replace(self._destination, name=self._replay.name)
        async with connected(self._destination, folder, self._world) as (client, insert):
            await self._tell("")
            while not self._over.is_set():
                courier = Courier(
                    named,
                    client,
                    recorded,
                    self._database,
                    stop=self._over,
                    limits=self._limits,
                    world=self._world,
                    insert=insert,
                    decide=recorded.decide,
                    throttle=self._throttle,
                )
                try:
                    await courier.run()
                except PartitionLost:
                    await rest(self._limits.probe * self._world.chance(), self._over, self._world)

    async def _tell(self, words: str) -> None:
        """Says why it stands still, when that changed."""
        if words == self._note:
            return
        self._note = words
        if words:
            self._log.warning("replay stands still, trying again", error=words)
        await self._database.run(partial(replays.note, number=self._replay.id, words=words))
