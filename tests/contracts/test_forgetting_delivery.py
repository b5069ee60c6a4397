"""What waits at destinations of a person who is deleted, and how destinations are told, on SQLite and on PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from destinations.contract import (
    DELIVERED,
    Action,
    Definition,
    Env,
    Filtered,
    Outcome,
    Person,
    RawEvent,
    Rejected,
    Retry,
    Settings,
)
from pipeline.delivery.engine import Destination, run_delivery
from pipeline.delivery.engine import Limits as Bounds
from pipeline.delivery.engine import World as Clock
from pipeline.log import Log
from pipeline.privacy.eraser import Eraser, Limits
from pipeline.query.balance import balance
from pipeline.query.privacy import regulation
from pipeline.store import letters
from pipeline.store.database import Database
from schemas.events import TYPES
from tests.contracts.forgetting_world import World, opened
from tests.stores import prepare

MIA = ("user-mia-7", "anon-mia-71", "mia@shop.test", "m-mia-1", "m-mia-2")
QUICK = Bounds(
    backoff=0.01, longest_backoff=0.02, probe=0.01, longest_probe=0.02, grace=1.0, patience=0.05, failures=99
)


class Nothing(Settings):
    """No settings."""


@dataclass
class Crm:
    """A service that takes, refuses or hangs as `answer` says, and notes whom it is told to forget."""

    name: str = "crm"
    answer: Callable[[RawEvent], Outcome] = lambda _: DELIVERED
    forgets: bool = True
    verdicts: list[Outcome] = field(default_factory=list)
    got: list[str] = field(default_factory=list)
    forgot: list[Person] = field(default_factory=list)

    def destination(self) -> Destination:
        @asynccontextmanager
        async def connect(_: Nothing, __: Env) -> AsyncIterator["Crm"]:
            yield self

        async def check(_: "Crm") -> None:
            return None

        async def deliver(_: "Crm", batch: Sequence[RawEvent]) -> Sequence[Outcome]:
            outcomes = [self.answer(one) for one in batch]
            self.got += [one["messageId"] for one, said in zip(batch, outcomes, strict=True) if said is DELIVERED]
            return outcomes

        async def forget(_: "Crm", people: Sequence[Person]) -> Sequence[Outcome]:
            self.forgot += people
            return [self.verdicts.pop(0) if self.verdicts else DELIVERED for _ in people]

        definition = Definition(
            name=self.name,
            description="A service.",
            settings=Nothing,
            connect=connect,
            check=check,
            actions=(Action(name="send", payload=None, types=TYPES, max_batch=10, deliver=deliver),),
            forget=forget if self.forgets else None,
        )
        return Destination(name=self.name, definition=definition, settings=Nothing())


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path}/millrace.sqlite"
    made = Database(url if request.param == "sqlite" else request.getfixturevalue("postgres_url"), threads=2)
    prepare(made)
    yield made
    made.close()


@pytest.fixture
async def world(tmp_path: Path, database: Database) -> AsyncIterator[World]:
    async with opened(tmp_path, database, grace=0.5) as made:
        yield made


@asynccontextmanager
async def delivering(world: World, *services: Crm) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(
        run_delivery(
            world.log,
            world.database,
            [one.destination() for one in services],
            stop=stop,
            folder=world.folder,
            limits=QUICK,
            world=Clock(),
        )
    )
    try:
        yield
    finally:
        stop.set()
        await task


async def events(world: World) -> None:
    await world.happen(
        world.event("m-mia-1", "user-mia-7", "anon-mia-71", traits={"email": "mia@shop.test"}),
        world.event("m-bob-1", "user-bob", "anon-bob", traits={"email": "bob@shop.test"}),
    )
    await world.happen(world.event("m-mia-2", "user-mia-7", "anon-mia-71", event="Bought"))


async def book(world: World, name: str = "crm") -> dict[str, int | None]:
    whole = (await balance(world.log, world.database, [name])).destinations[name]["web"].json_object()
    return {one: whole[one] for one in ("accepted", "delivered", "filtered", "dead", "pending", "off")}


async def until(world: World, name: str = "crm", **wanted: int) -> None:
    async with asyncio.timeout(30):
        while {one: (await book(world, name))[one] for one in wanted} != wanted:
            await asyncio.sleep(0.01)


async def test_what_waits_is_filtered_and_the_books_hold_throughout(world: World) -> None:
    """Mia's first event is tried again and again, her second waits behind it."""
    stubborn = Crm(answer=lambda one: Retry("http 503") if one["messageId"] == "m-mia-1" else DELIVERED)
    async with delivering(world, stubborn):
        await events(world)
        await until(world, delivered=1, pending=2)
        assert (await book(world))["off"] == 0
        name = await world.ask("DELETE_ONLY", "user_id:user-mia-7", destinations=["crm"], forgetful=["crm"])
        await world.eraser.turn()
        assert (await book(world))["off"] == 0
        done = await world.carried_out(name)
        await until(world, filtered=2, pending=0, off=0)
    assert done["overallStatus"] == "FINISHED"
    assert stubborn.got == ["m-bob-1"]
    await world.eraser.tidy()  # what was noted of errors until the end
    assert world.found_in(*MIA) == []
    [person] = stubborn.forgot
    assert set(person.ids) == {("user_id", "user-mia-7"), ("anonymous_id", "anon-mia-71"), ("email", "mia@shop.test")}


