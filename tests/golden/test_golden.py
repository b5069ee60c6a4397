"""Runs every golden file: settings and events in, canned responses from a real server, requests and outcomes out.

A file `<destination>/<case>.yaml` holds
  settings    of the destination; `${sink}` stands for the server's address
  now         Unix seconds that the destination sees
  action      name of the action; left out when there is one
  batches     lists of payloads, delivered one after another
  responses   what the server answers, in order: status, headers, body
  requests    what the server must have seen: method, path, headers (all but the transport's own), JSON body
  outcomes    of each batch: a list of delivered | {retry, after} | {rejected}, or {raises}
`${version}` stands for the version of Millrace.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from aiohttp import web

from destinations.contract import Action, Delivered, EncodedEvent, Env, Filtered, Outcome, Rejected
from destinations.guard import Outbound
from destinations.http.client import session
from destinations.registry import definition
from schemas.errors import MillraceError
from schemas.exact_json import json_dumps

HERE = Path(__file__).parent
CASES = sorted(path.relative_to(HERE) for path in HERE.glob("*/*.yaml"))
HOME = Outbound(allow=(ip_network("127.0.0.0/8"),))
TRANSPORT_HEADERS = {"host", "content-length", "accept", "accept-encoding", "connection"}


class Sink:
    """A server that answers as told and remembers what it saw."""

    def __init__(self, responses: Sequence[dict[str, Any]]) -> None:
        self.responses = list(responses)
        self.requests: list[dict[str, Any]] = []

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.requests.append(
            {
                "method": request.method,
                "path": request.path_qs,
                "headers": {
                    name: value for name, value in request.headers.items() if name.lower() not in TRANSPORT_HEADERS
                },
                "body": orjson.loads(body) if body else None,
            }
        )
        canned = self.responses.pop(0)
        return web.Response(status=canned["status"], headers=canned.get("headers"), text=canned.get("body", ""))


@asynccontextmanager
async def serving(sink: Sink) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", sink.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def fill(node: Any, words: dict[str, str]) -> Any:
    """`node` with every `${word}` in its strings replaced."""
    if isinstance(node, dict):
        return {key: fill(value, words) for key, value in node.items()}
    if isinstance(node, list):
        return [fill(value, words) for value in node]
    if isinstance(node, str):
        for word, value in words.items():
            node = node.replace(f"${{{word}}}", value)
    return node


def shown(outcome: Outcome) -> Any:
    if isinstance(outcome, Delivered):
        return "delivered"
    if isinstance(outcome, Rejected):
        return {"rejected": outcome.reason}
    if isinstance(outcome, Filtered):
        return {"filtered": outcome.reason}
    return {"retry": outcome.reason} | ({} if outcome.after is None else {"after": outcome.after})


def given(action: Action[Any, Any], event: Any) -> Any:
    if action.payload is not None:
        return action.payload.model_validate(event)
    return EncodedEvent(event["messageId"], json_dumps(event)) if action.encoded else event


async def delivered(action: Action[Any, Any], client: Any, batch: Sequence[Any]) -> Any:
    payloads = [given(action, one) for one in batch]
    try:
        return [shown(one) for one in await action.deliver(client, payloads)]
    except MillraceError as error:
        return {"raises": f"{type(error).__name__}: {error}"}


@pytest.mark.parametrize("path", CASES, ids=str)
async def test_a_destination_sends_what_its_golden_file_says(path: Path, tmp_path: Path) -> None:
    case = yaml.safe_load((HERE / path).read_text())
    sink = Sink(case["responses"])
    async with serving(sink) as address, session(HOME) as http, asyncio.timeout(20):
        case = fill(case, {"sink": address, "version": version("millrace")})
        one = definition(path.parent.name)
        action = next(action for action in one.actions if case.get("action") in (None, action.name))
        env = Env(http=http, now=lambda: float(case["now"]), folder=str(tmp_path))
        async with one.connect(one.settings.model_validate(case["settings"]), env) as client:
            outcomes = [await delivered(action, client, batch) for batch in case["batches"]]
    assert {"requests": sink.requests, "outcomes": outcomes, "unused responses": sink.responses} == {
        "requests": case["requests"],
        "outcomes": case["outcomes"],
        "unused responses": [],
    }


def test_there_are_golden_files() -> None:
    assert CASES
