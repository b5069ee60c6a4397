"""Functions within delivery: inserts between filter and mapping, and functions that are whole destinations."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from destinations.contract import DELIVERED, Filtered, Outcome, RawEvent, Retry
from destinations.function import FunctionSettings
from destinations.registry import definition
from pipeline.delivery.engine import Destination, World
from pipeline.functions.installed import Functions
from schemas.config import FunctionConfig
from tests.unit.delivery_world import Book, DeliveryWorld, Listed, Script, by_id
from tests.unit.functions_world import write

SHOP = """
    import os
    from millrace.functions import Drop, Invalid, Retry

    def on_track(event, settings):
        match event["event"]:
            case "Drop": raise Drop("with words of the author's")
            case "Invalid": raise Invalid("no sku")
            case "Retry": raise Retry("later", after=0)
            case "Die": os._exit(1)
            case "Once":
                if not once: once.append(1); raise Retry("first", after=0)
        return event | {"event": event["event"].upper()}

    once = []
"""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[DeliveryWorld]:
    functions = Functions(folder=tmp_path / "functions", logs=tmp_path / "logs")
    one = DeliveryWorld(tmp_path, clock=World(chance=lambda: 1.0, functions=functions))
    write(tmp_path / "functions", "shop", SHOP)
    yield one
    if one.task is not None and not one.task.done():
        await one.crash()
    one.close()


def inserting(world: DeliveryWorld, script: Script) -> None:
    """A destination with the function between it and its events."""
    world.destinations[:] = [replace(world.add(script), function=FunctionConfig(name="shop"))]


def noting(seen: list[Any]) -> Script:
    async def script(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        seen.extend((one["messageId"], one["event"]) for one in batch)
        return [DELIVERED] * len(batch)

    return script


async def test_an_insert_changes_drops_and_refuses_between_filter_and_mapping(world: DeliveryWorld) -> None:
    seen: list[Any] = []
    inserting(world, noting(seen))
    for number, name in enumerate(["Ordered", "Drop", "Invalid", "Die", "Paid"]):
        await world.emit(f"m{number}", f"p{number}", event=name)
    await world.emit("m5", "p5", type="page")
    await world.run_until_idle()
    assert seen == [("m0", "ORDERED"), ("m4", "PAID")]
    assert await world.books() == {"web": Book(delivered=2, filtered=2, dead=2)}
    assert await world.filtered() == [{"FILTERED_AT_INSERT_FUNCTION": [[1, 1]], "UNSUPPORTED_EVENT_TYPE": [[5, 1]]}]
    assert await world.listed() == [
        Listed("m2", "dead", 1, "MESSAGE_REJECTED: no sku"),
        Listed("m3", "dead", 1, "FUNCTION_CRASHED"),
    ]
    assert b"ORDERED" not in b"".join(one.value or b"" for one in world.letters())


async def test_what_an_insert_wants_later_holds_back_its_profile_and_nobody_else(world: DeliveryWorld) -> None:
    seen: list[Any] = []
    inserting(world, noting(seen))
    await world.emit("m1", "ann", event="Once")
    await world.emit("m2", "ann", event="After")
    await world.emit("m3", "bob", event="Other")
    await world.run_until_idle()
    assert seen.index(("m1", "ONCE")) < seen.index(("m2", "AFTER"))
    assert sorted(seen) == [("m1", "ONCE"), ("m2", "AFTER"), ("m3", "OTHER")]
    assert await world.books() == {"web": Book(delivered=3)}


async def test_a_retry_asks_the_insert_again_with_the_event_as_it_was(world: DeliveryWorld) -> None:
    inserting(world, by_id({"m1": [Retry("http 503", 0)]}))
    await world.emit("m1", event="Ordered")
    await world.run_until_idle()
    assert await world.books() == {"web": Book(delivered=1)}
    assert await world.listed() in ([], [Listed("m1", "delivered", 2, "")])


async def test_a_listed_event_that_turns_out_to_be_filtered_leaves_the_books_balanced(world: DeliveryWorld) -> None:
    inserting(world, by_id({"m1": [Retry("http 503", 0.2), Filtered("NOT_WANTED")]}))
    world.limits = replace(world.limits, patience=0.01)
    await world.emit("m1", event="Ordered")
    await world.run_until_idle()
    assert await world.books() == {"web": Book(filtered=1)}
    assert await world.listed() == [Listed("m1", "filtered", 2, "NOT_WANTED")]


async def test_a_function_is_a_destination_with_an_outcome_for_each_event(world: DeliveryWorld) -> None:
    write(
        world.folder / "functions",
        "notify",
        """
        from millrace.functions import Invalid
        def on_track(event, settings):
            if event["event"] == "Bad": raise Invalid(settings["why"])
            print(event["messageId"])
        """,
    )
    settings = FunctionSettings(name="notify", settings={"why": "because"})
    world.destinations[:] = [Destination(name="crm", definition=definition("function"), settings=settings)]
    await world.emit("m1", "ann", event="Ordered")
    await world.emit("m2", "bob", event="Bad")
    await world.emit("m3", "cat", type="page")
    await world.run_until_idle()
    assert await world.books() == {"web": Book(delivered=1, filtered=1, dead=1)}
    assert await world.listed() == [Listed("m2", "dead", 1, "MESSAGE_REJECTED: because")]
    assert (world.folder / "logs" / "notify.log").read_text() == "m1\n"


async def test_a_function_that_cannot_be_loaded_is_tried_again_and_says_why(world: DeliveryWorld) -> None:
    write(world.folder / "functions", "shop", "def on_track(:\n")
    inserting(world, noting([]))
    await world.emit("m1", event="Ordered")
    world.start()
    async with world.database.changed:
        await world.database.changed.wait_for(lambda: True)
    while not (states := await world.states()):
        async with world.database.changed:
            await world.database.changed.wait()
    assert states == {"crm": ("failed", "BAD_DEPLOY: SyntaxError at shop.py:1: invalid syntax; mend the file")}
