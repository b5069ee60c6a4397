"""What `profile-changes` is told, on SQLite and on PostgreSQL: of events, and again after a crash."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha1
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import text

from pipeline.changes import changes_of_split
from pipeline.identity import Rules
from pipeline.log import Log, Record, open_log
from pipeline.profile import Node, Profile
from pipeline.split import Change, Family
from pipeline.store import bulk, deletions, schema, splits
from pipeline.store.database import Database
from pipeline.telling import append_changes, tell
from pipeline.worker import run_worker
from schemas.changes import Cause, ProfileChange, Removed, decode_change, identifier_hash
from schemas.events import Event, ExternalId, encode_event
from schemas.topics import EVENTS, PROFILE_CHANGES, RESOLVED
from tests.contracts.test_intake import SECOND, batch, database, event, put  # noqa: F401 - the fixture is used by name

RECEIVED = 1000 * SECOND
U1, A2 = ExternalId("user_id", "u1"), ExternalId("anonymous_id", "a2")


def changes(database: Database, *events: Event, first: int = 0) -> list[ProfileChange]:  # noqa: F811
    return [change for one in put(database, batch(*events, first=first)) for change in one.changes]


def ids(*texts: str) -> list[ExternalId]:
    return [ExternalId(*one.split(":", 1)) for one in texts]


def group(message: str, user: str, group_id: str) -> Event:
    made = event(message, user=user, groupId=group_id)
    return made._replace(type="group", body=made.body.replace(b'"track"', b'"group"'))


def test_a_first_event_creates_a_profile_with_its_ids_and_names_itself_as_the_cause(database):  # noqa: F811
    [emission] = put(database, batch(event("m1", user="u1", anonymous="a1", event="Opened")))
    profile = emission.profile
    seq = database.read_sync(lambda c: c.execute(text("SELECT seq FROM profiles")).scalar())
    assert emission.changes == [
        ProfileChange(
            id=f"created:{profile}",
            kind="created",
            profile=profile,
            seq=seq,
            cause=Cause("web", "m1", "track", 100 * SECOND, RECEIVED, "Opened"),
            collection="users",
            profiles=[profile],
            ids=ids("user_id:u1", "anonymous_id:a1"),
        )
    ]


def test_ids_that_join_a_profile_later_are_told_alone(database):  # noqa: F811
    [created] = changes(database, event("m1", user="u1"))
    [added] = changes(database, event("m2", user="u1", anonymous="a1", traits={"email": "a@x.test"}), first=1)
    assert (added.kind, added.profile, added.profiles) == ("ids_added", created.profile, [])
    assert added.ids == ids("email:a@x.test", "anonymous_id:a1")
    assert added.seq > created.seq


def test_an_event_that_says_nothing_new_tells_nothing(database):  # noqa: F811
    assert len(changes(database, event("m1", user="u1", anonymous="a1"))) == 1
    assert changes(database, event("m2", user="u1", anonymous="a1", traits={"plan": "pro"}), first=1) == []
    assert changes(database, event("m3", user="u1"), event("m1", user="u1"), first=2) == []


def test_an_event_that_joins_three_profiles_tells_of_both_merges_and_of_the_id_it_brought(database):  # noqa: F811
    three = changes(
        database, event("m1", anonymous="a1"), event("m2", traits={"email": "e@x.test"}), event("m3", user="u1")
    )
    first, *others = sorted(one.profile for one in three)
    told = changes(
        database,
        event("m4", user="u1", anonymous="a1", traits={"email": "e@x.test", "phone": "+358401234567"}),
        first=3,
    )
    assert {one.profile for one in told} == {first}
    assert sorted((one.kind, one.other or "", list(one.profiles)) for one in told if one.kind == "merged") == [
        ("merged", other, [other]) for other in others
    ]
    merges = database.read_sync(lambda c: sorted(c.execute(text("SELECT id FROM merges")).scalars()))
    assert sorted(one.id for one in told if one.kind == "merged") == [f"merged:{one}" for one in merges]


def test_accounts_are_told_of_like_people(database):  # noqa: F811
    told = changes(database, group("m1", "u1", "g1"))
    assert sorted((one.kind, one.collection, one.ids) for one in told) == [
        ("created", "accounts", ids("group_id:g1")),
        ("created", "users", ids("user_id:u1")),
    ]


HISTORY = [
    event("m1", user="u1", anonymous="a1"),
    event("m2", anonymous="a2", traits={"email": "e@x.test"}),
    group("m3", "u1", "g1"),
    event("m4", user="u1", anonymous="a2"),
    event("m5", user="u1", anonymous="a3"),
    event("m6", user="u2"),
    event("m7", user="u2", anonymous="a1"),  # demoted
]


def test_what_a_crash_kept_from_the_log_is_told_again_word_for_word(database):  # noqa: F811
    told = changes(database, *HISTORY)
    assert [one.kind for one in told] == ["created", "created", "created", "merged", "ids_added", "created"]
    assert changes(database, *HISTORY) == told


def test_it_is_told_again_though_the_profiles_have_merged_further_meanwhile(database):  # noqa: F811
    changes(database, event("m0", anonymous="a0"))
    told = changes(database, *HISTORY, first=1)
    later = changes(database, event("m8", user="u1", anonymous="a0"), first=8)
    assert [one.kind for one in later] == ["merged"]
    changes(database, event("m9", user="u1", anonymous="a2"), first=9)  # nodes lead straight to the survivor now
    assert changes(database, *HISTORY, first=1) == told


def test_a_merge_that_was_undone_meanwhile_is_told_before_what_undid_it(database):  # noqa: F811
    told = changes(database, *HISTORY)
    [merged] = [one for one in told if one.kind == "merged"]
    done = database.run_sync(lambda c: splits.unmerge(c, merged.id.removeprefix("merged:"), Rules()))
    again = {one.id: one for one in changes(database, *HISTORY)}
    assert again[merged.id] == merged
    assert all(one.seq < done.split.at for one in again.values())


def test_whatever_happened_a_history_is_told_again_as_it_was(database):  # noqa: F811
    """Profiles merge again and again here, ids are demoted, and each poll is told anew after all of it."""
    chance = random.Random(11)
    polls = [[some_event(chance, poll * 20 + n) for n in range(20)] for poll in range(12)]
    live = [changes(database, *poll, first=at * 20) for at, poll in enumerate(polls)]
    again = [changes(database, *poll, first=at * 20) for at, poll in enumerate(polls)]
    assert [sorted(poll) for poll in again] == [sorted(poll) for poll in live]
    kinds = Counter(one.kind for poll in live for one in poll)
    assert min(kinds[kind] for kind in ("created", "ids_added", "merged")) > 10


def some_event(chance: random.Random, number: int) -> Event:
    person = chance.randrange(15)
    user, device = f"u{person}", f"a{chance.randrange(40)}"
    made = event(
        f"m{number}",
        user=user if chance.random() < 0.5 else None,
        anonymous=device if chance.random() < 0.8 else None,
        traits={"email": f"e{chance.randrange(10)}@x.test"} if chance.random() < 0.4 else {},
    )
    return made if chance.random() < 0.8 else group(f"m{number}", user, f"g{chance.randrange(4)}")


# ── What operators do ─────────────────────────────────────────────────────────────────────────────────────────────


async def told(database: Database, folder: Path) -> list[ProfileChange]:  # noqa: F811
    """What `profile-changes` holds once all is told, in the order in which it happened; each under its profile's key."""
    async with open_log(f"embedded://{folder}/log", partitions=1) as log:
        await tell(log, database)
        found = await log.read(PROFILE_CHANGES, 0, 0)
    assert found is not None
    records = found.records
    changes = [decode_change(one.value) for one in records]
    assert [one.key.decode() for one in records] == [one.profile for one in changes]
    return sorted(changes, key=lambda one: (one.seq, one.id))


