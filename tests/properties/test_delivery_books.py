"""The books of delivery: whatever fails, crashes or comes again, nothing is lost, doubled in the counts or out of order."""

import asyncio
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from destinations.contract import DELIVERED, Outcome, RawEvent, Rejected, Retry
from pipeline.delivery.engine import Limits, World
from pipeline.store import letters, schema
from pipeline.store.letters import Chosen, Place
from schemas.config import FilterConfig
from schemas.errors import CredentialsRejected
from schemas.events import Event, Origin, decode_resolved
from schemas.topics import RESOLVED
from tests.unit.delivery_world import DeliveryWorld

PARTITIONS = 2
LIMITS = Limits(
    backoff=0.001,
    longest_backoff=0.003,
    failures=2,
    silence=0.0,
    rest=0.001,
    longest_rest=0.003,
    probe=0.001,
    longest_probe=0.003,
    longest_pause=0.003,
    look=0.002,
)


@dataclass(frozen=True)
class Emit:
    """A new event: what each attempt at it comes to, then delivered."""

    profile: int
    source: str
    kind: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Repeat:
    """Records of one origin partition from some place on are emitted again."""

    back: int


@dataclass(frozen=True)
class Crash:
    """Everything in memory is gone at the n-th transaction from now, before or after it is durable."""

    transactions: int
    durable: bool


@dataclass(frozen=True)
class Stop:
    """A graceful stop and a new start."""


@dataclass(frozen=True)
class Lose:
    """A partition goes away and comes back."""

    partition: int


@dataclass(frozen=True)
class Change:
    """The configuration lets another type of call pass from now on."""

    kind: str


@dataclass(frozen=True)
class Poison:
    """A record that nobody can read."""


@dataclass(frozen=True)
class PutBack:
    """A person has every dead letter tried again."""


@dataclass(frozen=True)
class Settle:
    """Everything ends."""


answers = st.one_of(
    st.lists(st.sampled_from(["retry", "retry", "rejected", "raise", "credentials"]), max_size=3).map(tuple),
    st.just(("raise",) * 5),
)
emits = st.builds(
    Emit,
    st.integers(0, 4),
    st.sampled_from(["web", "app"]),
    st.sampled_from(["track", "track", "track", "page"]),
    st.one_of(st.just(()), answers),
)
steps = st.lists(
    st.one_of(
        emits,
        emits,
        emits,
        emits,
        st.builds(Repeat, st.integers(1, 6)),
        st.builds(Crash, st.integers(1, 4), st.booleans()),
        st.just(Stop()),
        st.builds(Lose, st.integers(0, PARTITIONS - 1)),
        st.builds(Change, st.sampled_from(["track", "page"])),
        st.just(Poison()),
        st.just(PutBack()),
        st.just(Settle()),
    ),
    max_size=25,
)


