"""The embedded log as one object: its topics, their writers, the subscriptions, the upkeep of retention."""

import asyncio
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import structlog

from pipeline.log.contract import Batch, Record, Retention, Scrubbed, Start
from pipeline.log.embedded.groups import Member, committed_offsets, group_folder
from pipeline.log.embedded.journal import Journal
from pipeline.log.embedded.poller import Poller
from pipeline.log.embedded.reader import Finder, Judge, read_forward, retried, scrub_forward
from pipeline.log.embedded.subscription import EmbeddedSubscription
from pipeline.log.embedded.writer import Writer
from schemas.errors import ConfigError, Unavailable
from schemas.topics import TOPICS

log = structlog.get_logger()

MAX_READ: Final = 8 << 20  # bytes of the journal walked for one `read` that has found something
UPKEEP: Final = (0.05, 60.0)  # seconds between two looks for expired segments, at least and at most


class EmbeddedLog:
    """See `pipeline.log.contract.Log`. Belongs to the event loop it was opened in."""

    def __init__(self, journals: Mapping[str, Journal]) -> None:
        self._journals = journals
        self._finders = {topic: Finder(journal) for topic, journal in journals.items()}
        self._poller = Poller()
        self._writers = {topic: Writer(journal, self._poller.look_now) for topic, journal in journals.items()}

    def append(self, topic: str, records: Sequence[Record]) -> Coroutine[Any, Any, None]:
        self._journal(topic)
        return self._writers[topic].append(records)  # which keeps no record that it has copied

    @asynccontextmanager
    async def subscribe(
        self, topic: str, *, group: str, start: Start | None = None, max_records: int = 2_000
    ) -> AsyncIterator[EmbeddedSubscription]:
        journal = self._journal(topic)
        member = Member(group_folder(journal.folder, group), journal.partitions)
        subscription = EmbeddedSubscription(journal, self._finders[topic], self._poller, member, start, max_records)
        try:
            yield subscription
        finally:
            subscription.close()

    async def read(self, topic: str, partition: int, offset: int, *, max_records: int = 1_000) -> Batch | None:
        journal = self._journal(topic)
        if offset >= journal.tail().next_offsets[partition]:
            return None

        def find() -> list[Record]:
            at = self._finders[topic].place_of(partition, offset)
            return read_forward(journal, partition, offset, at, max_records, MAX_READ)

        records = await asyncio.to_thread(retried, find)
        return Batch(topic, partition, records, records[-1].offset + 1) if records else None

    async def bounds(self, topic: str) -> Mapping[int, tuple[int, int]]:
        journal = self._journal(topic)
        earliest = journal.first().tail.next_offsets
        return dict(enumerate(zip(earliest, journal.tail().next_offsets, strict=True)))

    async def offset_at(self, topic: str, partition: int, timestamp: int) -> int:
        self._journal(topic)
        return await asyncio.to_thread(self._finders[topic].first_since, partition, timestamp)

    async def committed(self, topic: str, group: str) -> Mapping[int, int]:
        journal = self._journal(topic)
        return committed_offsets(group_folder(journal.folder, group), journal.partitions)

    async def scrub(self, topic: str, at: int, judge: Judge, *, most: int = MAX_READ) -> Scrubbed:
        """See `pipeline.log.contract.Erasable`."""
        journal = self._journal(topic)
        return await asyncio.to_thread(retried, lambda: scrub_forward(journal, at, judge, most))

    async def place_of(self, topic: str, partition: int, offset: int) -> int:
        """See `pipeline.log.contract.Erasable`."""
        self._journal(topic)
        return await asyncio.to_thread(self._finders[topic].place_of, partition, offset)

    def partitions(self, topic: str) -> int:
        return self._journal(topic).partitions

    async def expire(self, topic: str) -> int:
        """Applies retention now, which otherwise happens every minute at the latest; returns how many segments went."""
        return await asyncio.to_thread(self._journal(topic).expire)

    async def upkeep(self, every: float) -> None:
        """Keeps applying retention, also to topics that nobody writes to."""
        while True:
            await asyncio.sleep(every)
            for topic in self._journals:
                try:
                    await self.expire(topic)
                except Unavailable as error:
                    log.error("log retention failed", topic=topic, error=str(error))

    async def close(self) -> None:
        """Waits for appends in flight."""
        await asyncio.gather(*(writer.close() for writer in self._writers.values()))

    def _journal(self, topic: str) -> Journal:
        try:
            return self._journals[topic]
        except KeyError:
            raise ValueError(f"unknown topic {topic!r}; there are {', '.join(self._journals)}") from None


@asynccontextmanager
async def open_embedded(folder: Path, *, partitions: int, retention: Retention) -> AsyncIterator[EmbeddedLog]:
    """The log in `folder`, made when it is not there. Any number of processes of one machine may have it open.

    ConfigError when the folder cannot be used or is of a newer version."""
    journals = await asyncio.to_thread(_open_journals, folder, partitions, retention)
    try:
        opened = EmbeddedLog(journals)
        upkeep = asyncio.create_task(opened.upkeep(max(UPKEEP[0], min(UPKEEP[1], retention.seconds / 2))))
        try:
            yield opened
        finally:
            upkeep.cancel()
            await asyncio.wait([upkeep])
            await opened.close()
    finally:
        for journal in journals.values():
            journal.close()


def _open_journals(folder: Path, partitions: int, retention: Retention) -> Mapping[str, Journal]:
    if sys.byteorder != "little":
        raise ConfigError("the embedded log needs a little-endian machine; use kafka:// here")
    journals: dict[str, Journal] = {}
    try:
        for topic in TOPICS:
            journals[topic] = Journal(folder / topic, partitions=partitions, retention=retention)
    except BaseException as error:
        for journal in journals.values():
            journal.close()
        if isinstance(error, OSError):
            remedy = "make it a folder that this user can write to, with space left, or choose another data folder"
            raise ConfigError(f"log folder {folder}: {error.strerror}: {remedy}") from error
        raise
    return journals
