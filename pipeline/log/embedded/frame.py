"""The bytes of the journal: segment headers and frames. Pure; little-endian.

A frame holds one group of records, those of one partition side by side: a header, a table with one entry per partition, the timestamps,
the ends of keys and values, and then keys and values in one piece. Each frame names its own place and the checksum of
the frame before it, so that bytes left over from a torn write are never taken for a frame.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain, pairwise
from struct import Struct, pack
from typing import Any, Final, NamedTuple

from isal.isal_zlib import crc32

from pipeline.log.contract import Draft, Piece, Record

FORMAT: Final = 1
NEVER: Final = -(1 << 63)  # the high timestamp of a partition without records
POSITION_BITS: Final = 32
POSITION_MASK: Final = (1 << POSITION_BITS) - 1


def place(segment: int, offset: int) -> int:
    """One number for a place in the journal; places compare like the bytes they point at."""
    return segment << POSITION_BITS | offset


def segment_of(at: int) -> int:
    return at >> POSITION_BITS


@dataclass(frozen=True, slots=True)
class Tail:
    """The journal up to one place: what the next frame has to know."""

    at: int  # place of the next frame
    chain: int  # checksum of the frame before it
    written: int  # Unix ms of the last write
    next_offsets: Sequence[int]
    highs: Sequence[int]  # highest timestamp so far, per partition


# ── Segment header ────────────────────────────────────────────────────────────────────────────────────────────────

_SEGMENT: Final = Struct("<8sIIQqQq16s")  # magic crc partitions number created previous_end previous_written salt
_SEGMENT_MAGIC: Final = b"MRLOG\x00\x00" + bytes((FORMAT,))


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The first bytes of a segment: where its partitions begin, and where the segment before it ended."""

    number: int
    created: int  # Unix ms
    previous_end: int
    previous_written: int
    tail: Tail  # before its first frame


def segment_header_size(partitions: int) -> int:
    return _SEGMENT.size + 16 * partitions


def encode_segment_header(number: int, created: int, before: Tail, salt: bytes) -> bytes:
    """`before` is the journal's tail in the segment before (offset 0 of segment 0 for the first)."""
    partitions = len(before.next_offsets)
    numbers = Struct(f"<{partitions}Q{partitions}q").pack(*before.next_offsets, *before.highs)
    end = before.at & POSITION_MASK
    fields = (partitions, number, created, end, before.written, salt)
    crc = crc32(_SEGMENT.pack(_SEGMENT_MAGIC, 0, *fields) + numbers)
    return _SEGMENT.pack(_SEGMENT_MAGIC, crc, *fields) + numbers


def decode_segment_header(raw: bytes, partitions: int) -> SegmentHeader | None:
    """None when these are not the bytes of a whole header."""
    size = segment_header_size(partitions)
    if len(raw) < size:
        return None
    magic, crc, count, number, created, end, written, salt = _SEGMENT.unpack_from(raw)
    if magic != _SEGMENT_MAGIC or count != partitions:
        return None
    numbers = raw[_SEGMENT.size : size]
    if crc32(_SEGMENT.pack(magic, 0, count, number, created, end, written, salt) + numbers) != crc:
        return None
    values = Struct(f"<{2 * partitions}q").unpack(numbers)
    tail = Tail(place(number, size), crc, written, values[:partitions], values[partitions:])
    return SegmentHeader(number, created, end, written, tail)


# ── Frames ────────────────────────────────────────────────────────────────────────────────────────────────────────

_FRAME: Final = Struct("<4sIIIQqII")  # magic crc length previous place written blocks records
_FRAME_MAGIC: Final = b"FRM\x01"
_BLOCK: Final = Struct("<IIQqII")  # partition records base high first -
_UNCHECKED: Final = 8  # magic and crc itself are not under the checksum
FRAME_HEADER_SIZE: Final = _FRAME.size
_PAD: Final = tuple(bytes(n) for n in range(8))


class Frame(NamedTuple):
    """The fixed part of a frame."""

    magic: bytes
    crc: int
    length: int
    previous: int
    at: int
    written: int
    blocks: int
    records: int


class Block(NamedTuple):
    """The records of one partition within a frame. `high` includes everything before this frame."""

    partition: int
    records: int
    base: int
    high: int
    first: int  # how many records of the frame come before this block
    reserved: int


class Packed(NamedTuple):
    """Records as they lie in a frame, wherever in the journal that will be: everything but its header and table. `parts` has partition, number
    of records and highest timestamp of those that have any, in order."""

    parts: Sequence[tuple[int, int, int]]
    records: int
    data: bytes