async def test_an_undone_merge_says_who_went_where_and_its_lifting_says_it_back(database, tmp_path):  # noqa: F811
    survivor, absorbed = (one.profile for one in changes(database, event("m1", user="u1"), event("m2", anonymous="a2")))
    [merged] = changes(database, event("m3", user="u1", anonymous="a2"), first=2)
    merge = merged.id.removeprefix("merged:")
    split = (await database.run(lambda c: splits.unmerge(c, merge, Rules()))).split
    assert {survivor, absorbed} == {split.profile, split.other}
    await database.run(lambda c: splits.remerge(c, split.id, Rules()))
    apart, whole = await told(database, tmp_path)
    moved = [ExternalId(*one) for one in apart.ids]
    assert (apart.kind, apart.profile, apart.other, apart.profiles) == (
        "unmerged",
        split.other,
        split.profile,
        (split.other,),
    )
    assert apart.cause == Cause("millrace", split.id, "unmerge", split.at, split.at)
    assert (whole.kind, whole.profile, whole.other, whole.profiles, list(whole.ids)) == (
        "remerged",
        split.profile,
        split.other,
        (split.other,),
        moved,
    )
    assert merged.seq < apart.seq < whole.seq


async def test_a_cut_that_makes_a_profile_says_where_its_ids_were(database, tmp_path):  # noqa: F811
    changes(database, event("m1", user="u1", anonymous="a1"), event("m2", user="u1", anonymous="a2"))
    split = (await database.run(lambda c: splits.unmerge_ids(c, U1, A2, Rules()))).split
    [apart] = await told(database, tmp_path)
    assert (apart.profile, apart.other, apart.profiles, list(apart.ids)) == (
        split.other,
        split.profile,
        (split.other,),
        ids("anonymous_id:a2"),
    )


