"""One destination's deliveries in this process: what is read, tried, waited for and written, in one loop.

Order of promises: the service has it, the dead letters are durable, one transaction moves positions, counters and
exceptions, then the log's group is told. A crash anywhere before the transaction repeats the delivery.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from typing import Any, Final, TypeVar

import structlog

from destinations.contract import DELIVERED, Filtered, Outcome, Rejected, Retry
from destinations.exchanges import Exchange, listening
from pipeline.delivery import poll
from pipeline.delivery.alarm import Alarm
from pipeline.delivery.attempt import Attempt, attempt, early
from pipeline.delivery.decide import DELETED, Decide, Unreadable, decode, decoded, rules
from pipeline.delivery.lanes import FRESH, Item, Lane, Lanes, Partition
from pipeline.delivery.letters import letter
from pipeline.delivery.limits import Destination, Limits, World, bounded, rate_of
from pipeline.delivery.mapping import routing
from pipeline.delivery.observing import Observer
from pipeline.delivery.poll import Entry, Part, Step, micros
from pipeline.delivery.retry import Breaker, ceiling
from pipeline.delivery.settle import settle, settle_delivered
from pipeline.delivery.shared import reading
from pipeline.delivery.throttle import Leftover, Throttle
from pipeline.delivery.turns import Shares
from pipeline.functions.installed import Insert
from pipeline.log import Batch, Log, Subscription
from pipeline.privacy.placeholder import is_erased, without_person
from pipeline.running import steadily
from pipeline.store import erasures, ledger
from pipeline.store.database import Database
from schemas.errors import CredentialsRejected, PartitionLost, Unavailable
from schemas.events import Origin, Resolved, origin_of
from schemas.topics import DEAD_LETTERS, RESOLVED

T = TypeVar("T")
log = structlog.get_logger()

_AT_HAND: Final = 50  # records that go through the first steps together
_SLICE: Final = 500  # records decoded before others get a turn
_SETTLE: Final = 1.0  # seconds that outcomes of listed events may wait for the poll's transaction
_ROOM: Final = 0.8  # of the outstanding events allowed: reading goes on below it
_TOO_MUCH: Final = "http 429"
_QUIET: Final = 60.0  # seconds between log lines about a destination that raises


@dataclass(eq=False, slots=True)
class Flight:
    """An attempt under way, since `sent`. `fresh`: the present poll waits for it."""

    items: Sequence[Item]
    late: bool
    fresh: bool
    task: "asyncio.Task[Attempt]"
    exchanges: Sequence[Exchange]
    sent: float


@dataclass(slots=True)
class Pause:
    """Deliveries stand still until a check of the credentials succeeds."""

    reason: str
    tries: int
    check_at: float


class Courier:
    """Delivers to one destination until asked to stop. Everything it knows can be read again from ledger and log."""

    def __init__(
        self,
        destination: Destination,
        client: Any,
        events: Log,
        database: Database,
        *,
        stop: asyncio.Event,
        limits: Limits,
        world: World,
        insert: Insert | None = None,
        observer: Observer | None = None,
        decide: Decide | None = None,
        throttle: Throttle | Leftover | None = None,
    ) -> None:
        actions = destination.definition.actions
        self._destination = destination
        self._client = client
        self._insert = insert
        self._observer = observer
        self._events = events
        self._database = database
        self._stop = stop
        self._world = world
        self._log = log.bind(destination=destination.name)
        self._routing = routing(destination)
        self._encode = early(self._routing, insert)
        self._decide = decide or rules(destination, whole_next=self._encode is not None)
        self._most = max(
            [route.batching.most for route in self._routing.routes] or [action.max_batch for action in actions]
        )
        self._several = all(action.atomic for action in actions)
        self._limits = bounded(limits, destination)
        most = None if destination.limits is None else destination.limits.concurrency
        self._concurrency = most or max(action.concurrency for action in actions)
        rate = rate_of(destination)
        self._throttle = throttle or Throttle(rate)

        self._wake = asyncio.Event()
        self._alarm = Alarm(world, self._wake.set)
        self._lanes = Lanes(None if rate is None else Shares())
        self._breaker = Breaker(limits)
        self._pause: Pause | None = None
        self._pauses = 0  # in a row, without a delivery in between
        self._check: asyncio.Task[None] | None = None
        self._flights: set[Flight] = set()
        self._landed: list[Flight] = []
        self._last_late = False
        self._look_at = 0.0
        self._ask_at = 0.0
        self._bounds_at = 0.0

        self._reading: asyncio.Task[Sequence[Batch] | None] | None = None
        self._full = False
        self._parts: list[Part] = []
        self._patient_until = 0.0
        self._dirty = False  # an event of the poll was attempted since the last write
        self._to_commit: list[Batch] = []
        self._changed: dict[Item, None] = {}  # listed events with an outcome that is not written
        self._changed_at = 0.0
        self._fenced: set[int] = set()
        self._state = ("", "")
        self._failure: Exception | None = None  # ends this courier once what is known is written
        self._ending_at: float | None = None
        self._quiet_until: dict[str, float] = {}

    # ── The loop ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Returns after `stop`, with everything written that is known. Raises, likewise, PartitionLost: join again; and what
        the log raised."""
        records = max(self._limits.records, self._most)
        joined = self._events.subscribe(RESOLVED, group=self._destination.group, start=self._begin, max_records=records)
        with reading():
            async with joined as subscription:
                batches = aiter(subscription)
                stopper = self._waking(asyncio.ensure_future(self._stop.wait()))
                try:
                    while not self._finished():
                        self._wake.clear()
                        self._land()
                        self._follow(subscription)
                        await self._take(subscription)
                        await self._take_up()
                        if self._lanes.fences:
                            await self._look_beyond()
                        self._launch()
                        if await self._write():
                            continue
                        await self._read_on(subscription, batches)
                        self._alarm.set(min(self._times(), default=None))
                        await self._wake.wait()
                finally:
                    await self._cancel(stopper)
                await self._commit(subscription)
                if self._failure is not None:
                    raise self._failure

    @property
    def _ending(self) -> bool:
        return self._stop.is_set() or self._failure is not None

    def _finished(self) -> bool:
        if not self._ending:
            return False
        now = self._world.now()
        if self._ending_at is None:
            self._ending_at = now + self._limits.grace
        if self._flights and now >= self._ending_at:
            for flight in self._flights:
                flight.task.cancel()
        return not self._flights and not self._landed and self._writable() is None

    def _waking(self, task: "asyncio.Future[T]") -> "asyncio.Future[T]":
        task.add_done_callback(lambda _: self._wake.set())
        return task

    async def _cancel(self, stopper: "asyncio.Future[Any]") -> None:
        tasks = [stopper, *(flight.task for flight in self._flights)]
        tasks += [one for one in (self._reading, self._check) if one is not None]
        self._alarm.set(None)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _times(self) -> list[float]:
        """When there is something to do that nobody will wake us for."""
        if self._ending_at is not None:
            return [self._ending_at]
        times = [self._look_at]
        if self._pause is not None:
            if self._check is None:
                times.append(self._pause.check_at)
        elif self._breaker.open:
            if not self._flights and self._has_work():
                times.append(self._breaker.probe_at)
        else:
            if (due := self._lanes.next_due) is not None:
                times.append(due)
            if self._is_throttled():
                times.append(self._throttle.next_at(self._world.now()))
        if self._parts and self._flights and not self._breaker.open:
            times.append(self._patient_until)
        if self._changed:
            times.append(self._changed_at + _SETTLE)
        if self._lanes.fences:
            times.append(self._ask_at if self._lanes.fences.asking else self._bounds_at)
        return times

    def _is_throttled(self) -> bool:
        ready = self._lanes.has_fresh or self._lanes.has_late
        return ready and len(self._flights) < self._concurrency and not self._throttle.room(self._world.now())

    def _has_work(self) -> bool:
        return self._lanes.has_fresh or self._lanes.has_late or self._lanes.next_due is not None

    # ── Partitions ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _begin(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """Takes over partitions: the ledger says where each stands and what is outstanding in it."""
        for number in partitions:
            self._lanes.drop(number)
        await self._landing(partitions)
        claims = await self._steadily(
            lambda connection: ledger.claim(connection, self._destination.name, partitions, micros(self._world.now())),
            "claiming partitions",
        )
        for claim in claims.values():
            self._lanes.install(claim)
        self._fenced.difference_update(partitions)
        self._wake.set()
        return {number: claim.offset for number, claim in claims.items()}

    async def _landing(self, partitions: Sequence[int]) -> None:
        """Attempts of an earlier ownership end before one of this begins: order per profile."""
        numbers = set(partitions)
        while tasks := [
            flight.task
            for flight in self._flights
            if not flight.task.done() and any(item.lane.partition.number in numbers for item in flight.items)
        ]:
            await asyncio.wait(tasks)

    def _follow(self, subscription: Subscription) -> None:
        """Drops what is another member's now. A partition is installed before the subscription names it."""
        assigned = subscription.assigned
        for number, partition in list(self._lanes.partitions.items()):
            if number in assigned:
                partition.confirmed = True
            elif partition.confirmed:
                self._lanes.drop(number)
        if assigned:
            self._throttle.share(len(assigned) / self._events.partitions(RESOLVED))

    # ── Reading ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _read_on(self, subscription: Subscription, batches: AsyncIterator[Sequence[Batch]]) -> None:
        if self._reading is not None or self._parts or self._ending:
            return
        await self._commit(subscription)
        if self._pause is None and not self._is_full():
            reading = asyncio.ensure_future(anext(batches, None))
            self._waking(reading)
            self._reading = reading

    async def _commit(self, subscription: Subscription) -> None:
        """Never while the iterator is awaited. The ledger is the truth: this only tells others how far we are, and a
        lost partition shows in `assigned`."""
        done, self._to_commit = self._to_commit, []
        if done:
            with suppress(PartitionLost, Unavailable):
                await subscription.commit(done)

    def _is_full(self) -> bool:
        outstanding = self._lanes.outstanding
        most = self._limits.outstanding_down if self._breaker.open else self._limits.outstanding
        self._full = outstanding >= (most * _ROOM if self._full else most)
        return self._full and not (self._lanes.stuck and not self._flights)

    async def _take(self, subscription: Subscription) -> None:
        """Decides what becomes of the records that were read."""
        if self._reading is None or not self._reading.done():
            return
        reading, self._reading = self._reading, None
        self._follow(subscription)
        lost = self._fenced & subscription.assigned
        error = reading.exception() or (PartitionLost(lost) if lost else None)
        if isinstance(error, Exception):
            self._failure = self._failure or error
            self._wake.set()
        batches = None if error else reading.result()
        if self._ending or batches is None:
            return
        self._patient_until = self._world.now() + self._limits.patience
        ours = [batch for batch in batches if batch.partition in self._lanes.partitions]
        gone = await self._deleted(ours)
        for batch in ours:
            partition = self._lanes.partitions[batch.partition]
            entries = await self._judged(partition, batch, gone)
            self._parts.append(Part(partition, batch, entries))
            self._lanes.add(*[entry for entry in entries if isinstance(entry, Item) and entry.state is FRESH])
        for batch in ours:
            self._lanes.partitions[batch.partition].read = batch.next_offset
        if self._lanes.fences:
            self._lanes.release(self._lanes.fences.read_on(batch.partition for batch in ours))

    async def _take_up(self) -> None:
        """Takes up dead letters that were put back, as many as there is room for: the others wait in the ledger."""
        now = self._world.now()
        if now < self._look_at:
            return
        self._look_at = now + self._limits.look
        most = self._limits.outstanding_down if self._breaker.open else self._limits.outstanding
        room = most - self._lanes.outstanding
        if room <= 0 or self._ending or self._pause is not None:
            return
        name = self._destination.name
        epochs = {number: one.epoch for number, one in self._lanes.partitions.items()}
        try:
            wanted = await self._database.glance(lambda connection: ledger.to_take_up(connection, name, epochs, room))
        except Unavailable:
            return  # it is looked again soon
        if not wanted:
            return
        taken = await self._steadily(
            lambda connection: ledger.take_up(connection, name, epochs, wanted), "taking up dead letters"
        )
        for number, rows in taken.items():
            partition = self._lanes.partitions.get(number)
            if partition is not None and partition.epoch == epochs[number]:
                self._lanes.put_back(number, rows)

    async def _look_beyond(self) -> None:
        """Asks how far others are with what lanes here wait for, and whether what is not read yet is still there."""
        fences, now = self._lanes.fences, self._world.now()
        if self._ending or now < (self._ask_at if fences.asking else self._bounds_at):
            return
        self._ask_at = now + self._limits.ask
        name, foreign = self._destination.name, fences.foreign
        with suppress(Unavailable):  # it is looked again soon
            standing = await self._database.read(lambda connection: ledger.standing(connection, name, foreign))
            self._lanes.release(fences.told(standing))
            fences.asking = bool(fences.foreign)
            if now >= self._bounds_at:
                self._bounds_at = now + self._limits.look
                if unread := fences.unread(standing):
                    self._lanes.release(fences.bounded(unread, await self._events.bounds(RESOLVED)))

    async def _judged(self, partition: Partition, batch: Batch, gone: Collection[Origin]) -> Sequence[Entry]:
        """What was decided of a batch. A few records at a time are decoded, judged and encoded, so that what was made of them is still in
        the processor's cache; others get a turn in between."""
        entries: list[Entry] = []
        for start in range(0, len(batch.records), _AT_HAND):
            records = batch.records[start : start + _AT_HAND]
            events = decoded(batch.partition, records)
            entries += poll.judge(
                partition,
                records,
                _without(events, gone) if gone else events,
                self._decide,
                self._world.now(),
                self._encode,
            )
            if start % _SLICE == 0:
                await asyncio.sleep(0)
        return entries

    async def _deleted(self, read: Sequence[Batch]) -> Collection[Origin]:
        """Which of these events are of people who were deleted since. Kafka keeps their records until they age out."""

        def find(connection: Any) -> Collection[Origin]:
            return erasures.erased_among(connection, chain.from_iterable(map(_origins, read)))

        return await steadily(lambda: self._database.read(find), self._stop, "asking who was deleted")

    # ── Attempts ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _launch(self) -> None:
        if self._ending:
            return
        now = self._world.now()
        if self._pause is not None:
            if self._check is None and now >= self._pause.check_at:
                self._check = asyncio.ensure_future(self._probe_credentials())
                self._waking(self._check)
            return
        self._lanes.wake(now)
        while chunk := self._probe(now) if self._breaker.open else self._chunk(now):
            self._throttle.took(len(chunk), now)
            self._fly(chunk)

    def _chunk(self, now: float) -> list[Item]:
        """The next chunk that may go. Retries have at most half of the room, so that events that hang leave some."""
        if len(self._flights) >= self._concurrency:
            return []
        fresh, late = self._lanes.has_fresh, self._lanes.has_late
        if late:
            room = sum(flight.late for flight in self._flights) < max(1, self._concurrency // 2)
            late = room and (not fresh or self._lanes.late_first(self._last_late))
        allowed = self._throttle.room(now) if fresh or late else 0
        if not allowed:
            return []
        self._last_late = late
        return self._lanes.take(late=late, most=min(self._most, allowed), several=self._several)

    def _probe(self, now: float) -> list[Item]:
        """One event to a service that was down; a new one if there is, since a listed one may be failing for itself."""
        if self._flights or now < self._breaker.probe_at:
            return []
        if not self._lanes.has_fresh and not self._lanes.has_late:
            self._lanes.wake_next()
        return self._lanes.take(late=not self._lanes.has_fresh, most=1, several=False)

    def _fly(self, items: Sequence[Item]) -> None:
        for item in items:
            item.flying = True
        late = items[0].listed
        exchanges = listening()
        task = asyncio.ensure_future(self._attempt(items))
        flight = Flight(items, late, not late, task, exchanges, self._world.now())
        self._flights.add(flight)

        def land(_: object) -> None:
            self._flights.discard(flight)
            self._landed.append(flight)
            self._wake.set()

        task.add_done_callback(land)

    async def _attempt(self, items: Sequence[Item]) -> Attempt:
        gone = await self._set_aside([item for item in items if item.value is None or item.reason])
        going = [item for item in items if item not in gone] if gone else items
        made = await attempt(self._routing, self._client, going, self._limits.attempt, self._insert)
        if not gone:
            return made
        outcomes = dict(zip(going, made.outcomes, strict=True))
        return replace(made, items=items, outcomes=[outcomes.get(one, gone.get(one)) for one in items])

    async def _set_aside(self, items: Sequence[Item]) -> dict[Item, Outcome]:
        """What becomes of those of these that are not to be tried; the others are there then."""
        gone: dict[Item, Outcome] = {item: Filtered(item.reason) for item in items if item.passed_over}
        missing = [item for item in items if item.value is None and item not in gone]
        return gone | await self._load(missing) if missing else gone

    async def _load(self, items: Sequence[Item]) -> dict[Item, Outcome]:
        """Reads listed events back. Returns what becomes of those that cannot be."""
        places = [(item.lane.partition.number, item.offset) for item in items]
        values = await self._steadily(
            lambda connection: ledger.values(connection, self._destination.name, places), "reading exceptions"
        )
        gone: dict[Item, Outcome] = {}
        for item, place in zip(items, places, strict=True):
            value = values.get(place)
            event = Unreadable("no longer in the ledger") if value is None else decode(value)
            if isinstance(event, Unreadable):
                gone[item] = Rejected(event.reason)
            elif is_erased(event.event):
                gone[item] = Filtered(DELETED)
            else:
                item.value, item.resolved, item.received_at = value, event, event.event.received_at
        return gone

    # ── Outcomes ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _land(self) -> None:
        """Takes in the outcomes of attempts that have ended."""
        landed, self._landed = self._landed, []
        for flight in landed:
            for item in flight.items:
                item.flying = False
            made = _result(flight)
            self._dirty = self._dirty or flight.fresh
            if self._observer is not None:
                self._observer.note(made, flight.exchanges)
            self._settle_all(made)
            self._judge_service(made, flight.sent)
        if self._check is not None and self._check.done():
            check, self._check = self._check, None
            self._judge_check(check)

    def _settle_all(self, made: Attempt) -> None:
        now = self._world.now()
        if made.outcomes.count(DELIVERED) == len(made.items) and not any(item.listed for item in made.items):
            self._settle_delivered(made.items)
            return
        rest: dict[Lane, list[Item]] = {}
        waits: dict[Lane, bool] = {}
        for item, outcome in zip(made.items, made.outcomes, strict=True):
            left = rest.setdefault(item.lane, [])
            if made.done and item in made.done:
                item.done = made.done[item]
            if outcome is not None:
                settle(item, outcome, made, now, self._world.chance, self._limits)
                if item.listed:
                    self._changed_at = self._changed_at if self._changed else now
                    self._changed[item] = None
            if item.state.settled:
                continue
            if outcome is not None and not left:
                waits[item.lane] = getattr(outcome, "after", None) is not None
            left.append(item)
        for lane, items in rest.items():
            if lane.partition.live:
                if lane in waits:
                    self._lanes.wait(lane, items[0].next_at, asked=waits[lane])
                self._lanes.give_back(lane, items)
        if self._lanes.fences:
            self._lanes.release(self._lanes.fences.landed(rest))

    def _settle_delivered(self, items: Sequence[Item]) -> None:
        """The same where all went well at the first attempt: most chunks."""
        settle_delivered(items)
        lanes = dict.fromkeys([item.lane for item in items])
        for lane in lanes:
            if lane.partition.live:
                self._lanes.give_back(lane, ())
        if self._lanes.fences:
            self._lanes.release(self._lanes.fences.landed(lanes))

    def _judge_service(self, made: Attempt, sent: float) -> None:
        now = self._world.now()
        if made.credentials is not None:
            self._begin_pause(made.credentials, now)
        if made.error is not None:
            self._report(made.error, now)
        too_much = made.retried and any(
            isinstance(one, Retry) and one.reason.startswith(_TOO_MUCH) for one in made.outcomes
        )
        if too_much and self._throttle.too_much(now):
            self._log.warning("destination throttled", events_per_second=round(self._throttle.rate, 1))
        if made.answered:
            self._pauses = 0
            if self._breaker.answered(sent, now):
                self._log.info("destination reachable again")
                self._lanes.wake_all(now)
                self._patient_until = now + self._limits.patience
        elif made.failed:
            profiles: set[object] = {item.lane for item in made.items}
            if self._breaker.failed(profiles, sent, now, made.asked, too_much=too_much):
                reason = next((item.reason for item in made.items if item.reason), "")
                self._log.warning("destination unreachable", error=reason)

    def _report(self, error: Exception, now: float) -> None:
        """A bug in a destination: the first of its kind in a while is told with its trace."""
        kind = type(error).__name__
        if now >= self._quiet_until.get(kind, 0.0):
            self._quiet_until[kind] = now + _QUIET
            self._log.error("destination raised", error=kind, exc_info=error)

    # ── Credentials ───────────────────────────────────────────────────────────────────────────────────────────────

    def _begin_pause(self, reason: str, now: float) -> None:
        if self._pause is None:
            if self._pauses == 0:
                self._log.error("destination paused: credentials rejected; correct them, nothing is lost", error=reason)
            wait = ceiling(self._pauses, self._limits.probe, self._limits.longest_pause)
            self._pause = Pause(reason, 0, now + wait)
            self._pauses += 1

    async def _probe_credentials(self) -> None:
        async with asyncio.timeout(self._limits.attempt):
            await self._destination.definition.check(self._client)

    def _judge_check(self, check: "asyncio.Task[None]") -> None:
        assert self._pause is not None, "checks are made while paused"
        error = None if check.cancelled() else check.exception()
        if error is None:
            self._pause = None
            self._log.info("destination resumed")
            return
        self._pauses += 1
        self._pause.tries += 1
        if not isinstance(error, CredentialsRejected):
            self._pause.reason = str(error) or type(error).__name__
        wait = ceiling(self._pauses, self._limits.probe, self._limits.longest_pause)
        self._pause.check_at = self._world.now() + wait

    # ── Writing ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _write(self) -> bool:
        """Makes durable what is known, when it is time to; True when that changed something."""
        await self._note_state()
        count = self._writable()
        if count is None:
            return False
        now = self._world.now()
        made = poll.steps(self._parts, self._changed, now, count=count)
        letters = [letter(self._destination.name, item, now) for step in made for item in step.dead]
        if letters:
            await steadily(lambda: self._events.append(DEAD_LETTERS, letters), self._stop, "writing dead letters")
        lost = await self._steadily(
            lambda connection: ledger.record(
                connection, self._destination.name, micros(now), [step.progress for step in made]
            ),
            "writing the ledger",
        )
        self._written(made, lost)
        return True

    def _writable(self) -> Callable[[Part], int] | None:
        """How far each batch can be written now; None: nothing is to be written yet."""
        if self._landed:
            return None  # first taken in
        waiting = any(flight.fresh for flight in self._flights)
        now = self._world.now()
        if self._parts:
            if not self._lanes.has_fresh and (not waiting or now >= self._patient_until):
                return lambda part: len(part.entries)
            standing = self._pause is not None or self._breaker.open or self._ending
            if self._dirty and not self._flights and standing:
                return Part.attempted
            if self._flights and now >= self._patient_until and not self._breaker.open:
                return Part.attempted
        elif self._changed:
            return lambda part: part.done
        if self._changed and (now >= self._changed_at + _SETTLE or self._ending):
            return lambda part: part.done
        return None

    def _written(self, made: Sequence[Step], lost: frozenset[int]) -> None:
        for step in made:
            number = step.partition.number
            if number not in lost:
                poll.note(step)
            elif self._lanes.partitions.get(number) is step.partition:
                self._lanes.drop(number)
                self._fenced.add(number)
                self._log.warning("partition lost", partition=number)
        self._changed.clear()
        self._dirty = False
        self._lanes.resort()
        for flight in self._flights:
            flight.fresh = flight.fresh and any(not item.listed for item in flight.items)
        now = self._world.now()
        if now >= self._patient_until:
            self._patient_until = now + self._limits.patience
        self._parts = [part for part in self._parts if part.partition.live]
        finished = [part for part in self._parts if part.done == len(part.entries)]
        self._to_commit += [part.batch for part in finished]
        self._parts = [part for part in self._parts if part.done < len(part.entries)]

    async def _note_state(self) -> None:
        """Tells people how it goes, when that changed."""
        if self._pause is not None:
            state = ("paused", self._pause.reason)
        elif self._breaker.open:
            state = (
                "unreachable",
                f"one event is tried at {datetime.fromtimestamp(self._breaker.probe_at, UTC):%H:%M:%S} UTC",
            )
        elif self._full:
            state = ("full", "")
        else:
            state = ("delivering", "")
        if state == self._state:
            return
        if "full" in (state[0], self._state[0]):
            self._log.warning("destination state changed", state=state[0], outstanding=self._lanes.outstanding)
        self._state = state
        at = micros(self._world.now())
        await self._steadily(
            lambda connection: ledger.note_state(connection, self._destination.name, *state, at), "noting the state"
        )

    async def _steadily(self, work: Callable[[Any], T], doing: str) -> T:
        """One transaction, tried for as long as the database is away."""
        run: Callable[[], Awaitable[T]] = partial(self._database.run, work)
        return await steadily(run, self._stop, doing)


def _result(flight: Flight) -> Attempt:
    """What came of an attempt; nothing, when we ended it ourselves or its events could not be read back."""
    with suppress(asyncio.CancelledError, Unavailable):
        return flight.task.result()
    return Attempt(flight.items, [None] * len(flight.items))


def _origins(batch: Batch) -> Iterator[Origin]:
    """Where those of its events that can be read came from."""
    for record in batch.records:
        with suppress(ValueError):
            yield origin_of(record.value)


def _without(events: Sequence[Resolved | Unreadable], gone: Collection[Origin]) -> list[Resolved | Unreadable]:
    """The same with nothing personal of what is gone."""
    return [without_person(one) if isinstance(one, Resolved) and one.origin in gone else one for one in events]
