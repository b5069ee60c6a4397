"""The event log on Apache Kafka: idempotent batches in, manually committed positions out.

appender.py gathers records per partition and sends them; subscription.py is a member of a consumer group; reader.py reads
outside groups; topics.py creates what is missing; connection.py holds addresses, security and time limits.
"""

import logging
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from pipeline.log.contract import Batch, Log, Record, Retention, Start, Subscription
from pipeline.log.kafka.appender import Appender
from pipeline.log.kafka.connection import Connection
from pipeline.log.kafka.reader import Reader
from pipeline.log.kafka.subscription import subscribe
from pipeline.log.kafka.topics import ensure_topics
from schemas.topics import TOPICS


@asynccontextmanager
async def open_kafka(servers: str, *, partitions: int, retention: Retention, prefix: str = "") -> AsyncIterator[Log]:
    """Opens the log on the cluster at `host:port[,host:port][?security settings]`; `connection.py` lists the settings.

    Creates the topics that do not exist, each named `prefix` + its name; those that exist keep their partitions.
    ConfigError when the cluster cannot be reached or does not suit."""
    _quieten()
    connection = Connection.parse(servers)
    counts = await ensure_topics(
        connection, [prefix + one for one in TOPICS], partitions=partitions, retention=retention
    )
    async with Appender(connection, counts) as appender, Reader(connection) as reader:
        yield KafkaLog(connection, counts, appender, reader, prefix)


class KafkaLog:
    """An open log; see the contract."""

    def __init__(
        self, connection: Connection, counts: Mapping[str, int], appender: Appender, reader: Reader, prefix: str
    ) -> None:
        self._connection = connection
        self._counts = counts
        self._appender = appender
        self._reader = reader
        self._prefix = prefix

    def append(self, topic: str, records: Sequence[Record]) -> Coroutine[Any, Any, None]:
        return self._appender.append(self._prefix + topic, records)  # which keeps no record that it has copied

    def subscribe(
        self, topic: str, *, group: str, start: Start | None = None, max_records: int = 2_000
    ) -> AbstractAsyncContextManager[Subscription]:
        return subscribe(
            self._connection, self._prefix + topic, topic, self._prefix + group, start=start, max_records=max_records
        )

    async def read(self, topic: str, partition: int, offset: int, *, max_records: int = 1_000) -> Batch | None:
        found = await self._reader.read(self._prefix + topic, partition, offset, max_records)
        return None if found is None else Batch(topic, partition, *found)

    async def bounds(self, topic: str) -> Mapping[int, tuple[int, int]]:
        return await self._reader.bounds(self._prefix + topic, self.partitions(topic))

    async def offset_at(self, topic: str, partition: int, timestamp: int) -> int:
        return await self._reader.offset_at(self._prefix + topic, partition, timestamp)

    async def committed(self, topic: str, group: str) -> Mapping[int, int]:
        return await self._reader.committed(self._prefix + topic, self._prefix + group)

    def partitions(self, topic: str) -> int:
        return self._counts[self._prefix + topic]


def _quieten() -> None:
    """The client library logs each of its many retries; ours is one line per change of state. Setting a level on the
    `aiokafka` logger brings its own lines back."""
    logger = logging.getLogger("aiokafka")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL + 1)
