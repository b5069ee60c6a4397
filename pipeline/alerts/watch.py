"""The watch: one process at a time looks every half minute, decides, and tells the channels.

An alert is written before anybody is told, and who was told is written after: a crash in between tells twice, never not
at all. A channel that cannot be reached is tried again with the next look and holds no other back.
"""

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from time import time
from typing import Final

import structlog
from sqlalchemy import Connection, select

from pipeline.alerts.conditions import Look, Thresholds, conditions
from pipeline.alerts.states import Alert, advance, due, is_open
from pipeline.log import Log
from pipeline.query.balance import balance
from pipeline.store import alerts as store
from pipeline.store import books, leases, schema
from pipeline.store.books import Books
from pipeline.store.database import Database
from schemas.errors import Unavailable
from schemas.notices import Notice
from schemas.topics import RESOLVED

Tell = Callable[[Notice], Awaitable[None]]
"""Sends a notice to one channel. Unavailable when it did not get there."""

EVERY: Final = 30.0  # seconds between looks
COUNTED: Final = 100_000  # records that a look counts for the balance; a longer backlog is not an imbalance
LEASE: Final = "alerts"

log = structlog.get_logger()


async def run_watch(
    events: Log,
    database: Database,
    destinations: Collection[str],
    channels: Mapping[str, Tell],
    *,
    stop: asyncio.Event,
    thresholds: Thresholds | None = None,
    every: float = EVERY,
    now: Callable[[], float] = time,
) -> None:
    """Looks until `stop` is set. Of several processes one looks; when it is gone another takes over within three looks."""
    owner = f"{os.getpid()}-{secrets.token_hex(4)}"
    span = round(3 * every * 1e6)
    off: int | None = 0
    while not stop.is_set():
        moment = round(now() * 1e6)
        try:
            if await database.run(lambda c: leases.lease(c, LEASE, owner, moment, span)):  # noqa: B023 - awaited within the turn
                off = await _turn(events, database, destinations, channels, thresholds or Thresholds(), moment, off)
        except Unavailable as error:
            log.warning("alerts not looked at", error=str(error))
        try:
            await asyncio.wait_for(stop.wait(), every)
        except TimeoutError:
            continue
    try:
        await database.run(lambda c: leases.release(c, LEASE, owner))
    except Unavailable as error:
        log.warning("the watch was not handed over; another takes it when its time is up", error=str(error))


async def _turn(
    events: Log,
    database: Database,
    destinations: Collection[str],
    channels: Mapping[str, Tell],
    thresholds: Thresholds,
    now: int,
    before: int | None,
) -> int | None:
    """One look and what follows from it; returns what the books are off by."""
    off = (await balance(events, database, destinations, most=COUNTED)).off
    unread = await _unread_since(events, await database.read(books.read))
    if off and off != before:
        log.error("the books do not balance", off=off)
    elif before and off == 0:
        log.info("the books balance again")
    decide = partial(_decide, destinations=destinations, thresholds=thresholds, unread=unread, off=off, now=now)
    known = await database.run(decide)
    for name, alert in known.items():
        heard = await _tell(alert, channels, now)
        if heard != alert.told:
            known[name] = replace(alert, told=heard)
    still = [one for one in known.values() if is_open(one, now)]
    await database.run(lambda connection: store.keep(connection, still))
    return off


async def _unread_since(events: Log, snapshot: Books) -> dict[str, int]:
    """When the first record that a destination has not read was written, for each that is behind."""
    bounds = await events.bounds(RESOLVED)
    written: dict[tuple[int, int], int] = {}
    oldest: dict[str, int] = {}
    for (name, partition), (offset, _) in snapshot.positions.items():
        begin, end = bounds[partition]
        place = (partition, max(begin, offset))
        if place[1] >= end:
            continue
        if place not in written:
            batch = await events.read(RESOLVED, *place)
            if batch is None or not batch.records:
                continue
            written[place] = batch.records[0].timestamp * 1_000
        oldest[name] = min(oldest.get(name, written[place]), written[place])
    return oldest


def _decide(
    connection: Connection,
    *,
    destinations: Collection[str],
    thresholds: Thresholds,
    unread: Mapping[str, int],
    off: int | None,
    now: int,
) -> dict[str, Alert]:
    snapshot = books.read(connection)
    states = schema.destination_state
    look = Look(
        at=now,
        states=dict.fromkeys(destinations, ("delivering", ""))
        | {
            row.destination: (row.state, row.reason)
            for row in connection.execute(select(states))
            if row.destination in destinations
        },
        oldest=_earlier(snapshot.oldest, unread),
        samples=store.sample(connection, _counters(snapshot, destinations), now),
        off=off,
    )
    known = store.alerts(connection)
    after = advance(known, conditions(look, thresholds), now)
    for name in sorted(after.keys() | known.keys()):
        _log(known.get(name), after.get(name))
    store.keep(connection, after.values())
    return after


def _earlier(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
    return {name: min(one[name] for one in (a, b) if name in one) for name in a.keys() | b.keys()}


def _counters(snapshot: Books, destinations: Collection[str]) -> dict[str, int]:
    """Nothing counts as none, so that the first that comes is seen to come."""
    counters = {f"{kind}:{name}": 0 for name in destinations for kind in ("delivered", "dead")}
    for source, intake in snapshot.intake.items():
        counters[f"accepted:{source}"] = intake.accepted
    for (name, _), settled in snapshot.settled.items():
        for kind, value in (("delivered", settled.delivered), ("dead", settled.died)):
            counters[f"{kind}:{name}"] = counters.get(f"{kind}:{name}", 0) + value
    return counters


def _log(before: Alert | None, after: Alert | None) -> None:
    was, now = (one is not None and one.is_on for one in (before, after))
    if now and not was and after is not None:
        log.error("alert", alert=after.name, text=after.text, remedy=after.remedy)
    elif was and not now and before is not None:
        log.info("alert resolved", alert=before.name)


async def _tell(alert: Alert, channels: Mapping[str, Tell], now: int) -> Mapping[str, str]:
    """What each configured channel has heard by now."""
    wanted = due(alert, channels, now)
    answers = await asyncio.gather(*(_told(name, channels[name], notice) for name, notice in wanted.items()))
    heard = {name: said for name, said in alert.told.items() if name in channels}
    return heard | {name: notice.id for (name, notice), done in zip(wanted.items(), answers, strict=True) if done}


async def _told(name: str, tell: Tell, notice: Notice) -> bool:
    try:
        await tell(notice)
    except Unavailable as error:
        log.warning("channel not reached, trying again", channel=name, alert=notice.alert, error=str(error))
        return False
    return True
