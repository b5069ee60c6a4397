"""One connection: a request at a time, its answer parsed by llhttp, deadlines kept.

A connection that did anything but answer a request whole, and what follows from it, is never used again.
"""

import asyncio
from collections.abc import Callable
from typing import Final, cast

import httptools

from destinations.http.answer import Answer
from destinations.http.failure import LOST, MALFORMED, TIMEOUT, ExchangeFailed

MAX_HEAD_BYTES: Final = 65_536
"""Of all that is no body: heads, interim ones too, trailers, names of chunks. What comes in a single read may be more."""
_EARLY: Final = 0.001  # seconds by which a loop may fire a timer too soon


class Connection(asyncio.Protocol):
    """`gone` is told when it is lost, busy or not."""

    __slots__ = (
        "_armed",
        "_around",
        "_body",
        "_deadline",
        "_fault",
        "_future",
        "_gone",
        "_head_only",
        "_headers",
        "_kept",
        "_left",
        "_loop",
        "_parser",
        "_status",
        "_timer",
        "_total",
        "_transport",
        "alive",
        "exchanges",
        "heard",
    )

    def __init__(self, gone: "Callable[[Connection], None]") -> None:
        self._gone = gone
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._future: asyncio.Future[Answer] | None = None
        self._fault = ""  # set: not to be used again, and why
        self._timer: asyncio.TimerHandle | None = None
        self._armed = self._deadline = self._total = 0.0
        self._kept = False
        self.alive = False  # made and not lost
        self.exchanges = 0  # begun on it
        self.heard = False  # something of the answer to the last one has come
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._begin(0, False)

    # ── What the pool and the client do with it ──────────────────────────────────────────────────────────────────────

    def exchange(
        self, data: bytes, *, first: float, total: float, most: int, head_only: bool
    ) -> "asyncio.Future[Answer]":
        """Sends a request. The answer, with at most `most` bytes of its body, or ExchangeFailed: in time, by the loop's clock, for the
        first byte of it and for all of it. Cancelling it before it is done leaves the connection unfit for use."""
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._future = future
        self.exchanges += 1
        self.heard = False
        if self._fault:
            self._fail(self._fault)
            return future
        self._begin(most, head_only)
        self._total = total
        self._transport.write(data)
        self._watch(min(first, total))
        return future

    @property
    def reusable(self) -> bool:
        """Whether another request may follow: the last answer is complete, and so was its request when it came."""
        return (
            self._future is None
            and self._kept
            and not self._fault
            and not self._transport.is_closing()
            and self._transport.get_write_buffer_size() == 0
        )

    @property
    def stale(self) -> bool:
        """Whether the service had closed it before it saw the request, as far as can be told: it had answered before, and of this
        answer nothing came, though there was time."""
        return self.exchanges > 1 and not self.heard and self._fault != TIMEOUT

    def rest(self, until: float) -> None:
        """Waits for the next request, closed at that time of the loop's clock."""
        self._watch(until)

    def close(self) -> None:
        """Says good-bye where the transport has a way to, as TLS has."""
        self._fault = self._fault or LOST
        self._transport.close()

    def abort(self) -> None:
        """Ends it at once."""
        self._fault = self._fault or LOST
        self._transport.abort()

    # ── What the transport says ──────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It can be written to."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass of it
        self.alive = True

    def data_received(self, data: bytes) -> None:
        """A part of the answer."""
        if self._fault:
            return
        if not self.heard:
            self.heard = True
            self._deadline = self._total
        left = self._left
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if isinstance(error, httptools.HttpParserCallbackError) and not isinstance(
                error.__context__, httptools.HttpParserError
            ):
                raise  # a fault of ours, not of the answer
            self._break(MALFORMED)
            return
        if self._left == left:
            self._around += len(data)
            if self._around > MAX_HEAD_BYTES:
                self._break(MALFORMED)

    def connection_lost(self, exc: Exception | None) -> None:
        """The end, with an error or without."""
        self.alive = False
        if self._timer is not None:
            self._timer.cancel()
        if self._status and exc is None and not self._measured():
            self._finish(whole=True)
        self._break(LOST)
        del self._parser  # it refers to us
        self._gone(self)

    # ── What the parser says ─────────────────────────────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        """The first byte of an answer. Nobody asked for it: it cannot be the answer to what will be asked."""
        if self._future is None:
            self._spoil(MALFORMED)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which is passed over."""
        if self._status == 0:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The status stands from here on."""
        status = self._parser.get_status_code()
        if 100 <= status < 200:  # an interim answer; what it says is of no use to us
            self._headers = []
            return
        self._status = status
        self._kept = self._parser.should_keep_alive()
        if self._head_only:  # what the length announces will not come
            self._finish(whole=True)
            self._spoil(MALFORMED)

    def on_body(self, part: bytes) -> None:
        """A part of the body."""
        self._left -= len(part)
        if self._left >= 0:
            self._body.append(part)
        elif not self._fault:
            self._body.append(part[: self._left])
            self._break(MALFORMED)

    def on_message_complete(self) -> None:
        """The whole answer, or an interim one."""
        if self._status:
            self._finish(whole=True)

    # ── Inside ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, most: int, head_only: bool) -> None:
        self._status, self._around, self._left, self._head_only = 0, 0, most, head_only
        self._headers, self._body = [], []

    def _measured(self) -> bool:
        """Whether the answer said itself where it ends."""
        return any(
            name.lower() == b"content-length" or (name.lower() == b"transfer-encoding" and b"chunked" in value.lower())
            for name, value in self._headers
        )

    def _finish(self, *, whole: bool) -> None:
        future, self._future = self._future, None
        if future is not None and not future.done():
            body = self._body
            future.set_result(Answer(self._status, self._headers, body[0] if len(body) == 1 else b"".join(body), whole))

    def _fail(self, reason: str) -> None:
        future, self._future = self._future, None
        if future is not None and not future.done():
            future.set_exception(ExchangeFailed(reason))

    def _break(self, reason: str) -> None:
        """There will be no more of the answer. Once its head is here, its status stands."""
        if self._status:
            self._finish(whole=False)
        else:
            self._fail(reason)
        self._spoil(reason)

    def _spoil(self, reason: str) -> None:
        if not self._fault:
            self._fault = reason
            self._transport.abort()

    def _watch(self, deadline: float) -> None:
        """The timer is left alone while it would fire in time: requests in a row, each later than the last, set it once."""
        self._deadline = deadline
        if self._timer is None or deadline < self._armed:
            if self._timer is not None:
                self._timer.cancel()
            self._arm()

    def _arm(self) -> None:
        self._armed = self._deadline
        self._timer = self._loop.call_at(self._deadline, self._look)

    def _look(self) -> None:
        if self._deadline > self._loop.time() + _EARLY:
            self._arm()
        elif self._future is None:
            self.close()
        else:
            self._break(TIMEOUT)
