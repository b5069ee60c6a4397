"""What one poll of the log brought, and what of it the ledger can be told: the prefix that is settled or listed."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.delivery.decide import Decide, Unreadable
from pipeline.delivery.done import encode_done
from pipeline.delivery.lanes import Item, Lane, Partition, State
from pipeline.log import Batch, Record
from pipeline.store.ledger import Change, Counts, Progress, Range, Row
from schemas.events import Origin, Resolved


class Entry(NamedTuple):
    """A record of a poll. A repeat has neither a reason nor an event."""

    offset: int
    origin: Origin | None
    source: str
    reason: str | None = None  # why it is filtered
    item: Item | None = None


@dataclass(slots=True)
class Part:
    """The batch of one partition, with what was decided of its records. `done` of its entries are in the ledger."""

    partition: Partition
    batch: Batch
    entries: Sequence[Entry]
    done: int = 0

    def attempted(self) -> int:
        """How many entries there are up to the last that was attempted."""
        for index in range(len(self.entries), self.done, -1):
            item = self.entries[index - 1].item
            if item is not None and item.attempted:
                return index
        return self.done

    def offset_after(self, count: int) -> int:
        """Where reading would go on after the first `count` entries."""
        return self.entries[count].offset if count < len(self.entries) else self.batch.next_offset


@dataclass(frozen=True, slots=True)
class Step:
    """What a write will do to one partition: its progress, and what to note in memory once it is durable."""

    partition: Partition
    part: Part | None
    count: int  # entries of the part that are done then
    progress: Progress
    listed: Sequence[Item]
    dead: Sequence[Item]
    changed: Sequence[Item]
    at: float  # Unix seconds


def judge(
    partition: Partition,
    records: Sequence[Record],
    decoded: Sequence[Resolved | Unreadable],
    decide: Decide,
    now: float,
) -> list[Entry]:
    """Decides of each record; those to deliver carry an event in its profile's lane (not yet added to it)."""
    return [_judge(partition, record, one, decide, now) for record, one in zip(records, decoded, strict=True)]


def _judge(partition: Partition, record: Record, decoded: Resolved | Unreadable, decide: Decide, now: float) -> Entry:
    if isinstance(decoded, Unreadable):
        lane = Lane(partition, record.key.decode(errors="replace"), record.offset)
        item = Item(lane, record.offset, "", "")
        return Entry(record.offset, None, "", item=_unreadable(item, record, decoded.reason, now))
    event, origin = decoded.event, decoded.origin
    if origin.offset <= partition.seen.get(origin.partition, -1):
        return Entry(record.offset, None, event.source)
    partition.seen[origin.partition] = origin.offset
    reason: str | None
    try:
        reason = decide(decoded)
    except ValueError as error:
        reason = None
        if not decoded.fences:
            lane = Lane(partition, decoded.profile_id, record.offset)
            item = Item(lane, record.offset, event.source, event.message_id)
            return Entry(record.offset, origin, event.source, item=_unreadable(item, record, str(error), now))
    if reason is not None and not decoded.fences:
        return Entry(record.offset, origin, event.source, reason=reason)
    lane = partition.lane(decoded.profile_id, record.offset)
    item = Item(lane, record.offset, event.source, event.message_id)
    item.fences = decoded.fences
    item.reason = reason or ""
    item.value = record.value
    item.resolved = decoded
    return Entry(record.offset, origin, event.source, item=item)


def _unreadable(item: Item, record: Record, reason: str, now: float) -> Item:
    item.value = record.value
    item.state = State.DEAD
    item.reason = reason
    item.first_at = item.ended_at = now
    return item


# ── To the ledger ─────────────────────────────────────────────────────────────────────────────────────────────────


def steps(parts: Iterable[Part], changed: Iterable[Item], now: float, *, count: Callable[[Part], int]) -> list[Step]:
    """What to write: of each part its first `count` entries, and what became of listed events since the last write."""
    changes: dict[Partition, list[Item]] = {}
    for item in changed:
        if item.lane.partition.live:
            changes.setdefault(item.lane.partition, []).append(item)
    made = [
        _step(part.partition, part, count(part), changes.pop(part.partition, []), now)
        for part in parts
        if part.partition.live
    ]
    made += [_step(partition, None, 0, items, now) for partition, items in changes.items()]
    return [step for step in made if step.progress.range is not None or step.progress.changes]


