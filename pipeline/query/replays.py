"""Replays, for people: begun, looked at, ended."""

import time
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, Final

from pydantic import ValidationError
from sqlalchemy import Connection

from pipeline.language.filters import FilterError, compile_filter
from pipeline.log import Log
from pipeline.query.letters import fault
from pipeline.query.pages import limit_of, opened, sealed
from pipeline.query.times import micros_of
from pipeline.store import paths, replays
from pipeline.store.database import Database
from pipeline.store.replays import Progress, Replay, Wanted
from schemas.api import Cursor, ReplaysPage, ReplayView, ReplayWanted
from schemas.errors import Refused
from schemas.events import iso
from schemas.openapi import TEXT, Parameter, whole
from schemas.topics import RESOLVED

LIST: Final = (
    Parameter("destination", "Only to this destination.", TEXT),
    Parameter("limit", "At most so many.", whole(1, 100, 20)),
    Parameter("next", "The cursor of the page before.", TEXT),
)


async def ranges(log: Log, database: Database, wanted: Wanted) -> dict[int, tuple[int, int]]:
    """The offsets [first, end) of `resolved` that a replay looks at, per partition that has any: what was recorded in its time
    and lies behind the destination's own position. What lies before it is still to come by the live flow."""
    positions = await database.read(paths.destination_positions)
    found = {}
    for partition, (earliest, _) in (await log.bounds(RESOLVED)).items():
        first = max(earliest, await log.offset_at(RESOLVED, partition, wanted.since // 1_000))
        end = await log.offset_at(RESOLVED, partition, -(-wanted.until // 1_000))
        end = min(end, positions.get((wanted.destination, partition), 0))
        if first < end:
            found[partition] = (first, end)
    return found


async def begin(log: Log, database: Database, destinations: Collection[str], body: dict[str, Any]) -> ReplayView:
    """Begins a replay, which the deliver role takes up. Refused when nobody would, and while another to the same destination is
    going: it could send the same events."""
    now = time.time_ns() // 1_000
    wanted = wanted_of(body, now)
    if wanted.destination not in destinations:
        known = ", ".join(sorted(destinations)) or "none"
        raise Refused(
            "unknown_destination",
            f"No destination is called {wanted.destination[:100]!r}; known: {known[:1_000]}.",
            status=404,
        )
    found = await ranges(log, database, wanted)
    return await database.run(partial(_begin, wanted=wanted, found=found, now=now))


def _begin(connection: Connection, *, wanted: Wanted, found: Mapping[int, tuple[int, int]], now: int) -> ReplayView:
    for other in replays.going(connection):
        if other.wanted.destination == wanted.destination:
            raise Refused(
                "replay_going",
                f"Replay {other.id} to {wanted.destination} is still {other.state}; wait for its end, or cancel it.",
                status=409,
            )
    return _show(connection, replays.create(connection, wanted, found, now))


async def page(database: Database, query: Mapping[str, str], url: str) -> ReplaysPage:
    """Replays, the latest first."""
    limit = limit_of(query, default=20, most=100)
    found = opened(query, "replays", int)
    destination = query.get("destination")
    before = None if found is None else found[1][0]

    def read(connection: Connection) -> tuple[list[ReplayView], bool]:
        rows = replays.latest(
            connection,
            destination=None if destination is None else destination.replace("\0", "\ufffd"),
            before=before,
            most=limit + 1,
        )
        return [_show(connection, one) for one in rows[:limit]], len(rows) > limit

    if before is not None and not 0 <= before < 1 << 31:
        raise Refused("invalid_request_error", "The cursor cannot be read; begin again without `next`.")
    shown, more = await database.read(read)
    following = sealed("replays", "", shown[-1].id) if more else ""
    return ReplaysPage(data=shown, cursor=Cursor(url=url, has_more=more, next=following, limit=limit))


async def show(database: Database, number: str) -> ReplayView:
    """One replay as it stands."""

    def read(connection: Connection) -> ReplayView:
        return _show(connection, _found(replays.find(connection, _number(number))))

    return await database.read(read)


async def cancel(database: Database, number: str) -> ReplayView:
    """Asks for a replay's end. One that has ended stays as it is."""

    def work(connection: Connection) -> ReplayView:
        return _show(connection, _found(replays.cancel(connection, _number(number))))

    return await database.run(work)


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise Refused("not_found", "Replays have numbers; `millrace replay list` shows them.", status=404)
    return int(text)


def _found(replay: Replay | None) -> Replay:
    if replay is None:
        raise Refused("not_found", "There is no replay of this number; `millrace replay list` shows them.", status=404)
    return replay


def wanted_of(body: Mapping[str, Any], now: int) -> Wanted:
    """What a request asks for. Refused when it makes no sense."""
    try:
        asked = ReplayWanted.model_validate(body)
    except ValidationError as error:
        raise Refused("validation_error", "; ".join(fault(one) for one in error.errors())) from error
    times = {"since": asked.since} | ({} if asked.until is None else {"until": asked.until})
    since, until = micros_of(times, "since") or 0, micros_of(times, "until")
    try:
        if asked.filter:
            compile_filter(asked.filter)
    except FilterError as error:
        raise Refused("invalid_filter", f"filter: {error}") from error
    if any("\0" in one for one in (asked.destination, asked.filter, *asked.sources)):
        raise Refused("validation_error", "A destination, filter or source has a NUL in it.")
    return Wanted(
        destination=asked.destination,
        since=max(0, since),
        until=now if until is None else min(now, max(0, until)),
        sources=asked.sources,
        filter=asked.filter,
        rate=asked.rate,
        again=asked.again,
    )


def _show(connection: Connection, one: Replay) -> ReplayView:
    done = replays.progress(connection, one)
    return _view(one, done, replays.state_of(connection, one))


def _view(one: Replay, done: Progress, fares: tuple[str, str]) -> ReplayView:
    state, reason = fares
    stands = one.note or ("" if state == "delivering" else f"{state}: {reason}".rstrip(": "))
    return ReplayView(
        id=one.id,
        destination=one.wanted.destination,
        state=one.state,
        created_at=iso(one.created_at),
        ended_at=None if one.ended_at is None else iso(one.ended_at),
        since=iso(one.wanted.since),
        until=iso(one.wanted.until),
        sources=one.wanted.sources,
        filter=one.wanted.filter,
        rate=one.wanted.rate,
        again=one.wanted.again,
        note=stands,
        read=done.read,
        records=done.records,
        delivered=done.delivered,
        dead=done.dead,
        purged=done.purged,
        pending=done.pending,
        not_sent=dict(sorted(done.reasons.items())),
    )
