"""Order on `resolved`: whichever member of the pipeline emits first, and whatever of it dies, an event stands behind the earlier ones of its device
or server, by its profile's lane or by fences. What destinations make of it is `test_order_across_merges.py`'s."""

import asyncio
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from pipeline.identity import DEFAULT
from pipeline.store import schema, splits
from pipeline.store.database import Database
from schemas.errors import Refused
from schemas.events import Event, Resolved, decode_resolved
from schemas.topics import RESOLVED, partition_of
from tests.properties.test_order_across_merges import Emit, SharedLog, Worker
from tests.stores import prepare

MEMBERS = 3
Said = tuple[str | None, str | None, str | None, str]  # device, user, email, kind
Place = tuple[int, int]  # partition and offset of `resolved`


@dataclass(frozen=True)
class Undo:
    """One of the merges that hold is undone, counted from the latest."""

    which: int


devices = st.sampled_from(["d0", "d1", "d2", "d3"])
users = st.sampled_from(["u0", "u1", "u2"])
emails = st.none() | st.none() | st.sampled_from(["kim@example.com", "sam@example.com"])
kinds = st.sampled_from(["track", "track", "identify"])
sends = st.tuples(devices, st.none() | users, emails, kinds) | st.tuples(st.none(), users, emails, kinds)
emits = st.builds(Emit, st.integers(0, MEMBERS - 1), st.none() | st.none() | st.integers(0, 2), st.booleans())


@st.composite
def acquaintances(draw: st.DrawFn) -> list[Any]:
    """A device looks around while a server knows its user, who then logs in; and both go on, with who knows what in between."""
    device, user, email = draw(devices), draw(users), draw(emails)
    strangers = [(device, None, draw(emails), "track"), (None, user, draw(emails), "track")]
    after = [(device, draw(st.none() | st.just(user)), None, "track"), (None, user, None, "track")]
    between = st.lists(sends | emits, max_size=1)
    return [
        *draw(st.permutations(strangers)),
        *draw(between),
        (device, user, email, draw(kinds)),
        *draw(between),
        *draw(st.permutations(after)),
    ]


plans = st.lists(
    acquaintances()
    | st.lists(sends, min_size=1, max_size=4)
    | (emits | st.builds(Undo, st.integers(0, 3))).map(lambda one: [one]),
    min_size=1,
    max_size=8,
).map(lambda parts: [step for part in parts for step in part])


def event(number: int, said: Said) -> Event:
    device, user, email, kind = said
    at, name = 1_700_000_000_000_000 + number, f"m{number}"
    traits = {} if email is None else {"context": {"traits": {"email": email}}}
    body = orjson.dumps({"type": kind, "messageId": name, "event": "Clicked", **traits})
    return Event("web", kind, name, device, user, at, None, at, "client", None, None, body)


class Life:
    """Members of the pipeline with a partition of `events` each, and what each event has to stand behind: the earlier ones of its device or
    server that are of the same person, whatever profiles that person was until then. Nothing is promised where the device is somebody else's."""

    def __init__(self, database: Database) -> None:
        self.database, self.log = database, SharedLog()
        self.workers = [Worker(database, self.log, number) for number in range(MEMBERS)]
        self.behind: dict[str, set[str]] = {}
        self._keys: dict[str, bytes] = {}
        self._people: dict[str, list[str]] = defaultdict(list)  # messages by profile
        self._merged: set[str] = set()

    async def live(self, plan: Sequence[Any]) -> None:
        for number, step in enumerate(plan):
            match step:
                case Emit() if self.workers[step.member].pending:
                    await self.workers[step.member].emit(step)
                case Undo():
                    await self._undo(step)
                case (_, _, _, _):
                    await self._send(event(number, step))
        for worker in self.workers:
            if worker.pending:
                await worker.emit(Emit(worker.partition, None, True))

    async def _send(self, one: Event) -> None:
        worker = self.workers[partition_of(one.key, MEMBERS)]
        profile = await worker.send(one)
        await self._merge()
        self.behind[one.message_id] = set()
        if one.key.decode() in [value for _, value in worker.pending[-1].ids]:
            self.behind[one.message_id] = {each for each in self._people[profile] if self._keys[each] == one.key}
            self._people[profile].append(one.message_id)
            self._keys[one.message_id] = one.key

    async def _merge(self) -> None:
        merges = schema.merges.c
        rows = select(merges.id, merges.survivor, merges.absorbed).order_by(merges.seq)
        for name, survivor, absorbed in await self.database.read(lambda connection: connection.execute(rows).all()):
            if name not in self._merged:
                self._merged.add(name)
                self._people[survivor] += self._people.pop(absorbed, [])

    async def _undo(self, step: Undo) -> None:
        """What either side sends comes behind what the whole had."""
        merges = schema.merges.c
        holding = select(merges.id).where(merges.undone_by.is_(None)).order_by(merges.seq.desc())
        held = await self.database.read(lambda connection: connection.execute(holding).scalars().all())
        if held:
            with suppress(Refused):  # nothing is left of one of the two
                merge = held[step.which % len(held)]
                done = await self.database.run(partial(splits.unmerge, merge=merge, rules=DEFAULT))
                self._people[done.split.other] = list(self._people[done.split.profile])


class Standing:
    """What stands behind what."""

    def __init__(self, log: SharedLog) -> None:
        self.records: dict[Place, Resolved] = {
            (number, one.offset): decode_resolved(one.value)
            for number, records in enumerate(log.topics[RESOLVED])
            for one in records
        }
        self.places: dict[str, list[Place]] = defaultdict(list)
        for place, one in self.records.items():
            self.places[one.event.message_id].append(place)
        self._known: dict[Place, frozenset[str]] = {}

    def before(self, place: Place) -> frozenset[str]:
        """The messages that have to be over before this record goes out."""
        if place not in self._known:
            self._known[place] = frozenset().union(
                *({self.records[one].event.message_id} | self.before(one) for one in self._awaited(place))
            )
        return self._known[place]

    def _awaited(self, place: Place) -> Iterator[Place]:
        number, offset = place
        record = self.records[place]
        yield from self._last(record.profile_id, number, offset)
        for fence in record.fences:
            yield from self._last(fence.profile_id, fence.partition, fence.end)

    def _last(self, profile: str, number: int, end: int) -> Iterator[Place]:
        """The last record of a profile before an offset, behind which the others are."""
        for offset in range(end - 1, -1, -1):
            if self.records[number, offset].profile_id == profile:
                yield number, offset
                return


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(plan=plans)
def test_what_a_device_or_a_server_sends_stands_behind_what_it_sent_before(plan: Sequence[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{Path(folder)}/millrace.sqlite", threads=2)
        try:
            prepare(database)
            life = Life(database)
            asyncio.run(life.live(plan))
        finally:
            database.close()
    standing = Standing(life.log)
    broken = [
        f"{name} at {place} is not behind {sorted(missing)}"
        for name, behind in life.behind.items()
        for place in standing.places[name]
        if (missing := behind - standing.before(place))
    ]
    assert (broken, set(standing.places)) == ([], set(life.behind))
