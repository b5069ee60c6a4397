"""When an alert speaks, and that it does not chatter."""

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pipeline.alerts.conditions import DAY, HOUR, MINUTE, Condition, Look, Samples, Thresholds, conditions
from pipeline.alerts.states import Alert, advance, due
from schemas.notices import Notice

NOW = 1_000 * DAY


def wrong(look: Look, limits: Thresholds | None = None) -> list[str]:
    return [one.alert for one in conditions(look, limits or Thresholds()) if one.wrong]


def crm(**samples: list[tuple[int, int]]) -> Look:
    """A look at one destination; samples are (age, value)."""
    past = {f"{name}:crm": [(NOW - age, value) for age, value in values] for name, values in samples.items()}
    return Look(at=NOW, states={"crm": ("delivering", "")}, samples=past)


def test_a_destination_that_works_is_nothing_to_speak_of():
    assert (
        wrong(crm(delivered=[(HOUR, 0), (5 * MINUTE, 900), (0, 1_000)], dead=[(HOUR, 0), (5 * MINUTE, 0), (0, 0)]))
        == []
    )


def test_a_paused_destination_is_told_with_its_reason_and_the_remedy():
    look = Look(at=NOW, states={"crm": ("paused", "http 401")})
    assert [one for one in conditions(look, Thresholds()) if one.wrong] == [
        Condition(
            "destination crm stopped",
            True,
            "destination crm is paused: http 401",
            "mend what it says, then `millrace destinations check crm`; nothing is lost meanwhile",
        )
    ]


def test_a_low_rate_speaks_while_both_the_hour_and_the_last_minutes_are_low():
    low = crm(delivered=[(HOUR, 0), (5 * MINUTE, 800), (0, 880)], dead=[(HOUR, 0), (5 * MINUTE, 200), (0, 220)])
    over = crm(delivered=[(HOUR, 0), (5 * MINUTE, 800), (0, 900)], dead=[(HOUR, 0), (5 * MINUTE, 200), (0, 200)])
    few = crm(delivered=[(HOUR, 0), (5 * MINUTE, 1), (0, 1)], dead=[(HOUR, 0), (5 * MINUTE, 5), (0, 5)])
    limits = Thresholds(dead_letters=None)
    assert [wrong(look, limits) for look in (low, over, few)] == [["destination crm delivery rate"], [], []]


def test_dead_letters_of_the_last_hour_are_counted_not_those_before():
    assert wrong(crm(dead=[(2 * HOUR, 0), (HOUR, 7), (0, 8)])) == ["destination crm dead letters"]
    assert wrong(crm(dead=[(2 * HOUR, 0), (HOUR, 7), (0, 7)])) == []


def test_the_first_hour_is_no_excuse():
    assert wrong(crm(dead=[(MINUTE, 0), (0, 8)])) == ["destination crm dead letters"]
    bad = crm(delivered=[(MINUTE, 0), (0, 10)], dead=[(MINUTE, 0), (0, 20)])
    assert wrong(bad) == ["destination crm delivery rate", "destination crm dead letters"]
    assert wrong(crm(dead=[(0, 8)])) == []  # they may be of any time


def test_an_event_that_waits_too_long_is_a_lag():
    look = replace(crm(), oldest={"crm": NOW - 11 * MINUTE})
    assert wrong(look) == ["destination crm lag"]
    assert wrong(look, Thresholds(lag=None)) == []


def test_a_source_that_falls_silent_is_compared_with_the_day_before():
    def sent(today: int, before: int) -> Look:
        samples: Samples = {"accepted:web": [(NOW - 2 * DAY, 0), (NOW - DAY, before), (NOW, before + today)]}
        return Look(at=NOW, samples=samples)

    assert [wrong(look) for look in (sent(400, 1_000), sent(600, 1_000), sent(0, 50))] == [
        ["source web volume"],
        [],
        [],
    ]


def test_books_that_are_off_speak_and_books_that_cannot_be_counted_say_nothing():
    assert wrong(Look(at=NOW, off=3)) == ["books off"]
    assert wrong(Look(at=NOW, off=None)) == []


# ── Who is told ───────────────────────────────────────────────────────────────────────────────────────────────────


