"""Requests out and answers back, over connections that are kept."""

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Self

from destinations.guard import Outbound
from destinations.http.answer import Answer
from destinations.http.dial import Dialer
from destinations.http.failure import LOST, ExchangeFailed
from destinations.http.pool import Dial, Pool
from destinations.http.request import Origin, Request

MAX_BODY_BYTES: Final = 65_536  # of an answer, unless asked for more
CONNECTIONS: Final = 100  # at most, to one origin
IDLE: Final = 15.0  # seconds that an unused connection is kept
CONNECT: Final = 10.0  # seconds for the connection, TLS included
FAREWELL: Final = 0.25  # seconds that closing waits for services to say good-bye
_NONE: Final[Mapping[str, str]] = MappingProxyType({})


def session(outbound: Outbound) -> "Client":
    """A client that connects to permitted addresses only."""
    return Client(Dialer(outbound))


class Client:
    """An HTTP/1.1 client without cookies, proxies and redirects. Belongs to the running event loop, and is closed by leaving its
    context: what is under way then fails."""

    def __init__(
        self,
        dial: Dial,
        *,
        connections: int = CONNECTIONS,
        idle: float = IDLE,
        connect: float = CONNECT,
        first_byte: float | None = None,
    ) -> None:
        self._dial = dial
        self._connections, self._idle, self._connect, self._first_byte = connections, idle, connect, first_byte
        self._pools: dict[Origin, Pool] = {}
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def request(
        self,
        method: str,
        url: str,
        *,
        timeout: float,
        headers: Mapping[str, str] = _NONE,
        body: bytes = b"",
        most: int = MAX_BODY_BYTES,
    ) -> Answer:
        """One request, and its answer as `send` gives it."""
        return await self.send(Request(method, url, headers), body, timeout=timeout, most=most)

    async def send(
        self,
        request: Request,
        body: bytes = b"",
        headers: Mapping[str, str] = _NONE,
        *,
        timeout: float,
        most: int = MAX_BODY_BYTES,
    ) -> Answer:
        """The answer to a request, whatever its status; at most `most` bytes of its body. `timeout` is seconds for everything,
        waiting for a connection included. Raises ExchangeFailed when no status came.

        It is sent a second time, on a new connection, when it met one that the service had closed meanwhile: nothing of an answer came,
        and a request before it was answered."""
        data = request.written(body, headers)
        now = asyncio.get_running_loop().time()
        total = now + timeout
        first = total if self._first_byte is None else now + self._first_byte
        pool = self._pool(request.origin)
        fresh = False
        while True:
            resting = pool.resting
            connection = resting.pop() if resting and not fresh else await pool.lease(total, fresh=fresh)
            try:
                return await connection.exchange(data, first=first, total=total, most=most, head_only=request.head_only)
            except ExchangeFailed:
                if not connection.stale:
                    raise
                fresh = True
            finally:
                pool.release(connection)

    def _pool(self, origin: Origin) -> Pool:
        pool = self._pools.get(origin)
        if pool is None:
            if self._closed:
                raise ExchangeFailed(LOST)
            self._pools = {known: one for known, one in self._pools.items() if not one.unused}
            pool = self._pools[origin] = Pool(
                origin, self._dial, bound=self._connections, idle=self._idle, connect=self._connect
            )
        return pool

    async def close(self) -> None:
        """Closes every connection. Requests that are under way fail."""
        self._closed = True
        await asyncio.gather(*(pool.close(FAREWELL) for pool in self._pools.values()))
