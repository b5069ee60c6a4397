"""Rules applied to what was recorded, on both databases: beside people's own decisions, beside what retention has removed, beside new
events, and after being stopped."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import Connection, select

from pipeline.identity import Rules
from pipeline.log import Log, Record, Retention, open_log
from pipeline.outcome import APPLY
from pipeline.profile import preferences
from pipeline.resolve_again import resolve_again
from pipeline.scratch import Scratched
from pipeline.store import forget, schema, scratches, splits
from pipeline.store.consent import stated
from pipeline.store.database import Database
from pipeline.store.profiles import find
from pipeline.store.resettle import Tally
from pipeline.store.rules import in_force
from pipeline.telling import tell
from schemas.changes import decode_change
from schemas.events import Event, ExternalId, Origin, decode_event, encode_event, encode_resolved
from schemas.identity import BlockedConfig, IdentityConfig, IdTypeConfig
from schemas.topics import EVENTS, INTERNAL_SOURCE, PROFILE_CHANGES, RESOLVED
from tests.properties.test_resolve_again import differences, people, put
from tests.stores import prepare

NOW = 1_790_000_000_000_000
STRICT = IdentityConfig(types={"email": IdTypeConfig(limit=1)})
LOOSE = IdentityConfig(types={"email": IdTypeConfig(limit=5)})


def call(number: int, *ids: str, consent: Mapping[str, bool] | None = None, **traits: Any) -> Event:
    entries = [
        {"type": kind, "id": value, "collection": "users", "encoding": "none"}
        for kind, _, value in (one.partition(":") for one in ids)
    ]
    context: dict[str, Any] = {"externalIds": entries}
    if consent is not None:
        context["consent"] = {"categoryPreferences": consent}
    body = {"type": "identify", "traits": traits, "context": context}
    at = NOW + number * 1_000_000
    return Event("web", "identify", f"m{number}", None, None, at, None, at, "server", None, None, orjson.dumps(body))


TABLET = (
    call(0, "email:x@shop.test", "ios.id:i", name="X"),
    call(1, "email:y@shop.test", "ios.id:i", name="Y"),
    call(2, "email:y@shop.test", plan="pro"),
    call(3, "email:z@shop.test", "ios.id:i", name="Z"),
)
"""Case 6: a shared tablet, over-merged as long as there may be several addresses."""


class World:
    """A store and a log with what the pipeline made of events."""

    def __init__(self, database: Database, log: Log, folder: Path) -> None:
        self.database, self.log, self.folder = database, log, folder
        self.rules = Rules()
        self.count = 0

    def configure(self, config: IdentityConfig) -> None:
        self.rules = self.database.run_sync(lambda connection: in_force(connection, config))

    def take(self, *events: Event) -> list[Record]:
        """Applies events; what they emit is not on the log yet."""
        records = put(self.database, events, self.rules, self.count)
        self.count += len(events)
        return records

    async def emit(self, records: Sequence[Record]) -> None:
        await self.log.append(RESOLVED, records)

    async def say(self, *events: Event) -> None:
        await self.emit(self.take(*events))

    async def apply(self, advance: Callable[[str, int, int], None] = lambda *_: None) -> Tally:
        return await resolve_again(self.log, self.database, self.rules, self.folder / "apply", advance)

    def groups(self) -> list[list[str]]:
        """The ids of everybody."""
        return [one[0] for one in people(self.database)[:-1]]

    def traits(self) -> dict[str, Mapping[str, Any]]:
        """The traits of everybody, by the first of their ids."""
        return {one[0][0]: one[1] for one in people(self.database)[:-1]}

    async def told(self, topic: str) -> list[bytes]:
        found = []
        for partition in range(self.log.partitions(topic)):
            batch = await self.log.read(topic, partition, 0)
            found += [one.value for one in batch.records] if batch else []
        return found


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/millrace.sqlite"
    else:
        url = request.getfixturevalue("postgres_url")
    opened = Database(url)
    prepare(opened)
    yield opened
    opened.close()


@pytest.fixture
async def world(database: Database, tmp_path: Path) -> AsyncIterator[World]:
    retention = Retention(bytes=1 << 20)
    async with open_log(f"embedded://{tmp_path}/log", partitions=1, retention=retention) as log:
        yield World(database, log, tmp_path)


async def forget_the_log(world: World) -> None:
    """Writes more than retention keeps, of what is nobody's."""
    for number in range(4):
        event = call(900 + number)._replace(source=INTERNAL_SOURCE, body=os.urandom(600_000).hex().encode()[:700_000])
        value = encode_resolved("p", Origin(0, 0), (), encode_event(event))
        await world.log.append(RESOLVED, [Record(b"p", value, time.time_ns() // 1_000_000)])
    await world.log.expire(RESOLVED)  # type: ignore[attr-defined]  # of the embedded log
    (begin, _) = (await world.log.bounds(RESOLVED))[0]
    assert begin > 0


async def test_a_shared_device_comes_apart_under_a_stricter_limit(world: World) -> None:
    world.configure(LOOSE)
    await world.say(*TABLET)
    assert world.groups() == [["email:x@shop.test", "email:y@shop.test", "email:z@shop.test", "ios.id:i"]]
    world.configure(STRICT)

    tally = await world.apply()

    assert tally == Tally(split=1, events=0, settled=1)
    assert world.traits() == {
        "email:x@shop.test": {"name": "X"},
        "email:y@shop.test": {"name": "Y", "plan": "pro"},
        "email:z@shop.test": {"name": "Z"},
    }
    assert differences(world.database, world.rules) == []
    assert await world.apply() == Tally(), "everybody is settled"


async def test_people_whom_a_limit_kept_apart_are_joined_under_a_looser_one(world: World) -> None:
    world.configure(STRICT)
    await world.say(*TABLET)
    assert len(world.groups()) == 3
    world.configure(LOOSE)

    assert await world.apply() == Tally(merged=1, settled=1)

    assert world.groups() == [["email:x@shop.test", "email:y@shop.test", "email:z@shop.test", "ios.id:i"]]
    assert differences(world.database, world.rules) == []


async def test_a_value_that_is_blocked_from_now_on_was_never_an_id(world: World) -> None:
    world.configure(IdentityConfig())
    await world.say(
        call(0, "user_id:guest", "anonymous_id:a", name="A"),
        call(1, "user_id:guest", "anonymous_id:b", name="B"),
        call(2, "user_id:guest", cart="full"),
    )
    assert world.groups() == [["anonymous_id:a", "anonymous_id:b", "user_id:guest"]]
    guest = BlockedConfig(values=("guest",))
    world.configure(IdentityConfig(types={"user_id": IdTypeConfig(blocked=guest)}))

    tally = await world.apply()

    assert tally == Tally(split=1, lost=1, events=3, settled=1)
    assert world.traits() == {"anonymous_id:a": {"name": "A"}, "anonymous_id:b": {"name": "B"}}
    assert differences(world.database, world.rules) == []


async def test_a_type_that_is_read_from_now_on_joins_people_of_before(world: World) -> None:
    world.configure(IdentityConfig())
    await world.say(call(0, "user_id:u1", "card:c"), call(1, "user_id:u2"), call(2, "anonymous_id:a", "card:c"))
    assert world.groups() == [["anonymous_id:a"], ["user_id:u1"], ["user_id:u2"]]
    world.configure(IdentityConfig(types={"card": IdTypeConfig()}))

    tally = await world.apply()

    assert (tally.merged, tally.gained) == (1, 1)
    assert world.groups() == [["anonymous_id:a", "card:c", "user_id:u1"], ["user_id:u2"]]


async def test_old_profile_ids_lead_to_who_has_their_ids(world: World) -> None:
    world.configure(LOOSE)
    await world.say(*TABLET)
    before = world.database.read_sync(lambda c: set(c.execute(select(schema.profiles.c.id)).scalars()))
    world.configure(STRICT)
    await world.apply()
    after = world.database.read_sync(lambda c: set(c.execute(select(schema.profiles.c.id)).scalars()))
    assert before <= after


async def test_destinations_and_the_log_are_told_once(world: World) -> None:
    world.configure(LOOSE)
    await world.say(*TABLET)
    world.configure(STRICT)
    await world.apply()

    assert await tell(world.log, world.database) == 3
    assert await tell(world.log, world.database) == 0

    corrections = [decode_event(value) for value in await world.told(EVENTS)]
    markers = [orjson.loads(one.body)["context"]["millrace"]["correction"] for one in corrections]
    assert sorted(one["ids"][0] for one in markers) == ["email:x@shop.test", "email:y@shop.test", "email:z@shop.test"]
    changes = [decode_change(value) for value in await world.told(PROFILE_CHANGES)]
    assert {(one.kind, one.cause.type) for one in changes} == {("unmerged", APPLY)}
    assert sorted(str(each) for one in changes for each in one.ids) == ["email:y@shop.test", "email:z@shop.test"]


async def test_what_people_took_apart_stays_apart(world: World) -> None:
    world.configure(LOOSE)
    await world.say(*TABLET)
    ids = ExternalId("email", "x@shop.test"), ExternalId("email", "y@shop.test")
    done = world.database.run_sync(lambda c: splits.unmerge_ids(c, *ids, world.rules))
    apart = world.groups()
    world.configure(IdentityConfig(types={"email": IdTypeConfig(limit=4)}))

    await world.apply()

    assert world.groups() == apart
    assert differences(world.database, world.rules) == []
    world.database.run_sync(lambda c: splits.remerge(c, done.split.id, world.rules))
    assert len(world.groups()) == 1
    assert differences(world.database, world.rules) == []


async def test_nobody_who_was_deleted_comes_back(world: World) -> None:
    world.configure(LOOSE)
    await world.say(*TABLET, call(4, "user_id:u"))
    world.database.run_sync(lambda c: forget.person(c, ExternalId("ios.id", "i"), "reg"))
    world.configure(STRICT)

    assert await world.apply() == Tally()

    assert world.groups() == [["user_id:u"]]


async def test_what_was_told_of_somebody_goes_with_them(world: World) -> None:
    world.configure(LOOSE)
    await world.say(*TABLET)
    world.configure(STRICT)
    await world.apply()
    world.database.run_sync(lambda c: forget.person(c, ExternalId("email", "x@shop.test"), "reg"))
    left = world.database.read_sync(lambda c: c.execute(select(schema.resolutions.c.detail)).scalars().all())
    assert len(left) == 2
    assert not any("x@shop.test" in one for one in left)


async def test_older_events_than_the_log_holds_stay_with_their_ids(world: World) -> None:
    world.configure(LOOSE)
    await world.say(*TABLET)
    await forget_the_log(world)
    await world.say(call(10, "email:y@shop.test", seen="again"))
    world.configure(STRICT)

    tally = await world.apply()

    assert (tally.split, tally.settled) == (1, 1)
    assert world.traits() == {
        "email:x@shop.test": {"name": "X"},
        "email:y@shop.test": {"name": "Y", "plan": "pro", "seen": "again"},
        "email:z@shop.test": {"name": "Z"},
    }
    assert [one[2] for one in people(world.database)[:-1]] == [1, 3, 1], "events"
    assert differences(world.database, world.rules) == []
    assert await world.apply() == Tally()


@pytest.mark.parametrize("look", [2, 5, 8, 11, 13])
async def test_whoever_is_deleted_while_older_evidence_is_gone_through_leaves_it(
    world: World, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    """While it is copied, a row at a time, and while it is resolved, an event at a time."""
    world.configure(LOOSE)
    await world.say(*TABLET, call(4, "user_id:u", "email:u@u.test", name="U"))
    await forget_the_log(world)
    await world.say(call(10, "user_id:u"))
    before = people(world.database)
    world.configure(STRICT)
    heed = Scratched.heed
    left: list[bool] = []

    def delete(scratch: Scratched) -> bool:
        store = scratch.folder / "shadow.sqlite"
        left.append(any(b"shop.test" in path.read_bytes() for path in store.parent.glob("shadow.sqlite*")))
        if len(left) == look:
            world.database.run_sync(lambda c: forget.person(c, ExternalId("ios.id", "i"), "reg"))
            world.database.run_sync(scratches.disturb)
        return heed(scratch)

    monkeypatch.setattr("pipeline.store.shadow._PAGE", 1)
    monkeypatch.setattr("pipeline.store.shadow._EVIDENCE_PAGE", 1)
    monkeypatch.setattr(Scratched, "heed", delete)

    assert await world.apply() == Tally()

    assert (left[look - 1], left[look:]) == (look > 2, [False] * len(left[look:]))
    assert [one[0] for one in people(world.database)[:-1]] == [["email:u@u.test", "user_id:u"]]
    assert people(world.database)[0] in before
    assert differences(world.database, world.rules) == []


AT_ODDS = (
    call(0, "user_id:u", "email:x@shop.test", consent={"ads": True, "mail": True}),
    call(1, "anonymous_id:a", consent={"ads": False}),
    call(2, "user_id:u", "anonymous_id:a"),
    call(3, "user_id:u", "email:y@shop.test"),
)
"""Two profiles merge that differ on consent; under a stricter limit an address is somebody else's."""


def conflicts(world: World) -> dict[str, Any]:
    """What is in conflict, of the person with the user_id."""

    def read(connection: Connection) -> dict[str, Any]:
        found = find(connection, "user_id", "u")
        assert found is not None
        return preferences(*stated(connection, found.id))

    return world.database.read_sync(read)


@pytest.mark.parametrize("log_has_it", [True, False])
async def test_what_profiles_differed_on_when_they_merged_stays_in_conflict(world: World, log_has_it: bool) -> None:
    world.configure(LOOSE)
    await world.say(*AT_ODDS)
    before = conflicts(world)
    if not log_has_it:
        await forget_the_log(world)
    await world.say(call(10, "email:y@shop.test"))
    world.configure(STRICT)

    await world.apply()

    assert world.groups()[-1] == ["email:y@shop.test"]
    assert (before, conflicts(world)) == ({"ads": "conflict", "mail": "conflict"},) * 2
    assert differences(world.database, world.rules) == []


async def test_whoever_was_always_one_under_the_rules_never_differed(world: World) -> None:
    """What the first says and what the second says are words of one person: the later counts."""
    world.configure(IdentityConfig())
    await world.say(
        call(0, "user_id:u", "card:c", consent={"ads": True}),
        call(1, "anonymous_id:a", "card:c", consent={"ads": False}),
        call(2, "user_id:u", "anonymous_id:a"),
    )
    assert conflicts(world) == {"ads": "conflict"}
    world.configure(IdentityConfig(types={"card": IdTypeConfig()}))

    await world.apply()

    assert conflicts(world) == {"ads": False}
    assert differences(world.database, world.rules) == []


async def test_the_same_rules_change_nothing_however_little_the_log_holds(world: World) -> None:
    world.configure(STRICT)
    await world.say(*TABLET, call(4, "user_id:u", "email:x@shop.test"))
    await forget_the_log(world)
    await world.say(call(10, "user_id:u", "ios.id:i"))
    before = people(world.database)

    assert await world.apply() == Tally()

    assert people(world.database) == before


async def test_events_that_come_meanwhile_are_not_lost(world: World) -> None:
    """Applied and not emitted yet, they are neither in the scratch store nor older than the log: who has them is tried again."""
    world.configure(LOOSE)
    await world.say(*TABLET)
    world.configure(STRICT)
    late: list[Record] = []
    emitting: list[asyncio.Task[None]] = []

    def advance(what: str, _: int, __: int) -> None:
        if what == "people" and not late:
            late.extend(world.take(call(10, "email:z@shop.test", late=True)))
        elif late and not emitting:
            emitting.append(asyncio.ensure_future(world.emit(late)))

    tally = await world.apply(advance)
    await asyncio.gather(*emitting)
    if tally.left:
        tally = await world.apply()

    assert tally.left == 0
    assert world.traits()["email:z@shop.test"] == {"name": "Z", "late": True}
    assert differences(world.database, world.rules) == []


async def test_whoever_is_stopped_goes_on_where_it_stood(world: World) -> None:
    world.configure(LOOSE)
    shops = [
        call(100 * shop + number, f"email:{number}@{shop}.test", f"ios.id:tablet{shop}")
        for shop in range(6)
        for number in range(3)
    ]
    await world.say(*shops)
    world.configure(STRICT)
    read = 0

    def stop(what: str, done: int, _: int) -> None:
        if what == "people" and done == 3:
            raise KeyboardInterrupt

    def count(what: str, done: int, total: int) -> None:
        nonlocal read
        read = max(read, total if what == "events" else 0)

    with pytest.raises(KeyboardInterrupt):
        await world.apply(stop)
    settled = len(world.groups())
    tally = await world.apply(count)

    assert settled == 3 * 3 + 3, "three shops were settled"
    assert (tally.settled, read) == (3, 0), "no event is read twice"
    assert len(world.groups()) == 18
    assert differences(world.database, world.rules) == []
