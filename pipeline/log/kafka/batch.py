"""Record batches as Kafka stores them (version 2 of https://kafka.apache.org/documentation/#recordbatch), written in one pass.

The client library's own builder takes a call for each record and compresses harder than is worth its time: together three times the CPU.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain, count
from struct import Struct
from typing import Final

from aiokafka.record.util import calc_crc32c
from zstandard import ZstdCompressor

from pipeline.log.contract import Draft, Piece
from schemas.events import SIZES, avro_long

COMPRESSION_LEVEL: Final = 1
SMALLEST: Final = 4096  # bytes of records: of fewer, a quarter is saved for as much CPU as all else that they cost

_LEAD: Final = Struct(">qiibI")  # base offset (the broker's), length from here, leader's epoch, version, checksum
_REST: Final = Struct(">hiqqqhii")  # codec, last offset, first and highest time, producer: id, epoch, sequence; records
_VERSION: Final = 2
_NO_EPOCH: Final = -1
_PLAIN, _ZSTD = 0, 4  # Kafka's numbers of codecs

Compress = Callable[[bytes], bytes]


def compressor() -> Compress:
    """Costs more than a batch, so whoever makes batches keeps one; threads must not share it."""
    return ZstdCompressor(level=COMPRESSION_LEVEL).compress


class RecordBatch:
    """A batch that nothing is added to any more: what `AIOKafkaProducer.send_batch` asks of a builder.

    An idempotent producer numbers it before it first asks for the bytes, which then stay the same however often they are sent."""

    __slots__ = ("_bytes", "_codec", "_count", "_first", "_highest", "_records", "_sequence")

    def __init__(self, rows: Sequence[Draft], compress: Compress) -> None:
        """At least one record; their offsets follow each other, and their times are what the records say."""
        self._codec = _PLAIN
        self._count = len(rows)
        self._records, self._first, self._highest = encode_records(rows)
        if len(self._records) >= SMALLEST:
            compressed = compress(self._records)
            if len(compressed) < len(self._records):
                self._codec, self._records = _ZSTD, compressed
        self._sequence = (-1, -1, -1)  # of no producer
        self._bytes = b""

    def record_count(self) -> int:
        return self._count

    def size(self) -> int:
        return _LEAD.size + _REST.size + len(self._records)

    def closed(self) -> bool:
        return True

    def close(self) -> None:
        """It is."""

    def _set_producer_state(self, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
        self._sequence = (producer_id, producer_epoch, base_sequence)

    def _build(self) -> bytes:
        if not self._bytes:
            rest = _REST.pack(self._codec, self._count - 1, self._first, self._highest, *self._sequence, self._count)
            checked = rest + self._records
            length = _LEAD.size - _LENGTH_END + len(checked)
            self._bytes = _LEAD.pack(0, length, _NO_EPOCH, _VERSION, calc_crc32c(checked)) + checked
        return self._bytes


_LENGTH_END: Final = 12  # the length counts what is behind it


def encode_records(rows: Sequence[Draft]) -> tuple[bytes, int, int]:
    """The records of a batch, the time of the first and the highest.

    Kafka's varints are Avro's. A record is: its length, attributes (none), time and offset since the first one's, key and value after
    their lengths, the number of headers (none)."""
    pieces: list[Piece] = []
    join = b"".join
    first = highest = before = rows[0][3]
    since = _NONE + avro_long(0)
    for (key, head, body, timestamp), offset in zip(rows, _offsets(), strict=False):
        if timestamp != before:
            before, since = timestamp, _NONE + avro_long(timestamp - first)
            highest = max(highest, timestamp)
        key_size, body_size = len(key), len(body)
        size = len(head) + body_size
        start = join(
            (
                since,
                offset,
                SIZES[key_size] if key_size < _SIZES else avro_long(key_size),
                key,
                SIZES[size] if size < _SIZES else avro_long(size),
                head,
            )
        )
        size = len(start) + body_size + 1
        pieces += (SIZES[size] if size < _SIZES else avro_long(size), start, body, _NONE)
    return join(pieces), first, highest


_SIZES: Final = len(SIZES)
_NONE: Final = b"\x00"  # no attributes, no headers


def _offsets() -> Iterable[bytes]:
    return chain(SIZES, map(avro_long, count(_SIZES)))
