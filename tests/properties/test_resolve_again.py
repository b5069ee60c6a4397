"""Other rules applied to what was recorded, over random histories: everybody is who they would be had the rules always been."""

import asyncio
import os
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from pipeline.identity import Rules
from pipeline.log import Batch, Log, Record, open_log
from pipeline.parse import parse
from pipeline.profile import preferences, values
from pipeline.resolve_again import resolve_again
from pipeline.store import forget, schema, scratches
from pipeline.store.database import Database
from pipeline.store.graph import read_profiles
from pipeline.store.intake import apply
from pipeline.store.rules import in_force
from pipeline.store.shadow import Shadow
from pipeline.store.verify import verify
from schemas.events import Event, ExternalId, encode_event, encode_resolved
from schemas.topics import EVENTS, RESOLVED
from tests.properties.test_identity_model import Configured, configurations, event, histories, ids
from tests.stores import prepare

HISTORIES = int(os.environ.get("MILLRACE_HISTORIES", "500")) // 10


def opened(path: Path) -> Database:
    database = Database(f"sqlite:///{path}", repeatable=True)
    prepare(database)
    return database


def stating(one: Event, number: int) -> Event:
    """Every other event says what its sender prefers."""
    body = orjson.loads(one.body)
    if number % 2:
        body["context"]["consent"] = {"categoryPreferences": {"ads": number % 4 == 1}}
    return one._replace(body=orjson.dumps(body))


def put(database: Database, events: Sequence[Event], rules: Rules, first: int = 0) -> list[Record]:
    """Applies events as the pipeline does; answers what `resolved` gets."""
    records = [Record(b"k", encode_event(one), 1, first + n) for n, one in enumerate(events)]
    work = parse([Batch(EVENTS, 0, records, first + len(records))], rules=rules)
    emissions = database.run_sync(lambda connection: apply(connection, work, {0: first + len(records)}, rules))
    stamp = time.time_ns() // 1_000_000
    return [
        Record(one.profile.encode(), encode_resolved(one.profile, one.origin, one.ids, one.value), stamp)
        for one in emissions
    ]


def people(database: Database) -> list[tuple[Any, ...]]:
    """Everybody with ids, traits, counters and preferences, and which events hang on which id."""

    def read(connection: Any) -> list[tuple[Any, ...]]:
        rows = connection.execute(select(schema.profiles.c.id, schema.profiles.c.merged_into)).all()
        into = {row.id: row.merged_into for row in rows}
        profiles = read_profiles(connection, list(into))
        owned: dict[str, set[str]] = {}
        nodes = schema.nodes.c
        for key, profile in connection.execute(select(nodes.key, nodes.profile).where(nodes.profile.is_not(None))):
            while into[profile] is not None:
                profile = into[profile]
            owned.setdefault(profile, set()).add(key)
        hanging = sorted((row.node, bytes(row.key)) for row in connection.execute(select(schema.events)))
        found = [
            (
                sorted(keys),
                values(one.traits),
                one.events,
                one.first_seen,
                one.last_seen,
                one.last_message,
                one.ids,
                preferences(one.consent, one.disputed),
            )
            for profile, keys in owned.items()
            for one in [profiles[profile]]
        ]
        return [*sorted(found, key=lambda each: each[0]), tuple(hanging)]

    return database.read_sync(read)


def differences(database: Database, rules: Rules) -> list[Any]:
    return [one for piece in verify(database, rules) for one in piece.differences]


async def applied(log: Log, database: Database, rules: Rules, folder: Path) -> None:
    tally = await resolve_again(log, database, rules, folder / "apply", lambda *_: None)
    assert tally.left == 0


@settings(max_examples=HISTORIES, deadline=None, suppress_health_check=list(HealthCheck))
@given(histories, configurations, configurations)
def test_everybody_is_who_they_would_be_had_the_rules_always_been(
    history: list[Any], before: Configured, after: Configured
) -> None:
    events = [stating(event(call, "h", number), number) for number, call in enumerate(history)]
    half = len(events) // 2
    with TemporaryDirectory() as name:
        folder = Path(name)
        with closing(opened(folder / "live.sqlite")) as live, closing(opened(folder / "always.sqlite")) as always:
            rules = live.run_sync(lambda connection: in_force(connection, before.product.config))
            resolved = put(live, events[:half], rules) if half else []
            rules = live.run_sync(lambda connection: in_force(connection, after.product.config))
            resolved += put(live, events[half:], rules, half)
            put(always, events, rules)

            async def work() -> None:
                async with open_log(f"embedded://{folder}/log", partitions=1) as log:
                    await log.append(RESOLVED, resolved)
                    await applied(log, live, rules, folder)

            asyncio.run(work())
            assert people(live) == people(always)
            assert differences(live, rules) == []


