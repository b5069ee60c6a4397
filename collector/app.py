"""The collector's HTTP face: an ASGI application whose ingest paths sit below any framework.

A request is answered with success only after `Log.append` has returned. Memory is bounded: what is in flight is counted
in bytes, and beyond the limit new requests get 503 before their bodies are read.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, Final

import structlog
from starlette.applications import Starlette
from starlette.routing import BaseRoute

from collector.accept import Accepted, accept
from collector.answers import SUCCESS, error_body, json_headers
from collector.body import BODY_LIMIT, decompress, too_large
from collector.counts import Counts
from collector.headers import BasicAuth, client_ip, preflight
from collector.ids import MessageIds
from collector.routes import ROUTES, Route
from collector.sdk import sdk_routes
from pipeline.log.contract import Log
from schemas.errors import Refused, Unavailable
from schemas.topics import EVENTS

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

log = structlog.get_logger()

WIRE_LIMIT: Final = BODY_LIMIT + 4096  # what cannot be compressed grows a little when it is


def utc_micros() -> int:
    return time.time_ns() // 1000


class _Exchange:
    """One request on its way: who gets the answer, whether it was given, and the bytes it holds."""

    __slots__ = ("answered", "charged", "origin", "send", "source")

    def __init__(self, send: Send, origin: bytes | None) -> None:
        self.send = send
        self.origin = origin
        self.answered = False
        self.charged = 0
        self.source = ""


class _ClientGone(Exception):
    """The client left before its request was complete: there is nobody to answer."""


class Collector:
    """ASGI application. Paths that take events are answered here, everything else goes to `fallback`.

    `fallback` may be replaced until the first request; without one it is a Starlette application with `routes()`, which
    a composition root adds to its own. `counts` and `in_flight_bytes` are for its /metrics."""

    def __init__(
        self,
        *,
        log: Log,
        sources: Mapping[str, str],
        clock: Callable[[], int] = utc_micros,
        new_id: Callable[[], str] | None = None,
        trusted_hops: int = 0,
        append_timeout: float = 15.0,
        max_in_flight_bytes: int = 64 << 20,
        fallback: ASGIApp | None = None,
    ) -> None:
        self.counts = Counts()
        self.in_flight_bytes = 0
        self._log = log
        self._sources = sources
        self._auth = BasicAuth(sources)
        self._clock = clock
        self._new_id = new_id or MessageIds()
        self._trusted_hops = trusted_hops
        self._append_timeout = append_timeout
        self._max_in_flight_bytes = max_in_flight_bytes
        self._waiting: dict[_Exchange, float] = {}
        self._watchdog: asyncio.TimerHandle | None = None
        self._late_answers: set[asyncio.Task[None]] = set()
        self.fallback: ASGIApp = fallback or Starlette(routes=self.routes())

    def routes(self) -> Sequence[BaseRoute]:
        """The other routes that SDKs call: settings, pixels, their own metrics. Each also answers OPTIONS."""
        return sdk_routes(self._sources, self.take, self._trusted_hops)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = ROUTES.get(scope["path"]) if scope["type"] == "http" else None
        if route is None:
            await self.fallback(scope, receive, send)
        elif scope["method"] == "POST":
            await self._ingest(route, scope, receive, send)
        elif scope["method"] == "OPTIONS":
            await send({"type": "http.response.start", "status": 200, "headers": preflight(dict(scope["headers"]))})
            await send({"type": "http.response.body", "body": b""})
        else:
            refused = Refused("method_not_allowed", "events are sent by POST", status=405)
            await self._refuse(_Exchange(send, dict(scope["headers"]).get(b"origin")), refused)

    # ── One request ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _ingest(self, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        exchange = _Exchange(send, headers.get(b"origin"))
        try:
            source = self._auth.source(headers.get(b"authorization"))
            exchange.source = source or ""
            wire = await self._read(exchange, headers, receive)
            accepted = accept(
                decompress(wire, headers.get(b"content-encoding", b"")),
                route,
                source=source,
                sources=self._sources,
                received_at=self._clock(),
                ip=self._ip(scope),
                new_id=self._new_id,
            )
            exchange.source = accepted.source
            await self._append(exchange, accepted)
            self._count(accepted, len(wire))
            if accepted.answer is None:
                await self._answer(exchange, 200, SUCCESS)
            else:
                await self._refuse(exchange, accepted.answer)
        except Refused as refused:
            await self._refuse(exchange, refused)
        except Unavailable as unavailable:
            await self._put_off(exchange, unavailable)
        except _ClientGone:
            self.counts.disconnected += 1
        except Exception:
            log.exception("request failed", path=scope["path"], source=exchange.source)
            await self._answer(exchange, 500, error_body("internal", "an error of the server; try again"))
        finally:
            self.in_flight_bytes -= exchange.charged

    async def _read(self, exchange: _Exchange, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """The whole body as it comes over the wire, charged to the exchange."""
        declared = headers.get(b"content-length", b"0")
        expected = int(declared) if declared.isdigit() else 0
        if expected > WIRE_LIMIT:
            raise too_large()
        self._charge(exchange, expected)
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            body: bytes = message.get("body", b"")
            self._charge(exchange, len(body) - expected)
            return body
        parts, size = [], 0
        while True:
            if message["type"] != "http.request":
                raise _ClientGone
            part = message.get("body", b"")
            size += len(part)
            if size > WIRE_LIMIT:
                raise too_large()
            if size > exchange.charged:
                self._charge(exchange, size - exchange.charged)
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)
            message = await receive()

    def _ip(self, scope: Scope) -> str | None:
        client = scope.get("client")
        forwarded = (
            [value for name, value in scope["headers"] if name == b"x-forwarded-for"] if self._trusted_hops else ()
        )
        return client_ip(client[0] if client else None, forwarded, self._trusted_hops)

    def _charge(self, exchange: _Exchange, size: int) -> None:
        """Counts bytes as in flight until the exchange ends. A request on its own always fits."""
        others = self.in_flight_bytes - exchange.charged
        if others and self.in_flight_bytes + size > self._max_in_flight_bytes:
            raise Unavailable("too much is being received", after=1)
        exchange.charged += size
        self.in_flight_bytes += size

    # ── The log ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _append(self, exchange: _Exchange, accepted: Accepted) -> None:
        """Returns when the log holds the events. A client that has waited too long is put off meanwhile; the append goes on
        and its bytes stay charged until it ends, so that no memory is lost sight of."""
        records = accepted.records
        if not records:
            return
        self._charge(exchange, sum([len(record.value) for record in records]))
        self._expect(exchange)
        try:
            await self._log.append(EVENTS, records)
        finally:
            self._waiting.pop(exchange, None)

    def _expect(self, exchange: _Exchange) -> None:
        loop = asyncio.get_running_loop()
        self._waiting[exchange] = loop.time() + self._append_timeout
        if self._watchdog is None:
            self._watch(loop)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Looks now and then for requests that have waited too long: far cheaper than a timer for each."""
        now = loop.time()
        while self._waiting:
            exchange, deadline = next(iter(self._waiting.items()))
            if deadline > now:
                break
            del self._waiting[exchange]
            task = loop.create_task(self._put_off(exchange, Unavailable("the event log is slow", after=5)))
            self._late_answers.add(task)
            task.add_done_callback(self._late_answers.discard)
        pause = min(1.0, self._append_timeout / 4)
        self._watchdog = loop.call_later(pause, self._watch, loop) if self._waiting else None

    async def take(self, body: bytes, route: Route, ip: str | None) -> None:
        """Accepts and appends what did not come as a POST (a pixel). Raises Refused and Unavailable."""
        accepted = accept(
            body,
            route,
            source=None,
            sources=self._sources,
            received_at=self._clock(),
            ip=ip,
            new_id=self._new_id,
        )
        async with asyncio.timeout(self._append_timeout):
            await self._log.append(EVENTS, accepted.records)
        self._count(accepted, len(body))
        self.counts.requests[accepted.source, 200] += 1

    def _count(self, accepted: Accepted, size: int) -> None:
        counts = self.counts
        counts.bytes[accepted.source] += size
        for source, number in accepted.accepted.items():
            counts.accepted[source] += number
        for pair, number in accepted.refused.items():
            counts.refused[pair] += number

    # ── Answers ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _refuse(self, exchange: _Exchange, refused: Refused) -> None:
        await self._answer(exchange, refused.status, error_body(refused.code, refused.message))

    async def _put_off(self, exchange: _Exchange, unavailable: Unavailable) -> None:
        await self._answer(exchange, 503, error_body("unavailable", str(unavailable)), unavailable.after)

    async def _answer(self, exchange: _Exchange, status: int, body: bytes, after: float | None = None) -> None:
        if exchange.answered:
            return
        exchange.answered = True
        self.counts.requests[exchange.source, status] += 1
        start = (
            _SUCCESS_START
            if body is SUCCESS and exchange.origin is None
            else {
                "type": "http.response.start",
                "status": status,
                "headers": json_headers(body, exchange.origin, after),
            }
        )
        await exchange.send(start)
        await exchange.send({"type": "http.response.body", "body": body})


_SUCCESS_START: Final[Message] = {
    "type": "http.response.start",
    "status": 200,
    "headers": json_headers(SUCCESS, None),
}


def create_collector(
    *,
    log: Log,
    sources: Mapping[str, str],
    clock: Callable[[], int] = utc_micros,
    trusted_hops: int = 0,
    append_timeout: float = 15.0,
    max_in_flight_bytes: int = 64 << 20,
    fallback: ASGIApp | None = None,
) -> Collector:
    """The collector over an open log. `sources` maps write keys to source names; `clock` gives UTC microseconds;
    `trusted_hops` is the number of own proxies in front, each of which adds to X-Forwarded-For."""
    return Collector(
        log=log,
        sources=sources,
        clock=clock,
        trusted_hops=trusted_hops,
        append_timeout=append_timeout,
        max_in_flight_bytes=max_in_flight_bytes,
        fallback=fallback,
    )