async def test_what_nobody_has_delivered_yet_is_filtered(world: World) -> None:
    await events(world)
    crm = Crm()
    name = await world.ask("DELETE_ONLY", "user_id:user-mia-7", destinations=["crm"], forgetful=["crm"])
    await world.eraser.turn()
    assert await book(world) == {"accepted": 3, "delivered": 0, "filtered": 0, "dead": 0, "pending": 3, "off": 0}
    async with delivering(world, crm):
        await until(world, delivered=1, filtered=2, pending=0, off=0)
        await world.carried_out(name)
    assert (crm.got, len(crm.forgot)) == (["m-bob-1"], 1)


async def test_dead_letters_lose_their_bytes(world: World) -> None:
    picky = Crm(answer=lambda one: Rejected("http 400") if "mia" in one["messageId"] else DELIVERED, forgets=False)
    async with delivering(world, picky):
        await events(world)
        await until(world, delivered=1, dead=2)
        assert world.found_in("m-mia-1")
        done = await world.carried_out(await world.ask("DELETE_ONLY", "user_id:user-mia-7", destinations=["crm"]))
    assert done["overallStatus"] == "PARTIAL_SUCCESS"
    assert done["streamStatus"][0]["destinationStatus"][0]["status"] == "NOT_SUPPORTED"
    await world.eraser.tidy()
    assert world.found_in(*MIA) == []
    assert (await book(world))["off"] == 0


async def test_a_dead_letter_whose_person_is_deleted_is_given_up(world: World) -> None:
    """Nobody can put it back: it is no letter any more, in the books as in the list."""
    picky = Crm(answer=lambda one: Rejected("http 400"), forgets=False)
    async with delivering(world, picky):
        await events(world)
        await until(world, dead=3)
        await world.carried_out(await world.ask("DELETE_ONLY", "user_id:user-mia-7", destinations=["crm"]))
        whole = (await balance(world.log, world.database, ["crm"])).destinations["crm"]["web"].json_object()
    kinds = ("accepted", "delivered", "filtered", "dead", "purged", "pending", "off")
    assert [whole[one] for one in kinds] == [3, 0, 0, 1, 2, 0, 0]
    found = world.database.read_sync(lambda c: letters.groups(c, letters.Chosen(), None, 10))
    assert [one.letters for one in found] == [1]


async def test_a_destination_is_told_until_it_has_forgotten(world: World) -> None:
    crm = Crm(verdicts=[Retry("http 503"), Retry("http 503")])
    async with delivering(world, crm):
        await events(world)
        await until(world, delivered=3)
        done = await world.carried_out(
            await world.ask("DELETE_ONLY", "user_id:user-mia-7", destinations=["crm"], forgetful=["crm"])
        )
    assert [one.regulation for one in crm.forgot] == [done["id"]] * 3
    assert done["overallStatus"] == "FINISHED"


