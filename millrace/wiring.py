"""What each role is made of. Imports stay inside, so that a role pays only for what it uses."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from millrace import data_folder
from millrace.problems import without_password
from millrace.settings import Settings, functions_folder
from schemas.errors import ConfigError, MillraceError, Unavailable

if TYPE_CHECKING:
    from collector.oauth import OAuth
    from collector.sources import Policy
    from destinations.guard import Outbound
    from destinations.http.client import Client
    from pipeline.alerts.conditions import Thresholds
    from pipeline.alerts.watch import Tell
    from pipeline.delivery.limits import Destination
    from pipeline.enrich import Enrichment
    from pipeline.functions.installed import Functions
    from pipeline.functions.runner import Runner
    from pipeline.log import Log
    from pipeline.store.database import Database
    from schemas.config import Channel

Ready = Callable[[], None]

READERS = 4  # threads of the API: a search or an export leaves some to look-ups

log = structlog.get_logger()


# ── Roles ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def collect(settings: Settings, listener: socket.socket, stop: asyncio.Event, ready: Ready) -> None:
    """HTTP in, log out. The database is only asked by the API: without it events are still taken."""
    from collector.app import create_collector
    from collector.browser_sdk import browser_sdk_routes, read_browser_sdk
    from collector.oauth import oauth_routes
    from collector.operations import OPERATIONS
    from collector.protocol import protocol_class
    from millrace.ingest_metrics import ingest_metrics
    from millrace.process import settle
    from millrace.serve import serve
    from pipeline.identity import Rules
    from pipeline.query.app import create_api

    browser_sdk = read_browser_sdk(settings.environment.data / "browser-sdk")
    tokens = oauth(settings)
    async with open_log(settings) as events:
        with open_database(settings, threads=READERS) as database:
            collector = create_collector(
                log=events,
                sources=write_keys(settings),
                trusted_hops=settings.config.collector.trusted_hops,
                keep_ip=settings.config.collector.keep_ip,
                policies=policies(settings),
                consent=consent_categories(settings),
                bearer=None if tokens is None else tokens.source,
            )
            api = create_api(
                events,
                database,
                token=settings.api_token.get_secret_value(),
                destinations=tuple(settings.destinations),
                ingest_metrics=lambda: ingest_metrics(collector),
                rules=Rules(settings.config.identity),
                operations=OPERATIONS,
                forgetful=forgetful(settings),
            )
            routes = [
                *collector.routes(),
                *oauth_routes(tokens, collector.trusted_hops),
                *browser_sdk_routes(browser_sdk, write_keys(settings)),
            ]
            # Before the API's own, whose last one takes every path, and behind the first, which is asked the most.
            api.router.routes[1:1] = routes
            collector.fallback = ending_with(stop, api)
            async with beside(_look_at_database(settings, database)):
                settle()
                protocol = protocol_class(collector.intake, trusted_hops=collector.trusted_hops)
                await serve(collector, listener, stop, ready, http=protocol)
                await api.state.profiles.close()


async def process(settings: Settings, stop: asyncio.Event, ready: Ready) -> None:
    """Events in; profiles, books and resolved events out."""
    from millrace.process import settle
    from pipeline.telling import keep_telling
    from pipeline.worker import run_worker

    with enrichment(settings) as enriched:
        async with open_log(settings) as events, source_functions(settings) as transforms:
            with open_database(settings) as database:
                await asyncio.to_thread(usable, settings, database)
                settle()
                ready()
                async with (
                    beside(keep_telling(events, database, stop)),
                    beside(erasing(settings, events, database, stop)),
                ):
                    await run_worker(
                        events,
                        database,
                        stop=stop,
                        identity=settings.config.identity,
                        enrichment=enriched,
                        functions=transforms,
                    )


async def deliver(settings: Settings, stop: asyncio.Event, ready: Ready, *, first: bool = True) -> None:
    """Resolved events out to every destination. Not the `first` of this machine: to those that take several processes."""
    from destinations.http.client import session
    from millrace.process import settle
    from pipeline.alerts.watch import run_watch
    from pipeline.delivery.engine import World, run_delivery

    async with open_log(settings) as events:
        with open_database(settings, repeatable=True) as database:
            await asyncio.to_thread(usable, settings, database)
            settle()
            ready()
            world = World(http=partial(session, outbound(settings)), functions=functions(settings))
            folder = settings.environment.data
            async with session(outbound(settings)) as http, asyncio.TaskGroup() as group:
                group.create_task(
                    run_delivery(
                        events, database, mounted(settings), stop=stop, folder=folder, world=world, first=first
                    )
                )
                group.create_task(
                    run_watch(
                        events,
                        database,
                        settings.destinations,
                        channels(settings, http),
                        stop=stop,
                        thresholds=thresholds(settings),
                    )
                )


async def _look_at_database(settings: Settings, database: "Database") -> None:
    """Makes SQLite's tables when this role is the first to come. What is wrong is a warning here: events are taken all
    the same, and the API answers 503 meanwhile."""
    try:
        await asyncio.to_thread(usable, settings, database)
    except MillraceError as error:
        log.warning("the API cannot answer yet", error=str(error))


# ── Parts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def open_log(settings: Settings) -> "AsyncIterator[Log]":
    """The log, or ConfigError with the remedy when it cannot be reached."""
    from pipeline.log import open_log as opened
    from pipeline.log.contract import Retention

    url, wanted = settings.environment.log_url, settings.config.log
    retention = Retention(seconds=wanted.retention.days * 86_400, bytes=int(wanted.retention.gigabytes * (1 << 30)))
    async with AsyncExitStack() as stack:
        try:
            events = await stack.enter_async_context(opened(url, partitions=wanted.partitions, retention=retention))
        except Unavailable as error:
            raise ConfigError(
                f"log {without_password(url)}: {error}; start it, or say where it is with MILLRACE_LOG"
            ) from error
        yield events


@contextmanager
def open_database(settings: Settings, *, repeatable: bool = False, threads: int = 1) -> "Iterator[Database]":
    """The database, not yet connected to. `repeatable`: for a role that does again what a power cut takes back. `threads`: how much
    it does at once."""
    from pipeline.store.database import Database

    database = Database(settings.environment.database_url, repeatable=repeatable, threads=threads)
    try:
        yield database
    finally:
        database.close()


def usable(settings: Settings, database: "Database") -> None:
    """ConfigError with the remedy unless the database can be reached and has the tables of this release. SQLite gets them
    here; PostgreSQL by `millrace migrate`, since several machines share it."""
    from pipeline.store.migrate import check_version

    if not database.postgres:
        migrated(settings, database)
        return
    with reached(settings):
        check_version(database)


def migrated(settings: Settings, database: "Database") -> str:
    """Applies what the tables lack, one process at a time; returns the version reached."""
    from pipeline.store.migrate import migrate

    with reached(settings), data_folder.one_at_a_time(settings.environment.data, "migrate"):
        return migrate(database)


@contextmanager
def reached(settings: Settings) -> Iterator[None]:
    """Says which database it was that could not be reached."""
    try:
        yield
    except Unavailable as error:
        url = without_password(settings.environment.database_url)
        raise ConfigError(f"database {url}: {error}; start it, or say where it is with MILLRACE_DATABASE") from error


async def erasing(settings: Settings, events: "Log", database: "Database", stop: asyncio.Event) -> None:
    """Carries out requests to delete."""
    from pipeline.privacy.eraser import Limits, keep_erasing

    limits = Limits(retention=settings.config.log.retention.days * 86_400)
    await keep_erasing(events, database, stop, data=settings.environment.data, limits=limits)


def forgetful(settings: Settings) -> Sequence[str]:
    """The destinations that can delete people."""
    from destinations.registry import definition

    return [name for name, one in settings.destinations.items() if definition(one.type).forget is not None]


def write_keys(settings: Settings) -> dict[str, str]:
    """Source names by write key."""
    return {
        key.get_secret_value(): name
        for name, source in settings.sources.items()
        for key in (source.write_key, source.second_write_key)
        if key is not None
    }


def policies(settings: Settings) -> "dict[str, Policy]":
    """What each source may send."""
    from collector.sources import Policy

    return {
        name: Policy(
            enabled=source.enabled,
            require_oauth=source.require_oauth,
            origins=None if source.origins is None else frozenset(source.origins),
            events_per_second=source.events_per_second,
        )
        for name, source in settings.sources.items()
    }


def consent_categories(settings: Settings) -> dict[str, list[str]]:
    """Those that the destinations of each source ask for."""
    destinations = settings.destinations.values()
    return {
        source: sorted(
            {name for one in destinations if one.sources is None or source in one.sources for name in one.consent}
        )
        for source in settings.sources
    }


@contextmanager
def enrichment(settings: Settings) -> "Iterator[Enrichment]":
    """What the server adds to events. ConfigError when the geo database cannot be read."""
    from pipeline.enrich import Enrichment, Geo, UserAgents

    wanted = settings.config.enrich
    user_agents = UserAgents(details=wanted.user_agent, bots=wanted.bots) if wanted.user_agent or wanted.bots else None
    if wanted.geo is None:
        yield Enrichment(user_agents)
        return
    geo = Geo(str(settings.environment.data / wanted.geo.database))
    try:
        yield Enrichment(user_agents, geo)
    finally:
        geo.close()


def mounted(settings: Settings) -> "Sequence[Destination]":
    """Each destination as the engine takes it."""
    from destinations.registry import definition
    from pipeline.delivery.limits import Destination

    return [
        Destination(
            name=name,
            definition=definition(config.type),
            settings=settings.destination_settings[name],
            sources=None if config.sources is None else frozenset(config.sources),
            filter=config.filter,
            filters=config.filters,
            consent=config.consent,
            function=config.function,
            mappings=config.mappings,
            presets=config.presets,
            limits=config.limits,
        )
        for name, config in settings.destinations.items()
    ]


def outbound(settings: Settings) -> "Outbound":
    """What destinations may connect to."""
    from destinations.guard import Outbound, trusting

    wanted = settings.config.outbound
    trust = None if wanted.ca_file is None else trusting(str(settings.environment.data / wanted.ca_file))
    return Outbound(allow=wanted.allow, trust=trust)


def functions(settings: Settings) -> "Functions":
    """The functions beside millrace.yaml. What they print goes to the data folder."""
    from pipeline.functions.installed import Functions

    return Functions(
        folder=functions_folder(settings.environment, settings.config),
        logs=settings.environment.data / "function-logs",
        allow=[str(one) for one in settings.config.outbound.allow],
    )


@asynccontextmanager
async def source_functions(settings: Settings) -> "AsyncIterator[Mapping[str, Runner]]":
    """The function of each source that has one, ready. ConfigError when one cannot be loaded."""
    installed = functions(settings)
    async with AsyncExitStack() as stack:
        runners = {}
        for name, source in settings.sources.items():
            if source.function is not None:
                try:
                    runners[name] = await stack.enter_async_context(installed.opened(source.function, "source"))
                except Unavailable as error:
                    raise ConfigError(f"sources.{name}.function: {error}") from error
        yield runners


def channels(settings: Settings, http: "Client") -> "Mapping[str, Tell]":
    """How each configured channel is told."""
    from destinations.channels import tell_email, tell_slack, tell_webhook
    from schemas.config import SlackChannel, WebhookChannel

    def tell(channel: "Channel") -> "Tell":
        if isinstance(channel, WebhookChannel):
            return partial(tell_webhook, http, channel)
        if isinstance(channel, SlackChannel):
            return partial(tell_slack, http, channel)
        return partial(tell_email, outbound(settings), channel)

    return {name: tell(channel) for name, channel in settings.config.alerts.channels.items()}


def thresholds(settings: Settings) -> "Thresholds":
    """When alerts speak."""
    from pipeline.alerts.conditions import MINUTE, Thresholds

    wanted = settings.config.alerts
    minutes = wanted.lag_minutes_above
    return Thresholds(
        delivery_rate=wanted.delivery_rate_below,
        volume_drop=wanted.volume_drop_above,
        lag=None if minutes is None else round(minutes * MINUTE),
        dead_letters=wanted.dead_letters_above,
    )


def oauth(settings: Settings) -> "OAuth | None":
    """None when no source has clients. Tokens are signed with a secret of the API token's, which all collect processes share."""
    from hashlib import blake2b

    from collector.oauth import ClientKey, OAuth

    keys = {
        key_id: ClientKey(client_id=client_id, source=name, pem=pem)
        for name, source in settings.sources.items()
        for client_id, client in source.oauth_clients.items()
        for key_id, pem in client.keys.items()
    }
    if not keys:
        return None
    return OAuth(keys, blake2b(settings.api_token.get_secret_value().encode(), person=b"oauth").digest())


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs `work` while the block runs, and not longer."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))


# ── Between them ──────────────────────────────────────────────────────────────────────────────────────────────────

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def ending_with(stop: asyncio.Event, app: App) -> App:
    """The application, whose endless answers end when we stop: it is told that the client has left, and the client gets
    a proper end."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        unfinished = False

        async def receive_or_stop() -> Message:
            stopped = asyncio.ensure_future(stop.wait())
            received = asyncio.ensure_future(receive())
            try:
                await asyncio.wait((stopped, received), return_when=asyncio.FIRST_COMPLETED)
                return received.result() if received.done() else {"type": "http.disconnect"}
            finally:
                stopped.cancel()
                received.cancel()

        async def send_and_note(message: Message) -> None:
            nonlocal unfinished
            await send(message)
            unfinished = message["type"] == "http.response.start" or bool(message.get("more_body"))

        if scope["type"] != "http":
            return await app(scope, receive, send)
        await app(scope, receive_or_stop, send_and_note)
        if unfinished:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        return None

    return wrapped
