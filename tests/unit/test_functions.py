"""A function of a customer's in its own process: whatever it does, each event gets an answer and nobody else notices."""

import asyncio
import os
from typing import Any

import orjson
import pytest

from destinations.contract import DELIVERED, Filtered, Outcome, Rejected, Retry
from pipeline.functions import confine
from pipeline.functions.installed import outcome
from pipeline.functions.shape import changed
from pipeline.functions.wire import Answer, Kind
from schemas.errors import Unavailable
from schemas.events import Event
from tests.unit.functions_world import function, track

MANY_ENDS = """
    import os, socket, subprocess, sys
    from millrace.functions import Drop, Invalid, Retry

    def on_track(event, settings):
        match event["event"]:
            case "change": return event | {"properties": {"by": settings["by"]}}
            case "drop": raise Drop("test orders")
            case "retry": raise Retry("later", after=3)
            case "invalid": raise Invalid("no sku")
            case "nothing": return None
            case "number": return 7
            case "several": return [event, event]
            case "strange": return {"x": object()}
            case "raise": return event["missing"]
            case "exit": sys.exit(3)
            case "secrets": return {"environment": dict(os.environ)}
            case "parent": return open(f"/proc/{os.getppid()}/environ").read()
            case "files": return open(settings["file"]).read()
            case "write": open("/tmp/millrace-function", "w")
            case "inside": return socket.create_connection(("127.0.0.1", 9))
            case "start": return subprocess.run(["true"])
            case "loop":
                while True: pass
            case "die": os._exit(1)
            case "eat": return bytearray(1 << 40)
            case "garbage":
                for descriptor in range(3, 64):
                    try: os.write(descriptor, b"garbage, not an answer")
                    except OSError: pass
        print("seen", event["event"])
        return event
"""


def kinds(answers: list[Answer]) -> list[Kind]:
    return [one.kind for one in answers]


@pytest.mark.parametrize(
    ("event", "answer"),
    [
        ("drop", Answer(Kind.DROPPED, b"test orders")),
        ("retry", Answer(Kind.RETRY, b'["later",3]')),
        ("invalid", Answer(Kind.INVALID, b"no sku")),
        ("nothing", Answer(Kind.ANSWER, b"on_track returned nothing instead of an event; raise Drop to drop one")),
        ("number", Answer(Kind.ANSWER, b"on_track returned int instead of an event; raise Drop to drop one")),
        ("several", Answer(Kind.ANSWER, b"on_track returned a list of 2 instead of an event; raise Drop to drop one")),
        ("strange", Answer(Kind.ANSWER, b"returned what is not JSON")),
        ("raise", Answer(Kind.RAISED, b"KeyError at shop.py:15")),
        ("exit", Answer(Kind.RAISED, b"SystemExit at shop.py:16")),
        ("write", Answer(Kind.RAISED, b"PermissionError at shop.py:20")),
        ("inside", Answer(Kind.RAISED, b"PermissionError at shop.py:21")),
        ("start", Answer(Kind.RAISED, b"PermissionError at shop.py:22")),
        ("eat", Answer(Kind.MEMORY)),
        ("die", Answer(Kind.CRASHED)),
        ("garbage", Answer(Kind.CRASHED)),
        ("loop", Answer(Kind.TIMEOUT)),
    ],
)
async def test_what_befalls_one_event_is_its_answer_and_the_next_goes_on(tmp_path, event, answer):
    async with function(tmp_path / "functions", MANY_ENDS, settings={"by": "shop"}, timeout=0.4) as runner:
        first, second = await runner.run([track(event), track("change")])
    assert first == answer
    assert orjson.loads(second.data)["properties"] == {"by": "shop"}


async def test_its_settings_are_all_it_has_of_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("MILLRACE_API_TOKEN", "geheim")
    (tmp_path / "millrace.yaml").write_text("geheim")
    settings = {"file": str(tmp_path / "millrace.yaml")}
    async with function(tmp_path / "functions", MANY_ENDS, settings=settings) as runner:
        told, parent, files = await runner.run([track("secrets"), track("parent"), track("files")])
    assert set(orjson.loads(told.data)["environment"]) <= {
        "PATH",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "TZ",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
    }
    if confine.confines_files():
        assert (parent.data, files.data) == (b"PermissionError at shop.py:18", b"PermissionError at shop.py:19")


