"""How profiles look to a person, how a person searches, and exports that are cut off."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import click
import pytest

from millrace.cli.profiles_export import export_to
from millrace.cli.profiles_text import found_line, profile_lines, tree_of
from millrace.client import Client
from schemas.errors import Unavailable

AT = "2026-11-01T12:00:01.123Z"


def test_a_profile_is_one_fact_a_line() -> None:
    profile = {
        "id": "p1",
        "external_ids": [{"type": "user_id", "id": "u1"}, {"type": "email", "id": "ada@example.com"}],
        "events": 3,
        "first_seen": AT,
        "last_seen": AT,
        "merged": ["p0", "p2"],
    }
    traits = {
        "plan": {"value": "free", "source_id": "web", "updated_at": AT},
        "address": {"value": {"city": "Köln"}, "source_id": None, "updated_at": AT},
    }
    event = {"timestamp": AT, "type": "track", "event": "Signed Up", "message_id": "m1", "source_id": "web"}
    link = {
        "to_collection": "accounts",
        "id": "acc",
        "external_ids": [{"type": "group_id", "id": "g1"}],
        "linked_at": AT,
    }
    trigger = {"type": "identify", "message_id": "m2", "source_id": "web"}
    merge = {"absorbed": "p0", "survivor": "p1", "at": AT, "trigger": trigger, "undone_by": None}
    lines = profile_lines(
        profile,
        traits=traits,
        events=[event],
        links={"data": [link], "cursor": {"has_more": True}},
        merges={"data": [merge]},
    )
    assert list(lines) == [
        "profile p1",
        "id user_id:u1",
        "id email:ada@example.com",
        f'trait address = {{"city": "Köln"}} ({AT})',
        f'trait plan = "free" ({AT}, web)',
        "events 3",
        f"first seen {AT}",
        f"last seen {AT}",
        f'event {AT} track "Signed Up" (m1, web)',
        f"account group_id:g1 since {AT}",
        "… and more links",
        f"merged p0 into p1 {AT} by identify m2 from web",
        "merged p2",
    ]


def test_a_person_that_was_found_is_a_line() -> None:
    one = {"id": "p1", "external_ids": [{"type": "email", "id": "a@b.c"}], "traits": {"plan": "pro", "orders": 3}}
    assert found_line(one) == 'p1 email:a@b.c plan="pro" orders=3'


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["email:mia*"], {"id": "email", "op": "starts_with", "value": "mia"}),
        (["user_id:a:b"], {"id": "user_id", "op": "equals", "value": "a:b"}),
        (["plan=pro"], {"trait": "plan", "op": "equals", "value": "pro"}),
        (["plan!=pro"], {"trait": "plan", "op": "not_equals", "value": "pro"}),
        (["orders >= 3"], {"trait": "orders", "op": "greater_or_equal", "value": 3}),
        (["vip=true"], {"trait": "vip", "op": "equals", "value": True}),
        (['zip="1010"'], {"trait": "zip", "op": "equals", "value": "1010"}),
        (["city~Tur"], {"trait": "city", "op": "contains", "value": "Tur"}),
        (["vip"], {"trait": "vip", "op": "exists"}),
        (
            ["email:mia*", "orders<2"],
            {
                "and": [
                    {"id": "email", "op": "starts_with", "value": "mia"},
                    {"trait": "orders", "op": "less_than", "value": 2},
                ]
            },
        ),
    ],
)
def test_conditions_are_typed_as_one_says_them(typed: list[str], meant: Mapping[str, Any]) -> None:
    assert tree_of(typed) == meant


def test_half_a_condition_is_explained() -> None:
    with pytest.raises(click.UsageError, match="TYPE:VALUE"):
        tree_of(["email:"])


# ── Export ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Server:
    """Gives out lines; each attempt ends after as many as it was told, with the line `complete` if it comes that far."""

    address = "http://test"

    def __init__(self, total: int, *attempts: int) -> None:
        self.lines = [json.dumps({"id": f"p{n}", "cursor": f"users:p{n}"}).encode() + b"\n" for n in range(total)]
        self.attempts = list(attempts)
        self.asked: list[str] = []

    def stream(self, path: str) -> Iterator[tuple[Mapping[str, str], bytes]]:
        self.asked.append(path.partition("?")[2])
        headers = {"millrace-export-as-of": "77", "millrace-export-profiles": str(len(self.lines))}
        begin = int(path.rpartition("p")[2]) + 1 if "after=users" in path else 0
        most = self.attempts.pop(0) if self.attempts else len(self.lines)
        yield headers, b""
        for line in self.lines[begin : begin + most]:
            yield headers, line
        if begin + most < len(self.lines):
            yield headers, b'{"id": "half'
            return
        yield headers, b'{"complete":true}\n'


def exported(server: Server, out: Path) -> int:
    return export_to(cast(Client, server), out, progress=False, pause=lambda _: None)


def test_an_export_that_is_cut_off_goes_on_where_it_was(tmp_path: Path) -> None:
    server = Server(10, 4, 3)
    assert exported(server, tmp_path / "all.ndjson") == 10
    assert (tmp_path / "all.ndjson").read_bytes() == b"".join(server.lines)
    assert server.asked == ["", "as_of=77&after=users%3Ap3", "as_of=77&after=users%3Ap6"]
    assert [one.name for one in tmp_path.iterdir()] == ["all.ndjson"]


def test_an_export_that_was_given_up_goes_on_when_it_is_run_again(tmp_path: Path) -> None:
    out = tmp_path / "all.ndjson"
    with pytest.raises(Unavailable, match="before it was complete"):
        exported(Server(10, 4, *[0] * 40), out)
    assert not out.exists()
    partial = tmp_path / "all.ndjson.partial"
    partial.write_bytes(partial.read_bytes() + b'{"id": "p4", "cu')  # the machine went down in the middle of a line
    again = Server(10)
    assert exported(again, out) == 10
    assert again.asked == ["as_of=77&after=users%3Ap3"]
    assert out.read_bytes() == b"".join(again.lines)
