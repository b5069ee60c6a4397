"""Access tokens: got once, renewed once, and never the reason why an event is lost."""

import asyncio
from base64 import b64decode
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from pydantic import ValidationError

from destinations.contract import DELIVERED, Env, Outcome, Rejected, Retry
from destinations.guard import Outbound
from destinations.http.answer import Answer
from destinations.http.client import Client, session
from destinations.http.failure import TIMEOUT, ExchangeFailed
from destinations.http.request import Request
from destinations.oauth import OAuth, Token, Tokens
from destinations.registry import definition
from destinations.webhook import WebhookSettings
from pipeline.delivery.engine import Destination, World
from pipeline.delivery.preflight import rehearsal
from pipeline.delivery.redaction import secrets_of
from pipeline.functions.installed import Functions
from schemas.errors import CredentialsRejected, Unavailable
from schemas.events import Origin, decode_resolved
from tests.unit.delivery_world import QUICK, DeliveryWorld, resolved

SETTINGS = OAuth.model_validate(
    {"token_url": "https://id.example.com/token", "client_id": "me & you", "client_secret": "s3cret/+", "scope": "a b"}
)
Said = Answer | ExchangeFailed


def answer(status: int = 200, **body: Any) -> Answer:
    return Answer(status, (), orjson.dumps(body), True)


class Endpoint(Client):
    """Gives tokens one after the other, unless it is told to say something else first. `busy`: it waits for `free`."""

    def __init__(self, *said: Said) -> None:
        super().__init__(_nowhere)
        self.said = list(said)
        self.asked: list[tuple[Mapping[str, str], bytes]] = []
        self.free = asyncio.Event()
        self.free.set()
        self.seconds: float | None = None

    async def send(
        self,
        request: Request,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        timeout: float,
        most: int = 0,
    ) -> Answer:
        self.asked.append((request.headers, body))
        number = len(self.asked)
        await self.free.wait()
        said = self.said.pop(0) if self.said else self.given(number)
        if isinstance(said, ExchangeFailed):
            raise said
        return said

    def given(self, number: int) -> Answer:
        life: dict[str, Any] = {} if self.seconds is None else {"expires_in": self.seconds}
        return answer(access_token=f"t{number}", token_type="Bearer", **life)


async def _nowhere(*_: object) -> Any:
    raise AssertionError("nothing is to be connected to")


class Service:
    """Takes some tokens and answers 401 to all others; notes what it was shown."""

    def __init__(self, *good: str) -> None:
        self.good = set(good)
        self.shown: list[str] = []

    async def __call__(self, headers: Mapping[str, str]) -> Outcome:
        token = headers["Authorization"].removeprefix("Bearer ")
        self.shown.append(token)
        await asyncio.sleep(0)
        if token not in self.good:
            raise CredentialsRejected("http 401")
        return DELIVERED


class Time:
    """Stands still, unless it is moved."""

    def __init__(self) -> None:
        self.at = 1_000.0

    def __call__(self) -> float:
        return self.at


def tokens(endpoint: Endpoint, now: Time | None = None) -> Tokens:
    return Tokens(SETTINGS, Env(http=endpoint, now=now or Time(), folder=""))


async def test_a_token_is_asked_for_once_as_the_standard_says() -> None:
    endpoint, service = Endpoint(), Service("t1")
    mine = tokens(endpoint)
    assert [await mine.authorized(service) for _ in range(3)] == [DELIVERED] * 3
    ((headers, body),) = endpoint.asked
    assert body == b"grant_type=client_credentials&scope=a+b"
    kind, _, pair = headers["Authorization"].partition(" ")
    assert (kind, b64decode(pair)) == ("Basic", b"me+%26+you:s3cret%2F%2B")
    assert service.shown == ["t1"] * 3


async def test_a_token_that_ran_out_is_renewed_once_however_many_calls_notice() -> None:
    endpoint, service = Endpoint(), Service("t1")
    mine = tokens(endpoint)
    await mine.authorized(service)
    service.good = {"t2"}
    endpoint.free.clear()
    calls = [asyncio.create_task(mine.authorized(service)) for _ in range(8)]
    while len(endpoint.asked) < 2:
        await asyncio.sleep(0)
    endpoint.free.set()
    assert await asyncio.gather(*calls) == [DELIVERED] * 8
    assert len(endpoint.asked) == 2
    assert await mine.authorized(service) == DELIVERED
    assert len(endpoint.asked) == 2


