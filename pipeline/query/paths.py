"""The path of events: accepted -> profile -> each destination, as one object that grows."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pipeline.log import Log, Record
from pipeline.profile import message_key
from pipeline.store import accepted, paths
from pipeline.store.accepted import Applied
from pipeline.store.database import Database
from pipeline.store.intake import applied_positions
from pipeline.store.paths import Outcome
from schemas.api import EventPath, EventPaths, PathProfile, PathStep
from schemas.errors import Refused
from schemas.events import Event, Origin, decode_event, decode_resolved, iso
from schemas.exact_json import json_loads
from schemas.reasons import remedy_for
from schemas.topics import EVENTS, RESOLVED, partition_of

SEARCHED: Final = 50_000  # records read at the most in search of one event
SETTLED: Final = frozenset({"delivered", "filtered", "dead", "purged", "settled"})


@dataclass(slots=True)
class Path:
    """How far one event has come. `resolved` is its place in `resolved`, with the time it was put there (µs)."""

    event: Event
    profile: str | None = None
    resolved: Origin | None = None
    profiled_at: int | None = None
    destinations: dict[str, Outcome] = field(default_factory=dict)
    shown: EventPath | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing can change any more."""
        return self.event.refused is not None or (
            self.resolved is not None and all(one.outcome in SETTLED for one in self.destinations.values())
        )


