"""Access tokens of services that want OAuth (RFC 6749, client credentials): got once, shared by all calls, renewed once when a call
finds that they are no longer taken."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from math import inf
from typing import Any, Final, NamedTuple
from urllib.parse import quote_plus, urlencode

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, SecretStr

from destinations.contract import Env, Outcome, Retry
from destinations.http.failure import ExchangeFailed
from destinations.http.request import Request
from destinations.outbound import user_agent, verdict
from schemas.errors import CredentialsRejected, Unavailable
from schemas.exact_json import json_loads

REFRESH_FAILED: Final = "OAUTH_REFRESH_FAILED"
TIMEOUT: Final = 10.0  # seconds for an answer of the token endpoint
_USED: Final = 0.9  # of its life: then a token is renewed before anybody refuses it


class OAuth(BaseModel):
    """How to get access tokens (client credentials)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    token_url: HttpUrl = Field(description="Address that gives tokens.")
    client_id: str = Field(min_length=1, description="Who we are there.")
    client_secret: SecretStr = Field(min_length=1, description="What only we know there.")
    scope: str | None = Field(
        None, min_length=1, description="What the tokens are to be good for, as the service names it."
    )


class Token(NamedTuple):
    """An access token, and until when it is used (Unix seconds)."""

    value: str
    until: float


class Tokens:
    """The tokens of one destination. However many calls want a new one at once, it is asked for once."""

    def __init__(self, settings: OAuth, env: Env) -> None:
        pair = f"{quote_plus(settings.client_id)}:{quote_plus(settings.client_secret.get_secret_value())}"
        headers = {
            "Authorization": f"Basic {b64encode(pair.encode()).decode()}",
            "Content-Type": "application/x-www-form-urlencoded",
            "Accept": "application/json",
            "User-Agent": user_agent(),
        }
        scope = {} if settings.scope is None else {"scope": settings.scope}
        self._request = Request("POST", str(settings.token_url), headers)
        self._body = urlencode({"grant_type": "client_credentials"} | scope).encode()
        self._env = env
        self._token: Token | None = None
        self._renewal: asyncio.Task[Token | Retry] | None = None

    async def authorized(self, call: Callable[[Mapping[str, str]], Awaitable[Outcome]]) -> Outcome:
        """What comes of `call`, which is given the headers that authorise it; once more with a new token when it is answered 401.

        A token that cannot be had now is a Retry. CredentialsRejected: the service refuses our credentials, or a token that is new."""
        token = await self.token()
        if isinstance(token, Retry):
            return token
        try:
            return await call(_bearing(token))
        except CredentialsRejected as error:
            if str(error) != "http 401":
                raise
        token = await self.token(refused=token)
        return token if isinstance(token, Retry) else await call(_bearing(token))

    async def token(self, refused: Token | None = None) -> Token | Retry:
        """A token that is good as far as we know, and another than the one that was refused."""
        known = self._token
        if known is not None and known is not refused and self._env.now() < known.until:
            return known
        if self._renewal is None:
            self._renewal = asyncio.ensure_future(self._renewed())
            self._renewal.add_done_callback(self._keep)
        return await asyncio.shield(self._renewal)  # others wait for it, too

    async def bearing(self) -> dict[str, str]:
        """Headers with a token. Unavailable while none can be had."""
        token = await self.token()
        if isinstance(token, Retry):
            raise Unavailable(token.reason)
        return _bearing(token)

    async def close(self) -> None:
        """Gives up a renewal that is under way."""
        if (renewal := self._renewal) is not None:
            renewal.cancel()
            await asyncio.gather(renewal, return_exceptions=True)

    def _keep(self, renewal: "asyncio.Task[Token | Retry]") -> None:
        self._renewal = None
        if not renewal.cancelled() and renewal.exception() is None and isinstance(found := renewal.result(), Token):
            self._token = found

    async def _renewed(self) -> Token | Retry:
        try:
            answer = await self._env.http.send(self._request, self._body, timeout=TIMEOUT)
        except ExchangeFailed as error:
            return Retry(f"{REFRESH_FAILED}: {error.reason}")
        now = self._env.now()
        if 200 <= answer.status < 300:
            return _token_of(answer.body, now)
        try:
            said = verdict(answer.status, answer.headers.get("retry-after"), now)
        except CredentialsRejected as error:
            raise CredentialsRejected(f"{REFRESH_FAILED}: {error}") from error
        if isinstance(said, Retry):
            return Retry(f"{REFRESH_FAILED}: {said.reason}", said.after)
        raise CredentialsRejected(f"{REFRESH_FAILED}: http {answer.status}")


@asynccontextmanager
async def tokens_of(settings: OAuth, env: Env) -> AsyncIterator[Tokens]:
    """Tokens for a destination's life, the first of which is there. CredentialsRejected and Unavailable when it cannot be had."""
    tokens = Tokens(settings, env)
    try:
        await tokens.bearing()
        yield tokens
    finally:
        await tokens.close()


def _bearing(token: Token) -> dict[str, str]:
    return {"Authorization": f"Bearer {token.value}"}


def _token_of(body: bytes, now: float) -> Token:
    try:
        said: Any = json_loads(body)
    except ValueError:
        said = None
    value = said.get("access_token") if isinstance(said, dict) else None
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or not value:
        raise CredentialsRejected(f"{REFRESH_FAILED}: the answer holds no access_token")
    seconds = said.get("expires_in")
    known = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    return Token(value, now + seconds * _USED if known else inf)
