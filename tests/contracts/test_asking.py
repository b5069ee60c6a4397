"""Usage and refusals as the API tells them, on SQLite and on PostgreSQL."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from pipeline.query import refusals, usage
from pipeline.store.database import Database
from schemas.errors import Refused
from schemas.events import Event
from tests.contracts.test_intake import batch, database, event, put  # noqa: F401 - the fixture is used by name

DAY = 86_400_000_000
NOVEMBER = 1_793_491_200_000_000  # 2026-11-01


def refused(message: str, code: str, at: int, *, source: str = "web", body: bytes = b"{}") -> Event:
    return event(message, user="u")._replace(source=source, refused=code, received_at=at, body=body)


def used(database: Database, **query: str) -> list[dict[str, Any]]:  # noqa: F811
    found: list[dict[str, Any]] = asyncio.run(usage.page(database, query)).json_object()["usage"]
    return found


def listed(database: Database, **query: str) -> Mapping[str, Any]:  # noqa: F811
    return asyncio.run(refusals.page(database, query, "/api/refusals")).json_object()


# ── Usage ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_event_is_used_once_whatever_comes_again_or_is_refused(database: Database) -> None:  # noqa: F811
    first = event("m1", user="u", anonymous="a")._replace(received_at=NOVEMBER)
    second = event("m2", anonymous="b")._replace(received_at=NOVEMBER)
    put(database, batch(first, second, first, refused("m3", "bad_request", NOVEMBER)))
    put(database, batch(first, second))  # the same records again
    put(database, batch(second, event("m4", user="u")._replace(received_at=NOVEMBER + DAY), partition=1))
    size = len(first.body) * 3
    assert used(database) == [{"month": "2026-11", "source": "web", "events": 3, "bytes": size, "users": 2}]


def test_usage_is_told_by_month_and_source(database: Database) -> None:  # noqa: F811
    october = event("m1", user="u")._replace(received_at=NOVEMBER - 1)
    november = event("m2", user="u")._replace(received_at=NOVEMBER)
    put(database, batch(october, november, november._replace(source="app")))
    told = [(one["month"], one["source"], one["events"], one["users"]) for one in used(database)]
    assert told == [("2026-11", "app", 1, 1), ("2026-11", "web", 1, 1), ("2026-10", "web", 1, 1)]
    assert [one["month"] for one in used(database, month="2026-10")] == ["2026-10"]
    with pytest.raises(Refused, match="month must be"):
        used(database, month="November")


# ── Refusals ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_refusals_are_told_with_what_to_do_the_latest_first(database: Database) -> None:  # noqa: F811
    put(
        database,
        batch(
            refused("m1", "id_too_long", NOVEMBER, body=b'{"a":1}'),
            refused("m2", "from_another_version", NOVEMBER + 1, body=b"\xff" * 5_000),
        ),
    )
    latest, first = listed(database)["data"]
    assert first == {
        "source": "web",
        "messageId": "m1",
        "code": "id_too_long",
        "remedy": "Keep userId, anonymousId, groupId and previousId within 512 characters.",
        "receivedAt": "2026-11-01T00:00:00.000Z",
        "body": '{"a":1}',
    }
    assert (latest["messageId"], latest["remedy"], len(latest["body"])) == ("m2", None, 4_096)


def test_refusals_come_page_by_page_even_when_they_came_at_once(database: Database) -> None:  # noqa: F811
    put(database, batch(*[refused(f"m{n}", "bad_request", NOVEMBER) for n in range(5)]))
    put(database, batch(*[refused(f"n{n}", "bad_request", NOVEMBER) for n in range(2)], partition=1))
    seen, following = [], ""
    while True:
        page = listed(database, limit="3", **({"next": following} if following else {}))
        seen += [one["messageId"] for one in page["data"]]
        following = page["cursor"]["next"]
        if not page["cursor"]["has_more"]:
            break
    assert seen == ["n1", "n0", "m4", "m3", "m2", "m1", "m0"]


def test_refusals_are_found_by_source_code_and_time(database: Database) -> None:  # noqa: F811
    put(
        database,
        batch(
            refused("m1", "bad_request", NOVEMBER),
            refused("m2", "id_too_long", NOVEMBER),
            refused("m3", "bad_request", NOVEMBER, source="app"),
            refused("m4", "bad_request", NOVEMBER + DAY),
        ),
    )

    def found(**query: str) -> list[str]:
        return [one["messageId"] for one in listed(database, **query)["data"]]

    assert found(source="web", code="bad_request") == ["m4", "m1"]
    assert found(since="2026-11-02T00:00:00Z") == ["m4"]
    assert found(since="2026-11-02T01:00:00+02:00", source="app") == []
    for query in ({"since": "yesterday"}, {"limit": "0"}, {"next": "x"}, {"next": "MQ=="}):
        with pytest.raises(Refused):
            found(**query)
