"""Reading the journal: whole frames one after the other, and where an offset or a time is.

Nothing beyond the durable end is ever looked at. A sparse index of each segment is kept in memory, made while walking, so that
finding an offset costs a walk of a fraction of a segment.
"""

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Final, NamedTuple, TypeVar

from pipeline.log.contract import Record, Scrubbed
from pipeline.log.embedded.frame import (
    POSITION_MASK,
    Block,
    Frame,
    Tail,
    blocks_of,
    frame_at,
    is_intact,
    place,
    records_of,
    segment_of,
    table_size,
    tail_after,
    timestamps_of,
)
from pipeline.log.embedded.journal import Gone, Journal, damaged

CHUNK: Final = 512 << 10
"""Read at once: inline in the event loop, some 100 µs from the page cache."""
INDEX_EVERY: Final = 256 << 10
INDEXED_SEGMENTS: Final = 32

T = TypeVar("T")
Judge = Callable[[Sequence[tuple[int, Record]]], Mapping[int, tuple[bytes, bytes]]]


def retried(find: Callable[[], T]) -> T:
    """Once more when retention removed a segment in between: the earliest is another one then."""
    while True:
        try:
            return find()
        except Gone:
            continue


class Found(NamedTuple):
    """A frame in a buffer."""

    frame: Frame
    buffer: bytes
    start: int

    def blocks(self) -> Iterator[Block]:
        return blocks_of(*self)

    def records(self, wanted: Mapping[int, int]) -> Iterator[tuple[int, list[Record]]]:
        return records_of(*self, wanted)


class Cursor:
    """Walks the journal's frames in order up to the durable end. Not for two threads at once."""

    def __init__(self, journal: Journal, at: int, *, chunk: int = CHUNK) -> None:
        self._journal = journal
        self._chunk = chunk
        self._descriptor = -1
        self._limit = 0
        self.seek(at)

    @property
    def at(self) -> int:
        """The place of the next frame."""
        return self._at

    def seek(self, at: int) -> None:
        self.close()
        self._at = at
        self._buffer = b""
        self._buffer_at = 0  # of its first byte, from the beginning of the segment

    def next(self) -> Found | None:
        """The next frame, its bytes checked; None at the durable end. Gone when retention has removed the place."""
        found = self.peek()
        if found is None:
            return None
        if not is_intact(found.frame, found.buffer, found.start):
            found = self._refill(found.frame.length)
            if found is not None and not is_intact(found.frame, found.buffer, found.start):
                self._journal.settled()  # somebody may be erasing from it
                found = self._refill(found.frame.length)
            if found is None or not is_intact(found.frame, found.buffer, found.start):
                raise damaged(self._journal.path(segment_of(self._at)), self._at & POSITION_MASK)
        self.skip(found.frame)
        return found

    def peek(self) -> Found | None:
        """The next frame's header and table; its records may be missing and are not checked."""
        offset = self._at & POSITION_MASK
        if self._descriptor < 0:
            self._descriptor = self._journal.open_segment(segment_of(self._at))
        if offset >= self._limit:
            self._limit = self._journal.limit(segment_of(self._at))
            if offset >= self._limit:
                return self._next_segment()
        start = offset - self._buffer_at
        frame = frame_at(self._buffer, start, self._at)
        if frame is None or start + table_size(frame) > len(self._buffer):
            return self._refill(self._chunk)
        return Found(frame, self._buffer, start)

    def skip(self, frame: Frame) -> None:
        """Moves on behind the frame that `peek` has shown."""
        self._at = frame.at + frame.length

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._limit = 0

    def _next_segment(self) -> Found | None:
        number = segment_of(self._at)
        if number == segment_of(self._journal.end):
            return None
        if self._at & POSITION_MASK < self._journal.limit(number):  # rolled since the limit was read
            return self.peek()
        self.seek(place(number + 1, self._journal.header_size))
        return self.peek()

    def _refill(self, size: int) -> Found | None:
        offset = self._at & POSITION_MASK
        size = max(size, self._chunk)
        self._buffer = os.pread(self._descriptor, min(size, self._limit - offset), offset)
        self._buffer_at = offset
        frame = frame_at(self._buffer, 0, self._at)
        if frame is None:
            raise damaged(self._journal.path(segment_of(self._at)), offset)
        if table_size(frame) > len(self._buffer):
            return self._refill(table_size(frame))
        return Found(frame, self._buffer, 0)


@dataclass(slots=True)
class _Index:
    """Tails at some places of one segment, in order."""

    tails: list[Tail] = field(default_factory=list)

    def add(self, tail: Tail) -> None:
        if tail.at >= self.tails[-1].at + INDEX_EVERY:
            self.tails.append(tail)

    def last(self, key: Callable[[Tail], int], bound: int) -> Tail:
        """The last one whose key is at most `bound`, else the first."""
        return self.tails[max(0, bisect_right(self.tails, bound, key=key) - 1)]


