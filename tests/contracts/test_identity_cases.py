"""The identity specification's hard cases through the pipeline's transaction, on SQLite and on PostgreSQL: one event after the
other, all in one poll, replayed, and by two writers at once."""

import multiprocessing
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import combinations, count
from multiprocessing.synchronize import Barrier

import orjson
import pytest
from sqlalchemy import Connection, text

from pipeline.extract import Extract
from pipeline.identity import Rules
from pipeline.log import Batch, Record
from pipeline.parse import parse
from pipeline.profile import message_key, profile_id, values
from pipeline.store import schema
from pipeline.store.database import Database
from pipeline.store.intake import apply
from pipeline.store.profiles import find
from schemas.events import Event, encode_event
from schemas.reasons import Reason
from tests.identity_cases import CASES, LATEST_OWNER, Case, State, check, events, refused, shown
from tests.properties.identity_model import Model, ModelRules, Said
from tests.stores import prepare
from tests.unit.test_identity_cases import resolved
from tests.unit.test_identity_cases import state as state_of

People = list[tuple[str, int]]


class Store:
    """A database that all cases of a module share, each with ids of its own name."""

    def __init__(self, url: str) -> None:
        self.database = Database(url, threads=2)
        prepare(self.database)
        self._partitions = count()

    def partition(self) -> int:
        """One that nobody has written to."""
        return next(self._partitions)

    def put(self, partition: int, first: int, found: Sequence[Event], rules: Rules) -> None:
        """Applies events as one poll."""
        put(self.database, partition, first, found, rules)

    def play(self, case: Case, name: str, *, polls: bool) -> State:
        """A case as one poll per event, or as few polls as its configurations allow."""
        partition, found = self.partition(), events(case, name)
        change = case.change[0] if case.change else len(found)
        cuts = range(len(found) + 1) if polls else sorted({0, change, len(found)})
        for start, end in zip(cuts, list(cuts)[1:], strict=False):
            self.put(partition, start, found[start:end], case.rules(start))
        return self.state(name)

    def state(self, name: str) -> State:
        return self.database.read_sync(lambda connection: state(connection, name))


def put(database: Database, partition: int, first: int, found: Sequence[Event], rules: Rules) -> None:
    """Applies events as one poll."""
    records = [Record(one.key, encode_event(one), 0, first + number) for number, one in enumerate(found)]
    work = parse([Batch("events", partition, records, first + len(records))], rules=rules)
    assert not work.refusals
    database.run_sync(lambda connection: apply(connection, work, {}, rules))


def state(connection: Connection, name: str) -> State:
    """Who there is of a run."""
    own = {"name": f"%:{name}%"}
    nodes = connection.execute(text("SELECT key, profile FROM nodes WHERE key LIKE :name AND profile IS NOT NULL"), own)
    profiles = {row.id: row for row in connection.execute(schema.profiles.select())}

    def canonical(one: str) -> str:
        while profiles[one].merged_into is not None:
            one = profiles[one].merged_into
        return one

    members: dict[str, list[str]] = {}
    for key, profile in nodes:
        members.setdefault(canonical(profile), []).append(shown(key, name))
    found = sorted((profiles[one] for one in members), key=lambda row: (row.created_at, row.id))
    both: dict[str, list[tuple[Sequence[str], int, Mapping[str, object]]]] = {"users": [], "accounts": []}
    for row in found:
        both[row.collection].append((sorted(members[row.id]), row.events, values(orjson.loads(row.traits))))
    links = connection.execute(text("SELECT node, account FROM links WHERE node LIKE :name"), own)
    own["source"] = f"{name}m%"
    violations: Counter[tuple[str, str]] = Counter()
    sightings = connection.execute(
        text("SELECT key, violation, count FROM violations WHERE message_id LIKE :source"), own
    )
    for key, violation, times in sightings:
        violations[key, violation] += times
    merges = connection.execute(text("SELECT count(*) FROM merges WHERE message_id LIKE :source"), own).scalar_one()
    return State(
        both["users"],
        both["accounts"],
        frozenset((shown(a, name), shown(b, name)) for a, b in links),
        refused(violations, name),
        merges,
    )


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    if request.param == "sqlite":
        opened = Store(f"sqlite:///{tmp_path_factory.mktemp('cases')}/millrace.sqlite")
        yield opened
        opened.database.close()
        return
    server = request.getfixturevalue("postgres_server")
    url = server.create_database()
    opened = Store(url)
    yield opened
    opened.database.close()
    server.drop_database(url)


