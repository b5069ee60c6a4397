"""One topic's journal: segments of frames, the commit that makes a group durable, repair, retention.

Everything here blocks; what writes takes the topic's lock. A frame becomes part of the log when it is published, after
fdatasync; bytes beyond the published end are overwritten by the next commit. What the system gave up writing after a
failed fdatasync cannot be known, so the segment is sealed then and the next commit goes to a new one.
"""

import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import orjson
import structlog

from pipeline.log.contract import Retention
from pipeline.log.embedded import scrub
from pipeline.log.embedded.frame import (
    NEVER,
    POSITION_MASK,
    Packed,
    SegmentHeader,
    Tail,
    blocks_of,
    decode_segment_header,
    encode_frame,
    encode_segment_header,
    frame_at,
    is_intact,
    segment_header_size,
    segment_of,
    tail_after,
)
from pipeline.log.embedded.state import Published, SharedState
from schemas.errors import ConfigError, Unavailable

log = structlog.get_logger()

FOLDER_FORMAT: Final = 1
MAX_SEGMENT_BYTES: Final = 64 << 20
MIN_SEGMENT_BYTES: Final = 64 << 10
SEGMENTS_PER_RETENTION: Final = 8  # how finely retention cuts, in size and in age
ZERO_AHEAD: Final = 1 << 20
"""Bytes written before the frames get there: a commit that does not grow the file has no metadata to sync, which saves a
third of its CPU in groups of 100 events. `fallocate` does not: the first write to an extent is metadata too. The commit that writes them
waits for them: four times as many tripled the 99th percentile and saved no CPU."""
PIECE: Final = 128 << 10
"""Bytes of new file written at once: larger ones make the page cache take large blocks of memory, at twice the CPU; smaller ones cost no
less, and between two of them the writer has to wait for the interpreter."""
_ZEROS: Final = bytes(PIECE)
SIZEABLE: Final = 256 << 10
"""A frame that grows the file by more than these bytes does so by itself: writing them twice costs more than the metadata."""
_NO_SPACE: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


class Gone(Exception):
    """Retention has removed the segment."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When a segment is full or too old to grow, in bytes and seconds."""

    segment_bytes: int
    segment_seconds: float