@pytest.mark.parametrize(
    ("said", "overall", "status"),
    [(Rejected("http 400"), "FAILED", "FAILED"), (Filtered("no address"), "PARTIAL_SUCCESS", "NOT_SUPPORTED")],
)
async def test_a_destination_that_cannot_delete_is_named(
    world: World, said: Outcome, overall: str, status: str
) -> None:
    crm = Crm(verdicts=[said])
    async with delivering(world, crm):
        await events(world)
        await until(world, delivered=3)
        done = await world.carried_out(
            await world.ask("DELETE_ONLY", "user_id:user-mia-7", destinations=["crm"], forgetful=["crm"])
        )
    [told] = done["streamStatus"][0]["destinationStatus"]
    assert (done["overallStatus"], told["status"], told["errString"]) == (overall, status, said.reason)  # type: ignore[union-attr]
    assert world.found_in(*MIA) == []


async def test_an_internal_deletion_tells_nobody(world: World) -> None:
    crm = Crm()
    async with delivering(world, crm):
        await events(world)
        await until(world, delivered=3)
        name = await world.ask("DELETE_INTERNAL", "user_id:user-mia-7", destinations=["crm"], forgetful=["crm"])
        done = await world.carried_out(name)
    assert (done["streamStatus"], crm.forgot) == ([], [])


async def test_a_destination_that_stands_still_is_fenced_and_told_when_it_moves(world: World) -> None:
    """What it had read before is not written by it any more, and read again as it is now."""
    hanging = asyncio.Event()
    await events(world)

    class Hangs(Crm):
        def destination(self) -> Destination:
            made = super().destination()
            action = made.definition.actions[0]

            async def deliver(client: Crm, batch: Sequence[RawEvent]) -> Sequence[Outcome]:
                await hanging.wait()
                return await action.deliver(client, batch)

            actions = (Action(name="send", payload=None, types=TYPES, max_batch=10, deliver=deliver),)
            definition = Definition(**{**{n: getattr(made.definition, n) for n in _FIELDS}, "actions": actions})
            return Destination(name=made.name, definition=definition, settings=made.settings)

    crm = Hangs()
    async with delivering(world, crm):
        name = await world.ask("DELETE_ONLY", "user_id:user-mia-7", destinations=["crm"], forgetful=["crm"])
        async with asyncio.timeout(30):
            while (await regulation(world.database, name)).data.phase != "told":
                await world.eraser.turn()
                await asyncio.sleep(0.02)
        assert crm.forgot == []
        hanging.set()
        await world.carried_out(name)
        await until(world, pending=0, off=0)
    assert len(crm.forgot) == 1
    assert world.found_in(*MIA) == []


class Kept:
    """A log that cannot erase, as Kafka's."""

    def __init__(self, log: Log) -> None:
        self.append, self.subscribe, self.read, self.bounds = log.append, log.subscribe, log.read, log.bounds
        self.offset_at, self.committed, self.partitions = log.offset_at, log.committed, log.partitions


async def test_where_records_age_out_nobody_gets_them_any_more(world: World) -> None:
    """Also a destination that comes later and reads everything there is."""
    await events(world)
    world.eraser = Eraser(Kept(world.log), world.database, None, Limits(retention=86_400.0))
    crm = Crm()
    name = await world.ask("DELETE_ONLY", "user_id:user-mia-7", destinations=["crm"], forgetful=["crm"])
    await world.eraser.turn()  # what was delivered before would be delivered
    async with delivering(world, crm):
        done = await world.carried_out(name)
        await until(world, delivered=1, filtered=2, pending=0, off=0)
    assert (crm.got, len(crm.forgot)) == (["m-bob-1"], 1)
    assert done["receipt"]["log"] == "Kafka removes the records by its retention"
    assert done["receipt"]["log_gone_by"] > done["finishedAt"]
    assert {one.partition("/")[0] for one in world.found_in(*MIA)} == {"log"}


_FIELDS = ("name", "description", "settings", "connect", "check", "forget")