@pytest.mark.parametrize("number", CASES, ids=lambda number: f"{number} {CASES[number].title}")
def test_hard_case_one_event_after_the_other(store: Store, number: int):
    check(CASES[number], store.play(CASES[number], f"s{number}.", polls=True))


def test_hard_cases_in_one_poll(store: Store):
    for number, case in CASES.items():
        if number == 14:
            continue  # two of its ids are nobody's and everybody's: counted below
        check(case, store.play(case, f"p{number}.", polls=False))


def test_hard_case_59_a_merged_away_id_leads_to_its_survivor(store: Store):
    store.play(CASES[2], "x59.", polls=True)
    [first, absorbed] = created(store, "x59.")
    for address in (first, absorbed):
        found = store.database.read_sync(partial(find, kind="profile_id", value=address))
        assert found is not None
        assert (found.id, found.merged) == (first, [absorbed])


def created(store: Store, name: str) -> Sequence[str]:
    """The ids of the profiles of a run in order of creation."""
    sql = text("SELECT id FROM profiles WHERE message_id LIKE :name ORDER BY created_at")
    return store.database.read_sync(lambda connection: connection.execute(sql, {"name": f"{name}%"}).scalars().all())


def test_hard_case_65_a_replay_of_the_whole_log_gives_the_same_tables(store: Store, tmp_path):
    """All cases again on an empty SQLite store, compared with what they came to here: all that is not a time of processing."""
    replays = [Store(f"sqlite:///{tmp_path}/{number}.sqlite") for number in range(2)]
    if store.database.postgres:
        replays[0] = store
    for one in replays:
        for number, case in CASES.items():
            one.play(case, f"r{number}.", polls=True)
    assert dump(replays[0].database, "r") == dump(replays[1].database, "r")
    for one in replays:
        if one is not store:
            one.database.close()


def dump(database: Database, name: str) -> dict[str, list[tuple[object, ...]]]:
    """Every row of identity that events of a run made."""

    def read(connection: Connection) -> dict[str, list[tuple[object, ...]]]:
        found = {}
        for table in (schema.profiles, schema.nodes, schema.edges, schema.merges, schema.violations, schema.links):
            columns = ", ".join(f'"{column.name}"' for column in table.columns if column.name != "seq")
            rows = connection.execute(
                text(f"SELECT {columns} FROM {table.name} WHERE message_id LIKE :name"), {"name": f"{name}%"}
            )
            # What is refused of an event of nobody's counts for all runs together.
            found[table.name] = sorted((tuple(row) for row in rows if row[0]), key=repr)
        return found

    return database.read_sync(read)


# ── Two writers ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_hard_cases_by_two_writers_come_to_what_some_order_of_the_events_gives(store: Store):
    """Each case's events by turns in two partitions, one transaction each, applied by two threads at once."""
    for number, case in CASES.items():
        if case.change is None and number != 52:
            found = race(store, case, f"t{number}.")
            assert people(found) in serial(number, f"t{number}."), f"case {number}: {found}"


def test_hard_case_50_never_brings_both_users_into_one_profile(store: Store):
    for turn in range(20):
        found = people(race(store, CASES[50], f"f{turn}."))
        assert found in ([("a1 u1", 1), ("u2", 1)], [("a1 u2", 1), ("u1", 1)])


def test_hard_case_51_bridges_at_once_always_give_one_profile(store: Store):
    for turn in range(10):
        name = f"b{turn}."
        three, bridges = events(CASES[51], name)[:3], events(CASES[51], name)[3:]
        store.put(store.partition(), 0, three, Rules(CASES[51].config))
        at_once(store, [[bridges[0]], [bridges[1]]], Rules(CASES[51].config))
        found = store.state(name)
        assert (people(found), found.merges) == ([("a1 e1 u1", 5)], 2)
        first = created(store, name)[0]
        found_by_first = store.database.read_sync(partial(find, kind="profile_id", value=first))
        assert found_by_first is not None
        assert found_by_first.id == first, "the earliest survives"