async def test_a_crash_between_the_log_and_the_note_tells_the_same_again(database, tmp_path):  # noqa: F811
    changes(database, event("m1", user="u1", anonymous="a1"), event("m2", user="u1", anonymous="a2"))
    await database.run(lambda c: splits.unmerge_ids(c, U1, A2, Rules()))
    [untold] = await database.read(splits.pending)
    async with open_log(f"embedded://{tmp_path}/log", partitions=1) as log:
        await append_changes(log, untold.changes)
    first, again = await told(database, tmp_path)
    assert first == again
    assert await database.read(splits.pending) == []


def test_a_split_of_many_ids_is_told_in_records_that_fit_the_log():
    nodes = {f"x:{n}": Node(f"x:{n}", "use_1") for n in range(2_500)}
    before = Family(nodes=nodes, profiles={"use_1": Profile("use_1", 0)})
    change = Change(
        nodes={key: replace(one, profile="use_2") for key, one in nodes.items()},
        profiles={"use_2": Profile("use_2", 0)},
    )
    parts = changes_of_split("spl_1", "unmerged", 7, before, change)
    assert [(len(one.ids), list(one.profiles)) for one in parts] == [(1_000, ["use_2"]), (1_000, []), (500, [])]
    assert len({one.id for one in parts}) == 3


async def test_deletions_are_told_once_they_are_listed_and_hold_no_value(database, tmp_path):  # noqa: F811
    hashed = identifier_hash(ExternalId("email", "e@x.test"))
    assert hashed == sha1(b"emaile@x.test", usedforsecurity=False).hexdigest()
    rows = [("del_1", 7, "profile", "use_1", "", ""), ("del_2", 8, "identifier", "use_2", "email", hashed)]
    database.run_sync(lambda c: bulk.insert(c, schema.deletions, rows))
    assert await told(database, tmp_path) == [
        ProfileChange("deleted:del_1", "deleted", "use_1", 7, Cause("millrace", "del_1", "delete", 7, 7)),
        ProfileChange(
            "id_removed:del_2",
            "id_removed",
            "use_2",
            8,
            Cause("millrace", "del_2", "delete", 8, 8),
            removed=(Removed("email", hashed),),
        ),
    ]
    assert await told(database, tmp_path) == await told(database, tmp_path)
    assert database.read_sync(deletions.pending) == {}


# ── The process ───────────────────────────────────────────────────────────────────────────────────────────────────


class Failing:
    """A log that refuses the first append to a topic, as when the process ends there."""

    def __init__(self, log: Log, topic: str) -> None:
        self._log, self._topic = log, topic

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def append(self, topic: str, records: Sequence[Record]) -> None:
        if topic == self._topic:
            raise Crash
        await self._log.append(topic, records)


class Crash(Exception):
    """Stands for the end of a process."""


@pytest.mark.parametrize("topic", [PROFILE_CHANGES, RESOLVED])
async def test_whoever_comes_after_a_crash_tells_what_was_applied_and_not_told(database, tmp_path, topic):  # noqa: F811
    stop = asyncio.Event()
    async with open_log(f"embedded://{tmp_path}/log", partitions=1) as log:
        await log.append(EVENTS, [Record(one.key, encode_event(one), 0) for one in HISTORY])
        with pytest.raises(Crash):
            await run_worker(cast(Log, Failing(log, topic)), database, stop=stop)
        worker = asyncio.create_task(run_worker(log, database, stop=stop))
        while sum(end for _, end in (await log.bounds(RESOLVED)).values()) < len(HISTORY):
            assert not worker.done()
            await asyncio.sleep(0.01)
        stop.set()
        await worker
    found = {one.id: one for one in await told(database, tmp_path)}
    assert sorted(one.kind for one in found.values()) == ["created"] * 4 + ["ids_added", "merged"]
    assert {key for one in found.values() for key in map(str, one.ids)} == {
        "user_id:u1",
        "user_id:u2",
        "anonymous_id:a1",
        "anonymous_id:a2",
        "anonymous_id:a3",
        "email:e@x.test",
        "group_id:g1",
    }
