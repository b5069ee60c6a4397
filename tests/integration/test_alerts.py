"""From a look at real books to what arrives at a webhook, at Slack and in a mailbox."""

import asyncio
import hashlib
import hmac
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from pydantic import SecretStr
from sqlalchemy import Connection

from destinations.channels import tell_email, tell_slack, tell_webhook
from destinations.guard import Outbound, trusting
from destinations.http.client import session
from pipeline.alerts.watch import Tell, run_watch
from pipeline.log import Log, open_log
from pipeline.store import alerts as store
from pipeline.store import ledger
from pipeline.store.database import Database
from pipeline.store.ledger import Counts, Progress
from schemas.config import EmailChannel, SlackChannel, WebhookChannel
from schemas.errors import Unavailable
from schemas.notices import Notice
from tests.services.smtp import mail_server
from tests.stores import prepare
from tests.unit.test_destinations_guard import certificate

HOME = Outbound(allow=(ip_network("127.0.0.0/8"),))
NOTICE = Notice(
    id="firing 1 0",
    alert="destination crm stopped",
    state="firing",
    text="It is down.",
    remedy="Mend it.",
    since=1_793_491_200_000_000,
    at=1_793_491_205_000_000,
)


@asynccontextmanager
async def receiving(answer: Callable[[web.Request, bytes], web.Response]) -> AsyncIterator[str]:
    async def handle(request: web.Request) -> web.Response:
        return answer(request, await request.read())

    app = web.Application()
    app.router.add_post("/{any:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def slack(request: web.Request, body: bytes) -> web.Response:
    """The documented answers of an incoming webhook."""
    if request.path != "/services/T0/B0/good":
        return web.Response(status=403, text="invalid_token")
    if request.content_type != "application/json" or not orjson.loads(body).get("text"):
        return web.Response(status=400, text="no_text")
    return web.Response(text="ok")


async def test_a_webhook_gets_a_signed_object() -> None:
    seen: list[tuple[bool, Any]] = []

    def answer(request: web.Request, body: bytes) -> web.Response:
        stamp, _, given = request.headers["Millrace-Signature"].partition(",v1=")
        right = hmac.new(b"shared", stamp.removeprefix("t=").encode() + b"." + body, hashlib.sha256).hexdigest()
        seen.append((given == right, orjson.loads(body)))
        return web.Response()

    async with receiving(answer) as url, session(HOME) as http:
        await tell_webhook(http, WebhookChannel(type="webhook", url=SecretStr(url), secret=SecretStr("shared")), NOTICE)
    assert seen == [
        (
            True,
            {
                "id": "firing 1 0",
                "alert": "destination crm stopped",
                "state": "firing",
                "text": "It is down.",
                "remedy": "Mend it.",
                "since": "2026-11-01T00:00:00.000Z",
                "at": "2026-11-01T00:00:05.000Z",
            },
        )
    ]


@pytest.mark.parametrize(("path", "fails"), [("/services/T0/B0/good", None), ("/services/T0/B0/gone", "http 403")])
async def test_slack_is_told_or_says_why_not_without_its_address(path: str, fails: str | None) -> None:
    async with receiving(slack) as url, session(HOME) as http:
        tell = tell_slack(http, SlackChannel(type="slack", url=SecretStr(url + path)), NOTICE)
        if fails is None:
            await tell
            return
        with pytest.raises(Unavailable, match=fails) as caught:
            await tell
        assert "T0" not in str(caught.value)


def mailbox(port: int, password: str = "right") -> EmailChannel:
    return EmailChannel(
        type="email",
        host="127.0.0.1",
        port=port,
        user="robot",
        password=SecretStr(password),
        sender="millrace@shop.example",
        to=("night@shop.example",),
    )


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, Outbound]:
    cert, key = certificate(tmp_path)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(cert, key)
    return server, Outbound(allow=HOME.allow, trust=trusting(str(cert)))


