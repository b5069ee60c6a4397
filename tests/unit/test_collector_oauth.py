"""OAuth for servers: what proves a client, what its token is good for, and what SDKs read in a refusal."""

import hmac
import json
from base64 import b64encode, urlsafe_b64encode
from math import inf, nan
from typing import Any
from urllib.parse import urlencode

import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey
from starlette.applications import Starlette

from collector.app import create_collector
from collector.oauth import (
    ASSERTION_LIFETIME,
    FORM_LIMIT,
    LEEWAY,
    LIFETIME,
    ClientKey,
    OAuth,
    TokenRefused,
    oauth_routes,
)
from collector.sources import Policy
from schemas.errors import ConfigError, Refused
from tests.unit.test_collector import RecordingLog, call, dumped

NOW = 1_767_225_600
PRIVATE = RSAKey.generate_key(2048, private=True)
OTHER = RSAKey.generate_key(2048, private=True)
TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


class Clock:
    now: float = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def oauth(clock: Clock) -> OAuth:
    pem = PRIVATE.as_pem(private=False).decode()
    return OAuth({"k1": ClientKey(client_id="reports", source="backend", pem=pem)}, b"s" * 32, clock)


def assertion(*, key: RSAKey = PRIVATE, header: dict[str, Any] | None = None, **claims: Any) -> str:
    """As SDKs make it; claims that are None are left out."""
    whole = {
        "sub": "reports",
        "iss": "reports",
        "aud": "https://cdp.example",
        "iat": NOW - 5,
        "exp": NOW + 55,
        "jti": "j1",
        **claims,
    }
    given = {name: value for name, value in whole.items() if value is not None}
    return jwt.encode(header or {"alg": "RS256", "typ": "JWT", "kid": "k1"}, given, key)


def form(**fields: str) -> dict[str, str]:
    whole = {"grant_type": "client_credentials", "client_assertion_type": TYPE, "scope": "tracking_api:write"}
    return {**whole, "client_assertion": assertion(), **fields}


def test_a_proven_client_gets_a_token_for_its_source(oauth: OAuth) -> None:
    answer = oauth.token(form(), "cdp.example")
    token = answer.pop("access_token")
    assert answer == {"token_type": "Bearer", "expires_in": LIFETIME, "scope": "tracking_api:write"}
    assert oauth.source(token.encode()) == "backend"


def test_a_token_ends(oauth: OAuth, clock: Clock) -> None:
    token = oauth.token(form(), "cdp.example")["access_token"].encode()
    assert oauth.source(token) == "backend"
    clock.now += LIFETIME
    with pytest.raises(Refused, match="expired"):
        oauth.source(token)


@pytest.mark.parametrize(
    ("fields", "error", "status"),
    [
        ({"grant_type": "password"}, "unsupported_grant_type", 400),
        ({"client_assertion_type": "other"}, "invalid_request", 400),
        ({"scope": "public_api:read_write"}, "invalid_scope", 400),
        ({"client_assertion": "no.jwt"}, "invalid_client", 401),
        ({"client_assertion": assertion(key=OTHER)}, "invalid_client", 401),
        ({"client_assertion": assertion(header={"alg": "RS256", "kid": "k2"})}, "invalid_client", 401),
        ({"client_assertion": assertion(header={"alg": "RS256"})}, "invalid_client", 401),
        ({"client_assertion": assertion(sub="other")}, "invalid_client", 401),
        ({"client_assertion": assertion(aud="https://elsewhere.example")}, "invalid_client", 401),
        ({"client_assertion": assertion(aud=["https://elsewhere.example"])}, "invalid_client", 401),
        ({"client_assertion": assertion(aud="https://[")}, "invalid_client", 401),
        ({"client_assertion": assertion(exp=nan)}, "invalid_request", 400),
        ({"client_assertion": assertion(exp=inf)}, "invalid_request", 400),
        ({"client_assertion": assertion(jti=None)}, "invalid_request", 400),
        ({"client_assertion": assertion(exp=None)}, "invalid_request", 400),
        ({"client_assertion": assertion(exp="soon")}, "invalid_request", 400),
        ({"client_assertion": assertion(exp=NOW + ASSERTION_LIFETIME)}, "invalid_request", 400),
    ],
)
def test_who_does_not_prove_a_client_gets_none(oauth: OAuth, fields: dict[str, str], error: str, status: int) -> None:
    with pytest.raises(TokenRefused) as refused:
        oauth.token(form(**fields), "cdp.example")
    assert (refused.value.error, refused.value.status) == (error, status)


