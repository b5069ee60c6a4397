"""A member of a consumer group.

Rebalances are eager: every member gives up everything, then gets its share. To the caller they are not: partitions that come
back in the very next generation were nobody else's in between, so that reading goes on where it was; all others begin anew
at `start`, or at the committed offset. A rebalance waits, for `GRACE` at most, until the caller comes back for more, so that a
batch in process can be committed first.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    CorruptRecordException,
    IllegalStateError,
    KafkaError,
    RecordTooLargeError,
    TopicAuthorizationFailedError,
    UnsupportedCodecError,
)

from pipeline.log.contract import Batch, Record, Start
from pipeline.log.kafka.connection import Connection
from schemas.errors import PartitionLost, Unavailable

SESSION: Final = 8.0  # seconds until a member that is silent is dead
HEARTBEAT: Final = 2.0
GRACE: Final = 5.0  # seconds a rebalance waits for the caller
REBALANCE: Final = 15.0  # seconds the group waits for a member to join again; more than GRACE
REQUEST: Final = 20.0  # seconds until a request has failed; more than REBALANCE, since joining is one request
POLL: Final = 0.25  # seconds between looks at the state of things while nothing comes
SETTLING: Final = 0.01
SILENCE: Final = 15.0  # seconds without an answer to a fetch until the broker counts as gone
PATIENCE: Final = 60.0  # seconds of it until the client is made anew
FETCH_BYTES: Final = 16 << 20
PARTITION_FETCH_BYTES: Final = 2 << 20
FIRST_RETRY: Final = 0.2  # seconds, doubled up to
LAST_RETRY: Final = 10.0

# What a partition can answer that leaves the other partitions readable.
_UNREADABLE: Final = (
    CorruptRecordException,
    RecordTooLargeError,
    TopicAuthorizationFailedError,
    UnsupportedCodecError,
)

log = structlog.get_logger()


@asynccontextmanager
async def subscribe(
    connection: Connection, topic: str, name: str, group: str, *, start: Start | None, max_records: int
) -> AsyncIterator["KafkaSubscription"]:
    """Joins the group at the first iteration; leaves it at the end. `topic` is Kafka's name, `name` the log's."""
    subscription = KafkaSubscription(connection, topic, name, group, start, max_records)
    try:
        yield subscription
    finally:
        await subscription.close()


@dataclass(frozen=True, slots=True)
class _Yielded(Batch):
    """A batch with the tenure it was read under: the partition may have been another member's since."""

    tenure: int


@dataclass(slots=True)
class _Tenure:
    """The time a partition is ours without interruption. `position` is where reading goes on, once that is known."""

    number: int
    position: int | None = None
    retry_at: float = 0.0  # loop time until which it is left alone, after it could not be read
    delay: float = FIRST_RETRY


