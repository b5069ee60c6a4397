"""OAuth for servers: client credentials against a signed assertion (RFC 7523), and the bearer tokens that come of it.

Tokens are signed, not stored: every collect process with the same secret knows them.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final, TypeGuard
from urllib.parse import parse_qs, urlsplit

import orjson
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey, RSAKey
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from collector.headers import public_host
from schemas.errors import ConfigError, Refused

SCOPE: Final = "tracking_api:write"
LIFETIME: Final = 86_400  # seconds of a token
ASSERTION_LIFETIME: Final = 120  # seconds at most from `iat` to `exp`: SDKs take sixty
LEEWAY: Final = 5  # seconds that clocks may differ
FORM_LIMIT: Final = 16_384  # bytes
REMEMBERED: Final = 10_000  # tokens that were looked into before
_ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientKey:
    """A public key with which a client of a source proves who it is. `pem` holds an RSA key."""

    client_id: str
    source: str
    pem: str


class TokenRefused(Exception):
    """Answered as OAuth wants it. Descriptions of two errors are fixed: SDKs try again at once when they read them."""

    def __init__(self, error: str, description: str, status: int = 400) -> None:
        super().__init__(description)
        self.error, self.description, self.status = error, description, status


class OAuth:
    """`keys` by key id. `clock` gives Unix seconds."""

    def __init__(self, keys: Mapping[str, ClientKey], secret: bytes, clock: Callable[[], float] = time.time) -> None:
        self._clients = keys
        self._keys = {key_id: _read(key_id, key) for key_id, key in keys.items()}
        self._secret = OctKey.import_key(secret)
        self._clock = clock
        self._used: dict[str, float] = {}  # assertions that were used, until they expire
        self._known: dict[bytes, tuple[str, float]] = {}

    def token(self, form: Mapping[str, str], host: str) -> dict[str, Any]:
        """The answer to a token request that came to `host`. Raises TokenRefused."""
        if form.get("grant_type") != "client_credentials":
            raise TokenRefused("unsupported_grant_type", "grant_type must be client_credentials")
        if form.get("client_assertion_type") != _ASSERTION_TYPE:
            raise TokenRefused("invalid_request", f"client_assertion_type must be {_ASSERTION_TYPE}")
        if SCOPE not in form.get("scope", SCOPE).split():
            raise TokenRefused("invalid_scope", f"the only scope is {SCOPE}")
        client = self._proven(form.get("client_assertion", ""), host)
        now = int(self._clock())
        claims = {"sub": client.client_id, "source": client.source, "iat": now, "exp": now + LIFETIME}
        token = jwt.encode({"alg": "HS256", "typ": "JWT"}, claims, self._secret)
        return {"access_token": token, "token_type": "Bearer", "expires_in": LIFETIME, "scope": SCOPE}

    def source(self, token: bytes) -> str:
        """The source that a bearer token authorises writing to. Refused when it is none of ours or too old."""
        now = self._clock()
        known = self._known.get(token)
        if known is None:
            known = self._look_into(token)
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[token] = known
        source, end = known
        if end <= now:
            raise _invalid_token("the token has expired")
        return source

    def _look_into(self, token: bytes) -> tuple[str, float]:
        try:
            claims = jwt.decode(token, self._secret, algorithms=["HS256"]).claims
            client_id, source, end = claims["sub"], claims["source"], claims["exp"]
        except (JoseError, ValueError, KeyError) as error:
            raise _invalid_token("the token is not one of ours") from error
        if (client_id, source) not in {(client.client_id, client.source) for client in self._clients.values()}:
            raise _invalid_token("the token's client is not configured any more")
        return source, end

    def _proven(self, assertion: str, host: str) -> ClientKey:
        """Who signed the assertion."""
        try:
            token = jwt.decode(assertion, lambda signed: self._key_of(signed.headers()), algorithms=["RS256"])
        except (JoseError, ValueError) as error:
            raise TokenRefused("invalid_client", f"client_assertion: {error}", 401) from error
        client = self._clients[token.header["kid"]]
        self._check(token.claims, client, host)
        return client

    def _key_of(self, header: Mapping[str, Any]) -> RSAKey:
        key = self._keys.get(header.get("kid") or "")
        if key is None:
            raise TokenRefused(
                "invalid_client", "the key id (kid) is not known: add its public key to a client in millrace.yaml", 401
            )
        return key

    def _check(self, claims: Mapping[str, Any], client: ClientKey, host: str) -> None:
        now = self._clock()
        issued, end, once = claims.get("iat"), claims.get("exp"), claims.get("jti")
        if claims.get("sub") != client.client_id:
            raise TokenRefused(
                "invalid_client", "sub is not the id of the client that the key belongs to in millrace.yaml", 401
            )
        if not _is_number(issued) or not _is_number(end) or not isinstance(once, str) or not once:
            raise TokenRefused("invalid_request", "the assertion needs iat, exp and jti")
        meant_for = claims.get("aud")
        if host.lower() not in map(_host_of, meant_for if isinstance(meant_for, list) else [meant_for]):
            raise TokenRefused("invalid_client", f"aud must be the address of this server, {host}", 401)
        if end <= now - LEEWAY:
            raise TokenRefused("invalid_request", "Token is expired")
        if issued > now + LEEWAY:
            raise TokenRefused("invalid_request", "Token used before issued")
        if end - issued > ASSERTION_LIFETIME:
            raise TokenRefused("invalid_request", f"exp is at most {ASSERTION_LIFETIME} seconds after iat")
        self._use_once(f"{client.client_id} {once}", end + LEEWAY, now)

    def _use_once(self, name: str, end: float, now: float) -> None:
        """An assertion that was overheard is worth nothing again, to this process."""
        self._used = {known: until for known, until in self._used.items() if until > now}
        if name in self._used:
            raise TokenRefused("invalid_request", "the assertion was used before (jti): sign a new one")
        self._used[name] = end


def _is_number(value: object) -> TypeGuard[float]:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and (isinstance(value, int) or isfinite(value))
    )


def _host_of(address: object) -> str:
    try:
        return urlsplit(str(address)).netloc.lower()
    except ValueError:  # brackets that hold no address
        return ""


def _invalid_token(message: str) -> Refused:
    return Refused("invalid_token", f"{message}; get a new one at /token", status=401)


def _read(key_id: str, key: ClientKey) -> RSAKey:
    try:
        return RSAKey.import_key(key.pem)
    except (JoseError, ValueError, TypeError) as error:
        raise ConfigError(
            f"sources.{key.source}.oauth_clients: key {key_id} cannot be read ({error}); give an RSA public key as PEM"
        ) from error


# ── HTTP ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def oauth_routes(oauth: OAuth | None, trusted_hops: int = 0) -> Sequence[BaseRoute]:
    """The token endpoint, where SDKs look for it. None when no source has clients, which whoever asks is told. `trusted_hops` as
    the collector has them."""

    async def token(request: Request) -> Response:
        try:
            if oauth is None:
                raise TokenRefused("invalid_client", _NO_CLIENTS, 401)
            if request.method != "POST":
                raise TokenRefused("invalid_request", "a token is asked for by POST", 405)
            forwarded_hosts = request.headers.getlist("x-forwarded-host")
            host = public_host(request.headers.get("host", ""), forwarded_hosts, trusted_hops)
            return _answer(200, oauth.token(await _form(request), host))
        except TokenRefused as refused:
            answer = _answer(refused.status, {"error": refused.error, "error_description": refused.description})
            if refused.status == 405:
                answer.headers["allow"] = "POST"
            return answer

    paths = ("/token", "/oauth2/token", "/v1/token")
    return [Route(path + slash, token, methods=["GET", "POST"]) for path in paths for slash in ("", "/")]


_NO_CLIENTS: Final = "no source has OAuth clients: give one oauth_clients in millrace.yaml, or send its write key"


async def _form(request: Request) -> Mapping[str, str]:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > FORM_LIMIT:
            raise TokenRefused("invalid_request", "the form is too large")
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=20)
    except ValueError as error:
        raise TokenRefused("invalid_request", "the body is not a form") from error
    if any(len(values) > 1 for values in fields.values()):
        raise TokenRefused("invalid_request", "a field is given twice")
    return {name: values[0] for name, values in fields.items()}


def _answer(status: int, content: Mapping[str, Any]) -> Response:
    headers = {"Cache-Control": "no-store"}
    return Response(orjson.dumps(content), status, headers, media_type="application/json")