def test_an_assertion_without_a_signature_or_with_a_shared_one_proves_nothing(oauth: OAuth) -> None:
    public = PRIVATE.as_pem(private=False)
    claims = {"sub": "reports", "aud": "https://cdp.example", "iat": NOW, "exp": NOW + 55, "jti": "j"}
    signed = b".".join(urlsafe_b64encode(dumped(part)).rstrip(b"=") for part in ({"alg": "HS256", "kid": "k1"}, claims))
    shared = b".".join((signed, urlsafe_b64encode(hmac.digest(public, signed, "sha256")).rstrip(b"="))).decode()
    unsigned = assertion().rpartition(".")[0] + "."
    for forged in (shared, unsigned):
        with pytest.raises(TokenRefused, match="client_assertion"):
            oauth.token(form(client_assertion=forged), "cdp.example")


@pytest.mark.parametrize(
    ("claims", "description"),
    [
        ({"iat": NOW - 100, "exp": NOW - 10}, "Token is expired"),
        ({"iat": NOW + 30, "exp": NOW + 60}, "Token used before issued"),
    ],
)
def test_a_wrong_clock_is_told_in_the_words_that_sdks_know(oauth: OAuth, claims: Any, description: str) -> None:
    with pytest.raises(TokenRefused) as refused:
        oauth.token(form(client_assertion=assertion(**claims)), "cdp.example")
    assert (refused.value.error, refused.value.description) == ("invalid_request", description)


@pytest.mark.parametrize(
    ("claims", "refusal"),
    [
        ({"iat": NOW - 60, "exp": NOW - LEEWAY + 1}, None),
        ({"iat": NOW - 60, "exp": NOW - LEEWAY}, "Token is expired"),
        ({"iat": NOW + LEEWAY, "exp": NOW + 60}, None),
        ({"iat": NOW + LEEWAY + 1, "exp": NOW + 60}, "Token used before issued"),
        ({"iat": NOW, "exp": NOW + ASSERTION_LIFETIME}, None),
        ({"iat": NOW, "exp": NOW + ASSERTION_LIFETIME + 1}, "exp is at most 120 seconds after iat"),
    ],
)
def test_clocks_may_differ_by_five_seconds_and_an_assertion_lasts_two_minutes(
    oauth: OAuth, claims: Any, refusal: str | None
) -> None:
    given = form(client_assertion=assertion(**claims))
    if refusal is None:
        assert oauth.token(given, "cdp.example")["expires_in"] == LIFETIME
    else:
        with pytest.raises(TokenRefused, match=f"^{refusal}$"):
            oauth.token(given, "cdp.example")


def test_an_assertion_works_once_also_while_a_clock_that_differs_takes_it_yet(oauth: OAuth, clock: Clock) -> None:
    fields = form(client_assertion=assertion(exp=NOW + 55))
    oauth.token(fields, "cdp.example")
    for clock.now in (NOW, NOW + 55, NOW + 55 + LEEWAY - 1):
        with pytest.raises(TokenRefused, match="used before"):
            oauth.token(fields, "cdp.example")


