"""What one poll of the log brought, and what of it the ledger can be told: the prefix that is settled or listed."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from destinations.contract import EncodedEvent
from pipeline.delivery.decide import Decide, Unreadable
from pipeline.delivery.done import encode_done
from pipeline.delivery.lanes import DELIVERED, FILTERED, Item, Lane, Partition, State
from pipeline.log import Batch, Record
from pipeline.store.ledger import Change, Counts, Progress, Range, Row
from schemas.events import Origin, Resolved


class Passed(NamedTuple):
    """A record of a poll that is not to be delivered. `reason` is why it is filtered; a repeat has neither that nor an origin."""

    offset: int
    origin: Origin | None
    source: str
    reason: str | None = None


Entry = Passed | Item
"""A record of a poll, with what was decided of it."""
Encode = Callable[[Resolved], EncodedEvent | None]
"""Makes the payload of an event; None where that is for the attempt to do."""

_passed: Final = partial(tuple.__new__, Passed)  # half the cost of calling the class


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
            entry = self.entries[index - 1]
            if isinstance(entry, Item) and entry.attempted:
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
    encode: Encode | None = None,
) -> list[Entry]:
    """Decides of each record; those to deliver become events in their profiles' lanes (not yet added to them). What `encode` makes of
    one is kept in the place of what it was made of."""
    seen = partition.seen
    entries: list[Entry] = []
    for record, one in zip(records, decoded, strict=True):
        if isinstance(one, Unreadable):
            entries.append(
                _dead(Lane(partition, record.key.decode(errors="replace"), record.offset), record, one.reason, now)
            )
            continue
        event, origin = one.event, one.origin
        if origin.offset <= seen.get(origin.partition, -1):
            entries.append(_passed((record.offset, None, event.source, None)))
            continue
        seen[origin.partition] = origin.offset
        reason: str | None
        try:
            reason = decide(one)
        except ValueError as error:
            reason = None
            if not one.fences:
                item = _dead(Lane(partition, one.profile_id, record.offset), record, str(error), now)
                item.origin, item.source, item.message_id = origin, event.source, event.message_id
                entries.append(item)
                continue
        if reason is not None and not one.fences:
            entries.append(_passed((record.offset, origin, event.source, reason)))
            continue
        item = Item(partition.lane(one.profile_id, record.offset), record.offset, event.source, event.message_id)
        item.origin = origin
        item.received_at = event.received_at
        item.value = record.value
        if one.fences:
            item.fences = one.fences
            item.reason = reason or ""
            item.resolved = one
        elif encode is None or (payload := encode(one)) is None:
            item.resolved = one
        else:
            item.payload = payload
        entries.append(item)
    return entries


def _dead(lane: Lane, record: Record, reason: str, now: float) -> Item:
    """An event that cannot be read."""
    item = Item(lane, record.offset, "", "")
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
        entries = part.entries[part.done : count]
        offset = part.offset_after(count)
        marks |= {origin.partition: origin.offset for entry in entries if (origin := entry.origin) is not None}
        delivered: list[str] = []  # their sources
        last: list[int] | None = None  # the run that the record before belongs to
        for entry in entries:
            if isinstance(entry, Item) and (state := entry.state) is not FILTERED:
                last = None
                if state is DELIVERED:
                    delivered.append(entry.source)
                    continue
                if state is State.DEAD:
                    _count(counts, entry.source)[2] += 1
                    dead.append(entry)
                else:
                    listed.append(entry)
                rows.append(_row(entry, now))
            elif entry.reason is not None:
                _count(counts, entry.source)[1] += 1
                last = _extend(filtered.setdefault(entry.reason, []), last, entry.offset)
            else:
                last = None
        for source, many in Counter(delivered).items():
            _count(counts, source)[0] += many
        span = Range(entries[0].offset, offset, filtered)
    for item in changed:
        if item.state is DELIVERED:
            _count(counts, item.source)[0] += 1
        elif item.state is FILTERED:
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
            item.let_go()
    partition.outstanding += len(step.listed) - sum(item.state.settled for item in step.changed)
