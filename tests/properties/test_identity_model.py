"""The product against the model of the identity algorithm, over random histories: in memory, through the transaction with
crashes and changes of configuration, and by writers at once. MILLRACE_HISTORIES says how many (500)."""

import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, count
from typing import Any, NamedTuple

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.graph import Graph
from pipeline.identity import Rules
from pipeline.log import Batch, Record
from pipeline.parse import parse
from pipeline.profile import message_key, profile_id, values
from pipeline.store import bulk
from pipeline.store.database import Database
from pipeline.store.graph import load
from pipeline.store.intake import Emission, apply
from schemas.events import Event, ExternalId, Origin, encode_event
from schemas.identity import WINDOWS, IdentityConfig, IdTypeConfig, Window
from tests.properties.identity_model import Model, ModelRules, Said
from tests.stores import prepare

HISTORIES = int(os.environ.get("MILLRACE_HISTORIES", "500"))
TYPES = ("user_id", "email", "anonymous_id", "card")
DAY = 86_400_000_000
NOW = 1_790_000_000_000_000


class Call(NamedTuple):
    """An event to be: the message names it, so that two of one number are a duplicate."""

    message: int
    ids: Sequence[ExternalId]
    day: int
    traits: Mapping[str, Any]


class Configured(NamedTuple):
    """One configuration, as the product takes it and as the model does."""

    product: Rules
    model: ModelRules


def configured(
    limits: Mapping[str, tuple[int, Window]], priority: Sequence[str], merges: int, mappings: int
) -> Configured:
    types = {kind: IdTypeConfig(limit=limit, window=window) for kind, (limit, window) in limits.items()}
    config = IdentityConfig(types=types, priority=tuple(priority), merges_per_profile=merges, ids_per_profile=mappings)
    model = ModelRules({kind: (limit, WINDOWS[window]) for kind, (limit, window) in limits.items()}, priority)
    return Configured(Rules(config), ModelRules(model.limits, model.priority, merges=merges, mappings=mappings))


limits = st.tuples(st.integers(1, 2), st.sampled_from(["ever", "weekly"]))
configurations = st.builds(
    configured,
    st.fixed_dictionaries(dict.fromkeys(TYPES, limits)),
    st.permutations(TYPES).map(lambda order: order[:2]),
    st.sampled_from([1_000, 1_000, 0, 1]),
    st.sampled_from([10_000, 10_000, 2, 4]),
)
ids = st.builds(ExternalId, st.sampled_from(TYPES), st.sampled_from(["1", "2", "3", "null"]))
calls = st.builds(
    Call,
    st.integers(0, 40),
    st.lists(ids, min_size=1, max_size=3, unique=True),
    st.sampled_from([0, 7, 8, 50]),
    st.dictionaries(st.sampled_from(["name", "plan"]), st.sampled_from([None, "x", "y", 1]), max_size=2),
)
histories = st.lists(calls, min_size=1, max_size=12)


# ── What is compared ──────────────────────────────────────────────────────────────────────────────────────────────

Person = tuple[str, frozenset[str], int, int, int, str, int]


def event(call: Call, name: str, number: int) -> Event:
    """Received in the order of processing, by the second; `day` is when it happened, now and then in the future."""
    entries = [
        {
            "type": kind,
            "id": value if value in ("0", "null") else name + value,
            "collection": "users",
            "encoding": "none",
        }
        for kind, value in call.ids
    ]
    body = {"type": "identify", "traits": call.traits, "context": {"externalIds": entries}}
    at, received = NOW + call.day * DAY, NOW + 40 * DAY + number * 1_000_000
    message = f"{name}m{call.message}"
    return Event("web", "identify", message, None, None, at, None, received, "server", None, None, orjson.dumps(body))


def said(one: Event) -> Said:
    body = orjson.loads(one.body)
    found = [(entry["type"], entry["id"]) for entry in body["context"]["externalIds"]]
    return Said((one.source, one.message_id), found, one.timestamp, one.received_at, body["traits"])


def named(one: Said) -> str:
    return profile_id(message_key(*one.message), one.received_at)


