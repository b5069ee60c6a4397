"""Scratch stores of `identity apply` and `simulate`, which hold people: nobody who is deleted stays in one, on either database."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from pipeline.query import privacy
from pipeline.resolve_again import resolve_again
from pipeline.scratch import FOLDER, held
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


async def test_a_running_apply_begins_anew_without_the_person(world: World) -> None:
    deleted = False

    def delete(what: str, _: int, __: int) -> None:
        nonlocal deleted
        if what == "people" and not deleted:
            deleted = True
            world.database.run_sync(lambda c: forget.person(c, ExternalId("user_id", "user-mia-7"), "reg"))
            world.database.run_sync(scratches.disturb)

    tally = await apply(world, delete)

    assert deleted
    assert (tally, left_in(world), world.differences()) == (Tally(), [], [])


async def test_while_events_are_taken_in_a_deletion_is_noticed_at_the_next_ones(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only when people are settled, which may be hours later."""
    monkeypatch.setattr("pipeline.recorded._AT_ONCE", 1)
    seen: list[tuple[int, list[str]]] = []

    def delete(what: str, done: int, _: int) -> None:
        if what == "events":
            seen.append((done, left_in(world)))
            if len(seen) == 1:
                world.database.run_sync(scratches.disturb)

    await apply(world, delete)

    assert [done for done, _ in seen[:2]] == [seen[0][0]] * 2, "it began anew at once"


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
