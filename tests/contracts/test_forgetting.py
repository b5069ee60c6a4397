"""Deleting and suppressing people, on SQLite and on PostgreSQL: what goes, what stays, what does not come back."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from pipeline.identity import Rules
from pipeline.privacy import eraser
from pipeline.privacy.placeholder import is_erased
from pipeline.store import erasures, forget, identifiers, splits
from pipeline.store.database import Database
from pipeline.worker import run_worker
from schemas.errors import Refused
from schemas.events import ExternalId
from tests.contracts.forgetting_world import SECOND, START, World, opened
from tests.stores import prepare

MIA = ("user-mia-7", "anon-mia-71", "anon-mia-72", "mia@shop.test", "Mia Virtanen", "+358401234567", "m-mia-1")


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path}/millrace.sqlite"
    made = Database(url if request.param == "sqlite" else request.getfixturevalue("postgres_url"), threads=2)
    prepare(made)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two events are a long history here."""
    monkeypatch.setattr(eraser, "_SOME", 2)
    monkeypatch.setattr(eraser, "_IDS", 2)


@pytest.fixture
async def world(tmp_path: Path, database: Database) -> AsyncIterator[World]:
    async with opened(tmp_path, database) as made:
        yield made


async def two_people(world: World) -> None:
    """Mia on two devices, whose profiles merged; and Bob, who once had Mia's second cookie in his browser."""
    await world.happen(
        world.event("m-mia-1", "user-mia-7", "anon-mia-71", traits={"email": "mia@shop.test", "name": "Mia Virtanen"}),
        world.event("m-mia-2", None, "anon-mia-72", event="Looked", properties={"phone": "+358401234567"}),
        world.event("m-bob-1", "user-bob", "anon-bob", traits={"email": "bob@shop.test", "city": "Oulu"}),
    )
    await world.happen(
        world.event("m-mia-3", "user-mia-7", "anon-mia-72", event="Bought"),
        world.event("m-bob-2", "user-bob", "anon-bob", event="Left"),
    )


# ── A whole person ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_nothing_of_a_deleted_person_is_left_anywhere(world: World) -> None:
    await two_people(world)
    assert world.found_in(*MIA)

    done = await world.forget("email:MIA@shop.test")

    assert done["overallStatus"] == "FINISHED"
    assert world.found_in(*MIA) == []
    assert world.profile("user_id:user-mia-7") is None
    assert world.ids("user_id:user-bob") == ["anonymous_id:anon-bob", "email:bob@shop.test", "user_id:user-bob"]
    assert (await world.off(), world.differences()) == (0, [])
    erased = done["receipt"]["erased"]
    assert {name: erased[name] for name in ("people", "ids", "nodes", "profiles", "merges", "events")} == {
        "people": 1,
        "ids": 4,
        "nodes": 4,
        "profiles": 2,
        "merges": 1,
        "events": 3,
    }
    assert (erased["log_events"], erased["log_resolved"] >= 3, erased["log_profile-changes"] >= 3) == (3, True, True)


async def test_records_of_a_deleted_person_keep_their_places_and_say_nothing(world: World) -> None:
    await two_people(world)
    before = [(one.origin, one.profile_id, one.event.source) for one in await world.resolved()]
    await world.forget("user_id:user-mia-7")

    after = await world.resolved()
    assert [(one.origin, one.profile_id, one.event.source) for one in after] == before
    assert sorted(one.event.message_id for one in after) == ["", "", "", "m-bob-1", "m-bob-2"]
    assert [one.external_ids for one in after if is_erased(one.event)] == [(), (), ()]
    assert sum(is_erased(one) for one in await world.accepted()) == 3


def test_only_a_file_from_before_deletes_overwrote_is_written_anew(tmp_path: Path) -> None:
    """That takes as long as the file is large, and nothing goes through the pipeline meanwhile."""

    def freed(of: Database) -> int:
        """Unused pages once what was deleted is overwritten: a file that is written anew has none."""
        of.run_sync(lambda c: c.execute(text("CREATE TABLE large (value TEXT)")))
        of.run_sync(lambda c: c.execute(text("INSERT INTO large VALUES (:value)"), {"value": "x" * 100_000}))
        of.run_sync(lambda c: c.execute(text("DROP TABLE large")))
        assert of.overwrite_deleted()
        return int(of.read_sync(lambda c: c.execute(text("PRAGMA freelist_count")).scalar_one()))

    made = Database(f"sqlite:///{tmp_path}/millrace.sqlite")
    prepare(made)
    assert freed(made) > 20
    made.run_sync(lambda c: c.execute(text("PRAGMA user_version=0")))
    assert freed(made) == 0
    made.close()


