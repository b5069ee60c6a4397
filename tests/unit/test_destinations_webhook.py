"""The webhook's pure parts, its settings and its check. What it sends is in tests/golden/webhook."""

import asyncio
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any, cast

import orjson
import pytest
from aiohttp import web
from pydantic import ValidationError

from destinations.contract import DELIVERED, UNTRIED, EncodedEvent, Env, Outcome
from destinations.deadline import ends_at
from destinations.guard import Outbound
from destinations.http.answer import Answer
from destinations.http.client import Client, session
from destinations.http.request import Request
from destinations.webhook import MAX_BODY_BYTES, WebhookSettings, definition, idempotency_key, requests, signature
from schemas.errors import CredentialsRejected, Unavailable

HOME = Outbound(allow=(ip_network("127.0.0.0/8"),))


def settings(**more: Any) -> WebhookSettings:
    return WebhookSettings.model_validate({"url": "http://127.0.0.1:1/hook"} | more)


def test_a_receiver_can_verify_the_signature_as_the_module_says() -> None:
    header = signature("s3cret", 1767225600, b'[{"a":1}]')
    told = dict(part.split("=", 1) for part in header.split(","))
    expected = hmac.new(b"s3cret", told["t"].encode() + b"." + b'[{"a":1}]', hashlib.sha256).hexdigest()
    assert told == {"t": "1767225600", "v1": expected}


def test_idempotency_keys_tell_lists_apart() -> None:
    lists = [["a", "b"], ["b", "a"], ["ab"], ["a"], ["a", "b", ""], ["1:a"]]
    assert len({idempotency_key(ids) for ids in lists}) == len(lists)
    assert idempotency_key(["a", "b"]) == idempotency_key(["a", "b"])


def test_requests_are_cut_by_count_and_by_bytes() -> None:
    small, large = {"p": "x"}, {"p": "x" * (MAX_BODY_BYTES // 2)}
    huge = {"p": "x" * (MAX_BODY_BYTES + 1)}
    batch = [orjson.dumps(one) for one in (small, small, small, large, large, huge, small)]
    assert [len(bodies) for bodies in requests(batch, 2)] == [2, 2, 1, 1, 1]
    assert [body for bodies in requests(batch, 2) for body in bodies] == batch
    assert [len(bodies) for bodies in requests([b"x" * (MAX_BODY_BYTES // 2)] * 3, 9)] == [2, 1]
    assert list(requests([], 2)) == []


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"url": "ftp://example.com"}, "URL scheme should be 'http' or 'https'"),
        ({"url": "https://me:pass@example.com"}, "send them as a header Authorization"),
        ({"headers": {"content-Type": "text/plain"}}, "header 'content-Type' is set by Millrace; leave it out"),
        ({"headers": {"X:Y": "1"}}, "header 'X:Y' is not a header name"),
        ({"headers": {"X-Y": "1\r\nHost: evil"}}, "the value of header 'X-Y' holds a control character"),
        ({"headers": {"X-Y": "ключ"}}, "the value of header 'X-Y' is not ASCII"),
        ({"batch_size": 0}, "greater than or equal to 1"),
        ({"secret": ""}, "at least 1"),
        ({"sercet": "x"}, "Extra inputs are not permitted"),
    ],
)
def test_faulty_settings_say_what_is_wrong(given: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError) as error:
        settings(**given)
    assert fault in str(error.value)


def test_secrets_never_print() -> None:
    shown = repr(settings(secret="hush-1", headers={"Authorization": "hush-2"}))
    assert "hush" not in shown


@pytest.mark.parametrize(("status", "error"), [(200, None), (405, None), (404, None), (401, CredentialsRejected)])
async def test_check_asks_with_head_and_minds_only_credentials(status: int, error: type[Exception] | None) -> None:
    seen: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.method)
        return web.Response(status=status)

    app = web.Application()
    app.router.add_route("*", "/hook", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with session(HOME) as http:
            env = Env(http=http, now=lambda: 0.0, folder=".")
            url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
            async with definition.connect(settings(url=url), env) as webhook:
                if error is None:
                    await definition.check(webhook)
                else:
                    with pytest.raises(error, match=str(status)):
                        await definition.check(webhook)
    finally:
        await runner.cleanup()
    assert seen == ["HEAD"]


async def test_check_names_what_keeps_it_from_the_receiver() -> None:
    async with session(HOME) as http:
        env = Env(http=http, now=lambda: 0.0, folder=".")
        async with definition.connect(settings(), env) as webhook:
            with pytest.raises(Unavailable, match="webhook: connection refused"):
                await definition.check(webhook)


@dataclass
class Slow:
    """A receiver that takes its time: after each request so many seconds of the call are left. Notes what each was given."""

    left: list[float]
    timeouts: list[float] = field(default_factory=list)

    async def send(self, request: Request, body: bytes, headers: Mapping[str, str], *, timeout: float) -> Answer:
        self.timeouts.append(round(timeout, 1))
        ends_at(asyncio.get_running_loop().time() + self.left.pop(0))
        return Answer(200, [], b"", True)


async def sent(receiver: Slow, left: float, **more: Any) -> list[Outcome]:
    """What comes of four events, one a request, in a call that is cut off after `left` seconds."""
    env = Env(http=cast(Client, receiver), now=lambda: 0.0, folder=".")
    async with definition.connect(settings(batch_size=1, **more), env) as webhook:
        ends_at(asyncio.get_running_loop().time() + left)
        events = [EncodedEvent(f"m{number}", b"{}") for number in range(4)]
        return list(await definition.actions[0].deliver(webhook, events))


async def test_a_call_ends_with_what_is_done_before_it_is_cut_off_in_the_middle() -> None:
    receiver = Slow(left=[20.0, 10.4])
    assert await sent(receiver, 30.0) == [DELIVERED, DELIVERED, UNTRIED, UNTRIED]
    assert receiver.timeouts == [10.0, 10.0]


async def test_a_receiver_that_has_to_be_quick_gets_requests_for_longer() -> None:
    receiver = Slow(left=[20.0, 10.4, 2.4])
    assert await sent(receiver, 30.0, timeout=2) == [DELIVERED, DELIVERED, DELIVERED, UNTRIED]
    assert receiver.timeouts == [2.0, 2.0, 2.0]


async def test_a_request_may_take_what_the_call_has_left_and_the_first_one_is_always_made() -> None:
    receiver = Slow(left=[25.0, 12.0, 9.0])
    assert await sent(receiver, 5.0, timeout=300) == [DELIVERED, DELIVERED, DELIVERED, UNTRIED]
    assert receiver.timeouts == [4.5, 24.5, 11.5]
