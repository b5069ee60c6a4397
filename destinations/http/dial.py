"""Connections made: a name looked up, its addresses judged, one of them connected to, TLS.

What is judged is the very address that is connected to, so a name that changes its address in between gains nothing. Of several, each
has a quarter of a second before the next is tried beside it (RFC 8305).
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import chain, zip_longest
from typing import Final, cast

from destinations.guard import Network, Outbound, permitted
from destinations.http.connection import Connection
from destinations.http.failure import (
    ADDRESS_REFUSED,
    CANNOT_CONNECT,
    HOST_NOT_FOUND,
    REFUSED,
    TLS_FAILED,
    ExchangeFailed,
)
from destinations.http.request import Origin

Address = tuple[str, int] | tuple[str, int, int, int]  # of IPv4, of IPv6
Resolve = Callable[[str, int], Sequence[Address]]
"""The addresses of a host, best first and at least one; blocks. OSError or UnicodeError when there is none."""

STAGGER: Final = 0.25  # seconds
REMEMBERED: Final = 10.0  # seconds that an answer of the name service is good for
_LOOKUPS: Final = 2  # at once: a name service that hangs holds up this dialer's destination and no other


def look_up(host: str, port: int) -> Sequence[Address]:
    """Asks the system."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [cast(Address, one[4]) for one in found]


class Dialer:
    """Makes connections to permitted addresses only."""

    def __init__(self, outbound: Outbound, *, resolve: Resolve = look_up) -> None:
        self._allow, self._trust, self._resolve = outbound.allow, outbound.trust, resolve
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="look-up")
        self._asked: dict[tuple[str, int], tuple[float, Future[Sequence[Address]]]] = {}

    async def __call__(self, origin: Origin, made: Callable[[], Connection]) -> Connection:
        """A connection to `origin`. Raises ExchangeFailed."""
        candidates = judged(await self._addresses(origin.host, origin.port), self._allow)
        connected = await _first(interleaved(candidates))
        context = (self._trust or _system_trust()) if origin.scheme == "https" else None
        name = origin.host.rstrip(".") if context else None
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                made, sock=connected, ssl=context, server_hostname=name
            )
        except OSError as error:  # ssl.SSLError among them; the socket is the transport's, which has closed it
            raise ExchangeFailed(TLS_FAILED if context else CANNOT_CONNECT) from error
        return connection

    async def _addresses(self, host: str, port: int) -> Sequence[Address]:
        """One look-up at a time for each host, remembered for a while when it was answered."""
        now = asyncio.get_running_loop().time()
        until, asked = self._asked.get((host, port), (0.0, None))
        if asked is None or (asked.done() and (until < now or asked.exception() is not None)):
            asked = self._threads.submit(self._resolve, host, port)
            self._asked = {key: one for key, one in self._asked.items() if one[0] >= now or not one[1].done()}
            self._asked[host, port] = now + REMEMBERED, asked
        try:
            return await asyncio.shield(asyncio.wrap_future(asked))
        except (OSError, UnicodeError) as error:
            raise ExchangeFailed(HOST_NOT_FOUND) from error


def judged(addresses: Sequence[Address], allow: Sequence[Network]) -> Sequence[Address]:
    """Those that may be connected to. ExchangeFailed when none may."""
    kept = [one for one in addresses if permitted(one[0], allow)]
    if not kept:
        raise ExchangeFailed(ADDRESS_REFUSED)
    return kept


def interleaved(addresses: Sequence[Address]) -> Sequence[Address]:
    """The families by turns, beginning with that of the first: one of them may lead nowhere from here."""
    families = [len(one) for one in addresses]
    same = [one for one in addresses if len(one) == families[0]]
    other = [one for one in addresses if len(one) != families[0]]
    return [one for one in chain.from_iterable(zip_longest(same, other)) if one is not None]


async def _first(addresses: Sequence[Address]) -> socket.socket:
    """A socket connected to the first address that answers. Raises ExchangeFailed."""
    if len(addresses) == 1:
        return await _connected(addresses[0])
    waiting, running = list(addresses), set[asyncio.Task[socket.socket]]()
    failed: ExchangeFailed | None = None
    try:
        while waiting or running:
            if waiting:
                running.add(asyncio.create_task(_connected(waiting.pop(0))))
            done, running = await asyncio.wait(
                running, timeout=STAGGER if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for one in done:
                error = one.exception()
                if error is None:
                    running |= done - {one}
                    return one.result()
                failed = failed or (error if isinstance(error, ExchangeFailed) else None)
        raise failed or ExchangeFailed(CANNOT_CONNECT)
    finally:
        for one in running:
            one.cancel()
        for late in await asyncio.gather(*running, return_exceptions=True):
            if isinstance(late, socket.socket):
                late.close()


async def _connected(address: Address) -> socket.socket:
    made = socket.socket(socket.AF_INET if len(address) == 2 else socket.AF_INET6, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        await asyncio.get_running_loop().sock_connect(made, address)
    except OSError as error:
        made.close()
        raise ExchangeFailed(REFUSED if isinstance(error, ConnectionRefusedError) else CANNOT_CONNECT) from error
    except BaseException:
        made.close()
        raise
    return made


@cache
def _system_trust() -> ssl.SSLContext:
    return ssl.create_default_context()