async def test_every_profile_that_merged_goes_whatever_id_names_the_person(world: World) -> None:
    await two_people(world)
    found = world.profile("anonymous_id:anon-mia-72")
    await world.forget("anonymous_id:anon-mia-72")
    for profile in (found.id, *found.merged):
        assert world.profile(profile) is None
        assert world.database.read_sync(lambda c, profile=profile: erasures.deleted_at(c, profile)) is not None  # type: ignore[misc]


async def test_old_events_do_not_bring_a_person_back_and_newer_ones_begin_a_new_profile(world: World) -> None:
    await two_people(world)
    first = world.profile("user_id:user-mia-7")
    await world.forget("user_id:user-mia-7")
    deleted_at = world.database.read_sync(lambda c: erasures.deleted_at(c, first.id))
    assert deleted_at is not None

    old = world.event("late", "user-mia-7", "anon-mia-99", event="Queued on a phone", received=deleted_at + SECOND)
    await world.happen(old, world.event("m-mia-1", "user-mia-7", "anon-mia-71", event="Sent again"))
    assert world.profile("user_id:user-mia-7") is None
    await world.carried_out(await world.ask("DELETE_INTERNAL", "user_id:nobody-else"))
    assert world.found_in("user-mia-7", "anon-mia-99", "Queued on a phone") == []
    assert (await world.books())["refused"] == 2

    new = {"at": deleted_at + SECOND, "received": deleted_at + SECOND}
    await world.happen(world.event("new", "user-mia-7", None, event="Back", **new))
    again = world.profile("user_id:user-mia-7")
    assert (again.head.events, again.id == first.id) == (1, False)
    assert (await world.off(), world.differences()) == (0, [])


async def test_events_that_nobody_has_applied_yet_are_not_kept_either(world: World) -> None:
    await two_people(world)
    await world.arrive(world.event("under-way", "user-mia-7", "anon-mia-73", event="On its way"))
    await world.forget("user_id:user-mia-7")
    await world.process()
    await world.carried_out(await world.ask("DELETE_INTERNAL", "user_id:nobody"))
    assert world.found_in("user-mia-7", "anon-mia-73", "On its way") == []
    assert (await world.off(), world.profile("user_id:user-mia-7")) == (0, None)


async def test_duplicates_and_refused_events_are_erased_too(world: World) -> None:
    await two_people(world)
    await world.happen(
        world.event("m-mia-3", "user-mia-7", "anon-mia-72", event="Bought"),
        world.event("bad", "user-mia-7", None, event="x")._replace(refused="bad_request"),
        world.event("worse", None, None, traits={"email": "Mia@shop.test"})._replace(refused="no_user_anon_id"),
    )
    done = await world.forget("user_id:user-mia-7")
    assert world.found_in(*MIA) == []
    assert done["receipt"]["erased"]["refusals"] == 2
    assert (await world.books())["refused"] == 2


async def test_what_others_own_stays_theirs(world: World) -> None:
    """Bob's browser had Mia's cookie: the event is Bob's, and the cookie was refused."""
    await two_people(world)
    await world.happen(world.event("m-bob-3", "user-bob", "anon-mia-71", event="Shared"))
    done = await world.forget("user_id:user-mia-7")
    assert done["receipt"]["erased"]["events_of_others"] == 1
    assert world.profile("user_id:user-bob").head.events == 3
    assert sorted(one.event.message_id for one in await world.resolved()) == [
        "",
        "",
        "",
        "m-bob-1",
        "m-bob-2",
        "m-bob-3",
    ]


async def test_a_person_whom_nobody_knows_leaves_a_tombstone_all_the_same(world: World) -> None:
    done = await world.forget("user_id:stranger")
    assert (done["overallStatus"], done["receipt"]["erased"]["people"]) == ("FINISHED", 0)
    await world.happen(world.event("old", "stranger", None, event="Old"))
    assert world.profile("user_id:stranger") is None


