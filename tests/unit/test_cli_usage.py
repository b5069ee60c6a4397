"""`millrace usage` as a script sees it, and what any command prints of strangers' words."""

import json
from pathlib import Path

from tests.command_line import Said, millrace
from tests.unit.test_cli_identity import Stub, stub

__all__ = ["stub"]

NOVEMBER = {"month": "2026-11", "source": "web", "events": 12_345, "bytes": 6_789_012, "users": 99}


def usage(stub: Stub, folder: Path, *arguments: str) -> Said:
    return millrace(folder, "usage", *arguments, "--url", stub.url, MILLRACE_API_TOKEN="t")


def test_each_month_of_a_source_is_a_line(stub: Stub, tmp_path: Path) -> None:
    stub.answer = {"usage": [NOVEMBER, NOVEMBER | {"month": "2026-10"}]}
    assert usage(stub, tmp_path) == Said(
        0,
        "2026-11 web: 12,345 events, 6,789,012 bytes, 99 users\n2026-10 web: 12,345 events, 6,789,012 bytes, 99 users\n",
        "",
    )


def test_nothing_is_said_to_be_nothing(stub: Stub, tmp_path: Path) -> None:
    stub.answer = {"usage": []}
    assert usage(stub, tmp_path) == Said(0, "", "no source has sent an event yet\n")
    assert usage(stub, tmp_path, "--month", "2020-01") == Said(0, "", "no source has sent an event in 2020-01\n")
    assert stub.asked[-1] == ("GET", "/api/usage?month=2020-01", None)


def test_what_the_server_says_commands_no_terminal(stub: Stub, tmp_path: Path) -> None:
    stub.answer = {"usage": [NOVEMBER | {"source": "w\x1b]0;title\x07\x9b2J"}]}
    assert usage(stub, tmp_path).out.startswith("2026-11 w\\u001b]0;title\\u0007\\u009b2J: ")
    stub.status, stub.answer = 400, {"error": {"code": "no", "message": "No \x1b[2J."}}
    assert usage(stub, tmp_path) == Said(1, "", "millrace: the server answers 400 (No \\u001b[2J.)\n")


def test_json_stays_the_same_document(stub: Stub, tmp_path: Path) -> None:
    stub.answer = {"usage": [NOVEMBER | {"source": "w\x1b\x9b\u202e"}]}
    assert json.loads(usage(stub, tmp_path, "--json").out) == stub.answer
