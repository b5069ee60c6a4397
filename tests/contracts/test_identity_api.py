"""Why a profile is what it is, and taking it apart over HTTP, on SQLite and on PostgreSQL."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import orjson
import pytest
from sqlalchemy import text
from starlette.types import Message

from pipeline.log import Log, open_log
from pipeline.query.app import create_api
from pipeline.store.database import Database
from pipeline.telling import tell
from schemas.errors import Unavailable
from schemas.topics import EVENTS
from tests.contracts.test_intake import batch, database, event, put  # noqa: F401 - the fixture is used by name
from tests.stores import prepare

URL = "/v1/spaces/default/collections/users/profiles"


class Api:
    """The API without a socket, and the log that corrections go to."""

    def __init__(self, app: Any, log: Log) -> None:
        self._app, self.log = app, log

    async def get(self, path: str, **query: str) -> Any:
        return (await self.ask("GET", path, query=query))[1]

    async def post(self, path: str, body: Any, token: str = "secret") -> tuple[int, Any]:
        return await self.ask("POST", path, body=orjson.dumps(body), token=token)

    async def ask(
        self, method: str, path: str, *, query: Any = None, body: bytes = b"", token: str = "secret"
    ) -> tuple[int, Any]:
        status, answer = 0, b""

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status, answer
            status = message.get("status", status)
            answer += message.get("body", b"")

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": urlencode(query or {}).encode(),
            "root_path": "",
            "scheme": "http",
            "server": ("127.0.0.1", 80),
            "headers": [(b"authorization", b"Bearer " + token.encode())],
        }
        await self._app(scope, receive, send)
        return status, orjson.loads(answer)

    async def told(self) -> int:
        """How many events the log holds."""
        return sum(end for _, end in (await self.log.bounds(EVENTS)).values())


@asynccontextmanager
async def serving(database: Database, tmp_path: Path) -> AsyncIterator[Api]:  # noqa: F811
    async with open_log(f"embedded://{tmp_path}/log", partitions=1) as log:
        app = create_api(log, database, token="secret", destinations=())
        yield Api(app, log)
        await app.state.profiles.close()


def second_device(database: Database) -> str:  # noqa: F811
    put(
        database,
        batch(
            event("m1", user="u1", anonymous="a1", traits={"plan": "pro"}),
            event("m2", anonymous="a2"),
            event("m3", user="u1", anonymous="a2"),
            event("m4", user="u2", anonymous="a1"),
            event("m5", user="u1", anonymous="a2"),
            event("m6", user="u1", anonymous="a1", groupId="g1")._replace(type="group"),
        ),
    )
    merge = database.read_sync(lambda c: c.execute(text("SELECT id FROM merges")).scalar_one())
    assert isinstance(merge, str)
    return merge


async def explained(client: Api, address: str) -> Any:
    return await client.get("/api/identity/explain", id=address)


async def test_a_profile_is_explained_by_the_events_that_made_it(database, tmp_path):  # noqa: F811
    merge = second_device(database)
    async with serving(database, tmp_path) as client:
        found = await explained(client, "user_id:u1")
        assert await explained(client, found["profile"]) == found
        assert await explained(client, found["merges"][0]["absorbed"]) == found

    def by(cause: dict[str, Any]) -> tuple[str, str]:
        return cause["message_id"], cause["source_id"]

    assert [(one["id"], by(one["cause"]), one["events"]) for one in found["ids"]] == [
        ("anonymous_id:a1", ("m1", "web"), 0),
        ("user_id:u1", ("m1", "web"), 4),
        ("anonymous_id:a2", ("m2", "web"), 1),
    ]
    assert [(one["a"], one["b"], one["count"], by(one["cause"]), one["cause"]["type"]) for one in found["links"]] == [
        ("anonymous_id:a1", "user_id:u1", 2, ("m1", "web"), "identify"),
        ("anonymous_id:a2", "user_id:u1", 2, ("m3", "web"), "track"),
    ]
    assert [(one["id"], by(one["cause"]), one["undone_by"]) for one in found["merges"]] == [
        (merge, ("m3", "web"), None)
    ]
    assert [(one["id"], one["violation"], by(one["cause"])) for one in found["refused"]] == [
        ("anonymous_id:a1", "Identifier value limit exceeded", ("m4", "web"))
    ]
    assert [(one["id"], one["account"]) for one in found["accounts"]] == [("user_id:u1", "group_id:g1")]
    assert (found["events"], found["splits"], len(found["profiles"])) == (5, [], 2)


async def test_taking_apart_and_together_over_http(database, tmp_path):  # noqa: F811
    merge = second_device(database)
    async with serving(database, tmp_path) as client:
        planned = (await client.post("/api/identity/unmerge", {"merge": merge, "dry_run": True}))[1]
        assert await client.told() == 0
        done = (await client.post("/api/identity/unmerge", {"merge": merge}))[1]
        assert {**planned, "dry_run": False} == {
            **done,
            "split": planned["split"],
            "destinations_told": planned["destinations_told"],
        }
        assert [one["ids"] for one in done["after"]] == [["anonymous_id:a1", "user_id:u1"], ["anonymous_id:a2"]]
        assert await client.told() == 2
        split = (await explained(client, "user_id:u1"))["splits"][0]
        assert (split["id"], split["merge"], split["links"]) == (
            done["split"],
            merge,
            [["anonymous_id:a2", "user_id:u1"]],
        )
        lifted = (await client.post("/api/identity/remerge", {"split": done["split"]}))[1]
        assert (lifted["after"], lifted["merges_restored"]) == (done["before"], [merge])
        assert await client.told() == 4


async def test_a_log_that_does_not_answer_delays_only_what_destinations_are_told(database, tmp_path, monkeypatch):  # noqa: F811
    merge = second_device(database)

    async def down(*_: Any) -> None:
        raise Unavailable("the log does not answer")

    async with serving(database, tmp_path) as client:
        with monkeypatch.context() as outage:
            outage.setattr(client.log, "append", down)
            status, done = await client.post("/api/identity/unmerge", {"merge": merge})
        assert (status, done["merges_undone"], await client.told()) == (200, [merge], 0)
        assert await tell(client.log, database) == 2


async def test_the_profile_api_undoes_a_merge_of_that_profile_only(database, tmp_path):  # noqa: F811
    merge = second_device(database)
    async with serving(database, tmp_path) as client:
        listed = (await client.get(f"{URL}/user_id:u1/merges"))["data"]
        assert [(one["merge_id"], one["reversible"]) for one in listed] == [(merge, True)]
        status, other = await client.post(f"{URL}/user_id:u2/unmerge", {"merge_id": merge})
        assert (status, other["error"]["code"]) == (404, "not_found")
        status, done = await client.post(f"{URL}/user_id:u1/unmerge", {"merge_id": merge})
        assert (status, done["merges_undone"]) == (200, [merge])


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/api/identity/unmerge", {}, "validation_error"),
        ("/api/identity/unmerge", {"merge": "x", "cut": ["user_id:u1", "email:e"]}, "validation_error"),
        ("/api/identity/unmerge", {"merge": "mrg_none"}, "not_found"),
        ("/api/identity/unmerge", {"merge": "mrg\0"}, "validation_error"),
        ("/api/identity/unmerge", {"cut": ["user_id:u1"]}, "validation_error"),
        ("/api/identity/unmerge", {"cut": ["u1", "a1"]}, "validation_error"),
        ("/api/identity/unmerge", {"merge": "x", "dry_run": "yes"}, "validation_error"),
        ("/api/identity/unmerge", {"merge": "x", "force": True}, "validation_error"),
        ("/api/identity/remerge", {"split": "spl_none"}, "not_found"),
        ("/api/identity/remerge", {}, "validation_error"),
    ],
)
async def test_what_cannot_be_done_is_refused_with_a_reason(tmp_path, path, body, code):
    opened = Database(f"sqlite:///{tmp_path}/millrace.sqlite")
    prepare(opened)
    async with serving(opened, tmp_path) as client:
        assert (await client.post(path, body))[1]["error"]["code"] == code
        assert (await client.post(path, body, token="wrong"))[0] == 401
    opened.close()


async def test_suspects_are_listed_with_what_mends_them(database, tmp_path):  # noqa: F811
    put(database, batch(event("m1", user="u0", anonymous="kiosk"), event("p", user="undefined", anonymous="x")))
    put(database, batch(*(event(f"k{n}", user=f"u{n}", anonymous="kiosk") for n in range(1, 6)), first=2))
    emails = [event(f"e{n}", anonymous="tablet", traits={"email": f"{n}@x.test"}) for n in range(4)]
    put(database, batch(*emails, first=7))
    async with serving(database, tmp_path) as client:
        found = (await client.get("/api/identity/suspects"))["suspects"]
        assert (await client.get("/api/identity/suspects", limit="0"))["error"]["code"] == "validation_error"
    assert [(one["kind"], one["subject"]) for one in found] == [
        ("placeholder", "user_id:undefined"),
        ("shared_id", "anonymous_id:kiosk"),
        ("bridge", "anonymous_id:tablet"),
    ]
    kiosk = found[1]
    assert kiosk["counts"] == {"profiles": 5, "refused": 5}
    assert kiosk["mend"] == [
        "millrace identity unmerge --cut user_id:u0 anonymous_id:kiosk",
        'identity.types.anonymous_id.blocked.values: ["kiosk"]',
    ]
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)
