"""The books of a destination that comes after retention has removed records."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection, delete, insert

from pipeline.log import Batch, Subscription
from pipeline.log.contract import Start
from pipeline.query.balance import balance, begin
from pipeline.store import schema
from schemas.topics import EVENTS, RESOLVED
from tests.unit.delivery_world import DeliveryWorld, MemoryLog


class ShortLog(MemoryLog):
    """Its first records are gone."""

    first = 0

    async def bounds(self, topic: str) -> Mapping[int, tuple[int, int]]:
        return {number: (self.first, max(self.first, len(all_))) for number, all_ in enumerate(self.topics[topic])}

    @asynccontextmanager
    async def subscribe(
        self, topic: str, *, group: str, start: Start | None = None, max_records: int = 2_000
    ) -> AsyncIterator[Subscription]:
        async def there(partitions: Sequence[int]) -> Mapping[int, int]:
            begun = await start(partitions) if start else {}
            return {one: max(self.first, begun.get(one, 0)) for one in partitions}

        async with super().subscribe(topic, group=group, start=there, max_records=max_records) as member:
            yield member

    async def read(self, topic: str, partition: int, offset: int, *, max_records: int = 1_000) -> Batch | None:
        return await super().read(topic, partition, max(self.first, offset), max_records=max_records)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[DeliveryWorld]:
    """Ten events were accepted; of the log's records the first four are gone."""
    made = DeliveryWorld(tmp_path)
    log = ShortLog(1, made.did)
    made.log = log
    for number in range(10):
        await made.emit(f"m{number}")
    log.first = 4
    await accept(made, 10)
    yield made
    made.close()


async def accept(world: DeliveryWorld, count: int) -> None:
    def write(connection: Connection) -> None:
        for table in (schema.intake, schema.positions):
            connection.execute(delete(table))
        counts = {"accepted": count, "duplicates": 0, "refused": 0, "unresolved": 0}
        connection.execute(insert(schema.intake).values(source="web", partition=0, **counts))
        connection.execute(insert(schema.positions).values(partition=0, applied=count, emitted=count, updated_at=0))

    await world.database.run(write)


async def books(world: DeliveryWorld) -> tuple[int, int, int | None, int | None]:
    found = await balance(world.log, world.database, ["crm"])
    row = found.destinations["crm"]["web"]
    return row.accepted, row.delivered, row.pending, found.off


async def test_they_balance_before_it_begins_while_it_works_and_afterwards(world: DeliveryWorld) -> None:
    assert (world.log.topics[EVENTS], len(world.log.topics[RESOLVED][0])) == ([[]], 10)
    world.add()
    assert await books(world) == (6, 0, 6, 0)
    await world.run_until_idle()
    assert await books(world) == (6, 6, 0, 0)
    await world.emit("m10")
    await accept(world, 11)
    assert await books(world) == (7, 6, 1, 0)
    await world.run_until_idle()
    assert await books(world) == (7, 7, 0, 0)


async def test_what_is_lost_after_it_began_is_an_imbalance(world: DeliveryWorld) -> None:
    world.add()
    await begin(world.log, world.database, "crm")
    assert isinstance(world.log, ShortLog)
    world.log.first = 6
    await world.run_until_idle()
    assert await books(world) == (6, 4, 0, 2)


async def test_one_that_was_removed_is_owed_nothing(world: DeliveryWorld) -> None:
    world.add()
    await world.run_until_idle()
    await world.emit("m10")
    await accept(world, 11)
    assert isinstance(world.log, ShortLog)
    for first, pending in ((4, 1), (11, 0)):
        world.log.first = first
        found = await balance(world.log, world.database, ["another"])
        row = found.destinations["crm"]["web"]
        assert (row.accepted, row.delivered, row.pending, row.off, found.off) == (6 + pending, 6, pending, 0, 0)
    assert await books(world) == (7, 6, 0, 1)


async def test_it_is_counted_once(world: DeliveryWorld) -> None:
    world.add()
    await begin(world.log, world.database, "crm")
    await accept(world, 20)
    await begin(world.log, world.database, "crm")
    assert (await books(world))[0] == 16