async def test_calls_that_notice_late_use_the_token_that_others_got_meanwhile() -> None:
    endpoint, service = Endpoint(), Service("t2")
    mine = tokens(endpoint)
    old = await mine.token()
    assert isinstance(old, Token)
    assert await mine.authorized(service) == DELIVERED
    assert await mine.token(refused=old) == Token("t2", float("inf"))
    assert len(endpoint.asked) == 2


async def test_a_token_is_renewed_before_its_end() -> None:
    now, endpoint, service = Time(), Endpoint(), Service("t1", "t2")
    endpoint.seconds = 100
    mine = tokens(endpoint, now)
    for at in (1_000.0, 1_089.0, 1_090.0, 1_179.0):
        now.at = at
        await mine.authorized(service)
    assert service.shown == ["t1", "t1", "t2", "t2"]


async def test_a_new_token_that_is_refused_is_for_a_person_after_two_tries() -> None:
    endpoint, service = Endpoint(), Service()
    with pytest.raises(CredentialsRejected, match="http 401"):
        await tokens(endpoint).authorized(service)
    assert service.shown == ["t1", "t2"]


async def test_what_is_forbidden_is_not_tried_with_another_token() -> None:
    async def forbid(_: Mapping[str, str]) -> Outcome:
        raise CredentialsRejected("http 403")

    endpoint = Endpoint()
    with pytest.raises(CredentialsRejected, match="http 403"):
        await tokens(endpoint).authorized(forbid)
    assert len(endpoint.asked) == 1


async def test_any_other_outcome_is_the_services() -> None:
    async def reject(_: Mapping[str, str]) -> Outcome:
        return Rejected("http 422")

    assert await tokens(Endpoint()).authorized(reject) == Rejected("http 422")


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        (ExchangeFailed(TIMEOUT), Retry("OAUTH_REFRESH_FAILED: timeout")),
        (answer(503), Retry("OAUTH_REFRESH_FAILED: http 503")),
        (Answer(429, [(b"Retry-After", b"7")], b"", True), Retry("OAUTH_REFRESH_FAILED: http 429", 7.0)),
    ],
)
async def test_while_no_token_can_be_had_events_wait_and_then_go(said: Said, outcome: Retry) -> None:
    endpoint, service = Endpoint(said), Service("t2")
    mine = tokens(endpoint)
    assert await mine.authorized(service) == outcome
    assert await mine.authorized(service) == DELIVERED
    with pytest.raises(Unavailable, match=outcome.reason):
        await tokens(Endpoint(said)).bearing()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (answer(400, error="invalid_client"), "http 400"),
        (answer(401), "http 401"),
        (answer(403), "http 403"),
        (answer(302), "http 302"),
        (answer(token="t1"), "the answer holds no access_token"),
        (answer(access_token=7), "the answer holds no access_token"),
        (answer(access_token="a\r\nHost: evil"), "the answer holds no access_token"),
        (Answer(200, (), b"[]", True), "the answer holds no access_token"),
        (Answer(200, (), b"<html>", True), "the answer holds no access_token"),
    ],
)
async def test_what_only_a_person_can_mend_pauses_with_a_reason(said: Answer, reason: str) -> None:
    with pytest.raises(CredentialsRejected, match=f"^OAUTH_REFRESH_FAILED: {reason}$"):
        await tokens(Endpoint(said)).authorized(Service())


async def test_a_call_that_is_given_up_does_not_give_up_the_renewal_of_the_others() -> None:
    endpoint, service = Endpoint(), Service("t1")
    endpoint.free.clear()
    mine = tokens(endpoint)
    first, second = (asyncio.create_task(mine.authorized(service)) for _ in range(2))
    while not endpoint.asked:
        await asyncio.sleep(0)
    first.cancel()
    endpoint.free.set()
    assert await second == DELIVERED
    assert len(endpoint.asked) == 1


