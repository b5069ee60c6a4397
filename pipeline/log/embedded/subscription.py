"""A member of a consumer group reading the journal: one cursor for all of its partitions.

The cursor walks the whole journal once; a partition gained later moves it back to where that partition goes on, and what the
others have had already is passed over.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

import structlog

from pipeline.log.contract import Batch, Record, Start
from pipeline.log.embedded.groups import Member
from pipeline.log.embedded.journal import Gone, Journal
from pipeline.log.embedded.poller import Poller
from pipeline.log.embedded.reader import Cursor, Finder, Found
from schemas.errors import PartitionLost

log = structlog.get_logger()

MAX_YIELD: Final = 8 << 20  # bytes of the journal walked for one yield


class EmbeddedSubscription:
    """See `pipeline.log.contract.Subscription`."""

    def __init__(
        self, journal: Journal, finder: Finder, poller: Poller, member: Member, start: Start | None, max_records: int
    ) -> None:
        self._journal = journal
        self._finder = finder
        self._poller = poller
        self._member = member
        self._start = start
        self._max_records = max_records
        self._cursor = Cursor(journal, journal.end)
        self._wanted: dict[int, int] = {}  # partition → offset of the next record to hand over
        self._began: dict[int, int] = {}  # partition → first offset handed over since it was assigned
        self._decoded: dict[int, int] = {}  # partition → next offset to decode; ahead of wanted by what is in carry
        self._carry: dict[int, list[Record]] = {}

    @property
    def assigned(self) -> frozenset[int]:
        """The partitions held now."""
        return self._member.held

    async def __aiter__(self) -> AsyncIterator[Sequence[Batch]]:
        while True:
            self._member.check(time.monotonic())
            await self._follow_assignment()
            end = self._journal.end
            batches = self._batches()
            if batches:
                yield batches
                await asyncio.sleep(0)  # a consumer that never waits must not starve the loop
            else:
                await self._poller.changed(self._journal, end, self._member)

    async def commit(self, batches: Sequence[Batch]) -> None:
        """Writes the positions; durable against a killed process at once, against a power failure soon."""
        lost = {batch.partition for batch in batches if not self._has_yielded(batch)}
        for batch in batches:
            if batch.partition not in lost:
                self._member.commit(batch.partition, batch.next_offset)
        if lost:
            raise PartitionLost(lost)

    def close(self) -> None:
        """Leaves the group: its partitions are free at once."""
        self._cursor.close()
        self._member.leave()

    def _has_yielded(self, batch: Batch) -> bool:
        """Whether the partition has been held ever since this batch was yielded."""
        partition = batch.partition
        return (
            self._member.holds(partition)
            and partition in self._wanted
            and self._began[partition] <= batch.records[0].offset
            and batch.next_offset <= self._wanted[partition]
        )

    # ── Assignment ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _follow_assignment(self) -> None:
        held = self._member.held
        for partition in self._wanted.keys() - held:
            for positions in (self._wanted, self._began, self._decoded, self._carry):
                positions.pop(partition, None)
        fresh = sorted(held - self._wanted.keys())
        if not fresh:
            return
        own = await self._start(fresh) if self._start else {}
        starts = {partition: self._first_offset(partition, own.get(partition)) for partition in fresh}
        places = await asyncio.to_thread(self._places, starts)
        self._cursor.seek(min(self._cursor.at, *places))
        for partition, offset in starts.items():
            self._wanted[partition] = self._began[partition] = self._decoded[partition] = offset
        log.info("partitions assigned", topic=self._journal.folder.name, member=self._member.name, held=sorted(held))

    def _places(self, starts: dict[int, int]) -> Sequence[int]:
        return [self._finder.place_of(partition, offset) for partition, offset in starts.items()]

    def _first_offset(self, partition: int, own: int | None) -> int:
        offset = own if own is not None else self._member.committed(partition)
        end = self._journal.tail().next_offsets[partition]
        if offset is not None and offset > end:
            log.warning(
                "position beyond the log, reading from the earliest", partition=partition, offset=offset, end=end
            )
            offset = None
        return max(0, offset or 0)

    # ── Reading ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _batches(self) -> Sequence[Batch]:
        """The next records of the partitions held, at most `max_records`."""
        room = self._max_records - sum(map(len, self._carry.values()))
        walked = 0
        while room > 0 and walked < MAX_YIELD:
            found = self._next()
            if found is None:
                break
            walked += found.frame.length
            room -= self._take(found)
        return self._hand_over()

    def _next(self) -> Found | None:
        while True:
            try:
                return self._cursor.next()
            except Gone:
                log.warning("log read too late, records expired", topic=self._journal.folder.name)
                self._cursor.seek(self._journal.first().tail.at)

    def _take(self, found: Found) -> int:
        taken = 0
        for partition, records in found.records(self._decoded):
            self._decoded[partition] = records[-1].offset + 1
            taken += len(records)
            if partition in self._carry:
                self._carry[partition] += records
            else:
                self._carry[partition] = records
        return taken

    def _hand_over(self) -> Sequence[Batch]:
        room = self._max_records
        batches = []
        for partition in list(self._carry):  # those left over last time come first
            records = self._carry.pop(partition)
            if len(records) > room:
                self._carry[partition] = records[room:]
                records = records[:room]
            if records:
                self._wanted[partition] = next_offset = records[-1].offset + 1
                batches.append(Batch(self._journal.folder.name, partition, records, next_offset))
                room -= len(records)
        return batches
