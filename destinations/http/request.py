"""What goes out: an address and headers, checked and made into bytes once for as many requests as are alike. Pure."""

from base64 import b64encode
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import SplitResult, quote, unquote, urlsplit

from destinations.http.failure import UNSENDABLE, ExchangeFailed

_PORTS: Final = {"http": 80, "https": 443}
_FRAMING: Final = frozenset(("content-length", "transfer-encoding"))
_DEFAULTS: Final = {"Accept": "*/*", "Accept-Encoding": "identity"}  # answers are read by people: nothing to inflate
_BODILESS: Final = frozenset(("GET", "HEAD"))
_PATH_SAFE: Final = "/%:@!$&'()*+,;=~-._"


class Origin(NamedTuple):
    """Whom connections are made to, and shared between requests for. `host` is a name or a number, without brackets."""

    scheme: str
    host: str
    port: int


class Request:
    """A method, an address and headers, ready to be sent any number of times.

    Raises ExchangeFailed for an address or a header that HTTP cannot carry: line breaks in it would be a second request."""

    __slots__ = ("_head", "_sized", "head_only", "headers", "method", "origin", "url")

    def __init__(self, method: str, url: str, headers: Mapping[str, str]) -> None:
        self.method, self.url, self.headers = method, url, headers
        parts = _split(url)
        self.origin = _origin(parts)
        self.head_only = method == "HEAD"
        self._sized = method not in _BODILESS
        given = {name.lower() for name in headers}
        own = {"Host": _authority(self.origin)} | _DEFAULTS | _authorization(parts)
        kept = {name: value for name, value in own.items() if name.lower() not in given}
        self._head = f"{_method(method)} {_target(parts)} HTTP/1.1\r\n{_lines(kept)}{_lines(headers)}"

    def written(self, body: bytes, headers: Mapping[str, str]) -> bytes:
        """The bytes of one request: `headers` are added to those it has. Raises ExchangeFailed as above."""
        sized = f"Content-Length: {len(body)}\r\n" if self._sized or body else ""
        return f"{self._head}{_lines(headers)}{sized}\r\n".encode("ascii") + body


def _lines(headers: Mapping[str, str]) -> str:
    lines = ""
    for name, value in headers.items():
        if not (value.isascii() and value.isprintable()):
            raise ExchangeFailed(f"{UNSENDABLE}: the value of header {_named(name)} is not printable ASCII")
        lines += f"{_named(name)}: {value}\r\n"
    return lines


@lru_cache(256)
def _named(name: str) -> str:
    if not (name.isascii() and name.replace("-", "").replace("_", "").isalnum()):
        raise ExchangeFailed(f"{UNSENDABLE}: a header's name has other signs than letters, digits and '-'")
    if name.lower() in _FRAMING:
        raise ExchangeFailed(f"{UNSENDABLE}: header {name} is for the client to set")
    return name


def _method(method: str) -> str:
    if not (method.isascii() and method.isalpha() and method.isupper()):
        raise ExchangeFailed(f"{UNSENDABLE}: the method is no word in capitals")
    return method


def _split(url: str) -> SplitResult:
    if not url.isprintable() or " " in url:  # what splits it would drop line breaks without a word
        raise ExchangeFailed(f"{UNSENDABLE}: the address holds a space or a control character")
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # its look-up is what checks it
    except ValueError as error:
        raise ExchangeFailed(f"{UNSENDABLE}: the address is none") from error
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ExchangeFailed(f"{UNSENDABLE}: the address does not begin with http:// or https:// and a host")
    return parts


def _origin(parts: SplitResult) -> Origin:
    port = _PORTS[parts.scheme] if parts.port is None else parts.port
    host = parts.hostname or ""
    if not host.isascii():
        try:
            host = host.encode("idna").decode()
        except UnicodeError as error:
            raise ExchangeFailed(f"{UNSENDABLE}: the host is no name") from error
    return Origin(parts.scheme, host, port)


def _authority(origin: Origin) -> str:
    host = f"[{origin.host.partition('%')[0]}]" if ":" in origin.host else origin.host
    return host if origin.port == _PORTS[origin.scheme] else f"{host}:{origin.port}"


def _authorization(parts: SplitResult) -> dict[str, str]:
    """Name and password of an address, as a browser sends them."""
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}


def _target(parts: SplitResult) -> str:
    path = quote(parts.path or "/", safe=_PATH_SAFE)
    return f"{path}?{quote(parts.query, safe=_PATH_SAFE + '?')}" if parts.query else path
