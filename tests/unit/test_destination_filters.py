"""Destination filters: the reference's actions over events, in its order."""

from collections.abc import Mapping
from typing import Any

import pytest

from destinations.contract import Filtered, Rejected
from pipeline.delivery.insert import shaping
from pipeline.language.rules import Rules, Withheld, compile_rules
from schemas.config import DestinationFilter
from schemas.events import Event, Origin, Resolved, materialize

EVENT: Mapping[str, Any] = {
    "type": "track",
    "messageId": "m1",
    "userId": "u1",
    "properties": {"a": 1, "b": {"c": 2, "d": 3}, "items": [{"sku": 1, "price": 2}, {"price": 3}, "loose"]},
    "context": {"ip": "203.0.113.7", "traits": {"email": "a@b.c", "plan": "x"}},
}


def filters(*rules: tuple[str, dict[str, Any]]) -> Rules:
    return compile_rules(
        None, [DestinationFilter.model_validate({"if": when, "actions": [action]}) for when, action in rules]
    )


def shaped(*rules: tuple[str, dict[str, Any]], event: Mapping[str, Any] = EVENT) -> Mapping[str, Any]:
    shape = filters(*rules).shape
    assert shape is not None
    return shape(event)


def drop(**fields: list[str]) -> dict[str, Any]:
    return {"type": "DROP_PROPERTIES", "fields": {name.replace("__", "."): keys for name, keys in fields.items()}}


def allow(**fields: list[str]) -> dict[str, Any]:
    return drop(**fields) | {"type": "ALLOW_PROPERTIES"}


def test_a_drop_keeps_matching_events_away_and_only_those() -> None:
    passes = filters(("properties.a = 1", {"type": "DROP"})).passes
    assert passes is not None
    assert not passes(EVENT)
    assert passes({"properties": {"a": 2}})


@pytest.mark.parametrize(
    "action",
    [
        {"type": "DROP"},
        {"type": "SAMPLE", "percent": 1},
        {"type": "DROP_PROPERTIES", "fields": {"properties": ["a"]}},
        {"type": "ALLOW_PROPERTIES", "fields": {"properties": ["a"]}},
    ],
)
def test_an_event_for_which_a_condition_cannot_be_evaluated_does_not_leave(action: dict[str, Any]) -> None:
    passes, shape = filters(("properties.a > 1", action))
    assert passes is not None
    assert passes({"properties": {"a": 1}})
    assert passes({"properties": {}})
    assert not passes({"properties": {"a": "1"}})
    if shape is not None:
        with pytest.raises(Withheld):
            shape({"properties": {"a": "1"}})


def test_fields_taken_from_every_event_are_no_question_of_which() -> None:
    assert filters(("all", drop(properties=["a"]))).passes is None


def test_a_filter_that_is_not_enabled_counts_for_nothing() -> None:
    off = DestinationFilter.model_validate({"if": "all", "enabled": False, "actions": [{"type": "DROP"}]})
    assert compile_rules(None, [off]) == Rules(None, None)


@pytest.mark.parametrize("share", [0, 0.25, 1])
def test_a_sample_keeps_its_share_and_the_same_events_every_time(share: float) -> None:
    passes = filters(("type = 'track'", {"type": "SAMPLE", "percent": share})).passes
    assert passes is not None
    events = [{"type": "track", "messageId": f"m{number}"} for number in range(2_000)]
    kept = [passes(event) for event in events]
    assert abs(sum(kept) / 2_000 - share) < 0.03
    assert [passes(event) for event in events] == kept
    assert passes({"type": "page", "messageId": "m1"})


def test_a_sample_by_a_path_keeps_or_drops_all_events_with_one_value_there() -> None:
    passes = filters(("all", {"type": "SAMPLE", "percent": 0.5, "path": "context.group"})).passes
    assert passes is not None
    by_value = {
        value: {passes({"messageId": f"m{n}", "context": {"group": value}}) for n in range(50)} for value in "abcdef"
    }
    assert all(len(fates) == 1 for fates in by_value.values())
    assert {fate for fates in by_value.values() for fate in fates} == {True, False}


def test_dropped_fields_are_gone_wherever_they_are_nested_and_the_event_is_not_changed() -> None:
    made = shaped(("all", drop(properties=["a", "b.c", "items.price"], context__traits=["email"])))
    assert made == {
        **EVENT,
        "properties": {"b": {"d": 3}, "items": [{"sku": 1}, {}, "loose"]},
        "context": {"ip": "203.0.113.7", "traits": {"plan": "x"}},
    }
    assert EVENT["properties"]["a"] == 1


