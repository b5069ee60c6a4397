"""What the collector reads from request headers and says in its own. Works on raw header bytes, below any framework."""

import binascii
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Collection, Mapping, Sequence
from ipaddress import IPv6Address, ip_address
from typing import Final, Literal

from collector.sources import token_required, unknown_source

Headers = list[tuple[bytes, bytes]]

# ── Authorization ─────────────────────────────────────────────────────────────────────────────────────────────────


class Authorization:
    """Finds the source of an Authorization header. Known keys are one look-up in a table of whole header values. `bearer`
    finds the source of a token; without it, tokens are passed over. The sources of `token_only` are found by nothing else."""

    def __init__(
        self,
        sources: Mapping[str, str],
        bearer: Callable[[bytes], str] | None = None,
        token_only: Collection[str] = frozenset(),
    ) -> None:
        self._sources = sources
        self._bearer = bearer
        self._token_only = token_only
        sources = {key: source for key, source in sources.items() if source not in token_only}
        self._whole = {
            b"Basic " + b64encode(f"{key}{colon}".encode()): source
            for key, source in sources.items()
            for colon in (":", "")
        } | {b"Bearer " + key.encode(): source for key, source in sources.items()}  # Customer.io's regional keys

    def source(self, authorization: bytes | None) -> str | None:
        """None when the header names no source (there is none, or an empty user): then the body has to. Refused when it
        names an unknown one. The password is ignored, and so is a missing colon."""
        if authorization is None:
            return None
        source = self._whole.get(authorization)
        if source is not None:
            return source
        if self._bearer is not None and authorization[:7].lower() == b"bearer ":
            return self._bearer(authorization[7:].strip())
        key = _basic_user(authorization)
        if not key:
            return None
        source = self._sources.get(key)
        if source is None:
            raise unknown_source()
        if source in self._token_only:
            raise token_required(source)
        return source


def _basic_user(authorization: bytes) -> str:
    scheme, _, credentials = authorization.strip().partition(b" ")
    if scheme.lower() != b"basic":
        return ""
    credentials = credentials.strip()
    try:
        return b64decode(credentials + b"=" * (-len(credentials) % 4)).decode().partition(":")[0]
    except (binascii.Error, UnicodeDecodeError):
        return ""


# ── The body ──────────────────────────────────────────────────────────────────────────────────────────────────────


def content_encoding(headers: Headers) -> bytes:
    """In the order of compression: a field on several lines is one with a comma between them (RFC 9110, section 5.3)."""
    return b",".join([value for name, value in headers if name == b"content-encoding"])


# ── The caller's address ──────────────────────────────────────────────────────────────────────────────────────────


def client_ip(peer: str | None, forwarded_for: Sequence[bytes], trusted_hops: int) -> str | None:
    """The address that called us: the peer's, or with `trusted_hops` proxies of ours in front, the entry of
    X-Forwarded-For which the outermost of them wrote. What lies further left anyone could have written."""
    if trusted_hops > 0 and forwarded_for:
        entries = b",".join(forwarded_for).split(b",")
        if len(entries) >= trusted_hops:
            address = _address(entries[-trusted_hops].strip().decode("latin-1"))
            if address is not None:
                return address
    return _address(peer) if peer and ":" in peer else peer


def public_host(host: str, forwarded_hosts: Sequence[str], trusted_hops: int) -> str:
    """The name by which the client called us: what `Host` says, or with `trusted_hops` proxies of ours in front, what the outermost
    of them noted in X-Forwarded-Host before it put another name into its own request."""
    names = [name for value in forwarded_hosts for one in value.split(",") if (name := one.strip())]
    return names[-trusted_hops:][0] if trusted_hops and names else host


KeepIp = Literal["all", "ipv4", "none"]


def kept_ip(ip: str | None, keep: KeepIp) -> str | None:
    """The address, if addresses of its kind are to be kept."""
    if keep == "none" or ip is None:
        return None
    return None if keep == "ipv4" and ":" in ip else ip


def _address(text: str) -> str | None:
    """The address without port, brackets, zone and the IPv6 dress of an IPv4 address; None when it is none."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)


# ── CORS ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_EXPOSED: Final = (b"access-control-expose-headers", b"Retry-After, X-RateLimit-Reset")
_ANYONE: Final[Headers] = [(b"access-control-allow-origin", b"*"), _EXPOSED]
_ALLOWED: Final = ("Authorization", "Content-Type", "X-Retry-Count")
_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_MAX_ECHOED: Final = 50


def cors(origin: bytes | None) -> Headers:
    """On every answer. A page gets its own origin back, since it may send credentials, which `*` forbids."""
    if origin is None:
        return _ANYONE
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-allow-credentials", b"true"),
        (b"vary", b"Origin"),
        _EXPOSED,
    ]


def preflight(headers: Mapping[bytes, bytes]) -> Headers:
    """The answer to OPTIONS: what SDKs send is named, since `*` never covers Authorization, and so is what is asked for."""
    asked = headers.get(b"access-control-request-headers", b"").decode("latin-1").split(",")[:_MAX_ECHOED]
    known = {name.lower() for name in _ALLOWED}
    extra = [name for one in asked if _TOKEN.fullmatch(name := one.strip()) and name.lower() not in known]
    answer = [
        *cors(headers.get(b"origin")),
        (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
        (b"access-control-allow-headers", ", ".join((*_ALLOWED, *extra)).encode("latin-1")),
        (b"access-control-max-age", b"86400"),
        (b"content-length", b"0"),
    ]
    if b"access-control-request-private-network" in headers:
        answer.append((b"access-control-allow-private-network", b"true"))
    return answer