async def test_a_profile_that_was_taken_apart_goes_alone(world: World) -> None:
    await two_people(world)
    await world.happen(world.event("m-bob-4", "user-bob", "anon-tablet", event="x"))
    rules = Rules()
    ids = ExternalId("user_id", "user-mia-7"), ExternalId("anonymous_id", "anon-mia-72")
    world.database.run_sync(lambda c: splits.unmerge_ids(c, *ids, rules))
    await world.forget("anonymous_id:anon-mia-72")

    assert world.ids("user_id:user-mia-7") == ["anonymous_id:anon-mia-71", "email:mia@shop.test", "user_id:user-mia-7"]
    assert world.found_in("anon-mia-72") == [
        one for one in world.found_in("anon-mia-72") if not one.startswith("millrace")
    ]
    assert (await world.off(), world.differences()) == (0, [])


async def test_an_account_keeps_its_traits_and_loses_its_member(world: World) -> None:
    await two_people(world)
    group = {"kind": "group", "groupId": "acme", "traits": {"plan": "ent"}}
    await world.happen(world.event("g1", "user-mia-7", None, **group), world.event("g2", "user-bob", None, **group))
    await world.forget("user_id:user-mia-7")
    account = world.profile("group_id:acme")
    assert [account.traits["plan"][3], world.found_in(*MIA)] == ["ent", []]
    with pytest.raises(Refused, match="account"):
        await world.ask("DELETE_ONLY", "group_id:acme")