def test_hard_case_52_creations_at_once_give_one_profile(store: Store):
    found = race(store, CASES[52], "c52.")
    assert people(found) == [("a9 u9", 50)]


ALTERNATING = {number: case for number, case in CASES.items() if case.change is None and number != 52} | {
    46 * 100 + turn: case for turn, case in enumerate(LATEST_OWNER.values())
}
"""Cases whose events two writers may bring, those of the option of case 46 among them."""


def test_hard_cases_by_two_processes_come_to_what_some_order_of_the_events_gives(store: Store):
    """As by two writers, and nothing is shared but the database."""
    spawn = multiprocessing.get_context("spawn")
    barrier, partitions = spawn.Barrier(2), [store.partition(), store.partition()]
    url = store.database.url
    processes = [spawn.Process(target=bring, args=(url, half, partitions[half], barrier)) for half in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    for number, case in ALTERNATING.items():
        name = f"q{number}."
        found = people(store.state(name))
        assert found in orders(case, name), f"case {number}: {found}"


def bring(url: str, half: int, partition: int, barrier: Barrier) -> None:
    """One process: every other event of each case, begun together with the other process."""
    database = Database(url, threads=1)
    offset = 0
    for number, case in ALTERNATING.items():
        rules = case.rules(0)
        barrier.wait(30)
        for one in events(case, f"q{number}.")[half::2]:
            put(database, partition, offset, [one], rules)
            offset += 1
    database.close()


def orders(case: Case, name: str) -> list[People]:
    """What the graph in memory makes of every order that keeps the order within each process."""
    found = events(case, name)
    turns = combinations(range(len(found)), len(found[0::2]))
    return [people(state_of(resolved(case, woven(found, set(turn))), name)) for turn in turns]


def race(store: Store, case: Case, name: str) -> State:
    """The events of a case by turns in two partitions, by a thread each."""
    found = events(case, name)
    at_once(store, [found[0::2], found[1::2]], case.rules(0))
    return store.state(name)


def at_once(store: Store, parts: Sequence[Sequence[Event]], rules: Rules) -> None:
    barrier, failed = threading.Barrier(len(parts)), []

    def write(partition: int, part: Sequence[Event]) -> None:
        try:
            barrier.wait(30)
            for offset, one in enumerate(part):
                store.put(partition, offset, [one], rules)
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=write, args=(store.partition(), part)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []


def people(found: State) -> People:
    """Ids and number of events of each person."""
    return sorted((" ".join(ids), number) for ids, number, _ in found.people)


@cache
def serial(number: int, name: str) -> list[People]:
    """What the model makes of every order that keeps the order within each partition."""
    found = events(CASES[number], name)
    turns = combinations(range(len(found)), len(found[0::2]))
    return [modelled(CASES[number], woven(found, set(turn)), name) for turn in turns]


def woven(found: Sequence[Event], first: set[int]) -> list[Event]:
    evens, odds = iter(found[0::2]), iter(found[1::2])
    return [next(evens) if place in first else next(odds) for place in range(len(found))]


def modelled(case: Case, order: Sequence[Event], name: str) -> People:
    model = Model(lambda said: profile_id(message_key(*said.message), said.received_at))
    limits = {kind: (one.limit, one.window) for kind, one in case.rules(0).types.items()}
    rules = ModelRules(
        limits, case.config.priority, merges=case.config.merges_per_profile, mappings=case.config.ids_per_profile
    )
    extract = Extract(case.rules(0))
    for event in order:
        found = extract(event)
        assert not isinstance(found, Reason)
        model.apply(Said((event.source, event.message_id), found.ids, event.timestamp, event.received_at), rules)
    return sorted(
        (" ".join(sorted(shown(":".join(one), name) for one in person.added)), len(person.events))
        for person in model.people
    )
