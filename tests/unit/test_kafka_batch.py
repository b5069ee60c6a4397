"""Batches as we write them, read by the client library's own reader; a real broker takes them in the contract suite."""

import os

import pytest
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from pipeline.log.contract import Draft
from pipeline.log.kafka.batch import SMALLEST, RecordBatch, compressor
from schemas.events import SIZES

PLAIN, ZSTD = 0, 4  # what the client library is asked for to write in the same codec


def read(batch: bytes) -> list[tuple[bytes, bytes, int, int]]:
    """Key, value, timestamp and offset of each record of a single batch whose checksum is right."""
    records = MemoryRecords(batch)
    only = records.next_batch()
    assert only is not None
    assert only.validate_crc()
    assert records.next_batch() is None
    return [(bytes(one.key), bytes(one.value), one.timestamp, one.offset) for one in only]


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([(b"k", b"head ", b"body", 1_767_225_600_000)], id="one"),
        pytest.param([(b"", b"", b"", 0)], id="nothing in it"),
        pytest.param([(b"k", b"a", memoryview(b"a body")[2:], 7), (b"l", b"whole", b"", 7)], id="in pieces"),
        pytest.param([(b"k", b"", b"b", stamp) for stamp in (50, 51, 51, 20, 10**12)], id="times up and down"),
        pytest.param([(b"k" * 70, b"h" * 9_000, b"b" * 40_000, 1), (b"k", b"", bytes(900_000), 1)], id="long ones"),
        pytest.param([(b"k%d" % n, b"", b"b", 1) for n in range(40_000)], id="many"),
        pytest.param(
            [(bytes(n), b"", bytes(n), 1) for near in (64, 8_192, len(SIZES)) for n in range(near - 9, near + 2)],
            id="around the lengths that take a byte more",
        ),
    ],
)
def test_a_batch_is_read_as_the_records_it_was_made_of(rows: list[Draft]) -> None:
    batch = RecordBatch(rows, compressor())
    expected = [(key, head + bytes(body), stamp, n) for n, (key, head, body, stamp) in enumerate(rows)]
    assert read(batch._build()) == expected
    assert (batch.record_count(), batch.size()) == (len(rows), len(batch._build()))


def test_a_batch_is_byte_for_byte_what_the_client_library_writes() -> None:
    rows: list[Draft] = [(b"key", b"head", b"body" * n, 1_000 + n % 3) for n in range(20)]
    builder = BatchBuilder(1 << 20, PLAIN)
    for key, head, body, stamp in rows:
        builder.append(timestamp=stamp, key=key, value=head + bytes(body))
    ours = RecordBatch(rows, compressor())
    for one in (builder, ours):
        one._set_producer_state(producer_id=7, producer_epoch=2, base_sequence=300)
    assert ours._build() == bytes(builder._build())


def test_a_batch_sent_once_more_has_the_same_bytes() -> None:
    batch = RecordBatch([(b"k", b"head", b"body", 1)], compressor())
    batch._set_producer_state(7, 0, 0)
    assert batch._build() is batch._build()


@pytest.mark.parametrize(
    ("body", "codec"),
    [(bytes(SMALLEST), ZSTD), (b"b" * (SMALLEST // 2), PLAIN), (os.urandom(2 * SMALLEST), PLAIN)],
    ids=["it saves something", "it is small", "it saves nothing"],
)
def test_records_are_compressed_where_that_saves_something(body: bytes, codec: int) -> None:
    batch = RecordBatch([(b"k", b"", body, 1)], compressor())._build()
    assert int.from_bytes(batch[21:23], "big") == codec  # the attributes, says the protocol
    assert read(batch) == [(b"k", body, 1, 0)]