async def test_what_it_prints_is_no_answer_and_is_kept_apart(tmp_path):
    said: list[bytes] = []
    async with function(tmp_path / "functions", MANY_ENDS, said=said) as runner:
        answers = await runner.run([track("one"), track("two")])
    assert (kinds(answers), b"".join(said)) == ([Kind.EVENT, Kind.EVENT], b"seen one\nseen two\n")


async def test_one_that_fails_again_and_again_is_left_alone_for_a_while(tmp_path):
    async with function(tmp_path / "functions", MANY_ENDS, timeout=0.05) as runner:
        answers = await runner.run([track("loop")] * 3 + [track("change")] * 2)
        assert kinds(answers) == [Kind.TIMEOUT] * 3 + [Kind.LOCKED_OUT] * 2
        assert 0 < runner.locked_for <= 1


async def test_processes_work_side_by_side_and_answers_keep_their_order(tmp_path):
    code = """
        import time
        def on_track(event, settings):
            time.sleep(event["properties"]["seconds"])
            return event
    """
    async with function(tmp_path / "functions", code, processes=2) as runner:
        first, second = await asyncio.gather(
            runner.run([track("slow", seconds=0.2)]), runner.run([track("quick", seconds=0)])
        )
    assert [orjson.loads(one.data)["event"] for one in (*first, *second)] == ["slow", "quick"]


async def test_events_that_a_slow_function_leaves_no_time_for_come_back(tmp_path):
    code = "import time\ndef on_track(event, settings):\n    time.sleep(0.05)\n    return event\n"
    async with function(tmp_path / "functions", code, within=0.08) as runner:
        assert kinds(await runner.run([track("x")] * 4)) == [Kind.EVENT, Kind.EVENT, Kind.LATE, Kind.LATE]


async def test_no_handler_for_a_type_and_the_references_spelling(tmp_path):
    code = "async def on_identity(event, settings):\n    return event\n"
    async with function(tmp_path / "functions", code) as runner:
        answers = await runner.run([b'{"type":"identify"}', b'{"type":"page"}'])
    assert kinds(answers) == [Kind.EVENT, Kind.UNSUPPORTED]


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ("[one | {'n': 1} for one in events]", [Kind.EVENT] * 3),
        ("[events[0], None, events[2]]", [Kind.EVENT, Kind.DROPPED, Kind.EVENT]),
        ("events[:2]", [Kind.ANSWER] * 3),
        ("None", [Kind.ANSWER] * 3),
    ],
)
async def test_on_batch_of_an_insert_answers_every_event_in_order(tmp_path, returned, expected):
    code = f"def on_batch(events, settings):\n    return {returned}\n"
    async with function(tmp_path / "functions", code) as runner:
        assert kinds(await runner.run([track("x")] * 3)) == expected


async def test_on_batch_of_a_destination_may_say_a_status_for_each(tmp_path):
    code = """
        def on_batch(events, settings):
            assert len(events) <= 2
            return [{"status": one["properties"]["status"], "errormessage": "why"} for one in events]
    """
    async with function(tmp_path / "functions", code, role="destination", batch=2) as runner:
        answers = await runner.run([track("x", status=one) for one in (200, 422, 503, 429)])
    assert answers == [
        Answer(Kind.DONE),
        Answer(Kind.INVALID, b"422 why"),
        Answer(Kind.RETRY, b'["503 why",null]'),
        Answer(Kind.RETRY, b'["429 why",null]'),
    ]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def on_track(:", "BAD_DEPLOY: SyntaxError at shop.py:1: invalid syntax; mend the file"),
        ("import nowhere", "BAD_DEPLOY: ModuleNotFoundError at shop.py:1: No module named 'nowhere'; mend the file"),
        ("import os; os._exit(0)", "ends its process; mend the file"),
        ("x = 1", "BAD_DEPLOY: ValueError: defines none of on_track"),
    ],
)
async def test_a_file_that_cannot_be_loaded_says_why(tmp_path, code, words):
    with pytest.raises(Unavailable) as caught:
        async with function(tmp_path / "functions", code):
            pass
    assert words in str(caught.value)


async def test_no_process_is_left_behind(tmp_path):
    async with function(tmp_path / "functions", MANY_ENDS) as runner:
        (process,) = runner._all
        number = process.child.pid
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


