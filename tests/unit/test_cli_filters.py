"""`millrace filters test`: an expression over events of a file or of the log."""

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from millrace.cli import commands
from pipeline.log import Record, open_log
from schemas.events import Origin
from schemas.topics import RESOLVED
from tests.command_line import Said, millrace
from tests.unit.delivery_world import resolved

EVENTS = [
    {"type": "track", "event": "Paid", "messageId": "m1", "properties": {"total": 9}},
    {"type": "track", "event": "Paid", "messageId": "m2", "properties": {"total": 5}},
    {"type": "page", "messageId": "m3"},
    {"type": "track", "event": "Paid", "messageId": "m4", "properties": {"total": "9"}},
]
EXPRESSION = "type = 'track' and properties.total > 5"


@pytest.fixture
def sample(tmp_path: Path) -> str:
    path = tmp_path / "sample.ndjson"
    path.write_text("\n".join(map(json.dumps, EVENTS)) + "\n\n")
    return str(path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(commands, ["filters", "test", *arguments])


def test_events_are_counted_by_what_is_said_of_them_with_the_reason(sample: str) -> None:
    done = run(EXPRESSION, "--events", sample, "--examples", "1")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "1 pass",
        "  track Paid m1",
        "2 do not pass",
        "  track Paid m2",
        "    type = 'track': true",
        "    properties.total > 5: false",
        '    type is "track"',
        "    properties.total is 5",
        "1 do not pass, since the expression cannot be evaluated for them",
        "  track Paid m4",
        "    type = 'track': true",
        "    properties.total > 5: cannot be evaluated",
        '    type is "track"',
        '    properties.total is "9"',
    ]


def test_machines_get_the_same_as_json(sample: str) -> None:
    done = run("event = 'Paid'", "--events", sample, "--examples", "1", "--json")
    assert json.loads(done.stdout) == {
        "expression": "event = 'Paid'",
        "passes": 3,
        "fails": 1,
        "unevaluable": 0,
        "examples": [
            {
                "type": "track",
                "event": "Paid",
                "messageId": "m1",
                "result": True,
                "parts": [{"expression": "event = 'Paid'", "result": True}],
                "values": {"event": "Paid"},
            },
            {
                "type": "page",
                "event": None,
                "messageId": "m3",
                "result": False,
                "parts": [{"expression": "event = 'Paid'", "result": False}],
                "values": {"event": None},
            },
        ],
    }


def test_what_is_no_expression_is_shown_with_its_place(sample: str) -> None:
    done = run("type == 'track'", "--events", sample)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "millrace: expected a path, a value or a function, found = (character 7)",
        "  type == 'track'",
        "        ^",
    ]


@pytest.mark.parametrize(("line", "problem"), [("{", ":2: no JSON ("), ("[1]", ":2: an event is a JSON object")])
def test_a_line_that_is_no_event_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "sample.ndjson"
    path.write_text(f"{{}}\n{line}\n")
    done = run("all", "--events", str(path))
    assert (done.exit_code, done.stdout) == (2, "")
    assert problem in done.stderr


def test_without_a_file_the_events_of_the_log_are_asked_as_destinations_get_them(tmp_path: Path) -> None:
    async def fill() -> None:
        async with open_log(f"embedded://{tmp_path}/log", partitions=1) as log:
            values = [resolved(f"m{n}", "p1", Origin(0, n), properties={"total": n}) for n in range(4)]
            await log.append(RESOLVED, [Record(b"p1", value, 1_700_000_000_000) for value in values])

    asyncio.run(fill())
    asked = ("filters", "test", "source = 'web' and properties.total > 0", "--data", ".", "--examples", "0")
    assert millrace(tmp_path, *asked, "--since", "2020-01-01") == Said(0, "3 pass\n1 do not pass\n", "")
    assert millrace(tmp_path, *asked) == Said(0, "no events; widen --since, or name a file with --events\n", "")


def test_a_file_and_the_log_exclude_each_other(sample: str) -> None:
    done = run("all", "--events", sample, "--since", "1h")
    assert done.exit_code == 2
    assert "--events and --since exclude each other" in done.stderr
