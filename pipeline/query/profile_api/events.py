"""A person's events, read from the log by place: as far back as retention reaches, in the order in which they happened."""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import unquote

from pipeline.extract import Extract
from pipeline.log import Log, Record
from pipeline.query.pages import limit_of, opened, sealed
from pipeline.query.profile_api.views import Query, cursor, names_of, one_of
from pipeline.store import history, profiles
from pipeline.store.database import Database
from pipeline.store.history import Place
from pipeline.store.profiles import Head
from schemas.errors import Refused
from schemas.events import TYPES, Event, ExternalId, Origin, Resolved, decode_event, materialize
from schemas.reasons import Reason
from schemas.topics import EVENTS

SEARCHED: Final = 2_000  # events read at the most for one page: behind a filter that few pass, pages are short
NEAR: Final = 64  # records between two that are read at once
SHOWN: Final = ("track", "page", "screen")  # unless `type` says otherwise
_VIEWED: Final = {"page": "Page Viewed", "screen": "Screen Viewed"}
_EARLIEST, _LATEST = -(1 << 61), 1 << 61


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events. Times are microseconds: from `start` on, before `end`."""

    start: int
    end: int
    types: frozenset[str]
    include: frozenset[str]
    exclude: frozenset[str]
    newest_first: bool
    limit: int
    behind: Place | None

    def takes(self, kind: str, name: str) -> bool:
        """Whether an event of that type and name is meant."""
        return kind in self.types and (not self.include or name in self.include) and name not in self.exclude


def wanted(query: Query) -> Wanted:
    """What the parameters ask for. Refused when they cannot be meant."""
    start, end = _moment(query, "start"), _moment(query, "end")
    if start is not None and end is not None and start > end:
        raise Refused("validation_error", "start must not be after end.")
    behind = opened(query, "events", int, int, int)
    return Wanted(
        start=_EARLIEST if start is None else start,
        end=_LATEST if end is None else end,
        types=_types(query),
        include=frozenset(map(unquote, names_of(query, "include"))),
        exclude=frozenset(map(unquote, names_of(query, "exclude"))),
        newest_first=one_of(query, "sort", ("asc", "desc")) != "asc",
        limit=limit_of(query, default=20, most=100),
        behind=None if behind is None else Place(*behind[1]),
    )


def _types(query: Query) -> frozenset[str]:
    named = names_of(query, "type")
    if named == {"all"}:
        return frozenset(TYPES)
    if not named <= set(TYPES):
        raise Refused("validation_error", f"type must be all, or some of {', '.join(TYPES)}.")
    return named or frozenset(SHOWN)


def _moment(query: Query, name: str) -> int | None:
    text = query.get(name)
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+"))  # an offset's plus sign that was not encoded
        whole = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return int(whole.timestamp() * 1_000_000)
    except (ValueError, OverflowError) as error:
        problem = f"{name} must be a date or an RFC 3339 time, such as 2026-11-21T09:00:00Z."
        raise Refused("validation_error", problem) from error


async def page(
    log: Log,
    database: Database,
    extract: Extract,
    head: Head,
    query: Query,
    url: str,
    allowed: frozenset[str] | None,
) -> dict[str, Any]:
    """One page of a profile's events. It goes on behind the last event that was looked at, in the order of time and place,
    so that neither a merge nor an event that arrives makes it skip or repeat one."""
    asked = wanted(query)
    ids = await database.read(lambda connection: profiles.ids(connection, head.id))
    bounds = await log.bounds(EVENTS)
    kept_since = await _kept_since(log, bounds) if query.get("start") else None
    clamped = kept_since is not None and asked.start < kept_since
    found, last = await _gather(log, database, [one.key for one in ids if one.events], asked, bounds)
    owned = {one.key for one in ids}
    data = [event_item(event, head, carried(event, extract, owned), allowed) for event in found]
    following = None if last is None else sealed("events", head.id, *last)
    return {"data": data, "cursor": cursor(url, asked.limit, following) | {"clamped": clamped}}


async def _gather(
    log: Log, database: Database, nodes: Sequence[str], asked: Wanted, bounds: Mapping[int, tuple[int, int]]
) -> tuple[list[Event], Place | None]:
    """The events of the page, and the place that the next one begins behind; None when there is no more."""
    found: list[Event] = []
    place, searched = asked.behind, 0
    filtered = bool(asked.include or asked.exclude or asked.types != frozenset(TYPES))
    while True:
        most = min(SEARCHED - searched, (4 if filtered else 1) * (asked.limit + 1 - len(found)) + 8)
        places = await database.read(lambda c: _places(c, nodes, asked, place, most))  # noqa: B023 - awaited within the turn
        records = await _read(log, [one.origin for one in places if one.offset >= bounds[one.partition][0]])
        last: Place | None = None
        for one in places:
            event = records.get(one.origin)
            if event is not None and asked.takes(event.type, name_of(event)):
                if len(found) == asked.limit:
                    return found, last or place
                found.append(event)
            last = one
        searched += len(places)
        if len(places) < most:
            return found, None
        if searched >= SEARCHED:
            return found, last
        assert last is not None, "a full read of places is not empty"
        place = last


def _places(connection: Any, nodes: Sequence[str], asked: Wanted, behind: Place | None, most: int) -> Any:
    after, before = Place(asked.start, -1, -1), Place(asked.end, -1, -1)
    if behind is not None and asked.newest_first:
        before = min(before, behind)
    elif behind is not None:
        after = max(after, behind)
    return history.places(connection, nodes, after=after, before=before, newest_first=asked.newest_first, most=most)


async def _kept_since(log: Log, bounds: Mapping[int, tuple[int, int]]) -> int | None:
    """Since when (µs) every event is still in the log; None when retention has removed nothing."""
    cut = [(partition, first) for partition, (first, end) in bounds.items() if 0 < first < end]
    batches = await asyncio.gather(*(log.read(EVENTS, *one, max_records=1) for one in cut))
    return max((batch.records[0].timestamp * 1_000 for batch in batches if batch is not None), default=None)


async def _read(log: Log, origins: Iterable[Origin]) -> dict[Origin, Event]:
    """Events by place; those that retention has removed are left out."""
    wanted = sorted(set(origins))
    found: dict[Origin, Event] = {}
    for first, last in _stretches(wanted):
        batch = await log.read(EVENTS, first.partition, first.offset, max_records=last.offset - first.offset + 1)
        for record in () if batch is None else batch.records:
            origin = Origin(first.partition, record.offset)
            if origin in wanted and (event := _decoded(record)) is not None:
                found[origin] = event
    return found


def _stretches(origins: Sequence[Origin]) -> list[tuple[Origin, Origin]]:
    """Places that are close together become one read."""
    stretches: list[tuple[Origin, Origin]] = []
    for one in origins:
        if stretches and one.partition == stretches[-1][1].partition and one.offset - stretches[-1][1].offset <= NEAR:
            stretches[-1] = (stretches[-1][0], one)
        else:
            stretches.append((one, one))
    return stretches


def _decoded(record: Record) -> Event | None:
    try:
        return decode_event(record.value)
    except ValueError:
        return None  # the log was damaged since: what cannot be read is not there


# ── How an event is shown ─────────────────────────────────────────────────────────────────────────────────────────


def name_of(event: Event) -> str:
    """What `include` and `exclude` compare: pages and screens have one name for all of them."""
    if event.type in _VIEWED:
        return _VIEWED[event.type]
    if event.type != "track":
        return ""
    name = _body(event).get("event")
    return name if isinstance(name, str) else ""


def event_item(event: Event, head: Head, ids: Sequence[ExternalId], allowed: frozenset[str] | None) -> dict[str, Any]:
    """An event in the reference's shape, with the `ids` of the profile that it carried. `allowed` are the only traits that are
    shown."""
    body = _body(event)
    properties = _object(body.get("properties"))
    context = _object(body.get("context"))
    if event.type in _VIEWED and isinstance(body.get("name"), str):
        properties = properties | {"page_name": body["name"], "name": body["name"]}
    item: dict[str, Any] = {
        "type": event.type,
        "event": name_of(event) or None,
        "message_id": event.message_id,
        "source_id": event.source,
        "timestamp": body["timestamp"],
        "properties": properties,
        "context": context,
        "external_ids": [
            {"collection": head.collection, "type": one.type, "id": one.value, "encoding": "none"} for one in ids
        ],
        "related": {head.collection: head.id},
    }
    if event.type in ("identify", "group"):
        item["traits"] = _object(body.get("traits"))
    return item if allowed is None else _without_traits(item, allowed)


def carried(event: Event, extract: Extract, owned: Collection[str]) -> list[ExternalId]:
    """The ids on an event that are the profile's today."""
    try:
        found = extract(event)
    except ValueError:
        return []  # it was accepted under rules that looked elsewhere
    return [] if isinstance(found, Reason) else [one for one in (*found.ids, *found.accounts) if str(one) in owned]


def _without_traits(item: dict[str, Any], allowed: frozenset[str]) -> dict[str, Any]:
    holders = [item, item["context"]]
    for holder in holders:
        if isinstance(traits := holder.get("traits"), dict):
            holder["traits"] = {name: value for name, value in traits.items() if name in allowed}
    return item


def _body(event: Event) -> dict[str, Any]:
    return materialize(Resolved("", Origin(0, 0), (), event))


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