def test_what_is_remembered_of_tokens_does_not_grow(
    oauth: OAuth, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.oauth.REMEMBERED", 2)
    for number in range(5):
        clock.now += 1
        token = oauth.token(form(client_assertion=assertion(jti=f"j{number}")), "cdp.example")["access_token"]
        assert [oauth.source(token.encode()) for _ in range(2)] == ["backend"] * 2
        assert len(oauth._known) == 1 + number % 2


@pytest.mark.parametrize("token", [b"", b"x", b"a.b.c", assertion().encode(), "ü".encode()])
def test_what_is_no_token_of_ours_opens_nothing(oauth: OAuth, token: bytes) -> None:
    with pytest.raises(Refused) as refused:
        oauth.source(token)
    assert (refused.value.status, refused.value.code) == (401, "invalid_token")


def test_a_key_that_cannot_be_read_says_which_one() -> None:
    with pytest.raises(ConfigError, match=r"sources\.backend\.oauth_clients: key k1 cannot be read"):
        OAuth({"k1": ClientKey(client_id="reports", source="backend", pem="-----BEGIN PUBLIC KEY-----")}, b"s" * 32)


def test_an_assertion_may_be_meant_for_several(oauth: OAuth) -> None:
    both = assertion(aud=["https://elsewhere.example", "https://CDP.example/"])
    assert oauth.token(form(client_assertion=both), "cdp.example")["expires_in"] == LIFETIME


def test_a_token_outlives_the_key_that_it_was_got_with_but_not_its_client(oauth: OAuth, clock: Clock) -> None:
    """Keys change while SDKs hold tokens, and some throw a batch away after a 401."""
    token = oauth.token(form(), "cdp.example")["access_token"].encode()
    pem = OTHER.as_pem(private=False).decode()

    def started_with(client_id: str, source: str) -> OAuth:
        return OAuth({"k2": ClientKey(client_id=client_id, source=source, pem=pem)}, b"s" * 32, clock)

    assert started_with("reports", "backend").source(token) == "backend"
    for client_id, source in (("reports", "web"), ("others", "backend")):
        with pytest.raises(Refused, match="client is not configured any more; get a new one at /token"):
            started_with(client_id, source).source(token)


async def test_the_whole_way_from_the_form_to_the_log(oauth: OAuth) -> None:
    """SDKs do not escape the colons of their form, and send the write key beside the token."""
    log = RecordingLog()
    app = Starlette(routes=oauth_routes(oauth))
    collector = create_collector(log=log, sources={"wk": "web", "wk2": "backend"}, bearer=oauth.source, fallback=app)
    body = urlencode(form(), safe=":").encode()
    for path, status in (("/token", 200), ("/oauth2/token", 400)):  # the second time, it was used before
        answer = await call(collector, "POST", path, body, {"host": "cdp.example"})
        assert answer.status == status
    assert json.loads(answer.body) == {
        "error": "invalid_request",
        "error_description": "the assertion was used before (jti): sign a new one",
    }
    token = oauth.token(form(client_assertion=assertion(jti="j2")), "cdp.example")["access_token"]
    batch = dumped({"batch": [{"type": "track", "event": "A", "userId": "u"}], "writeKey": "wk2"})
    statuses = [
        (await call(collector, "POST", "/v1/batch", batch, {"authorization": f"{scheme} {value}"})).status
        for scheme, value in (("Bearer", token), ("bearer", token), ("Bearer", "forged"))
    ]
    assert (statuses, [event.source for event in log.events]) == ([200, 200, 401], ["backend", "backend"])


async def test_an_assertion_is_meant_for_the_host_that_a_trusted_proxy_was_asked_for(oauth: OAuth) -> None:
    headers = {"host": "internal:8080", "x-forwarded-host": "cdp.example"}
    statuses = []
    for trusted_hops in (0, 1):
        app = Starlette(routes=oauth_routes(oauth, trusted_hops))
        collector = create_collector(log=RecordingLog(), sources={}, fallback=app)
        statuses.append((await call(collector, "POST", "/token", urlencode(form()).encode(), headers)).status)
    assert statuses == [401, 200]


async def test_a_source_that_requires_a_token_is_opened_by_no_write_key(oauth: OAuth) -> None:
    """Wherever the key stands. 400 is what every SDK takes for final."""
    log = RecordingLog()
    policies = {"backend": Policy(require_oauth=True)}
    sources = {"wk": "web", "wk2": "backend"}
    collector = create_collector(log=log, sources=sources, bearer=oauth.source, policies=policies)
    token = oauth.token(form(), "cdp.example")["access_token"]
    track = {"type": "track", "event": "A", "userId": "u"}
    single, batch = dumped({**track, "writeKey": "wk2"}), dumped({"batch": [track], "writeKey": "wk2"})
    each = dumped({"batch": [{**track, "writeKey": "wk"}, {**track, "writeKey": "wk2"}]})
    basic = "Basic " + b64encode(b"wk2:").decode()
    answers = [
        await call(collector, "POST", path, body, headers)
        for path, body, headers in (
            ("/v1/track", single, {}),
            ("/v1/batch", batch, {}),
            ("/v1/batch", each, {}),
            ("/v1/track", single, {"authorization": basic}),
            ("/v1/track", single, {"authorization": f"{basic} "}),
        )
    ]
    assert {(answer.status, answer.json["code"]) for answer in answers} == {(400, "oauth_required")}
    assert "get a token at /token" in answers[0].json["message"]
    customer_io = await call(collector, "POST", "/v1/track", single, {"authorization": "Bearer wk2"})
    assert (customer_io.status, customer_io.json["code"]) == (401, "invalid_token")
    assert log.events == []

    taken = await call(collector, "POST", "/v1/batch", batch, {"authorization": f"Bearer {token}"})
    other = await call(collector, "POST", "/v1/track", dumped({**track, "writeKey": "wk"}))
    assert (taken.status, other.status) == (200, 200)
    assert [event.source for event in log.events] == ["backend", "web"]


async def test_a_form_that_is_none_is_refused_as_oauth_does(oauth: OAuth) -> None:
    app = create_collector(log=RecordingLog(), sources={}, fallback=Starlette(routes=oauth_routes(oauth)))
    for body in (b"", b"\xff", b"grant_type=a&grant_type=b", b"x" * 20_000, b"&".join([b"a=b"] * 50)):
        answer = await call(app, "POST", "/token", body, {"host": "cdp.example"})
        assert (answer.status, set(answer.json)) == (400, {"error", "error_description"})


async def test_a_form_has_at_most_sixteen_kib(oauth: OAuth) -> None:
    app = create_collector(log=RecordingLog(), sources={}, fallback=Starlette(routes=oauth_routes(oauth)))
    whole = urlencode(form()).encode() + b"&more="
    told = []
    for size in (FORM_LIMIT + 1, FORM_LIMIT):
        answer = await call(app, "POST", "/token", whole.ljust(size, b"x"), {"host": "cdp.example"})
        told.append((answer.status, answer.json.get("error_description")))
    assert told == [(400, "the form is too large"), (200, None)]


async def test_a_token_is_asked_for_by_post(oauth: OAuth) -> None:
    app = create_collector(log=RecordingLog(), sources={}, fallback=Starlette(routes=oauth_routes(oauth)))
    answer = await call(app, "GET", "/token", headers={"host": "cdp.example"})
    assert (answer.status, answer.headers["allow"], answer.json["error"]) == (405, "POST", "invalid_request")


async def test_where_no_source_has_clients_sdks_are_told_so_and_stop_asking() -> None:
    app = create_collector(log=RecordingLog(), sources={}, fallback=Starlette(routes=oauth_routes(None)))
    answer = await call(app, "POST", "//token/", urlencode(form()).encode(), {"host": "cdp.example"})
    assert (answer.status, answer.json["error"]) == (401, "invalid_client")
    assert "oauth_clients" in answer.json["error_description"]
