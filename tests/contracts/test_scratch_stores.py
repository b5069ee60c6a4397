"""Scratch stores of `identity apply` and `simulate`, which hold people: nobody who is deleted stays in one, on either database."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
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
from pipeline.store.shadow import Shadow
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


def delete_mia(world: World) -> None:
    world.database.run_sync(lambda c: forget.person(c, ExternalId("user_id", "user-mia-7"), "reg"))
    world.database.run_sync(scratches.disturb)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often a history was gone over."""
    times: list[str] = []
    begin = Shadow.begin

    def counted(shadow: Shadow, live: Database, before: int) -> None:
        times.append("begun")
        begin(shadow, live, before)

    monkeypatch.setattr(Shadow, "begin", counted)
    return times


@pytest.fixture
def at_heed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Something that is done, on its thread, each time before a running apply looks for who was deleted."""
    heed = Scratched.heed

    def before(work: Callable[[], None]) -> None:
        def watched(scratch: Scratched) -> bool:
            work()
            return heed(scratch)

        monkeypatch.setattr(Scratched, "heed", watched)

    monkeypatch.setattr("pipeline.recorded._AT_ONCE", 1)
    monkeypatch.setattr("pipeline.recorded._READ", 1)
    monkeypatch.setattr("pipeline.resolve_again._PAGE", 1)
    return before


async def test_a_running_apply_goes_on_without_the_person(world: World, begun: list[str]) -> None:
    deleted: list[str] = []

    def delete(what: str, _: int, __: int) -> None:
        if what == "people" and not deleted:
            deleted.append("Mia")
            delete_mia(world)

    tally = await apply(world, delete)

    assert (deleted, begun) == (["Mia"], ["begun"])
    assert (tally, left_in(world), world.differences()) == (Tally(), [], [])


async def test_however_often_somebody_is_deleted_the_history_is_gone_over_once(world: World, begun: list[str]) -> None:
    guests = range(8)
    await world.happen(*(world.event(f"g{n}{m}", f"guest-{n}", f"anon-{n}-{m}") for n in guests for m in range(2)))
    left = [f"guest-{number}" for number in guests]

    def delete(what: str, _: int, __: int) -> None:
        if what == "people" and left:
            world.database.run_sync(lambda c: forget.person(c, ExternalId("user_id", left.pop()), "reg"))
            world.database.run_sync(scratches.disturb)

    tally = await apply(world, delete)

    assert len(left) < 4
    assert (begun, tally.left, world.differences()) == (["begun"], 0, [])


@pytest.mark.parametrize(("where", "looks"), [("shadow.sqlite", 5), ("present.sqlite", 10)])
async def test_whoever_is_deleted_while_events_or_ids_are_taken_in_goes_at_once(
    world: World, begun: list[str], at_heed: Callable[[Callable[[], None]], None], where: str, looks: int
) -> None:
    """From what was resolved, and from the copy of ids that it is compared with: not when people are settled, hours later."""
    there: list[list[str]] = []

    def delete() -> None:
        if (world.folder / FOLDER / "apply" / where).exists():
            there.append(left_in(world))
            if len(there) == looks:
                delete_mia(world)

    at_heed(delete)

    await apply(world)

    assert begun == ["begun"]
    assert there[looks - 1]
    assert [one for one in there[looks:] if one] == []
    assert len(there) > looks
    assert (left_in(world), world.differences()) == ([], [])


async def test_the_receipt_comes_once_a_running_apply_has_let_go_of_the_person(
    patient: World, begun: list[str], at_heed: Callable[[Callable[[], None]], None]
) -> None:
    """And the apply goes on."""
    loop = asyncio.get_running_loop()
    asked: list[str] = []
    phases: list[str | None] = []

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(30)

    def turn() -> None:
        if not asked and left_in(patient):
            asked.append(run(patient.ask("DELETE_ONLY", "user_id:user-mia-7")))
        if asked:
            run(patient.eraser.turn())
            run(patient.eraser.turn())
            phases.append(run(privacy.regulation(patient.database, asked[0])).data.phase)
            if phases[-1] is None:
                assert patient.found_in(*MIA) == []

    at_heed(turn)

    await apply(patient)

    assert phases[0] == "settle", "it waits"
    assert phases[-1] is None
    receipt = (await privacy.regulation(patient.database, asked[0])).data.receipt
    assert receipt["scratch_stores_left"] == []
    assert (begun, patient.differences()) == (["begun"], [])


async def test_whom_the_rules_mix_with_the_person_are_settled_once_all_was_gone_over_again(
    world: World, begun: list[str]
) -> None:
    """Bob had Mia's cookie once. That a cookie is one person's kept them apart, and does not any more."""
    await world.happen(world.event("m-bob-3", "user-bob", "anon-mia-71", event="Borrowed"))
    before = world.profile("user_id:user-bob")
    rules = world.database.run_sync(
        lambda connection: in_force(connection, IdentityConfig(types={"user_id": IdTypeConfig(limit=5)}))
    )
    deleted: list[str] = []

    def delete(what: str, _: int, __: int) -> None:
        if what == "people" and not deleted:
            deleted.append("Mia")
            delete_mia(world)

    tally = await resolve_again(world.log, world.database, rules, world.folder / FOLDER / "apply", delete)

    assert (deleted, begun) == (["Mia"], ["begun"] * 2)
    assert tally == Tally()
    assert world.profile("user_id:user-bob") == before
    assert (left_in(world), world.differences()) == ([], [])


async def test_a_running_apply_lets_go_of_an_id_that_is_deleted_from_somebody(
    world: World, begun: list[str], at_heed: Callable[[Callable[[], None]], None]
) -> None:
    """No request names it: it is known by its hash alone."""
    loop = asyncio.get_running_loop()
    body = {"delete_external_ids": [{"type": "anonymous_id", "id": "anon-mia-72"}]}
    left: list[list[str]] = []

    def there() -> list[str]:
        return [one for one in left_in(world) if "anon-mia-72" in one]

    def delete() -> None:
        left.append(there())
        if left[-1] and not any(left[:-1]):
            gone = privacy.delete_identifier(world.database, "user_id:user-mia-7", body)
            asyncio.run_coroutine_threadsafe(gone, loop).result(30)

    at_heed(delete)
    rules = world.database.run_sync(
        lambda connection: in_force(connection, IdentityConfig(types={"user_id": IdTypeConfig(limit=5)}))
    )

    tally = await resolve_again(world.log, world.database, rules, world.folder / FOLDER / "apply", lambda *_: None)

    assert [len(one) > 0 for one in left].count(True) == 1
    assert (len(begun), tally.left) == (2, 0), "whose it was is gone over again"
    assert world.ids("user_id:user-mia-7") == ["anonymous_id:anon-mia-71", "email:mia@shop.test", "user_id:user-mia-7"]
    assert (left_in(world), world.differences()) == ([], [])


async def test_who_gives_up_on_such_people_says_that_some_are_left(world: World, begun: list[str]) -> None:
    await world.happen(
        world.event("m-bob-3", "user-bob", "anon-mia-71", event="Borrowed"),
        *(world.event(f"m-{name}", f"user-{name}", "anon-bob", event="Borrowed") for name in ("eve", "joe", "kim")),
    )
    rules = world.database.run_sync(
        lambda connection: in_force(connection, IdentityConfig(types={"user_id": IdTypeConfig(limit=9)}))
    )
    deleted: list[int] = []

    def delete(what: str, _: int, __: int) -> None:
        if what == "people" and len(deleted) < len(begun):
            one = ("user-mia-7", "user-eve", "user-joe")[len(deleted)]
            deleted.append(len(begun))
            world.database.run_sync(lambda c: forget.person(c, ExternalId("user_id", one), "reg"))
            world.database.run_sync(scratches.disturb)

    tally = await resolve_again(world.log, world.database, rules, world.folder / FOLDER / "apply", delete)

    assert (deleted, tally.settled, tally.left > 0) == ([1, 2, 3], 0, True)
    assert (left_in(world), world.differences()) == ([], [])


async def test_what_a_deleted_id_has_left_to_its_person_stays_theirs(world: World) -> None:
    """Also what came with no other id: that resolves to nobody any more."""
    await world.happen(world.event("m-mia-4", None, "anon-mia-72", traits={"size": "M"}))
    body = {"delete_external_ids": [{"type": "anonymous_id", "id": "anon-mia-72"}]}
    await privacy.delete_identifier(world.database, "user_id:user-mia-7", body)
    before = world.profile("user_id:user-mia-7")
    assert (before.traits["size"][3], before.events) == ("M", 4)

    assert await apply(world) == Tally()

    assert world.profile("user_id:user-mia-7") == before
    assert world.differences() == []


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
