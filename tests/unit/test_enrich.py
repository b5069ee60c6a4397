"""What the server can tell of an event's sender, and that it never speaks over the client."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from pipeline.enrich import Enrichment, Geo, UserAgents
from schemas.errors import ConfigError
from schemas.events import Event, Origin, Resolved, materialize
from tests import mmdb

MAC = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"
WINDOWS = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36 Edg/126.0.0.0"
PHONE = (
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Mobile Safari/537.36"
)
IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4 "
    "Mobile/15E148 Safari/604.1"
)
GOOGLEBOT = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"

COLOGNE = {
    "city": {"names": {"de": "Köln", "en": "Cologne"}},
    "country": {"iso_code": "DE", "names": {"en": "Germany"}},
    "subdivisions": [{"iso_code": "NW", "names": {"en": "North Rhine-Westphalia"}}],
    "location": {"latitude": 50.9333, "longitude": 6.95, "time_zone": "Europe/Berlin"},
}
COLOGNE_TOLD = {
    "city": "Cologne",
    "region": "North Rhine-Westphalia",
    "country": "Germany",
    "latitude": "50.9333",
    "longitude": "6.95",
}
CODE_ONLY = {"country": {"iso_code": "FR"}}


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "city.mmdb"
    mmdb.write(
        path, {"88.0.0.0/8": COLOGNE, "91.1.0.0/16": CODE_ONLY, "2a00:1450::/32": COLOGNE, "10.0.0.0/8": COLOGNE}
    )
    return path


@pytest.fixture
def geo(database: Path) -> Iterator[Geo]:
    opened = Geo(str(database))
    yield opened
    opened.close()


def event(context: Any = None, *, ip: str | None = None) -> Event:
    body = {"type": "track", "event": "A", "context": context}
    raw = json.dumps(body).encode()
    return Event("web", "track", "m", "a", None, 0, None, 0, "client" if ip else "server", ip, None, raw)


def told(enrichment: Enrichment, context: Any = None, *, ip: str | None = None) -> Any:
    found = enrichment(event(context, ip=ip))
    return None if found is None else json.loads(found)


def seen(enrichment: Enrichment, context: Any, *, ip: str | None = None) -> Any:
    """The context as destinations get it."""
    one = event(context, ip=ip)
    return materialize(Resolved("p", Origin(0, 0), (), one, enrichment(one)))["context"]


# ── The user agent ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("user_agent", "expected"),
    [
        (
            MAC,
            {
                "browser": {"name": "Chrome", "version": "126.0.0.0"},
                "os": {"name": "Mac OS X", "version": "10.15.7"},
                "device": {"manufacturer": "Apple", "model": "Mac"},
                "bot": False,
            },
        ),
        (
            IPHONE,
            {
                "browser": {"name": "Mobile Safari", "version": "17.4"},
                "os": {"name": "iOS", "version": "17.4"},
                "device": {"manufacturer": "Apple", "model": "iPhone"},
                "bot": False,
            },
        ),
        (
            PHONE,  # the browser hides the model: it is left out rather than told as "K"
            {
                "browser": {"name": "Chrome Mobile", "version": "126.0.0.0"},
                "os": {"name": "Android", "version": "10"},
                "bot": False,
            },
        ),
        (
            "Dalvik/2.1.0 (Linux; U; Android 16; Pixel 8 Build/AP1A)",  # an app
            {
                "os": {"name": "Android", "version": "16"},
                "device": {"manufacturer": "Google", "model": "Pixel 8"},
                "bot": False,
            },
        ),
        (
            "Shop/12 CFNetwork/1494.0.7 Darwin/23.4.0",
            {"os": {"name": "iOS", "version": "17.4"}, "device": {"manufacturer": "Apple"}, "bot": False},
        ),
        (GOOGLEBOT, {"browser": {"name": "Googlebot", "version": "2.1"}, "bot": True}),
        (MAC.replace("Chrome/", "HeadlessChrome/"), None),
        ("something else", {"bot": False}),
        ("", None),
    ],
)
def test_a_user_agent_tells_browser_system_device_and_bot(user_agent: str, expected: Any) -> None:
    found = told(Enrichment(UserAgents()), {"userAgent": user_agent})
    if expected is None and user_agent:
        assert found["bot"] is True
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("user_agent", "hints", "name", "expected"),
    [
        (WINDOWS, {"platform": "Windows", "platformVersion": "15.0.0"}, "os", {"name": "Windows", "version": "11"}),
        (WINDOWS, {"platform": "Windows", "platformVersion": "10.0.0"}, "os", {"name": "Windows", "version": "10"}),
        (WINDOWS, {"platform": "Windows", "platformVersion": "0.3.0"}, "os", {"name": "Windows", "version": "10"}),
        (MAC, {"platform": "macOS", "platformVersion": "14.5.0"}, "os", {"name": "Mac OS X", "version": "14.5.0"}),
        (MAC, {"platform": "macOS"}, "os", {"name": "Mac OS X", "version": "10.15.7"}),
        (PHONE, {"model": "Pixel 8"}, "device", {"model": "Pixel 8"}),
        (
            WINDOWS,
            {
                "fullVersionList": [
                    {"brand": "Not/A)Brand", "version": "8.0.0.0"},
                    {"brand": "Chromium", "version": "126.0.6478.127"},
                    {"brand": "Microsoft Edge", "version": "126.0.2592.87"},
                ]
            },
            "browser",
            {"name": "Edge", "version": "126.0.2592.87"},
        ),
        (MAC, {"uaFullVersion": "126.0.6478.63"}, "browser", {"name": "Chrome", "version": "126.0.6478.63"}),
        (MAC, {"uaFullVersion": "9.9"}, "browser", {"name": "Chrome", "version": "126.0.0.0"}),
        (MAC, {"platformVersion": 14}, "os", {"name": "Mac OS X", "version": "10.15.7"}),
        (MAC, "hints", "os", {"name": "Mac OS X", "version": "10.15.7"}),
        (MAC, None, "os", {"name": "Mac OS X", "version": "10.15.7"}),
    ],
)
def test_client_hints_tell_what_the_user_agent_no_longer_does(
    user_agent: str, hints: Any, name: str, expected: Any
) -> None:
    assert told(Enrichment(UserAgents()), {"userAgent": user_agent, "userAgentData": hints})[name] == expected


@pytest.mark.parametrize("context", [None, {}, {"userAgent": None}, {"userAgent": 7}, {"userAgent": ""}, "text", [1]])
def test_without_a_user_agent_nothing_is_told(context: Any) -> None:
    assert told(Enrichment(UserAgents()), context) is None


def test_the_user_agent_of_an_e_mail_event_is_read_as_it_is_spelled_there() -> None:
    assert told(Enrichment(UserAgents()), {"user_agent": GOOGLEBOT})["bot"] is True


def test_each_part_can_be_left_out() -> None:
    for agents, names in (
        (UserAgents(details=False), {"bot"}),
        (UserAgents(bots=False), {"browser", "os", "device"}),
        (None, set()),
    ):
        assert set(told(Enrichment(agents), {"userAgent": MAC}) or ()) == names


def test_a_user_agent_of_any_length_is_remembered_in_little_room() -> None:
    agents = UserAgents()
    assert agents.describe(GOOGLEBOT + "x" * 30_000) == agents.describe(GOOGLEBOT + "x" * 20_000)
    assert agents.describe(MAC, b'{"platformVersion":"14.5.0","x":"%b"}' % (b"x" * 30_000)) == agents.describe(MAC)


# ── The place ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_address_of_a_client_tells_its_place(geo: Geo) -> None:
    enrichment = Enrichment(None, geo)
    assert told(enrichment, ip="88.7.6.5") == {"location": COLOGNE_TOLD}
    assert told(enrichment, {"ip": "91.1.2.3"}, ip="88.7.6.5") == {"location": {"country": "FR"}}
    assert told(enrichment, {"ip": "2a00:1450::1"}) == {"location": COLOGNE_TOLD}
    assert told(enrichment, {"ip": "::ffff:88.7.6.5"}) == {"location": COLOGNE_TOLD}


@pytest.mark.parametrize(
    "ip",
    [
        "0.0.0.0",
        "10.1.2.3",
        "127.0.0.1",
        "192.168.0.1",
        "::1",
        "fe80::1",
        "100.64.0.1",
        "9.9.9.9",
        "here",
        "",
        "8" * 99,
    ],
)
def test_what_is_no_public_address_or_not_known_tells_nothing(geo: Geo, ip: str) -> None:
    """Even a private network that the database holds. An address that the client blanked out hides its true one."""
    assert told(Enrichment(None, geo), {"ip": ip}, ip="88.7.6.5") is None


def test_an_event_of_a_server_has_no_address_of_its_own(geo: Geo) -> None:
    assert told(Enrichment(None, geo), {"library": {"name": "analytics-node"}}) is None


def test_user_agent_and_place_are_told_together(geo: Geo) -> None:
    found = told(Enrichment(UserAgents(), geo), {"userAgent": GOOGLEBOT}, ip="88.7.6.5")
    assert found == {"browser": {"name": "Googlebot", "version": "2.1"}, "bot": True, "location": COLOGNE_TOLD}


def test_a_database_that_was_replaced_is_taken_up_and_a_broken_one_is_not(geo: Geo, database: Path) -> None:
    enrichment = Enrichment(None, geo)
    assert told(enrichment, ip="88.7.6.5") == {"location": COLOGNE_TOLD}
    broken, newer = database.with_name("broken"), database.with_name("newer")
    broken.write_bytes(b"not a database")
    os.replace(broken, database)
    with capture_logs() as lines:
        for _ in range(3):
            enrichment.refresh()
    assert [line["event"] for line in lines] == ["geo database not replaced: the one before is used"]
    assert told(enrichment, ip="88.7.6.5") == {"location": COLOGNE_TOLD}
    mmdb.write(newer, {"88.0.0.0/8": CODE_ONLY})
    os.replace(newer, database)
    enrichment.refresh()
    assert told(enrichment, ip="88.7.6.5") == {"location": {"country": "FR"}}


def test_a_damaged_database_tells_nothing_and_says_so_once(tmp_path: Path) -> None:
    path = tmp_path / "damaged.mmdb"
    mmdb.write(path, {"88.0.0.0/8": COLOGNE})
    path.write_bytes(path.read_bytes().replace(b"\x44city", b"\xffcity"))
    damaged = Geo(str(path))
    with capture_logs() as lines:
        assert [damaged.describe(f"88.7.6.{last}") for last in range(3)] == [None] * 3
    assert [line["event"] for line in lines] == ["geo database is damaged: put a whole one in its place"]
    damaged.close()


def test_a_database_that_cannot_be_read_is_a_fault_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "text.mmdb").write_text("not a database")
    for name in ("absent.mmdb", "text.mmdb"):
        with pytest.raises(ConfigError, match=r"enrich\.geo\.database .*give a database in MaxMind's format"):
            Geo(str(tmp_path / name))


@pytest.mark.parametrize(
    "record",
    [{}, {"city": "x", "location": 1, "subdivisions": 7}, {"location": {"latitude": "x"}}, {"city": {"names": []}}],
)
def test_a_record_of_another_shape_tells_nothing(tmp_path: Path, record: Any) -> None:
    mmdb.write(tmp_path / "odd.mmdb", {"88.0.0.0/8": record})
    odd = Geo(str(tmp_path / "odd.mmdb"))
    assert odd.describe("88.7.6.5") is None
    odd.close()


# ── Beside what the client said ───────────────────────────────────────────────────────────────────────────────────


def test_what_the_client_said_stands_alone(geo: Geo) -> None:
    given = {
        "userAgent": MAC,
        "ip": "88.7.6.5",
        "os": {"name": "Mine"},
        "location": {"country": "Atlantis"},
        "bot": "yes",
    }
    assert seen(Enrichment(UserAgents(), geo), given) == given | {
        "browser": {"name": "Chrome", "version": "126.0.0.0"},
        "device": {"manufacturer": "Apple", "model": "Mac"},
    }


def test_null_and_an_object_of_blanks_say_nothing() -> None:
    given = {"userAgent": IPHONE, "os": {"name": "", "version": ""}, "device": None, "browser": {}}
    assert seen(Enrichment(UserAgents()), given) == {
        "userAgent": IPHONE,
        "os": {"name": "iOS", "version": "17.4"},
        "device": {"manufacturer": "Apple", "model": "iPhone"},
        "browser": {"name": "Mobile Safari", "version": "17.4"},
        "bot": False,
    }


def test_an_event_without_a_context_gets_one(geo: Geo) -> None:
    assert seen(Enrichment(None, geo), None, ip="88.7.6.5") == {"ip": "88.7.6.5", "location": COLOGNE_TOLD}
