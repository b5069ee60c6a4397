"""Modes of keeping records in step, and who is in an audience (source: delivery, sync modes and audience membership)."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from destinations.contract import (
    DELIVERED,
    Action,
    Definition,
    Env,
    Member,
    Outcome,
    Payload,
    Settings,
    Synced,
    filled_fields,
    mapped,
)
from destinations.described import described
from pipeline.delivery.limits import Destination
from pipeline.delivery.mapping import mapping_faults
from pipeline.delivery.membership import membership
from schemas.config import MappingConfig, SyncMode
from schemas.events import TYPES
from tests.unit.delivery_world import Book, DeliveryWorld, Listed, NoSettings

AUDIENCE = {"context": {"personas": {"computation_class": "audience", "computation_key": "vip"}}}
STEP = {"context": {"personas": {"computation_class": "journey_step", "computation_key": "vip"}}}
TRAIT = {"context": {"personas": {"computation_class": "trait", "computation_key": "vip"}}}
MODES: tuple[SyncMode, ...] = ("add", "update", "upsert", "delete", "mirror")


# ── The table ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("computed", [AUDIENCE, STEP])
@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("mode", [None, *MODES])
def test_an_audience_or_a_journey_says_itself_whatever_the_mode(
    computed: dict[str, Any], value: bool, mode: SyncMode | None
) -> None:
    assert membership({"type": "identify", "traits": {"vip": value}} | computed, mode) is value
    assert membership({"type": "track", "event": "new", "properties": {"vip": value}} | computed, mode) is value


@pytest.mark.parametrize(
    "event",
    [
        {"type": "identify", "traits": {"vip": "true"}} | AUDIENCE,
        {"type": "identify", "traits": {"vip": 1}} | AUDIENCE,
        {"type": "identify", "traits": {"other": True}} | AUDIENCE,
        {"type": "identify", "traits": {"vip": True}} | TRAIT,
        {"type": "identify", "traits": {"vip": True}},
        {"type": "identify", "traits": None} | AUDIENCE,
        {"type": "identify", "properties": {"vip": True}} | AUDIENCE,
        {"type": "track", "traits": {"vip": True}} | AUDIENCE,
        {"type": "group", "traits": {"vip": True}} | AUDIENCE,
        {"type": "track", "event": "new", "properties": {}} | AUDIENCE,
        {"type": "track", "event": "bought", "properties": {"vip": True}},
        {"type": "track", "event": None},
        {"type": "track", "event": ["new"]},
        {"type": "identify", "event": "new"},
        {"type": "track", "event": "bought", "context": {"personas": "vip"}},
        {"type": "track", "event": "New"},
    ],
)
@pytest.mark.parametrize("mode", [None, *MODES])
def test_what_does_not_tell_is_undetermined(event: dict[str, Any], mode: SyncMode | None) -> None:
    assert membership(event, mode) is None


@pytest.mark.parametrize(
    ("mode", "new", "updated", "deleted"),
    [
        (None, None, None, None),
        ("add", True, None, None),
        ("update", None, True, None),
        ("upsert", True, True, None),
        ("delete", None, None, False),
        ("mirror", True, True, False),
    ],
)
def test_a_row_of_a_warehouse_is_in_or_out_by_mode_and_name(
    mode: SyncMode | None, new: bool | None, updated: bool | None, deleted: bool | None
) -> None:
    said = [membership({"type": "track", "event": name}, mode) for name in ("new", "updated", "deleted")]
    assert said == [new, updated, deleted]


# ── In the engine ─────────────────────────────────────────────────────────────────────────────────────────────────


class Contact(Synced):
    """A record of a service."""

    id: str = mapped("properties.id", "Who.")


class Listing(Member):
    """Somebody on a list."""

    id: str = mapped("properties.id", "Who.")


class Audience:
    """A service with records and lists, that notes what it was handed."""

    def __init__(self) -> None:
        self.got: list[tuple[Any, ...]] = []

    def definition(self) -> Definition[Settings, None]:
        async def keep(_: None, batch: Sequence[Contact]) -> Sequence[Outcome]:
            self.got += [(one.message_id, one.id, one.sync_mode) for one in batch]
            return [DELIVERED] * len(batch)

        async def list_(_: None, batch: Sequence[Listing]) -> Sequence[Outcome]:
            self.got += [(one.message_id, one.id, one.sync_mode, one.member) for one in batch]
            return [DELIVERED] * len(batch)

        async def check(_: None) -> None:
            return None

        @asynccontextmanager
        async def connect(settings: Settings, env: Env) -> AsyncIterator[None]:
            yield None

        return Definition(
            name="audience",
            description="For tests.",
            settings=NoSettings,
            connect=connect,
            check=check,
            actions=(
                Action(
                    name="keep_contact",
                    payload=Contact,
                    types=TYPES,
                    max_batch=10,
                    deliver=keep,
                    sync_modes=("upsert", "add", "update"),
                ),
                Action(
                    name="list_person",
                    payload=Listing,
                    types=TYPES,
                    max_batch=10,
                    deliver=list_,
                    sync_modes=("mirror",),
                ),
            ),
        )


def mounted(world: DeliveryWorld, audience: Audience, *mappings: dict[str, Any]) -> None:
    world.destinations.append(
        Destination(
            name="audience",
            definition=audience.definition(),
            settings=NoSettings(),
            mappings=[MappingConfig.model_validate(one) for one in mappings] or None,
        )
    )


async def test_payloads_know_the_mode_of_their_mapping(tmp_path: Path) -> None:
    world, audience = DeliveryWorld(tmp_path), Audience()
    mounted(
        world,
        audience,
        {"action": "keep_contact", "name": "first"},
        {"action": "keep_contact", "name": "said", "sync_mode": "add"},
        {
            "action": "keep_contact",
            "name": "carried",
            "mapping": {"id": "x", "__segment_internal_sync_mode": "update"},
        },
    )
    await world.emit("m1", properties={"id": "u1"})
    await world.run_until_idle()
    assert sorted(audience.got) == [
        ("m1", "u1", "upsert"),
        ("m1:carried", "x", "update"),
        ("m1:said", "u1", "add"),
    ]
    world.close()


async def test_without_mappings_the_first_mode_holds(tmp_path: Path) -> None:
    world, audience = DeliveryWorld(tmp_path), Audience()
    mounted(world, audience)
    await world.emit("m1", properties={"id": "u1"})
    await world.run_until_idle()
    assert audience.got == [("m1", "u1", "upsert")]
    world.close()


async def test_an_event_that_does_not_tell_who_is_in_is_a_dead_letter_and_the_others_go_on(tmp_path: Path) -> None:
    world, audience = DeliveryWorld(tmp_path), Audience()
    mounted(world, audience, {"action": "list_person"})
    for number, name in enumerate(("new", "deleted", "bought", "updated")):
        await world.emit(f"m{number}", f"p{number}", properties={"id": f"u{number}"}, event=name)
    await world.run_until_idle()
    assert sorted(audience.got) == [
        ("m0", "u0", "mirror", True),
        ("m1", "u1", "mirror", False),
        ("m3", "u3", "mirror", True),
    ]
    assert await world.listed("audience") == [
        Listed("m2", "dead", 1, "INVALID_AUDIENCE_MEMBERSHIP: mapping list_person")
    ]
    assert await world.book("audience") == Book(delivered=3, dead=1)
    world.close()


@pytest.mark.parametrize(
    ("mapping", "fault"),
    [
        ({"action": "keep_contact", "sync_mode": "mirror"}, "is no mode of keep_contact; choose one of upsert, add, update"),
        ({"action": "list_person", "mapping": {"id": "x", "__segment_internal_sync_mode": "add"}},
         "is no mode of list_person; choose one of mirror"),
        ({"action": "keep_contact", "mapping": {"id": "x", "sync_mode": "add"}}, "is the event's own; leave it out"),
        ({"action": "list_person", "mapping": {"id": "x", "member": True}}, "is the event's own; leave it out"),
    ],
)  # fmt: skip
def test_a_mode_that_an_action_does_not_know_is_a_fault(mapping: dict[str, Any], fault: str) -> None:
    found = mapping_faults(Audience().definition(), [MappingConfig.model_validate(mapping)])
    assert [one.what for one in found] == [fault]


def test_a_mode_where_there_is_none_is_a_fault() -> None:
    from destinations.registry import definition

    found = mapping_faults(definition("webhook"), [MappingConfig(action="send_data", sync_mode="add")])
    assert [one.what for one in found] == ["is no mode of send_data; leave it out"]


def test_what_the_engine_fills_is_no_field_for_a_mapping() -> None:
    assert [sorted(filled_fields(one)) for one in (Payload, Contact, Listing)] == [
        ["message_id"],
        ["message_id", "sync_mode"],
        ["member", "message_id", "sync_mode"],
    ]
    actions = described(Audience().definition())["actions"]
    assert [[field["name"] for field in one["fields"]] for one in actions] == [["id"], ["id"]]
    assert [one["sync_modes"] for one in actions] == [["upsert", "add", "update"], ["mirror"]]
