"""Notices news for all subscriptions of a process with one timer.

A look costs a load from shared memory. The interval is short while there is traffic and grows when there is none, so that an
idle process costs a fraction of a per cent of a core.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Final

from pipeline.log.embedded.groups import Member
from pipeline.log.embedded.journal import Journal

BUSY: Final = 0.001
IDLE: Final = 0.01
_SLOWER: Final = 1.2


@dataclass(slots=True, eq=False)
class _Waiter:
    journal: Journal
    end: int
    member: Member
    woken: asyncio.Future[None]

    def has_news(self, now: float) -> bool:
        return self.journal.end != self.end or self.member.check(now)


class Poller:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiters: set[_Waiter] = set()
        self._interval = BUSY
        self._timer: asyncio.TimerHandle | None = None

    async def changed(self, journal: Journal, end: int, member: Member) -> None:
        """Returns once the journal's end is another than `end`, or the member's partitions have changed."""
        waiter = _Waiter(journal, end, member, self._loop.create_future())
        self._waiters.add(waiter)
        if self._timer is None:
            self._timer = self._loop.call_later(self._interval, self._look)
        try:
            await waiter.woken
        finally:
            self._waiters.discard(waiter)

    def look_now(self) -> None:
        """What this very process appended need not wait for the timer."""
        if self._waiters and self._timer is not None:
            self._timer.cancel()
            self._look()

    def _look(self) -> None:
        now = time.monotonic()
        news = False
        for waiter in self._waiters:
            if waiter.woken.done():
                continue
            try:
                if waiter.has_news(now):
                    waiter.woken.set_result(None)
                    news = True
            except OSError as error:
                waiter.woken.set_exception(error)
        self._interval = BUSY if news else min(IDLE, self._interval * _SLOWER)
        self._timer = self._loop.call_later(self._interval, self._look) if self._waiters else None