def packed(groups: Sequence[Sequence[Draft]]) -> Packed:
    """The records of each partition, one at least. To be called where the records were made: there they are at hand, and on
    another core they would all have to be fetched."""
    flat: list[Any] = list(chain.from_iterable(chain.from_iterable(groups)))
    timestamps: list[int] = flat[3::4]
    del flat[3::4]
    pieces: list[Piece] = flat
    ends_of_pieces = list(accumulate(map(len, pieces), initial=0))
    ends = [0] * (2 * len(timestamps) + 1)
    ends[::2] = ends_of_pieces[::3]  # of values
    ends[1::2] = ends_of_pieces[1::3]  # of keys
    parts: list[tuple[int, int, int]] = []
    first = 0
    for partition, group in enumerate(groups):
        if group:
            count = len(group)
            parts.append((partition, count, max(timestamps[first : first + count])))
            first += count
    numbers = pack(f"<{first}q{len(ends)}I", *timestamps, *ends)
    padding = _PAD[-(len(numbers) + ends[-1]) % 8]
    return Packed(parts, first, b"".join((numbers, *pieces, padding)))


def encode_frame(records: Packed, tail: Tail, written: int) -> tuple[Sequence[bytes], Tail]:
    """The buffers of the frame that appends records at `tail`, and the tail after it."""
    next_offsets, highs = list(tail.next_offsets), list(tail.highs)
    table: list[bytes] = []
    first = 0
    for partition, count, highest in records.parts:
        highs[partition] = high = max(highs[partition], highest)
        table.append(_BLOCK.pack(partition, count, next_offsets[partition], high, first, 0))
        next_offsets[partition] += count
        first += count
    length = FRAME_HEADER_SIZE + _BLOCK.size * len(table) + len(records.data)
    fields = (length, tail.chain, tail.at, written, len(table), records.records)
    blocks = b"".join(table)
    crc = crc32(records.data, crc32(_FRAME.pack(_FRAME_MAGIC, 0, *fields)[_UNCHECKED:] + blocks))
    header = _FRAME.pack(_FRAME_MAGIC, crc, *fields) + blocks
    return (header, records.data), Tail(tail.at + length, crc, written, next_offsets, highs)


def frame_at(buffer: bytes, start: int, at: int) -> Frame | None:
    """The frame header at `start` of the buffer; None when it is not a frame written for the place `at`."""
    if len(buffer) - start < FRAME_HEADER_SIZE:
        return None
    frame = Frame._make(_FRAME.unpack_from(buffer, start))
    return frame if frame.magic == _FRAME_MAGIC and frame.at == at and frame.length >= FRAME_HEADER_SIZE else None


def is_intact(frame: Frame, buffer: bytes, start: int) -> bool:
    """Whether the whole frame is in the buffer and its bytes are what was written."""
    end = start + frame.length
    return end <= len(buffer) and crc32(memoryview(buffer)[start + _UNCHECKED : end]) == frame.crc


def table_size(frame: Frame) -> int:
    """Bytes of a frame's header and table."""
    return FRAME_HEADER_SIZE + frame.blocks * _BLOCK.size


def blocks_of(frame: Frame, buffer: bytes, start: int) -> Iterator[Block]:
    """The frame's table."""
    table = memoryview(buffer)[start + FRAME_HEADER_SIZE : start + table_size(frame)]
    return map(Block._make, _BLOCK.iter_unpack(table))


def tail_after(tail: Tail, frame: Frame, blocks: Sequence[Block]) -> Tail:
    next_offsets, highs = list(tail.next_offsets), list(tail.highs)
    for block in blocks:
        next_offsets[block.partition] = block.base + block.records
        highs[block.partition] = block.high
    return Tail(frame.at + frame.length, frame.crc, frame.written, next_offsets, highs)


_record = partial(tuple.__new__, Record)  # a quarter of the cost of calling the class


def records_of(
    frame: Frame, buffer: bytes, start: int, wanted: Mapping[int, int]
) -> Iterator[tuple[int, list[Record]]]:
    """Partitions with their records, of those in `wanted` (partition → first offset that is wanted) that have any."""
    stamps_at = start + table_size(frame)
    ends_at = stamps_at + 8 * frame.records
    data_at = ends_at + 8 * frame.records + 4
    view = memoryview(buffer)
    stamps = view[stamps_at:ends_at].cast("q")
    ends = view[ends_at:data_at].cast("I")
    data = buffer[data_at : data_at + ends[-1]]
    for partition, count, base, _, first, _ in blocks_of(frame, buffer, start):
        skip = wanted.get(partition, base + count) - base
        if skip >= count:
            continue
        begin, end = first + max(0, skip), first + count
        pieces = [data[a:b] for a, b in pairwise(ends[2 * begin : 2 * end + 1].tolist())]
        offsets = range(base + begin - first, base + count)
        yield partition, list(map(_record, zip(pieces[::2], pieces[1::2], stamps[begin:end], offsets, strict=True)))


def timestamps_of(frame: Frame, block: Block, buffer: bytes, start: int) -> Sequence[int]:
    """The timestamps of one block."""
    begin = start + table_size(frame) + 8 * block.first
    return memoryview(buffer)[begin : begin + 8 * block.records].cast("q").tolist()