async def test_a_mailbox_gets_a_message_over_tls_after_a_login(tls: tuple[ssl.SSLContext, Outbound]) -> None:
    async with mail_server(tls[0]) as box:
        await tell_email(tls[1], mailbox(box.port), NOTICE)
    [(sender, to, text)] = box.messages
    assert (sender, to, box.users, box.secure) == ("millrace@shop.example", ["night@shop.example"], ["robot"], [True])
    assert "Subject: [Millrace] Alert: destination crm stopped" in text
    assert "It is down.\r\n\r\nMend it." in text


async def test_mail_that_cannot_go_says_why(tls: tuple[ssl.SSLContext, Outbound]) -> None:
    async with mail_server(tls[0]) as box:
        with pytest.raises(Unavailable, match="mail server: answer 535"):
            await tell_email(tls[1], mailbox(box.port, "wrong"), NOTICE)
        with pytest.raises(Unavailable, match="certificate"):
            await tell_email(HOME, mailbox(box.port), NOTICE)
        with pytest.raises(Unavailable, match=r"outbound\.allow"):
            await tell_email(Outbound(), mailbox(box.port), NOTICE)
    assert box.messages == []


class Watched:
    """A watch over an empty log, whose clock runs a minute with each look."""

    def __init__(self, database: Database, log: Log) -> None:
        self.database, self.log = database, log
        self.heard: list[str] = []
        self.looks = 0
        self.step = 60.0
        self.deaf = False

    def now(self) -> float:
        self.looks += 1
        return 1_000_000.0 + self.step * self.looks

    async def tell(self, notice: Notice) -> None:
        if self.deaf:
            raise Unavailable("nobody there")
        self.heard.append(f"{notice.state} {notice.alert}")

    def note(self, state: str) -> None:
        self.database.run_sync(partial(_note, state=state))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        channels: dict[str, Tell] = {"night": self.tell}
        watch = asyncio.create_task(
            run_watch(self.log, self.database, ["crm"], channels, stop=stop, every=0.01, now=self.now)
        )
        yield
        stop.set()
        await watch

    async def hears(self, *wanted: str) -> None:
        async with asyncio.timeout(20):
            while self.heard != list(wanted):
                await asyncio.sleep(0.01)


def _note(connection: Connection, *, state: str) -> None:
    ledger.note_state(connection, "crm", state, "http 401", 1)


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    database = Database(f"sqlite:///{tmp_path}/millrace.sqlite")
    prepare(database)
    async with open_log(f"embedded://{tmp_path}/log", partitions=1) as log:
        yield Watched(database, log)
    database.close()


async def test_a_destination_that_stops_and_goes_on_is_told_once_each_also_over_a_restart(watched: Watched) -> None:
    watched.note("paused")
    async with watched.running():
        await watched.hears("firing destination crm stopped")
    async with watched.running():
        watched.note("delivering")
        await watched.hears("firing destination crm stopped", "resolved destination crm stopped")
    assert [one.is_on for one in watched.database.read_sync(store.alerts).values()] == [False]


async def test_a_channel_that_is_deaf_hears_it_later(watched: Watched) -> None:
    watched.deaf = True
    watched.note("paused")
    async with watched.running():
        while watched.looks < 5:
            await asyncio.sleep(0.01)
        watched.deaf = False
        await watched.hears("firing destination crm stopped")


async def test_of_two_watches_one_speaks(watched: Watched) -> None:
    watched.step = 0.001
    watched.note("paused")
    async with watched.running(), watched.running():
        await watched.hears("firing destination crm stopped")
        looks = watched.looks
        while watched.looks < looks + 10:
            await asyncio.sleep(0.01)
    assert watched.heard == ["firing destination crm stopped"]


async def test_the_first_dead_letter_that_there_ever_was_is_told(watched: Watched) -> None:
    async with watched.running():
        async with asyncio.timeout(20):
            while watched.looks < 3:  # with nothing to look at
                await asyncio.sleep(0.01)
        watched.database.run_sync(_die)
        await watched.hears("firing destination crm dead letters")


def _die(connection: Connection) -> None:
    (owned,) = ledger.claim(connection, "crm", [0], 1).values()
    counts = {"web": Counts(0, 0, 1)}
    progress = Progress(0, owned.epoch, 0, {}, None, counts, (), (), owned.writes)
    assert ledger.record(connection, "crm", 1, [progress]) == frozenset()
