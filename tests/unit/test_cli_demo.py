"""The demo stream is a believable shop, the same for the same seed."""

from collections import Counter
from datetime import UTC, datetime
from itertools import islice
from random import Random
from typing import Any

from millrace.demo import stream
from millrace.sender import LARGEST_BATCH, requests

START = datetime(2026, 11, 1, 12, tzinfo=UTC)


def events(seed: int, count: int) -> list[dict[str, Any]]:
    return list(islice(stream(seed, START), count))


def test_the_same_seed_tells_the_same_story() -> None:
    assert events(7, 500) == events(7, 500)
    assert events(7, 500) != events(8, 500)


def test_two_seeds_share_neither_messages_nor_people() -> None:
    def ids(seed: int) -> set[str]:
        found = events(seed, 500)
        return (
            {one["messageId"] for one in found}
            | {one["anonymousId"] for one in found}
            | {one.get("userId", "") for one in found}
        )

    assert ids(1) & ids(2) == {""}


def test_a_thousand_events_hold_everything_worth_showing() -> None:
    shown = events(1, 1_000)
    names = Counter(one.get("event") for one in shown)
    devices: dict[str, set[str]] = {}
    for one in shown:
        if "userId" in one:
            devices.setdefault(one["userId"], set()).add(one["anonymousId"])

    assert {one["type"] for one in shown} == {"page", "track", "identify", "group"}
    assert names.keys() >= {
        "Product Viewed",
        "Product Added",
        "Order Completed",
        "Signed Up",
        "Signed In",
        "Signed Out",
    }
    assert any(len(anonymous) > 1 for anonymous in devices.values()), "somebody returns on another device"
    assert any("userId" not in one for one in shown), "somebody stays unknown"


def test_every_event_is_complete_and_later_than_the_one_before() -> None:
    shown = events(3, 1_000)
    assert all({"type", "messageId", "timestamp", "anonymousId", "context"} <= one.keys() for one in shown)
    assert [one["timestamp"] for one in shown] == sorted(one["timestamp"] for one in shown)
    assert len({one["messageId"] for one in shown}) == 1_000


def test_an_order_adds_up() -> None:
    orders = [one["properties"] for one in events(5, 3_000) if one.get("event") == "Order Completed"]
    assert orders
    for order in orders:
        items = sum(item["price"] * item["quantity"] for item in order["products"])
        assert order["revenue"] == round(items, 2)
        assert order["total"] == round(order["revenue"] + order["shipping"], 2)


def test_requests_carry_every_event_once_in_order_singly_and_in_batches() -> None:
    calls = list(requests(stream(1, START), 1_000, Random(1)))

    assert [event for call in calls for event in call.events] == events(1, 1_000)
    assert all(len(call.events) <= LARGEST_BATCH for call in calls)
    singles = [call for call in calls if call.path != "/v1/batch"]
    batches = [call for call in calls if call.path == "/v1/batch"]
    assert all(call.path == f"/v1/{call.events[0]['type']}" and "type" not in call.body for call in singles)
    assert all(call.body == {"batch": call.events} for call in batches)
    assert singles
    assert batches
