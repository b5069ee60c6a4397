"""How fast a service is used: the rate that people set, and what a 429 makes of it."""

from math import inf

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.delivery.throttle import Leftover, Throttle


def sent(throttle: Throttle, start: float, seconds: float, step: float = 0.05) -> int:
    """How many events go when as many as allowed go at every step."""
    count = 0
    for tick in range(int(seconds / step)):
        now = start + tick * step
        room = min(throttle.room(now), 1_000)
        throttle.took(room, now)
        count += room
    return count


def test_without_a_limit_everything_may_go() -> None:
    throttle = Throttle()
    assert throttle.room(0) == 1 << 30
    throttle.took(1 << 20, 0)
    assert (throttle.room(0), throttle.next_at(7), throttle.rate) == (1 << 30, 7, inf)


def test_a_limit_holds_on_average_with_a_seconds_worth_at_once() -> None:
    throttle = Throttle(50)
    assert throttle.room(100) == 50
    assert 50 * 60 <= sent(throttle, 100, 60) <= 50 * 61


def test_a_limit_below_one_a_second_lets_one_go_now_and_then() -> None:
    throttle = Throttle(0.5)
    assert throttle.room(100) == 1
    throttle.took(1, 100)
    assert (throttle.room(101), throttle.next_at(100), throttle.room(102)) == (0, 102, 1)


def test_a_429_halves_the_rate_and_several_at_once_are_one() -> None:
    throttle = Throttle(100)
    throttle.room(0)
    assert [throttle.too_much(now) for now in (0.0, 0.5, 9.9, 10.0)] == [True, False, False, True]
    assert throttle.rate == 25


def test_something_is_left_of_the_rate_however_often_a_service_complains() -> None:
    throttle = Throttle(100)
    for turn in range(100):
        throttle.too_much(turn * 10.0)
    assert 5 <= throttle.rate <= 10


def test_five_hundredths_of_the_rate_come_back_every_ten_seconds() -> None:
    throttle = Throttle(100)
    throttle.room(0)
    throttle.too_much(0)
    rates = []
    for now in (9.9, 10, 25, 99.9, 100, 1_000):
        throttle.room(now)
        rates.append(throttle.rate)
    assert rates == [50, 55, 60, 95, 100, 100]


def test_without_a_limit_there_is_nothing_to_halve() -> None:
    throttle = Throttle()
    assert not throttle.too_much(0)
    assert (throttle.rate, throttle.room(0)) == (inf, 1 << 30)


def test_a_process_with_a_part_of_the_partitions_has_that_part_of_the_rate() -> None:
    throttle = Throttle(80)
    throttle.share(0.25)
    assert throttle.rate == 20
    throttle.too_much(0)
    throttle.share(0.5)
    assert throttle.rate == 20
    throttle.share(1)
    assert throttle.rate == 40


def test_who_comes_second_has_what_the_first_leaves_of_the_rate() -> None:
    throttle = Throttle(10)
    second = Leftover(throttle)
    assert (throttle.room(0), second.room(0), second.rate) == (10, 5, 10)
    for turn, (wanted, first, left) in enumerate(((100, 10, 0), (4, 4, 6), (0, 0, 10)), 1):  # events per second
        went = [0, 0]
        for tick in range(1_000):
            now = 1_000.0 * turn + tick / 10
            mine = min(throttle.room(now), wanted // 10 + (tick % 10 < wanted % 10))
            throttle.took(mine, now)
            count = second.room(now)
            second.took(count, now)
            went = [went[0] + mine, went[1] + count]
        assert went == pytest.approx([first * 100, left * 100], abs=10)


def test_who_comes_second_knows_when_it_may_go() -> None:
    throttle = Throttle(10)
    second = Leftover(throttle)
    second.took(10, 0)
    assert [throttle.next_at(0), second.next_at(0)] == pytest.approx([0.1, 0.6])
    assert (second.room(0.59), second.room(0.61)) == (0, 1)


@pytest.mark.parametrize("most", [0.5, 1.0])
def test_where_a_seconds_worth_is_one_event_nothing_is_kept(most: float) -> None:
    second = Leftover(Throttle(most))
    assert second.room(0) == 1
    second.took(1, 0)
    assert second.next_at(0) == pytest.approx(1 / most)


def test_without_a_limit_the_second_may_go_too_and_the_rate_is_not_the_seconds_to_divide() -> None:
    second = Leftover(Throttle())
    assert (second.room(0), second.next_at(7)) == (1 << 30, 7)
    throttle = Throttle(10)
    Leftover(throttle).share(0.5)
    assert throttle.rate == 10
    assert Leftover(throttle).too_much(0)
    assert throttle.rate == 5


@given(
    st.none() | st.floats(0.1, 10_000),
    st.lists(st.tuples(st.floats(0, 30), st.integers(0, 500), st.booleans()), max_size=50),
)
@example(0.2, [(14.244193125614927, 1, True), (10.0, 0, False)])
def test_more_than_the_rate_allows_never_goes(most: float | None, steps: list[tuple[float, int, bool]]) -> None:
    throttle, now, went = Throttle(most), 1_000.0, 0
    for wait, wanted, refused in steps:
        now += wait
        count = min(wanted, throttle.room(now))
        throttle.took(count, now)
        went += count
        if refused:
            throttle.too_much(now)
        assert 0 < throttle.rate <= (inf if most is None else most)
        if throttle.rate < inf and not throttle.room(now):
            assert throttle.next_at(now) > now
    if most is not None:
        assert went <= most * (now - 1_000.0) + max(1.0, most) + 1e-6
