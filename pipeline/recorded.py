"""What was recorded, in the order in which it was processed: the events on `resolved`, as functions of sources left them, by the time
of their emission, and those of one instant as they stood on `events`. What we tell ourselves is no evidence and is passed over, and
so is what was emitted again after a crash."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import inf
from typing import Final, NamedTuple

from pipeline.log import Log, Record
from schemas.events import Event, Origin, decode_resolved
from schemas.topics import INTERNAL_SOURCE, RESOLVED

_AT_ONCE: Final = 4_000
_READ: Final = 1_000
_MOST: Final = 20_000  # records of a partition in memory


class Recorded(NamedTuple):
    """An event, where it was accepted, and when it was emitted (Unix ms)."""

    stamp: int
    offset: int  # on its partition of `resolved`
    origin: Origin
    event: Event


class Place(NamedTuple):
    """How far one partition of `resolved` is read: the next offset, and of each partition of `events` the last one met."""

    offset: int
    marks: Mapping[int, int]


@dataclass(slots=True)
class _Partition:
    """One partition of `resolved` on its way to its end. `waiting` was read and not taken, `marks` are of what was read."""

    number: int
    offset: int
    end: int
    marks: dict[int, int]
    taken: dict[int, int]  # marks of what was taken
    waiting: list[Recorded] = field(default_factory=list)

    async def read(self, log: Log) -> int:
        """Reads on until more than one instant waits, or the end is reached; answers how many records that were."""
        before = self.offset
        while self.offset < self.end and self._wants_more():
            batch = await log.read(RESOLVED, self.number, self.offset, max_records=_READ)
            if batch is None:
                self.offset = self.end
                break
            self.waiting += [one for record in batch.records if (one := self._fresh(record)) is not None]
            self.offset = min(batch.next_offset, self.end)
        return self.offset - before

    def _wants_more(self) -> bool:
        waiting = self.waiting
        return not waiting or (waiting[0].stamp >= waiting[-1].stamp and len(waiting) < _MOST)

    def _fresh(self, record: Record) -> Recorded | None:
        if record.offset >= self.end:
            return None
        try:
            resolved = decode_resolved(record.value)
        except ValueError:
            return None  # a dead letter under any rules
        origin, event = resolved.origin, resolved.event
        if origin.offset <= self.marks.get(origin.partition, -1):
            return None
        self.marks[origin.partition] = origin.offset
        if event.source == INTERNAL_SOURCE:
            return None
        return Recorded(record.timestamp, record.offset, origin, event)

    def take(self, until: float) -> list[Recorded]:
        """Records stamped before a time."""
        count = next((n for n, one in enumerate(self.waiting) if one.stamp >= until), len(self.waiting))
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        self.taken.update((one.origin.partition, one.origin.offset) for one in taken)
        return taken

    @property
    def place(self) -> Place:
        if self.waiting:
            return Place(self.waiting[0].offset, dict(self.taken))
        return Place(self.offset, dict(self.marks))


class Recording:
    """The events from a time (Unix ms), or from places reached before, to the ends of the log as they are when it is read."""

    def __init__(self, log: Log, since: int = 0, places: Mapping[int, Place] | None = None) -> None:
        self._log, self._since = log, since
        self._begin = dict(places or {})
        self._partitions: list[_Partition] = []

    @property
    def places(self) -> dict[int, Place]:
        """How far everything is that was handed out."""
        return self._begin | {one.number: one.place for one in self._partitions}

    async def events(self, advance: Callable[[int, int], None]) -> AsyncIterator[Sequence[Recorded]]:
        """Every event once, by time over all partitions, some thousands at a time; `advance` hears of records done and of all."""
        bounds = await self._log.bounds(RESOLVED)
        self._partitions = [await self._opened(number, end) for number, (_, end) in bounds.items()]
        total = sum(max(0, one.end - one.offset) for one in self._partitions)
        done, ready = 0, list[Recorded]()
        while True:
            done += sum([await one.read(self._log) for one in self._partitions])
            advance(done, total)
            if not any(one.waiting for one in self._partitions):
                break
            until = min((one.waiting[-1].stamp for one in self._partitions if one.offset < one.end), default=inf)
            some = self._take(until) or self._take(inf)  # a clock that went back tells no order
            ready += sorted(some, key=_order)
            if len(ready) >= _AT_ONCE:
                yield ready
                ready = []
        if ready:
            yield ready

    def _take(self, until: float) -> list[Recorded]:
        return list(chain.from_iterable(one.take(until) for one in self._partitions))

    async def _opened(self, number: int, end: int) -> _Partition:
        place = self._begin.get(number)
        if place is None:
            place = Place(await self._log.offset_at(RESOLVED, number, self._since), {})
        return _Partition(number, place.offset, end, dict(place.marks), dict(place.marks))


def _order(one: Recorded) -> tuple[int, Origin]:
    return one.stamp, one.origin
