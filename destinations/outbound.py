"""What destinations that speak HTTP share: a request out, one outcome back.

2xx is delivered; 408, 423, 429 and 5xx but 501 come back later; 401 and 403 pause the destination; everything else,
redirects included, is rejected.
"""

from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import cache
from importlib.metadata import version
from typing import Final

from destinations.contract import DELIVERED, Outcome, Rejected, Retry
from destinations.exchanges import Exchange, note
from destinations.http.answer import Answer
from destinations.http.client import Client
from destinations.http.failure import ExchangeFailed
from destinations.http.request import Request
from schemas.errors import CredentialsRejected

MAX_RETRY_AFTER: Final = 3600.0  # seconds; a service cannot park a batch for longer
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


async def post(
    http: Client, url: str, body: bytes, headers: Mapping[str, str], *, timeout: float, now: float
) -> Outcome:
    """Posts `body` once and says what became of it. Redirects are not followed: they would carry the headers' secrets
    elsewhere. Raises CredentialsRejected; a failed exchange is a Retry."""
    try:
        request = Request("POST", url, headers)
    except ExchangeFailed as error:
        return Retry(error.reason)
    return await send(http, request, body, {}, timeout=timeout, now=now)


async def send(
    http: Client, request: Request, body: bytes, headers: Mapping[str, str], *, timeout: float, now: float
) -> Outcome:
    """The same for a request that is sent many times with other bodies; `headers` are those that change."""
    try:
        answer = await http.send(request, body, headers, timeout=timeout)
    except ExchangeFailed as error:
        _note(error.reason, request, body, headers, None)
        return Retry(error.reason)
    if 200 <= answer.status < 300:
        return DELIVERED
    _note(f"http {answer.status}", request, body, headers, answer)
    return verdict(answer.status, answer.headers.get("retry-after"), now)


def _note(reason: str, request: Request, body: bytes, headers: Mapping[str, str], answer: Answer | None) -> None:
    note(
        Exchange(
            reason=reason,
            method=request.method,
            url=request.url,
            headers={**request.headers, **headers},
            body=body,
            status=answer.status if answer else None,
            answer_headers=answer.headers if answer else {},
            answer=answer.body[:_KEPT] if answer else b"",
        )
    )
