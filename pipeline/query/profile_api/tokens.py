"""Who asks, and how much they may: tokens as they stand in the database, looked at again every second."""

import asyncio
import base64
import binascii
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Final

from pipeline.store import tokens
from pipeline.store.database import Database
from pipeline.store.tokens import SCOPES, Token
from schemas.errors import Refused

FRESH: Final = 1.0  # seconds that a revoked token may still be taken for valid
REMEMBERED: Final = 1_024  # credentials whose hash is not made again
OPERATOR: Final = Token(
    id="api", name="the API token", scopes=frozenset(SCOPES), traits=None, per_second=10_000, created_at=0
)
_UNKNOWN: Final = Refused(
    "authentication_error",
    "Send a token as Basic user name, with an empty password; `millrace tokens create` makes one.",
    status=401,
)


class Tokens:
    """Finds the token of a request. `api_token` is the operator's own, which may everything and needs no database."""

    def __init__(self, database: Database, api_token: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._api_token = api_token.encode()
        self._clock = clock
        self._known: dict[str, Token] = {}
        self._hashes: dict[bytes, str] = {}
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    async def authenticate(self, authorization: bytes) -> Token:
        """The token of an Authorization header. Refused (401) when there is none, Unavailable when nobody can say."""
        secret = credential(authorization)
        if not secret:
            raise _UNKNOWN
        if secrets.compare_digest(secret, self._api_token):
            return OPERATOR
        if self._clock() - self._read_at > FRESH:
            await self.refresh()
        found = self._known.get(self._hash(secret))
        if found is None:
            raise _UNKNOWN
        return found

    async def refresh(self) -> None:
        """Reads the tokens now. Those who ask meanwhile wait for the same answer."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._read())
            self._reading.add_done_callback(self._done)
        await asyncio.shield(self._reading)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._reading = None
        if not task.cancelled():
            task.exception()  # whoever waits raises it; nobody may be left to

    async def _read(self) -> None:
        began = self._clock()
        self._known = await self._database.read(tokens.valid)
        self._read_at = began

    def _hash(self, secret: bytes) -> str:
        known = self._hashes.get(secret)
        if known is None:
            if len(self._hashes) >= REMEMBERED:
                self._hashes.clear()
            known = self._hashes[secret] = tokens.hash_of(secret.decode(errors="replace"))
        return known


def credential(authorization: bytes) -> bytes:
    """The secret in an Authorization header: a Basic user name, or Bearer. Empty when there is none. Pure."""
    scheme, _, value = authorization.partition(b" ")
    kind = scheme.lower()
    if kind == b"basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[0]
        except binascii.Error:
            return b""
    return value.strip() if kind == b"bearer" else b""


def new_token(
    name: str,
    *,
    scopes: frozenset[str] = frozenset(("profiles:read",)),
    traits: frozenset[str] | None = None,
    per_second: int = 1_000,
) -> tuple[Token, str]:
    """A token and its secret, which is shown once. Refused when it asks for what there is not."""
    if not name.strip() or len(name) > 200 or "\0" in name:
        raise Refused("validation_error", "name must say what the token is for, in at most 200 characters.")
    if not scopes or not scopes <= set(SCOPES):
        raise Refused("validation_error", f"scopes must be some of {', '.join(SCOPES)}.")
    if not 1 <= per_second <= 1_000_000:
        raise Refused("validation_error", "requests_per_second must be a whole number from 1 to 1000000.")
    if traits is not None and any("\0" in one for one in traits):
        raise Refused("validation_error", "traits must be names without NUL characters.")
    token = Token(
        id="tok_" + secrets.token_hex(8),
        name=name.strip(),
        scopes=scopes,
        traits=traits,
        per_second=per_second,
        created_at=time.time_ns() // 1_000,
    )
    return token, "mrp_" + secrets.token_urlsafe(24)


def allow(token: Token, scope: str) -> None:
    """Refused (403) unless the token has the scope."""
    if scope not in token.scopes:
        raise Refused("forbidden", f"The token lacks the scope {scope}; make one that has it.", status=403)


# ── Rates ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Quota:
    """What is left of a second: `reset` is when the next begins, in seconds from now."""

    limit: int
    remaining: int
    reset: int

    @property
    def exceeded(self) -> bool:
        return self.remaining < 0


class Rates:
    """Requests per second, counted for each token in whole seconds of the clock, in this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._second = 0
        self._counts: dict[str, int] = {}

    def take(self, token: str, per_second: int) -> Quota:
        """Counts one request; it may have been one too many."""
        now = self._clock()
        if int(now) != self._second:
            self._second = int(now)
            self._counts.clear()
        count = self._counts[token] = self._counts.get(token, 0) + 1
        return Quota(per_second, per_second - count, max(1, ceil(self._second + 1 - now)))