def modelled(model: Model) -> set[Person]:
    return {
        (
            person.name,
            frozenset(":".join(one) for one in person.added),
            len(person.events),
            min(person.events),
            max(person.events),
            repr(sorted((name, value) for name, (_, value) in person.writes.items() if value is not None)),
            person.merges,
        )
        for person in model.people
    }


def produced(graph: Graph) -> set[Person]:
    members: dict[str, set[str]] = {}
    for node in graph.nodes.values():
        if node.profile is not None:
            members.setdefault(graph.canonical(node.profile), set()).add(node.key)
    return {
        (
            name,
            frozenset(keys),
            (one := graph.profiles[name]).events,
            one.first_seen,
            one.last_seen,
            repr(list(values(one.traits).items())),
            one.merges,
        )
        for name, keys in members.items()
    }


def refusals(model: Model) -> dict[tuple[str, str], int]:
    return {
        (":".join(one) if any(one) else "", violation): count for (one, violation), count in model.violations.items()
    }


# ── In memory ─────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=HISTORIES, deadline=None)
@given(histories, configurations, configurations, st.integers(0, 14))
def test_the_graph_is_the_models(history: list[Call], first: Configured, second: Configured, change: int):
    """A duplicate is left out before the graph, as the transaction does."""
    graph, model, seen = Graph(), Model(named), set()
    for number, call in enumerate(history):
        one, rules = event(call, "", number), first if number < change else second
        expected = model.apply(said(one), rules.model)
        if one.message_id in seen:
            assert expected is None
            continue
        seen.add(one.message_id)
        for profile in graph.profiles.values():  # as the store completes them when rules begin to have a window
            profile.added = {kind: added(graph, profile.id, kind) for kind in rules.product.windowed}
        work = parse([Batch("events", 0, [Record(b"", encode_event(one), 0, number)], number + 1)], rules=rules.product)
        [found] = [parsed.found for parsed in work.events]
        key = message_key(one.source, one.message_id)
        outcome = graph.apply(one, key, found.ids, found.traits, rules.product, found.accounts, found.refused)
        assert (outcome.profile, list(outcome.ids)) == expected
    assert produced(graph) == modelled(model)
    found_refused: Counter[tuple[str, str]] = Counter()
    for (_, refused, violation), sighting in graph.violations.items():
        found_refused[refused, violation] += sighting.count
    assert found_refused == refusals(model)


def added(graph: Graph, profile: str, kind: str) -> list[int]:
    nodes = [node for node in graph.nodes.values() if node.profile and graph.canonical(node.profile) == profile]
    return sorted(node.added_at or 0 for node in nodes if node.key.startswith(kind + ":"))


# ── Through the transaction ───────────────────────────────────────────────────────────────────────────────────────


class Crash(Exception):
    """A process dies before it has committed."""


@dataclass
class Writer:
    """A process that reads a partition from where its emission was known to be complete."""

    database: Database
    partition: int
    log: Sequence[Event]
    emitted: int = 0
    applied: int = 0
    emissions: dict[Origin, Emission] = field(default_factory=dict)

    def poll(self, most: int, rules: Rules, fate: str = "") -> Sequence[Event]:
        """Applies up to `most` events that are new; returns those. `dies`: the process ends before the commit; `lost`: after it,
        and before anything was emitted."""
        end = min(self.applied + most, len(self.log))
        part = self.log[self.emitted : end]
        records = [Record(one.key, encode_event(one), 0, self.emitted + number) for number, one in enumerate(part)]
        work = parse([Batch("events", self.partition, records, end)], rules=rules)

        def transaction(connection: Any) -> list[Emission]:
            made = apply(connection, work, {self.partition: self.emitted}, rules)
            if fate == "dies":
                raise Crash
            return made

        try:
            made = self.database.run_sync(transaction)
        except Crash:
            return ()
        for one in made:
            known = self.emissions.setdefault(one.origin, one)
            assert known.profile == one.profile, "emitted again with another profile"
        new, self.applied = self.log[self.applied : end], end
        if fate != "lost":
            self.emitted = end
        return new