@dataclass
class Model:
    """What the world should come to, and the laws that are checked on the way."""

    world: DeliveryWorld
    profiles: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    accepted: Counter[str] = field(default_factory=Counter)
    poisoned: int = 0
    left: dict[str, list[str]] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)
    filtered: set[str] = field(default_factory=set)
    raised: Counter[str] = field(default_factory=Counter)  # alone in a call
    emitted: list[tuple[bytes, str, int]] = field(default_factory=list)
    passing: str = "track"

    async def deliver(self, batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        ids = [one["messageId"] for one in batch]
        for message_id, event in zip(ids, batch, strict=True):
            self._in_order(event["profileId"], message_id, ids)
        said = [self.left[one].pop(0) if self.left[one] else "delivered" for one in ids]
        if "raise" in said:
            if len(ids) == 1:
                self.raised[ids[0]] += 1
                if self.raised[ids[0]] == LIMITS.faults:  # the engine gives it up, unless it forgot some in a crash
                    self.settled.add(ids[0])
            raise RuntimeError("as told")
        if "credentials" in said:
            raise CredentialsRejected("as told")
        self.settled.update(one for one, word in zip(ids, said, strict=True) if word in ("delivered", "rejected"))
        return [_OUTCOMES[word] for word in said]

    def _in_order(self, profile: str, message_id: str, together: Sequence[str]) -> None:
        """Whatever came earlier of the same profile is settled, or goes in the same call."""
        earlier = self.profiles[profile][: self.profiles[profile].index(message_id)]
        waiting = [one for one in earlier if one not in self.settled | self.filtered]
        assert set(waiting) <= set(together), f"{message_id} before {waiting}"

    async def emit(self, step: Emit) -> None:
        number = sum(self.accepted.values())
        message_id, profile = f"m{number}", f"p{step.profile}"
        partition = step.profile % PARTITIONS
        origin = Origin(step.profile % 3, number)
        self.accepted[step.source] += 1
        self.left[message_id] = list(step.answers)
        self.profiles[profile].append(message_id)
        if step.kind != self.passing:
            self.filtered.add(message_id)
        value = await self.world.emit(
            message_id, profile, partition=partition, origin=origin, source=step.source, type=step.kind
        )
        self.emitted.append((value, profile, partition))

    async def repeat(self, step: Repeat) -> None:
        """As the pipeline does it: everything from some origin offset on, in order."""
        for value, profile, partition in self.emitted[-step.back :]:
            await self.world.put(value, profile, partition)

    async def change(self, step: Change) -> None:
        """The engine stands still. What it has not read yet is for the new filter."""
        self.passing = step.kind
        (one,) = self.world.destinations
        self.world.destinations = [replace(one, filter=filter_of(step.kind))]
        for event in await self._unread():
            (self.filtered.discard if event.type == step.kind else self.filtered.add)(event.message_id)

    async def check_books(self) -> None:
        """accepted = delivered + filtered + dead + outstanding + unread, for each source."""
        books, unread = await self.world.books(), Counter(event.source for event in await self._unread())
        found = {source: sum(books.get(source, ())) + unread[source] for source in {*books, *unread}}
        expected = dict(self.accepted) | ({"": self.poisoned} if self.poisoned else {})
        assert {source: count for source, count in found.items() if count} == expected

    async def _unread(self) -> list[Event]:
        """A poisoned one without a name."""
        found: list[Event] = []
        positions = await self.world.positions()
        rows = await self.world.rows(schema.destination_positions)
        marks = {row.partition: {int(k): v for k, v in orjson.loads(row.marks).items()} for row in rows}
        for partition in range(PARTITIONS):
            seen = marks.get(partition, {})
            for record in self.world.log.topics[RESOLVED][partition][positions.get(partition, 0) :]:
                try:
                    resolved = decode_resolved(record.value)
                except ValueError:
                    found.append(POISONED)
                    continue
                if resolved.origin.offset > seen.get(resolved.origin.partition, -1):
                    seen[resolved.origin.partition] = resolved.origin.offset
                    found.append(resolved.event)
        return found


POISONED = Event("", "", "", None, None, 0, None, 0, "client", None, None, b"")


def filter_of(kind: str) -> FilterConfig:
    return FilterConfig(types=None, events=None, where=f"type = '{kind}'")


_OUTCOMES: dict[str, Outcome] = {
    "delivered": DELIVERED,
    "retry": Retry("http 503"),
    "rejected": Rejected("http 422"),
}


async def crash_at(world: DeliveryWorld, step: Crash) -> None:
    """Lets the engine run until the transaction, and ends it there; one that has nothing to do is ended idle."""
    left, reached = step.transactions, asyncio.Event()

    async def hook() -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            reached.set()
            await asyncio.get_running_loop().create_future()

    if step.durable:
        world.database.after = hook
    else:
        world.database.before = hook
    idle = asyncio.create_task(world.until_idle())
    crashed = asyncio.create_task(reached.wait())
    await asyncio.wait((idle, crashed), return_when=asyncio.FIRST_COMPLETED)
    for one in (idle, crashed):
        one.cancel()
    await asyncio.gather(idle, crashed, return_exceptions=True)
    await world.crash()
    world.database.before = world.database.after = None


async def put_back(world: DeliveryWorld) -> None:
    def move(connection: Connection) -> None:
        found, _ = letters.walk(connection, "crm", Chosen(), None, most=1_000, looked=1_000)
        letters.put_back(connection, "crm", [Place(one.partition, one.offset) for one in found], 1)

    await world.database.run(move)


async def live(plan: Sequence[Any], folder: Path, *, atomic: bool, max_batch: int, url: str = "") -> None:
    world = DeliveryWorld(folder, partitions=PARTITIONS, limits=LIMITS, url=url, clock=World())
    model = Model(world)
    world.add(
        model.deliver,
        atomic=atomic,
        max_batch=max_batch,
        concurrency=2,
        filter_=filter_of("track"),
    )
    world.start()
    try:
        for step in [*plan, Settle()]:
            match step:
                case Emit():
                    await model.emit(step)
                case Repeat():
                    await model.repeat(step)
                case Poison():
                    model.poisoned += 1
                    await world.put(b"poison", partition=0)
                case Crash():
                    await crash_at(world, step)
                    await model.check_books()
                    world.start()
                case Stop():
                    await world.finish()
                    await model.check_books()
                    world.start()
                case Change():
                    await world.finish()
                    await model.change(step)
                    world.start()
                case Lose():
                    if "destination.crm" in world.log.members:
                        await world.log.lose("destination.crm", step.partition)
                case PutBack():
                    await put_back(world)
                case Settle():
                    await world.until_idle()
                    await model.check_books()
        await world.finish()
        await model.check_books()
        done = model.settled | model.filtered | {one.message_id for one in await world.listed() if one.state == "dead"}
        assert done >= {one for ids in model.profiles.values() for one in ids}
    finally:
        if world.task is not None and not world.task.done():
            await world.crash()
        world.close()


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
@given(plan=steps, atomic=st.booleans(), max_batch=st.sampled_from([1, 3, 100]))
def test_the_books_balance_and_order_holds_whatever_happens(plan: Sequence[Any], atomic: bool, max_batch: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(live(plan, Path(folder), atomic=atomic, max_batch=max_batch))
