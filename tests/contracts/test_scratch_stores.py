"""Scratch stores of `identity apply` and `simulate`, which hold people: nobody who is deleted stays in one, on either database."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from pipeline.query import privacy
from pipeline.resolve_again import resolve_again
from pipeline.scratch import FOLDER, Scratched, held
from pipeline.store import forget, schema, scratches
from pipeline.store.database import Database
from pipeline.store.resettle import Tally
from pipeline.store.rules import in_force
from pipeline.store.scratches import Changed, Scratch
from schemas.errors import Refused
from schemas.events import ExternalId
from schemas.identity import IdentityConfig, IdTypeConfig
from tests.contracts.forgetting_world import World, opened
from tests.contracts.test_forgetting import MIA, database, two_people  # noqa: F401 - the fixture is used by name

STRICT = IdentityConfig(types={"anonymous_id": IdTypeConfig(limit=1)})


@pytest.fixture
async def world(tmp_path: Path, database: Database) -> AsyncIterator[World]:  # noqa: F811
    async with opened(tmp_path, database) as made:
        await two_people(made)
        yield made


@pytest.fixture
async def patient(tmp_path: Path, database: Database) -> AsyncIterator[World]:  # noqa: F811
    """What is on its way has half a minute."""
    async with opened(tmp_path, database, grace=30) as made:
        await two_people(made)
        yield made


async def apply(world: World, advance: Any = lambda *_: None) -> Tally:
    rules = world.database.run_sync(lambda connection: in_force(connection, STRICT))
    return await resolve_again(world.log, world.database, rules, world.folder / FOLDER / "apply", advance)


async def stopped(world: World, at: str = "people") -> None:
    """An apply that ends in the middle."""

    def stop(what: str, _: int, __: int) -> None:
        if what == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await apply(world, stop)


def left_in(world: World) -> list[str]:
    return [one for one in world.found_in(*MIA) if one.startswith(FOLDER)]


async def test_what_a_stopped_apply_left_goes_with_the_person(world: World) -> None:
    await stopped(world)
    assert left_in(world)

    done = await world.forget("user_id:user-mia-7")

    assert world.found_in(*MIA) == []
    receipt = done["receipt"]
    assert (receipt["erased"]["scratch_stores"], receipt["scratch_stores_left"]) == (1, [])
    tally = await apply(world)
    assert (tally, world.found_in(*MIA), world.differences()) == (Tally(), [], [])


class Watched:
    """An apply that is watched: at one point somebody is deleted. What is read of the log, and what of them is left when the
    database says again that nobody is, is written down."""

    def __init__(self, world: World, delete: Callable[[], None], *, at: str, after: int = 0) -> None:
        self.world, self.delete, self.at, self.after = world, delete, at, after
        self.deleted = False
        self.read: list[int] = []
        self.left: list[list[str]] = []

    def advance(self, what: str, done: int, total: int) -> None:
        if what == "events" and (done or not total):
            self.read.append(done)
        if self.deleted and not self.world.database.read_sync(scratches.stale):
            self.left.append(left_in(self.world))
        if what == self.at and not self.deleted:
            self.after -= 1
            if self.after < 0:
                self.delete()
                self.deleted = True


def delete_mia(world: World) -> None:
    world.database.run_sync(lambda c: forget.person(c, ExternalId("user_id", "user-mia-7"), "reg"))
    world.database.run_sync(scratches.disturb)


async def test_a_running_apply_goes_on_without_the_person(world: World) -> None:
    watched = Watched(world, lambda: delete_mia(world), at="people")

    tally = await apply(world, watched.advance)

    assert watched.deleted
    assert (tally, left_in(world), world.differences()) == (Tally(), [], [])
    assert [done for done in watched.read if done] == [5], "the log was read once"


async def test_while_events_are_taken_in_the_person_goes_before_the_next_ones(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only when people are settled, which may be hours later."""
    monkeypatch.setattr("pipeline.recorded._AT_ONCE", 1)
    monkeypatch.setattr("pipeline.recorded._READ", 1)
    watched = Watched(world, lambda: delete_mia(world), at="events", after=3)

    await apply(world, watched.advance)

    assert watched.read == sorted(watched.read)
    assert watched.left
    assert [one for one in watched.left if one] == []
    assert world.differences() == []