def describe(path: Path) -> EventPath:
    """The path as people and programs see it."""
    event = path.event

    def after(at: int | None) -> int | None:
        return None if at is None else max(0, (at - event.received_at) // 1000)

    return EventPath(
        message_id=event.message_id,
        type=event.type,
        event=_name(event),
        user_id=event.user_id,
        anonymous_id=event.anonymous_id,
        source=event.source,
        received_at=iso(event.received_at),
        refused=event.refused,
        remedy=remedy_for(event.refused),
        body=None if event.refused is None else _text(event.body),
        profile=None
        if path.profile is None
        else PathProfile(id=path.profile or None, after_ms=after(path.profiled_at)),
        destinations={
            name: PathStep(
                outcome=one.outcome, reason=one.reason or None, after_ms=after(one.at), attempts=one.attempts
            )
            for name, one in sorted(path.destinations.items())
        },
        complete=path.complete,
    )


def _text(body: bytes) -> str:
    return body.decode(errors="replace")


def _name(event: Event) -> str | None:
    try:
        body = json_loads(event.body)
    except ValueError:
        return None
    name = body.get("event" if event.type == "track" else "name") if isinstance(body, dict) else None
    return name if isinstance(name, str) else None


# ── One event ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def find(log: Log, database: Database, destinations: Collection[str], message_id: str) -> EventPaths:
    """Every path that a messageId took: one per source that sent it, and each refusal. Refused when there is none."""
    sources = await database.read(paths.known_sources)
    keys = {message_key(source, message_id): source for source in sources}
    found = await database.read(lambda connection: accepted.find(connection, keys))
    traced = [await _trace(log, database, destinations, applied) for applied in found.values()]
    refused = await database.read(lambda connection: paths.refusals(connection, message_id.replace("\0", "\ufffd")))
    answers = [describe(path) for path in traced if path is not None] + [_refusal(row) for row in refused]
    if not answers:
        path = await _waiting(log, database, message_id)
        answers = [] if path is None else [describe(path)]
    if not answers:
        raise Refused("not_found", "No event with this messageId is known.", status=404)
    return EventPaths(events=answers)


async def _trace(log: Log, database: Database, destinations: Collection[str], applied: Applied) -> Path | None:
    batch = await log.read(EVENTS, *applied.origin, max_records=1)
    if batch is None or batch.records[0].offset != applied.origin.offset:
        return None  # retention has removed it
    path = Path(decode_event(batch.records[0].value), applied.profile, profiled_at=applied.processed_at)
    path.destinations = dict.fromkeys(destinations, Outcome("pending"))
    path.resolved = await _resolved(log, applied, path.event)
    if path.resolved is None:
        return path
    partition, offset = path.resolved

    def read(connection: Any) -> dict[str, Outcome]:
        positions = paths.destination_positions(connection)
        exceptions = paths.exceptions_at(connection, partition, [offset])
        batches = {one.destination: one for one in paths.batches_around(connection, partition, offset)}
        positions |= {
            (name, partition): one.next for name, one in batches.items() if (name, partition) not in positions
        }
        names = {*destinations, *(name for name, _ in positions), *(name for name, _ in exceptions)}
        return {
            name: paths.outcome(
                offset, positions.get((name, partition)), exceptions.get((name, offset)), batches.get(name)
            )
            for name in names
        }

    path.destinations = await database.read(read)
    return path


async def _resolved(log: Log, applied: Applied, event: Event) -> Origin | None:
    """Where an applied event stands in `resolved`: it was put there soon after it was processed."""
    partition = partition_of(applied.profile.encode() or event.key, log.partitions(RESOLVED))
    offset = await log.offset_at(RESOLVED, partition, applied.processed_at // 1000)
    for _ in range(SEARCHED // 1000):
        batch = await log.read(RESOLVED, partition, offset, max_records=1000)
        if batch is None:
            return None
        for record in batch.records:
            if _origin(record) == applied.origin:
                return Origin(partition, record.offset)
        offset = batch.next_offset
    return None


def _origin(record: Record) -> Origin | None:
    try:
        return decode_resolved(record.value).origin
    except ValueError:
        return None


async def _waiting(log: Log, database: Database, message_id: str) -> Path | None:
    """An event that the collector accepted and the pipeline has not reached yet."""
    applied = await database.read(applied_positions)
    for partition, (earliest, end) in (await log.bounds(EVENTS)).items():
        offset, searched = max(earliest, applied.get(partition, 0)), 0
        while offset < end and searched < SEARCHED:
            batch = await log.read(EVENTS, partition, offset)
            if batch is None:
                break
            for event in _events(batch.records):
                if event.message_id == message_id:
                    return Path(event)
            offset, searched = batch.next_offset, searched + len(batch.records)
    return None


def _events(records: Collection[Record]) -> list[Event]:
    events = []
    for record in records:
        try:
            events.append(decode_event(record.value))
        except ValueError:
            continue  # a poison record has no messageId to be found by
    return events


def _refusal(row: Mapping[str, Any]) -> EventPath:
    return EventPath(
        message_id=row["message_id"],
        type="",
        event=None,
        user_id=None,
        anonymous_id=None,
        source=row["source"],
        received_at=iso(row["received_at"]),
        refused=row["code"],
        remedy=remedy_for(row["code"]),
        body=_text(bytes(row["body"])),
        profile=None,
        destinations={},
        complete=True,
    )


# ── All events, as they come ──────────────────────────────────────────────────────────────────────────────────────


class Tail:
    """Follows the log from now on. Holds at most `most` events that are still under way; of a faster stream it shows a
    part and says how many it passed over, since a person reads it and the books know the rest."""

    def __init__(self, log: Log, database: Database, destinations: Collection[str], *, most: int = 500) -> None:
        self._log, self._database, self._names, self._most = log, database, tuple(destinations), most
        self._paths: OrderedDict[Origin, Path] = OrderedDict()
        self._next: dict[tuple[str, int], int] = {}
        self._passed = 0

    async def lines(self, interval: float = 0.05) -> AsyncIterator[EventPath | int]:
        """Yields each event's path when it appears and whenever it has grown, until it is complete; a number is how many
        events were passed over."""
        for topic in (EVENTS, RESOLVED):
            self._next |= {(topic, p): end for p, (_, end) in (await self._log.bounds(topic)).items()}
        while True:
            ends = await self._log.bounds(RESOLVED)  # before the events: what they become is beyond
            await self._read_events()
            if any(path.resolved is None for path in self._paths.values()):
                await self._read_resolved()
            else:
                self._next |= {(RESOLVED, partition): end for partition, (_, end) in ends.items()}
            await self._ask_books()
            if self._passed:
                yield self._passed
                self._passed = 0
            for origin, path in list(self._paths.items()):
                line = describe(path)
                if line != path.shown:
                    path.shown = line
                    yield line
                if path.complete:
                    del self._paths[origin]
            await asyncio.sleep(interval)

    async def _new(self, topic: str) -> AsyncIterator[tuple[int, Record]]:
        for partition, (_, end) in (await self._log.bounds(topic)).items():
            offset = self._next.get((topic, partition), 0)
            if end - offset > 4 * self._most:
                self._passed += (end - offset - self._most) if topic == EVENTS else 0
                offset = end - self._most if topic == EVENTS else offset
            while offset < end:
                batch = await self._log.read(topic, partition, offset)
                if batch is None:
                    break
                for record in batch.records:
                    yield partition, record
                offset = batch.next_offset
            self._next[topic, partition] = offset

    async def _read_events(self) -> None:
        async for partition, record in self._new(EVENTS):
            for event in _events([record]):
                path = Path(event, destinations=dict.fromkeys(self._names, Outcome("pending")))
                if event.refused is not None:
                    path.destinations = {}
                self._paths[Origin(partition, record.offset)] = path
        while len(self._paths) > self._most:
            self._paths.popitem(last=False)
            self._passed += 1

    async def _read_resolved(self) -> None:
        async for partition, record in self._new(RESOLVED):
            try:
                resolved = decode_resolved(record.value)
            except ValueError:
                continue  # the delivery engine files it as a dead letter
            path = self._paths.get(resolved.origin)
            if path is not None and path.resolved is None:
                path.profile, path.profiled_at = resolved.profile_id, record.timestamp * 1000
                path.resolved = Origin(partition, record.offset)

    async def _ask_books(self) -> None:
        waiting: dict[int, dict[int, Path]] = {}
        for path in self._paths.values():
            if path.resolved is not None:
                waiting.setdefault(path.resolved.partition, {})[path.resolved.offset] = path
        if not waiting:
            return
        since = min(p.profiled_at or 0 for group in waiting.values() for p in group.values())

        def read(connection: Any) -> None:
            positions = paths.destination_positions(connection)
            batches: dict[tuple[str, int], list[paths.Batch]] = {}
            for batch in paths.batches_since(connection, since):
                batches.setdefault((batch.destination, batch.partition), []).append(batch)
            names = {*self._names, *(name for name, _ in positions)}
            for partition, group in waiting.items():
                exceptions = paths.exceptions_at(connection, partition, group)
                for offset, path in group.items():
                    path.destinations = {
                        name: paths.outcome(
                            offset,
                            positions.get((name, partition)),
                            exceptions.get((name, offset)),
                            next((b for b in batches.get((name, partition), ()) if b.first <= offset < b.next), None),
                        )
                        for name in names
                    }

        await self._database.read(read)
