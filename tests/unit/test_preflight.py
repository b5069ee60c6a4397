"""A new configuration against the present one: exact requests and rows, nothing sent, exit codes for CI."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.log import Record, open_log
from schemas.events import Origin
from schemas.topics import RESOLVED
from tests.command_line import Said, millrace
from tests.unit.delivery_world import resolved

SOURCES = "sources: {web: {write_key: wk}, app: {write_key: wk2}}\n"
WEBHOOK = SOURCES + "destinations: {crm: {type: webhook, settings: {url: 'https://crm.example/hook'}}}\n"


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A data folder whose log holds three events, the second emitted twice."""
    values = [
        resolved("m1", "p1", Origin(0, 1), event="Signed Up", properties={"plan": "free"}),
        resolved("m2", "p1", Origin(0, 2), event="Order Completed", properties={"total": 5}),
        resolved("m2", "p1", Origin(0, 2), event="Order Completed", properties={"total": 5}),
        resolved("m3", "p1", Origin(0, 3), type="identify", traits={"plan": "pro"}),
    ]

    async def fill() -> None:
        async with open_log(f"embedded://{tmp_path}/data/log", partitions=1) as log:
            await log.append(RESOLVED, [Record(b"p1", value, 1_700_000_000_000 + n) for n, value in enumerate(values)])

    asyncio.run(fill())
    (tmp_path / "millrace.yaml").write_text(WEBHOOK)
    return tmp_path


def preflight(folder: Path, new: str, *options: str) -> Said:
    (folder / "new.yaml").write_text(new)
    return millrace(folder, "preflight", "--config", "new.yaml", "--since", "2020-01-01", *options)


def report(said: Said) -> Any:
    assert said.err == ""
    return json.loads(said.out)["destinations"]


def test_the_same_configuration_is_the_same(shop):
    assert preflight(shop, WEBHOOK) == Said(0, "crm: same configuration\nthe same\n", "")


def test_a_filter_removes_the_requests_of_events_it_keeps_back(shop):
    new = WEBHOOK.replace("type: webhook", "type: webhook, filter: {events: [Signed Up], types: [track]}")
    said = preflight(shop, new, "--json", "--examples", "1")
    crm = report(said)["crm"]
    examples = crm.pop("examples")
    assert (said.code, crm) == (
        1,
        {
            "state": "compared",
            "events": 3,
            "same": 1,
            "added": 0,
            "removed": 2,
            "changed": 0,
            "code_changed": False,
            "not_sent": {"before": {}, "after": {"FILTERED_BY_RULES": 2}},
        },
    )
    (example,) = examples
    (request,) = example["before"]["sends"]
    assert (example["messageId"], example["change"], example["after"]) == (
        "m2",
        "removed",
        {"sends": [], "reason": "FILTERED_BY_RULES"},
    )
    assert (request["request"], request["body"][0]["properties"]) == ("POST https://crm.example/hook", {"total": 5})


def test_a_secret_that_changes_changes_requests_and_is_not_shown(shop):
    old, new = (WEBHOOK.replace("hook'", f"hook', headers: {{authorization: {one}}}") for one in ("geheim1", "geheim2"))
    (shop / "millrace.yaml").write_text(old)
    said = preflight(shop, new, "--json")
    crm = report(said)["crm"]
    assert (said.code, crm["changed"], "geheim" in said.out) == (1, 3, False)
    assert crm["examples"][0]["after"]["sends"][0]["headers"]["authorization"] == "**********"


def test_a_new_warehouse_says_the_rows_it_would_get(shop):
    new = WEBHOOK.replace("destinations: {", "destinations: {lake: {type: duckdb}, ")
    said = preflight(shop, new, "--json", "--examples", "1", "--destination", "lake")
    lake = report(said)["lake"]
    tables = [one["table"] for one in lake["examples"][0]["after"]["sends"]]
    assert (said.code, lake["added"], tables) == (1, 3, ["web.signed_up", "web.tracks"])
    assert list(shop.rglob("*.duckdb")) == []


def test_people_see_what_changes_line_by_line(shop):
    said = preflight(shop, WEBHOOK.replace("/hook", "/v2"), "--examples", "1")
    assert said.code == 1
    assert said.out.startswith("crm: 3 events, 0 same, 0 added, 0 removed, 3 changed\n  changed track m1\n")
    assert '    -   "request": "POST https://crm.example/hook"\n' in said.out
    assert '    +   "request": "POST https://crm.example/v2"\n' in said.out


@pytest.mark.parametrize(
    ("new", "options", "words"),
    [
        ("logg: {}\n", (), "new.yaml:1 logg: unknown key"),
        (WEBHOOK, ("--destination", "cmr"), "no destination is called cmr; known: crm"),
        (WEBHOOK, ("--since", "soon"), "neither a span"),
    ],
)
def test_misuse_exits_2(shop, new, options, words):
    said = preflight(shop, new, *options)
    assert (said.code, said.out, words in said.err) == (2, "", True)


def test_mappings_show_the_exact_requests_that_they_make(shop):
    mappings = (
        "mappings: ["
        "{action: send_data, trigger: properties.total > 0, mapping: {data: {amount: {'@path': $.properties.total}}}}, "
        "{action: send_data, name: Names, trigger: type = 'track', mapping: {data: {'@template': '{{event}}!'}}}], "
    )
    crm = report(preflight(shop, WEBHOOK.replace("settings:", f"{mappings}settings:"), "--json", "--examples", "9"))[
        "crm"
    ]
    sent = [[request["body"] for request in one["after"]["sends"]] for one in crm["examples"]]
    assert sent == [[["Signed Up!"]], [[{"amount": 5}], ["Order Completed!"]], []]
    assert crm["not_sent"]["after"] == {"NO_MATCHING_MAPPING": 1}
