"""How paths of events look to a person."""

from typing import Any

import pytest

from millrace.cli.common import say, say_line
from millrace.show import event_lines, path_text

ACCEPTED: dict[str, Any] = {
    "messageId": "m1",
    "type": "track",
    "event": "Order Completed",
    "userId": "u1",
    "anonymousId": "a1",
    "source": "web",
    "receivedAt": "2026-11-01T12:00:01.123Z",
    "refused": None,
    "profile": None,
    "destinations": {},
    "complete": False,
}
GROWN = ACCEPTED | {
    "profile": {"id": "p1", "after_ms": 4},
    "destinations": {
        "crm": {"outcome": "retry", "reason": "http 503", "after_ms": 90, "attempts": 2},
        "warehouse": {"outcome": "delivered", "reason": None, "after_ms": 160, "attempts": 1},
    },
}


def test_a_path_is_one_line_that_grows() -> None:
    start = '12:00:01.123 track "Order Completed" user u1 · web · m1 · accepted'
    assert path_text(ACCEPTED) == start
    assert path_text(GROWN) == (
        f"{start} → profile p1 (4 ms) → crm retry: http 503 (2 attempts) (90 ms) → warehouse delivered (160 ms)"
    )


def test_a_refused_event_says_why_and_nothing_else() -> None:
    refused = ACCEPTED | {"event": None, "userId": None, "anonymousId": None, "refused": "no_user_anon_id"}
    assert path_text(refused) == "12:00:01.123 track nobody · web · m1 · refused: no_user_anon_id"
    assert list(event_lines(refused)) == [
        "event m1",
        "track of nobody from source web",
        "refused 2026-11-01T12:00:01.123Z: no_user_anon_id",
    ]


def test_a_refusal_of_long_ago_has_fewer_fields() -> None:
    kept = {
        "messageId": "m1",
        "source": "web",
        "receivedAt": "2026-11-01T12:00:01.123Z",
        "refused": "bad",
        "complete": True,
    }
    assert path_text(kept) == "12:00:01.123 event nobody · web · m1 · refused: bad"
    assert list(event_lines(kept))[-1] == "refused 2026-11-01T12:00:01.123Z: bad"


def test_a_stream_too_fast_to_show_says_what_it_passed_over() -> None:
    assert path_text({"passed_over": 12_345}) == "… 12,345 more events: too fast to show, the balance counts them"


def test_an_event_is_one_fact_a_line() -> None:
    assert list(event_lines(GROWN | {"anonymousId": None, "userId": None})) == [
        "event m1",
        'track "Order Completed" of nobody from source web',
        "accepted 2026-11-01T12:00:01.123Z",
        "profile p1 (4 ms)",
        "destination crm retry: http 503 (2 attempts) (90 ms)",
        "destination warehouse delivered (160 ms)",
    ]


HOSTILE: dict[str, Any] = ACCEPTED | {
    "event": "E\x1b[2J",
    "userId": 'u\x1b]0;title\x07\n12:00 track "Paid"',
    "messageId": "m\x9b2J\u202e",
}


def test_what_a_stranger_calls_itself_commands_no_terminal_and_adds_no_line() -> None:
    who = 'user u\\u001b]0;title\\u0007\\u000a12:00 track "Paid"'
    assert path_text(HOSTILE) == f'12:00:01.123 track "E\\u001b[2J" {who} · web · m\\u009b2J\\u202e · accepted'
    assert list(event_lines(HOSTILE))[:2] == [
        "event m\\u009b2J\\u202e",
        f'track "E\\u001b[2J" of {who} from source web',
    ]


def test_names_in_any_script_are_shown_as_they_are() -> None:
    named = ACCEPTED | {"userId": "Ζωή 👩‍💻 محمد"}
    assert "user Ζωή 👩‍💻 محمد · " in path_text(named)


def test_a_line_that_is_said_is_one_line_and_lines_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    say_line("id user_id:u\nid email:a@b.c\x1b[A")
    say("one\ntwo\x1b[A\tthree")
    assert capsys.readouterr().out == "id user_id:u\\u000aid email:a@b.c\\u001b[A\none\ntwo\\u001b[A\tthree\n"