async def test_closing_ends_a_renewal_that_is_under_way() -> None:
    endpoint = Endpoint()
    endpoint.free.clear()
    mine = tokens(endpoint)
    call = asyncio.create_task(mine.token())
    while not endpoint.asked:
        await asyncio.sleep(0)
    await mine.close()
    assert isinstance((await asyncio.gather(call, return_exceptions=True))[0], asyncio.CancelledError)


# ── The webhook's ─────────────────────────────────────────────────────────────────────────────────────────────────


class Receiver:
    """Gives tokens that are good for some requests each, and takes events with a good one only."""

    def __init__(self, uses: int) -> None:
        self.uses = uses
        self.issued = 0
        self.left = 0
        self.got: list[str] = []
        self.refused = 0

    async def token(self, request: web.Request) -> web.Response:
        self.issued += 1
        self.left = self.uses
        return web.json_response({"access_token": f"t{self.issued}", "expires_in": 3_600})

    async def hook(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer t{self.issued}" or not self.left:
            self.refused += 1
            return web.Response(status=401)
        if request.method == "POST":
            self.left -= 1
            self.got += [one["messageId"] for one in await request.json()]
        return web.Response()

    async def serving(self, stack: AsyncExitStack) -> str:
        app = web.Application()
        app.router.add_post("/token", self.token)
        app.router.add_route("*", "/hook", self.hook)
        runner = web.AppRunner(app)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"


def webhook(url: str) -> WebhookSettings:
    return WebhookSettings.model_validate(
        {
            "url": f"{url}/hook",
            "batch_size": 1,
            "oauth": {"token_url": f"{url}/token", "client_id": "me", "client_secret": "s3cret"},
        }
    )


async def test_a_token_that_runs_out_mid_batch_is_renewed_and_no_event_is_lost_or_doubled(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        receiver = Receiver(uses=5)
        url = await receiver.serving(stack)
        here = Outbound(allow=(IPv4Network("127.0.0.0/8"),))
        clock = World(chance=lambda: 1.0, http=partial(session, here))
        world = DeliveryWorld(tmp_path, limits=QUICK, clock=clock)
        world.destinations.append(Destination(name="crm", definition=definition("webhook"), settings=webhook(url)))
        for number in range(12):
            await world.emit(f"m{number:02d}", "ann")
        await world.run_until_idle()
        world.close()
    assert receiver.got == [f"m{number:02d}" for number in range(12)]
    assert (receiver.issued, receiver.refused) == (3, 2)


async def test_a_check_asks_with_a_token_and_with_a_new_one_when_that_is_refused() -> None:
    async with AsyncExitStack() as stack:
        receiver = Receiver(uses=5)
        url = await receiver.serving(stack)
        http = await stack.enter_async_context(session(Outbound(allow=(IPv4Network("127.0.0.0/8"),))))
        found = definition("webhook")
        client = await stack.enter_async_context(found.connect(webhook(url), Env(http=http, now=Time(), folder="")))
        await found.check(client)
        assert (receiver.issued, receiver.refused) == (1, 0)
        receiver.left = 0
        await found.check(client)
        assert (receiver.issued, receiver.refused) == (2, 1)


async def test_preflight_shows_requests_with_a_token_that_nobody_gave() -> None:
    crm = Destination(name="crm", definition=definition("webhook"), settings=webhook("http://127.0.0.1:1"))
    async with rehearsal(crm, Functions(folder=Path("functions"))) as make:
        made = await make(decode_resolved(resolved("m1", "ann", Origin(0, 0))))
    ((url, bearing),) = [(one.url, one.headers["authorization"]) for one in made.effects]
    assert (url, bearing) == ("http://127.0.0.1:1/hook", "Bearer none-is-asked-for")


def test_two_ways_to_authorise_exclude_each_other() -> None:
    oauth = {"token_url": "https://id.example.com/token", "client_id": "me", "client_secret": "s3cret"}
    with pytest.raises(ValidationError, match="oauth and a header Authorization exclude each other"):
        WebhookSettings.model_validate(
            {"url": "https://crm.example.com/", "oauth": oauth, "headers": {"authorization": "Bearer x"}}
        )


def test_the_clients_secret_is_one_and_never_prints() -> None:
    made = webhook("http://127.0.0.1:1")
    assert secrets_of(made) == ["s3cret"]
    assert "s3cret" not in repr(made)