def story(looks: Sequence[tuple[int, bool | None]], *, hold: int = 0, calm: int = 5, heard: bool = True) -> list[str]:
    """What a channel hears of one condition over (time in minutes, wrong)."""
    known: dict[str, Alert] = {}
    said: list[str] = []
    for at, is_wrong in looks:
        now = at * MINUTE
        seen = Condition("crm", is_wrong, "it is down", "mend it", hold * MINUTE, calm * MINUTE)
        known = advance(known, [seen], now)
        for name, alert in known.items():
            for channel, notice in due(alert, ["night"], now).items():
                if heard:
                    said.append(f"{at} {notice.state}")
                    known[name] = replace(alert, told={**alert.told, channel: notice.id})
    return said


def test_an_alert_fires_once_and_resolves_once():
    assert story([(0, False), (1, True), (2, True), (3, False), (7, False), (8, False), (9, False)]) == [
        "1 firing",
        "8 resolved",
    ]


def test_a_flapping_condition_is_one_alert():
    assert story([(at, at % 2 == 0) for at in range(60)] + [(70, False)]) == ["0 firing", "70 resolved"]


def test_what_comes_back_within_the_hour_is_told_once_more_and_then_takes_an_hour_of_calm():
    every_quarter = [(at, at % 15 == 0) for at in range(15, 600, 5)]
    assert story([*every_quarter, *((at, False) for at in range(600, 700))]) == [
        "15 firing",
        "25 resolved",
        "30 firing",
        "650 resolved",
    ]


def test_what_comes_back_after_an_hour_is_another_alert():
    assert story([(1, True), (2, False), (7, False), (61, True), (62, False), (67, False)]) == [
        "1 firing",
        "7 resolved",
        "61 firing",
        "67 resolved",
    ]


def test_a_moment_is_no_alert_when_it_has_to_hold():
    assert story([(0, True), (1, False), (2, True), (3, True), (4, True)], hold=2) == ["4 firing"]


def test_what_cannot_be_told_changes_nothing():
    assert story([(0, True), (1, None), (100, None), (101, True)]) == ["0 firing"]


def test_an_alert_is_repeated_once_a_day():
    assert story([(hours * 60, True) for hours in range(50)]) == ["0 firing", "1440 firing", "2880 firing"]


def test_a_channel_that_never_heard_of_it_is_not_told_that_it_is_over():
    assert story([(0, True), (1, False), (10, False)], heard=False) == []


def test_a_destination_that_is_removed_resolves():
    fired = advance({}, [Condition("crm", True, "down", "mend")], MINUTE)
    told = {name: replace(one, told={"night": "firing 60000000 0"}) for name, one in fired.items()}
    calming = advance(told, [], 2 * MINUTE)
    assert {name: one.state for name, one in advance(calming, [], 20 * MINUTE).items()} == {"crm": "ok"}


def test_two_channels_hear_each_for_itself():
    alert = Alert(name="crm", state="firing", fired=5, told={"mail": "firing 5 0"})
    assert due(alert, ["mail", "team"], 6) == {
        "team": Notice(id="firing 5 0", alert="crm", state="firing", text="", remedy="", since=5, at=6)
    }


@given(
    st.lists(st.tuples(st.integers(1, 30), st.sampled_from([True, False, None])), max_size=60),
    st.integers(0, 10),
    st.integers(0, 10),
)
def test_within_a_day_nobody_hears_the_same_twice_in_a_row(steps, hold, calm):
    at, looks = 0, []
    for minutes, is_wrong in steps:
        at += minutes
        looks.append((at % 1_440, is_wrong))
    looks.sort(key=lambda one: one[0])
    said = [one.split()[1] for one in story(looks, hold=hold, calm=calm)]
    assert said == ["firing", "resolved"] * (len(said) // 2) + ["firing"] * (len(said) % 2)


@given(st.lists(st.tuples(st.integers(1, 20), st.booleans()), max_size=200), st.integers(0, 10), st.integers(0, 10))
def test_nobody_hears_more_than_four_times_in_an_hour_however_often_it_comes_and_goes(steps, hold, calm):
    at, looks = 1, []
    for minutes, is_wrong in steps:
        at += minutes
        looks.append((at, is_wrong))
    said = [int(one.split()[0]) for one in story(looks, hold=hold, calm=calm)]
    assert all(sum(start <= one < start + 60 for one in said) <= 4 for start in said)
