"""Usage: months, and the sketch that counts users without keeping them."""

from math import sqrt
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.usage import REGISTERS, STANDARD_ERROR, estimate, joined, month_of, with_users

names = st.sets(st.text(max_size=10), max_size=40)


def test_a_month_begins_at_midnight_utc() -> None:
    december = 1_764_547_200_000_000
    assert [month_of(december - 1), month_of(december), month_of(0)] == ["2025-11", "2025-12", "1970-01"]


@pytest.mark.parametrize("count", [1, 10, 100, 1_000, 5_000, 10_000, 20_000, 50_000])
def test_the_estimate_keeps_its_standard_error_at_every_size(count: int) -> None:
    """The names are always the same, and so is the result."""
    sketches = [with_users(b"", {f"{number}-{user}" for user in range(count)}) for number in range(16)]
    errors = [estimate(sketch) / count - 1 for sketch in sketches]
    assert sqrt(fmean(error**2 for error in errors)) <= 1.2 * STANDARD_ERROR
    assert abs(fmean(errors)) <= STANDARD_ERROR / 2
    assert {len(sketch) for sketch in sketches} == {REGISTERS}


def test_nobody_is_nobody() -> None:
    assert [estimate(b""), estimate(with_users(b"", set()))] == [0, 0]


@given(names, names)
def test_users_of_two_partitions_are_counted_once(one: set[str], other: set[str]) -> None:
    apart = joined(with_users(b"", one), with_users(b"", other))
    assert (apart or bytes(REGISTERS)) == with_users(b"", one | other)


@given(names, names)
def test_a_user_seen_again_changes_nothing(users: set[str], more: set[str]) -> None:
    sketch = with_users(b"", users | more)
    assert with_users(sketch, users) == sketch
