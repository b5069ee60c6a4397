"""What was seen of deliveries: a row per destination, process and minute, totals that only grow, and the latest example of each error.

A process overwrites its own row of a minute, so that a write may be repeated; histograms of different rows add up.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import orjson
from sqlalchemy import Connection, delete, func, select, text

from pipeline.store import bulk, schema
from pipeline.store.ledger import OUTSTANDING

KEPT: Final = 7 * 86_400_000_000  # microseconds that minutes and examples are kept
SAMPLES: Final = 100  # of one destination
_LATENCY: Final = "latency:"


class Cause(NamedTuple):
    """What errors have in common: `http 422`, and the service's message without what varies."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Minute:
    """Attempts at events, each counted once per try. `latency` is by bucket of `pipeline.latency`."""

    delivered: int
    retried: int
    rejected: int
    latency: Mapping[int, int]
    causes: Mapping[Cause, int]

    @property
    def attempts(self) -> int:
        return self.delivered + self.retried + self.rejected


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """An error. `request` and `answer` are JSON with nothing secret or personal in it."""

    at: int  # microseconds
    message_id: str
    request: str
    answer: str | None


class Queue(NamedTuple):
    """Events that wait: how many by state, and since when the oldest was first tried."""

    waiting: Mapping[str, int]
    oldest: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One destination over a span of time."""

    minute: Minute
    samples: Mapping[Cause, Sample]
    queue: Queue
    state: tuple[str, int, str] | None  # state, since, reason


def write(
    connection: Connection,
    destination: str,
    writer: str,
    minutes: Mapping[int, Minute],
    grown: Sequence[Minute],
    samples: Mapping[Cause, Sample],
) -> None:
    """Writes minutes whole (by their beginning, in microseconds), adds what is new in them to the totals, and replaces examples."""
    bulk.upsert(
        connection,
        schema.destination_minutes,
        [
            (
                destination,
                at,
                writer,
                one.delivered,
                one.retried,
                one.rejected,
                _latency(one.latency),
                _causes(one.causes),
            )
            for at, one in minutes.items()
        ],
    )
    totals: Counter[str] = Counter()
    for one in grown:
        totals.update({"delivered": one.delivered, "retried": one.retried, "rejected": one.rejected})
        totals.update({f"{_LATENCY}{index}": count for index, count in one.latency.items()})
    bulk.upsert(
        connection,
        schema.destination_totals,
        [(destination, name, value) for name, value in sorted(totals.items()) if value],
        set_={"value": "destination_totals.value + excluded.value"},
    )
    bulk.upsert(
        connection,
        schema.destination_samples,
        [
            (destination, *map(_storable, cause), one.at, _storable(one.message_id), _storable(one.request), _storable(one.answer or ""))
            for cause, one in samples.items()
        ],
    )  # fmt: skip


def _latency(counts: Mapping[int, int]) -> str:
    return orjson.dumps(sorted(counts.items())).decode()


def _causes(counts: Mapping[Cause, int]) -> str:
    return orjson.dumps([(*cause, count) for cause, count in sorted(counts.items())]).decode()


def _storable(words: str) -> str:
    """PostgreSQL has no NUL and no half of a surrogate pair in text."""
    return words.replace("\x00", "\ufffd").encode(errors="replace").decode()


def read(connection: Connection, destinations: Sequence[str], since: int) -> dict[str, Seen]:
    """What was seen of each from `since` on (microseconds), in the transaction's snapshot."""
    minutes = _minutes(connection, destinations, since)
    samples = _samples(connection, destinations, since)
    queues = _queues(connection, destinations)
    table = schema.destination_state
    states = {
        row.destination: (row.state, row.since, row.reason)
        for row in connection.execute(select(table).where(table.c.destination.in_(destinations)))
    }
    return {
        name: Seen(
            minute=minutes[name],
            samples=samples[name],
            queue=queues.get(name, Queue({}, None)),
            state=states.get(name),
        )
        for name in destinations
    }


def _minutes(connection: Connection, destinations: Sequence[str], since: int) -> dict[str, Minute]:
    table = schema.destination_minutes
    sums: defaultdict[str, Counter[str]] = defaultdict(Counter)
    latency: defaultdict[str, Counter[int]] = defaultdict(Counter)
    causes: defaultdict[str, Counter[Cause]] = defaultdict(Counter)
    rows = connection.execute(select(table).where(table.c.destination.in_(destinations), table.c.at >= since))
    for row in rows:
        name = row.destination
        sums[name].update(delivered=row.delivered, retried=row.retried, rejected=row.rejected)
        latency[name].update(dict(orjson.loads(row.latency)))
        causes[name].update({Cause(code, words): count for code, words, count in orjson.loads(row.causes)})
    return {
        name: Minute(
            delivered=sums[name]["delivered"],
            retried=sums[name]["retried"],
            rejected=sums[name]["rejected"],
            latency=latency[name],
            causes=causes[name],
        )
        for name in destinations
    }


def _samples(connection: Connection, destinations: Sequence[str], since: int) -> dict[str, dict[Cause, Sample]]:
    table = schema.destination_samples
    found: dict[str, dict[Cause, Sample]] = {name: {} for name in destinations}
    for row in connection.execute(select(table).where(table.c.destination.in_(destinations), table.c.at >= since)):
        found[row.destination][Cause(row.code, row.message)] = Sample(
            at=row.at, message_id=row.message_id, request=row.request, answer=row.answer or None
        )
    return found


def _queues(connection: Connection, destinations: Sequence[str]) -> dict[str, Queue]:
    table = schema.exceptions
    waiting: defaultdict[str, dict[str, int]] = defaultdict(dict)
    oldest: dict[str, int] = {}
    rows = connection.execute(
        select(table.c.destination, table.c.state, func.count(), func.min(table.c.first_at))
        .where(table.c.destination.in_(destinations), table.c.state.in_(OUTSTANDING))
        .group_by(table.c.destination, table.c.state)
    )
    for name, state, count, first in rows:
        waiting[name][state] = int(count)
        oldest[name] = min(oldest.get(name, first), first)
    return {name: Queue(waiting[name], oldest[name]) for name in waiting}


def totals(connection: Connection) -> dict[str, Minute]:
    """Everything ever seen of each destination: figures that never fall."""
    table = schema.destination_totals
    values: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for name, what, value in connection.execute(select(table)):
        values[name][what] = value
    return {
        name: Minute(
            delivered=one.get("delivered", 0),
            retried=one.get("retried", 0),
            rejected=one.get("rejected", 0),
            latency={
                int(what.removeprefix(_LATENCY)): count for what, count in one.items() if what.startswith(_LATENCY)
            },
            causes={},
        )
        for name, one in sorted(values.items())
    }


_SURPLUS: Final = text("""
    DELETE FROM destination_samples WHERE (
      SELECT count(*) FROM destination_samples AS later
      WHERE later.destination = destination_samples.destination AND later.at > destination_samples.at
    ) >= :most
""")


def purge(connection: Connection, before: int) -> None:
    """Forgets minutes and examples from before then (microseconds), and examples beyond the latest SAMPLES of a destination. Totals stay."""
    for table in (schema.destination_minutes, schema.destination_samples):
        connection.execute(delete(table).where(table.c.at < before))
    connection.execute(_SURPLUS, {"most": SAMPLES})
