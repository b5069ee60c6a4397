"""The embedded log under random operations, crashes among them, does what a ten-line model does."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pipeline.log.contract import Batch, Record, Retention
from pipeline.log.embedded import EmbeddedLog, open_embedded
from pipeline.log.embedded.frame import POSITION_MASK, encode_frame, packed, segment_of
from pipeline.log.embedded.subscription import EmbeddedSubscription
from schemas.errors import PartitionLost
from schemas.topics import EVENTS, partition_of

PARTITIONS = 3
RETENTION = Retention(bytes=1 << 20)  # segments of 128 KiB, so that some expire
QUIET = 0.06  # seconds after which a member that got nothing has looked at its group twice


@dataclass
class Model:
    """What a log is: records per partition, and what the group has committed."""

    records: list[list[bytes]] = field(default_factory=lambda: [[] for _ in range(PARTITIONS)])
    committed: dict[int, int] = field(default_factory=dict)

    def append(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        for key, value in zip(keys, values, strict=True):
            self.records[partition_of(key, PARTITIONS)].append(value)


@dataclass
class Joined:
    """A member, what it was given and has not committed, and where it goes on per partition it holds."""

    stack: AsyncExitStack
    subscription: EmbeddedSubscription
    uncommitted: list[Batch] = field(default_factory=list)
    positions: dict[int, int] = field(default_factory=dict)


class LogMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.runner = asyncio.Runner()
        self.model = Model()
        self.members: list[Joined] = []
        self.lives = 0
        self.number = 0
        self.runner.run(self._open(self.root / "0"))

    async def _open(self, folder: Path) -> None:
        self.folder = folder
        self.stack = AsyncExitStack()
        opening = open_embedded(folder, partitions=PARTITIONS, retention=RETENTION)
        self.log: EmbeddedLog = await self.stack.enter_async_context(opening)

    def _new_values(self, sizes: Sequence[int]) -> list[bytes]:
        values = [b"%d " % (self.number + n) + bytes(size) for n, size in enumerate(sizes)]
        self.number += len(sizes)
        return values

    @rule(records=st.lists(st.tuples(st.sampled_from(b"abcdef"), st.sampled_from((0, 1, 700, 30_000))), max_size=12))
    def append(self, records: list[tuple[int, int]]) -> None:
        keys = [b"%c" % key for key, _ in records]
        values = self._new_values([size for _, size in records])
        appended = [Record(key, value, 1) for key, value in zip(keys, values, strict=True)]
        self.runner.run(self.log.append(EVENTS, appended))
        self.model.append(keys, values)

    @precondition(lambda self: len(self.members) < 3)
    @rule()
    def join(self) -> None:
        async def join() -> None:
            stack = AsyncExitStack()
            subscribing = self.log.subscribe(EVENTS, group="g", max_records=5)
            self.members.append(Joined(stack, await stack.enter_async_context(subscribing)))

        self.runner.run(join())

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        member = self.members.pop(data.draw(st.integers(0, len(self.members) - 1)))
        self.runner.run(member.stack.aclose())

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def poll(self, data: st.DataObject) -> None:
        member = data.draw(st.sampled_from(self.members))
        before = member.subscription.assigned
        batches = self.runner.run(self._news(member))
        after = member.subscription.assigned
        for partition in after - before:
            member.positions[partition] = self.model.committed.get(partition, 0)
        for partition in before - after:
            del member.positions[partition]
        assert sum(len(batch.records) for batch in batches) <= 5
        for batch in batches:
            self._check(member, batch)
        member.uncommitted += batches

    async def _news(self, member: Joined) -> Sequence[Batch]:
        try:
            async with asyncio.timeout(QUIET):
                return await anext(aiter(member.subscription))
        except TimeoutError:
            return []

    def _check(self, member: Joined, batch: Batch) -> None:
        expected, got = member.positions[batch.partition], batch.records[0].offset
        assert got == expected or expected < got <= self._earliest(batch.partition)
        assert [record.value for record in batch.records] == self.model.records[batch.partition][
            got : batch.next_offset
        ]
        assert [record.offset for record in batch.records] == list(range(got, batch.next_offset))
        member.positions[batch.partition] = batch.next_offset

    def _earliest(self, partition: int) -> int:
        return self.runner.run(self.log.bounds(EVENTS))[partition][0]

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        member = data.draw(st.sampled_from(self.members))
        held = member.subscription.assigned
        batches, member.uncommitted = member.uncommitted, []
        lost = self.runner.run(self._commit(member, batches))
        assert lost >= {batch.partition for batch in batches} - held  # the others were lost and regained meanwhile
        before = dict(self.model.committed)
        for batch in batches:
            if batch.partition not in lost:
                self.model.committed[batch.partition] = batch.next_offset
        assert all(self.model.committed[partition] >= offset for partition, offset in before.items())

    async def _commit(self, member: Joined, batches: Sequence[Batch]) -> frozenset[int]:
        try:
            await member.subscription.commit(batches)
        except PartitionLost as lost:
            return lost.partitions
        return frozenset()

    @rule()
    def close_and_open(self) -> None:
        self._leave_all()
        self.runner.run(self.stack.aclose())
        self.runner.run(self._open(self.folder))

    @rule(torn=st.floats(0, 1), garbage=st.binary(max_size=40))
    def lose_power(self, torn: float, garbage: bytes) -> None:
        """Goes on with the files as they are on the disk, a last write cut anywhere (but for its padding, which is zeros
        anyway) and followed by anything."""
        self.lives += 1
        after = self.root / str(self.lives)
        shutil.copytree(self.folder, after)
        tail = self.log._journals[EVENTS].tail()
        buffers, _ = encode_frame(packed([[(b"a", b"not ", b"acknowledged", 1)], [], []]), tail, 1)
        frame = b"".join(buffers)
        descriptor = os.open(after / EVENTS / f"{segment_of(tail.at):010}.segment", os.O_RDWR)
        os.pwrite(descriptor, frame[: int((len(frame) - 8) * torn)] + garbage, tail.at & POSITION_MASK)
        os.close(descriptor)
        self._leave_all()
        self.runner.run(self.stack.aclose())
        shutil.rmtree(self.folder)
        self.runner.run(self._open(after))

    def _leave_all(self) -> None:
        for member in self.members:
            self.runner.run(member.stack.aclose())
        self.members.clear()

    @invariant()
    def bounds_and_offsets_agree(self) -> None:
        bounds = self.runner.run(self.log.bounds(EVENTS))
        assert {partition: end for partition, (_, end) in bounds.items()} == {
            partition: len(records) for partition, records in enumerate(self.model.records)
        }
        assert self.runner.run(self.log.committed(EVENTS, "g")) == self.model.committed
        shares = [partition for member in self.members for partition in member.subscription.assigned]
        assert len(shares) == len(set(shares))

    async def _everything(self, partition: int) -> list[bytes]:
        found: list[bytes] = []
        offset = 0
        while batch := await self.log.read(EVENTS, partition, offset, max_records=7):
            found += [record.value for record in batch.records]
            offset = batch.next_offset
        return found

    def teardown(self) -> None:
        try:
            for partition, records in enumerate(self.model.records):
                earliest = self._earliest(partition)
                assert self.runner.run(self._everything(partition)) == records[earliest:]
            self._leave_all()
            self.runner.run(self.stack.aclose())
        finally:
            self.runner.close()
            shutil.rmtree(self.root)


TestLog = pytest.mark.timeout(300)(LogMachine.TestCase)
TestLog.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
