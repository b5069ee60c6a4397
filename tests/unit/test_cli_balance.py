"""`millrace balance` as a person sees it."""

from pathlib import Path
from typing import Any

import pytest

from tests.command_line import millrace
from tests.unit.test_cli_identity import Stub, stub  # noqa: F401 - the fixture is used by name

ROW = {"accepted": 10, "delivered": 7, "filtered": 0, "dead": 0, "purged": 0, "pending": 0, "missed": 0, "off": 0}


@pytest.mark.parametrize(
    ("row", "columns", "code", "says"),
    [
        (ROW | {"pending": 3}, ["pending", "off"], 0, "the books balance"),
        (ROW | {"missed": 3}, ["pending", "missed", "off"], 0, "the books balance"),
        (ROW | {"missed": 2, "off": 1}, ["pending", "missed", "off"], 1, "the books are off by 1;"),
    ],
)
def test_what_was_missed_is_shown_where_there_is_any_and_is_no_imbalance(
    tmp_path: Path,
    stub: Stub,  # noqa: F811
    row: dict[str, Any],
    columns: list[str],
    code: int,
    says: str,
) -> None:
    stub.answer = {"sources": {}, "destinations": {"crm": {"web": row}}, "replays": {}, "off": row["off"]}
    said = millrace(tmp_path, "balance", "--check", "--url", stub.url, MILLRACE_API_TOKEN="t")
    head, _, numbers, *_ = [line.split() for line in said.out.strip().splitlines()]
    names = ["accepted", "delivered", "filtered", "dead", "purged", *columns]
    assert (head, numbers) == (["source", "destination", *names], ["web", "crm", *(str(row[name]) for name in names)])
    assert (said.code, says in said.out) == (code, True)
