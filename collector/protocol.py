"""The short cut: uvicorn's HTTP protocol class, which answers the paths that take events itself, below ASGI.

No scope, no task and no request object for them; everything else goes to the application as ever. Answers leave in the order of
their requests, however they are mixed. What uvicorn leaves open is bounded here for all paths: the size of a request's head, and the time that a
client may take. Built on internals of uvicorn that `tests/unit/test_uvicorn_internals.py` pins.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import httptools
import structlog
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from collector.answers import SUCCESS, json_headers
from collector.body import too_large
from collector.exchanges import Exchange
from collector.headers import Headers, client_ip, content_encoding
from collector.intake import WIRE_LIMIT, Intake
from collector.known_heads import KnownHead, KnownHeads
from collector.routes import ROUTES, Route
from schemas.errors import Refused, Unavailable

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a connection may do, in bytes and seconds."""

    head_bytes: int = 32 << 10
    head_seconds: float = 10.0  # from a request's first byte to the end of its head
    body_seconds: float = 20.0  # without a byte of the body
    request_seconds: float = 120.0  # for the whole request
    idle_seconds: float = 75.0  # between requests: longer than any SDK's flush interval
    leave_seconds: float = 0.5  # between requests, once the server shuts down
    linger_seconds: float = 2.0  # after an answer that ends the connection, for the client to read it
    pipeline: int = 64  # requests that wait for their answer; then reading pauses


KNOWN_ORIGINS: Final = 256

_ROUTES: Final = {path.encode(): route for path, route in ROUTES.items()}

# Where a connection stands.
_IDLE, _HEAD, _BODY, _LINGERING = range(4)


class _Turn(Exchange):
    """A request in the queue of its connection: answered below ASGI."""

    __slots__ = ("_protocol", "answer", "keep_alive")

    def __init__(self, protocol: "IngestProtocol", origin: bytes | None, keep_alive: bool) -> None:
        super().__init__(origin)
        self._protocol = protocol
        self.keep_alive = keep_alive
        self.answer: tuple[int, bytes, float | None] | None = None

    def reply(self, status: int, body: bytes, after: float | None) -> None:
        self.answer = (status, body, after)
        self._protocol.answered()

    def succeed(self) -> None:
        if not self._protocol.succeeded(self):
            super().succeed()