def stored(database: Database, log: Sequence[Event]) -> tuple[set[Person], Mapping[tuple[str, str], int]]:
    """Who the ids of a run belong to, and which of its ids were refused."""
    keys = sorted({":".join(one) for each in log for one in said(each).ids})

    def read(connection: Any) -> tuple[Graph, list[Any]]:
        sql = "SELECT key, violation, count FROM violations WHERE key {}"
        return load(connection, keys, lock=False), bulk.select(connection, sql, keys)

    graph, rows = database.read_sync(read)
    refused: Counter[tuple[str, str]] = Counter()
    for key, violation, times in rows:
        if key.rpartition(":")[2] not in ("0", "null"):  # those are of all runs together
            refused[key, violation] += times
    return produced(graph), refused


def own(model: Model) -> dict[tuple[str, str], int]:
    return {key: times for key, times in refusals(model).items() if key[0].rpartition(":")[2] not in ("0", "null", "")}


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    server = None if request.param == "sqlite" else request.getfixturevalue("postgres_server")
    url = (
        f"sqlite:///{tmp_path_factory.mktemp('model')}/millrace.sqlite" if server is None else server.create_database()
    )
    opened = Database(url, threads=2)
    prepare(opened)
    yield opened
    opened.close()
    if server is not None:
        server.drop_database(url)


runs = count()
partitions = count()  # each run has its own
fates = st.lists(st.tuples(st.integers(1, 5), st.sampled_from(["", "", "", "dies", "lost"])), max_size=12)


def test_crashes_and_changes_of_configuration_leave_what_the_model_says(database: Database):
    @settings(
        max_examples=HISTORIES if not database.postgres else HISTORIES // 10,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(histories, fates, configurations, configurations, st.integers(0, 8))
    def law(
        history: list[Call], steps: list[tuple[int, str]], first: Configured, second: Configured, change: int
    ) -> None:
        run = next(runs)
        log = [event(call, f"{run}.", number) for number, call in enumerate(history)]
        writer, model = Writer(database, next(partitions), log), Model(named)
        for number, (most, fate) in enumerate([*steps, (len(log), ""), (len(log), "")]):
            rules = first if number < change else second
            for one in writer.poll(most, rules.product, fate):
                model.apply(said(one), rules.model)
        assert stored(database, log) == (modelled(model), own(model))

    law()


def test_writers_at_once_leave_what_some_order_of_their_transactions_gives(database: Database):
    @settings(max_examples=HISTORIES // 5 if not database.postgres else HISTORIES // 10, deadline=None)
    @given(histories, histories, st.integers(1, 3), configurations)
    def law(left: list[Call], right: list[Call], polls: int, rules: Configured) -> None:
        run = next(runs)
        calls = [event(call, f"{run}.", number) for number, call in enumerate([*left, *right])]
        logs = [calls[: len(left)], calls[len(left) :]]
        writers = [Writer(database, next(partitions), log) for log in logs]
        parts = [cut(log, polls) for log in logs]
        at_once(writers, parts, rules.product)
        outcome = stored(database, calls)
        turns = combinations(range(2 * polls), polls)
        assert any(outcome == serial(parts, set(turn), rules) for turn in turns)

    law()


def cut(log: Sequence[Event], polls: int) -> list[Sequence[Event]]:
    """A log in so many polls, the last ones empty perhaps."""
    size = -(-len(log) // polls)
    return [log[number * size : (number + 1) * size] for number in range(polls)]


def at_once(writers: Sequence[Writer], parts: Sequence[Sequence[Sequence[Event]]], rules: Rules) -> None:
    barrier = threading.Barrier(len(writers))
    failed: list[BaseException] = []

    def work(writer: Writer, polls: Sequence[Sequence[Event]]) -> None:
        try:
            barrier.wait(30)
            for part in polls:
                writer.poll(len(part), rules)
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=work, args=pair) for pair in zip(writers, parts, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []


def serial(
    parts: Sequence[Sequence[Sequence[Event]]], first: set[int], rules: Configured
) -> tuple[set[Person], Mapping[tuple[str, str], int]]:
    model = Model(named)
    sides = [iter(parts[0]), iter(parts[1])]
    for place in range(sum(map(len, parts))):
        for one in next(sides[place not in first]):
            model.apply(said(one), rules.model)
    return modelled(model), own(model)
