"""Refused events, for people who want to know why."""

from collections.abc import Mapping
from typing import Any, Final

from pipeline.query.pages import cursor, key_of, limit_of, unreadable
from pipeline.query.times import micros_of
from pipeline.store import paths
from pipeline.store.database import Database
from pipeline.store.paths import Place
from schemas.api import RefusalsPage, RefusalView
from schemas.events import iso
from schemas.reasons import remedy_for

SHOWN: Final = 4_096  # bytes of a body


async def page(database: Database, query: Mapping[str, str], url: str) -> RefusalsPage:
    """`limit` (1 to 500, default 50) at a time, of a `source`, with a `code`, received at `since` (ISO 8601) or later."""
    limit = limit_of(query, default=50, most=500)
    before, since = _place(key_of(query)), micros_of(query, "since")
    rows = await database.read(
        lambda connection: paths.refusals_before(
            connection, before, source=query.get("source"), code=query.get("code"), since=since, most=limit + 1
        )
    )
    shown, more = rows[:limit], len(rows) > limit
    last = shown[-1] if more else None
    key = None if last is None else f"{last['received_at']},{last['partition']},{last['offset']}"
    return RefusalsPage(data=[_view(row) for row in shown], cursor=cursor(url, limit, key))


def _view(row: Mapping[str, Any]) -> RefusalView:
    return RefusalView(
        source=row["source"],
        message_id=row["message_id"],
        code=row["code"],
        remedy=remedy_for(row["code"]),
        received_at=iso(row["received_at"]),
        body=bytes(row["body"])[:SHOWN].decode(errors="replace"),
    )


def _place(key: str) -> Place | None:
    if not key:
        return None
    numbers = key.split(",")
    if len(numbers) != 3 or not all(one.isascii() and one.isdigit() and len(one) < 19 for one in numbers):
        raise unreadable()
    return Place(*map(int, numbers))