async def test_a_long_history_leaves_piece_by_piece_and_what_comes_meanwhile_goes_with_the_person(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.happen(*(world.event(f"m-mia-1{n}", "user-mia-7", f"anon-mia-7{n % 3}") for n in range(9)))
    await world.happen(world.event("m-bob-1", "user-bob", "anon-bob"))
    taken: list[int] = []
    some, run = forget.some_events, Database.run

    def noted(*args: Any) -> forget.Ahead:
        ahead = some(*args)
        taken.append(ahead.rows["events"])
        return ahead

    async def between(self: Database, work: Any) -> Any:
        if len(taken) == 2:
            taken.append(0)
            await world.happen(world.event("m-mia-1x", "user-mia-7", "anon-mia-79"))
        return await run(self, work)

    name = await world.ask("DELETE_ONLY", "user_id:user-mia-7")
    with monkeypatch.context() as patched:
        patched.setattr(forget, "some_events", noted)
        patched.setattr(Database, "run", between)
        await world.eraser.turn()
    assert (max(taken), sum(taken)) == (2, 10)
    assert (await world.carried_out(name))["receipt"]["erased"]["events"] == 10
    assert (world.found_in(*MIA), await world.off(), world.differences()) == ([], 0, [])
    assert world.ids("user_id:user-bob") == ["anonymous_id:anon-bob", "user_id:user-bob"]


@pytest.mark.parametrize("seed", range(4))
async def test_a_crash_at_any_point_goes_on_where_it_was(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Each transaction and each step on the log may be the last of its process."""
    chance = random.Random(seed)

    class Died(BaseException):
        pass

    async with opened(tmp_path, database) as world:
        await two_people(world)
        name = await world.ask("DELETE_ONLY", "user_id:user-mia-7", "user_id:user-bob")
        run = Database.run

        async def dies(self: Database, work: Any) -> Any:
            if chance.random() < 0.3:
                raise Died
            done = await run(self, work)
            if chance.random() < 0.3:
                raise Died
            return done

        status = ""
        for _ in range(200):
            with monkeypatch.context() as patched:
                patched.setattr(Database, "run", dies)
                try:
                    await world.eraser.turn()
                except Died:
                    assert await world.off() == 0
            found = world.database.read_sync(lambda c: erasures.find(c, name))
            assert found is not None
            status = found.status
            if status == "FINISHED":
                break
        assert status == "FINISHED"
        assert world.found_in(*MIA, "user-bob", "bob@shop.test") == []
        assert (await world.off(), world.differences()) == (0, [])


async def test_a_process_that_dies_before_it_has_emitted_does_not_bring_a_person_back(world: World) -> None:
    """Applied, deleted, then emitted by the next process: as a placeholder, so that the books hold."""
    from pipeline.log import Batch
    from pipeline.parse import parse
    from pipeline.store.intake import apply

    await world.arrive(world.event("m-mia-1", "user-mia-7", "anon-mia-71", traits={"email": "mia@shop.test"}))
    for partition in range(2):
        batch = await world.log.read("events", partition, 0)
        if batch is not None:
            work = parse([Batch("events", partition, batch.records, batch.next_offset)])
            world.database.run_sync(lambda c, work=work: apply(c, work, {}, Rules()))  # type: ignore[misc]
    name = await world.ask("DELETE_ONLY", "user_id:user-mia-7")
    for _ in range(3):
        await world.eraser.turn()
        assert await world.off() == 0
    found = world.database.read_sync(lambda c: erasures.find(c, name))
    assert found is not None
    assert found.status == "RUNNING"

    await world.process(emitted=1)
    assert [is_erased(one.event) for one in await world.resolved()] == [True]
    assert (await world.carried_out(name))["overallStatus"] == "FINISHED"
    assert (await world.off(), world.found_in(*MIA)) == (0, [])


@pytest.mark.parametrize("seed", range(3))
async def test_whoever_is_deleted_beside_the_pipeline_is_gone_and_nobody_else_changes(world: World, seed: int) -> None:
    """Four people on three devices each, in any order; two go while events of all come in."""
    chance = random.Random(seed)

    def some(first: int, count: int, people: range) -> list[Any]:
        made = []
        for number in range(first, first + count):
            who = chance.choice(people)
            user = f"canary-user-{who}" if chance.random() < 0.7 else None
            device = f"canary-anon-{who}-{chance.randrange(3)}"
            body = {"traits": {"email": f"canary-mail-{who}@x.test"}} if chance.random() < 0.4 else {"event": "Looked"}
            made.append(world.event(f"canary-message-{who}-{number}", user, device, **body))
        return made

    async def arrives(first: int) -> None:
        for start in range(first, first + 60, 10):
            await world.arrive(*some(start, 10, range(4)))
            await asyncio.sleep(0.002)

    await world.happen(*some(0, 60, range(4)), world.event("canary-message-2-x", "canary-user-2", "canary-anon-2-0"))
    name = await world.ask("DELETE_ONLY", "user_id:canary-user-0", "user_id:canary-user-1")
    stop = asyncio.Event()
    worker = asyncio.create_task(run_worker(world.log, world.database, stop=stop))
    await asyncio.gather(arrives(1_000), world.carried_out(name))
    stop.set()
    await worker
    await world.process()
    await world.forget("user_id:canary-user-0", "user_id:canary-user-1")  # what came in meanwhile and was newer

    assert (await world.off(), world.differences()) == (0, [])
    gone = [f"canary-{word}-{who}" for word in ("user", "mail", "message") for who in (0, 1)]
    assert world.found_in(*gone, "canary-anon-0", "canary-anon-1") == []
    left = world.profile("user_id:canary-user-2")
    ours = [one for one in await world.accepted() if one.user_id == "canary-user-2"]
    assert left.head.events >= len(ours) > 0


# ── Suppression ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_events_of_a_suppressed_id_do_not_pass_until_that_is_lifted(world: World) -> None:
    await two_people(world)
    await world.ask("SUPPRESS_ONLY", "user_id:user-mia-7")
    await world.happen(
        world.event("s1", "user-mia-7", "anon-mia-71", event="Suppressed one"),
        world.event("s2", None, "anon-mia-71", event="Anonymous"),
        world.event("s3", "user-bob", None, event="Bob"),
    )
    await world.eraser.turn()
    assert world.profile("user_id:user-mia-7").head.events == 4
    assert world.found_in("Suppressed one") == []
    assert (await world.books())["refused"] == 1

    await world.ask("UNSUPPRESS", "user_id:user-mia-7")
    await world.happen(world.event("s4", "user-mia-7", None, event="Again"))
    assert world.profile("user_id:user-mia-7").head.events == 5
    assert (await world.off(), world.differences()) == (0, [])


async def test_suppressed_with_delete_is_kept_as_a_hash_only(world: World) -> None:
    await two_people(world)
    await world.forget("user_id:user-mia-7", kind="SUPPRESS_WITH_DELETE")
    assert world.found_in(*MIA) == []
    listed = world.database.read_sync(lambda c: erasures.suppressed(c, after="", most=10))
    assert [(one, len(hashed)) for hashed, one, _ in listed] == [(None, 32)]
    later = START + 10_000_000 * SECOND
    await world.happen(world.event("s5", "user-mia-7", None, event="Later", at=later, received=later))
    assert world.profile("user_id:user-mia-7") is None


# ── A single identifier ───────────────────────────────────────────────────────────────────────────────────────────


def delete_id(world: World, user: str, kind: str, value: str) -> identifiers.Forgotten:
    person, target = ExternalId("user_id", user), ExternalId(kind, value)
    return world.database.run_sync(lambda c: identifiers.delete(c, person, target, Rules()))


async def test_case_57_a_deleted_identifier_comes_back_with_newer_events_only(world: World) -> None:
    """u1+e1; delete e1; replay of the old event; new event e1."""
    first = world.event("m1", "u1", None, traits={"email": "e1@x.test", "plan": "pro"})
    await world.happen(first, world.event("m2", "u1", None, event="x"))
    before = world.profile("user_id:u1")
    gone = delete_id(world, "u1", "email", "e1@x.test")

    after = world.profile("user_id:u1")
    assert world.ids("user_id:u1") == ["user_id:u1"]
    assert (after.traits, after.head.events) == (before.traits, before.head.events)
    await world.happen(first._replace(message_id="m1-again"))
    assert world.ids("user_id:u1") == ["user_id:u1"]
    assert world.profile("email:e1@x.test") is None

    new = {"at": gone.at + SECOND, "received": gone.at + SECOND}
    await world.happen(world.event("m3", None, None, traits={"email": "e1@x.test"}, **new))
    assert world.ids("email:e1@x.test") == ["email:e1@x.test"]
    assert world.profile("email:e1@x.test").id != after.id
    assert (await world.off(), world.differences()) == (0, [])


async def test_case_58_the_last_user_id_stays(world: World) -> None:
    await world.happen(world.event("m1", "u1", None, event="x"))
    with pytest.raises(Refused) as refused:
        delete_id(world, "u1", "user_id", "u1")
    assert (refused.value.status, refused.value.code) == (400, "bad_request")
    assert world.ids("user_id:u1") == ["user_id:u1"]


@pytest.mark.parametrize(
    ("user", "kind", "value", "said"),
    [
        ("user-mia-7", "group_id", "acme", (400, "unsupported_eid_type")),
        ("nobody", "email", "mia@shop.test", (404, "not_found")),
        ("user-mia-7", "email", "bob@shop.test", (404, "eid_not_found")),
    ],
)
async def test_an_identifier_that_cannot_be_deleted_is_refused(
    world: World, user: str, kind: str, value: str, said: tuple[int, str]
) -> None:
    await two_people(world)
    with pytest.raises(Refused) as refused:
        delete_id(world, user, kind, value)
    assert (refused.value.status, refused.value.code) == said
    assert world.differences() == []


async def test_an_identifier_gives_its_state_its_evidence_and_its_marks_to_the_user_id(world: World) -> None:
    await two_people(world)
    group = {"kind": "group", "groupId": "acme", "traits": {}}
    await world.happen(
        world.event("m-mia-4", None, "anon-mia-72", event="Alone"), world.event("g", None, "anon-mia-72", **group)
    )
    before = world.profile("user_id:user-mia-7")
    delete_id(world, "user-mia-7", "anonymous_id", "anon-mia-72")

    after = world.profile("user_id:user-mia-7")
    assert (after.traits, after.head.events, after.merged) == (before.traits, before.head.events, before.merged)
    assert world.ids("user_id:user-mia-7") == ["anonymous_id:anon-mia-71", "email:mia@shop.test", "user_id:user-mia-7"]
    assert world.differences() == []
    await world.forget("user_id:user-mia-7")
    assert world.found_in(*MIA) == []
    assert (await world.off(), world.differences()) == (0, [])
