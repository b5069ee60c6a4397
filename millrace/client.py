"""The HTTP client of the command line: the standard library's, since a command starts faster without a better one."""

import http.client
import json
import socket
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from schemas.errors import ConfigError, MillraceError, Refused, Unavailable

TIMEOUT: Final = 30.0


class NotFound(MillraceError):
    """The server knows nothing under that name."""


@dataclass(slots=True)
class Client:
    """One connection to a collector, kept open between requests. `user` is a write key or the API token."""

    address: str
    user: str = field(repr=False)
    _connection: http.client.HTTPConnection | None = None

    def get(self, path: str) -> Any:
        """The JSON answer. NotFound, Refused, or Unavailable when nobody is there."""
        status, body = self._request("GET", path, None)
        return json.loads(_checked(status, body))

    def post(self, path: str, document: Any) -> Any:
        """As `get`. After Unavailable nothing was acknowledged."""
        status, body = self._request("POST", path, json.dumps(document, separators=(",", ":")).encode())
        return json.loads(_checked(status, body))

    def delete(self, path: str) -> Any:
        """As `get`, of an answer to a DELETE."""
        status, body = self._request("DELETE", path, None)
        return json.loads(_checked(status, body))

    def stream(self, path: str) -> Iterator[tuple[Mapping[str, str], bytes]]:
        """The answer's headers (names in lower case) with each line of its body, once with an empty one before the first.
        Unavailable when nobody is there and when the stream breaks off."""
        connection = self._connect(timeout=TIMEOUT)
        try:
            connection.request("GET", path, headers=self._headers())
            answer = connection.getresponse()
            if answer.status != 200:
                _checked(answer.status, answer.read())
            headers = {name.lower(): value for name, value in answer.getheaders()}
            yield headers, b""
            while line := answer.readline():
                yield headers, line
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()

    def lines(self, path: str, connected: Callable[[], object]) -> Iterator[bytes]:
        """The lines of a streamed answer as they come; `connected` is called before the first. Unavailable when nobody is
        there and when the stream ends."""
        connection = self._connect(timeout=None)
        try:
            connection.request("GET", path, headers=self._headers())
            answer = connection.getresponse()
            if answer.status != 200:
                _checked(answer.status, answer.read())
            connected()
            while line := answer.readline():
                if line.strip():
                    yield line
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()
        raise Unavailable(f"{self.address} ended the stream")

    def close(self) -> None:
        """Closes the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _request(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        reused = self._connection is not None
        try:
            return self._once(method, path, body)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if not reused or isinstance(error, TimeoutError):
                raise self._unreachable(error) from error
        try:
            return self._once(
                method, path, body
            )  # an idle connection had been closed; messageId makes repeats harmless
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._unreachable(error) from error

    def _once(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = self._connect(timeout=TIMEOUT)
        self._connection.request(method, path, body, self._headers())
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def _connect(self, timeout: float | None) -> http.client.HTTPConnection:
        parts = urlsplit(self.address)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise ConfigError(f"{self.address}: not an address; write http://host:port")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname, parts.port, timeout=timeout)
        try:
            connection.connect()
        except OSError as error:
            raise self._unreachable(error) from error
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _headers(self) -> dict[str, str]:
        return {
            "Authorization": "Basic " + b64encode(f"{self.user}:".encode()).decode(),
            "Content-Type": "application/json",
            "Accept": "application/json",
        }

    def _unreachable(self, error: Exception) -> Unavailable:
        said = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        return Unavailable(
            f"{self.address} does not answer ({said}); start it with `millrace up`, or say where it is with --url or --data"
        )


def _checked(status: int, body: bytes) -> bytes:
    if status == 200:
        return body
    said = _message(body)
    if status == 404:
        raise NotFound(said)
    if status == 401:
        raise ConfigError(
            f"the key or token is refused ({said}); give the data folder of the running Millrace with --data, "
            "or set MILLRACE_API_TOKEN or MILLRACE_WRITE_KEY"
        )
    if status == 429 or status >= 500:
        raise Unavailable(f"the server answers {status} ({said}); try again in a moment")
    raise Refused("refused", f"the server answers {status} ({said})", status=status)


def _message(body: bytes) -> str:
    try:
        answer = json.loads(body)
    except ValueError:
        return body[:200].decode(errors="replace").strip() or "no explanation"
    if isinstance(answer, dict):
        error = answer.get("error", answer.get("message"))
        return str(error.get("message", error) if isinstance(error, dict) else error)
    return str(answer)
