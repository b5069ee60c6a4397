"""Appends to Kafka: records gather per partition while the batch before them is under way, one future per batch.

One batch of a partition is in flight at a time, which keeps its order; partitions go side by side, and those that are free at one time
are handed to the client at once, so that their batches leave in one request. What is not yet
acknowledged is bounded in bytes: appenders wait. A batch that the cluster does not acknowledge within `PATIENCE` fails what
waits in its partition with Unavailable and stays with the client, which repeats it for as long as it takes under the same
sequence number; until then the partition refuses at once. After any error that the client does not repeat by itself, its
sequence has a hole, so that a fresh producer takes over.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Final

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, ProducerClosed
from isal.isal_zlib import crc32

from pipeline.log.contract import Draft, Record, drafts_of
from pipeline.log.kafka.batch import RecordBatch, compressor
from pipeline.log.kafka.connection import PATIENCE, Connection
from pipeline.log.kafka.topics import MAX_BATCH_BYTES
from schemas.errors import Unavailable

BATCH_BYTES: Final = 512 << 10  # a batch is closed before it grows beyond, unless one record alone is larger
RECORD_OVERHEAD: Final = 24  # bytes a record takes besides key and value, at most
IN_FLIGHT_BYTES: Final = 32 << 20
RETRY_AFTER: Final = 1.0  # seconds

log = structlog.get_logger()


class _Group:
    """One `append`: done when its parts in all partitions are."""

    __slots__ = ("done", "parts")

    def __init__(self, parts: int, done: "asyncio.Future[None]") -> None:
        self.parts = parts
        self.done = done

    def finished(self) -> None:
        self.parts -= 1
        if self.parts == 0 and not self.done.done():
            self.done.set_result(None)

    def failed(self, error: BaseException) -> None:
        if not self.done.done():  # its appender may have been cancelled, or another part failed first
            self.done.set_exception(error)


class _Part:
    """Records of one `append` that go to one partition, small enough for one batch."""

    __slots__ = ("group", "rows", "size")

    def __init__(self, group: _Group, rows: Sequence[Draft], size: int) -> None:
        self.group = group
        self.rows = rows
        self.size = size


class _Lane:
    """One partition: the parts that wait, and those of the batch that is under way while it is `busy`."""

    __slots__ = ("busy", "overdue", "partition", "refusing", "sending", "topic", "waiting")

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.waiting: deque[_Part] = deque()
        self.sending: Sequence[_Part] = ()
        self.overdue: asyncio.TimerHandle | None = None
        self.busy = False
        self.refusing = False  # its last batch is overdue


class Appender:
    """See the module. Use as an async context manager; leaving it waits for what is under way, for `PATIENCE` at most."""

    def __init__(self, connection: Connection, counts: Mapping[str, int]) -> None:
        self._connection = connection
        self._lanes = {topic: [_Lane(topic, one) for one in range(count)] for topic, count in counts.items()}
        self._budget = _Budget(IN_FLIGHT_BYTES)
        self._compress = compressor()
        self._ready: deque[_Lane] = deque()  # have parts that wait and no batch under way
        self._feeding: asyncio.Task[None] | None = None
        self._busy = 0  # lanes
        self._idle = asyncio.Event()
        self._idle.set()
        self._producer: AIOKafkaProducer | None = None
        self._producer_lock = asyncio.Lock()
        self._retired: dict[AIOKafkaProducer, asyncio.Task[None]] = {}
        self._unavailable = False
        self._closed = False  # takes no more
        self._given_up = False  # sends no more either

    async def __aenter__(self) -> "Appender":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), PATIENCE)
        self._given_up = True
        producers = [*self._retired, *([] if self._producer is None else [self._producer])]
        await asyncio.gather(*(_abandon(one) for one in producers))
        await asyncio.gather(*self._retired.values(), self._idle.wait())

    async def append(self, topic: str, records: Sequence[Record]) -> None:
        """The contract's `append`."""
        lanes = self._lanes[topic]
        parts = list(_split(drafts_of(records).rows, len(lanes)))
        if not parts:
            return
        if self._closed:
            raise Unavailable("the log is closed", after=RETRY_AFTER)
        if any(lanes[partition].refusing for partition, _, _ in parts):
            raise Unavailable("Kafka has not acknowledged earlier records", after=RETRY_AFTER)
        await self._budget.take(sum([size for _, _, size in parts]))
        group = _Group(len(parts), asyncio.get_running_loop().create_future())
        for partition, some, part_size in parts:
            lane = lanes[partition]
            lane.waiting.append(_Part(group, some, part_size))
            if not lane.busy:
                lane.busy = True
                self._busy += 1
                self._idle.clear()
                self._feed(lane)
        del records, parts, some
        await group.done

    # ── One partition ───────────────────────────────────────────────────────────────────────────────────────────────

    def _feed(self, lane: _Lane) -> None:
        """Has what waits in a lane sent, beside that of other lanes."""
        lane.overdue = asyncio.get_running_loop().call_later(PATIENCE, self._overdue, lane)
        self._ready.append(lane)
        if self._feeding is None:
            self._feeding = asyncio.create_task(self._feed_all())

    async def _feed_all(self) -> None:
        try:
            while self._ready:
                await self._begin(self._ready.popleft())
        finally:
            self._feeding = None

    async def _begin(self, lane: _Lane) -> None:
        if not lane.waiting:  # they were told that it took too long
            self._go_on(lane)
            return
        lane.sending = _take(lane.waiting)
        try:
            await self._send(lane)
        except Exception as error:
            self._ended(lane, error)

    async def _send(self, lane: _Lane) -> None:
        """Returns once the client has the lane's batch, which it holds on to for however long the cluster takes."""
        producer = await self._running_producer()
        batch = RecordBatch([row for part in lane.sending for row in part.rows], self._compress)
        for part in lane.sending:
            part.rows = ()  # their memory serves the next ones
        try:
            sent = await producer.send_batch(batch, lane.topic, partition=lane.partition)
        except Exception:
            self._retire(producer)
            raise
        sent.add_done_callback(partial(self._answered, lane, producer))

    def _answered(self, lane: _Lane, producer: AIOKafkaProducer, sent: "asyncio.Future[object]") -> None:
        error = sent.exception()
        if error is not None:
            self._retire(producer)
        self._ended(lane, error)

    def _ended(self, lane: _Lane, error: BaseException | None) -> None:
        """The lane's batch is over."""
        batch, lane.sending = lane.sending, ()
        if error is None:
            self._acknowledged()
            for part in batch:
                part.group.finished()
        else:
            self._fail(batch, error)
        self._budget.give(sum([part.size for part in batch]))
        self._go_on(lane)

    def _go_on(self, lane: _Lane) -> None:
        """With what has gathered meanwhile, if anything has."""
        assert lane.overdue is not None, "every turn of a lane has its time"
        lane.overdue.cancel()
        lane.refusing = False
        if lane.waiting:
            self._feed(lane)
            return
        lane.busy = False
        self._busy -= 1
        if not self._busy:
            self._idle.set()

    def _overdue(self, lane: _Lane) -> None:
        """Past `PATIENCE` the appenders of a batch and those behind them are told, though it goes on."""
        lane.refusing = True
        error = TimeoutError(f"no acknowledgement within {PATIENCE:.0f} s")
        self._fail(lane.sending, error)
        while lane.waiting:
            part = lane.waiting.popleft()
            self._fail((part,), error)
            self._budget.give(part.size)

    # ── What the cluster said ───────────────────────────────────────────────────────────────────────────────────────

    def _fail(self, batch: Iterable[_Part], error: BaseException) -> None:
        expected = isinstance(error, KafkaError | OSError)
        if not expected:
            log.error("sending to kafka failed", exc_info=error)
        elif not self._unavailable and not self._closed:
            self._unavailable = True
            log.warning("kafka does not accept records", servers=self._connection.servers, error=repr(error))
        for part in batch:
            told = Unavailable(f"Kafka does not accept records: {error!r}", after=RETRY_AFTER) if expected else error
            part.group.failed(told)

    def _acknowledged(self) -> None:
        if self._unavailable:
            self._unavailable = False
            log.info("kafka accepts records again", servers=self._connection.servers)

    # ── The producer ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _running_producer(self) -> AIOKafkaProducer:
        if self._producer is not None:
            return self._producer
        async with self._producer_lock:
            if self._given_up:
                raise ProducerClosed
            if self._producer is None:
                self._producer = await self._fresh_producer()
            return self._producer

    async def _fresh_producer(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            **self._connection.options,
            acks="all",
            enable_idempotence=True,
            max_request_size=MAX_BATCH_BYTES,
            metadata_max_age_ms=60_000,
        )
        try:
            async with asyncio.timeout(PATIENCE):
                await producer.start()
        except BaseException:
            await _abandon(producer)
            raise
        return producer

    def _retire(self, producer: AIOKafkaProducer) -> None:
        """The next batch gets a fresh producer; what other partitions have under way ends with the old one."""
        if self._producer is not producer:
            return
        self._producer = None
        task = asyncio.create_task(_stop(producer))
        self._retired[producer] = task
        task.add_done_callback(lambda _: self._retired.pop(producer))


