"""What only the Kafka log promises, on a real broker; what every log promises is in the contract suite."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from itertools import count
from random import Random

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from pipeline.log.contract import Batch, Log, Record, Retention, Subscription
from pipeline.log.kafka import appender, open_kafka
from pipeline.log.kafka.connection import Connection
from pipeline.log.kafka.topics import topic_settings
from schemas.errors import ConfigError, PartitionLost, Unavailable
from schemas.topics import EVENTS, partition_of
from tests.services.kafka import KafkaBroker
from tests.services.process import free_ports

pytestmark = pytest.mark.kafka
_prefixes = count()


@pytest.fixture
def prefix() -> str:
    return f"kafka-log-{next(_prefixes)}-"


def opened(
    bootstrap: str, prefix: str, *, partitions: int = 2, retention: Retention | None = None
) -> AbstractAsyncContextManager[Log]:
    return open_kafka(bootstrap, partitions=partitions, retention=retention or Retention(), prefix=prefix)


def now_ms() -> int:
    """Records of the past may be removed by the broker's retention before they are read."""
    return int(time.time() * 1000)


def records(*values: str, key: str = "k") -> list[Record]:
    return [Record(key.encode(), value.encode(), now_ms()) for value in values]


async def values(subscription: Subscription, wanted: int) -> list[str]:
    """The next `wanted` values, each poll committed."""
    found: list[str] = []
    async for batches in subscription:
        found += [record.value.decode() for batch in batches for record in batch.records]
        await subscription.commit(batches)
        if len(found) >= wanted:
            return found
    raise AssertionError("a subscription never ends by itself")


# ── Opening ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_unreachable_broker_is_a_fault_that_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    monkeypatch.setattr("pipeline.log.kafka.topics.PATIENCE", 0.5)
    (port,) = free_ports(1)

    with pytest.raises(ConfigError) as fault:
        async with opened(f"127.0.0.1:{port}", prefix):
            pass

    assert str(fault.value) == (
        f"log kafka://127.0.0.1:{port}: cannot reach Kafka; is it running at 127.0.0.1:{port}, "
        "and do its security settings match?"
    )


def test_every_fault_of_the_address_is_named_and_no_secret() -> None:
    with pytest.raises(ConfigError) as fault:
        Connection.parse("broker?security_protocol=SASL_SSL&password=hush&acks=0&sasl_mechanism=GSSAPI")

    assert fault.value.faults == (
        "log kafka://broker: 'broker' is not host:port",
        "log kafka://: unknown setting 'acks'; known are security_protocol, sasl_mechanism, username, password, ssl_cafile",
        "log kafka://: sasl_mechanism 'GSSAPI'; use one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512",
        "log kafka://: SASL_SSL needs username and password",
    )


def test_a_connection_prints_without_its_secrets() -> None:
    connection = Connection.parse(
        "a:1,b:2?security_protocol=SASL_PLAINTEXT&sasl_mechanism=SCRAM-SHA-512&username=u&password=hush"
    )

    assert (str(connection), "hush" in repr(connection)) == ("kafka://a:1,b:2", False)
    assert connection.options == {
        "bootstrap_servers": ["a:1", "b:2"],
        "client_id": "millrace",
        "request_timeout_ms": 10_000,
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "u",
        "sasl_plain_password": "hush",
    }


def test_retention_of_a_topic_becomes_retention_per_partition() -> None:
    settings = topic_settings(8, Retention(seconds=80, bytes=800 << 20), replicas=1)

    assert settings == {
        "retention.ms": "80000",
        "retention.bytes": str(100 << 20),
        "segment.bytes": str(100 << 17),
        "segment.ms": "10000",
        "min.insync.replicas": "1",
        "max.message.bytes": str(2 << 20),
        "message.timestamp.after.max.ms": str(2**63 - 1),
    }


async def test_topics_that_exist_keep_their_partitions(kafka_bootstrap: str, prefix: str) -> None:
    await create_topic(kafka_bootstrap, prefix + EVENTS, partitions=3)

    async with opened(kafka_bootstrap, prefix, partitions=5) as log:
        assert (log.partitions("events"), log.partitions("resolved")) == (3, 5)


def test_of_three_replicas_two_have_what_is_acknowledged() -> None:
    wanted = [topic_settings(1, Retention(), replicas)["min.insync.replicas"] for replicas in (1, 2, 3)]
    assert wanted == ["1", "1", "2"]


