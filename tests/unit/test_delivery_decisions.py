"""The pure decisions of delivery: who gets an event, when it is tried again, which events go together."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from destinations.contract import (
    DELIVERED,
    Action,
    Definition,
    EncodedEvent,
    Filtered,
    Outcome,
    Payload,
    Rejected,
    Retry,
    Settings,
    mapped,
)
from pipeline.delivery.attempt import Attempt
from pipeline.delivery.decide import CONSENT_EVENT, allowed, rules, sent_by_device
from pipeline.delivery.lanes import Item, Lanes, State
from pipeline.delivery.limits import Destination, Limits
from pipeline.delivery.mapping import mapping
from pipeline.delivery.poll import Step, note
from pipeline.delivery.retry import Breaker, Sums, Window, delay
from pipeline.delivery.settle import settle
from pipeline.store.ledger import Claim, Listed, Progress
from schemas.config import DestinationFilter, FilterConfig
from schemas.dead_letters import DeadLetter, decode_dead_letter, encode_dead_letter
from schemas.events import Event, Origin, Resolved

LIMITS = Limits()


# ── Who gets an event ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("said", "crm", "warehouse"),
    [
        ({}, True, True),
        ({"All": True}, True, True),
        ({"All": False}, False, True),
        ({"all": False}, False, True),
        ({"ALL": False, "hubspot": True}, True, True),
        ({"All": False, "crm": True}, True, True),
        ({"All": False, "crm": {"id": 7}}, True, True),
        ({"All": False, "CRM": True}, False, True),
        ({"crm": False}, False, False),
        ({"hubspot": False}, False, False),
        ({"crm": True, "hubspot": False}, True, True),
        ({"crm": None}, True, True),
        ({"All": "no"}, True, True),
        ({"All": {}}, True, True),
        ({"All": True, "Warehouses": {"all": False}}, True, False),
        ({"All": False, "Warehouses": {"all": True}}, False, True),
        ({"Warehouses": False}, True, False),
        ({"Warehouses": {"warehouseIds": ["crm"]}}, True, True),
        ({"Warehouses": {"warehouseIds": ["other"]}}, True, False),
    ],
)
def test_the_integrations_object_names_who_gets_an_event(said: Mapping[str, Any], crm: bool, warehouse: bool) -> None:
    """`crm` is the configured name of a `hubspot`."""
    names = ("crm", "hubspot")
    assert (allowed(said, names, warehouse=False), allowed(said, names, warehouse=True)) == (crm, warehouse)


@pytest.mark.parametrize(
    ("source", "kind", "body", "reason"),
    [
        ("web", "track", {"event": "Bought"}, None),
        ("app", "track", {"event": "Bought"}, "SOURCE_NOT_CONNECTED"),
        ("web", "alias", {"integrations": {"All": False}}, "UNSUPPORTED_EVENT_TYPE"),
        ("web", "page", {"integrations": {"All": False}}, "FILTERED_BY_INTEGRATIONS_OBJECT"),
        ("web", "page", {}, "FILTERED_BY_RULES"),
        ("web", "track", {"event": "Seen"}, "FILTERED_BY_RULES"),
        ("web", "track", {"event": 7}, "FILTERED_BY_RULES"),
        ("web", "identify", {}, None),
        ("web", "identify", {"integrations": "all of them"}, None),
        (
            "web",
            "page",
            {"_metadata": {"bundled": ["crm"]}, "integrations": {"All": False}},
            "FILTERED_BY_INTEGRATIONS_OBJECT",
        ),
        ("web", "page", {"_metadata": {"bundled": ["crm"]}}, "MESSAGE_SENT_CLIENT_SIDE"),
    ],
)
def test_the_first_reason_counts(source: str, kind: str, body: dict[str, Any], reason: str | None) -> None:
    decide = rules(
        destination(
            types=("track", "page", "identify"),
            sources=frozenset({"web"}),
            filter_=FilterConfig(types=("track", "identify"), events=("Bought",)),
        )
    )
    assert decide(resolved(event(source, kind, orjson.dumps(body)))) == reason


@pytest.mark.parametrize(
    ("context", "integrations", "reason"),
    [
        (None, None, None),
        ({}, None, None),
        ({"consent": {}}, None, None),
        ({"consent": {}}, {"crm": False}, "FILTERED_BY_INTEGRATIONS_OBJECT"),
        ({"consent": None}, None, None),
        ("no object", None, None),
        ({"consent": {"categoryPreferences": {}}}, None, "FILTERED_BY_END_USER_CONSENT"),
        ({"consent": {"categoryPreferences": {"ads": True, "crm": True}}}, None, None),
        ({"consent": {"categoryPreferences": {"ads": True}}}, None, "FILTERED_BY_END_USER_CONSENT"),
        ({"consent": {"categoryPreferences": {"ads": True, "crm": False}}}, None, "FILTERED_BY_END_USER_CONSENT"),
        ({"consent": {"categoryPreferences": {"ads": True, "crm": "true"}}}, None, "FILTERED_BY_END_USER_CONSENT"),
        ({"consent": {"categoryPreferences": {"Ads": True, "crm": True}}}, None, "FILTERED_BY_END_USER_CONSENT"),
        ({"consent": {"categoryPreferences": {"ads": False}}}, {"crm": True}, "FILTERED_BY_END_USER_CONSENT"),
        (
            {"consent": {"categoryPreferences": {"ads": True, "crm": True}}},
            {"crm": False},
            "FILTERED_BY_INTEGRATIONS_OBJECT",
        ),
    ],
)
def test_a_destination_of_two_categories_needs_consent_to_both(
    context: Any, integrations: Any, reason: str | None
) -> None:
    decide = rules(destination(consent=("ads", "crm")))
    body = {"event": "Bought", "context": context} | ({} if integrations is None else {"integrations": integrations})
    assert decide(resolved(event("web", "track", orjson.dumps(body)))) == reason


def test_consent_concerns_only_destinations_of_categories_and_never_the_event_that_tells_of_it() -> None:
    context = {"consent": {"categoryPreferences": {"ads": False}}}
    refused = resolved(event("web", "track", orjson.dumps({"event": "Bought", "context": context})))
    assert rules(destination())(refused) is None
    told = resolved(event("web", "track", orjson.dumps({"event": CONSENT_EVENT, "context": context})))
    assert rules(destination(consent=("ads",)))(told) is None
    called_so = resolved(event("web", "page", orjson.dumps({"event": CONSENT_EVENT, "context": context})))
    assert rules(destination(types=("page",), consent=("ads",)))(called_so) == "FILTERED_BY_END_USER_CONSENT"


def test_an_expression_sees_the_event_as_destinations_get_it() -> None:
    where = FilterConfig(types=None, events=None, where="source = 'web' and userId = 'u1' and properties.total > 5")
    decide = rules(destination(filter_=where))
    taken, left = ({"event": "Bought", "properties": {"total": total}} for total in (6, 5))
    assert decide(resolved(event("web", "track", orjson.dumps(taken)))) is None
    assert decide(resolved(event("web", "track", orjson.dumps(left)))) == "FILTERED_BY_RULES"
    dropping = DestinationFilter.model_validate({"if": "event = 'Bought'", "actions": [{"type": "DROP"}]})
    assert rules(destination(filters=[dropping]))(resolved(event("web", "track", orjson.dumps(taken)))) == (
        "FILTERED_BY_RULES"
    )


@pytest.mark.parametrize(
    ("metadata", "sent"),
    [
        ({"bundled": ["Segment.io"], "unbundled": ["crm"], "bundledIds": []}, False),
        ({"bundled": ["Segment.io", "crm"]}, True),
        ({"bundled": ["Segment.io", "hubspot"]}, True),
        ({"bundled": ["HubSpot"]}, False),
        ({"bundled": [], "bundledIds": ["crm"]}, True),
        ({"bundled": "crm"}, False),
        ({"nodeVersion": "20.1.0", "jsRuntime": "node"}, False),
        ("crm", False),
    ],
)
def test_what_the_device_sent_itself_is_not_sent_again(metadata: Any, sent: bool) -> None:
    """`crm` is the configured name of a `hubspot`."""
    assert sent_by_device(metadata, ("crm", "hubspot")) is sent


def test_an_integrations_key_written_with_escapes_is_obeyed() -> None:
    decide = rules(destination())
    body = rb'{"integr\u0061tions": {"All": false}}'
    assert decide(resolved(event("web", "track", body))) == "FILTERED_BY_INTEGRATIONS_OBJECT"


def test_a_body_that_cannot_be_read_is_no_decision() -> None:
    with pytest.raises(ValueError, match="the body cannot be read"):
        rules(destination())(resolved(event("web", "track", b'{"integrations": ')))


# ── When it is tried again ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("attempts", "asked", "longest"),
    [(1, None, 2), (2, None, 4), (3, None, 8), (10, None, 1_024), (11, None, 1_200), (5_000, None, 1_200)],
)
def test_waits_double_up_to_twenty_minutes_with_full_jitter(attempts: int, asked: None, longest: float) -> None:
    assert [delay(attempts, asked, chance, LIMITS) for chance in (0.0, 0.5, 1.0)] == [0, longest / 2, longest]


@pytest.mark.parametrize(("asked", "waited"), [(0.0, 0), (7.0, 7), (9_000.0, 3_600), (-1.0, 0)])
def test_what_a_service_asks_for_is_honoured_up_to_an_hour(asked: float, waited: float) -> None:
    assert delay(1, asked, 0.5, LIMITS) == waited


def settled(outcome: Outcome, *, listed: bool = False, first_at: float = 0.0, now: float = 50.0) -> Item:
    item = Item(lanes_of().partitions[0].lane("ann", 0), 0, "web", "m1")
    item.value, item.payload, item.listed, item.first_at = b"event", EncodedEvent("m1", b"{}"), listed, first_at
    settle(item, outcome, Attempt([item]), now, lambda: 1.0, LIMITS)
    return item


@pytest.mark.parametrize(
    ("outcome", "listed", "kept"),
    [
        (Retry("http 503"), False, (b"event", True)),  # it may go again from memory
        (Retry("http 503"), True, (None, False)),
        (Rejected("http 422"), False, (b"event", False)),  # for its dead letter
        (Filtered("NO"), False, (None, False)),
        (DELIVERED, False, (None, False)),
    ],
)
def test_bytes_are_kept_only_where_they_are_needed_yet(
    outcome: Outcome, listed: bool, kept: tuple[bytes | None, bool]
) -> None:
    item = settled(outcome, listed=listed)
    assert (item.value, item.payload is not None) == kept


def test_bytes_of_what_is_listed_while_it_is_under_way_are_kept() -> None:
    lanes = lanes_of(("a1", "ann"), ("b1", "bob"))
    flying, held = items = lanes.take(late=False, most=9, several=False)
    flying.flying = True
    for item in items:
        item.value = b"event"
    progress = Progress(0, 1, 2, {}, None, {}, [], [], 0)
    note(Step(lanes.partitions[0], None, 0, progress, items, [], [], 5.0))
    assert (flying.value, held.value, flying.listed, held.listed) == (b"event", None, True, True)


def test_an_event_is_dead_once_it_failed_for_as_long_as_it_may() -> None:
    ages = (LIMITS.age - 1, LIMITS.age)
    assert [settled(Retry("http 503"), first_at=5.0, now=5.0 + age).state for age in ages] == [State.RETRY, State.DEAD]


# ── When a service is down ────────────────────────────────────────────────────────────────────────────────────────


def opened_at(requests: Iterable[tuple[float, bool, object]], *, seconds: float = 0.0) -> int | None:
    """Which request opened the breaker, if any did. Each has a time at which it ended, whether it failed, and a profile, and took so
    many seconds."""
    breaker = Breaker(LIMITS)
    for number, (at, failed, profile) in enumerate(requests):
        if not failed:
            breaker.answered(at - seconds, at)
        elif breaker.failed({profile}, at - seconds, at, None):
            return number
    return None


def test_the_breaker_opens_once_more_than_half_of_a_minutes_requests_failed() -> None:
    fails = [(float(second), second % 5 < 3, second) for second in range(60)]  # three of five
    half = [(float(second), second % 2 == 0, second) for second in range(0, 600, 2)]
    assert opened_at(fails) == 20
    assert opened_at((at, number % 2 == 1, number) for number, (at, _, _) in enumerate(half)) is None


def test_fewer_than_twenty_requests_a_minute_are_no_share() -> None:
    assert opened_at((4.0 * number, number % 5 < 3, number) for number in range(100)) is None  # fifteen


def test_what_went_well_more_than_a_minute_ago_does_not_count() -> None:
    well = [(0.0, False, number) for number in range(1_000)]
    assert opened_at([*well, *((59.0, number % 5 < 4, number) for number in range(100))]) is None
    assert opened_at([*well, *((61.0, number % 5 < 4, number) for number in range(100))]) == 1_020


def test_a_service_that_hangs_is_down_though_its_requests_are_few() -> None:
    assert opened_at(((30.0, True, number) for number in range(8)), seconds=30.0) == 4
    assert opened_at((10.0 * number, True, number) for number in range(8)) == 4


def test_a_service_that_takes_nothing_for_ten_seconds_after_a_busy_minute_is_down() -> None:
    busy = [(0.01 * number, False, number) for number in range(6_000)]
    gone = [(60.0 + 0.5 * number, True, number) for number in range(30)]
    assert opened_at([*busy, *gone]) == 6_020
    assert opened_at([*busy, *gone[:20], (69.9, False, "ann"), *gone[20:]]) is None


def test_a_few_profiles_never_open_the_breaker() -> None:
    assert opened_at((float(number), True, number % 4) for number in range(500)) is None


def test_profiles_that_failed_before_an_answer_do_not_count() -> None:
    before = [(float(number), True, number) for number in range(4)]
    one_fails = [(10.0 * number, True, "ann") for number in range(1, 30)]
    assert opened_at([*before, (4.0, False, "bob"), *one_fails]) is None


def test_a_service_that_asks_to_be_left_alone_is_left_alone_once_several_profiles_were_sent_away() -> None:
    breaker = Breaker(Limits())
    asked = [breaker.failed({number}, 0.0, 0.0, 30.0, too_much=True) for number in range(5)]
    assert (asked, breaker.probe_at) == ([False] * 4 + [True], 30.0)


def test_a_service_that_says_too_much_is_down_only_when_it_takes_nothing_at_all() -> None:
    breaker = Breaker(LIMITS)
    for number in range(100):
        assert not breaker.failed({number}, 0.05 * number, 0.05 * number, None, too_much=True)
        if number % 10 == 0:
            breaker.answered(0.05 * number, 0.05 * number)
    assert breaker.failed({0}, 50.0, 50.0, 900.0, too_much=True)
    assert breaker.probe_at == 950.0


def down(at: float) -> Breaker:
    """A breaker that opened then."""
    breaker = Breaker(LIMITS)
    for number in range(20):
        breaker.failed({number}, at, at, None)
    assert breaker.open
    return breaker


def test_a_service_that_is_down_rests_for_half_a_minute_and_twice_as_long_after_each_probe_up_to_ten() -> None:
    breaker = down(100.0)
    waits = [breaker.probe_at - 100.0]
    for _ in range(6):
        at = breaker.probe_at
        assert not breaker.failed({4}, at, at + 1.0, None)
        waits.append(breaker.probe_at - at - 1.0)
    assert waits == [30, 60, 120, 240, 480, 600, 600]


def test_a_service_that_is_down_rests_for_as_long_as_it_asks() -> None:
    breaker = down(100.0)
    breaker.failed({4}, 130.0, 130.0, 900.0)
    assert breaker.probe_at == 130.0 + 900.0
    breaker.failed({4}, 1_030.0, 1_030.0, 9_000.0)
    assert breaker.probe_at == 1_030.0 + 3_600.0


def test_only_probes_tell_how_a_service_is_that_was_down() -> None:
    breaker = down(100.0)
    for before in (99.0, 100.0):
        assert not breaker.answered(before, 101.0)
        assert not breaker.failed({1}, before, 129.0, None)
    assert (breaker.open, breaker.probe_at) == (True, 130.0)
    assert breaker.answered(130.0, 131.0)
    assert not breaker.open


def test_a_service_that_is_back_is_judged_anew() -> None:
    breaker = down(100.0)
    breaker.failed({4}, 130.0, 130.0, None)
    breaker.answered(190.0, 190.0)
    assert [breaker.failed({number}, 191.0, 191.0, None) for number in range(20)] == [False] * 19 + [True]
    assert breaker.probe_at == 221.0


def test_what_is_kept_of_requests_does_not_grow() -> None:
    window = Window(60.0, 5)
    for number in range(10_000):
        window.note(0.1 * number, {number})
    assert window.sums(999.9) == Sums(600, 600, 300)
    window.note(0.0)  # a clock that was set back
    assert window.sums(0.0).requests == 591


# ── Which events go together ──────────────────────────────────────────────────────────────────────────────────────


def lanes_of(*events: tuple[str, str]) -> Lanes:
    lanes = Lanes()
    lanes.install(Claim(partition=0, epoch=1, offset=0, marks={}, outstanding=[]))
    for offset, (name, profile) in enumerate(events):
        lanes.add(Item(lanes.partitions[0].lane(profile, offset), offset, "web", name))
    return lanes


def names(items: Sequence[Item]) -> list[str]:
    return [item.message_id for item in items]


def test_a_chunk_has_one_event_per_profile_unless_several_may_go() -> None:
    events = (("a1", "ann"), ("a2", "ann"), ("b1", "bob"), ("b2", "bob"), ("c1", "cid"))
    assert names(lanes_of(*events).take(late=False, most=9, several=False)) == ["a1", "b1", "c1"]
    assert names(lanes_of(*events).take(late=False, most=9, several=True)) == ["a1", "a2", "b1", "b2", "c1"]
    assert names(lanes_of(*events).take(late=False, most=3, several=True)) == ["a1", "a2", "b1"]


def test_a_profile_in_flight_is_not_taken_again() -> None:
    lanes = lanes_of(("a1", "ann"), ("a2", "ann"))
    first = lanes.take(late=False, most=1, several=False)
    assert names(lanes.take(late=False, most=1, several=False)) == []
    lanes.give_back(first[0].lane, [])
    assert names(lanes.take(late=False, most=1, several=False)) == ["a2"]


def test_what_comes_back_goes_first_in_its_lane() -> None:
    lanes = lanes_of(("a1", "ann"), ("a2", "ann"), ("a3", "ann"))
    taken = lanes.take(late=False, most=2, several=True)
    lanes.give_back(taken[0].lane, taken)
    assert names(lanes.take(late=False, most=9, several=True)) == ["a1", "a2", "a3"]


def test_an_event_whose_chunk_broke_goes_in_smaller_ones() -> None:
    lanes = lanes_of(*((f"m{number}", f"p{number}") for number in range(5)))
    for item in lanes.take(late=False, most=9, several=False):
        item.most = 2
        lanes.give_back(item.lane, [item])
    assert names(lanes.take(late=False, most=9, several=False)) == ["m0", "m1"]


def test_an_event_that_is_to_go_alone_ends_the_chunk_of_those_before_it() -> None:
    lanes = lanes_of(*((f"a{number}", "ann") for number in range(4)))
    taken = lanes.take(late=False, most=9, several=True)
    taken[1].most = 1
    lanes.give_back(taken[0].lane, taken)
    chunk = lanes.take(late=False, most=9, several=True)
    lanes.give_back(chunk[0].lane, [])
    assert [names(chunk), names(lanes.take(late=False, most=9, several=True))] == [["a0"], ["a1"]]


def test_a_lane_is_forgotten_once_it_is_empty() -> None:
    lanes = lanes_of(("a1", "ann"), ("x1", ""))
    for item in lanes.take(late=False, most=9, several=False):
        lanes.give_back(item.lane, [])
    assert lanes.partitions[0].lanes == {}


def test_outstanding_events_are_taken_over_with_their_waits() -> None:
    lanes = Lanes()
    first = Listed(1, "retry", "web", "ann", "a1", 1, "http 503", 0, 50_000_000)
    outstanding = [
        first,
        first._replace(offset=2, state="held", message_id="a2", next_at=0),
        first._replace(offset=3, profile="bob", message_id="b1", next_at=40_000_000),
    ]
    lanes.install(Claim(partition=0, epoch=1, offset=9, marks={}, outstanding=outstanding))
    assert (lanes.outstanding, lanes.next_due) == (3, 40.0)
    lanes.wake(45.0)
    assert names(lanes.take(late=True, most=9, several=True)) == ["b1"]
    lanes.wake(50.0)
    assert names(lanes.take(late=True, most=9, several=True)) == ["a1", "a2"]


def test_a_profile_that_waits_is_not_ready_for_what_comes_behind() -> None:
    lanes = lanes_of(("a1", "ann"))
    (first,) = lanes.take(late=False, most=9, several=False)
    lanes.wait(first.lane, 50.0, asked=False)
    lanes.give_back(first.lane, [first])
    lanes.add(Item(first.lane, 1, "web", "a2"))
    assert (lanes.has_fresh, lanes.next_due) == (False, 50.0)


def test_a_service_that_is_back_gets_what_our_schedule_held_and_not_what_it_asked_to_have_later() -> None:
    lanes = lanes_of(("a1", "ann"), ("b1", "bob"))
    for item, asked in zip(lanes.take(late=False, most=9, several=False), (False, True), strict=True):
        lanes.wait(item.lane, 50.0, asked=asked)
        lanes.give_back(item.lane, [item])
    lanes.wake_all(7.0)
    lanes.wake(7.0)
    assert names(lanes.take(late=False, most=9, several=False)) == ["a1"]


def test_what_was_put_back_goes_before_later_events_that_come_back_from_an_attempt() -> None:
    lanes = lanes_of(("a0", "ann"), ("a1", "ann"), ("a2", "ann"))
    taken = lanes.take(late=False, most=3, several=True)
    lanes.put_back(0, [Listed(1, "retry", "web", "ann", "dead", 1, "http 422", 0, 0)])
    lanes.give_back(taken[0].lane, taken[2:])
    lanes.wake(1.0)
    assert names(taken[0].lane.queue) == ["dead", "a2"]


def test_lanes_of_a_lost_partition_are_never_taken() -> None:
    lanes = lanes_of(("a1", "ann"))
    lanes.drop(0)
    assert (lanes.has_fresh, lanes.take(late=False, most=9, several=False)) == (False, [])


# ── Payloads and letters ──────────────────────────────────────────────────────────────────────────────────────────


class Sms(Payload):
    to: str = mapped("traits.phone", "Number.")
    text: str = mapped("properties.text", "Text.", default="hello")


def test_a_payload_is_made_from_paths_into_the_event() -> None:
    made = mapping(Sms)({"messageId": "m1", "traits": {"phone": "+1"}, "properties": []})
    assert made == Sms(message_id="m1", to="+1", text="hello")


def test_a_payload_that_lacks_a_field_names_it_without_its_value() -> None:
    with pytest.raises(ValueError, match=r"^PAYLOAD_VALIDATION_FAILED: to$"):
        mapping(Sms)({"messageId": "m1", "traits": {"phone": ["secret"]}})


@pytest.mark.parametrize("value", [b"\x00bytes", None])
def test_a_dead_letter_comes_back_as_it_was(value: bytes | None) -> None:
    letter = DeadLetter("delivery", "crm", "http 422", 3, 1_790_000_000_000_000, "resolved", 2, 7, value)
    assert decode_dead_letter(encode_dead_letter(letter)) == letter


@pytest.mark.parametrize("value", [b"", b"\x00\x00\x00\x00\x01abc", b"\x00\x00\x00\x00\x03\xff"])
def test_what_is_no_dead_letter_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="not a dead letter"):
        decode_dead_letter(value)


# ── Made for the tests ────────────────────────────────────────────────────────────────────────────────────────────


class NoSettings(Settings):
    """Nothing to set."""


async def deliver(client: None, batch: Sequence[Any]) -> list[Any]:
    raise AssertionError


async def check(client: None) -> None:
    raise AssertionError


@asynccontextmanager
async def connect(settings: Settings, env: object) -> Any:
    yield None


def destination(
    *,
    types: Sequence[str] = ("track",),
    sources: frozenset[str] | None = None,
    filter_: FilterConfig | None = None,
    filters: Sequence[DestinationFilter] = (),
    consent: Sequence[str] = (),
) -> Destination:
    action: Action[None, Any] = Action(name="send_events", payload=None, types=types, max_batch=1, deliver=deliver)
    definition = Definition(
        name="hubspot",
        description="For tests.",
        settings=NoSettings,
        connect=connect,
        check=check,
        actions=(action,),
    )
    plain = FilterConfig(types=None, events=None)
    return Destination(
        name="crm",
        definition=definition,
        settings=NoSettings(),
        sources=sources,
        filter=filter_ or plain,
        filters=filters,
        consent=consent,
    )


def event(source: str, kind: str, body: bytes) -> Event:
    return Event(source, kind, "m1", "a1", "u1", 0, None, 0, "client", None, None, body)


def resolved(one: Event) -> Resolved:
    return Resolved("use_1", Origin(0, 0), (), one)
