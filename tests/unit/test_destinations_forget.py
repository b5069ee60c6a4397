"""How the warehouse and webhooks forget people."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any, cast

import duckdb
import pytest
from aiohttp import web
from pydantic import HttpUrl, SecretStr

from destinations.contract import DELIVERED, Env, Filtered, Person, Rejected, Retry
from destinations.guard import Outbound
from destinations.http.client import session
from destinations.warehouse.duckdb import destination as warehouse
from destinations.warehouse.duckdb.settings import DuckDBSettings
from destinations.webhook import WebhookSettings, connect, forget, signature

NOW = 1_790_000_000.0
MIA = Person(
    regulation="reg_1",
    ids=[("user_id", "u-mia"), ("anonymous_id", "a-mia"), ("email", "mia@shop.test")],
    profiles=["use_mia", "use_mia_2"],
    formerly=["use_both"],
    deleted_at="2026-09-21T14:13:20.000Z",
)


def event(number: int, user: str | None, profile: str, kind: str = "track", **fields: Any) -> dict[str, Any]:
    at = "2026-01-01T00:00:00.000Z"
    times = dict.fromkeys(("timestamp", "receivedAt", "sentAt", "originalTimestamp"), at)
    named = {
        "type": kind,
        "messageId": f"m{number}",
        "userId": user,
        "anonymousId": f"a-{number}",
        "profileId": profile,
    }
    return {**named, "source": "web", **times, **({"event": "Bought"} if kind == "track" else {}), **fields}


EVENTS = [
    event(1, "u-mia", "use_mia", properties={"to": "Mia Virtanen, Turku"}),
    event(2, None, "use_mia_2", anonymousId="a-mia"),
    event(3, "u-mia", "use_mia", "identify", traits={"email": "mia@shop.test"}),
    event(4, "u-mia", "use_both"),  # counted to a profile that is somebody's still
    event(5, "u-bob", "use_both"),
    event(6, "u-bob", "use_bob", "identify", traits={"email": "bob@shop.test"}),
    event(7, "u-mia", "use_mia", "group", groupId="acme", traits={"plan": "ent"}),
]


def env_of(folder: Path) -> Env:
    """All that a warehouse needs: it speaks to nobody."""
    return Env(http=cast(Any, None), now=lambda: NOW, folder=str(folder))


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


async def test_the_warehouse_has_nothing_of_a_person_any_more_in_any_row_or_byte(tmp_path: Path) -> None:
    async with warehouse.connect(DuckDBSettings(), env_of(tmp_path)) as client:
        assert await warehouse.load_events(client, EVENTS) == [DELIVERED] * len(EVENTS)
        assert await warehouse.forget(client, [MIA]) == [DELIVERED]
        assert await warehouse.forget(client, [MIA]) == [DELIVERED]  # as after an answer that was lost
        assert await warehouse.load_events(client, [event(8, "u-bob", "use_bob")]) == [DELIVERED]

    with duckdb.connect(str(tmp_path / "warehouse.duckdb")) as con:
        rows = {
            table: con.execute(f"SELECT {columns} FROM web.{table} ORDER BY ALL").fetchall()
            for table, columns in (
                ("tracks", "id"),
                ("bought", "id"),
                ("identifies", "id"),
                ("groups", "id"),
                ("users", "id"),
                ("accounts", "id, profile_id, plan"),
                ("_loaded", "id"),
            )
        }
    assert rows == {
        "tracks": [("m5",), ("m8",)],
        "bought": [("m5",), ("m8",)],
        "identifies": [("m6",)],
        "groups": [],
        "users": [("u-bob",)],
        "accounts": [("acme", None, "ent")],
        "_loaded": [("m5",), ("m6",), ("m8",)],
    }
    whole = everything_in(tmp_path)
    assert [word for word in (b"u-mia", b"a-mia", b"mia@shop", b"Virtanen") if word in whole] == []


async def test_an_event_named_like_a_person_who_is_deleted_is_still_there_once(tmp_path: Path) -> None:
    named = event(5, "u-bob", "use_bob") | {"messageId": "u-mia"}
    async with warehouse.connect(DuckDBSettings(), env_of(tmp_path)) as client:
        await warehouse.load_events(client, [event(3, "u-mia", "use_mia", "identify"), named])
        assert await warehouse.forget(client, [MIA]) == [DELIVERED]
        assert await warehouse.load_events(client, [named]) == [DELIVERED]
    with duckdb.connect(str(tmp_path / "warehouse.duckdb")) as con:
        assert con.execute("SELECT id, user_id FROM web.tracks").fetchall() == [("u-mia", "u-bob")]


async def test_what_a_process_left_that_died_while_it_wrote_the_file_anew_is_in_nobodys_way(tmp_path: Path) -> None:
    async with warehouse.connect(DuckDBSettings(), env_of(tmp_path)) as client:
        await warehouse.load_events(client, EVENTS)
        for left in ("warehouse.duckdb.rewriting", "warehouse.duckdb.rewriting.wal"):
            (tmp_path / left).write_bytes(b"half of u-mia")
        assert await warehouse.forget(client, [MIA]) == [DELIVERED]
    assert b"u-mia" not in everything_in(tmp_path)


async def test_whatever_goes_wrong_while_the_file_is_written_anew_the_file_is_free_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path, memory_mb: int) -> None:
        raise RuntimeError("a bug")

    async with warehouse.connect(DuckDBSettings(), env_of(tmp_path)) as client:
        await warehouse.load_events(client, EVENTS)
        monkeypatch.setattr(warehouse, "rewritten", broken)
        with pytest.raises(RuntimeError, match="a bug"):
            await warehouse.forget(client, [MIA])
        monkeypatch.undo()
        assert await warehouse.load_events(client, EVENTS) == [DELIVERED] * len(EVENTS)
        assert await warehouse.forget(client, [MIA]) == [DELIVERED]


async def test_a_warehouse_that_is_not_there_has_nothing_to_forget(tmp_path: Path) -> None:
    async with warehouse.connect(DuckDBSettings(), env_of(tmp_path)) as client:
        assert await warehouse.forget(client, [MIA]) == [DELIVERED]
    assert everything_in(tmp_path) == b""


# ── Webhooks ──────────────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def service(status: int, got: list[tuple[dict[str, str], bytes]]) -> AsyncIterator[str]:
    async def take(request: web.BaseRequest) -> web.Response:
        got.append((dict(request.headers), await request.read()))
        return web.Response(status=status)

    runner = web.ServerRunner(web.Server(take))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/forget"
    finally:
        await runner.cleanup()


async def told(url: str | None) -> Sequence[object]:
    settings = WebhookSettings(
        url=HttpUrl("http://127.0.0.1:9/"),
        forget_url=None if url is None else HttpUrl(url),
        secret=SecretStr("s3cret"),
    )
    async with (
        session(Outbound(allow=(ip_network("127.0.0.0/8"),))) as http,
        connect(settings, Env(http=http, now=lambda: NOW, folder=".")) as webhook,
    ):
        return await forget(webhook, [MIA])


async def test_a_webhook_gets_a_signed_notice(tmp_path: Path) -> None:
    got: list[tuple[dict[str, str], bytes]] = []
    async with service(200, got) as url:
        assert await told(url) == [DELIVERED]
    [(headers, body)] = got
    assert headers["Millrace-Signature"] == signature("s3cret", int(NOW), body)
    assert headers["Idempotency-Key"] == "reg_1"
    assert body == (
        b'{"type":"delete","regulationId":"reg_1","externalIds":[{"type":"user_id","id":"u-mia"},'
        b'{"type":"anonymous_id","id":"a-mia"},{"type":"email","id":"mia@shop.test"}],'
        b'"profileIds":["use_mia","use_mia_2"],"deletedAt":"2026-09-21T14:13:20.000Z"}'
    )


@pytest.mark.parametrize(("status", "outcome"), [(503, Retry("http 503")), (400, Rejected("http 400"))])
async def test_what_a_webhook_answers_is_the_outcome(status: int, outcome: object) -> None:
    async with service(status, []) as url:
        assert await told(url) == [outcome]


async def test_a_webhook_without_an_address_for_it_cannot_forget() -> None:
    assert await told(None) == [Filtered("no forget_url is configured")]
