"""Destinations with mappings: who triggers what, several for one event, each done once, in order per profile."""

import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from destinations.contract import (
    DELIVERED,
    Action,
    Definition,
    Env,
    Filtered,
    Outcome,
    Payload,
    Preset,
    Rejected,
    Retry,
    Settings,
    mapped,
)
from pipeline.delivery.attempt import attempt
from pipeline.delivery.done import decode_done, encode_done
from pipeline.delivery.lanes import Item, Partition
from pipeline.delivery.limits import Destination, World
from pipeline.delivery.mapping import mapping_faults, names_of, routing
from pipeline.functions.installed import Functions
from pipeline.store import schema
from pipeline.store.ledger import Claim
from schemas.config import DestinationFilter, FunctionConfig, MappingConfig
from schemas.errors import CredentialsRejected
from schemas.events import TYPES, Origin, decode_resolved
from tests.unit.delivery_world import Book, DeliveryWorld, NoSettings, resolved
from tests.unit.functions_world import write


class Contact(Payload):
    """Somebody."""

    id: str = mapped("anonymousId", "Who.")
    plan: str | None = mapped("properties.plan", "What they have.", default=None)


class Note(Payload):
    """What they did."""

    text: str = mapped({"@template": "{{event}}!"}, "What happened.")
    amount: float | None = mapped("properties.amount", "How much.", default=None)


