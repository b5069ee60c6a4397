"""`millrace functions` as an author sees it: what a function makes of each event, and exit codes for CI."""

import asyncio
import json
import re
import time
from pathlib import Path
from textwrap import dedent

import pytest

from pipeline.log import Record, open_log
from schemas.events import Origin
from schemas.topics import RESOLVED
from tests.command_line import Said, millrace
from tests.unit.delivery_world import resolved

CONFIG = """\
sources: {web: {write_key: wk, function: split}}
destinations:
  crm:
    type: webhook
    settings: {url: 'https://crm.test/'}
    function: {name: shop, settings: {currency: EUR}}
"""
SHOP = """
    from millrace.functions import Drop, Invalid, Retry

    def on_track(event, settings):
        name = event["event"]
        if name == "Ping":
            raise Drop
        if name == "Bad":
            raise Invalid("no such thing")
        if name == "Later":
            raise Retry("not yet")
        if name == "Bug":
            return event["nothing"]
        if name == "Paid":
            event["properties"]["currency"] = settings.get("currency", "none")
            print("paid")
        return event
"""
SPLIT = """
    def on_track(event, settings):
        return [event, {**event, "event": "Copy"}]
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "functions"
    folder.mkdir()
    (folder / "shop.py").write_text(dedent(SHOP))
    (folder / "split.py").write_text(dedent(SPLIT))
    (tmp_path / "millrace.yaml").write_text(CONFIG)
    return tmp_path


def sample(folder: Path, *names: str) -> None:
    lines = [
        {"type": "track", "userId": "u", "event": name, "properties": {}, "messageId": f"m{number}"}
        for number, name in enumerate(names)
    ]
    (folder / "sample.ndjson").write_text("\n".join(map(json.dumps, lines)))


def trial(folder: Path, *options: str, file: str = "shop") -> Said:
    return millrace(folder, "functions", "test", f"functions/{file}.py", "--events", "sample.ndjson", *options)


def test_the_difference_is_shown_event_by_event_with_the_settings_of_the_configuration(shop: Path) -> None:
    sample(shop, "Seen", "Paid", "Ping", "Later", "Bad")
    said = trial(shop)
    assert Said(said.code, re.sub(r'At": "[^"]+"', 'At": …', said.out), said.err) == Said(
        0,
        "changed track m1\n"
        '        "profileId": null,\n'
        '    -   "properties": {},\n'
        '    +   "properties": {\n'
        '    +     "currency": "EUR"\n'
        "    +   },\n"
        '        "receivedAt": …,\n'
        "dropped track m2: FILTERED_AT_INSERT_FUNCTION\n"
        "  The function dropped it; nothing to do, unless it should not.\n"
        "retry track m3: RETRY: not yet\n"
        "  The function asked for another try; see why, where the reason does not say.\n"
        "refused track m4: MESSAGE_REJECTED: no such thing\n"
        "  The function refused it; its words say why.\n"
        "5 events: 1 changed, 1 dropped, 1 refused, 1 retry, 1 same\n",
        "paid\n",
    )


def test_a_bug_exits_1_with_its_place_and_json_is_a_line_per_event(shop: Path) -> None:
    sample(shop, "Bug", "Seen")
    said = trial(shop, "--json")
    first, second = map(json.loads, said.out.splitlines())
    assert (said.code, first["result"], first["reason"]) == (1, "failed", "FUNCTION_RAISED: KeyError at shop.py:13")
    assert (second["result"], second["after"]) == ("same", [second["before"]])


def test_a_function_plays_the_part_that_the_configuration_gives_it_unless_told_otherwise(shop: Path) -> None:
    sample(shop, "Seen")
    told = json.loads(trial(shop, "--json", file="split").out)
    assert (told["result"], [one["event"] for one in told["after"]]) == ("split", ["Seen", "Copy"])
    assert json.loads(trial(shop, "--json", "--as", "insert", file="split").out)["result"] == "failed"
    assert json.loads(trial(shop, "--json", "--as", "destination", file="split").out)["result"] == "handled"


def test_recorded_events_are_tried(shop: Path) -> None:
    now = int(time.time() * 1_000)

    async def fill() -> None:
        async with open_log(f"embedded://{shop}/data/log", partitions=1) as log:
            values = [resolved(f"m{n}", "p", Origin(0, n), event="Paid", properties={}) for n in range(2)]
            await log.append(RESOLVED, [Record(b"p", value, now) for value in values])

    asyncio.run(fill())
    said = millrace(shop, "functions", "test", "functions/shop.py", "--since", "1h", "--json")
    assert [json.loads(line)["result"] for line in said.out.splitlines()] == ["changed", "changed"]


def test_files_are_listed_with_their_handlers_and_who_uses_them(shop: Path) -> None:
    assert millrace(shop, "functions", "list") == Said(
        0,
        "shop: on_track, used by destinations.crm (insert)\nsplit: on_track, used by sources.web (source)\n",
        "",
    )
    (shop / "functions" / "torn.py").write_text("def on_track(")
    said = millrace(shop, "functions", "list")
    assert (said.code, said.out.splitlines()[2]) == (1, "torn: cannot be loaded, not used")
    assert "millrace: function torn: " in said.err


def test_what_is_no_event_is_named(shop: Path) -> None:
    (shop / "sample.ndjson").write_text('{"type": "track"}\n{"type": "trak"}\n')
    said = trial(shop)
    assert (said.code, "event 2 has no type of track" in said.err) == (2, True)
