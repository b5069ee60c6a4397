"""What every event log promises, on files and on Apache Kafka."""

import asyncio
import os
import time
import tracemalloc
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol
from uuid import uuid4
from weakref import ref

import pytest

from pipeline.log.contract import MAX_RECORD_BYTES, Batch, Drafts, Log, Record, Retention, Start, Subscription
from pipeline.log.embedded import open_embedded
from schemas.errors import PartitionLost
from schemas.topics import EVENTS, RESOLVED, TOPICS, partition_of

NOW = int(time.time() * 1000)
KEPT = Retention()
PATIENCE = 60.0  # seconds; a broker takes its time over a rebalance


class Open(Protocol):
    """Opens the log of this test, the same one each time."""

    def __call__(self, partitions: int = ..., retention: Retention = ...) -> AbstractAsyncContextManager[Log]: ...


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def open_log(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    if request.param == "embedded":

        def embedded(partitions: int = 4, retention: Retention = KEPT) -> AbstractAsyncContextManager[Log]:
            return open_embedded(tmp_path / "log", partitions=partitions, retention=retention)

        return embedded

    from pipeline.log.kafka import open_kafka

    servers: str = request.getfixturevalue("kafka_bootstrap")
    prefix = f"{uuid4().hex}-"

    def kafka(partitions: int = 4, retention: Retention = KEPT) -> AbstractAsyncContextManager[Log]:
        return open_kafka(servers, partitions=partitions, retention=retention, prefix=prefix)

    return kafka


def numbered(count: int, key: str = "k", first: int = 0) -> list[Record]:
    return [Record(key.encode(), b"%d" % n, NOW + n) for n in range(first, first + count)]


def contents(batches: Sequence[Batch]) -> list[bytes]:
    return [record.value for batch in batches for record in batch.records]


async def take(subscription: Subscription, count: int) -> list[Batch]:
    """Batches until they hold `count` records; no more than that may come."""
    batches: list[Batch] = []
    async with asyncio.timeout(PATIENCE):
        async for news in subscription:
            batches += news
            if len(contents(batches)) >= count:
                break
    assert len(contents(batches)) == count
    return batches


async def taken(log: Log, count: int, *, group: str = "g", commit: bool = False, topic: str = EVENTS) -> list[Batch]:
    """What one new member gets before it leaves."""
    async with log.subscribe(topic, group=group) as subscription:
        batches = await take(subscription, count)
        if commit:
            await subscription.commit(batches)
    return batches


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


class Consumer:
    """A member that takes whatever comes, and commits it when told to."""

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.batches: list[Batch] = []
        self.commits = False

    @property
    def assigned(self) -> frozenset[int]:
        return self.subscription.assigned

    async def run(self) -> None:
        async for news in self.subscription:
            self.batches += news
            if self.commits:
                await self.subscription.commit(news)


@asynccontextmanager
async def consuming(log: Log, *, group: str = "g", start: Start | None = None) -> AsyncIterator[Consumer]:
    async with log.subscribe(EVENTS, group=group, start=start) as subscription:
        consumer = Consumer(subscription)
        task = asyncio.create_task(consumer.run())
        try:
            yield consumer
        finally:
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled():
            task.result()


# ── Appending ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_records_under_way_are_not_kept_beside_the_bytes_that_are_written(open_log: Open) -> None:
    async with open_log() as log:
        await log.append(EVENTS, numbered(1))  # connects
        body = array("B", b"body")
        kept = ref(body)
        appending = asyncio.create_task(log.append(EVENTS, Drafts([(b"k", b"head ", body, NOW)], 10)))
        del body
        for _ in range(20):  # turns of the loop, far fewer than an acknowledgement takes
            if kept() is not None:
                await asyncio.sleep(0)
        assert (kept(), appending.done()) == (None, False)
        await appending
        assert contents(await taken(log, 2)) == [b"0", b"head body"]


async def test_topics_exist_with_their_partitions_once_the_log_is_open(open_log: Open) -> None:
    async with open_log(partitions=3) as log:
        assert [log.partitions(topic) for topic in TOPICS] == [3, 3, 3, 3]
        assert [await log.bounds(topic) for topic in TOPICS] == [{0: (0, 0), 1: (0, 0), 2: (0, 0)}] * 4


async def test_the_number_of_partitions_is_decided_when_the_log_is_made(open_log: Open) -> None:
    async with open_log(partitions=3):
        pass
    async with open_log(partitions=5) as log:
        assert log.partitions(EVENTS) == 3


async def test_what_was_appended_is_there_after_the_log_was_closed_and_opened_again(open_log: Open) -> None:
    async with open_log(partitions=1) as log:
        await log.append(EVENTS, numbered(3))
    async with open_log() as log:
        await log.append(EVENTS, numbered(2, first=3))
        batch = await log.read(EVENTS, 0, 0)

    assert batch == Batch(EVENTS, 0, [Record(b"k", b"%d" % n, NOW + n, n) for n in range(5)], 5)


async def test_topics_are_apart(open_log: Open) -> None:
    async with open_log(partitions=1) as log:
        await log.append(EVENTS, numbered(1))
        await log.append(RESOLVED, numbered(2, first=10))

        assert contents(await taken(log, 1, topic=EVENTS)) == [b"0"]
        assert contents(await taken(log, 2, topic=RESOLVED)) == [b"10", b"11"]


async def test_a_key_goes_to_the_partition_that_the_contract_names(open_log: Open) -> None:
    keys = [f"key-{n}".encode() for n in range(50)]
    async with open_log(partitions=4) as log:
        await log.append(EVENTS, [Record(key, b"v", NOW) for key in keys])
        batches = await taken(log, 50)

    found = {record.key: batch.partition for batch in batches for record in batch.records}
    assert found == {key: partition_of(key, 4) for key in keys}


async def test_the_order_of_a_key_is_kept_whatever_else_is_appended_meanwhile(open_log: Open) -> None:
    async def one_key(log: Log, key: str) -> None:
        for first in range(0, 100, 5):
            await log.append(EVENTS, numbered(5, key, first))

    async with open_log() as log:
        await asyncio.gather(*(one_key(log, f"key-{n}") for n in range(20)))
        batches = await taken(log, 2_000)

    by_key: dict[bytes, list[bytes]] = {}
    for batch in batches:
        for record in batch.records:
            by_key.setdefault(record.key, []).append(record.value)
    assert by_key == {b"key-%d" % n: [b"%d" % m for m in range(100)] for n in range(20)}


async def test_appends_that_do_not_wait_for_each_other_keep_the_order_they_were_started_in(open_log: Open) -> None:
    async with open_log(partitions=1) as log:
        async with asyncio.TaskGroup() as tasks:
            for n in range(200):
                tasks.create_task(log.append(EVENTS, numbered(1, first=n)))

        assert contents(await taken(log, 200)) == [b"%d" % n for n in range(200)]


async def test_one_byte_and_half_a_megabyte_come_back_as_they_went(open_log: Open) -> None:
    large = bytes(range(256)) * 2_048
    records = [Record(b"", b"x", NOW), Record(b"k", large, NOW), Record(b"k", b"", NOW), Record(b"k", large, NOW)]
    async with open_log(partitions=1) as log:
        await log.append(EVENTS, records)
        batches = await taken(log, 4)

    assert [record for batch in batches for record in batch.records] == [
        record._replace(offset=offset) for offset, record in enumerate(records)
    ]


async def test_the_largest_record_is_taken_and_a_larger_one_is_refused_with_all_that_came_with_it(
    open_log: Open,
) -> None:
    async with open_log(partitions=1) as log:
        await log.append(EVENTS, [Record(b"k", bytes(MAX_RECORD_BYTES - 1), NOW)])
        with pytest.raises(ValueError, match=str(MAX_RECORD_BYTES + 1)):
            await log.append(EVENTS, [Record(b"k", b"good", NOW), Record(b"k", bytes(MAX_RECORD_BYTES), NOW)])

        assert await log.bounds(EVENTS) == {0: (0, 1)}


async def test_appending_nothing_is_done_at_once(open_log: Open) -> None:
    async with open_log(partitions=1) as log:
        await log.append(EVENTS, [])
        assert await log.bounds(EVENTS) == {0: (0, 0)}


async def test_appends_wait_when_too_much_is_in_flight_and_memory_stays_bounded(open_log: Open) -> None:
    """150 MB are appended at once, and read by a consumer that takes two records at a time."""
    value = bytes(1_000_000)
    async with open_log(partitions=1) as log:
        await log.append(EVENTS, [Record(b"k", b"warm", NOW)])
        tracemalloc.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(150):
                    tasks.create_task(log.append(EVENTS, [Record(b"k", value, NOW)]))
            read = 0
            async with log.subscribe(EVENTS, group="slow", max_records=2) as subscription, asyncio.timeout(PATIENCE):
                async for batches in subscription:
                    read += len(contents(batches))
                    if read == 151:
                        break
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert peak < 64_000_000


async def test_closing_waits_for_appends_in_flight(open_log: Open) -> None:
    async with open_log(partitions=1) as log:
        appends = [asyncio.create_task(log.append(EVENTS, numbered(1, first=n))) for n in range(50)]
        await asyncio.sleep(0)
    await asyncio.gather(*appends)
    async with open_log() as log:
        assert await log.bounds(EVENTS) == {0: (0, 50)}


# ── Groups ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_was_not_committed_comes_again(open_log: Open) -> None:
    async with open_log() as log:
        await log.append(EVENTS, [record for n in range(8) for record in numbered(5, f"key-{n}")])
        first = await taken(log, 40)
        second = await taken(log, 40)

    assert Counter(contents(first)) == Counter(contents(second))


async def test_what_was_committed_does_not_come_again(open_log: Open) -> None:
    async with open_log(partitions=1) as log:
        await log.append(EVENTS, numbered(5))
        await taken(log, 5, commit=True)
        await log.append(EVENTS, numbered(2, first=5))

        assert contents(await taken(log, 2)) == [b"5", b"6"]
        assert contents(await taken(log, 7, group="another")) == [b"%d" % n for n in range(7)]


async def test_a_commit_is_remembered_when_the_log_is_opened_again(open_log: Open) -> None:
    async with open_log(partitions=2) as log:
        await log.append(EVENTS, numbered(5))
        held = (await taken(log, 5, commit=True))[0].partition
    async with open_log() as log:
        assert await log.committed(EVENTS, "g") == {held: 5}
        assert await log.committed(EVENTS, "never seen") == {}


async def test_committing_a_part_leaves_the_rest(open_log: Open) -> None:
    async with open_log(partitions=1) as log:
        await log.append(EVENTS, numbered(10))
        async with log.subscribe(EVENTS, group="g", max_records=4) as subscription:
            first = (await take(subscription, 4))[:]
            await take(subscription, 4)
            await subscription.commit(first)

        assert contents(await taken(log, 6)) == [b"%d" % n for n in range(4, 10)]


async def test_one_yield_holds_at_most_the_records_asked_for_and_each_comes_once(open_log: Open) -> None:
    async with open_log() as log:
        await log.append(EVENTS, [record for n in range(20) for record in numbered(50, f"key-{n}")])
        sizes, seen = [], Counter[tuple[int, int]]()
        async with log.subscribe(EVENTS, group="g", max_records=37) as subscription, asyncio.timeout(PATIENCE):
            async for batches in subscription:
                sizes.append(len(contents(batches)))
                seen.update((batch.partition, record.offset) for batch in batches for record in batch.records)
                if seen.total() >= 1_000:
                    break

    assert max(sizes) <= 37
    assert seen.total() == len(seen) == 1_000


async def test_a_batch_is_consecutive_and_says_where_reading_goes_on(open_log: Open) -> None:
    async with open_log() as log:
        await log.append(EVENTS, [record for n in range(20) for record in numbered(50, f"key-{n}")])
        position: dict[int, int] = {}
        for batch in await taken(log, 1_000):
            offsets = [record.offset for record in batch.records]
            assert offsets == list(range(position.get(batch.partition, 0), batch.next_offset))
            position[batch.partition] = batch.next_offset
        assert position == {partition: end for partition, (_, end) in (await log.bounds(EVENTS)).items() if end}


async def test_a_subscription_that_waits_is_woken_by_an_append(open_log: Open) -> None:
    async with open_log(partitions=1) as log, consuming(log) as consumer:
        await until(lambda: consumer.assigned == {0})
        await log.append(EVENTS, numbered(1))
        await until(lambda: contents(consumer.batches) == [b"0"])
        await log.append(EVENTS, numbered(1, first=1))
        await until(lambda: contents(consumer.batches) == [b"0", b"1"])


async def test_two_members_share_all_partitions_and_never_one(open_log: Open) -> None:
    async with open_log() as log, consuming(log) as one:
        await until(lambda: one.assigned == {0, 1, 2, 3})
        async with consuming(log) as other:
            await until(lambda: len(one.assigned) == len(other.assigned) == 2)
            assert one.assigned | other.assigned == {0, 1, 2, 3}


async def test_members_of_different_groups_each_hold_all(open_log: Open) -> None:
    async with open_log() as log, consuming(log, group="one") as one, consuming(log, group="other") as other:
        await until(lambda: one.assigned == other.assigned == {0, 1, 2, 3})


async def test_the_partitions_of_a_member_that_leaves_move_over_with_what_it_had_not_committed(open_log: Open) -> None:
    async with open_log() as log, consuming(log) as stays:
        stays.commits = True
        async with consuming(log) as leaves:
            await until(lambda: len(stays.assigned) == len(leaves.assigned) == 2)
            await log.append(EVENTS, [record for n in range(20) for record in numbered(5, f"key-{n}")])
            await until(lambda: len(contents(stays.batches)) + len(contents(leaves.batches)) == 100)
            uncommitted = Counter(contents(leaves.batches))
            before = len(stays.batches)
        await until(lambda: stays.assigned == {0, 1, 2, 3})
        await until(lambda: Counter(contents(stays.batches[before:])) == uncommitted)


async def test_committing_a_partition_that_was_lost_says_so_and_commits_those_still_held(open_log: Open) -> None:
    async with open_log() as log:
        await log.append(EVENTS, [record for n in range(20) for record in numbered(5, f"key-{n}")])
        async with consuming(log) as one:
            await until(lambda: len(contents(one.batches)) == 100)
            async with consuming(log) as other:
                await until(lambda: len(one.assigned) == len(other.assigned) == 2)
                kept, lost = one.assigned, other.assigned
                with pytest.raises(PartitionLost) as raised:
                    await one.subscription.commit(one.batches)

                assert raised.value.partitions == lost
                assert (await log.committed(EVENTS, "g")).keys() == kept


async def test_a_batch_from_before_its_partition_was_lost_and_regained_cannot_be_committed(open_log: Open) -> None:
    """Another member has committed more in between: what it did must not be undone."""
    async with open_log(partitions=2) as log:
        await log.append(EVENTS, [record for n in range(20) for record in numbered(5, f"key-{n}")])
        async with consuming(log) as one:
            await until(lambda: len(contents(one.batches)) == 100)
            old = list(one.batches)
            async with consuming(log) as other:
                other.commits = True
                await until(lambda: len(one.assigned) == len(other.assigned) == 1)
                moved = other.assigned
                ours = sum(len(batch.records) for batch in old if batch.partition in moved)
                await until(lambda: len(contents(other.batches)) == ours)
                ends = {partition: (await log.bounds(EVENTS))[partition][1] for partition in moved}
            await until(lambda: one.assigned == {0, 1})
            with pytest.raises(PartitionLost) as raised:
                await one.subscription.commit([batch for batch in old if batch.partition in moved])

        assert raised.value.partitions == moved
        assert await log.committed(EVENTS, "g") == ends


# ── Where a member begins ─────────────────────────────────────────────────────────────────────────────────────────


async def test_positions_that_the_caller_keeps_go_before_the_committed_ones(open_log: Open) -> None:
    asked: list[Sequence[int]] = []

    async def start(partitions: Sequence[int]) -> Mapping[int, int]:
        asked.append(sorted(partitions))
        return {0: 2}

    async with open_log(partitions=1) as log:
        await log.append(EVENTS, numbered(6))
        await taken(log, 6, commit=True)
        async with log.subscribe(EVENTS, group="g", start=start) as subscription:
            batches = await take(subscription, 4)

    assert contents(batches) == [b"2", b"3", b"4", b"5"]
    assert asked == [[0]]


async def test_partitions_left_out_by_the_caller_begin_where_the_group_had_committed(open_log: Open) -> None:
    async def start(partitions: Sequence[int]) -> Mapping[int, int]:
        return {}

    async with open_log(partitions=1) as log:
        await log.append(EVENTS, numbered(3))
        await taken(log, 3, commit=True)
        await log.append(EVENTS, numbered(1, first=3))
        async with log.subscribe(EVENTS, group="g", start=start) as subscription:
            assert contents(await take(subscription, 1)) == [b"3"]


async def test_the_caller_is_asked_about_partitions_gained_later_before_their_records_come(open_log: Open) -> None:
    asked: list[int] = []

    async def start(partitions: Sequence[int]) -> Mapping[int, int]:
        assert not any(batch.partition in partitions for batch in stays.batches)
        asked.extend(partitions)
        return dict.fromkeys(partitions, 1)

    async with open_log() as log, AsyncExitStack() as later:
        await log.append(EVENTS, [record for n in range(20) for record in numbered(5, f"key-{n}")])
        async with consuming(log) as leaves:
            await until(lambda: len(leaves.assigned) == 4)
            stays = await later.enter_async_context(consuming(log, start=start))
            await until(lambda: len(stays.assigned) == len(leaves.assigned) == 2)
        await until(lambda: len(contents(stays.batches)) == 100 - 4)

    assert sorted(asked) == [0, 1, 2, 3]
    assert {batch.records[0].offset for batch in stays.batches if batch.records[0].offset < 2} == {1}


# ── Reading outside any group ─────────────────────────────────────────────────────────────────────────────────────


async def test_reading_by_offset_gives_what_is_there_and_nothing_at_the_end(open_log: Open) -> None:
    async with open_log(partitions=1) as log:
        await log.append(EVENTS, numbered(5))
        await log.append(EVENTS, numbered(5, first=5))
        middle = await log.read(EVENTS, 0, 3, max_records=4)

        assert middle == Batch(EVENTS, 0, [Record(b"k", b"%d" % n, NOW + n, n) for n in range(3, 7)], 7)
        assert await log.read(EVENTS, 0, 10) is None
        assert await log.committed(EVENTS, "g") == {}


async def test_a_time_is_found_among_the_records(open_log: Open) -> None:
    async with open_log(partitions=1) as log:
        for n in range(10):
            await log.append(EVENTS, [Record(b"k", b"v", NOW + 100 * n) for _ in range(3)])

        assert [await log.offset_at(EVENTS, 0, NOW + at) for at in (-5, 0, 1, 400, 401, 900, 901)] == [
            0,
            0,
            3,
            12,
            15,
            27,
            30,
        ]


async def test_bounds_follow_what_is_appended(open_log: Open) -> None:
    async with open_log(partitions=2) as log:
        await log.append(EVENTS, numbered(7))
        held = partition_of(b"k", 2)
        assert await log.bounds(EVENTS) == {held: (0, 7), 1 - held: (0, 0)}


# ── Retention ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def _outgrow(log: Log, topic: str, megabytes: int) -> None:
    for n in range(2 * megabytes):
        # Random, since a broker counts the bytes it keeps, and those are compressed.
        await log.append(topic, [Record(b"k", b"%d\0" % n + os.urandom(500_000), int(time.time() * 1000))])


async def _earliest(log: Log, topic: str) -> int:
    return (await log.bounds(topic))[0][0]


async def _until_expired(log: Log, topic: str) -> int:
    async with asyncio.timeout(PATIENCE):
        while not (earliest := await _earliest(log, topic)):
            await asyncio.sleep(0.05)
    return earliest


async def test_a_topic_larger_than_retention_loses_its_oldest_records_and_readers_go_on_at_the_earliest_left(
    open_log: Open,
) -> None:
    async with open_log(partitions=1, retention=Retention(bytes=8 << 20)) as log:
        await _outgrow(log, EVENTS, 24)
        await _until_expired(log, EVENTS)
        batch = await log.read(EVENTS, 0, 0, max_records=1)
        async with log.subscribe(EVENTS, group="g", max_records=1) as subscription:
            first = (await take(subscription, 1))[0]
        earliest = await _earliest(log, EVENTS)

        assert batch is not None
        assert 0 < batch.records[0].offset <= first.records[0].offset <= earliest
        assert batch.records[0].value.startswith(b"%d\0" % batch.records[0].offset)


async def test_records_older_than_retention_go(open_log: Open) -> None:
    async with open_log(partitions=1, retention=Retention(seconds=2)) as log:
        await log.append(EVENTS, [Record(b"k", b"old", int(time.time() * 1000))])
        assert await _until_expired(log, EVENTS) == 1

        await log.append(EVENTS, [Record(b"k", b"new", int(time.time() * 1000))])
        batch = await log.read(EVENTS, 0, 0)
        assert batch is not None
        assert contents([batch]) == [b"new"]
