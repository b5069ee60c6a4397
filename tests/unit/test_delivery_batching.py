"""Which payloads go together in one call: by count, by bytes, by what they have in common, in order per profile."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from destinations.contract import (
    DELIVERED,
    Action,
    DefaultLimits,
    Definition,
    Env,
    Outcome,
    Payload,
    Settings,
    mapped,
)
from pipeline.delivery.attempt import attempt
from pipeline.delivery.batching import Batching, batching
from pipeline.delivery.lanes import Item, Partition
from pipeline.delivery.limits import Destination, Limits, bounded, rate_of
from pipeline.delivery.mapping import mapping_faults, routing
from pipeline.store.ledger import Claim
from schemas.config import DestinationLimits, MappingConfig
from schemas.events import TYPES, Origin, decode_resolved
from schemas.exact_json import json_dumps
from tests.unit.delivery_world import NoSettings, resolved


class Line(Payload):
    """A line of a list."""

    text: str = mapped("properties.text", "What it says.")
    list: Any = mapped("properties.list", "Where it goes.", default=None)


Calls = list[list[Any]]


def board(
    calls: Calls,
    *,
    whole: bool = False,
    atomic: bool = True,
    max_batch: int = 100,
    max_bytes: int | None = None,
    limits: DefaultLimits | None = None,
) -> Definition[Settings, None]:
    """A service that notes what came together."""

    async def add(_: None, batch: Sequence[Any]) -> Sequence[Outcome]:
        calls.append([one["messageId"] if whole else one.text for one in batch])
        return [DELIVERED] * len(batch)

    async def check(_: None) -> None:
        return None

    @asynccontextmanager
    async def connect(settings: Settings, env: Env) -> AsyncIterator[None]:
        yield None

    action: Action[None, Any] = Action(
        name="add_lines",
        payload=None if whole else Line,
        types=TYPES,
        max_batch=max_batch,
        max_bytes=max_bytes,
        deliver=add,
        atomic=atomic,
    )
    return Definition(
        name="board",
        description="For tests.",
        settings=NoSettings,
        connect=connect,
        check=check,
        actions=(action,),
        limits=limits or DefaultLimits(),
    )


def mounted(
    definition: Definition[Settings, None], limits: Mapping[str, Any] | None = None, **mapping: Any
) -> Destination:
    one = MappingConfig.model_validate({"action": "add_lines"} | mapping)
    return Destination(
        name="board",
        definition=definition,
        settings=NoSettings(),
        mappings=[one],
        limits=None if limits is None else DestinationLimits.model_validate(limits),
    )


async def handed_over(destination: Destination, *properties: dict[str, Any], profile: str = "") -> None:
    """Gives a destination one chunk of events, of profiles of their own or all of one."""
    partition = Partition(Claim(0, 0, 0, {}, (), 0))
    items = []
    for number, one in enumerate(properties):
        item = Item(partition.lane(profile, number), number, "web", f"m{number}")
        item.resolved = decode_resolved(
            resolved(f"m{number}", profile or f"p{number}", Origin(0, number), properties=one)
        )
        items.append(item)
    made = await attempt(routing(destination), None, items, 5.0)
    assert made.outcomes == [DELIVERED] * len(items)


def texts(*names: str, **rest: Any) -> list[dict[str, Any]]:
    return [{"text": name} | rest for name in names]


# ── By count ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("mapping", "limits", "sizes"),
    [
        ({}, None, [4, 1]),
        ({"batch_size": 2}, None, [2, 2, 1]),
        ({"batch_size": 9}, None, [4, 1]),  # never more than the action takes
        ({}, {"batch_size": 3}, [3, 2]),
        ({"batch_size": 2}, {"batch_size": 3}, [2, 2, 1]),
        ({"mapping": {"text": "x", "batch_size": 2}}, None, [2, 2, 1]),
        ({"mapping": {"text": "x", "batch_size": 0}}, {"batch_size": 3}, [3, 2]),
        ({"mapping": {"text": "x", "enable_batching": True}}, None, [4, 1]),
        ({"mapping": {"text": "x", "enable_batching": False, "batch_size": 3}}, None, [1, 1, 1, 1, 1]),
    ],
)
async def test_the_mapping_then_the_destination_then_the_action_says_how_many_go_together(
    mapping: dict[str, Any], limits: dict[str, Any] | None, sizes: list[int]
) -> None:
    calls: Calls = []
    await handed_over(mounted(board(calls, max_batch=4), limits, **mapping), *texts(*"abcde"))
    assert [len(call) for call in calls] == sizes


async def test_the_destination_says_so_for_whole_events_too() -> None:
    calls: Calls = []
    one = replace(mounted(board(calls, whole=True), {"batch_size": 2}), mappings=None)
    await handed_over(one, *texts(*"abc"))
    assert calls == [["m0", "m1"], ["m2"]]


# ── By bytes ──────────────────────────────────────────────────────────────────────────────────────────────────────


def size_of(text: str) -> int:
    """Of a payload in its array: the comma counts."""
    return len(json_dumps(Line(message_id="m0", text=text).model_dump(mode="json"))) + 1


async def test_a_call_holds_as_many_bytes_as_allowed_and_a_larger_payload_goes_alone() -> None:
    calls: Calls = []
    large = "L" * 500
    await handed_over(mounted(board(calls), batch_bytes=3 * size_of("a")), *texts("a", "b", "c", "d", large, "e", "f"))
    assert calls == [["a", "b", "c"], ["d"], [large], ["e", "f"]]


async def test_bytes_are_counted_in_utf_8() -> None:
    calls: Calls = []
    await handed_over(mounted(board(calls), batch_bytes=2 * size_of("aa")), *texts("aa", "aa", "é", "éé", "aa"))
    assert calls == [["aa", "aa"], ["é"], ["éé"], ["aa"]]


async def test_what_the_action_says_of_bytes_can_be_lowered_and_not_raised() -> None:
    calls: Calls = []
    two, three = 2 * size_of("a"), 3 * size_of("a")
    for max_bytes, said in ((two, three), (three, two), (two, None)):
        await handed_over(mounted(board(calls, max_bytes=max_bytes), batch_bytes=said), *texts(*"abc"))
    await handed_over(mounted(board(calls), {"batch_bytes": two}), *texts(*"abc"))
    await handed_over(
        mounted(board(calls), mapping={"text": {"@path": "$.properties.text"}, "batch_bytes": two}), *texts(*"abc")
    )
    assert calls == [["a", "b"], ["c"]] * 5


async def test_whole_events_are_counted_as_the_service_would_see_them() -> None:
    calls: Calls = []
    one = mounted(board(calls, whole=True), batch_bytes=1)
    await handed_over(one, *texts("a", "b"))
    assert calls == [["m0"], ["m1"]]


def test_a_payload_that_cannot_be_json_says_so_without_its_value() -> None:
    for ask in (Batching(10, max_bytes=100).size, Batching(10, keys=[["text"]]).kind):
        with pytest.raises(ValueError, match=r"^PAYLOAD_VALIDATION_FAILED: no JSON$"):
            ask({"text": "half of a pair \ud800"})


# ── By what they have in common ───────────────────────────────────────────────────────────────────────────────────


async def test_only_payloads_that_are_equal_at_the_keys_go_together() -> None:
    calls: Calls = []
    one = mounted(board(calls), batch_keys=["list.id"])
    lists = [{"id": 1}, {"id": 2}, {"id": 1, "other": 0}, {"id": "1"}, None, {}, {"id": 2}]
    await handed_over(one, *({"text": str(number), "list": there} for number, there in enumerate(lists)))
    assert calls == [["0", "2"], ["1", "6"], ["3"], ["4", "5"]]


async def test_keys_may_stand_among_the_fields_as_in_the_reference() -> None:
    calls: Calls = []
    fields = {name: {"@path": f"$.properties.{name}"} for name in ("text", "list")}
    one = mounted(board(calls), mapping=fields | {"batch_keys": ["list"]})
    await handed_over(one, *texts("a", list="x"), *texts("b", list="y"), *texts("c", list="x"))
    assert calls == [["a", "c"], ["b"]]


async def test_a_profile_keeps_its_order_whatever_goes_together() -> None:
    calls: Calls = []
    one = mounted(board(calls), batch_keys=["list"])
    await handed_over(
        one, *texts("a", list="x"), *texts("b", list="y"), *texts("c", list="x"), *texts("d", list="x"), profile="ann"
    )
    assert calls == [["a"], ["b"], ["c", "d"]]


@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from("xyz")), min_size=1, max_size=30),
    st.integers(1, 6),
    st.integers(1, 200),
)
async def test_nothing_is_left_out_and_every_call_is_within_its_bounds(
    payloads: list[tuple[int, str]], most: int, max_bytes: int
) -> None:
    calls: Calls = []
    one = mounted(board(calls), batch_size=most, batch_bytes=max_bytes, batch_keys=["list"])
    await handed_over(
        one, *({"text": f"{n}:{kind}:{'t' * size}", "list": kind} for n, (size, kind) in enumerate(payloads))
    )
    assert sorted(int(text.split(":")[0]) for call in calls for text in call) == list(range(len(payloads)))
    for call in calls:
        lines = [Line(message_id="m0", text=text, list=text.split(":")[1]) for text in call]
        sizes = [len(json_dumps(line.model_dump(mode="json"))) + 1 for line in lines]
        assert len(call) <= most
        assert len(call) == 1 or sum(sizes) <= max_bytes
        assert len({line.list for line in lines}) == 1


# ── Faults and defaults ───────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_wrong_with_a_switch_is_named() -> None:
    given_ = {"text": "x", "batch_size": "9", "batch_bytes": -1, "batch_keys": "list", "enable_batching": 1}
    found = mapping_faults(board([]), [MappingConfig(action="add_lines", mapping=given_)])
    assert {(one.path[-1], one.what) for one in found} == {
        ("batch_size", "must be a number or left out"),
        ("batch_bytes", "must be a number or left out"),
        ("batch_keys", "must be a list of fields or left out"),
        ("enable_batching", "must be true or false"),
    }


def test_without_any_word_of_batches_nobody_counts_bytes() -> None:
    assert batching(board([]).actions[0], None, None) == Batching(100, None, [])


def test_a_definition_ships_limits_that_the_configuration_overrides() -> None:
    plain = mounted(board([]))
    shipped = mounted(board([], limits=DefaultLimits(events_per_second=10, retry_hours=4)))
    said = mounted(shipped.definition, {"events_per_second": 50, "retry_hours": 2})
    silent = mounted(shipped.definition, {"concurrency": 1})
    assert [rate_of(one) for one in (plain, shipped, said, silent)] == [None, 10, 50, 10]
    ages = [bounded(Limits(), one).age / 3_600 for one in (plain, shipped, said, silent)]
    assert ages == [24, 4, 2, 4]
