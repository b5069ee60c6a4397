"""What the engine makes of filters and consent: reasons in the ledger, and a change of them in mid-stream."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from destinations.contract import DELIVERED
from schemas.config import DestinationFilter, FilterConfig
from tests.unit.delivery_world import Book, DeliveryWorld


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[DeliveryWorld]:
    one = DeliveryWorld(tmp_path)
    yield one
    if one.task is not None and not one.task.done():
        await one.crash()
    one.close()


def change(world: DeliveryWorld, **what: Any) -> None:
    world.destinations = [replace(one, **what) for one in world.destinations]


def only(where: str) -> FilterConfig:
    return FilterConfig(types=None, events=None, where=where)


async def test_each_reason_for_which_an_event_is_not_sent_is_in_the_books(world: DeliveryWorld) -> None:
    world.add(types=("track",), filter_=only("properties.total > 5"))
    change(world, consent=("ads",))
    no, yes = ({"consent": {"categoryPreferences": {"ads": said}}} for said in (False, True))
    await world.emit("m1", properties={"total": 6})
    await world.emit("m2", properties={"total": 6}, context=no)
    await world.emit("m3", properties={"total": 5}, context=yes)
    await world.emit("m4", properties={"total": "6"})
    await world.emit("m5", properties={"total": 6}, integrations={"All": False})
    await world.emit("m6", type="page")
    await world.run_until_idle()
    assert world.tried() == [("m1",)]
    assert await world.books() == {"web": Book(delivered=1, filtered=5)}
    assert await world.filtered() == [
        {
            "FILTERED_BY_END_USER_CONSENT": [[1, 1]],
            "FILTERED_BY_RULES": [[2, 2]],
            "FILTERED_BY_INTEGRATIONS_OBJECT": [[4, 1]],
            "UNSUPPORTED_EVENT_TYPE": [[5, 1]],
        }
    ]


async def test_a_filter_that_changes_in_mid_stream_counts_from_then_on(world: DeliveryWorld) -> None:
    world.add(filter_=only("properties.total > 5"))
    await world.emit("m1", properties={"total": 6})
    await world.emit("m2", properties={"total": 4})
    await world.run_until_idle()
    change(world, filter=only("properties.total < 5"))
    await world.emit("m3", properties={"total": 6})
    await world.emit("m4", properties={"total": 4})
    await world.run_until_idle()
    assert world.tried() == [("m1",), ("m4",)]
    assert await world.books() == {"web": Book(delivered=2, filtered=2)}
    assert await world.filtered() == [{"FILTERED_BY_RULES": [[1, 1]]}, {"FILTERED_BY_RULES": [[2, 1]]}]


async def test_fields_that_are_dropped_reach_no_destination(world: DeliveryWorld) -> None:
    got: list[Any] = []

    async def keep(batch: Any) -> Any:
        got.extend(one["properties"] for one in batch)
        return [DELIVERED] * len(batch)

    world.add(keep)
    change(
        world,
        filters=[
            DestinationFilter.model_validate(
                {"if": "event = 'Paid'", "actions": [{"type": "DROP_PROPERTIES", "fields": {"properties": ["card"]}}]}
            )
        ],
    )
    await world.emit("m1", event="Paid", properties={"card": "4242", "total": 6})
    await world.emit("m2", event="Seen", properties={"card": "club"})
    await world.emit("m3", event="Paid", properties={"card": "4242", "total": 7})
    await world.run_until_idle()
    assert got == [{"total": 6}, {"card": "club"}, {"total": 7}]
