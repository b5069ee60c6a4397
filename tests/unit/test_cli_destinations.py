"""`millrace destinations` as a script sees it: what it prints, what it asks the server for, and its exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest

from destinations.described import described
from destinations.registry import definitions
from tests.command_line import Said, millrace
from tests.unit.test_cli_identity import Stub, stub  # noqa: F401 - the fixture is used by name

STATUS: dict[str, Any] = {
    "name": "crm",
    "state": "paused",
    "state_since": None,
    "reason": "http 401",
    "attempts": 1_000,
    "delivered": 990,
    "retried": 8,
    "rejected": 2,
    "success_rate": 0.99,
    "latency": {"p50": 0.012, "p95": 2.5, "p99": None},
    "waiting": {"held": 3, "retry": 1},
    "oldest_at": None,
    "lag": 12_345,
    "errors": [
        {
            "code": "http 422",
            "message": "no such field",
            "count": 2,
            "remedy": "Correct it.",
            "at": "2026-11-21T09:00:00.000Z",
            "message_id": "m1",
            "request": '{"body":1}',
            "answer": None,
        }
    ],
}


@pytest.mark.parametrize("name", definitions())
def test_describe_names_every_setting_with_its_type_and_whether_it_is_secret(name: str) -> None:
    one = definitions()[name]
    found = described(one)
    assert [setting["name"] for setting in found["settings"]] == list(one.settings.model_fields)
    assert [action["name"] for action in found["actions"]] == [action.name for action in one.actions]
    json.dumps(found)


def test_secrets_are_marked_as_such() -> None:
    secret = {one["name"] for one in described(definitions()["webhook"])["settings"] if one["secret"]}
    assert secret == {"secret", "headers"}


def test_describe_prints_limits(tmp_path: Path) -> None:
    said = millrace(tmp_path, "destinations", "describe", "webhook")
    assert (said.code, said.err) == (0, "")
    assert (
        "limits, unless the configuration has others: as many events as it takes, tried again for 24 hours\n"
        in said.out
    )
    assert "setting batch_size (integer, default 100, from 1, to 1000): Most events in one request.\n" in said.out
    assert "setting secret (string, default empty, secret): " in said.out


def test_describe_knows_the_kind_of_a_configured_destination(tmp_path: Path) -> None:
    (tmp_path / "millrace.yaml").write_text(
        "destinations: {crm: {type: webhook, settings: {url: 'https://crm.example/'}}}"
    )
    by_name, by_kind = (millrace(tmp_path, "destinations", "describe", name) for name in ("crm", "webhook"))
    assert (by_name.code, by_name.out) == (0, by_kind.out)
    unknown = millrace(tmp_path, "destinations", "describe", "crn")
    assert (unknown.code, unknown.out) == (1, "")
    assert "does not exist; choose one of: duckdb, " in unknown.err


def test_check_says_which_answer_and_exits_1_when_one_does_not(tmp_path: Path) -> None:
    (tmp_path / "millrace.yaml").write_text(
        "sources: {web: {write_key: wk}}\n"
        "destinations:\n"
        "  crm: {type: webhook, settings: {url: 'http://127.0.0.1:1/'}}\n"
        "  store: {type: duckdb}\n"
        "outbound: {allow: [127.0.0.0/8]}\n"
    )
    failing = "millrace: destination crm: webhook: connection refused; mend destinations.crm.settings or the service\n"
    assert millrace(tmp_path, "destinations", "check") == Said(
        1, "destination crm (webhook) fails\ndestination store (duckdb) answers\n", failing
    )
    assert millrace(tmp_path, "destinations", "check", "store") == Said(0, "destination store (duckdb) answers\n", "")
    assert not list(tmp_path.rglob("*.duckdb"))
    said = millrace(tmp_path, "destinations", "check", "erp")
    assert said == Said(1, "", "millrace: no destination is called erp; configured: crm, store\n")


def test_status_shows_figures_and_errors_with_what_to_do(stub: Stub, tmp_path: Path) -> None:  # noqa: F811
    stub.answer = {"since": "2026-11-21T08:00:00.000Z", "destinations": [STATUS]}
    said = millrace(tmp_path, "destinations", "status", "--url", stub.url, MILLRACE_API_TOKEN="t")
    one = millrace(
        tmp_path,
        "destinations",
        "status",
        "crm",
        "--since",
        "2026-11-21",
        "--url",
        stub.url,
        MILLRACE_API_TOKEN="t",
    )
    assert (said.code, said.err) == (0, "")
    row = next(line for line in said.out.splitlines() if line.split()[:2] == ["crm", "paused"])
    assert row.split() == ["crm", "paused", "1,000", "99.00%", "12", "ms", "2.5", "s", "–", "4", "–", "12,345"]
    assert "crm is paused: http 401\ncrm: 2 × http 422: no such field\n  Correct it.\n" in said.out
    assert "request" not in said.out
    assert '  m1 at 2026-11-21T09:00:00.000Z\n  request {"body":1}\n' in one.out
    assert stub.asked[1][1] == "/api/destinations/crm?since=2026-11-21T00%3A00%3A00%2B00%3A00"


def test_status_of_a_destination_that_is_not_there_is_said_with_a_remedy(stub: Stub, tmp_path: Path) -> None:  # noqa: F811
    stub.status, stub.answer = 404, {"error": {"code": "not_found", "message": "No."}}
    said = millrace(tmp_path, "destinations", "status", "erp", "--url", stub.url, MILLRACE_API_TOKEN="t")
    assert said == Said(1, "", "millrace: no destination is called erp; `millrace destinations status` names all\n")
