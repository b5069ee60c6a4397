"""The calls that every SDK is asked to make, and what must become of them: one event each, one row or more each.

A call is what the HTTP API knows of it; a driver turns it into its SDK's own method and arguments.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from tests.sdks.running import Event, Row, Source

Call = dict[str, Any]

LONG_AGO: Final = "2021-03-04T05:06:07.089Z"
SET_BY_US: Final = ("messageId", "timestamp", "originalTimestamp", "receivedAt", "sentAt", "profileId", "source")
_UNSAID: Final = ("id", "profile_id", "received_at", "sent_at", "timestamp", "original_timestamp", "uuid_ts")
_DEVICE_CLOCK: Final = timedelta(seconds=30)  # more than any test takes from call to arrival


def calls(person: str) -> list[Call]:
    """One of each kind, with every kind of value that JSON has. `person` keeps the identity of tests apart."""
    user, device = f"{person}-user", f"{person}-device"
    return [
        {
            "type": "identify",
            "userId": user,
            "anonymousId": device,
            "traits": {
                "email": f"{person}@example.org",
                "name": "Zoë Łukasz 🐈",
                "age": 41,
                "address": {"city": "Köln"},
            },
        },
        {
            "type": "track",
            "userId": user,
            "anonymousId": device,
            "event": "Order Completed",
            "properties": {
                "orderId": "o-1",
                "revenue": 39.95,
                "quantity": 2,
                "gift": True,
                "coupon": None,
                "products": [{"sku": "A", "price": 19.5}, {"sku": "B", "price": 20.45}],
                "shipping": {"carrier": "DHL", "address": {"zip": "50667"}},
            },
            "context": {"ip": "203.0.113.9", "campaign": {"name": "spring"}},
        },
        {
            "type": "track",
            "anonymousId": device,
            "event": "Imported Long Ago",
            "properties": {"empty": "", "zero": 0},
            "timestamp": LONG_AGO,
            "integrations": {"All": True, "Salesforce": False},
        },
        {
            "type": "page",
            "userId": user,
            "anonymousId": device,
            "category": "Docs",
            "name": "Guide",
            "properties": {"url": "https://example.org/guide?a=1", "title": 'A "guide"'},
        },
        {
            "type": "screen",
            "userId": user,
            "anonymousId": device,
            "category": "App",
            "name": "Home",
            "properties": {"tab": "news"},
        },
        {
            "type": "group",
            "userId": user,
            "anonymousId": device,
            "groupId": f"{person}-company",
            "traits": {"plan": "pro", "seats": 12},
        },
        {"type": "alias", "userId": user, "previousId": f"{person}-old"},
    ]


def event_of(call: Call, library: Mapping[str, str], integrations: Mapping[str, Any] | None = None) -> Event:
    """The event that a call must become at a destination, but for what is `SET_BY_US` or by the clock."""
    event = {key: value for key, value in call.items() if key != "timestamp"}
    event["context"] = call.get("context", {}) | {"library": dict(library)}
    event["integrations"] = call.get("integrations", dict(integrations or {}))
    ids = {"user_id": call.get("userId"), "email": call.get("traits", {}).get("email")}
    ids |= {"anonymous_id": call.get("anonymousId"), "group_id": call.get("groupId")}
    event["externalIds"] = [{"type": kind, "id": value} for kind, value in ids.items() if value is not None]
    return event


def rows_of(call: Call, library: Mapping[str, str]) -> dict[str, Row]:
    """The rows that a call must become, by table, but for ids of ours and times."""
    common = {
        "user_id": call.get("userId"),
        "anonymous_id": call.get("anonymousId"),
        "context_library_name": library["name"],
        "context_library_version": library["version"],
    }
    common = {name: value for name, value in common.items() if value is not None}
    match call.get("event") or call["type"]:
        case "identify":
            traits = {
                "email": call["traits"]["email"],
                "name": "Zoë Łukasz 🐈",
                "age": 41,
                "address_city": "Köln",
            }
            return {"identifies": common | traits, "users": {"id": call["userId"], **_context(common), **traits}}
        case "Order Completed":
            common |= {"context_ip": "203.0.113.9", "context_campaign_name": "spring"}
            named = {"event": "order_completed", "event_text": "Order Completed"}
            own = {
                "order_id": "o-1",
                "revenue": 39.95,
                "quantity": 2,
                "gift": True,
                "products": '[{"sku":"A","price":19.5},{"sku":"B","price":20.45}]',
                "shipping_carrier": "DHL",
                "shipping_address_zip": "50667",
            }
            return {"tracks": common | named, "order_completed": common | named | own}
        case "Imported Long Ago":
            named = {"event": "imported_long_ago", "event_text": "Imported Long Ago"}
            return {"tracks": common | named, "imported_long_ago": common | named | {"empty": "", "zero": 0}}
        case "page":
            own = {"name": "Guide", "category": "Docs", "url": "https://example.org/guide?a=1", "title": 'A "guide"'}
            return {"pages": common | own}
        case "screen":
            return {"screens": common | {"name": "Home", "category": "App", "tab": "news"}}
        case "group":
            own = {"plan": "pro", "seats": 12}
            accounts = {"id": call["groupId"], **own}
            return {"groups": common | own | {"group_id": call["groupId"]}, "accounts": accounts}
        case "alias":
            return {"aliases": common | {"previous_id": call["previousId"]}}
    raise AssertionError(call)


def _context(row: Row) -> Row:
    return {name: value for name, value in row.items() if name.startswith("context_")}


# ── Comparing ─────────────────────────────────────────────────────────────────────────────────────────────────────


def in_order(events: Sequence[Event]) -> list[Event]:
    """By what they are: people on different partitions arrive in any order."""
    return sorted(events, key=lambda event: (event["type"], event.get("event") or "", event.get("name") or ""))


def said(event: Event) -> Event:
    """The event without what the server or the clock decides, and without nulls, which say nothing."""
    return {key: value for key, value in event.items() if key not in SET_BY_US and value is not None}


def check_events(seen: Sequence[Event], expected: Sequence[Event], source: Source, called: datetime) -> None:
    """The whole list, field by field, then what each event carries besides: ids, source, times."""
    assert [said(event) for event in in_order(seen)] == in_order(expected)
    assert len({event["messageId"] for event in seen}) == len(seen)
    for event in seen:
        assert event["source"] == source.name
        assert event["profileId"]
        check_times(event, called)


def check_times(event: Event, called: datetime) -> None:
    """What has a time of its own keeps it; everything else happened when it was called."""
    received, original = moment(event["receivedAt"]), moment(event["originalTimestamp"])
    assert called - timedelta(seconds=2) <= received <= called + _DEVICE_CLOCK
    if event.get("event") == "Imported Long Ago":
        assert original == moment(LONG_AGO)
    else:
        assert called - timedelta(seconds=2) <= original <= received + timedelta(seconds=2)
    assert abs(moment(event["timestamp"]) - original) < _DEVICE_CLOCK


def check_rows(
    source: Source,
    calls: Sequence[Call],
    library: Mapping[str, str],
    seen: Sequence[Event],
    more: Mapping[str, Row] | None = None,
) -> None:
    """Every table, every row, every column, and the event's own ids and times in it. `more` holds the columns, by type of
    call, that an SDK adds of its own."""
    expected: dict[str, list[Row]] = {}
    for call in calls:
        for table, row in rows_of(call, library).items():
            own = (more or {}).get(call["type"], {}) if table != "accounts" else {}
            expected.setdefault(table, []).append(row | own)
    assert source.tables() == set(expected)
    by_id = {event["messageId"]: event for event in seen}
    for table, rows in expected.items():
        found = source.rows(table)
        entity = table in ("users", "accounts")
        hidden = [name for name in _UNSAID if not (entity and name == "id")]
        shown = [{name: value for name, value in row.items() if name not in hidden and name[0] != "_"} for row in found]
        assert sorted(shown, key=repr_sorted) == sorted(rows, key=repr_sorted), table
        for row in () if entity else found:
            event = by_id[row["id"]]
            assert row["profile_id"] == event["profileId"]
            assert row["timestamp"] == moment(event["timestamp"])
            assert row["received_at"] == moment(event["receivedAt"])
            assert row.get("sent_at") == (moment(event["sentAt"]) if "sentAt" in event else None)
            assert abs(row["original_timestamp"] - moment(event["originalTimestamp"])) < timedelta(milliseconds=1)


def repr_sorted(row: Row) -> str:
    return repr(sorted(row.items()))


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def now() -> datetime:
    return datetime.now(UTC)
