"""What destinations that speak HTTP share: a request out, one outcome back.

2xx is delivered; 408, 423, 429 and 5xx but 501 come back later; 401 and 403 pause the destination; everything else,
redirects included, is rejected.
"""

import asyncio
import ssl
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from destinations.contract import DELIVERED, Outcome, Rejected, Retry
from destinations.exchanges import Exchange, note
from destinations.guard import AddressRefused
from schemas.errors import CredentialsRejected

if TYPE_CHECKING:
    import aiohttp

ADDRESS_REFUSED: Final = "address is not public; name its network under outbound.allow"
MAX_RETRY_AFTER: Final = 3600.0  # seconds; a service cannot park a batch for longer
MAX_ANSWER_BYTES: Final = 65_536  # of a response body; the rest is not read and the connection is not reused
_KEPT: Final = 4_096  # bytes of an answer that are shown to people
_RETRIED_4XX: Final = frozenset((408, 423, 429))


@cache
def user_agent() -> str:
    """How Millrace names itself to services."""
    return f"Millrace/{version('millrace')}"


def verdict(status: int, retry_after: str | None, now: float) -> Outcome:
    """The outcome that an HTTP status stands for. Raises CredentialsRejected for 401 and 403.

    `retry_after` is the header's value, seconds or an HTTP date; `now` is Unix time in seconds."""
    reason = f"http {status}"
    if 200 <= status < 300:
        return DELIVERED
    if status in (401, 403):
        raise CredentialsRejected(reason)
    if status in _RETRIED_4XX or (status >= 500 and status != 501):
        return Retry(reason, wait_of(retry_after, now))
    return Rejected(reason)


def wait_of(retry_after: str | None, now: float) -> float | None:
    """Seconds that a `Retry-After` header asks for, at most MAX_RETRY_AFTER; None without one or when it is neither
    whole seconds nor a date."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), MAX_RETRY_AFTER)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(max(moment.timestamp() - now, 0.0), MAX_RETRY_AFTER)


def fault_of(error: BaseException) -> str:
    """Names a failed exchange in a few words that group, without addresses or secrets."""
    import aiohttp

    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return "tls handshake failed"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "host not found"
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, AddressRefused):
        return ADDRESS_REFUSED
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "cannot connect"
    if isinstance(error, aiohttp.ServerDisconnectedError | ConnectionError):
        return "connection lost"
    return "http exchange failed"


async def post(
    http: "aiohttp.ClientSession", url: str, body: bytes, headers: Mapping[str, str], *, timeout: float, now: float
) -> Outcome:
    """Posts `body` once and says what became of it. Redirects are not followed: they would carry the headers' secrets
    elsewhere. Raises CredentialsRejected; a failed exchange is a Retry."""
    import aiohttp

    def noted(
        reason: str, status: int | None = None, said: Mapping[str, str] | None = None, answer: bytes = b""
    ) -> None:
        note(
            Exchange(
                reason=reason,
                method="POST",
                url=url,
                headers=headers,
                body=body,
                status=status,
                answer_headers=dict(said or {}),
                answer=answer,
            )
        )

    try:
        async with http.post(
            url, data=body, headers=headers, allow_redirects=False, timeout=aiohttp.ClientTimeout(total=timeout)
        ) as response:
            answer = await _drained(response)
            if not 200 <= response.status < 300:
                noted(f"http {response.status}", response.status, response.headers, answer)
            return verdict(response.status, response.headers.get("Retry-After"), now)
    except (TimeoutError, aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as error:
        reason = fault_of(error)
        noted(reason)
        return Retry(reason)


async def _drained(response: "aiohttp.ClientResponse") -> bytes:
    """Reads a short answer so that its connection can serve again; gives up on one that is long or breaks off. Its beginning.

    The status has already said what happened, so nothing here can change the outcome."""
    import aiohttp

    kept = b""
    try:
        left = MAX_ANSWER_BYTES
        async for chunk in response.content.iter_any():
            kept += chunk[: _KEPT - len(kept)]
            left -= len(chunk)
            if left < 0:
                response.close()
                break
    except (TimeoutError, aiohttp.ClientError, OSError):
        response.close()
    return kept