def limits_for(retention: Retention) -> Limits:
    size = min(MAX_SEGMENT_BYTES, max(MIN_SEGMENT_BYTES, retention.bytes // SEGMENTS_PER_RETENTION))
    return Limits(size, retention.seconds / SEGMENTS_PER_RETENTION)


class Journal:
    """A topic's files, open. Methods may be called from any thread."""

    def __init__(self, folder: Path, *, partitions: int, retention: Retention) -> None:
        self.folder = folder
        self._retention = retention
        self._limits = limits_for(retention)
        self._known = Published(0, False, Tail(0, 0, 0, (), ()))
        self._segment = -1  # descriptor of the segment written last, and how far it is zeroed
        self._zeroed = 0
        self.header = lru_cache(256)(self._header)
        folder.mkdir(parents=True, exist_ok=True)
        self._mutex = threading.Lock()
        self._closed = False
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            with self._locked():
                self.partitions = _partitions(folder, partitions)
                self.header_size = segment_header_size(self.partitions)
                scrub.complete(folder, self.path)
                self._state = self._open_state()
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def end(self) -> int:
        """The durable end."""
        return self._state.end

    def tail(self) -> Tail:
        """The durable end with its offsets."""
        for _ in range(1_000):
            if (published := self._state.load()) is not None:
                return published.tail
            time.sleep(0)  # writers of other processes are between two stores
        raise Unavailable(f"{self.folder / 'state'}: no whole slot; stop all processes and remove this file")

    def close(self) -> None:
        """Waits for a look for expired segments that a cancelled task has left running."""
        with self._mutex:
            self._closed = True
            self._forget_segment()
            self._state.close()
            os.close(self._lock)

    # ── Writing ───────────────────────────────────────────────────────────────────────────────────────────────────

    def commit(self, frames: Sequence[Packed]) -> None:
        """Appends frames, and returns when they are durable and published.

        Raises Unavailable; then a first part of the frames may be durable."""
        with self._writing():
            tail = self._known.tail
            for records in frames:
                tail = self._write(records, tail)
            self._sync_and_publish(tail)

    def expire(self, now: float | None = None) -> int:
        """Removes the segments that retention no longer keeps; returns how many. `now` is Unix time in seconds."""
        now = time.time() if now is None else now
        with self._writing():
            if self._is_stale(self._known.tail, now):
                self._roll(self._known.tail)
            return self._remove_expired(now)

    def overwrite(self, at: int, changes: Mapping[int, tuple[bytes, bytes]]) -> None:
        """Replaces records of the frame at a place, by their number in it. Gone when retention has removed it."""
        with self._locked():
            try:
                scrub.complete(self.folder, self.path)
                path = self.path(segment_of(at))
                if not path.exists():
                    raise Gone
                found = scrub.read_frame(path, at)
                if found is None:
                    raise damaged(path, at & POSITION_MASK)
                frame, raw = found
                scrub.overwrite(self.folder, path, frame, scrub.rewritten(frame, raw, changes))
            except OSError as error:
                raise self._unavailable(error) from error

    def settled(self) -> None:
        """Returns once nobody is overwriting a frame, with what somebody who died had begun completed."""
        with self._locked():
            try:
                scrub.complete(self.folder, self.path)
            except OSError as error:
                raise self._unavailable(error) from error

    def _write(self, records: Packed, tail: Tail) -> Tail:
        now = int(time.time() * 1000)
        buffers, after = encode_frame(records, tail, now)
        if self._must_roll(tail, after.at - tail.at, now):
            if tail.at != self._known.tail.at:
                self._sync_and_publish(tail)
            tail = self._roll(tail)
            self._remove_expired(now / 1000)
            buffers, after = encode_frame(records, tail, now)
        at, end = tail.at & POSITION_MASK, after.at & POSITION_MASK
        if end - self._zeroed > SIZEABLE:
            self._grow(buffers, at, end)
        else:
            self._make_room(end)
            _write_all(self._segment, buffers, at)
        return after

    def _must_roll(self, tail: Tail, length: int, now: int) -> bool:
        offset = tail.at & POSITION_MASK
        if self._known.sealed:
            return True
        if offset == self.header_size:
            return False
        if offset + length > self._limits.segment_bytes:
            return True
        return now - self.header(segment_of(tail.at)).created > self._limits.segment_seconds * 1000

    def _is_stale(self, tail: Tail, now: float) -> bool:
        """Whether the segment being written holds records, all of them past their age."""
        empty = tail.at & POSITION_MASK == self.header_size
        return not empty and now - tail.written / 1000 > self._retention.seconds

    def _grow(self, buffers: Sequence[bytes], at: int, end: int) -> None:
        for buffer in buffers:
            view = memoryview(buffer)
            for begin in range(0, len(view), PIECE):
                _write_all(self._segment, (view[begin : begin + PIECE],), at + begin)
            at += len(view)
        self._zeroed = end

    def _make_room(self, needed: int) -> None:
        if needed <= self._zeroed:
            return
        end = max(needed, min(self._zeroed + ZERO_AHEAD, self._limits.segment_bytes))
        while self._zeroed < end:
            piece = memoryview(_ZEROS)[: end - self._zeroed]
            _write_all(self._segment, (piece,), self._zeroed)
            self._zeroed += len(piece)

    def _sync_and_publish(self, tail: Tail) -> None:
        try:
            os.fdatasync(self._segment)
        except OSError:
            self._publish(self._known.tail, sealed=True)
            raise
        self._publish(tail)

    def _publish(self, tail: Tail, *, sealed: bool = False) -> None:
        published = Published(self._known.sequence + 1, sealed, tail)
        self._state.publish(published)
        self._known = published

    def _catch_up(self) -> None:
        """Learns what other writers did since the last commit of this one."""
        if self._state.sequence == self._known.sequence and self._segment >= 0:
            return
        published = self._state.load()
        if published is None:
            raise OSError(errno.EIO, "the shared state has no whole slot")
        if published.tail.at != self._state.end:  # its writer was killed before the last store
            published = Published(published.sequence + 1, published.sealed, published.tail)
            self._state.publish(published)
        if segment_of(published.tail.at) != segment_of(self._known.tail.at):
            self._forget_segment()
        if self._segment < 0:
            self._segment = os.open(self.path(segment_of(published.tail.at)), os.O_RDWR | os.O_CLOEXEC)
        self._zeroed = os.fstat(self._segment).st_size
        self._known = published

    def _roll(self, tail: Tail) -> Tail:
        """Begins the next segment. Sealing first keeps every writer from adding to the old one after the new one's
        header may be on disk, which is what a restart goes by."""
        self._publish(tail, sealed=True)
        number = segment_of(tail.at) + 1
        created = self._create(number, tail)
        self._forget_segment()
        self._segment = os.open(self.path(number), os.O_RDWR | os.O_CLOEXEC)
        self._zeroed = self.header_size
        self._publish(created)
        return created

    def _create(self, number: int, before: Tail) -> Tail:
        path = self.path(number)
        header = encode_segment_header(number, int(time.time() * 1000), before, os.urandom(16))
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            _write_all(descriptor, (header,), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _sync_folder(self.folder)
        decoded = decode_segment_header(header, self.partitions)
        assert decoded is not None
        return decoded.tail

    def _forget_segment(self) -> None:
        if self._segment >= 0:
            os.close(self._segment)
            self._segment = -1

    def _open_state(self) -> SharedState:
        state = SharedState(self.folder / "state", self.partitions)
        try:
            if not state.trusted() or not self.path(segment_of(state.end)).exists():
                state.claim(self._recover())
        except BaseException:
            state.close()
            raise
        return state

    # ── Repair ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _recover(self) -> Tail:
        """The end of the journal from its files alone: the last segment whose header is whole was made when all before it was durable."""
        for number in sorted(self._numbers(), reverse=True):
            header = self._read_header(number)
            if header is not None:
                return self._repair(header)
            if number > 1:
                self.path(number).unlink()  # its writer died before the header was down: nothing was in it
        partitions = self.partitions
        return self._create(1, Tail(0, 0, 0, (0,) * partitions, (NEVER,) * partitions))

    def _repair(self, header: SegmentHeader) -> Tail:
        """Takes the whole frames of the last segment; makes sure that they are durable before anyone reads them.

        What follows them is left as it is, in case the disk lost something from the middle; a new segment is begun."""
        tail = header.tail
        path = self.path(header.number)
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            while (after := _next_tail(descriptor, tail, size)) is not None:
                tail = after
            left = _bytes_left(descriptor, tail.at & POSITION_MASK, size)
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        if not left:
            return tail
        log.warning("torn end of log left out", segment=str(path), at=tail.at & POSITION_MASK, bytes=left)
        return self._create(header.number + 1, tail)

    # ── Segments ──────────────────────────────────────────────────────────────────────────────────────────────────

    def segments(self) -> Sequence[int]:
        """Numbers of the segments kept, without a gap, the one being written last."""
        last = segment_of(self._state.end)
        numbers = set(self._numbers())
        first = last
        while first - 1 in numbers:
            first -= 1
        return range(first, last + 1)

    def first(self) -> SegmentHeader:
        """The header of the first segment kept."""
        while True:
            with suppress(Gone):
                return self.header(self.segments()[0])

    def open_segment(self, number: int) -> int:
        """A descriptor for reading. Gone when retention has removed the segment."""
        try:
            return os.open(self.path(number), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise Gone from error

    def limit(self, number: int) -> int:
        """Where the frames of a segment end, as far as they are durable now: bytes from its beginning."""
        end = self._state.end
        if number == segment_of(end):
            return end & POSITION_MASK
        return self.header(number + 1).previous_end

    def _remove_expired(self, now: float) -> int:
        """Whole segments, the oldest first, never the one being written. Called with the lock held."""
        kept = list(self.segments())
        sizes = {number: self.path(number).stat().st_size for number in kept}
        total = sum(sizes.values())
        removed = 0
        for number in kept[:-1]:
            age = now - self.header(number + 1).previous_written / 1000
            if total <= self._retention.bytes and age <= self._retention.seconds:
                break
            self.path(number).unlink()
            total -= sizes[number]
            removed += 1
        if removed:
            log.info("log segments expired", topic=self.folder.name, count=removed, earliest=kept[removed])
        return removed

    def _header(self, number: int) -> SegmentHeader:
        try:
            header = self._read_header(number)
        except FileNotFoundError as error:
            raise Gone from error
        if header is None:
            raise damaged(self.path(number), 0)
        return header

    def _read_header(self, number: int) -> SegmentHeader | None:
        with self.path(number).open("rb") as file:
            return decode_segment_header(file.read(self.header_size), self.partitions)

    def _numbers(self) -> Iterator[int]:
        with os.scandir(self.folder) as entries:
            for entry in entries:
                stem, _, suffix = entry.name.partition(".")
                if suffix == "segment" and stem.isdecimal():
                    yield int(stem)

    def path(self, number: int) -> Path:
        return self.folder / f"{number:010}.segment"

    # ── Lock and errors ───────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps other writers of the topic out, of this process and of others. The system frees it when one is killed."""
        with self._mutex:
            if self._closed:
                raise Unavailable("the log is closed")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """The lock, and what the others wrote; after an error nothing that this process remembers is relied upon."""
        with self._locked():
            try:
                self._catch_up()
                yield
            except OSError as error:
                self._forget_segment()
                raise self._unavailable(error) from error
            except BaseException:
                self._forget_segment()
                raise

    def _unavailable(self, error: OSError) -> Unavailable:
        if error.errno in _NO_SPACE:
            free = "make room or lower the log's retention; appends go on by themselves once there is space"
            return Unavailable(f"{self.folder}: no space left for the log ({error.strerror}): {free}", after=5.0)
        remedy = "check the disk; the log stays consistent and tries a new segment with the next append"
        return Unavailable(f"{self.folder}: the log cannot be written ({error.strerror}): {remedy}", after=5.0)


def damaged(path: Path, at: int) -> Unavailable:
    """A published frame that is not what was written."""
    return Unavailable(
        f"{path}: damaged at byte {at}: the disk did not keep what it had acknowledged; restore this file from a backup,"
        " or stop all processes and remove it together with every older segment to go on without them",
        after=60.0,
    )


def _partitions(folder: Path, wanted: int) -> int:
    """The topic's number of partitions, which its first opener decides. Called with the lock held."""
    path = folder / "meta.json"
    if not path.exists():
        fresh = folder / "meta.json.new"
        with fresh.open("wb") as file:
            file.write(orjson.dumps({"format": FOLDER_FORMAT, "partitions": wanted}))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        for changed in (folder, folder.parent):
            _sync_folder(changed)
        return wanted
    try:
        meta = orjson.loads(path.read_bytes())
        found, partitions = int(meta["format"]), int(meta["partitions"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not the description of a log topic ({error}); restore it from a backup") from error
    if found > FOLDER_FORMAT:
        raise ConfigError(
            f"{path}: the log has format {found}, this version of Millrace reads up to {FOLDER_FORMAT};"
            " start the newer version that wrote it, or choose another data folder"
        )
    return partitions


def _next_tail(descriptor: int, tail: Tail, size: int) -> Tail | None:
    """The tail after the frame at `tail`; None when there is no whole frame that continues the chain."""
    offset = tail.at & POSITION_MASK
    frame = frame_at(os.pread(descriptor, 64, offset), 0, tail.at)
    if frame is None or frame.previous != tail.chain or offset + frame.length > size:
        return None
    raw = os.pread(descriptor, frame.length, offset)
    return tail_after(tail, frame, list(blocks_of(frame, raw, 0))) if is_intact(frame, raw, 0) else None


def _bytes_left(descriptor: int, start: int, size: int) -> int:
    """How many bytes from `start` on hold something else than zeros: what a torn write has left."""
    left = 0
    for at in range(start, size, 1 << 20):
        chunk = os.pread(descriptor, 1 << 20, at).rstrip(b"\0")
        if chunk:
            left = at - start + len(chunk)
    return left


def _write_all(descriptor: int, buffers: Sequence[bytes | memoryview], offset: int) -> None:
    """pwritev until everything is written: a nearly full disk takes a part and says so only the next time."""
    pending = [memoryview(buffer) for buffer in buffers]
    while pending:
        written = os.pwritev(descriptor, pending, offset)
        offset += written
        while pending and written >= len(pending[0]):
            written -= len(pending.pop(0))
        if pending and written:
            pending[0] = pending[0][written:]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(NotImplementedError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