def test_an_empty_container_is_the_event_itself() -> None:
    action = {"type": "DROP_PROPERTIES", "fields": {"": ["properties", "userId"]}}
    assert shaped(("all", action)) == {name: EVENT[name] for name in ("type", "messageId", "context")}


def test_allowed_fields_are_the_only_ones_of_the_containers_named() -> None:
    made = shaped(("all", allow(properties=["a", "b.d", "items.sku"])))
    assert made == {**EVENT, "properties": {"a": 1, "b": {"d": 3}, "items": [{"sku": 1}, {}, "loose"]}}


def test_a_dot_or_a_backslash_in_a_name_is_written_behind_a_backslash() -> None:
    event = {"properties": {"a.b": 1, "a": {"b": 2}, "c\\": 3}, "x.y": {"z": 4}}
    fields = {"properties": [r"a\.b", r"c\\"], r"x\.y": ["z"]}
    assert shaped(("all", {"type": "DROP_PROPERTIES", "fields": fields}), event=event) == {
        "properties": {"a": {"b": 2}},
        "x.y": {},
    }


def test_a_container_that_is_missing_or_no_object_stays_as_it_is() -> None:
    event = {"type": "page", "properties": "text"}
    assert shaped(("all", drop(properties=["a"], traits=["b"])), event=event) == event


def test_fields_are_dropped_before_others_are_allowed_whatever_the_order() -> None:
    rules = [("all", allow(properties=["a", "b"])), ("properties.items != null", drop(properties=["a", "items"]))]
    assert shaped(*rules) == shaped(*reversed(rules)) == {**EVENT, "properties": {"b": {"c": 2, "d": 3}}}


def test_a_field_that_is_named_whole_and_in_part_is_meant_whole() -> None:
    assert shaped(("all", drop(properties=["b.c", "b"])))["properties"] == {
        "a": 1,
        "items": EVENT["properties"]["items"],
    }


def test_a_condition_that_does_not_hold_changes_nothing() -> None:
    assert shaped(("type = 'page'", drop(properties=["a"]))) is EVENT


async def test_the_fields_are_gone_from_what_is_delivered_those_of_the_server_too() -> None:
    insert = shaping(filters(("all", drop(properties=["a"], context=["ip"]))).shape, None)
    assert insert is not None
    body = b'{"event":"Bought","properties":{"a":1,"b":2},"userId":"u1"}'
    one = Resolved(
        "p1", Origin(0, 7), (), Event("web", "track", "m1", None, "u1", 5, None, 6, "client", "203.0.113.7", None, body)
    )
    (made,) = await insert([one])
    assert isinstance(made, Resolved)
    expected = materialize(one)
    del expected["properties"]["a"], expected["context"]["ip"]
    assert materialize(made) == expected


async def test_what_the_client_sent_amiss_is_no_fault_of_a_filter() -> None:
    insert = shaping(filters(("all", drop(properties=["a"]))).shape, None)
    assert insert is not None
    body = b'{"event":"Bought","integrations":"all","properties":{"a":1,"b":2},"userId":"u1"}'
    one = Resolved(
        "p1", Origin(0, 7), (), Event("web", "track", "m1", None, "u1", 5, None, 6, "client", None, None, body)
    )
    (made,) = await insert([one])
    assert isinstance(made, Resolved)
    assert materialize(made) == materialize(one) | {"properties": {"b": 2}}


async def test_an_event_whose_fields_a_filter_changed_meanwhile_cannot_tell_is_filtered() -> None:
    insert = shaping(filters(("event > 1", drop(properties=["a"]))).shape, None)
    assert insert is not None
    body = b'{"event":"Bought","userId":"u1"}'
    one = Resolved(
        "p1", Origin(0, 7), (), Event("web", "track", "m1", None, "u1", 5, None, 6, "client", None, None, body)
    )
    assert await insert([one]) == [Filtered("FILTERED_BY_RULES")]


async def test_an_event_that_is_none_without_its_fields_is_not_delivered_and_says_why() -> None:
    insert = shaping(filters(("all", {"type": "DROP_PROPERTIES", "fields": {"": ["userId"]}})).shape, None)
    assert insert is not None
    one = Resolved(
        "p1", Origin(0, 7), (), Event("web", "page", "m1", None, "u1", 5, None, 6, "client", None, None, b"{}")
    )
    assert await insert([one]) == [Rejected("FILTERED_FIELDS_NEEDED: neither userId nor anonymousId")]