def _step(partition: Partition, part: Part | None, count: int, changed: Sequence[Item], now: float) -> Step:
    counts: dict[str, list[int]] = {}
    filtered: dict[str, list[list[int]]] = {}
    marks = dict(partition.marks)
    rows: list[Row] = []
    listed: list[Item] = []
    dead: list[Item] = []
    offset, span = partition.offset, None
    if part is not None and count > part.done:
        offset = part.offset_after(count)
        last: list[int] | None = None  # the run that the record before belongs to
        for entry in part.entries[part.done : count]:
            if entry.origin is not None:
                marks[entry.origin.partition] = entry.origin.offset
            item = entry.item
            if item is not None and item.state is State.FILTERED:
                _count(counts, item.source)[1] += 1
                last = _extend(filtered.setdefault(item.reason, []), last, entry.offset)
            elif item is not None:
                last = None
                if item.state is State.DELIVERED:
                    _count(counts, item.source)[0] += 1
                    continue
                if item.state is State.DEAD:
                    _count(counts, item.source)[2] += 1
                    dead.append(item)
                else:
                    listed.append(item)
                rows.append(_row(item, now))
            elif entry.reason is not None:
                _count(counts, entry.source)[1] += 1
                last = _extend(filtered.setdefault(entry.reason, []), last, entry.offset)
            else:
                last = None
        span = Range(part.entries[part.done].offset, offset, filtered)
    for item in changed:
        if item.state is State.DELIVERED:
            _count(counts, item.source)[0] += 1
        elif item.state is State.FILTERED:
            _count(counts, item.source)[1] += 1
        elif item.state is State.DEAD:
            _count(counts, item.source)[2] += 1
            dead.append(item)
    progress = Progress(
        partition=partition.number,
        epoch=partition.epoch,
        offset=offset,
        marks=marks,
        range=span,
        counts={source: Counts(*three) for source, three in counts.items()},
        rows=rows,
        changes=[_change(item) for item in changed],
        writes=partition.writes,
    )
    return Step(partition, part, count, progress, listed, dead, changed, now)


def _count(counts: dict[str, list[int]], source: str) -> list[int]:
    three = counts.get(source)
    if three is None:
        three = counts[source] = [0, 0, 0]
    return three


def _extend(runs: list[list[int]], last: list[int] | None, offset: int) -> list[int]:
    """Lengthens the last run when the record before belongs to it, else begins one."""
    if runs and runs[-1] is last:
        last[1] = offset - last[0] + 1
        return last
    runs.append([offset, 1])
    return runs[-1]


def _row(item: Item, now: float) -> Row:
    """A new row. Its bytes are there: they leave memory only once they are listed or settled by the first attempt."""
    assert item.value is not None, "an event that is not listed has its bytes"
    first = item.first_at or now
    return Row(
        offset=item.offset,
        state=item.state.value,
        source=item.source,
        profile=item.lane.profile,
        message_id=item.message_id,
        attempts=item.attempts,
        reason=item.reason,
        first_at=micros(first),
        next_at=micros(item.ended_at if item.state.settled else item.next_at or now),
        value=item.value,
        done=encode_done(item.done),
    )


def _change(item: Item) -> Change:
    at = item.ended_at if item.state.settled else item.next_at
    return Change(item.offset, item.state.value, item.attempts, item.reason, micros(at), encode_done(item.done))


def micros(seconds: float) -> int:
    """Unix seconds as the microseconds that are stored."""
    return round(seconds * 1e6)


def note(step: Step) -> None:
    """Brings memory up to what is durable now."""
    partition, progress = step.partition, step.progress
    partition.writes += 1
    partition.offset = progress.offset
    partition.marks = dict(progress.marks)
    if step.part is not None:
        step.part.done = max(step.part.done, step.count)
    for item in step.listed:
        item.listed = True
        item.first_at = item.first_at or step.at
        if not item.flying:
            item.value = item.resolved = None
    partition.outstanding += len(step.listed) - sum(item.state.settled for item in step.changed)
