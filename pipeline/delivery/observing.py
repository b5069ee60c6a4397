"""What can be seen of one destination's attempts: how many, how long after acceptance, what went wrong and an example of it.

Counted in memory, a minute at a time, and written every few seconds on its own: a process that is killed loses its last
seconds of figures, never of the books.
"""

import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import structlog

from destinations.contract import Delivered, Filtered, Outcome, Rejected
from destinations.exchanges import Exchange
from pipeline.delivery import redaction
from pipeline.delivery.attempt import Attempt
from pipeline.delivery.forgetting import beside
from pipeline.delivery.lanes import Item
from pipeline.delivery.limits import Destination, World
from pipeline.latency import BUCKETS, bucket
from pipeline.store import observations
from pipeline.store.database import Database
from pipeline.store.observations import Cause, Minute, Sample
from schemas.causes import cause_of
from schemas.errors import Unavailable
from schemas.events import materialize

MINUTE: Final = 60_000_000  # microseconds
EVERY: Final = 5.0  # seconds between writes
CAUSES: Final = 20  # told apart within a minute; further ones count together
SAMPLES: Final = 20  # made within a minute
MINUTES: Final = 60  # kept while they cannot be written
OTHER: Final = Cause("other errors", "")

log = structlog.get_logger()


@dataclass(slots=True)
class _Counts:
    """One minute. `latency` is by bucket."""

    delivered: int = 0
    retried: int = 0
    rejected: int = 0
    latency: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    causes: Counter[Cause] = field(default_factory=Counter)
    samples: dict[Cause, Sample] = field(default_factory=dict)
    written: Minute | None = None


class Observer:
    """Counts one destination's attempts in this process."""

    def __init__(self, destination: Destination, now: Callable[[], float]) -> None:
        self.name = destination.name
        self._secrets = redaction.secrets_of(destination.settings)
        self._now = now
        self._writer = secrets.token_hex(4)
        self._minutes: dict[int, _Counts] = {}

    def note(self, made: Attempt, exchanges: Sequence[Exchange]) -> None:
        """Counts an attempt that has ended, while its events are still decoded."""
        micros = int(self._now() * 1e6)
        counts = self._minutes.get(micros // MINUTE)
        if counts is None:
            counts = self._minutes[micros // MINUTE] = _Counts()
        delivered: list[int] = []  # when they were accepted
        failed: dict[str, list[Item]] = {}
        for item, outcome in zip(made.items, made.outcomes, strict=True):
            if isinstance(outcome, Delivered):
                delivered.append(item.received_at)
            elif outcome is not None and not isinstance(outcome, Filtered):
                failed.setdefault(outcome.reason, []).append(item)
                _count(counts, outcome)
        counts.delivered += len(delivered)
        _add_latencies(counts.latency, micros, delivered)
        for reason, items in failed.items():
            self._failed(counts, reason, items, exchanges, micros)
        if made.credentials is not None:
            counts.retried += 1
            refused = [item for item, outcome in zip(made.items, made.outcomes, strict=True) if outcome is None]
            self._failed(counts, made.credentials, refused[:1], exchanges, micros)

    def _failed(
        self, counts: _Counts, reason: str, items: Sequence[Item], exchanges: Sequence[Exchange], micros: int
    ) -> None:
        exchange = next((one for one in exchanges if one.reason == reason), None)
        words = reason.partition(":")[2]
        said = redaction.message_of(exchange, self._secrets) if exchange is not None else ""
        cause = Cause(cause_of(reason), redaction.normalised(redaction.struck(words, self._secrets)) or said)
        if cause not in counts.causes and len(counts.causes) >= CAUSES:
            cause = OTHER
        counts.causes[cause] += max(1, len(items))
        if items and cause not in counts.samples and len(counts.samples) < SAMPLES:
            counts.samples[cause] = self._sample(items[0], exchange, micros)

    def _sample(self, item: Item, exchange: Exchange | None, micros: int) -> Sample:
        if exchange is not None:
            request = redaction.request_shown(exchange, self._secrets)
            answer = redaction.answer_shown(exchange, self._secrets)
        else:
            request, answer = redaction.event_shown(_event(item), self._secrets), None
        return Sample(at=micros, message_id=item.message_id, request=request, answer=answer)

    async def write(self, database: Database) -> None:
        """Writes what is new. Unavailable: it is written the next time."""
        minutes = {at: _frozen(counts) for at, counts in self._minutes.items()}
        changed = {at: minute for at, minute in minutes.items() if minute != self._minutes[at].written}
        if changed:
            grown = [_grown(self._minutes[at].written, minute) for at, minute in changed.items()]
            samples = {cause: one for at in sorted(changed) for cause, one in self._minutes[at].samples.items()}
            await database.run(
                partial(
                    observations.write,
                    destination=self.name,
                    writer=self._writer,
                    minutes={at * MINUTE: minute for at, minute in changed.items()},
                    grown=grown,
                    samples=samples,
                )
            )
            for at, minute in changed.items():
                self._minutes[at].written = minute
        present = int(self._now() * 1e6) // MINUTE
        for at in [
            at for at in self._minutes if at < present and self._minutes[at].written == _frozen(self._minutes[at])
        ]:
            del self._minutes[at]

    def forget_oldest(self) -> int:
        """Drops what could not be written for too long; how many minutes that were."""
        surplus = sorted(self._minutes)[:-MINUTES]
        for at in surplus:
            del self._minutes[at]
        return len(surplus)


@asynccontextmanager
async def observed(destination: Destination, database: Database, world: World) -> AsyncIterator[Observer]:
    """An observer that is written for as long as the block runs, and once more after it."""
    observer = Observer(destination, world.now)
    async with beside(_keep_writing(observer, database, world)):
        yield observer
    await _written(observer, database)


async def _keep_writing(observer: Observer, database: Database, world: World) -> None:
    while True:
        await world.sleep(EVERY)
        await _written(observer, database)


async def _written(observer: Observer, database: Database) -> None:
    try:
        await observer.write(database)
    except Unavailable as error:
        lost = observer.forget_oldest()
        log.warning("figures not written", destination=observer.name, error=str(error), minutes_lost=lost)


def _add_latencies(latency: list[int], micros: int, received: Sequence[int]) -> None:
    """Events that go together were mostly accepted together, and all are as late as the first and the last of them."""
    if not received:
        return
    least = bucket(micros - max(received))
    if least == bucket(micros - min(received)):
        latency[least] += len(received)
        return
    for at in received:
        latency[bucket(micros - at)] += 1


def _count(counts: _Counts, outcome: Outcome) -> None:
    if isinstance(outcome, Rejected):
        counts.rejected += 1
    else:
        counts.retried += 1


def _frozen(counts: _Counts) -> Minute:
    return Minute(
        delivered=counts.delivered,
        retried=counts.retried,
        rejected=counts.rejected,
        latency={index: count for index, count in enumerate(counts.latency) if count},
        causes=dict(counts.causes),
    )


def _grown(before: Minute | None, after: Minute) -> Minute:
    """What came since it was written last."""
    was = before or Minute(0, 0, 0, {}, {})
    return Minute(
        delivered=after.delivered - was.delivered,
        retried=after.retried - was.retried,
        rejected=after.rejected - was.rejected,
        latency=dict(Counter(after.latency) - Counter(was.latency)),
        causes={},
    )


def _event(item: Item) -> Mapping[str, Any]:
    """The event as the destination saw it; nothing of one whose bytes are gone or cannot be read."""
    try:
        event = item.event
        return {} if event is None else materialize(event)
    except ValueError:
        return {}
