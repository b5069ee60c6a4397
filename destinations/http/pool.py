"""The connections to one origin: at most so many, the one used last first.

Each connection that is open or being made holds a slot. A slot is passed on to whoever has waited longest, with the connection in it if
that can be used again.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

from destinations.http.connection import Connection
from destinations.http.failure import LOST, TIMEOUT, ExchangeFailed
from destinations.http.request import Origin

Dial = Callable[[Origin, Callable[[], Connection]], Awaitable[Connection]]
"""Makes a connection. Raises ExchangeFailed, and cleans up behind itself when it is cancelled."""


class Pool:
    """`bound` is the most connections at once; `idle` and `connect` are seconds that one may rest and that making one may take."""

    def __init__(self, origin: Origin, dial: Dial, *, bound: int, idle: float, connect: float) -> None:
        self._origin, self._dial = origin, dial
        self._bound, self._idle, self._connect = bound, idle, connect
        self._loop = asyncio.get_running_loop()
        self._slots = 0
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self.resting: list[Connection] = []
        self._open: set[Connection] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._closed = False

    @property
    def unused(self) -> bool:
        """Nobody has or wants a connection."""
        return not (self._slots or self._waiting or self._open)

    async def lease(self, deadline: float, *, fresh: bool) -> Connection:
        """A connection, for its holder alone until `release`; `fresh`: one that nothing has been sent on. Raises ExchangeFailed, at the
        latest at `deadline` of the loop's clock."""
        try:
            async with asyncio.timeout_at(deadline):
                connection = await self._slot()
                if connection is not None and fresh:
                    connection.close()  # its slot is ours
                    connection = None
                if connection is not None:
                    return connection
                return await self._made()
        except TimeoutError as error:
            raise ExchangeFailed(TIMEOUT) from error

    def release(self, connection: Connection) -> None:
        """Gives it back, in whatever state it is."""
        if not connection.reusable:
            connection.abort()
            self._pass_on(None)
            return
        connection.rest(self._loop.time() + self._idle)
        self._pass_on(connection)

    async def close(self, farewell: float) -> None:
        """Closes every connection, within `farewell` seconds where nothing is under way on it; the rest at once. Nobody gets one any more."""
        self._closed = True
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(ExchangeFailed(LOST))
        for connection in self._open.difference(self.resting):
            connection.abort()
        for connection in self.resting:
            connection.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(farewell):
                await self._empty.wait()
        for connection in self._open:
            connection.abort()
        await asyncio.sleep(0)  # for the loop to close their sockets

    async def _slot(self) -> Connection | None:
        if self._closed:
            raise ExchangeFailed(LOST)
        if self.resting:
            return self.resting.pop()
        if self._slots < self._bound:
            self._slots += 1
            return None
        turn: asyncio.Future[Connection | None] = self._loop.create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it came too late for us
                self._pass_on(turn.result())
            raise

    async def _made(self) -> Connection:
        try:
            async with asyncio.timeout(self._connect):
                connection = await self._dial(self._origin, partial(Connection, self._lost))
        except BaseException:
            self._pass_on(None)
            raise
        if connection.alive:
            self._open.add(connection)
            self._empty.clear()
        if self._closed:
            connection.abort()
        return connection

    def _lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        if not self._open:
            self._empty.set()
        if connection in self.resting:
            self.resting.remove(connection)
            self._pass_on(None)

    def _pass_on(self, connection: Connection | None) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(connection)
                return
        if connection is None:
            self._slots -= 1
        else:
            self.resting.append(connection)
