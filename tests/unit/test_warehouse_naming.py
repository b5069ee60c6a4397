"""Names of tables and columns: the published vectors, and the cases that they leave open."""

import pytest

from destinations.warehouse.naming import columns_of, event_table, fit, schema_name, snake_case

VECTORS = {
    "Order Completed": "order_completed",
    "Signed Up!": "signed_up",
    "orderID": "order_id",
    "HTTPServerError": "httpserver_error",
    "iOSVersion": "i_osversion",
    "3rdPartyOptIn": "3rd_party_opt_in",
    "GDPRConsentGiven": "gdprconsent_given",
    "ABTest": "abtest",
    "isVIP": "is_vip",
    "myURLIs": "my_urlis",
    "v2Beta": "v2_beta",
    "omega v2": "omega_v2",
    "9mega": "9mega",
    "1CComega": "1ccomega",
    "10k Run": "10k_run",
    "emailAddress2": "email_address2",
    "camelCase123Key": "camel_case123_key",
    "x1Y2": "x1_y2",
    "UPPER_CASE": "upper_case",
    "Mixed_Case": "mixed_case",
    "checkout-step 2": "checkout_step_2",
    "utm.source": "utm_source",
    "_private": "private",
    "trailing_": "trailing",
    "a__b": "a_b",
    "already_snake": "already_snake",
    "price$": "price",
    "Page  Viewed": "page_viewed",
    "étéParis": "t_paris",
    "Ürün": "r_n",
    "购买": "",
    "A": "a",
}


@pytest.mark.parametrize(("name", "slug"), VECTORS.items())
def test_names_are_snake_cased_as_published(name: str, slug: str) -> None:
    assert snake_case(name) == slug


@pytest.mark.parametrize(
    ("event", "table"),
    [
        ("Order Completed", "order_completed"),
        ("order_completed", "order_completed"),
        ("Users", "event_users"),
        ("Tracks", "event_tracks"),
        ("identifies", "event_identifies"),
        ("购买", "event_cc6f86bd"),
        ("🛒", "event_00922290"),
        ("éé", "ee"),
        ("x" * 300, "x" * 246 + "_0d4e2ca9"),
    ],
)
def test_every_event_name_has_a_table_of_its_own_kind(event: str, table: str) -> None:
    assert event_table(event) == table


@pytest.mark.parametrize(
    ("source", "schema"),
    [("shop", "shop"), ("my-shop", "my_shop"), ("main", "source_main"), ("pg_catalog", "source_pg_catalog")],
)
def test_a_source_has_a_schema_that_the_database_does_not_claim(source: str, schema: str) -> None:
    assert schema_name(source) == schema


def test_long_names_with_one_beginning_stay_apart_and_stable() -> None:
    one, two = fit("a" * 63 + "first", 63), fit("a" * 63 + "second", 63)
    assert (len(one), len(two)) == (63, 63)
    assert one != two
    assert one == "a" * 54 + "_" + one[-8:] == fit("a" * 63 + "first", 63)
    assert fit("a" * 63, 63) == "a" * 63


@pytest.mark.parametrize(
    ("paths", "columns"),
    [
        ([("seatNo",), ("train", "lineID")], {0: "seat_no", 1: "train_line_id"}),
        ([("userId",), ("user_id",)], {1: "_user_id"}),
        ([("event",), ("timestamp",), ("received_at",), ("id",)], dict(enumerate(("_event", "_timestamp", "_received_at", "_id")))),
        ([("context_ip",), ("context", "ip")], {0: "_context_ip", 1: "_context_ip_2"}),
        ([("order",), ("select",)], {0: "order", 1: "select"}),
        ([("Plan",), ("plan",)], {1: "plan"}),
        ([("a", "b"), ("a_b",)], {0: "a_b_2", 1: "a_b"}),
        ([("a", "b"), ("a_b",), ("a_b_2",)], {0: "a_b_3", 1: "a_b", 2: "a_b_2"}),
        ([("购买",), ("é",)], {0: "col_cc6f86bd", 1: "e"}),
    ],
)  # fmt: skip
def test_leaves_find_their_columns(paths: list[tuple[str, ...]], columns: dict[int, str]) -> None:
    assert {one.leaf: one.column for one in columns_of(paths)} == columns


def test_context_columns_carry_their_prefix_and_reserve_nothing() -> None:
    assert [one.column for one in columns_of([("app", "version"), ("timestamp",)], "context_")] == [
        "context_app_version",
        "context_timestamp",
    ]


def test_a_name_that_cannot_be_guessed_from_its_path_is_marked() -> None:
    assert [one.odd for one in columns_of([("plain",), ("userId",), ("购买",), ("a", "b")])] == [
        False,
        True,
        True,
        False,
    ]
