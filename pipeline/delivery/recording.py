"""An HTTP client that reaches nobody: every connection ends here, where its requests are noted and answered 200.

The requests are real: what is noted is parsed from the bytes that would have gone over the wire, made by the client that makes them
otherwise.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import httptools

from destinations.http.client import Client
from destinations.http.connection import Connection
from destinations.http.request import Origin

_BODY: Final = b'{"access_token":"none-is-asked-for"}'  # for destinations that begin by getting one
_ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(_BODY),
    _BODY,
)
_HOPS: Final = frozenset(("host", "content-length", "transfer-encoding", "accept-encoding", "accept"))


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it would have gone out. Header names are in lower case; those of the connection are left out."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class Recorder:
    """Notes requests until they are taken."""

    requests: list[Request] = field(default_factory=list)

    def taken(self) -> tuple[Request, ...]:
        """What came since the last time."""
        requests, self.requests = tuple(self.requests), []
        return requests

    def session(self) -> Client:
        """A client whose requests end here, whatever their address. Belongs to the running event loop."""
        return Client(self._dial)

    def _note(self, request: Request) -> None:
        self.requests.append(request)

    async def _dial(self, origin: Origin, made: Callable[[], Connection]) -> Connection:
        connection = made()
        connection.connection_made(_Listener(origin.scheme, connection, self._note))
        return connection


class _Listener(asyncio.Transport):
    """The far end of a connection, without a wire between."""

    def __init__(self, scheme: str, connection: Connection, note: Callable[[Request], None]) -> None:
        super().__init__()
        self._scheme, self._connection, self._note = scheme, connection, note
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._target, self._body, self._closing = b"", b"", False
        self._headers: dict[str, str] = {}

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """What the client sends."""
        self._parser.feed_data(data)

    def on_url(self, part: bytes) -> None:
        """The target."""
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._headers[name.decode().lower()] = value.decode()

    def on_body(self, part: bytes) -> None:
        """A part of the body."""
        self._body += part

    def on_message_complete(self) -> None:
        """The request is noted and answered."""
        url = f"{self._scheme}://{self._headers['host']}{self._target.decode()}"
        kept = {name: value for name, value in sorted(self._headers.items()) if name not in _HOPS}
        self._note(Request(self._parser.get_method().decode(), url, kept, self._body))
        self._target, self._body, self._headers = b"", b"", {}
        self._loop.call_soon(self._connection.data_received, _ANSWER)

    def is_closing(self) -> bool:
        """Whether the client has hung up."""
        return self._closing

    def close(self) -> None:
        """The client hangs up."""
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._connection.connection_lost, None)

    abort = close

    def get_write_buffer_size(self) -> int:
        """Nothing waits: it is read as it is written."""
        return 0