class _Budget:
    """Bytes that may be unacknowledged. First come, first served; whoever finds no room within `PATIENCE` is refused."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._free = total
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int) -> None:
        if not self._queue and self._has_room(size):
            self._free -= size
            return
        room = asyncio.get_running_loop().create_future()
        self._queue.append((size, room))
        try:
            async with asyncio.timeout(PATIENCE):
                await room
        except BaseException as error:
            given = size if room.done() and not room.cancelled() else 0
            room.cancel()
            self.give(given)
            if isinstance(error, TimeoutError):
                raise Unavailable("Kafka is behind: too much waits to be accepted", after=RETRY_AFTER) from None
            raise

    def _has_room(self, size: int) -> bool:
        return min(size, self._total) <= self._free  # what is larger than everything goes alone

    def give(self, size: int) -> None:
        self._free += size
        while self._queue:
            size, room = self._queue[0]
            if not room.done():
                if not self._has_room(size):
                    return
                self._free -= size
                room.set_result(None)
            self._queue.popleft()


def _split(rows: Sequence[Draft], count: int) -> Iterator[tuple[int, list[Draft], int]]:
    """Parts of at most `BATCH_BYTES` (one record may be larger) as partition, records and bytes."""
    lanes: list[list[Draft]] = [[] for _ in range(count)]
    for row in rows:
        lanes[crc32(row[0]) % count].append(row)  # `schemas.topics.partition_of`
    for partition, lane in enumerate(lanes):
        if not lane:
            continue
        sizes = [len(key) + len(head) + len(body) + RECORD_OVERHEAD for key, head, body, _ in lane]
        size = sum(sizes)
        if size <= BATCH_BYTES:
            yield partition, lane, size
            continue
        begin = size = 0
        for end, one in enumerate(sizes):
            if size and size + one > BATCH_BYTES:
                yield partition, lane[begin:end], size
                begin, size = end, 0
            size += one
        yield partition, lane[begin:], size


def _take(waiting: "deque[_Part]") -> list[_Part]:
    """The parts of the next batch, in order."""
    batch = [waiting.popleft()]
    size = batch[0].size
    while waiting and size + waiting[0].size <= BATCH_BYTES:
        size += waiting[0].size
        batch.append(waiting.popleft())
    return batch


async def _stop(producer: AIOKafkaProducer) -> None:
    """Waits until everything that the producer holds is acknowledged, then ends it."""
    try:
        await producer.stop()
    except KafkaError as error:  # its sender had failed; the batches know
        log.debug("kafka producer had failed", error=repr(error))
    finally:
        await producer.client.close()


async def _abandon(producer: AIOKafkaProducer) -> None:
    """Ends a producer once its current request is over; what it holds fails. An idempotent one would repeat that for as
    long as it takes, and the client has no public way to give it up. The order matters: a batch failed under a running
    sender breaks that."""
    await producer._sender.close()
    producer._message_accumulator.fail_all(ProducerClosed())
    await _stop(producer)