class Crm:
    """A service with two calls, that answers as `script` says and notes what it was handed."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str]]] = []
        self.texts: list[str] = []
        self.delivered: list[tuple[str, str]] = []
        self.script: dict[str, list[Outcome | Exception]] = {}  # by call and message id: "note m1"

    async def answer(self, call: str, batch: Sequence[Payload]) -> Sequence[Outcome]:
        self.calls.append((call, [one.message_id for one in batch]))
        return [self.one(f"{call} {payload.message_id}") for payload in batch]

    def one(self, key: str) -> Outcome:
        left = self.script.get(key)
        outcome = left.pop(0) if left else DELIVERED
        if outcome is DELIVERED:
            call, _, name = key.partition(" ")
            self.delivered.append((call, name))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def definition(self, presets: Sequence[Preset] = (), *, atomic: bool = False) -> Definition[Settings, None]:
        async def upsert(_: None, batch: Sequence[Contact]) -> Sequence[Outcome]:
            return await self.answer("upsert", batch)

        async def note(_: None, batch: Sequence[Note]) -> Sequence[Outcome]:
            self.texts += [one.text for one in batch]
            return await self.answer("note", batch)

        async def check(_: None) -> None:
            return None

        @asynccontextmanager
        async def connect(settings: Settings, env: Env) -> AsyncIterator[None]:
            yield None

        return Definition(
            name="crm",
            description="For tests.",
            settings=NoSettings,
            connect=connect,
            check=check,
            actions=(
                Action(name="upsert", payload=Contact, types=TYPES, max_batch=10, deliver=upsert, atomic=atomic),
                Action(
                    name="note",
                    payload=Note,
                    types=("track",),
                    max_batch=10,
                    deliver=note,
                    subscribe="type = 'track'",
                    atomic=atomic,
                ),
            ),
            presets=presets,
        )


BOTH = (MappingConfig(action="upsert"), MappingConfig(action="note"))


@pytest.fixture
def crm() -> Crm:
    return Crm()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[DeliveryWorld]:
    world = DeliveryWorld(tmp_path)
    yield world
    world.close()


def mount(world: DeliveryWorld, crm: Crm, mappings: Sequence[MappingConfig] | None = BOTH, **rest: Any) -> Destination:
    presets, atomic = rest.pop("presets", ()), rest.pop("atomic", False)
    one = Destination(
        name="crm",
        definition=crm.definition(presets, atomic=atomic),
        settings=NoSettings(),
        mappings=mappings,
        **rest,
    )
    world.destinations.append(one)
    return one


# ── Delivered ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_event_makes_a_payload_for_each_mapping_that_it_triggers(world: DeliveryWorld, crm: Crm) -> None:
    mount(world, crm)
    await world.emit("m1", "ann")
    await world.emit("m2", "bob", type="identify")
    await world.run_until_idle()
    assert crm.calls == [("upsert", ["m1", "m2"]), ("note", ["m1"])]
    assert await world.book() == Book(delivered=2)


async def test_what_triggers_no_mapping_is_filtered(world: DeliveryWorld, crm: Crm) -> None:
    mount(world, crm, [MappingConfig(action="note", trigger="properties.plan = 'pro'")])
    await world.emit("m1", properties={"plan": "pro"})
    await world.emit("m2", properties={"plan": "free"})
    await world.run_until_idle()
    assert crm.calls == [("note", ["m1"])]
    assert await world.filtered() == [{"NO_MATCHING_MAPPING": [[1, 1]]}]
    assert await world.book() == Book(delivered=1, filtered=1)


async def test_without_mappings_the_presets_hold(world: DeliveryWorld, crm: Crm) -> None:
    presets = [Preset(name="Clicks", action="note", trigger="event = 'Clicked'", mapping={"text": "seen"})]
    mount(world, crm, None, presets=presets)
    await world.emit("m1")
    await world.emit("m2", event="Viewed")
    await world.run_until_idle()
    assert (crm.calls, await world.book()) == ([("note", ["m1"])], Book(delivered=1, filtered=1))


async def test_with_neither_each_event_goes_to_the_first_action_of_its_type(world: DeliveryWorld, crm: Crm) -> None:
    mount(world, crm, None)
    await world.emit("m1")
    await world.run_until_idle()
    assert crm.calls == [("upsert", ["m1"])]


async def test_payloads_of_one_event_for_one_action_have_ids_of_their_own(world: DeliveryWorld, crm: Crm) -> None:
    mount(world, crm, [MappingConfig(action="note"), MappingConfig(action="note", name="Again")])
    await world.emit("m1")
    await world.run_until_idle()
    assert crm.calls == [("note", ["m1"]), ("note", ["m1:Again"])]


async def test_a_mapping_takes_as_many_at_once_as_it_says(world: DeliveryWorld, crm: Crm) -> None:
    one = MappingConfig(action="note", mapping={"text": "x", "batch_size": 2})
    mount(world, crm, [one, MappingConfig(action="upsert", batch_size=1)])
    for number in range(3):
        await world.emit(f"m{number}", f"p{number}")
    await world.run_until_idle()
    assert sorted(len(ids) for call, ids in crm.calls if call == "note") == [1, 2]
    assert [len(ids) for call, ids in crm.calls if call == "upsert"] == [1, 1, 1]


async def test_a_profile_keeps_its_order_over_all_mappings(world: DeliveryWorld, crm: Crm) -> None:
    mount(world, crm, atomic=True)
    await world.emit("a1", "ann")
    await world.emit("a2", "ann")
    await world.run_until_idle()
    assert crm.calls == [("upsert", ["a1"]), ("note", ["a1"]), ("upsert", ["a2"]), ("note", ["a2"])]


async def test_the_call_that_most_profiles_wait_for_is_made_first(world: DeliveryWorld, crm: Crm) -> None:
    mount(world, crm, [MappingConfig(action="upsert", trigger="type = 'identify'"), MappingConfig(action="note")])
    await world.emit("a1", "ann", type="identify")
    await world.emit("b1", "bob")
    await world.emit("c1", "cid")
    await world.run_until_idle()
    assert crm.calls == [("note", ["b1", "c1"]), ("upsert", ["a1"])]


# ── Retried ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_retry_repeats_only_what_is_not_done(world: DeliveryWorld, crm: Crm) -> None:
    crm.script["note m1"] = [Retry("http 503"), Retry("http 503")]
    mount(world, crm)
    await world.emit("m1", "ann")
    await world.emit("m2", "ann")
    await world.run_until_idle()
    assert [call for call in crm.calls if "m1" in call[1]] == [
        ("upsert", ["m1"]),
        ("note", ["m1"]),
        ("note", ["m1"]),
        ("note", ["m1"]),
    ]
    assert [ids for _, ids in crm.calls[-2:]] == [["m2"], ["m2"]]
    assert await world.book() == Book(delivered=2)


async def test_what_is_done_is_remembered_over_a_crash(world: DeliveryWorld, crm: Crm) -> None:
    crm.script["note m1"] = [Retry("http 503", after=0.2)]
    mount(world, crm)
    await world.emit("m1")
    world.start()

    async def listed() -> bool:
        return bool(await world.listed())

    await world.until(listed)
    assert [one.reason for one in await world.listed()] == ["http 503: mapping note"]
    await world.crash()
    await world.run_until_idle()
    assert crm.calls == [("upsert", ["m1"]), ("note", ["m1"]), ("note", ["m1"])]
    assert await world.book() == Book(delivered=1)


async def test_rejected_credentials_lose_nothing_that_is_done(world: DeliveryWorld, crm: Crm) -> None:
    crm.script["note m1"] = [CredentialsRejected("http 401")]
    mount(world, crm)
    await world.emit("m1")
    await world.run_until_idle()
    assert crm.calls == [("upsert", ["m1"]), ("note", ["m1"]), ("note", ["m1"])]
    assert await world.book() == Book(delivered=1)


async def test_an_event_that_is_done_in_part_goes_again_for_the_reason_that_kept_it(
    world: DeliveryWorld, crm: Crm
) -> None:
    crm.script["note m1"] = [CredentialsRejected("http 401")]
    item = Item(Partition(Claim(0, 0, 0, {}, (), 0)).lane("ann", 0), 0, "web", "m1")
    item.resolved = decode_resolved(resolved("m1", "ann", Origin(0, 0)))
    made = await attempt(routing(mount(world, crm)), None, [item], 5.0)
    assert (made.outcomes, made.done) == ([Retry("http 401", after=0.0)], {item: {"upsert": DELIVERED}})


# ── Ended ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_dead_letter_names_the_mapping_and_the_others_are_done(world: DeliveryWorld, crm: Crm) -> None:
    crm.script["upsert m1"] = [Rejected("http 422")]
    mount(world, crm)
    await world.emit("m1")
    await world.run_until_idle()
    assert crm.calls == [("upsert", ["m1"]), ("note", ["m1"])]
    assert [one.reason for one in world.letters()] == ["http 422: mapping upsert"]
    assert await world.book() == Book(dead=1)
    rows = await world.rows(schema.exceptions)
    assert [decode_done(row.done) for row in rows] == [{"note": DELIVERED}]


async def test_a_rejection_is_remembered_while_another_mapping_is_retried(world: DeliveryWorld, crm: Crm) -> None:
    crm.script["upsert m1"] = [Rejected("http 422")]
    crm.script["note m1"] = [Retry("http 503"), Retry("http 503")]
    mount(world, crm)
    await world.emit("m1")
    await world.run_until_idle()
    assert [call for call, _ in crm.calls] == ["upsert", "note", "note", "note"]
    assert [one.reason for one in world.letters()] == ["http 422: mapping upsert"]


async def test_a_dead_letter_that_is_put_back_does_what_it_has_not_done(world: DeliveryWorld, crm: Crm) -> None:
    crm.script["upsert m1"] = [Rejected("http 422")]
    mount(world, crm)
    await world.emit("m1")
    await world.run_until_idle()
    table = schema.exceptions
    await world.database.run(lambda connection: connection.execute(sqlalchemy.update(table).values(state="retry")))
    crm.calls.clear()
    await world.run_until_idle()
    assert crm.calls == [("upsert", ["m1"])]


async def test_a_rejection_is_tried_again_when_an_event_that_grew_too_old_is_put_back(
    world: DeliveryWorld, crm: Crm
) -> None:
    world.limits = replace(world.limits, age=0.0)
    crm.script |= {"upsert m1": [Rejected("http 422")], "note m1": [Retry("http 503"), Retry("http 503")]}
    mount(world, crm)
    await world.emit("m1")
    await world.run_until_idle()
    assert [one.reason for one in world.letters()] == ["http 503: mapping note"]
    table = schema.exceptions
    await world.database.run(lambda connection: connection.execute(sqlalchemy.update(table).values(state="retry")))
    crm.calls.clear()
    crm.script.clear()
    await world.run_until_idle()
    assert crm.calls == [("upsert", ["m1"]), ("note", ["m1"])]


async def test_an_event_whose_mappings_are_no_more_is_what_it_has_become(world: DeliveryWorld, crm: Crm) -> None:
    crm.script["note m1"] = [Retry("http 503", after=0.2)]
    mount(world, crm)
    await world.emit("m1")
    world.start()

    async def listed() -> bool:
        return bool(await world.listed())

    await world.until(listed)
    await world.crash()
    world.destinations[:] = [replace(world.destinations[0], mappings=[MappingConfig(action="note", enabled=False)])]
    await world.run_until_idle()
    assert await world.book() == Book(delivered=1)


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_is_retried_each_mapping_gets_each_event_once_and_in_order(
    world: DeliveryWorld, crm: Crm, seed: int
) -> None:
    chance = random.Random(seed)
    names = {f"{profile}{number}": profile for number in range(6) for profile in ("ann", "bob", "eve")}
    for name in names:
        for call in ("upsert", "note"):
            crm.script[f"{call} {name}"] = [Retry("http 503")] * chance.choice((0, 0, 1, 2))
    mount(world, crm, atomic=seed % 2 == 0)
    for name, profile in names.items():
        await world.emit(name, profile)
    await world.run_until_idle()
    assert await world.book() == Book(delivered=len(names))
    for profile in ("ann", "bob", "eve"):
        wanted = [(call, name) for name in names if names[name] == profile for call in ("upsert", "note")]
        assert [one for one in crm.delivered if names[one[1]] == profile] == wanted


async def test_a_field_that_is_missing_is_a_dead_letter_without_a_call(world: DeliveryWorld, crm: Crm) -> None:
    mount(world, crm, [MappingConfig(action="note", mapping={"text": {"@path": "$.properties.gone"}})])
    await world.emit("m1")
    await world.run_until_idle()
    assert (crm.calls, [one.reason for one in world.letters()]) == (
        [],
        ["PAYLOAD_VALIDATION_FAILED: text: mapping note"],
    )


async def test_an_event_that_every_mapping_filters_is_filtered(world: DeliveryWorld, crm: Crm) -> None:
    crm.script |= {"upsert m1": [Filtered("NOT_MEANT")], "note m1": [Filtered("NOT_MEANT")]}
    crm.script |= {"upsert m2": [Filtered("NOT_MEANT")]}
    mount(world, crm)
    await world.emit("m1", "ann")
    await world.emit("m2", "bob")
    await world.run_until_idle()
    assert await world.book() == Book(delivered=1, filtered=1)


# ── With functions ────────────────────────────────────────────────────────────────────────────────────────────────

UPGRADE = """
    def on_track(event, settings):
        return event | {"event": event["event"].upper(), "properties": {"plan": "pro"}}
