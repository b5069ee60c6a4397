"""How each destination fares, for people: its state, its attempts, what waits, and its errors by cause."""

import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Final

from sqlalchemy import Connection, select

from pipeline.latency import quantile
from pipeline.log import Log
from pipeline.query.times import micros_of
from pipeline.store import observations, schema
from pipeline.store.database import Database
from pipeline.store.observations import Cause, Sample, Seen
from schemas.causes import remedy_of
from schemas.delivery_api import DeliveryError, DestinationStatus, DestinationStatuses, Latency
from schemas.errors import Refused
from schemas.events import iso
from schemas.openapi import TEXT, Parameter
from schemas.topics import RESOLVED

MOST_ERRORS: Final = 50
MINUTE: Final = 60_000_000
HOUR: Final = 60 * MINUTE
SINCE: Final = Parameter("since", "Attempts from this time on, ISO 8601, whole minutes; else of the last hour.", TEXT)


async def statuses(
    log: Log, database: Database, destinations: Collection[str], query: Mapping[str, str], only: str | None = None
) -> DestinationStatuses:
    """Every destination, or one. Refused when there is none of that name."""
    if only is not None and only not in destinations:
        known = ", ".join(sorted(destinations)) or "none"
        raise Refused("not_found", f"No destination is called {only[:100]!r}; configured: {known}.", status=404)
    names = sorted(destinations) if only is None else [only]
    asked = micros_of(query, "since")
    now = time.time_ns() // 1_000
    since = (now - HOUR if asked is None else min(max(0, asked), now)) // MINUTE * MINUTE
    seen, positions = await database.read(partial(_read, names=names, since=since))
    bounds = await log.bounds(RESOLVED)
    return DestinationStatuses(
        since=iso(since),
        destinations=[
            _status(name, seen[name], _lag({p: at for (one, p), at in positions.items() if one == name}, bounds))
            for name in names
        ],
    )


def _read(
    connection: Connection, names: Sequence[str], since: int
) -> tuple[dict[str, Seen], dict[tuple[str, int], int]]:
    table = schema.destination_positions
    rows = connection.execute(
        select(table.c.destination, table.c.partition, table.c.offset).where(table.c.destination.in_(names))
    )
    return observations.read(connection, names, since), {(name, partition): offset for name, partition, offset in rows}


def _lag(positions: Mapping[int, int], bounds: Mapping[int, tuple[int, int]]) -> int:
    return sum(max(0, end - max(begin, positions.get(number, 0))) for number, (begin, end) in bounds.items())


def _status(name: str, seen: Seen, lag: int) -> DestinationStatus:
    minute = seen.minute
    state, since, reason = seen.state or ("new", None, "")
    return DestinationStatus(
        name=name,
        state=state,
        state_since=None if since is None else iso(since),
        reason=reason,
        attempts=minute.attempts,
        delivered=minute.delivered,
        retried=minute.retried,
        rejected=minute.rejected,
        success_rate=minute.delivered / minute.attempts if minute.attempts else None,
        latency=Latency(
            p50=quantile(minute.latency, 0.50), p95=quantile(minute.latency, 0.95), p99=quantile(minute.latency, 0.99)
        ),
        waiting=dict(sorted(seen.queue.waiting.items())),
        oldest_at=None if seen.queue.oldest is None else iso(seen.queue.oldest),
        lag=lag,
        errors=[
            _error(cause, count, seen.samples.get(cause))
            for cause, count in sorted(minute.causes.items(), key=lambda one: (-one[1], one[0]))[:MOST_ERRORS]
        ],
    )


def _error(cause: Cause, count: int, sample: Sample | None) -> DeliveryError:
    return DeliveryError(
        code=cause.code,
        message=cause.message,
        count=count,
        remedy=remedy_of(cause.code),
        at=None if sample is None else iso(sample.at),
        message_id=None if sample is None else sample.message_id,
        request=None if sample is None else sample.request,
        answer=None if sample is None else sample.answer,
    )
