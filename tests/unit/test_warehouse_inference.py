"""Types of columns: what a first value decides, what later ones widen, and that nothing is lost."""

from typing import Any

import pytest

from destinations.warehouse.inference import Column, number_text, parse_timestamp, settle, timestamp_text

MIDNIGHT = 1767225600_000000  # 2026-01-01T00:00:00Z


@pytest.mark.parametrize(
    ("value", "kind", "stored"),
    [
        (True, "boolean", True),
        (5, "bigint", 5),
        (-(2**63), "bigint", -(2**63)),
        (2**63, "double", float(2**63)),
        (2**63 + 1, "text", str(2**63 + 1)),
        (5.0, "double", 5.0),
        (5.5, "double", 5.5),
        ("x", "text", "x"),
        ("12", "text", "12"),
        ("", "text", ""),
        ("2026-01-01", "text", "2026-01-01"),
        ("10:00:00", "text", "10:00:00"),
        ("2026-01-01T00:00:00", "timestamp", MIDNIGHT),
        ("2026-01-01T02:00:00+02:00", "timestamp", MIDNIGHT),
        ("2026-01-01t02:00:00.000001234+0200", "timestamp", MIDNIGHT + 1),
        ("2025-13-40T00:00:00Z", "text", "2025-13-40T00:00:00Z"),
        (["507f1", "505bd"], "text", '["507f1","505bd"]'),
        ([], "text", "[]"),
        ({"deep": 1}, "text", '{"deep":1}'),
    ],
)
def test_a_first_value_decides_the_type(value: Any, kind: str, stored: Any) -> None:
    column = settle(None, [None, value])
    assert (column.type, list(column.values)) == (kind, [None, stored])


@pytest.mark.parametrize(
    ("values", "kind", "stored"),
    [
        ([5, 5.5, "n/a"], "text", ["5", "5.5", "n/a"]),
        ([5, 5.0], "bigint", [5, 5]),
        ([5.0, 5], "double", [5.0, 5.0]),
        ([5, 5.5], "double", [5.0, 5.5]),
        ([5, "6"], "bigint", [5, 6]),
        ([5, "06"], "text", ["5", "06"]),
        ([5.5, "6.25"], "double", [5.5, 6.25]),
        ([5.5, "6.250"], "text", ["5.5", "6.250"]),
        ([2**53 + 1, 0.5], "text", [str(2**53 + 1), "0.5"]),
        ([0.5, 2**53 + 1], "text", ["0.5", str(2**53 + 1)]),
        ([5, 2**63], "double", [5.0, float(2**63)]),
        ([True, "x"], "text", ["true", "x"]),
        ([True, 1], "text", ["true", "1"]),
        ([1, True], "text", ["1", "true"]),
        (["x", 1, None, True, [1]], "text", ["x", "1", None, "true", "[1]"]),
        (["2026-01-01T02:00:00+02:00", "soon"], "text", ["2026-01-01T00:00:00.000000Z", "soon"]),
        (["soon", "2026-01-01T02:00:00+02:00"], "text", ["soon", "2026-01-01T02:00:00+02:00"]),
        (["2026-01-01T00:00:00Z", "2025-13-40T00:00:00Z"], "text", ["2026-01-01T00:00:00.000000Z", "2025-13-40T00:00:00Z"]),
        (["2026-01-01T00:00:00Z", 5], "text", ["2026-01-01T00:00:00.000000Z", "5"]),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_widen_the_column(values: list[Any], kind: str, stored: list[Any]) -> None:
    column = settle(None, values)
    assert (column.type, list(column.values)) == (kind, stored)


def test_a_column_that_exists_says_through_which_types_it_widens() -> None:
    assert settle("bigint", [0.5, "n/a"]) == Column("text", ["0.5", "n/a"], ("double", "text"))
    assert settle("bigint", [0.5]) == Column("double", [0.5], ("double",))
    assert settle("timestamp", ["n/a"]) == Column("text", ["n/a"], ("text",))
    assert settle("text", [1]) == Column("text", ["1"])


def test_integers_in_the_database_that_no_double_can_hold_become_text() -> None:
    assert settle("bigint", [0.5], exact=lambda: False) == Column("text", ["0.5"], ("text",))


def test_values_that_stand_in_another_order_are_taken_as_they_happened() -> None:
    later, earlier = "soon", "2026-01-01T02:00:00+02:00"
    column = settle(None, [later, earlier], ranks=lambda: [1, 0])
    assert list(column.values) == ["soon", "2026-01-01T00:00:00.000000Z"]


def test_nulls_alone_decide_nothing() -> None:
    assert settle(None, [None] * 1_000) == Column(None, [None] * 1_000)
    assert settle(None, [*[None] * 1_000, "x"]).type == "text"


@pytest.mark.parametrize(
    ("number", "text"),
    [(5.0, "5"), (-0.0, "0"), (0.1, "0.1"), (1e15, "1000000000000000.0"), (1e22, "1e+22"), (1e-7, "1e-07")],
)
def test_doubles_have_one_text(number: float, text: str) -> None:
    assert number_text(number) == text


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00.000000Z", "1969-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.000001Z"])  # fmt: skip
def test_timestamps_read_back(text: str) -> None:
    micros = parse_timestamp(text)
    assert micros is not None
    assert timestamp_text(micros) == text


@pytest.mark.parametrize(
    "text", ["", "2026-01-01 00:00:00", "2026-01-01T00:00", "2026-02-30T00:00:00Z", "2026-01-01T24:00:01Z", "٢٠٢٦-01-01T00:00:00Z"]
)  # fmt: skip
def test_what_only_resembles_a_timestamp_is_none(text: str) -> None:
    assert parse_timestamp(text) is None