async def test_whoever_is_deleted_while_ids_are_compared_goes_from_their_copy(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    copied = Scratched.heed

    def heed(scratch: Scratched) -> bool:
        if (scratch.folder / "present.sqlite").exists():
            if not seen:
                delete_mia(world)
            seen.append([one for one in left_in(world) if "present" in one])
        return copied(scratch)

    monkeypatch.setattr("pipeline.resolve_again._PAGE", 1)
    monkeypatch.setattr(Scratched, "heed", heed)

    tally = await apply(world)

    assert seen[-1] == [] != seen[0]
    assert (tally, left_in(world), world.differences()) == (Tally(), [], [])


async def test_however_often_somebody_is_deleted_the_log_is_read_once(world: World) -> None:
    people = [f"user_id:guest-{number}" for number in range(8)]
    await world.happen(*(world.event(f"g{n}", f"guest-{n}", f"anon-{m}") for n in range(8) for m in range(2)))
    passes = 0

    def delete(what: str, done: int, total: int) -> None:
        nonlocal passes
        passes += what == "events" and done == total > 10
        if people and what == "people":
            one = ExternalId("user_id", people.pop().partition(":")[2])
            world.database.run_sync(lambda c: forget.person(c, one, "reg"))
            world.database.run_sync(scratches.disturb)

    rules = world.database.run_sync(lambda connection: in_force(connection, IdentityConfig()))
    del rules
    await apply(world, delete)

    assert passes == 1
    assert world.differences() == []


async def test_the_receipt_waits_until_a_running_apply_has_let_go_of_the_person(patient: World) -> None:
    """The request names the ids while it is under way, so nobody has to look for them."""
    turns: list[asyncio.Task[Any]] = []
    watched = Watched(
        patient, lambda: turns.append(asyncio.ensure_future(patient.forget("user_id:user-mia-7"))), at="people"
    )

    async def slowly() -> None:
        rules = patient.database.run_sync(lambda connection: in_force(connection, STRICT))
        folder = patient.folder / FOLDER / "apply"
        await resolve_again(patient.log, patient.database, rules, folder, watched.advance)

    await slowly()
    [done] = await asyncio.gather(*turns)

    assert (done["overallStatus"], done["receipt"]["scratch_stores_left"]) == ("FINISHED", [])
    assert (patient.found_in(*MIA), patient.differences()) == ([], [])


async def test_whom_the_rules_mix_with_the_person_are_settled_when_all_was_gone_over_again(world: World) -> None:
    """Bob had Mia's cookie once. Two cookies to a person kept them apart, and do not any more."""
    await world.happen(world.event("m-bob-3", "user-bob", "anon-mia-71", event="Borrowed"))
    watched = Watched(world, lambda: delete_mia(world), at="people")
    joined = IdentityConfig(types={"user_id": IdTypeConfig(limit=5)})
    rules = world.database.run_sync(lambda connection: in_force(connection, joined))

    tally = await resolve_again(world.log, world.database, rules, world.folder / FOLDER / "apply", watched.advance)

    assert tally == Tally()
    assert [done for done in watched.read if done] == [6, 3], "once more, without her events"
    assert world.ids("user_id:user-bob") == ["anonymous_id:anon-bob", "email:bob@shop.test", "user_id:user-bob"]
    assert (left_in(world), world.differences()) == ([], [])


async def test_an_event_of_somebody_else_stays_though_it_names_a_deleted_id(world: World) -> None:
    """All that Eve ever did was with Mia's cookie, which was refused her. The id does not come back, and she does not go."""
    await world.happen(world.event("m-eve-1", "user-eve", "anon-mia-71", traits={"city": "Turku"}))
    assert world.ids("user_id:user-eve") == ["user_id:user-eve"]
    await world.forget("user_id:user-mia-7")
    before = world.profile("user_id:user-eve")

    await apply(world)

    assert world.profile("user_id:user-eve") == before
    assert world.profile("anonymous_id:anon-mia-71") is None
    assert world.differences() == []


async def test_who_is_suppressed_keeps_what_is_known_of_them(world: World) -> None:
    """What came before passed, and is theirs."""
    await world.ask("SUPPRESS_ONLY", "user_id:user-bob")
    before = world.profile("user_id:user-bob")
    assert await apply(world) == Tally(split=1, settled=1)
    assert world.profile("user_id:user-bob") == before


async def test_a_deletion_waits_for_whoever_works_with_a_scratch_store(patient: World) -> None:
    folder = patient.folder / FOLDER / "simulate"
    with held(patient.database, folder, "identity simulate") as scratch:
        scratch.begin()
        (folder / "store.sqlite").write_text("user-mia-7")
        name = await patient.ask("DELETE_ONLY", "user_id:user-mia-7")
        await patient.eraser.turn()
        await patient.eraser.turn()
        with pytest.raises(Changed):
            scratch.check()
        assert (await privacy.regulation(patient.database, name)).data.phase == "settle"
        scratch.clear()
        done = await patient.carried_out(name)
    assert (done["overallStatus"], done["receipt"]["scratch_stores_left"]) == ("FINISHED", [])
    assert patient.found_in(*MIA) == []


async def test_a_scratch_store_of_another_machine_is_named_on_the_receipt(world: World) -> None:
    there = Scratch("s1", "identity apply", "host-b", "/data/scratch/apply")
    world.database.run_sync(lambda connection: scratches.note(connection, there))

    done = await world.forget("user_id:user-mia-7")

    assert done["receipt"]["scratch_stores_left"] == [
        "host-b:/data/scratch/apply may hold them until `millrace identity apply` is run there again or the folder is removed"
    ]


async def test_whoever_is_begun_after_a_deletion_holds_nobody_who_was_deleted(world: World) -> None:
    await world.forget("user_id:user-mia-7")
    await stopped(world, at="events")
    assert left_in(world) == []
    done = await world.forget("user_id:nobody")
    assert done["receipt"]["erased"]["scratch_stores"] == 1, "who knows what it holds"
    assert world.database.read_sync(lambda c: c.execute(select(schema.scratches)).all()) == []


async def test_a_folder_that_somebody_removed_is_forgotten(world: World) -> None:
    await stopped(world)
    for path in (world.folder / FOLDER / "apply").iterdir():
        path.unlink()
    done = await world.forget("user_id:user-mia-7")
    assert done["receipt"]["scratch_stores_left"] == []


async def test_whoever_dies_while_a_folder_is_emptied_leaves_its_name_for_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stopped(world)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(scratches, "forget", die)
        with held(world.database, world.folder / FOLDER / "apply", "identity apply") as scratch:
            with pytest.raises(KeyboardInterrupt):
                scratch.clear()
            assert scratch.is_kept
    with held(world.database, world.folder / FOLDER / "apply", "identity apply") as scratch:
        assert scratch.is_kept
        scratch.clear()
        assert not scratch.is_kept


async def test_one_process_works_in_a_folder(world: World) -> None:
    folder = world.folder / FOLDER / "apply"
    with (
        held(world.database, folder, "identity apply"),
        pytest.raises(Refused, match="wait until it is done") as refused,
    ):
        await apply(world)
    assert (refused.value.code, refused.value.status) == ("already_running", 409)


async def test_a_deleted_id_is_dropped_too(world: World) -> None:
    await stopped(world)
    body = {"delete_external_ids": [{"type": "anonymous_id", "id": "anon-mia-71"}]}
    await privacy.delete_identifier(world.database, "user_id:user-mia-7", body)
    await asyncio.wait_for(world.eraser.tidy(), 10)
    assert left_in(world) == []
