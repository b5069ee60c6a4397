"""What an event becomes: the worked example, flattening, and what is not a row."""

from typing import Any

import pytest

from destinations.warehouse.rows import Rows, build

SEAT_BOOKED: dict[str, Any] = {
    "type": "track",
    "messageId": "m1",
    "userId": "u7",
    "event": "Seat Booked",
    "originalTimestamp": "2025-03-04T10:00:00Z",
    "sentAt": "2025-03-04T10:00:05.000Z",
    "receivedAt": "2025-03-04T10:00:02.000Z",
    "timestamp": "2025-03-04T09:59:57.000Z",
    "context": {"app": {"version": "2.1"}, "locale": "fi-FI"},
    "properties": {"seatNo": 12, "price": 9.5, "extras": ["meal", "wifi"], "train": {"lineID": "IC-3"}, "userId": "x"},
    "source": "trains",
    "profileId": "p1",
}
COMMON = {
    "id": "m1",
    "anonymous_id": None,
    "user_id": "u7",
    "profile_id": "p1",
    "received_at": "2025-03-04T10:00:02.000Z",
    "sent_at": "2025-03-04T10:00:05.000Z",
    "original_timestamp": "2025-03-04T10:00:00Z",
    "timestamp": "2025-03-04T09:59:57.000Z",
    "context_app_version": "2.1",
    "context_locale": "fi-FI",
}


def rows_of(rows: Rows) -> list[dict[str, Any]]:
    """Rows as dictionaries, in the order of their events."""
    found: dict[int, dict[str, Any]] = {}
    for chunk in rows.chunks:
        for at, index in enumerate(chunk.order):
            found[index] = {name: values[at] for name, values in chunk.columns.items()}
    return [found[index] for index in sorted(found)]


def tables(*events: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {name: rows_of(rows) for (_, name), rows in build(events).tables.items()}


def call(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "messageId": "m1", "source": "shop"} | fields


def test_the_worked_example() -> None:
    event = COMMON | {"event": "seat_booked", "event_text": "Seat Booked"}
    properties = {"seat_no": 12, "price": 9.5, "extras": ["meal", "wifi"], "train_line_id": "IC-3", "_user_id": "x"}
    assert tables(SEAT_BOOKED) == {"tracks": [event], "seat_booked": [event | properties]}
    assert [source for source, _ in build([SEAT_BOOKED]).tables] == ["trains", "trains"]


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("identify", {"userId": "u1"}, {"identifies", "users"}),
        ("identify", {"anonymousId": "a1"}, {"identifies"}),
        ("page", {}, {"pages"}),
        ("screen", {}, {"screens"}),
        ("group", {"groupId": "g1"}, {"groups", "accounts"}),
        ("alias", {"previousId": "a1", "userId": "u1"}, {"aliases"}),
        ("track", {"event": "Users"}, {"tracks", "event_users"}),
    ],
)
def test_each_type_has_its_tables(kind: str, fields: dict[str, Any], expected: set[str]) -> None:
    assert set(tables(call(kind, **fields))) == expected


def test_nested_keys_are_joined_arrays_are_values_and_empty_objects_are_nothing() -> None:
    properties: dict[str, Any] = {"product_id": {"sku": "x"}, "tags": [], "none": {}, "null": None}
    row = tables(call("track", event="A", properties=properties))["a"][0]
    assert {name: row[name] for name in row if name in ("product_id_sku", "tags", "none", "null")} == {
        "product_id_sku": "x",
        "tags": [],
        "null": None,
    }


def test_ten_levels_become_columns_and_deeper_objects_values() -> None:
    deep: Any = {"x": 1}
    for _ in range(11):
        deep = {"k": deep}
    row = tables(call("track", event="A", properties=deep))["a"][0]
    assert row["_".join("k" * 10)] == {"k": {"x": 1}}


def test_traits_in_the_context_of_an_identify_are_context_columns() -> None:
    row = tables(call("identify", userId="u1", traits={"plan": "pro"}, context={"traits": {"plan": "free"}}))["users"][
        0
    ]
    assert (row["plan"], row["context_traits_plan"]) == ("pro", "free")


def test_accounts_have_the_traits_of_the_group_and_no_context() -> None:
    row = tables(call("group", groupId="g1", traits={"plan": "pro"}, context={"ip": "1.2.3.4"}))["accounts"][0]
    assert (row["plan"], "context_ip" in row) == ("pro", False)


@pytest.mark.parametrize(
    ("name", "repeated", "expected"),
    [
        ("Home", "Home", {"name": "Home", "_name": None}),
        ("Home", "Start", {"name": "Home", "_name": "Start"}),
        (None, "Start", {"name": "Start", "_name": None}),
        (None, 7, {"name": "7", "_name": None}),
    ],
)
def test_a_page_name_sent_twice_is_kept_once(name: str | None, repeated: Any, expected: dict[str, Any]) -> None:
    row = tables(call("page", name=name, properties={"name": repeated}))["pages"][0]
    assert {column: row[column] for column in expected} == expected


def test_a_context_that_is_no_object_goes_to_the_overflow() -> None:
    first, second = tables(
        call("track", event="A", context="x", properties=[1]), call("track", event="A", messageId="m2")
    )["a"]
    assert first["_overflow"] == {"context": "x", "properties": [1]}
    assert second.get("_overflow") is None


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (call("track"), "track without an event name"),
        (call("track", event=7), "track without an event name"),
        (call("delete"), "no table for type 'delete'"),
        (call("page", messageId=None), "no message id"),
        (call("page", messageId=""), "no message id"),
    ],
)
def test_what_cannot_be_a_row_is_named_and_spares_its_neighbours(event: dict[str, Any], reason: str) -> None:
    built = build([event, SEAT_BOOKED])
    assert dict(built.rejected) == {0: reason}
    assert [rows_of(rows)[0]["id"] for rows in built.tables.values()] == ["m1", "m1"]