@settings(max_examples=HISTORIES, deadline=None, suppress_health_check=list(HealthCheck))
@given(histories, configurations)
def test_under_the_same_rules_the_evidence_alone_makes_the_same_people(history: list[Any], rules: Configured) -> None:
    """As if retention had removed every event."""
    events = [event(call, "h", number) for number, call in enumerate(history)]
    with TemporaryDirectory() as name, closing(opened(Path(name) / "live.sqlite")) as live:
        in_use = live.run_sync(lambda connection: in_force(connection, rules.product.config))
        put(live, events, in_use)
        with closing(Shadow(Path(name) / "shadow.sqlite", in_use, lambda: None)) as shadow:
            shadow.begin(live, 1 << 62)
            assert [one[0] for one in people(shadow.database)[:-1]] == [one[0] for one in people(live)[:-1]]


def texts_in(path: Path) -> set[str]:
    """Every text in the tables of a scratch store."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            value
            for table in tables
            for row in connection.execute(f"SELECT * FROM {table}")
            for value in row
            if isinstance(value, str)
        }


class _Deletion:
    """Somebody is deleted once so much was heard of the work; what is left of them is looked for whenever the store says that it is
    clean."""

    def __init__(self, live: Database, folder: Path, person: ExternalId, after: int) -> None:
        self.live, self.folder, self.person, self.after = live, folder, person, after
        self.gone: set[str] = set()
        self.late = False  # somebody had been settled by then

    def advance(self, what: str, _: int, __: int) -> None:
        if not self.after:
            gone = self.live.run_sync(lambda connection: forget.person(connection, self.person, "reg"))
            self.gone = set(gone.ids)
            self.live.run_sync(scratches.disturb)
        elif self.after > 0:
            self.late = self.late or what == "people"
        elif self.live.read_sync(scratches.stale) == []:
            assert not self.gone & texts_in(self.folder / "apply" / "shadow.sqlite")
        self.after -= 1


@settings(max_examples=HISTORIES // 3, deadline=None, suppress_health_check=list(HealthCheck))
@given(histories, configurations, configurations, ids, st.integers(0, 20))
def test_whoever_is_deleted_meanwhile_might_as_well_have_been_deleted_before(
    history: list[Any], before: Configured, after: Configured, person: ExternalId, when: int
) -> None:
    events = [stating(event(call, "h", number), number) for number, call in enumerate(history)]
    person = ExternalId(person.type, "h" + person.value)
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patched:
        patched.setattr("pipeline.recorded._AT_ONCE", 1)
        folder = Path(name)
        with closing(opened(folder / "live.sqlite")) as live, closing(opened(folder / "other.sqlite")) as other:
            for store in (live, other):
                rules = store.run_sync(lambda connection: in_force(connection, before.product.config))
                resolved = put(store, events, rules)
                rules = store.run_sync(lambda connection: in_force(connection, after.product.config))
            other.run_sync(lambda connection: forget.person(connection, person, "reg"))
            deletion = _Deletion(live, folder, person, when)

            async def work() -> None:
                async with open_log(f"embedded://{folder}/log", partitions=1) as log:
                    for record in resolved:
                        await log.append(
                            RESOLVED, [record._replace(timestamp=record.timestamp + resolved.index(record))]
                        )
                    tally = await resolve_again(log, live, rules, folder / "apply", deletion.advance)
                    assert tally.left == 0
                    await applied(log, other, rules, folder)

            asyncio.run(work())
            if deletion.after >= 0:  # it was done before that
                live.run_sync(lambda connection: forget.person(connection, person, "reg"))
            assert differences(live, rules) == []
            if not deletion.late and deletion.after < 0:
                assert people(live) == people(other)
