"""Keeps record of who read which profile.

Reads are gathered for a second and written in one transaction: a row for each would cost the one writer of SQLite more than the
reading does, and a log file would be one per process, which nobody could ask. When the record cannot be kept, what is
gathered waits, up to a bound; beyond it nothing more is read. A killed process loses the last second."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from pipeline.store import reads
from pipeline.store.database import Database
from pipeline.store.reads import Read, Times
from schemas.errors import MillraceError, Unavailable

GATHERED: Final = 1.0  # seconds
MOST: Final = 100_000  # rows that wait to be written
KEPT: Final = 400 * 24  # hours
_HOUR: Final = 3_600_000_000  # microseconds

log = structlog.get_logger()


class Audit:
    """The record of one process."""

    def __init__(self, database: Database, *, clock: Callable[[], int] = lambda: time.time_ns() // 1_000) -> None:
        self._database, self._clock = database, clock
        self._waiting: dict[Read, Times] = {}
        self._writer: asyncio.Task[None] | None = None
        self._failing = False
        self._cleaned = 0

    def note(self, token: str, resource: str, profiles: Iterable[str]) -> None:
        """Remembers that a token read a resource of profiles. Unavailable when too much is waiting to be written."""
        if len(self._waiting) >= MOST:
            raise Unavailable(
                "reads of profiles cannot be put on record; see that the database can be written", after=5
            )
        now = self._clock()
        hour = now // _HOUR
        for profile in profiles:
            read = Read(profile, token, resource, hour)
            known = self._waiting.get(read)
            self._waiting[read] = Times(1, now, now) if known is None else Times(known.reads + 1, known.first_at, now)
        if self._waiting and self._writer is None:
            self._writer = asyncio.ensure_future(self._write_later())

    async def flush(self) -> None:
        """Writes what is waiting, now."""
        taken, self._waiting = self._waiting, {}
        if not taken:
            return
        try:
            await self._database.run(lambda connection: reads.record(connection, taken))
        except BaseException:
            for read, times in taken.items():
                later = self._waiting.get(read)
                self._waiting[read] = (
                    times if later is None else Times(times.reads + later.reads, times.first_at, later.last_at)
                )
            raise

    async def close(self) -> None:
        """Writes the rest. For the end of a process."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.wait((self._writer,))
        await self._try()

    async def _write_later(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(GATHERED)
                await self._try()
        finally:
            self._writer = None

    async def _try(self) -> None:
        try:
            await self.flush()
            await self._clean()
        except MillraceError as error:
            if not self._failing:
                log.warning("reads of profiles wait to be put on record", error=str(error))
            self._failing = True
        else:
            self._failing = False

    async def _clean(self) -> None:
        hour = self._clock() // _HOUR
        if hour != self._cleaned:
            await self._database.run(lambda connection: reads.forget(connection, hour - KEPT))
            self._cleaned = hour