class _Cycle:
    """A request in the queue of its connection: answered by the application, once its turn has come."""

    __slots__ = ("app", "cycle", "started")

    def __init__(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.cycle, self.app, self.started = cycle, app, False


class IngestProtocol(HttpToolsProtocol):
    """One connection. Made by `protocol_class`."""

    intake: Intake
    trusted_hops: int
    limits: Limits
    sweeper: "_Sweeper"
    known_heads: KnownHeads  # shared by all connections of a server

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._turns: deque[_Turn | _Cycle] = deque()
        self._taking: _Turn | None = None  # the request whose body arrives
        self._route: Route = _NO_ROUTE
        self._source: str | None = None
        self._encoding = b""
        self._ip: str | None = None
        self._peer: str | None = None
        self._parts: list[bytes | memoryview] = []
        self._size = 0
        self._expected = 0
        self._chunk = 0  # bytes of what is being parsed
        self._head = b""  # of the first request in what is being parsed, when all of it is there
        self._missing = 0  # bytes of a body that are to come past the parser
        self._head_bytes = 0
        self._head_goes_on = False  # since the chunk before
        self._version = ""
        self._state = _IDLE
        self._since = 0.0  # of the state
        self._begun = 0.0  # of the request
        self._leaving = False  # no further request is taken
        self._ending = False  # the last answer was given

    # ── The connection ────────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._peer = client_ip(self.client[0], (), 0) if self.client else None
        self._enter(_IDLE)
        self.sweeper.watch(self.loop, self.connections)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._taking is not None:
            self.intake.abandon(self._taking)
            self._taking = None
        for turn in self._turns:
            if isinstance(turn, _Cycle):
                turn.cycle.disconnected = True
                turn.cycle.message_event.set()
        self._turns.clear()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        """A client that has sent its last byte may still read: it is answered first. An endless answer of the application
        would never notice, so there the end is the end."""
        if not self._turns or self._taking is not None or any(isinstance(turn, _Cycle) for turn in self._turns):
            return None
        self._leaving = True
        return cast(None, True)  # asyncio's word for keeping the transport open

    def shutdown(self) -> None:
        """Ends once every request that has begun is answered. Between requests it waits a moment for one that may be on its
        way, since a client cannot tell whether a request that met a closed door was taken."""
        self._leaving = True
        if self._turns:
            last = self._turns[-1]
            if isinstance(last, _Cycle):
                last.cycle.keep_alive = False
        elif self._state == _IDLE:
            self._since = self.loop.time()
        self.sweeper.hurry(self.loop, self.connections)

    def data_received(self, data: bytes) -> None:
        if self._ending:
            return
        if self._missing:
            self._take_part(data)
            return
        before = self._state
        if before == _IDLE:
            found = self.known_heads.find(data)
            if found is not None:
                known, length, end = found
                if length == len(data) - end:
                    self._take_whole(known, data[end:])
                    return
                if length > len(data) - end:
                    self._take_first(known, length, memoryview(data)[end:])
                    return
            end = data.find(b"\r\n\r\n") + 4
            self._head = data[:end] if end > 3 else b""
        self._chunk = len(data)
        self._head_goes_on = before == _HEAD
        if before == _BODY:
            self._since = self.loop.time()
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_upgrade(data[upgrade.args[0] :])
                continue
            except httptools.HttpParserError as error:
                self._break_off(_message_of(error))
            break
        if self._head_goes_on and self._state == _HEAD:
            self._head_bytes += self._chunk
            if self._head_bytes > self.limits.head_bytes:
                self._break_off(self._too_long_a_head())

    def _take_whole(self, known: KnownHead, body: bytes) -> None:
        """A request whose head was parsed before, and whose body is all there. The parser stands between two requests and is
        none the wiser."""
        turn = _Turn(self, known.origin, keep_alive=True)
        self._turns.append(turn)
        intake = self.intake
        try:
            source = intake.begin(turn, known.authorization, len(body))
        except Refused as refused:
            intake.refuse(turn, refused)
        except Unavailable as unavailable:
            intake.put_off(turn, unavailable)
        else:
            intake.take(turn, known.route, source, body, known.encoding, self._ip_of(known.forwarded))
            if len(self._turns) >= self.limits.pipeline:
                self.flow.pause_reading()

    def _take_first(self, known: KnownHead, length: int, body: memoryview) -> None:
        """The same, and the rest of the body is still to come."""
        self._enter(_BODY)
        self._begun = self._since
        self._begin_turn(
            _Turn(self, known.origin, keep_alive=True),
            known.route,
            known.authorization,
            known.encoding,
            self._ip_of(known.forwarded),
            length,
        )
        if self._taking is not None:
            self._missing = length - len(body)
            self._parts.append(body)

    def _take_part(self, data: bytes) -> None:
        """More of the body of such a request, and perhaps what follows it."""
        self._since = self.loop.time()
        part = data[: self._missing]
        self._missing -= len(part)
        self._parts.append(part)
        if not self._missing:
            self._complete()
            if len(part) < len(data):
                self.data_received(data[len(part) :])

    def _without_upgrade(self, rest: bytes) -> bytes:
        """What is to be parsed instead. There is no protocol that we could change to, so the request is one like others; but the parser skips the body
        of one that asks for a change, as Java's client does with its first one. Another parser gets it as if it had not."""
        if self._ending:
            return b""
        method = self.parser.get_method()
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        lines = [b"%b %b HTTP/%b" % (method, self.url, self._version.encode())]
        lines += [b"%b: %b" % header for header in self.headers if header[0] not in (b"connection", b"upgrade")]
        return b"\r\n".join((*lines, b"", rest))

    def _too_long_a_head(self) -> str:
        return f"the head of a request holds at most {self.limits.head_bytes} bytes"

    def _enter(self, state: int) -> None:
        self._state = state
        self._since = self.loop.time()

    def overdue(self, now: float) -> bool:
        """Whether the client has had its time."""
        waited, limits = now - self._since, self.limits
        if self._state == _LINGERING:
            return waited > limits.linger_seconds
        if self._ending:
            return False  # requests before the last one still wait for the log
        if self._state == _IDLE:
            return not self._turns and waited > (limits.leave_seconds if self._leaving else limits.idle_seconds)
        if self.flow.read_paused:
            return False  # nothing arrives because we do not read
        if self._state == _HEAD:
            return waited > limits.head_seconds
        return waited > limits.body_seconds or now - self._begun > limits.request_seconds

    def end_overdue(self) -> None:
        """Who sends a part of a request and then nothing is told so; who sends nothing is left. With 503, after which all SDKs send
        again: those for Python, PHP, Kotlin, C# and old phones give their events up after the 408 that would say the same."""
        if self._state in (_HEAD, _BODY):
            self._break_off("the request took too long to arrive; send it again", status=503)
        elif self._state == _LINGERING or self.flow.write_paused:
            self.transport.abort()
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        """Who does not read its answers is not read from."""
        super().pause_writing()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read_on()

    def _read_on(self) -> None:
        """Reads again, unless the application's turn comes, which asks for its body itself."""
        if (
            self.flow.read_paused
            and not self.flow.write_paused
            and len(self._turns) < self.limits.pipeline
            and not any(isinstance(turn, _Cycle) for turn in self._turns)
        ):
            self.flow.resume_reading()

    # ── Parser callbacks ──────────────────────────────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        if not self._ending:
            self._enter(_HEAD)
            self._begun = self._since
            self._head_bytes = 0
            self._head_goes_on = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._ending:
            return
        self._version = self.parser.get_http_version()
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise _Broken("this is no proxy")
            return
        headers = dict(self.headers)
        self._check(headers)
        self._state = _BODY
        route = _ROUTES.get(self.url) or _ROUTES.get(self.url.partition(b"?")[0])
        if route is not None and self.parser.get_method() == b"POST":
            self._begin(route, headers)
        else:
            self._hand_over(headers)

    def on_body(self, body: bytes) -> None:
        turn = self._taking
        if turn is None:
            if not self._ending:
                super().on_body(body)
            return
        self._size += len(body)
        if self._size > self._expected:
            self._grow(turn)
        self._parts.append(body)

    def on_message_complete(self) -> None:
        if self._ending or self._state == _HEAD:  # the parser skipped the body for the sake of an upgrade
            return
        turn, head, self._head = self._taking, self._head, b""
        self._state = _IDLE
        if turn is None:
            super().on_message_complete()
            return
        if head and turn.keep_alive:
            self.known_heads.learn(head, self.headers, self._route)
        self._complete()

    def _complete(self) -> None:
        """The whole body is there."""
        turn, parts = self._taking, self._parts
        assert turn is not None
        self._state = _IDLE
        self._taking = None
        self._parts = []
        self.intake.take(turn, self._route, self._source, b"".join(parts), self._encoding, self._ip)
        if len(self._turns) >= self.limits.pipeline:
            self.flow.pause_reading()

    def _check(self, headers: dict[bytes, bytes]) -> None:
        """What the parser lets through and a proxy in front of us might read in another way."""
        version = self._version
        if version not in ("1.1", "1.0"):
            raise _Broken("the request's HTTP version is not supported")
        once = len(headers) == len(self.headers) or [name for name, _ in self.headers].count(b"host") <= 1
        if not once or (b"host" not in headers and version == "1.1"):
            raise _Broken("a request has exactly one Host header")
        coding = headers.get(b"transfer-encoding")
        if coding is not None and (coding.lower() != b"chunked" or version == "1.0"):
            raise _Broken("the only Transfer-Encoding is chunked")
        if self._chunk > self.limits.head_bytes:  # a head that came in one piece
            size = sum(len(name) + len(value) + 4 for name, value in self.headers) + len(self.url)
            if size > self.limits.head_bytes:
                raise _Broken(self._too_long_a_head())

    # ── Requests that are answered here ───────────────────────────────────────────────────────────────────────────

    def _begin(self, route: Route, headers: dict[bytes, bytes]) -> None:
        keep_alive = self._version == "1.1" and self.parser.should_keep_alive()
        turn = _Turn(self, headers.get(b"origin"), keep_alive)
        self._begin_turn(
            turn,
            route,
            headers.get(b"authorization"),
            content_encoding(self.headers),
            self._ip_of([value for name, value in self.headers if name == b"x-forwarded-for"]),
            int(headers.get(b"content-length", b"0")),
        )
        if self._taking is turn and headers.get(b"expect", b"").lower() == b"100-continue" and self._turns[0] is turn:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _begin_turn(
        self, turn: _Turn, route: Route, authorization: bytes | None, encoding: bytes, ip: str | None, expected: int
    ) -> None:
        """Awaits a body, unless the request is answered without it."""
        self._taking = turn
        self._turns.append(turn)
        self._route, self._encoding, self._ip = route, encoding, ip
        self._size, self._expected = 0, expected
        try:
            self._source = self.intake.begin(turn, authorization, expected)
        except Refused as refused:
            self._end_early()
            self.intake.refuse(turn, refused)
        except Unavailable as unavailable:
            self._end_early()
            self.intake.put_off(turn, unavailable)

    def _grow(self, turn: _Turn) -> None:
        """A body without a length becomes longer."""
        try:
            if self._size > WIRE_LIMIT:
                raise too_large()
            self.intake.charge(turn, self._size - self._expected)
            self._expected = self._size
        except Refused as refused:
            self._end_early()
            self.intake.refuse(turn, refused)
        except Unavailable as unavailable:
            self._end_early()
            self.intake.put_off(turn, unavailable)

    def _end_early(self) -> None:
        """The request is answered before all of it is there. What still comes is read and thrown away; the answer is the last."""
        turn = self._taking
        assert turn is not None
        turn.keep_alive = False
        self._taking = None
        self._parts = []
        self._missing = 0
        self._ending = True

    def _ip_of(self, forwarded: Sequence[bytes]) -> str | None:
        if not self.trusted_hops:
            return self._peer
        return client_ip(self.client[0] if self.client else None, forwarded, self.trusted_hops)

    # ── Requests that go to the application ───────────────────────────────────────────────────────────────────────

    def _hand_over(self, headers: dict[bytes, bytes]) -> None:
        arrived, url = self.headers, self.url
        super().on_message_begin()
        self.headers.extend(arrived)  # the scope has this very list
        self.url = url
        self.expect_100_continue = headers.get(b"expect", b"").lower() == b"100-continue"
        self.cycle = None  # type: ignore[assignment]  # so that uvicorn leaves the order to `_start_asgi_task`
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        turn = _Cycle(cycle, app)
        self._turns.append(turn)
        if self._turns[0] is turn:
            self._start(turn)
        else:
            self.flow.pause_reading()

    def _start(self, turn: _Cycle) -> None:
        turn.started = True
        if self._leaving and turn is self._turns[-1]:
            turn.cycle.keep_alive = False
        super()._start_asgi_task(turn.cycle, turn.app)

    def on_response_complete(self) -> None:
        """The application has answered the first request in the queue."""
        self.server_state.total_requests += 1
        if self._turns:
            done = self._turns.popleft()
            assert isinstance(done, _Cycle)
        if not self.transport.is_closing():
            self.answered()

    # ── Answers ───────────────────────────────────────────────────────────────────────────────────────────────────

    def answered(self) -> None:
        """Writes the answers that are there, up to the first that is not."""
        if self.transport.is_closing():
            return
        turns = self._turns
        out: list[bytes] = []
        last = False
        while turns and not last:
            turn = turns[0]
            if isinstance(turn, _Cycle):
                if out:
                    self.transport.write(b"".join(out))
                    out = []
                if not turn.started:
                    self._start(turn)
                break
            if turn.answer is None:
                break
            turns.popleft()
            last = not turn.keep_alive or (self._leaving and not turns)
            out.append(self._bytes_of(turn, last))
            self.server_state.total_requests += 1
        if out:
            self.transport.write(out[0] if len(out) == 1 else b"".join(out))
        if last:
            self._end()
            return
        if not turns and self._state == _IDLE:
            self._since = self.loop.time()
        self._read_on()

    def succeeded(self, turn: _Turn) -> bool:
        """Writes the usual answer if nothing stands in its way, which `answered` would have to look at."""
        turns = self._turns
        if (
            len(turns) != 1
            or not turn.keep_alive
            or self._leaving
            or self.flow.read_paused
            or self.transport.is_closing()
        ):
            return False
        turns.clear()
        state = self.server_state
        state.total_requests += 1
        self.transport.write(self.sweeper.success(state.default_headers, turn.origin))
        if self._state == _IDLE:
            self._since = self.loop.time()
        return True

    def _bytes_of(self, turn: _Turn, last: bool) -> bytes:
        assert turn.answer is not None
        status, body, after = turn.answer
        date = self.server_state.default_headers
        if body is SUCCESS and not last:
            return self.sweeper.success(date, turn.origin)
        return b"".join((_head(status, [*date, *json_headers(body, turn.origin, after)], last), body))

    def _end(self) -> None:
        """Closes the connection in a way that lets the client read the last answer: closing with unread bytes would reset it."""
        self._ending = True
        self._turns.clear()
        if self._state == _IDLE or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self._enter(_LINGERING)
        self.flow.resume_reading()

    def _break_off(self, message: str, status: int = 400) -> None:
        """The request cannot be read any further. Those before it are still answered; it is the last."""
        if self._ending:
            return
        self._ending = True
        turn, self._taking, self._parts = self._taking, None, []
        if turn is None:
            if not self._give_up_cycle():
                self.transport.close()
                return
            turn = _Turn(self, None, False)
            self._turns.append(turn)
        turn.keep_alive = False
        self.intake.refuse(turn, Refused("bad_http", message, status=status))

    def _give_up_cycle(self) -> bool:
        """When the request was the application's, the application hears that the client has gone. False if its answer has
        already begun, so that no other can be given."""
        last = self._turns[-1] if self._turns else None
        if not isinstance(last, _Cycle) or not last.cycle.more_body:
            return True
        last.cycle.disconnected = True
        last.cycle.message_event.set()
        self._turns.pop()
        return not last.cycle.response_started


class _Broken(Exception):
    """A request that is no proper HTTP, raised within the parser."""


def _message_of(error: httptools.HttpParserError) -> str:
    cause = error.__context__
    if isinstance(cause, _Broken):
        return str(cause)
    if isinstance(error, httptools.HttpParserCallbackError) and not isinstance(cause, httptools.HttpParserError):
        log.error("request not handled", exc_info=cause)
    return f"this is not a proper HTTP request: {error}"


_NO_ROUTE: Final = Route(None, "server")


def _head(status: int, headers: Headers, last: bool) -> bytes:
    lines = [STATUS_LINE[status]]
    for name, value in headers:
        lines += (name, b": ", value, b"\r\n")
    lines.append(b"connection: close\r\n\r\n" if last else b"\r\n")
    return b"".join(lines)


class _Sweeper:
    """Looks after the time-outs of all connections with one timer, and keeps what their answers share."""

    PAUSE: Final = 1.0
    HURRIED: Final = 0.1

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._pause = self.PAUSE
        self._date: Headers | None = None
        self._success: dict[bytes | None, bytes] = {}

    def watch(self, loop: asyncio.AbstractEventLoop, connections: "set[Any]") -> None:
        """Begins looking, if it is not already."""
        if self._timer is None:
            self._timer = loop.call_later(self._pause, self._look, loop, connections)

    def hurry(self, loop: asyncio.AbstractEventLoop, connections: "set[Any]") -> None:
        """The server is shutting down."""
        if self._pause != self.HURRIED and self._timer is not None:
            self._pause = self.HURRIED
            self._timer.cancel()
            self._timer = loop.call_later(self._pause, self._look, loop, connections)

    def _look(self, loop: asyncio.AbstractEventLoop, connections: "set[Any]") -> None:
        self._timer = None
        now = loop.time()
        for connection in [one for one in connections if one.overdue(now)]:
            connection.end_overdue()
        if connections:
            self.watch(loop, connections)

    def success(self, date: Headers, origin: bytes | None) -> bytes:
        """The whole answer to an accepted request of a page; the server renews the date every second."""
        if date is not self._date or len(self._success) > KNOWN_ORIGINS:
            self._date = date
            self._success = {}
        answer = self._success.get(origin)
        if answer is None:
            answer = self._success[origin] = _head(200, [*date, *json_headers(SUCCESS, origin)], last=False) + SUCCESS
        return answer


def protocol_class(intake: Intake, *, trusted_hops: int = 0, limits: Limits | None = None) -> type[IngestProtocol]:
    """The class for uvicorn's `http` setting, for one server whose application is the collector over the same `intake`."""
    members = {
        "intake": intake,
        "trusted_hops": trusted_hops,
        "limits": limits or Limits(),
        "sweeper": _Sweeper(),
        "known_heads": KnownHeads(),
    }
    return type("BoundIngestProtocol", (IngestProtocol,), members)
