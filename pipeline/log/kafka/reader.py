"""Reads outside consumer groups: records at an offset, bounds, offsets by time, and what groups have committed.

One client serves all callers, one at a time. It is made at the first use and made anew after an error."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    KafkaError,
    NotCoordinatorError,
    for_code,
)
from aiokafka.protocol.commit import OffsetFetchRequest

from pipeline.log.contract import Record
from pipeline.log.kafka.connection import PATIENCE, Connection
from schemas.errors import Unavailable

FETCH_BYTES: Final = 4 << 20  # held at most between two reads
# Having read, the client asks for what follows, and the broker holds that request for as long as there is nothing (half a
# second by default); whoever reads elsewhere next waits for its end.
LINGER: Final = 0.02  # seconds
_TRANSIENT: Final = (CoordinatorLoadInProgressError, CoordinatorNotAvailableError, NotCoordinatorError)


class Reader:
    """See the module. Every method raises Unavailable when the cluster does not answer within `PATIENCE`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = asyncio.Lock()
        self._consumer: AIOKafkaConsumer | None = None
        self._client: AIOKafkaClient | None = None

    async def __aenter__(self) -> "Reader":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._drop()

    async def read(
        self, topic: str, partition: int, offset: int, max_records: int
    ) -> tuple[Sequence[Record], int] | None:
        """Records at `offset` and after, and where reading goes on; None when there are none."""
        at = TopicPartition(topic, partition)
        async with self._reading() as consumer:
            earliest = (await consumer.beginning_offsets([at]))[at]
            end = (await consumer.end_offsets([at]))[at]
            offset = max(offset, earliest)
            if offset >= end:
                return None
            if consumer.assignment() != {at}:
                consumer.assign([at])
            consumer.seek(at, offset)
            consumer.resume(at)
            while True:  # a stretch without records (compaction, transaction marks) ends at `end` at the latest
                found = (await consumer.getmany(at, timeout_ms=500, max_records=max_records)).get(at)
                if found or await consumer.position(at) >= end:
                    break
            consumer.pause(at)  # or it would go on asking for more, for ever
        if not found:
            return None
        records = [Record(one.key or b"", one.value or b"", one.timestamp, one.offset) for one in found]
        return records, records[-1].offset + 1

    async def bounds(self, topic: str, partitions: int) -> dict[int, tuple[int, int]]:
        """Earliest and next offset per partition."""
        every = [TopicPartition(topic, one) for one in range(partitions)]
        async with self._reading() as consumer:
            earliest = await consumer.beginning_offsets(every)
            following = await consumer.end_offsets(every)
        return {one.partition: (earliest[one], following[one]) for one in every}

    async def offset_at(self, topic: str, partition: int, timestamp: int) -> int:
        """The first offset stamped `timestamp` (Unix ms) or later, else the next one."""
        at = TopicPartition(topic, partition)
        async with self._reading() as consumer:
            found = (await consumer.offsets_for_times({at: max(0, timestamp)}))[at]
            if found is not None:
                return int(found.offset)
            return int((await consumer.end_offsets([at]))[at])

    async def committed(self, topic: str, group: str) -> Mapping[int, int]:
        """Committed offset per partition that the group ever committed."""
        async with self._asking() as client:
            while True:
                try:
                    node = await client.coordinator_lookup(CoordinationType.GROUP, group)
                    answer = await client.send(node, OffsetFetchRequest(group, None))
                    if answer.error_code:
                        raise for_code(answer.error_code)()
                except _TRANSIENT:  # the coordinator is being elected or is reading its own log
                    await asyncio.sleep(0.1)
                else:
                    return {
                        partition: offset
                        for name, partitions in answer.topics
                        for partition, offset, _, _ in partitions
                        if name == topic and offset >= 0
                    }

    # ── The clients ─────────────────────────────────────────────────────────────────────────────────────────────────

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[AIOKafkaConsumer]:
        async with self._exclusively():
            if self._consumer is None:
                self._consumer = AIOKafkaConsumer(
                    **self._connection.options,
                    enable_auto_commit=False,
                    auto_offset_reset="earliest",
                    isolation_level="read_committed",
                    fetch_max_wait_ms=round(LINGER * 1_000),
                    fetch_max_bytes=FETCH_BYTES,
                    max_partition_fetch_bytes=FETCH_BYTES,
                )
                await self._consumer.start()
            yield self._consumer

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[AIOKafkaClient]:
        async with self._exclusively():
            if self._client is None:
                self._client = AIOKafkaClient(**self._connection.options)
                await self._client.bootstrap()
            yield self._client

    @asynccontextmanager
    async def _exclusively(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(PATIENCE), self._lock:
                try:
                    yield
                except BaseException:
                    await self._drop()  # in whatever state it is
                    raise
        except (KafkaError, OSError) as error:
            raise Unavailable(f"Kafka does not answer: {error!r}") from error

    async def _drop(self) -> None:
        consumer, self._consumer = self._consumer, None
        client, self._client = self._client, None
        if consumer is not None:
            await consumer.stop()
        if client is not None:
            await client.close()