async def test_a_topic_that_cannot_hold_what_is_promised_is_a_fault_with_the_remedy(
    kafka_bootstrap: str, prefix: str
) -> None:
    name = prefix + EVENTS
    settings = {"max.message.bytes": "500000", "min.insync.replicas": "2", "cleanup.policy": "compact"}
    await create_topic(kafka_bootstrap, name, partitions=1, settings=settings)

    with pytest.raises(ConfigError) as fault:
        async with opened(kafka_bootstrap, prefix):
            pass

    set_ = f"use kafka-configs.sh --alter --entity-type topics --entity-name {name} --add-config"
    assert fault.value.faults == (
        f"topic {name}: max.message.bytes is 500000, so that large records would never be taken; "
        f"{set_} max.message.bytes=1048588",
        f"topic {name}: min.insync.replicas is 2 of 1 replicas, so that nothing would ever be acknowledged; give it more "
        f"replicas, or {set_} min.insync.replicas=1",
        f"topic {name}: cleanup.policy is compact, which keeps one event of each person; {set_} cleanup.policy=delete",
    )


async def test_several_processes_may_open_a_new_cluster_at_once(kafka_bootstrap: str, prefix: str) -> None:
    async def partitions() -> int:
        async with opened(kafka_bootstrap, prefix) as log:
            return log.partitions("events")

    assert await asyncio.gather(*(partitions() for _ in range(4))) == [2, 2, 2, 2]


async def create_topic(bootstrap: str, name: str, partitions: int, settings: Mapping[str, str] | None = None) -> None:
    async with administrator(bootstrap) as admin:
        topic = NewTopic(name, num_partitions=partitions, replication_factor=1, topic_configs=dict(settings or {}))
        await admin.create_topics([topic])


@asynccontextmanager
async def administrator(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


# ── Appending ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_other_clients_find_a_key_in_the_partition_that_crc32_names(kafka_bootstrap: str, prefix: str) -> None:
    async with opened(kafka_bootstrap, prefix, partitions=4) as log:
        keys = [f"key-{n}".encode() for n in range(40)]
        await log.append("events", [Record(key, b"v", now_ms()) for key in keys])

        found = {}
        for partition in range(4):
            batch = await log.read("events", partition, 0)
            found[partition] = [] if batch is None else [record.key for record in batch.records]

    assert found == {n: [key for key in keys if partition_of(key, 4) == n] for n in range(4)}


async def test_an_append_larger_than_every_batch_and_every_budget_keeps_its_order(
    kafka_bootstrap: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appender, "BATCH_BYTES", 4_000)
    monkeypatch.setattr(appender, "IN_FLIGHT_BYTES", 10_000)
    sent = [f"{n:05}" + "x" * 500 for n in range(200)]

    async with opened(kafka_bootstrap, prefix, partitions=1) as log:
        await asyncio.gather(log.append("events", records(*sent)), log.append("events", records("after")))
        batch = await log.read("events", 0, 0)

    assert batch is not None
    assert [record.value.decode() for record in batch.records] == [*sent, "after"]


async def test_a_broker_that_is_gone_refuses_within_bounds_and_is_used_again_when_it_is_back(
    kafka_broker: KafkaBroker, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appender, "PATIENCE", 1.5)
    async with opened(kafka_broker.bootstrap, prefix, partitions=1) as log:
        await log.append("events", records("before"))
        await asyncio.to_thread(kafka_broker.kill)

        begun = time.monotonic()
        with pytest.raises(Unavailable):
            await log.append("events", records("lost-or-late"))
        first = time.monotonic() - begun
        with pytest.raises(Unavailable):
            await log.append("events", records("refused"))
        second = time.monotonic() - begun - first

        await asyncio.to_thread(kafka_broker.start)
        await until_accepted(log, records("after"))
        batch = await log.read("events", 0, 0)

    assert first < 3
    assert second < 0.1
    assert batch is not None
    found = [record.value.decode() for record in batch.records]
    assert [found[0], found[-1], "refused" in found] == ["before", "after", False]


async def test_a_broker_that_hangs_refuses_within_bounds(
    kafka_broker: KafkaBroker, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appender, "PATIENCE", 1.0)
    async with opened(kafka_broker.bootstrap, prefix, partitions=1) as log:
        await log.append("events", records("before"))
        await asyncio.to_thread(kafka_broker.pause)
        try:
            with pytest.raises(Unavailable):
                await log.append("events", records("late"))
        finally:
            await asyncio.to_thread(kafka_broker.resume)
        await until_accepted(log, records("after"))
        batch = await log.read("events", 0, 0)

    assert batch is not None
    assert [record.value.decode() for record in batch.records] == ["before", "late", "after"]


async def test_a_batch_that_the_broker_rejects_for_good_does_not_spoil_the_next(
    kafka_bootstrap: str, prefix: str
) -> None:
    """The rejected batch leaves a hole in the producer's sequence: without a fresh producer nothing would pass again."""
    async with opened(kafka_bootstrap, prefix, partitions=1) as log:
        await log.append("events", records("before"))
        async with administrator(kafka_bootstrap) as admin:
            settings = {"max.message.bytes": "500000"}
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, prefix + EVENTS, settings)])
        incompressible = Record(b"k", random_bytes(600_000), now_ms())
        with pytest.raises(Unavailable):
            await log.append("events", [incompressible])

        await log.append("events", records("next"))
        batch = await log.read("events", 0, 0)

    assert batch is not None
    assert [record.value for record in batch.records] == [b"before", b"next"]