class KafkaSubscription:
    """See the module and the contract."""

    def __init__(
        self, connection: Connection, topic: str, name: str, group: str, start: Start | None, max_records: int
    ) -> None:
        self._connection = connection
        self._topic = topic
        self._name = name
        self._group = group
        self._start = start
        self._max_records = max_records
        self._consumer: AIOKafkaConsumer | None = None
        self._tenures: dict[int, _Tenure] = {}
        self._visible: frozenset[int] = frozenset()
        self._count = 0
        self._generation = (-1, "")
        self._at_rest = asyncio.Event()  # the caller has nothing in process
        self._at_rest.set()
        self._rebalancing = True  # given up what was assigned, not yet assigned anew
        self._assignments = 0  # counts them
        self._assigned_anew = asyncio.Event()
        self._delay = FIRST_RETRY
        self._failing = False
        self._closed = False
        self._quiet_since: int | None = None  # Unix ms of the first poll in a row that brought nothing
        self._silent = False

    @property
    def assigned(self) -> frozenset[int]:
        return self._visible

    def __aiter__(self) -> AsyncIterator[Sequence[Batch]]:
        return self

    async def __anext__(self) -> Sequence[Batch]:
        self._at_rest.set()
        while not self._closed:
            try:
                batches = await self._poll()
            except KafkaError as error:
                if not self._closed:
                    await self._restart(error)
            else:
                if batches:
                    self._at_rest.clear()
                    return batches
        raise StopAsyncIteration

    async def commit(self, batches: Sequence[Batch]) -> None:
        """The contract's `commit`. Waits while the group's coordinator cannot be reached."""
        lost: set[int] = set()
        while True:
            offsets: dict[int, int] = {}
            for batch in batches:
                if self._holds(batch):
                    offsets[batch.partition] = max(batch.next_offset, offsets.get(batch.partition, 0))
                else:
                    lost.add(batch.partition)
                    offsets.pop(batch.partition, None)
            if not offsets or await self._committed(offsets):
                break
        if lost:
            raise PartitionLost(lost)

    async def close(self) -> None:
        """Leaves the group; an iteration that waits ends."""
        self._closed = True
        self._at_rest.set()
        await self._stop()
        self._visible = frozenset()
        self._tenures = {}

    # ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _poll(self) -> Sequence[Batch]:
        consumer = await self._running_consumer()
        assignments = self._assignments
        try:
            if await self._settled(consumer):
                self._unpause(consumer)
                found = await self._fetched(consumer)
                if assignments == self._assignments:
                    batches = self._batches(found)
                    self._watch_silence(consumer, bool(batches))
                    return batches
                self._rewind(consumer)  # first let `start` be asked and `assigned` tell
        except IllegalStateError:  # the client has a new assignment and is about to call `given`
            await asyncio.sleep(0)
        return ()

    async def _settled(self, consumer: AIOKafkaConsumer) -> bool:
        """Every partition held has a position; False when the assignment changed meanwhile."""
        assignments = self._assignments
        new = sorted(partition for partition, tenure in self._tenures.items() if tenure.position is None)
        if new:
            positions = await self._first_positions(consumer, new)
            if assignments != self._assignments:
                return False
            for partition, position in positions.items():
                consumer.seek(self._at(partition), position)
                self._tenures[partition].position = position
            consumer.resume(*map(self._at, new))
        self._visible = frozenset(self._tenures)
        if self._failing and not self._rebalancing:
            self._failing = False
            self._delay = FIRST_RETRY
            log.info("member of the group again", topic=self._topic, group=self._group)
        return True

    async def _first_positions(self, consumer: AIOKafkaConsumer, partitions: Sequence[int]) -> Mapping[int, int]:
        """What `start` says, else what the group has committed, else the earliest record. The client's own position is no
        source: it may have read ahead before we were told of the assignment."""
        given = {} if self._start is None else await self._start(partitions)
        rest = [self._at(one) for one in partitions if one not in given]
        committed = dict(zip(rest, await asyncio.gather(*map(consumer.committed, rest)), strict=True))
        missing = [at for at, offset in committed.items() if offset is None]
        found: dict[TopicPartition, int] = {at: offset for at, offset in committed.items() if offset is not None}
        if missing:
            found |= await consumer.beginning_offsets(missing)
        return {at.partition: offset for at, offset in found.items()} | {
            one: max(0, given[one]) for one in partitions if one in given
        }

    async def _fetched(self, consumer: AIOKafkaConsumer) -> Mapping[TopicPartition, Sequence[Any]]:
        # While the group rebalances, `getmany` waits for its end by itself; then we want to be told soon. Never 0: with
        # that it returns without giving way to the task that would tell us.
        wait = SETTLING if self._rebalancing else POLL
        try:
            found: Mapping[TopicPartition, Sequence[Any]] = await consumer.getmany(
                timeout_ms=round(wait * 1_000), max_records=self._max_records
            )
        except Exception as error:
            if isinstance(error, KafkaError) and not isinstance(error, _UNREADABLE):
                raise
            # Records that other partitions had given to this poll are gone with it: back to where we were.
            self._rewind(consumer)
            return await self._fetched_one_by_one(consumer)
        return found

    async def _fetched_one_by_one(self, consumer: AIOKafkaConsumer) -> Mapping[TopicPartition, Sequence[Any]]:
        """Reads each partition on its own and leaves alone, for a while, the one that cannot be read."""
        found: dict[TopicPartition, Sequence[Any]] = {}
        room = self._max_records
        for partition, tenure in list(self._tenures.items()):
            at = self._at(partition)
            if at in consumer.paused() or room == 0:
                continue
            try:
                got = await consumer.getmany(at, timeout_ms=round(POLL * 1_000), max_records=room)
            except Exception as error:
                if isinstance(error, KafkaError) and not isinstance(error, _UNREADABLE):
                    self._rewind(consumer)
                    raise
                self._set_aside(consumer, partition, tenure, error)
            else:
                found.update(got)
                room -= sum(map(len, got.values()))
        return found

    def _set_aside(self, consumer: AIOKafkaConsumer, partition: int, tenure: _Tenure, error: Exception) -> None:
        if tenure.delay == FIRST_RETRY:
            log.error(
                "partition cannot be read",
                topic=self._topic,
                group=self._group,
                partition=partition,
                offset=tenure.position,
                error=repr(error),
            )
        consumer.seek(self._at(partition), tenure.position)
        consumer.pause(self._at(partition))
        tenure.retry_at = asyncio.get_running_loop().time() + tenure.delay
        tenure.delay = min(LAST_RETRY, tenure.delay * 2)

    def _unpause(self, consumer: AIOKafkaConsumer) -> None:
        now = asyncio.get_running_loop().time()
        for partition, tenure in self._tenures.items():
            if tenure.retry_at and tenure.retry_at <= now:
                tenure.retry_at = 0.0
                consumer.resume(self._at(partition))

    def _rewind(self, consumer: AIOKafkaConsumer) -> None:
        held = consumer.assignment()
        for partition, tenure in self._tenures.items():
            if tenure.position is not None and self._at(partition) in held:
                consumer.seek(self._at(partition), tenure.position)

    def _batches(self, found: Mapping[TopicPartition, Sequence[Any]]) -> Sequence[Batch]:
        batches = []
        for at, got in found.items():
            tenure = self._tenures.get(at.partition)
            if not got or tenure is None or tenure.position is None or got[0].offset < tenure.position:
                continue  # of an assignment that we have not been told of: its positions are set when we are
            records = [Record(one.key or b"", one.value or b"", one.timestamp, one.offset) for one in got]
            tenure.position = records[-1].offset + 1
            if tenure.delay != FIRST_RETRY:
                tenure.delay = FIRST_RETRY
                log.info("partition can be read again", topic=self._topic, group=self._group, partition=at.partition)
            batches.append(_Yielded(self._name, at.partition, records, tenure.position, tenure.number))
        return batches

    def _watch_silence(self, consumer: AIOKafkaConsumer, news: bool) -> None:
        """Fetches are repeated without end inside the client: say when they stop being answered, and when they are
        again. An answer without records is one, too."""
        now = round(time.time() * 1_000)
        if news or not self._tenures:
            self._quiet_since = None
        elif self._quiet_since is None:
            self._quiet_since = now
        stamps = [consumer.last_poll_timestamp(at) for at in consumer.assignment()]
        answered = max((one for one in stamps if one is not None), default=0)
        seconds = 0.0 if self._quiet_since is None else (now - max(self._quiet_since, answered)) / 1_000
        if self._silent != (seconds > SILENCE):
            self._silent = not self._silent
            if self._silent:
                log.warning("kafka does not answer", topic=self._topic, group=self._group)
            else:
                log.info("kafka answers again", topic=self._topic, group=self._group)
        if seconds > PATIENCE:
            self._quiet_since = None
            raise KafkaError(f"no answer to a fetch for {PATIENCE:.0f} s")

    # ── Membership ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _running_consumer(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            consumer = AIOKafkaConsumer(
                **{**self._connection.options, "request_timeout_ms": round(REQUEST * 1_000)},
                group_id=self._group,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                isolation_level="read_committed",
                session_timeout_ms=round(SESSION * 1_000),
                heartbeat_interval_ms=round(HEARTBEAT * 1_000),
                rebalance_timeout_ms=round(REBALANCE * 1_000),
                max_poll_interval_ms=2**31 - 1,  # a slow caller is alive as long as its loop turns
                fetch_max_bytes=FETCH_BYTES,
                max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
                metadata_max_age_ms=60_000,
            )
            try:
                await consumer.start()
            except BaseException:
                await consumer.stop()
                raise
            self._consumer = consumer
            consumer.subscribe([self._topic], listener=_Listener(self, consumer))
        return self._consumer

    async def revoked(self, consumer: AIOKafkaConsumer) -> None:
        """Called by the client before it gives its partitions up."""
        if consumer is not self._consumer:
            return
        self._rebalancing = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._at_rest.wait(), GRACE)

    def given(self, consumer: AIOKafkaConsumer, partitions: Sequence[int]) -> None:
        """Called by the client when it has joined."""
        if self._consumer is None or consumer is not self._consumer:
            return
        generation, member = _generation(consumer)
        before, self._generation = self._generation, (generation, member)
        kept = self._tenures if before == (generation - 1, member) else {}
        self._tenures = {one: kept.get(one) or self._new_tenure() for one in partitions}
        for partition, tenure in self._tenures.items():
            tenure.retry_at = 0.0
            if tenure.position is None:
                consumer.pause(self._at(partition))
            else:
                consumer.seek(self._at(partition), tenure.position)
        self._rebalancing = False
        self._assignments += 1
        self._assigned_anew.set()
        log.info("partitions assigned", topic=self._topic, group=self._group, partitions=sorted(partitions))

    async def _committed(self, offsets: Mapping[int, int]) -> bool:
        """Commits; False when the group was rebalanced instead, so that the caller has to look again at what it holds."""
        assert self._consumer is not None, "partitions are held only by a running consumer"
        self._assigned_anew.clear()
        try:
            await self._consumer.commit({self._at(partition): offset for partition, offset in offsets.items()})
        except (CommitFailedError, IllegalStateError) as error:
            await self._rebalanced(error)
            return False
        except KafkaError as error:
            raise Unavailable(f"Kafka refuses to commit: {error!r}", after=LAST_RETRY) from error
        return True

    async def _rebalanced(self, error: KafkaError) -> None:
        """Waits for the next assignment; the rebalance need not wait for the caller, who waits for it."""
        self._at_rest.set()
        try:
            await asyncio.wait_for(self._assigned_anew.wait(), 2 * REBALANCE)
        except TimeoutError:
            await self._restart(error)
        finally:
            self._at_rest.clear()

    async def _restart(self, error: KafkaError) -> None:
        """Leaves the group and lets the next poll join it again."""
        if not self._failing:
            self._failing = True
            log.warning("left the group after an error", topic=self._topic, group=self._group, error=repr(error))
        await self._stop()
        self._visible = frozenset()
        await asyncio.sleep(self._delay)
        self._delay = min(LAST_RETRY, self._delay * 2)

    async def _stop(self) -> None:
        consumer, self._consumer = self._consumer, None
        self._tenures = {}
        self._rebalancing = True
        self._generation = (-1, "")
        if consumer is not None:
            try:
                await consumer.stop()
            except KafkaError as error:  # its background task had failed; that error brought us here
                log.debug("kafka consumer had failed", error=repr(error))

    def _holds(self, batch: Batch) -> bool:
        tenure = self._tenures.get(batch.partition)
        return tenure is not None and (not isinstance(batch, _Yielded) or batch.tenure == tenure.number)

    def _new_tenure(self) -> _Tenure:
        self._count += 1
        return _Tenure(self._count)

    def _at(self, partition: int) -> TopicPartition:
        return TopicPartition(self._topic, partition)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # the client library has no types
    """Hands a consumer's rebalances to its subscription."""

    def __init__(self, subscription: KafkaSubscription, consumer: AIOKafkaConsumer) -> None:
        self._subscription = subscription
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        await self._subscription.revoked(self._consumer)

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        self._subscription.given(self._consumer, [one.partition for one in assigned])


def _generation(consumer: AIOKafkaConsumer) -> tuple[int, str]:
    """The group's generation and our name in it. The client has no public way; without them nobody could tell whether a
    partition was another member's for a while."""
    coordinator = consumer._coordinator
    return coordinator.generation, coordinator.member_id
