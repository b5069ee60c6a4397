"""A log, a database and the profile API over them, without a server: what is asked goes straight to the application."""

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import orjson
from starlette.applications import Starlette

from pipeline.identity import Rules
from pipeline.log import Log, Record, open_log
from pipeline.parse import parse
from pipeline.query.app import create_api
from pipeline.query.profile_api.app import ProfileApi
from pipeline.store.database import Database
from pipeline.store.intake import applied_positions, apply
from schemas.events import Event, encode_event
from schemas.topics import EVENTS

API_TOKEN = "operator"
SECOND = 1_000_000
RECEIVED = 1_789_998_400 * SECOND  # 2026-09-21T13:46:40Z
BASE = "/v1/spaces/default/collections/users/profiles"
ACCOUNTS = "/v1/spaces/default/collections/accounts/profiles"


class Reply(NamedTuple):
    """An answer; `body` decoded where it is one JSON document."""

    status: int
    headers: Mapping[str, str]
    body: Any


class World:
    """See the module."""

    def __init__(self, log: Log, database: Database, app: Starlette, rules: Rules) -> None:
        self.log, self.database, self.app, self.rules = log, database, app, rules

    @property
    def api(self) -> ProfileApi:
        api: ProfileApi = self.app.state.profiles
        return api

    async def happen(self, *events: Event) -> None:
        """Events arrive and are applied."""
        await self.arrive(*events)
        await self.process()

    async def arrive(self, *events: Event) -> None:
        """Events stand in the log, and nobody has looked at them."""
        await self.log.append(EVENTS, [Record(one.key, encode_event(one), one.received_at // 1000) for one in events])

    async def process(self) -> None:
        """The pipeline applies what stands in the log."""
        known = await self.database.read(applied_positions)
        for partition in range(self.log.partitions(EVENTS)):
            batch = await self.log.read(EVENTS, partition, known.get(partition, 0))
            if batch is not None:
                work = parse([batch], rules=self.rules)
                await self.database.run(lambda c, work=work: apply(c, work, {}, self.rules))  # type: ignore[misc]  # mypy cannot infer a default

    async def get(self, path: str, *, token: str = API_TOKEN, method: str = "GET", **query: Any) -> Reply:
        """A request; `query` names parameters, in which None is left out."""
        given = {name.rstrip("_"): value for name, value in query.items() if value is not None}
        raw, _, there = path.partition("?")
        return await self._ask(method, raw, "&".join(one for one in (there, urlencode(given)) if one), b"", token)

    async def post(self, path: str, body: Any, *, token: str = API_TOKEN, method: str = "POST") -> Reply:
        """A request with a JSON body, or with bytes as they are."""
        return await self._ask(method, path, "", body if isinstance(body, bytes) else orjson.dumps(body), token)

    async def _ask(self, method: str, path: str, query: str, body: bytes, token: str) -> Reply:
        sent: list[Any] = []

        bodies = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            return bodies.pop() if bodies else await asyncio.Event().wait()  # nobody leaves

        async def send(message: Any) -> None:
            sent.append(message)

        user = base64.b64encode(f"{token}:".encode())
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "scheme": "http",
            "server": ("127.0.0.1", 80),
            "headers": [(b"authorization", b"Basic " + user)] if token else [],
        }
        await self.app(scope, receive, send)
        headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        whole = b"".join(one.get("body", b"") for one in sent[1:])
        text = whole.decode()
        return Reply(
            sent[0]["status"], headers, orjson.loads(whole) if text[:1] in "{[" and text[-1:] != "\n" else text
        )


@asynccontextmanager
async def world(folder: Path, database: Database, rules: Rules | None = None) -> AsyncIterator[World]:
    """A log in the folder, and the API over the database."""
    rules = rules or Rules()
    async with open_log(f"embedded://{folder}/log", partitions=3) as log:
        app = create_api(log, database, token=API_TOKEN, destinations=(), rules=rules)
        yield World(log, database, app, rules)
        await app.state.profiles.close()


def happened(
    message: str,
    *,
    user: str | None = None,
    anonymous: str | None = None,
    at: int = 0,
    kind: str = "track",
    source: str = "web",
    **body: Any,
) -> Event:
    """An event `at` seconds after a moment in 2026, received an hour later."""
    raw = orjson.dumps({"type": kind, "messageId": message, **body})
    when = RECEIVED + at * SECOND
    return Event(source, kind, message, anonymous, user, when, None, when + 3_600 * SECOND, "server", None, None, raw)


def identified(
    message: str, *, at: int = 0, user: str | None = None, anonymous: str | None = None, **traits: object
) -> Event:
    """An identify with traits."""
    return happened(message, at=at, user=user, anonymous=anonymous, kind="identify", traits=traits)


async def settled(*waiting: "asyncio.Task[Any]") -> None:
    """Lets tasks come as far as they get without the outside."""
    for _ in range(20):
        await asyncio.sleep(0)
    assert not any(one.done() and one.exception() for one in waiting)