async def test_closing_while_the_broker_is_gone_ends_within_bounds(
    kafka_broker: KafkaBroker, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appender, "PATIENCE", 1.0)
    async with opened(kafka_broker.bootstrap, prefix, partitions=1) as log:
        await log.append("events", records("before"))
        await asyncio.to_thread(kafka_broker.kill)
        try:
            waiting = asyncio.create_task(log.append("events", records("lost")))
            await asyncio.sleep(0)
            begun = time.monotonic()
        except BaseException:
            await asyncio.to_thread(kafka_broker.start)
            raise
    took = time.monotonic() - begun
    await asyncio.to_thread(kafka_broker.start)

    with pytest.raises(Unavailable):
        await waiting
    assert took < 8


async def until_accepted(log: Log, some: Sequence[Record]) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                await log.append("events", some)
            except Unavailable:
                await asyncio.sleep(0.1)
            else:
                return


def random_bytes(size: int) -> bytes:
    return Random(7).randbytes(size)


# ── Subscribing ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_subscription_outlives_the_broker(kafka_broker: KafkaBroker, prefix: str) -> None:
    async with opened(kafka_broker.bootstrap, prefix) as log, log.subscribe("events", group="g") as subscription:
        await log.append("events", records("one"))
        assert await values(subscription, 1) == ["one"]

        waiting = asyncio.create_task(values(subscription, 1))
        await asyncio.to_thread(kafka_broker.kill)
        await asyncio.to_thread(kafka_broker.start)
        await until_accepted(log, records("two"))

        async with asyncio.timeout(30):
            assert await waiting == ["two"]


async def test_a_partition_kept_through_a_rebalance_goes_on_where_it_was(kafka_bootstrap: str, prefix: str) -> None:
    """The first member has read records that it has not committed: it must not get them again, nor be told to start."""
    started: list[list[int]] = []

    async def start(partitions: Sequence[int]) -> dict[int, int]:
        started.append(list(partitions))
        return {}

    keys = {partition_of(f"k{n}".encode(), 2): f"k{n}" for n in range(20)}
    async with opened(kafka_bootstrap, prefix) as log, log.subscribe("events", group="g", start=start) as first:
        await log.append("events", [*records("a0", key=keys[0]), *records("a1", key=keys[1])])
        held = await read(first, 2)
        async with log.subscribe("events", group="g") as second:
            others = asyncio.create_task(collect(second))
            went_on = asyncio.create_task(collect(first))
            theirs = await others
            (lost,) = second.assigned
            kept = 1 - lost
            await log.append("events", records("b", key=keys[kept]))
            async with asyncio.timeout(20):
                again = await went_on
            assert first.assigned == {kept}

            mine = [batch for batch in held if batch.partition == kept]
            await first.commit([*mine, *again])
            with pytest.raises(PartitionLost) as refused:
                await first.commit([batch for batch in held if batch.partition == lost])

        committed = await log.committed("events", "g")

    assert started == [[0, 1]]
    assert [record.value.decode() for batch in again for record in batch.records] == ["b"]
    assert [record.value.decode() for batch in theirs for record in batch.records] == [f"a{lost}"]
    assert refused.value.partitions == {lost}
    assert committed == {kept: 2}


async def test_a_rebalance_waits_for_the_commit_of_what_is_in_process(kafka_bootstrap: str, prefix: str) -> None:
    keys = {partition_of(f"k{n}".encode(), 2): f"k{n}" for n in range(20)}
    async with opened(kafka_bootstrap, prefix) as log, log.subscribe("events", group="g") as first:
        await log.append("events", [*records("a0", key=keys[0]), *records("a1", key=keys[1])])
        in_process = await read(first, 2)
        async with log.subscribe("events", group="g") as second:
            others = asyncio.create_task(collect(second))
            await asyncio.sleep(2.5)  # a heartbeat tells the first member of the second

            assert first.assigned == {0, 1}
            await first.commit(in_process)

            polling = asyncio.create_task(collect(first))
            await log.append("events", [*records("b0", key=keys[0]), *records("b1", key=keys[1])])
            async with asyncio.timeout(20):
                mine, theirs = await polling, await others

    found = {record.value.decode() for batch in [*mine, *theirs] for record in batch.records}
    assert found == {"b0", "b1"}


