"""Most chunks go by the only mapping in one call, as JSON where an action sends events on: the same comes of it as by the long way."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from destinations import webhook
from destinations.contract import (
    DELIVERED,
    UNTRIED,
    Action,
    Definition,
    Delivered,
    EncodedEvent,
    Env,
    Filtered,
    Outcome,
    Rejected,
    Retry,
    Settings,
)
from pipeline.delivery.attempt import Attempt, attempt, early
from pipeline.delivery.batching import Batching, encoded
from pipeline.delivery.decide import rules
from pipeline.delivery.lanes import Item, Partition
from pipeline.delivery.limits import Destination
from pipeline.delivery.mapping import Routing, routing
from pipeline.delivery.shared import whole
from pipeline.functions.installed import Insert
from pipeline.store.ledger import Claim
from schemas.config import FilterConfig
from schemas.errors import CredentialsRejected
from schemas.events import Origin, Resolved, decode_resolved, materialize
from tests.unit.delivery_world import NoSettings, resolved

Answer = Outcome | Exception | None  # None: forgets to answer
Answers = dict[str, Answer]


def service(answers: Answers, got: list[list[EncodedEvent]], *, atomic: bool = True, max_batch: int = 100) -> Routing:
    """Takes track calls as JSON, and answers as it is told; an exception ends the call."""

    async def send(_: None, batch: Sequence[EncodedEvent]) -> Sequence[Outcome]:
        got.append(list(batch))
        told = [answers.get(one.message_id, DELIVERED) for one in batch]
        for one in told:
            if isinstance(one, Exception):
                raise one
        return [one for one in told if isinstance(one, Delivered | Retry | Rejected | Filtered)]

    async def check(_: None) -> None:
        return None

    @asynccontextmanager
    async def connect(settings: Settings, env: Env) -> AsyncIterator[None]:
        yield None

    action = Action(
        name="send", payload=None, types=("track",), max_batch=max_batch, deliver=send, encoded=True, atomic=atomic
    )
    definition = Definition(
        name="service",
        description="Does as it is told.",
        settings=NoSettings,
        connect=connect,
        check=check,
        actions=(action,),
    )
    return routing(Destination(name="service", definition=definition, settings=NoSettings()))


def crm(events: list[str], consent: tuple[str, ...]) -> Destination:
    filter_ = FilterConfig(types=None, events=events, where=None)
    definition = replace(webhook.definition, name="crm")
    settings = webhook.WebhookSettings.model_validate({"url": "http://127.0.0.1:1/"})
    return Destination(name="crm", definition=definition, settings=settings, filter=filter_, consent=consent)


async def nothing(events: Sequence[Resolved]) -> Sequence[Resolved | Outcome]:
    """A function that changes nothing."""
    return events


def chunk(events: Sequence[tuple[str, str]], **rest: Any) -> list[Item]:
    """Events by profile and type; their ids are m0, m1, …"""
    partition = Partition(Claim(0, 0, 0, {}, (), 0))
    items = []
    for number, (profile, kind) in enumerate(events):
        item = Item(partition.lane(profile, number), number, "web", f"m{number}")
        item.resolved = decode_resolved(resolved(f"m{number}", profile, Origin(0, number), type=kind, **rest))
        items.append(item)
    return items


def seen(made: Attempt) -> tuple[object, ...]:
    """All of what came of an attempt."""
    return made.outcomes, made.answered, made.retried, made.broken, made.faulty, repr(made.error), made.credentials


answers = st.sampled_from(
    [DELIVERED, DELIVERED, DELIVERED, Retry("http 503", 2.0), Rejected("http 422"), Filtered("NO")]
)
faults = st.sampled_from([RuntimeError("a bug"), CredentialsRejected("http 401"), None])
events = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["track", "track", "identify"])), max_size=8).map(
    lambda events: sorted(events, key=lambda event: event[0])
)  # as chunks are: by profile


@given(events, st.dictionaries(st.sampled_from([f"m{n}" for n in range(8)]), answers | faults))
def test_both_ways_come_to_the_same(events: list[tuple[str, str]], told: Answers) -> None:
    short = service(told, [])
    assert short.only is not None
    ways = [short, replace(short, only=None)]
    assert len({repr(seen(asyncio.run(attempt(way, None, chunk(events), 5.0)))) for way in ways}) == 1


@pytest.mark.parametrize("short", [True, False])
async def test_what_a_call_had_no_time_for_is_as_if_nothing_had_been(short: bool) -> None:
    got: list[list[EncodedEvent]] = []
    way = service({"m1": UNTRIED, "m2": UNTRIED}, got)
    items = chunk([("a", "track"), ("a", "track"), ("b", "track")])
    made = await attempt(way if short else replace(way, only=None), None, items, 5.0)
    assert seen(made) == ([DELIVERED, None, None], True, False, False, False, "None", None)
    assert [len(call) for call in got] == [3]


@pytest.mark.parametrize("short", [True, False])
async def test_what_a_mapping_that_is_no_more_has_done_is_not_done_again(short: bool) -> None:
    got: list[list[EncodedEvent]] = []
    way = service({}, got)
    items = chunk([("a", "track"), ("a", "track"), ("b", "track")])
    items[0].done = {"send": DELIVERED, "another": Rejected("http 422")}
    items[2].done = {"another": DELIVERED}
    made = await attempt(way if short else replace(way, only=None), None, items, 5.0)
    assert made.outcomes == [DELIVERED] * 3
    assert [[one.message_id for one in call] for call in got] == [["m1", "m2"]]


async def test_a_time_out_that_a_destination_raises_is_a_fault_as_any_exception_and_ours_is_none() -> None:
    hung = asyncio.Event()

    async def hang(_: None, batch: Sequence[EncodedEvent]) -> Sequence[Outcome]:
        await hung.wait()
        return []

    way = service({"m0": TimeoutError("its own")}, [])
    assert way.only is not None
    ours = replace(way, only=replace(way.only, action=replace(way.only.action, deliver=hang)))
    told = [seen(await attempt(one, None, chunk([("a", "track")]), 0.01)) for one in (way, ours)]
    assert told == [
        ([Retry("TimeoutError")], False, True, True, True, "TimeoutError('its own')", None),
        ([Retry("timeout")], False, True, True, False, "None", None),
    ]


def test_a_service_is_left_alone_for_the_longest_that_it_asks() -> None:
    assert (
        Attempt([], [Retry("http 429", 3.0), None, Retry("http 429", 9.0), Retry("http 503"), DELIVERED]).asked == 9.0
    )
    assert Attempt([], [Retry("http 503"), None]).asked is None


async def test_nothing_overtakes_what_a_call_had_no_time_for() -> None:
    got: list[list[EncodedEvent]] = []
    way = service({"m1": UNTRIED}, got, max_batch=2)
    made = await attempt(way, None, chunk([("a", "track")] * 3), 5.0)
    assert made.outcomes == [DELIVERED, None, None]
    assert [[one.message_id for one in call] for call in got] == [["m0", "m1"]]


async def test_nothing_overtakes_what_a_function_wants_to_see_again() -> None:
    async def insert(events: Sequence[Resolved]) -> Sequence[Resolved | Outcome]:
        return [Retry("later") if one.event.message_id == "m0" else one for one in events]

    got: list[list[EncodedEvent]] = []
    items = chunk([("a", "track"), ("a", "track"), ("b", "track")])
    made = await attempt(service({}, got), None, items, 5.0, insert)
    assert made.outcomes == [Retry("later"), None, DELIVERED]
    assert [[one.message_id for one in call] for call in got] == [["m2"]]


async def test_events_come_as_the_json_of_what_destinations_see() -> None:
    got: list[list[EncodedEvent]] = []
    items = chunk([("a", "track"), ("b", "track")], properties={"price": 9.5, "name": "Zoë"})
    expected = [materialize(item.resolved) for item in items if item.resolved is not None]
    made = await attempt(service({}, got), None, items, 5.0)
    assert made.outcomes == [DELIVERED, DELIVERED]
    assert [[(one.message_id, orjson.loads(one.json)) for one in call] for call in got] == [
        [("m0", expected[0]), ("m1", expected[1])]
    ]


@pytest.mark.parametrize(
    "body",
    [
        b'{"event":"Bought","properties":{"price":1e999}}',
        b'{"event":"Bought","integrations":{"crm":false}}',
        b'{"event":"Bought","_metadata":{"bundled":["crm"]},"writeKey":"secret"}',
        b'{"event":"Sold","sentAt":"then","context":{"consent":{"categoryPreferences":{"ads":true}}}}',
        b'{"event":"Bought","context":{"consent":{"categoryPreferences":{"ads":false}}}}',
        b"[]",
        b"{",
    ],
)
@pytest.mark.parametrize("consent", [(), ("ads",)])
def test_decisions_and_events_are_the_same_where_the_body_is_decoded_once_for_both(
    body: bytes, consent: tuple[str, ...]
) -> None:
    (item,) = chunk([("a", "track")])
    assert item.resolved is not None
    one = replace(item.resolved, event=item.resolved.event._replace(body=body))
    shown: list[object] = []
    for whole_next in (False, True):
        decide = rules(crm(events=["Bought"], consent=consent), whole_next=whole_next)
        with suppress(ValueError):
            shown += [decide(one), materialize(one), one.said]
        shown.append(None)
    assert shown[: len(shown) // 2] == shown[len(shown) // 2 :]


@pytest.mark.parametrize("insert", [None, nothing])
def test_a_payload_is_made_early_only_where_nothing_else_is_wanted_of_the_event(insert: Insert | None) -> None:
    (item,) = chunk([("a", "track")])
    assert item.resolved is not None
    short = service({}, [])
    (route,) = short.routes
    made = route.payload(whole(item.resolved))
    encode = early(short, insert)
    assert (encode and encode(item.resolved)) == (made if insert is None else None)
    assert early(replace(short, only=None), insert) is None
    assert early(replace(short, only=replace(route, build=dict)), insert) is None
    assert early(replace(short, only=replace(route, action=replace(route.action, encoded=False))), insert) is None


async def test_payloads_that_were_made_early_go_as_they_are_beside_those_that_were_not() -> None:
    got: list[list[EncodedEvent]] = []
    items = chunk([("a", "track"), ("b", "track")])
    items[0].payload, items[0].resolved = EncodedEvent("m0", b"{}"), None
    for going in (items[:1], items):
        made = await attempt(service({}, got), None, going, 5.0)
        assert made.outcomes == [DELIVERED] * len(going)
    assert [[(one.message_id, one.json == b"{}") for one in call] for call in got] == [
        [("m0", True)],
        [("m0", True), ("m1", False)],
    ]


async def test_what_cannot_be_json_is_rejected_and_the_rest_goes() -> None:
    """Half of a surrogate pair: JSON can write it, but nobody can send it."""
    got: list[list[EncodedEvent]] = []
    items = chunk([("a", "track"), ("b", "track")])
    broken = items[0].resolved
    assert broken is not None
    items[0].resolved = replace(broken, event=broken.event._replace(body=b'{"event":"\\ud800"}'))
    made = await attempt(service({}, got), None, items, 5.0)
    assert made.outcomes == [Rejected("PAYLOAD_VALIDATION_FAILED: no JSON"), DELIVERED]
    assert [[one.message_id for one in call] for call in got] == [["m1"]]


def test_bounds_of_calls_hold_for_json_as_for_objects() -> None:
    (item,) = chunk([("a", "track")], properties={"list": "news"})
    assert item.resolved is not None
    event = whole(item.resolved)
    bounds = Batching(10, 1_000, [["properties", "list"]])
    assert (bounds.size(encoded(event)), bounds.kind(encoded(event))) == (bounds.size(event), bounds.kind(event))
    assert bounds.kind(event) == b'["news"]'
