"""Erases records from the journal's files: their bytes are overwritten where they stand.

A record keeps its offset, its frame keeps its length and its checksum, so that neither the frames behind it nor what anybody remembers
of places changes. The new bytes are written to a file beside the segments first, since a write can be torn: whoever opens the journal
or finds a frame that is not whole completes what was begun. What the disk keeps below its files is beyond reach.
"""

import os
from array import array
from collections.abc import Callable, Mapping
from itertools import accumulate, chain, pairwise
from pathlib import Path
from struct import Struct
from typing import Final
from zlib import crc32

from pipeline.log.embedded.frame import (
    FRAME_HEADER_SIZE,
    POSITION_MASK,
    Frame,
    frame_at,
    is_intact,
    segment_of,
    table_size,
)

PATCH: Final = 4  # bytes of a frame that are chosen so that its checksum stays
_REDO: Final = "erase.redo"
_HEAD: Final = Struct("<8sIIQ")  # magic, crc of the rest, length, place
_MAGIC: Final = b"MRERASE\x01"
_NOTHING: Final = bytes(_HEAD.size)


def rewritten(frame: Frame, raw: bytes, changes: Mapping[int, tuple[bytes, bytes]]) -> bytes:
    """The frame with other keys and values for some of its records, by their number in the frame. Its length and its checksum stay.
    ValueError when they do not leave PATCH bytes."""
    stamps_at = table_size(frame)
    ends_at = stamps_at + 8 * frame.records
    data_at = ends_at + 8 * frame.records + 4
    ends = memoryview(raw)[ends_at:data_at].cast("I").tolist()
    pieces = [raw[data_at + a : data_at + b] for a, b in pairwise(ends)]
    for number, (key, value) in changes.items():
        pieces[2 * number : 2 * number + 2] = [key, value]
    lengths = array("I", accumulate(map(len, pieces), initial=0))
    made = b"".join(chain((raw[:ends_at], lengths.tobytes()), pieces))
    spare = frame.length - len(made)
    if spare < PATCH:
        raise ValueError(f"{-spare} bytes too many for the frame at {frame.at}")
    made += bytes(spare - PATCH)
    return made + patch(crc32(memoryview(made)[8:]), frame.crc)


def patch(before: int, wanted: int) -> bytes:
    """The four bytes after which a CRC-32 that stands at `before` stands at `wanted`."""
    register = wanted ^ 0xFFFFFFFF
    for _ in range(4):
        entry = _BY_TOP[register >> 24]
        register = ((register ^ _TABLE[entry]) << 8 | entry) & 0xFFFFFFFF
    return (register ^ before ^ 0xFFFFFFFF).to_bytes(4, "little")


def _entry(number: int) -> int:
    for _ in range(8):
        number = number >> 1 ^ (0xEDB88320 if number & 1 else 0)
    return number


_TABLE: Final = tuple(map(_entry, range(256)))
_BY_TOP: Final = {entry >> 24: number for number, entry in enumerate(_TABLE)}


# ── Files ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def overwrite(folder: Path, path: Path, frame: Frame, made: bytes) -> None:
    """Puts `made` in the place of a frame, durably and whole, whatever happens meanwhile. Called with the topic's lock held."""
    redo = _opened(folder)
    try:
        body = _HEAD.pack(_MAGIC, crc32(made, frame.at & 0xFFFFFFFF), len(made), frame.at) + made
        _write(redo, body, 0)
        os.fdatasync(redo)
        _put(path, frame.at, made)
        _write(redo, _NOTHING, 0)
        os.ftruncate(redo, _HEAD.size)
        os.fdatasync(redo)
    finally:
        os.close(redo)


def complete(folder: Path, path_of: Callable[[int], Path]) -> bool:
    """Puts down what somebody who died had begun to; whether there was anything. Called with the topic's lock held."""
    path = folder / _REDO
    if not path.exists():
        return False
    raw = path.read_bytes()
    if len(raw) < _HEAD.size or raw[: _HEAD.size] == _NOTHING:
        return False
    magic, crc, length, at = _HEAD.unpack_from(raw)
    made = raw[_HEAD.size : _HEAD.size + length]
    whole: bool = magic == _MAGIC and len(made) == length and crc32(made, at & 0xFFFFFFFF) == crc
    if whole and path_of(segment_of(at)).exists():  # retention may have removed it since
        _put(path_of(segment_of(at)), at, made)
    descriptor = _opened(folder)
    try:
        _write(descriptor, _NOTHING, 0)
        os.ftruncate(descriptor, _HEAD.size)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
    return whole


def read_frame(path: Path, at: int) -> tuple[Frame, bytes] | None:
    """A frame as it stands on disk now; None when it is not whole."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        head = frame_at(os.pread(descriptor, FRAME_HEADER_SIZE, at & POSITION_MASK), 0, at)
        if head is None:
            return None
        raw = os.pread(descriptor, head.length, at & POSITION_MASK)
    finally:
        os.close(descriptor)
    return (head, raw) if is_intact(head, raw, 0) else None


def _opened(folder: Path) -> int:
    path = folder / _REDO
    fresh = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    if fresh:
        parent = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
    return descriptor


def _put(path: Path, at: int, made: bytes) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        _write(descriptor, made, at & POSITION_MASK)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def _write(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