class Finder:
    """Finds offsets and times. Blocks for a walk of a part of a segment; may be called from any thread."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._indexes: OrderedDict[int, _Index] = OrderedDict()
        self._lock = Lock()

    def place_of(self, partition: int, offset: int) -> int:
        """The place of the frame that holds an offset; of the earliest frame when retention has removed it, the
        durable end when it is not there yet."""
        return self._retried(lambda: self._place_of(partition, offset))

    def first_since(self, partition: int, timestamp: int) -> int:
        """The first offset kept whose record is stamped `timestamp` or later, else the next offset."""
        return self._retried(lambda: self._first_since(partition, timestamp))

    def _place_of(self, partition: int, offset: int) -> int:
        end = self._journal.tail()
        if offset >= end.next_offsets[partition]:
            return end.at

        def next_offset(tail: Tail) -> int:
            return tail.next_offsets[partition]

        for tail, found, _ in self._walk(next_offset, offset):
            if any(block.partition == partition and block.base + block.records > offset for block in found.blocks()):
                return tail.at
        return end.at

    def _first_since(self, partition: int, timestamp: int) -> int:
        end = self._journal.tail()
        if end.highs[partition] < timestamp:
            return end.next_offsets[partition]

        def high(tail: Tail) -> int:
            return tail.highs[partition]

        for _, found, cursor in self._walk(high, timestamp - 1):
            for block in found.blocks():
                if block.partition == partition and block.high >= timestamp:
                    whole = cursor.next()
                    assert whole is not None
                    stamps = timestamps_of(whole.frame, block, whole.buffer, whole.start)
                    first = next((i for i, stamp in enumerate(stamps) if stamp >= timestamp), None)
                    if first is not None:
                        return block.base + first
        return end.next_offsets[partition]

    def _walk(self, key: Callable[[Tail], int], bound: int) -> Iterator[tuple[Tail, Found, Cursor]]:
        """Every frame with the tail before it, from a place where the key is at most `bound` (or the earliest) on."""
        tail = self._start(key, bound)
        cursor = Cursor(self._journal, tail.at, chunk=64 << 10)
        try:
            while (found := cursor.peek()) is not None:
                if segment_of(found.frame.at) != segment_of(tail.at):
                    tail = self._journal.header(segment_of(found.frame.at)).tail
                yield tail, found, cursor
                cursor.skip(found.frame)
                tail = tail_after(tail, found.frame, list(found.blocks()))
                self._index(segment_of(tail.at)).add(tail)
        finally:
            cursor.close()

    def _start(self, key: Callable[[Tail], int], bound: int) -> Tail:
        segments = self._journal.segments()
        behind = bisect_right(segments, bound, key=lambda number: key(self._journal.header(number).tail))
        return self._index(segments[max(0, behind - 1)]).last(key, bound)

    def _index(self, number: int) -> _Index:
        index = self._indexes.get(number)
        if index is None:
            index = self._indexes[number] = _Index([self._journal.header(number).tail])
            if len(self._indexes) > INDEXED_SEGMENTS:
                self._indexes.popitem(last=False)
        else:
            self._indexes.move_to_end(number)
        return index

    def _retried(self, find: Callable[[], int]) -> int:
        with self._lock:
            return retried(find)


def scrub_forward(journal: Journal, at: int, judge: Judge, most: int) -> Scrubbed:
    """See `Erasable.scrub`."""
    seen = erased = walked = 0
    kept = journal.segments()
    if segment_of(at) < kept[0]:
        at = place(kept[0], journal.header_size)
    every = dict.fromkeys(range(journal.partitions), 0)
    cursor = Cursor(journal, at)
    try:
        while walked < most:
            found = cursor.next()
            if found is None:
                return Scrubbed(cursor.at, seen, erased, True)
            records = [(partition, one) for partition, some in found.records(every) for one in some]
            seen += len(records)
            walked += found.frame.length
            changes = judge(records)
            if changes:
                journal.overwrite(found.frame.at, changes)
                erased += len(changes)
        return Scrubbed(cursor.at, seen, erased, False)
    finally:
        cursor.close()


def read_forward(
    journal: Journal, partition: int, offset: int, at: int, max_records: int, max_bytes: int
) -> list[Record]:
    """The records of one partition from `offset` on, `at` being a place not behind it. Stops after `max_records`, or
    once it has walked `max_bytes` and has something."""
    records: list[Record] = []
    walked = 0
    cursor = Cursor(journal, at)
    try:
        while len(records) < max_records and (walked < max_bytes or not records):
            found = cursor.next()
            if found is None:
                break
            walked += found.frame.length
            for _, news in found.records({partition: offset}):
                records += news
    finally:
        cursor.close()
    return records[:max_records]