"""


async def test_triggers_see_an_event_before_a_function_and_payloads_after_it(tmp_path: Path, crm: Crm) -> None:
    functions = Functions(folder=tmp_path / "functions", logs=tmp_path / "logs")
    write(tmp_path / "functions", "upgrade", UPGRADE)
    world = DeliveryWorld(tmp_path, clock=World(chance=lambda: 1.0, functions=functions))
    mappings = [
        MappingConfig(action="note", trigger="properties.plan = 'free'"),
        MappingConfig(action="upsert", trigger="properties.plan = 'pro'"),
    ]
    mount(world, crm, mappings, function=FunctionConfig(name="upgrade"))
    await world.emit("m1", "ann", properties={"plan": "free"})
    await world.emit("m2", "bob", properties={"plan": "none"})
    await world.run_until_idle()
    assert crm.calls == [("note", ["m1"])]
    assert crm.texts == ["CLICKED!"]
    assert await world.book() == Book(delivered=1, filtered=1)
    world.close()


# ── Looked up ─────────────────────────────────────────────────────────────────────────────────────────────────────


def triggered(world: DeliveryWorld, value: bytes, one: Destination) -> list[str]:
    return [route.name for route in routing(one).triggered_by(decode_resolved(value))]


async def test_triggers_see_what_filters_leave(world: DeliveryWorld, crm: Crm) -> None:
    drops = DestinationFilter.model_validate(
        {"if": "all", "actions": [{"type": "DROP_PROPERTIES", "fields": {"properties": ["plan"]}}]}
    )
    mappings = [MappingConfig(action="note", trigger="properties.plan = 'pro'"), MappingConfig(action="upsert")]
    value = await world.emit("m1", properties={"plan": "pro"})
    assert triggered(world, value, mount(world, crm, mappings)) == ["note", "upsert"]
    assert triggered(world, value, mount(world, crm, mappings, filters=(drops,))) == ["upsert"]


async def test_mappings_that_are_switched_off_do_not_count(world: DeliveryWorld, crm: Crm) -> None:
    value = await world.emit("m1")
    mappings = [MappingConfig(action="note", enabled=False), MappingConfig(action="upsert")]
    assert triggered(world, value, mount(world, crm, mappings)) == ["upsert"]


def test_mappings_without_a_name_are_called_like_their_action() -> None:
    wanted = [MappingConfig(action="note"), MappingConfig(action="note", name="Mine"), MappingConfig(action="note")]
    assert names_of(wanted) == ["note", "Mine", "note-2"]


def test_done_comes_back_as_it_was() -> None:
    done: dict[str, Outcome] = {"a": DELIVERED, "b": Filtered("X"), "c": Rejected("http 422")}
    assert (decode_done(encode_done(done)), encode_done({}), dict(decode_done(""))) == (done, "", {})


@pytest.mark.parametrize(
    ("wanted", "faults"),
    [
        ({"action": "delete"}, ["action: unknown action; there are upsert, note"]),
        ({"action": "note", "trigger": "type ="}, ["trigger: expected a path, a value or a function, found the end (character 7)"]),
        ({"action": "note", "mapping": {}}, ["mapping: needs text: What happened."]),
        ({"action": "note", "mapping": {"text": "x", "txt": 1}}, ["mapping.txt: unknown field; note has text, amount"]),
        ({"action": "note", "mapping": {"text": {"@path": 1}}}, ["mapping.text.@path: must be a text or a directive; put it in quotes"]),
        ({"action": "note", "mapping": {"text": "x", "message_id": "y"}}, ["mapping.message_id: is the event's own; leave it out"]),
        ({"action": "note", "mapping": {"text": "x", "batch_size": 0, "enable_batching": False}}, []),
        ({"action": "note", "mapping": {"@path": "$.properties"}}, []),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_mapping_is_named_with_its_place(
    crm: Crm, wanted: dict[str, Any], faults: list[str]
) -> None:
    found = mapping_faults(crm.definition(), [MappingConfig.model_validate(wanted)])
    assert [f"{'.'.join(map(str, one.path[1:]))}: {one.what}" for one in found] == faults


def test_every_preset_that_is_shipped_is_whole() -> None:
    from destinations.registry import definitions

    for one in definitions().values():
        presets = [
            MappingConfig(name=p.name, action=p.action, trigger=p.trigger, mapping=p.mapping) for p in one.presets
        ]
        assert list(mapping_faults(one, presets)) == []
