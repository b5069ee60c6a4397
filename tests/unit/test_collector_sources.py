"""How many events a source may send, told by a clock."""

import pytest

from collector.sources import Gates, Policy, RateLimited


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def wait(gates: Gates) -> float:
    """How long the source is told to wait; 0 when it may send."""
    try:
        gates.enter("web", None)
    except RateLimited as limited:
        return limited.after
    return 0


def test_after_a_pause_ten_seconds_worth_may_come_at_once(clock: Clock) -> None:
    gates = Gates({"web": Policy(events_per_second=5)}, clock)
    clock.now = 1_000
    waits = []
    for _ in range(6):
        waits.append(wait(gates))
        gates.pass_events("web", 10)
    assert waits == [0, 0, 0, 0, 0, 1]


def test_a_batch_larger_than_the_rate_goes_through_and_is_made_good_afterwards(clock: Clock) -> None:
    gates = Gates({"web": Policy(events_per_second=1)}, clock)
    assert wait(gates) == 0
    gates.pass_events("web", 100)
    assert wait(gates) == 91
    clock.now = 91
    assert wait(gates) == 0


def test_nobody_is_told_to_wait_longer_than_sdks_do(clock: Clock) -> None:
    gates = Gates({"web": Policy(events_per_second=0.01)}, clock)
    gates.pass_events("web", 2_500)
    assert wait(gates) == 300


def test_sources_do_not_touch_each_other(clock: Clock) -> None:
    gates = Gates({"app": Policy(events_per_second=1), "web": Policy(events_per_second=1), "server": Policy()}, clock)
    gates.pass_events("app", 100)
    gates.pass_events("server", 100)
    assert wait(gates) == 0