async def test_a_member_that_was_taken_for_dead_cannot_commit_what_it_held(
    kafka_bootstrap: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.log.kafka.subscription.SESSION", 6.0)
    monkeypatch.setattr("pipeline.log.kafka.subscription.HEARTBEAT", 60.0)
    async with opened(kafka_bootstrap, prefix, partitions=1) as log, log.subscribe("events", group="g") as first:
        await log.append("events", records("a"))
        held = await read(first, 1)
        monkeypatch.setattr("pipeline.log.kafka.subscription.HEARTBEAT", 1.0)
        async with log.subscribe("events", group="g") as second:
            async with asyncio.timeout(30):
                assert await values(second, 1) == ["a"]

            with pytest.raises(PartitionLost) as refused:
                await first.commit([replace(held[0], next_offset=0)])
        committed = await log.committed("events", "g")

    assert refused.value.partitions == {0}
    assert committed == {0: 1}


async def test_an_unreadable_partition_is_left_alone_while_the_others_are_read(
    kafka_bootstrap: str, prefix: str, corrupt: "Corruption"
) -> None:
    keys = {partition_of(f"k{n}".encode(), 2): f"k{n}" for n in range(20)}
    async with opened(kafka_bootstrap, prefix) as log, log.subscribe("events", group="g") as subscription:
        corrupt.partition = 0
        await log.append("events", [*records("a0", key=keys[0]), *records("a1", "b1", key=keys[1])])

        assert await values(subscription, 2) == ["a1", "b1"]
        await asyncio.sleep(1)
        attempts = corrupt.met
        corrupt.partition = None
        async with asyncio.timeout(20):
            assert await values(subscription, 1) == ["a0"]

    assert 2 <= attempts <= 6


class Corruption:
    """Makes the records of one partition fail their checksum."""

    partition: int | None = None
    met = 0


@pytest.fixture
def corrupt(monkeypatch: pytest.MonkeyPatch) -> Corruption:
    from aiokafka.consumer.fetcher import PartitionRecords
    from aiokafka.errors import CorruptRecordException

    corruption = Corruption()
    unpack = PartitionRecords._unpack_records

    def damaged(self: PartitionRecords) -> object:
        if self._tp.partition == corruption.partition:
            corruption.met += 1
            raise CorruptRecordException(f"Invalid CRC - {self._tp}")
        yield from unpack(self)

    monkeypatch.setattr(PartitionRecords, "_unpack_records", damaged)
    return corruption


async def test_a_start_that_fails_is_the_callers_error_and_is_asked_again(kafka_bootstrap: str, prefix: str) -> None:
    asked: list[Sequence[int]] = []

    async def start(partitions: Sequence[int]) -> dict[int, int]:
        asked.append(partitions)
        if len(asked) == 1:
            raise Unavailable("the database is away")
        return {0: 1}

    async with (
        opened(kafka_bootstrap, prefix, partitions=1) as log,
        log.subscribe("events", group="g", start=start) as subscription,
    ):
        await log.append("events", records("a", "b"))
        with pytest.raises(Unavailable):
            await anext(aiter(subscription))
        found = await read(subscription, 1)

    assert [record.value for record in found[0].records] == [b"b"]


async def test_aborted_transactions_and_their_marks_are_never_seen(kafka_bootstrap: str, prefix: str) -> None:
    async with opened(kafka_bootstrap, prefix, partitions=1) as log:
        await log.append("events", records("before"))
        foreign = AIOKafkaProducer(bootstrap_servers=kafka_bootstrap, transactional_id=prefix)
        await foreign.start()
        try:
            await foreign.begin_transaction()
            await foreign.send_and_wait(prefix + EVENTS, b"aborted", key=b"k")
            await foreign.abort_transaction()
        finally:
            await foreign.stop()

        await log.append("events", records("after"))
        first = await log.read("events", 0, 0, max_records=1)
        assert first is not None
        # The mark that ends the transaction is written a moment after the producer was told.
        async with asyncio.timeout(10):
            while (second := await log.read("events", 0, first.next_offset)) is None:
                await asyncio.sleep(0.05)

    assert [record.value for batch in (first, second) for record in batch.records] == [b"before", b"after"]


async def read(subscription: Subscription, wanted: int) -> list[Batch]:
    """Batches of `wanted` records, uncommitted."""
    found: list[Batch] = []
    async for batches in subscription:
        found += batches
        if sum(len(batch.records) for batch in found) >= wanted:
            return found
    raise AssertionError("a subscription never ends by itself")


async def collect(subscription: Subscription) -> list[Batch]:
    return list(await anext(aiter(subscription)))


@pytest.fixture(autouse=True)
async def bounded(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """A hang names its test, and a broker that a failing test left dead does not fail the next."""
    async with asyncio.timeout(100):
        yield
    if "kafka_broker" in request.fixturenames:
        broker: KafkaBroker = request.getfixturevalue("kafka_broker")
        if not broker.running:
            await asyncio.to_thread(broker.start)
