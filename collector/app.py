"""The collector as an ASGI application: paths that take events are answered here, below any framework.

`collector.protocol` answers the same paths below ASGI; what both do with a request is in `collector.intake`.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, Final, NamedTuple

from starlette.applications import Starlette
from starlette.routing import BaseRoute

from collector.answers import SUCCESS, json_headers
from collector.body import too_large
from collector.exchanges import Exchange
from collector.headers import KeepIp, client_ip, content_encoding, preflight
from collector.intake import WIRE_LIMIT, Intake, utc_micros
from collector.routes import ROUTES, Route
from collector.sdk import sdk_routes
from collector.sources import Policy
from pipeline.log.contract import Log
from schemas.errors import Refused, Unavailable

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class _Answer(NamedTuple):
    status: int
    body: bytes
    after: float | None


class _Waiting(Exchange):
    """An exchange whose answer a task waits for."""

    __slots__ = ("_answer",)

    def __init__(self, origin: bytes | None = None) -> None:
        super().__init__(origin)
        self._answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()

    def reply(self, status: int, body: bytes, after: float | None) -> None:
        if not self._answer.done():  # the task may have been cancelled
            self._answer.set_result(_Answer(status, body, after))

    async def answer(self) -> _Answer:
        return await self._answer


class _ClientGone(Exception):
    """The client left before its request was complete."""


class Collector:
    """ASGI application. Paths that take events are answered here, everything else goes to `fallback`.

    `fallback` may be replaced until the first request; without one it is a Starlette application with `routes()`, which
    a composition root adds to its own. `intake` has the counters for its /metrics."""

    def __init__(
        self,
        intake: Intake,
        *,
        trusted_hops: int = 0,
        consent: Mapping[str, Sequence[str]] | None = None,
        fallback: ASGIApp | None = None,
    ) -> None:
        self.intake = intake
        self.consent = consent or {}
        self.counts = intake.counts
        self.trusted_hops = trusted_hops
        self.fallback: ASGIApp = fallback or Starlette(routes=self.routes())

    @property
    def in_flight_bytes(self) -> int:
        return self.intake.in_flight_bytes

    def routes(self) -> Sequence[BaseRoute]:
        """The other routes that SDKs call: settings, pixels, their own metrics. Each also answers OPTIONS."""
        return sdk_routes(self.intake.sources, self.take, self.trusted_hops, self.consent)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(("//", "/v1//")):
            scope = _without_doubled_slashes(scope)
        route = ROUTES.get(scope["path"]) if scope["type"] == "http" else None
        if route is None:
            await self.fallback(scope, receive, send)
        elif scope["method"] == "POST":
            await self._ingest(route, scope, receive, send)
        elif scope["method"] == "OPTIONS":
            await send({"type": "http.response.start", "status": 200, "headers": preflight(dict(scope["headers"]))})
            await send({"type": "http.response.body", "body": b""})
        else:
            exchange = _Waiting()
            self.intake.refuse(exchange, Refused("method_not_allowed", "events are sent by POST", status=405))
            await _send(send, await exchange.answer(), dict(scope["headers"]).get(b"origin"), _ALLOW)

    async def take(self, body: bytes, route: Route, ip: str | None, origin: bytes | None) -> int:
        """Takes what did not come as a POST (a pixel). Returns the status that a POST would have been answered with."""
        exchange = _Waiting(origin)
        try:
            self.intake.begin(exchange, None, len(body))
            self.intake.take(exchange, route, None, body, b"", ip)
        except Refused as refused:
            self.intake.refuse(exchange, refused)
        except Unavailable as unavailable:
            self.intake.put_off(exchange, unavailable)
        return (await exchange.answer()).status

    async def _ingest(self, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        exchange = _Waiting(headers.get(b"origin"))
        try:
            declared = headers.get(b"content-length", b"0")
            expected = int(declared) if declared.isdigit() else 0
            source = self.intake.begin(exchange, headers.get(b"authorization"), expected)
            wire = await self._read(exchange, expected, receive)
        except Refused as refused:
            self.intake.refuse(exchange, refused)
        except Unavailable as unavailable:
            self.intake.put_off(exchange, unavailable)
        except (_ClientGone, asyncio.CancelledError) as ended:
            self.intake.abandon(exchange)
            if isinstance(ended, asyncio.CancelledError):
                raise
            return
        else:
            self.intake.take(exchange, route, source, wire, content_encoding(scope["headers"]), self._ip(scope))
        await _send(send, await exchange.answer(), exchange.origin)

    async def _read(self, exchange: Exchange, expected: int, receive: Receive) -> bytes:
        """The whole body as it comes over the wire, charged to the exchange."""
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise _ClientGone
            part: bytes = message.get("body", b"")
            size += len(part)
            if size > WIRE_LIMIT:
                raise too_large()
            if size > expected:
                self.intake.charge(exchange, size - expected)
                expected = size
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    def _ip(self, scope: Scope) -> str | None:
        client, hops = scope.get("client"), self.trusted_hops
        forwarded = [value for name, value in scope["headers"] if name == b"x-forwarded-for"] if hops else ()
        return client_ip(client[0] if client else None, forwarded, hops)


_ALLOW: Final = ((b"allow", b"POST, OPTIONS"),)
_DOUBLED_SLASHES: Final = re.compile(r"/+(?:v1/+)?")


def _without_doubled_slashes(scope: Scope) -> Scope:
    """The request of a client whose host was configured with a slash at its end, with or without /v1. What follows in the
    path stays, since a value in it may hold anything."""
    path: str = scope["path"]
    raw_path: bytes = scope.get("raw_path") or path.encode()
    return {**scope, "path": _joined(path), "raw_path": _joined(raw_path.decode("latin-1")).encode("latin-1")}


def _joined(path: str) -> str:
    return _DOUBLED_SLASHES.sub(lambda start: "/v1/" if "v1" in start[0] else "/", path, count=1)


async def _send(send: Send, answer: _Answer, origin: bytes | None, further: Sequence[tuple[bytes, bytes]] = ()) -> None:
    start = (
        _SUCCESS_START
        if answer.body is SUCCESS and origin is None
        else {
            "type": "http.response.start",
            "status": answer.status,
            "headers": [*json_headers(answer.body, origin, answer.after), *further],
        }
    )
    await send(start)
    await send({"type": "http.response.body", "body": answer.body})


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
    new_id: Callable[[], str] | None = None,
    trusted_hops: int = 0,
    append_timeout: float = 7.0,
    max_in_flight_bytes: int = 64 << 20,
    policies: Mapping[str, Policy] | None = None,
    bearer: Callable[[bytes], str] | None = None,
    keep_ip: KeepIp = "all",
    consent: Mapping[str, Sequence[str]] | None = None,
    fallback: ASGIApp | None = None,
) -> Collector:
    """The collector over an open log. `sources` maps write keys to source names; `clock` gives UTC microseconds;
    `trusted_hops` is the number of own proxies in front, each of which adds to X-Forwarded-For. `append_timeout` in seconds:
    SDKs give up after 8 and send again. `policies` by source name; `bearer` finds the
    source of an OAuth token, and raises Refused; `keep_ip` says which addresses of clients are kept; `consent` has the
    categories that destinations ask for, by source name, for the banners of pages."""
    intake = Intake(
        log=log,
        sources=sources,
        clock=clock,
        new_id=new_id,
        append_timeout=append_timeout,
        max_in_flight_bytes=max_in_flight_bytes,
        policies=policies or {},
        bearer=bearer,
        keep_ip=keep_ip,
    )
    return Collector(intake, trusted_hops=trusted_hops, consent=consent, fallback=fallback)
