"""The webhook's pure parts, its settings and its check. What it sends is in tests/golden/webhook."""

import hashlib
import hmac
from ipaddress import ip_network
from typing import Any

import orjson
import pytest
from aiohttp import web
from pydantic import ValidationError

from destinations.contract import Env
from destinations.guard import Outbound
from destinations.http.client import session
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