# ── What answers mean, and events that come back ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("answer", "means"),
    [
        (Answer(Kind.DONE), DELIVERED),
        (Answer(Kind.DROPPED, b"words"), Filtered("FILTERED_AT_INSERT_FUNCTION")),
        (Answer(Kind.UNSUPPORTED), Filtered("UNSUPPORTED_EVENT_TYPE")),
        (Answer(Kind.RETRY, b'["",null]'), Retry("RETRY")),
        (Answer(Kind.RETRY, b'["later",3]'), Retry("RETRY: later", 3)),
        (Answer(Kind.TIMEOUT), Retry("FUNCTION_TIMEOUT")),
        (Answer(Kind.LATE), Retry("FUNCTION_TIMEOUT", 0.0)),
        (Answer(Kind.LOCKED_OUT), Retry("FUNCTIONS_LOCK_OUT", 9.0)),
        (Answer(Kind.INVALID, b"no sku"), Rejected("MESSAGE_REJECTED: no sku")),
        (Answer(Kind.RAISED, b"KeyError at x.py:2"), Rejected("FUNCTION_RAISED: KeyError at x.py:2")),
        (Answer(Kind.MEMORY), Rejected("FUNCTION_OUT_OF_MEMORY")),
        (Answer(Kind.CRASHED), Rejected("FUNCTION_CRASHED")),
        (Answer(Kind.ANSWER, b"7"), Rejected("FUNCTION_ANSWER_INVALID: 7")),
    ],
)
def test_an_answer_is_an_outcome(answer: Answer, means: Outcome) -> None:
    assert outcome(answer, 9.0) == means


AT = 1_700_000_000_000_000
BODY = {"type": "track", "event": "A", "messageId": "m1", "timestamp": "client's", "_metadata": {"bundled": []}}
EVENT = Event("web", "track", "m1", "a1", None, AT, None, AT, "client", "1.2.3.4", None, orjson.dumps(BODY))
SEEN: dict[str, Any] = {
    "type": "track",
    "event": "A",
    "messageId": "m1",
    "anonymousId": "a1",
    "timestamp": "2023-11-14T22:13:20.000Z",
    "originalTimestamp": "client's",
    "receivedAt": "2023-11-14T22:13:20.000Z",
    "context": {"ip": "1.2.3.4"},
    "source": "web",
    "profileId": None,
    "externalIds": [],
}


def test_what_is_ours_stays_ours_and_the_rest_is_the_functions():
    made = SEEN | {"event": "B", "userId": "u1", "messageId": "other", "source": "app", "context": {}, "profileId": "p"}
    body = {"type": "track", "event": "B", "anonymousId": "a1", "context": {}, "userId": "u1"}
    assert changed(EVENT, made)._replace(body=b"") == EVENT._replace(user_id="u1", ip=None, body=b"")
    assert orjson.loads(changed(EVENT, made).body) == body | {
        "_metadata": {"bundled": []},
        "messageId": "m1",
        "timestamp": "client's",
    }


def test_an_event_that_a_function_puts_together_has_the_time_of_the_one_it_got():
    made = changed(EVENT, {"type": "track", "event": "Extra", "userId": "u1"})
    assert (made.type, made.user_id, made.timestamp) == ("track", "u1", EVENT.timestamp)
    assert changed(EVENT, SEEN | {"timestamp": None}) == changed(EVENT, SEEN)


def test_a_timestamp_that_a_function_sets_is_the_events():
    made = changed(EVENT, SEEN | {"timestamp": "2023-11-14T22:13:21+00:00"})
    assert (made.timestamp, orjson.loads(made.body)["timestamp"]) == (AT + 1_000_000, "2023-11-14T22:13:21+00:00")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"type": "purchase"}, "type is none of"),
        ({"userId": 7}, "userId is not a text"),
        ({"anonymousId": None}, "neither userId nor anonymousId"),
        ({"event": ""}, "a track call without the name"),
        ({"properties": []}, "properties is not an object"),
        ({"timestamp": "soon"}, "timestamp is not an ISO 8601 time"),
        ({"properties": {"x": "x" * 600_000}}, "more than 524,288 bytes"),
    ],
)
def test_an_event_that_could_not_have_been_sent_is_no_answer(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        changed(EVENT, SEEN | wrong)
    assert words in str(caught.value)
