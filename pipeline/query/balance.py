"""The books balance: accepted = delivered + filtered + dead + purged + pending + missed, for every source and destination, at every
moment. Missed is what the log's retention took while a destination was not configured.

The counters come from one snapshot of the database. What is pending is counted on its own, in the log: records between a
destination's position and the end, of events that the snapshot holds as accepted, and the few that the pipeline has
applied but not emitted yet. So a loss anywhere shows as `off`.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from functools import partial
from sys import maxsize
from typing import Final, TypeVar

import orjson
from sqlalchemy import Connection

from pipeline.log import Log, Record
from pipeline.profile import message_key
from pipeline.store import accepted, baselines, books, erasures
from pipeline.store.accepted import Applied
from pipeline.store.baselines import Baseline
from pipeline.store.books import Books, Intake, Settled
from pipeline.store.database import Database
from schemas.api import Balance, DestinationBalance, ReplayBalance, SourceBalance
from schemas.events import Event, Origin, decode_event, decode_resolved
from schemas.topics import EVENTS, RESOLVED, partition_of

COUNTED: Final = 2_000_000  # records; a longer backlog is reported as such, not counted

T = TypeVar("T")
Marks = dict[tuple[int, int], int]  # (partition of resolved, origin partition) -> highest origin offset


async def balance(log: Log, database: Database, destinations: Collection[str], *, most: int = COUNTED) -> Balance:
    """The books as they are now. `off` is None while a backlog is too long to be counted: more than `most` records.

    `destinations` are those that are configured. One that was removed is owed nothing: of what it has not read the log's retention may
    take what it likes."""
    snapshot = await database.read(books.read)
    names = sorted({*destinations, *(name for name, _ in snapshot.positions)})
    waiting = await _waiting(log, snapshot, most)
    unread = await _unread(log, database, snapshot, names, most)
    table = {
        name: {
            source: _row(
                snapshot,
                name,
                source,
                None if unread is None else unread[name][source],
                configured=name in destinations,
            )
            for source in sorted(snapshot.intake)
        }
        for name in names
    }
    offs = [row.off for rows in table.values() for row in rows.values()]
    return Balance(
        sources={
            source: _source(snapshot.intake.get(source, Intake(0, 0, 0, 0)), waiting, source)
            for source in sorted({*snapshot.intake, *(waiting or ())})
        },
        destinations=table,
        replays={
            name: ReplayBalance(
                delivered=one.settled.delivered,
                filtered=one.settled.filtered,
                dead=one.settled.dead,
                purged=one.settled.purged,
                pending=one.outstanding,
            )
            for name, one in snapshot.replays.items()
        },
        off=None if None in offs else sum(abs(off) for off in offs if off is not None),
    )


async def begin(log: Log, database: Database, name: str) -> None:
    """To be awaited before a destination reads for the first time: notes what retention has removed before it was there, so that
    its books begin after that. Reads the log once, and only when something was removed."""
    if await database.read(lambda connection: baselines.counted(connection, name)):
        return
    missed: dict[str, int] = {}
    if any(first > 0 for first, _ in (await log.bounds(RESOLVED)).values()):
        snapshot = await database.read(books.read)
        unread = await _unread(log, database, snapshot, [name], maxsize)
        assert unread is not None, "no backlog is that long"
        missed = {source: max(0, one.accepted - unread[name][source]) for source, one in snapshot.intake.items()}
    await database.run(lambda connection: baselines.note(connection, name, missed))


async def leave(log: Log, database: Database, configured: Collection[str]) -> list[str]:
    """Notes which destinations are not configured any more: what retention takes of them from now on is missed, and no loss. Answers those
    of which that was not known. Reads the log once for them."""
    snapshot = await database.read(books.read)
    gone = sorted({name for name, _ in snapshot.positions} - {*configured} - {*baselines.removed(snapshot.baselines)})
    if not gone:
        return []
    offs = await _offs(log, database, snapshot, gone)

    def note(connection: Connection) -> list[str]:
        return [name for name in gone if baselines.leave(connection, name, offs[name])]

    return await database.run(note)


async def come_back(log: Log, database: Database, name: str) -> Mapping[str, int]:
    """To be awaited before a destination reads: when it had been removed from the configuration, notes what retention took of it since.
    Answers that, by source, to the first who asks."""
    snapshot = await database.read(books.read)
    known = snapshot.baselines.get(name)
    if known is None or known.off is None:
        return {}
    off = (await _offs(log, database, snapshot, [name]))[name]
    missed = {source: more for source, now in off.items() if (more := _since(known, source, now))}
    return missed if await database.run(lambda connection: baselines.come_back(connection, name, missed)) else {}


async def _offs(log: Log, database: Database, snapshot: Books, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """What the books of destinations are off by, by source, with what they missed since they were removed."""
    unread = await _unread(log, database, snapshot, names, maxsize)
    assert unread is not None, "no backlog is that long"
    return {
        name: {source: _off(snapshot, name, source, unread[name][source]) for source in snapshot.intake}
        for name in names
    }


def _off(snapshot: Books, name: str, source: str, unread: int) -> int:
    baseline = _baseline(snapshot, name, source, unread)
    settled = snapshot.settled.get((name, source), Settled())
    pending = unread + snapshot.outstanding.get((name, source), 0)
    return snapshot.intake[source].accepted - baseline - _missed(snapshot, name, source) - settled.ended - pending


def _since(known: Baseline, source: str, off: int) -> int:
    """Of what the books are off by, what retention took since the destination was removed."""
    return 0 if known.off is None else max(0, off - known.off.get(source, 0))


def _missed(snapshot: Books, name: str, source: str) -> int:
    known = snapshot.baselines.get(name)
    return 0 if known is None else known.missed.get(source, 0)


def _baseline(snapshot: Books, name: str, source: str, unread: int | None) -> int:
    """What had gone before the destination came. Of one that has not begun that is whatever it does not find in the log."""
    known = snapshot.baselines.get(name)
    if known is not None or any(one == name for one, _ in snapshot.positions):
        return 0 if known is None else known.accepted.get(source, 0)
    return 0 if unread is None else max(0, snapshot.intake[source].accepted - unread)


def _row(snapshot: Books, name: str, source: str, unread: int | None, *, configured: bool) -> DestinationBalance:
    settled = snapshot.settled.get((name, source), Settled())
    pending = None if unread is None else unread + snapshot.outstanding.get((name, source), 0)
    missed = _missed(snapshot, name, source)
    if configured:
        accepted = snapshot.intake[source].accepted - _baseline(snapshot, name, source, unread)
        off = None if unread is None else _off(snapshot, name, source, unread)
        if off is not None and name in snapshot.baselines:  # it is configured again, and has not begun to read
            more = _since(snapshot.baselines[name], source, off)
            missed, off = missed + more, off - more
    else:
        accepted, off = settled.ended + (pending or 0) + missed, 0
    return DestinationBalance(
        accepted=accepted,
        delivered=settled.delivered,
        filtered=settled.filtered,
        dead=settled.dead,
        purged=settled.purged,
        pending=pending,
        missed=missed,
        off=off,
    )


def _source(intake: Intake, waiting: Counter[str] | None, source: str) -> SourceBalance:
    return SourceBalance(
        accepted=intake.accepted,
        duplicates=intake.duplicates,
        refused=intake.refused,
        unresolved=intake.unresolved,
        waiting=None if waiting is None else waiting[source],
    )


async def _waiting(log: Log, snapshot: Books, most: int) -> Counter[str] | None:
    """Events that the collector accepted or refused and the pipeline has not applied, by source."""
    starts = {partition: snapshot.applied.get(partition, 0) for partition in range(log.partitions(EVENTS))}
    counts: Counter[str] = Counter()
    if await _length(log, EVENTS, starts) > most:
        return None
    async for _, events in _scan(log, EVENTS, starts, decode_event):
        counts.update(event.source for _, event in events)
    return counts


async def _unread(
    log: Log, database: Database, snapshot: Books, names: Sequence[str], most: int
) -> dict[str, Counter[str]] | None:
    """What each destination has before it, by source: accepted in the snapshot, not in its counters, not outstanding."""
    partitions = range(log.partitions(RESOLVED))
    positions = {(name, p): snapshot.positions.get((name, p), (0, "{}")) for name in names for p in partitions}
    starts = {p: min((positions[name, p][0] for name in names), default=0) for p in partitions}
    if await _length(log, RESOLVED, starts) > most:
        return None
    marks = {name: _marks(positions, name, partitions) for name in names}
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    async for partition, records in _scan(log, RESOLVED, starts, decode_resolved):
        for record, resolved in records:
            origin = resolved.origin
            if origin.offset >= snapshot.applied.get(origin.partition, 0):
                continue  # accepted after the snapshot
            for name in names:
                if record.offset >= positions[name, partition][0]:
                    lane = (partition, origin.partition)
                    if origin.offset > marks[name].get(lane, -1):
                        marks[name][lane] = origin.offset
                        counts[name][resolved.event.source] += 1
    for event, place in await _in_transit(log, database, snapshot):
        target = partition_of(place.profile.encode() or event.key, len(partitions))
        for name in names:
            if place.origin.offset > marks[name].get((target, place.origin.partition), -1):
                counts[name][event.source] += 1
    return counts


def _marks(positions: Mapping[tuple[str, int], tuple[int, str]], name: str, partitions: range) -> Marks:
    return {
        (partition, int(origin)): offset
        for partition in partitions
        for origin, offset in orjson.loads(positions[name, partition][1]).items()
    }


async def _in_transit(log: Log, database: Database, snapshot: Books) -> list[tuple[Event, Applied]]:
    """Accepted events whose emission to `resolved` is not known to be complete: the last poll of each partition."""
    found: list[tuple[Event, Applied]] = []
    async for partition, events in _scan(log, EVENTS, snapshot.emitted, decode_event, ends=snapshot.applied):
        by_origin = {Origin(partition, record.offset): event for record, event in events}
        if not by_origin:
            continue
        keys = {message_key(event.source, event.message_id) for _, event in events}
        span = {partition: (min(one.offset for one in by_origin), max(one.offset for one in by_origin) + 1)}
        applied, erased = await database.read(partial(_applied, keys=keys, span=span))
        found += [(by_origin[one.origin], one) for one in (*applied, *erased) if one.origin in by_origin]
    return sorted(found, key=lambda one: one[1].origin)


def _applied(
    connection: Connection, keys: Collection[bytes], span: Mapping[int, tuple[int, int]]
) -> tuple[list[Applied], list[Applied]]:
    """Those that were accepted, and those whose person was deleted since: they are emitted without anything personal."""
    erased = erasures.erased_between(connection, span)
    known = [Applied(origin, profile, 0) for origin, profile in erased.items() if profile]
    return list(accepted.find(connection, keys).values()), known


async def _length(log: Log, topic: str, starts: Mapping[int, int]) -> int:
    return sum(max(0, end - starts.get(p, 0)) for p, (_, end) in (await log.bounds(topic)).items())


async def _scan(
    log: Log,
    topic: str,
    starts: Mapping[int, int],
    decode: Callable[[bytes], T],
    ends: Mapping[int, int] | None = None,
) -> AsyncIterator[tuple[int, list[tuple[Record, T]]]]:
    """Decoded records from `starts` up to `ends`, else to the log's present end; what cannot be decoded is passed over
    (the roles file it as dead). Decoding runs beside the event loop, so that ingestion goes on."""
    bounds = await log.bounds(topic)
    for partition, start in sorted(starts.items()):
        end = min(bounds[partition][1], (ends or {}).get(partition, bounds[partition][1]))
        offset = start
        while offset < end:
            batch = await log.read(topic, partition, offset)
            if batch is None:
                break
            records = [record for record in batch.records if record.offset < end]
            yield partition, await asyncio.to_thread(_decode, records, decode)
            offset = batch.next_offset


def _decode(records: Sequence[Record], decode: Callable[[bytes], T]) -> list[tuple[Record, T]]:
    decoded = []
    for record in records:
        try:
            decoded.append((record, decode(record.value)))
        except ValueError:
            continue
    return decoded
