"""A destination that is removed from the configuration and comes back, on both databases: what the log's retention took of it meanwhile
is missed, and no loss."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Connection
from structlog.testing import capture_logs

from pipeline.query.balance import balance, come_back, leave
from pipeline.store import baselines
from pipeline.store.baselines import Baseline
from schemas.topics import RESOLVED
from tests.unit.delivery_world import DeliveryWorld
from tests.unit.test_baselines import ShortLog, accept

TOLD = "retention took events while the destination was not configured; they cannot be delivered any more"


class World(DeliveryWorld):
    """A log that retention takes records from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.short = ShortLog(1, self.did)
        self.log = self.short

    async def say(self, count: int) -> None:
        """Events are accepted, and emitted."""
        said = len(self.log.topics[RESOLVED][0])
        for number in range(said, said + count):
            await self.emit(f"m{number}")
        await accept(self, said + count)

    async def work(self) -> list[str]:
        """Delivers what there is to whoever is configured; what is told of it."""
        with capture_logs() as lines:
            await self.run_until_idle()
        return [line["event"] for line in lines if line["event"] in (TOLD, "destination is not configured any more")]

    async def balance(self) -> dict[str, int | None]:
        """Of the destination, without what is none."""
        found = await balance(self.log, self.database, [one.name for one in self.destinations])
        row = found.destinations["crm"]["web"].json_object()
        assert found.off == row["off"]
        return {name: count for name, count in row.items() if count}


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
async def world(tmp_path: Path, url: str | None) -> AsyncIterator[World]:
    """Four events were delivered."""
    made = World(tmp_path, url=url) if url else World(tmp_path)
    made.add()
    await made.say(4)
    assert await made.work() == []
    assert await made.balance() == {"accepted": 4, "delivered": 4}
    yield made
    made.close()


async def test_what_retention_took_meanwhile_is_missed_and_told_once(world: World) -> None:
    crm = world.destinations.pop()
    assert await world.work() == ["destination is not configured any more"]
    await world.say(6)
    assert await world.work() == []
    world.short.first = 7

    world.destinations.append(crm)
    assert await world.balance() == {"accepted": 10, "delivered": 4, "missed": 3, "pending": 3}
    assert await world.work() == [TOLD]
    assert await world.balance() == {"accepted": 10, "delivered": 7, "missed": 3}

    await world.say(1)
    assert await world.work() == []
    assert await world.balance() == {"accepted": 11, "delivered": 8, "missed": 3}


async def test_it_adds_up_over_several_absences(world: World) -> None:
    for first in (6, 9):
        crm = world.destinations.pop()
        await world.work()
        await world.say(3)
        world.short.first = first
        world.destinations.append(crm)
        assert await world.work() == [TOLD]
    assert await world.balance() == {"accepted": 10, "delivered": 6, "missed": 4}


async def test_whoever_missed_nothing_goes_on_where_it_was(world: World) -> None:
    crm = world.destinations.pop()
    await world.work()
    await world.say(2)
    world.destinations.append(crm)
    assert await world.work() == []
    assert await world.balance() == {"accepted": 6, "delivered": 6}


async def test_what_was_lost_before_it_was_removed_stays_a_loss(world: World) -> None:
    await world.say(2)
    world.short.first = 5
    assert await world.balance() == {"accepted": 6, "delivered": 4, "pending": 1, "off": 1}
    crm = world.destinations.pop()
    await world.work()
    await world.say(2)
    world.short.first = 7
    world.destinations.append(crm)
    assert await world.work() == [TOLD]
    assert await world.balance() == {"accepted": 8, "delivered": 5, "missed": 2, "off": 1}


async def test_what_is_lost_once_it_is_configured_again_is_a_loss(world: World) -> None:
    crm = world.destinations.pop()
    await world.work()
    world.destinations.append(crm)
    await world.work()
    await world.say(3)
    world.short.first = 6
    assert await world.work() == []
    assert await world.balance() == {"accepted": 7, "delivered": 5, "off": 2}


async def test_a_process_that_was_only_stopped_leaves_nothing_out(world: World) -> None:
    """Without a process that knew it to be gone, it was there, and did not work."""
    await world.say(3)
    world.short.first = 6
    await world.work()
    assert await world.balance() == {"accepted": 7, "delivered": 5, "off": 2}


async def test_of_several_processes_one_notes_it_and_one_tells_it(world: World) -> None:
    await world.say(2)
    assert await leave(world.log, world.database, []) == ["crm"]
    assert await leave(world.log, world.database, []) == []
    world.short.first = 5
    assert await come_back(world.log, world.database, "crm") == {"web": 1}
    assert await come_back(world.log, world.database, "crm") == {}
    assert await come_back(world.log, world.database, "another") == {}

    def again(connection: Connection) -> tuple[bool, dict[str, Baseline]]:
        return baselines.come_back(connection, "crm", {"web": 1}), baselines.read(connection)

    assert await world.database.run(again) == (False, {"crm": Baseline({"web": 0}, {"web": 1}, None)})


async def test_while_it_is_gone_it_is_owed_nothing_and_keeps_what_it_missed(world: World) -> None:
    crm = world.destinations.pop()
    await world.work()
    await world.say(3)
    world.short.first = 6
    world.destinations.append(crm)
    await world.work()
    world.destinations.pop()
    world.short.first = 7
    assert await world.balance() == {"accepted": 7, "delivered": 5, "missed": 2}
