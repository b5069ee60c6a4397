"""Mappings that a destination ships: which of them are on, and what they make of events."""

from collections.abc import Sequence
from typing import Any

import pytest

from destinations.contract import Preset
from destinations.registry import definition, definitions
from millrace.config.load import Loaded, load_text
from pipeline.delivery.limits import Destination
from pipeline.delivery.mapping import configured, mapping_faults, preset_faults, routing
from schemas.config import MappingConfig
from schemas.errors import ConfigError
from schemas.events import Origin, decode_resolved, materialize
from tests.unit.delivery_world import NoSettings, resolved
from tests.unit.test_delivery_mappings import Crm

SHIPPED = (
    Preset(name="Clicks", action="note", trigger="event = 'Clicked'"),
    Preset(name="People", action="upsert", trigger="type = 'identify'", on=False),
)
MINE = (MappingConfig(name="Mine", action="note"),)


@pytest.mark.parametrize(
    ("mappings", "presets", "on"),
    [
        (None, None, ["Clicks"]),
        (None, True, ["Clicks", "People"]),
        (None, ["People"], ["People"]),
        (None, False, None),
        (None, [], None),
        (MINE, None, ["Mine"]),
        (MINE, False, ["Mine"]),
        (MINE, True, ["Mine", "Clicks", "People"]),
        (MINE, ["People"], ["Mine", "People"]),
        ((), None, []),
        ((), ["Clicks"], ["Clicks"]),
    ],
)
def test_which_mappings_hold(
    mappings: Sequence[MappingConfig] | None, presets: bool | Sequence[str] | None, on: list[str] | None
) -> None:
    found = configured(Crm().definition(SHIPPED), mappings, presets)
    assert (None if found is None else [one.name for one in found]) == on


def test_where_none_is_on_by_default_each_event_goes_as_it_is() -> None:
    assert configured(Crm().definition(SHIPPED[1:]), None) is None
    assert configured(definition("webhook"), None) is None


def test_an_unknown_preset_is_a_fault_with_what_there_is() -> None:
    assert [(one.path, one.what) for one in preset_faults(Crm().definition(SHIPPED), ["Clicks", "Clisk"])] == [
        ((1,), "unknown preset; there are Clicks, People")
    ]
    assert [one.what for one in preset_faults(definition("function"), ["Clicks"])] == [
        "unknown preset; function ships none"
    ]
    assert list(preset_faults(definition("function"), True)) == []


def test_a_mapping_and_a_preset_that_is_on_cannot_share_a_name() -> None:
    crm = Crm().definition(SHIPPED)
    mine = [MappingConfig(name="People", action="note")]
    said = [
        [one.what for one in mapping_faults(crm, mine, presets)] for presets in (None, ["People"], True, ["Clicks"])
    ]
    fault = ["is also the name of a preset that is on; choose another"]
    assert said == [[], fault, fault, []]


@pytest.mark.parametrize("name", definitions())
def test_what_is_shipped_is_whole(name: str) -> None:
    one = definitions()[name]
    assert list(mapping_faults(one, configured(one, None, True) or ())) == []


# ── The webhook's ─────────────────────────────────────────────────────────────────────────────────────────────────


def made(presets: bool | Sequence[str], kind: str, **body: Any) -> dict[str, Any]:
    """By preset, what the webhook's receiver gets of an event."""
    one = Destination(name="crm", definition=definition("webhook"), settings=NoSettings(), presets=presets)
    found = decode_resolved(resolved("m1", "prf_1", Origin(0, 0), type=kind, **body))
    event = materialize(found)
    return {route.name: route.build(event).data for route in routing(one).triggered_by(found) if route.build}


def test_the_webhook_tells_of_people() -> None:
    assert made(True, "identify", traits={"plan": "free"}) == {
        "People": {
            "type": "person",
            "profileId": "prf_1",
            "anonymousId": "prf_1",
            "traits": {"plan": "free"},
            "at": "2023-11-14T22:13:20.000Z",
            "messageId": "m1",
        }
    }


def test_the_webhook_tells_of_orders() -> None:
    order = {"order_id": "o1", "total": 19.9, "currency": "EUR", "products": [{"sku": "s1"}]}
    assert made(["Orders"], "track", event="Order Completed", properties=order) == {
        "Orders": {
            "type": "order",
            "profileId": "prf_1",
            "anonymousId": "prf_1",
            "orderId": "o1",
            "total": 19.9,
            "currency": "EUR",
            "products": [{"sku": "s1"}],
            "at": "2023-11-14T22:13:20.000Z",
            "messageId": "m1",
        }
    }
    assert made(["People"], "track", event="Order Completed", properties=order) == {}


FILE = """\
destinations:
  crm:
    type: webhook
    presets: {presets}
    mappings: {mappings}
    settings: {{url: "https://crm.example.com/"}}
"""


def loaded(presets: str, mappings: str = "null") -> Loaded:
    models = {name: one.settings for name, one in definitions().items()}
    return load_text(FILE.format(presets=presets, mappings=mappings), "millrace.yaml", {}, lambda: models)


@pytest.mark.parametrize(
    ("written", "read"),
    [("true", True), ("false", False), ("[]", ()), ("[Orders]", ("Orders",)), ("null", None)],
)
def test_the_file_names_them_or_takes_all_or_none(written: str, read: bool | tuple[str, ...] | None) -> None:
    destinations = loaded(written).config.destinations
    assert destinations is not None
    assert destinations["crm"].presets == read


def test_what_is_wrong_in_the_file_is_told_with_its_line() -> None:
    with pytest.raises(ConfigError) as caught:
        loaded("[People, Order]", "[{action: send_data, name: People}]")
    assert list(caught.value.faults) == [
        "millrace.yaml:4 destinations.crm.presets[1]: unknown preset; there are People, Orders",
        "millrace.yaml:5 destinations.crm.mappings[0].name: is also the name of a preset that is on; choose another",
    ]
