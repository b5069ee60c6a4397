"""`millrace refusals` as a script sees it."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.command_line import Said, millrace
from tests.unit.test_cli_identity import Stub, stub

__all__ = ["stub"]

NAMELESS = {
    "source": "web",
    "messageId": "m1",
    "code": "event_not_defined",
    "remedy": "Name the track call's event.",
    "receivedAt": "2026-11-01T12:00:00.000Z",
    "body": '{"userId":\n "u1"}',
}
DISABLED = NAMELESS | {"source": "old", "code": "source_disabled", "remedy": "Enable the source."}


def page(*refused: dict[str, Any], following: str = "") -> dict[str, Any]:
    return {"data": list(refused), "cursor": {"has_more": bool(following), "next": following}}


def refusals(stub: Stub, folder: Path, *arguments: str) -> Said:
    return millrace(folder, "refusals", *arguments, "--url", stub.url, MILLRACE_API_TOKEN="t")


def test_each_is_a_line_and_each_reason_has_its_remedy(stub: Stub, tmp_path: Path) -> None:
    stub.answer = page(DISABLED, NAMELESS, NAMELESS | {"messageId": "m2", "body": "x" * 300})
    said = refusals(stub, tmp_path)
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines() == [
        '2026-11-01T12:00:00.000Z old source_disabled m1 {"userId": "u1"}',
        '2026-11-01T12:00:00.000Z web event_not_defined m1 {"userId": "u1"}',
        f"2026-11-01T12:00:00.000Z web event_not_defined m2 {'x' * 199}…",
        "2 × event_not_defined: Name the track call's event.",
        "1 × source_disabled: Enable the source.",
    ]


def test_what_is_wanted_is_asked_of_the_server_page_by_page(stub: Stub, tmp_path: Path) -> None:
    stub.answer = page(NAMELESS, NAMELESS, following="c2")
    said = refusals(
        stub, tmp_path, "--source", "web", "--code", "a b", "--since", "2026-01-31", "--limit", "3", "--json"
    )
    assert json.loads(said.out) == {"data": [NAMELESS] * 3}
    first, second = [parse_qs(urlsplit(path).query) for _, path, _ in stub.asked]
    assert first == {"source": ["web"], "code": ["a b"], "since": ["2026-01-31T00:00:00+00:00"], "limit": ["3"]}
    assert second == first | {"next": ["c2"]}


def test_none_is_said_to_be_none(stub: Stub, tmp_path: Path) -> None:
    stub.answer = page()
    assert refusals(stub, tmp_path) == Said(0, "", "no event was refused\n")
