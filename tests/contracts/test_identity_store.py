"""What the store keeps of identity beside the graph, on SQLite and on PostgreSQL: versions of the rules, times of windows, and
what was refused."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from threading import Barrier, Thread

import orjson
import pytest
from sqlalchemy import text

from pipeline.identity import Rules
from pipeline.log import Batch, Record
from pipeline.parse import parse
from pipeline.store.database import Database
from pipeline.store.intake import Emission, apply
from pipeline.store.rules import in_force, rules_of, versions
from pipeline.store.sightings import MOST_IDS
from schemas.events import Event, ExternalId, encode_event
from schemas.identity import IdentityConfig, IdTypeConfig
from tests.stores import prepare

DAY = 86_400_000_000
NOW = 1_790_000_000_000_000


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    sqlite = f"sqlite:///{tmp_path}/millrace.sqlite"
    opened = Database(sqlite if request.param == "sqlite" else request.getfixturevalue("postgres_url"), threads=2)
    prepare(opened)
    yield opened
    opened.close()


def event(
    number: int, user: str | None, anonymous: str | None, day: int = 0, kind: str = "track", **body: object
) -> Event:
    at = NOW + day * DAY + number
    raw = orjson.dumps(body)
    return Event(
        "web", kind, f"m{number}", anonymous, user, at, None, NOW + 99 * DAY + number, "server", None, None, raw
    )


def put(database: Database, found: Sequence[Event], rules: Rules, first: int) -> list[Emission]:
    records = [Record(one.key, encode_event(one), 0, first + number) for number, one in enumerate(found)]
    work = parse([Batch("events", 0, records, first + len(records))], rules=rules)
    return database.run_sync(lambda connection: apply(connection, work, {}, rules))


def rows(database: Database, sql: str) -> list[tuple[object, ...]]:
    return database.read_sync(lambda connection: [tuple(row) for row in connection.execute(text(sql))])


# ── Versions ──────────────────────────────────────────────────────────────────────────────────────────────────────

LOOSE = IdentityConfig(types={"user_id": IdTypeConfig(limit=2)})


def test_a_configuration_that_differs_from_the_latest_begins_a_version(database: Database):
    given = [IdentityConfig(), IdentityConfig(priority=("user_id", "email")), LOOSE, LOOSE, IdentityConfig()]
    assert [database.run_sync(partial(in_force, config=one)).version for one in given] == [1, 1, 2, 2, 3]

    known = database.read_sync(versions)
    assert [(one.version, one.config) for one in known] == [(1, IdentityConfig()), (2, LOOSE), (3, IdentityConfig())]
    found = database.read_sync(lambda connection: rules_of(connection, 2))
    assert found is not None
    assert (found.version, found.type("user_id").limit) == (2, 2)
    assert database.read_sync(lambda connection: rules_of(connection, 4)) is None


def test_processes_that_start_at_once_agree_on_one_version(database: Database):
    barrier, found = Barrier(2), []

    def start() -> None:
        barrier.wait(10)
        found.append(database.run_sync(lambda connection: in_force(connection, LOOSE)).version)

    threads = [Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [1, 1]


def test_every_decision_records_the_version_it_was_made_under(database: Database):
    put(database, [event(0, "u1", "a1"), event(1, "u2", "a2")], Rules(version=7), 0)
    put(
        database,
        [event(2, "u1", "a2"), event(3, None, "a1", kind="identify", traits={"email": "e"})],
        Rules(version=8),
        2,
    )
    put(database, [event(4, "u9", None), event(5, "u9", "a3", traits={"email": "e"})], Rules(LOOSE, 9), 4)

    assert rows(database, "SELECT key, rules FROM nodes ORDER BY key") == [
        ("anonymous_id:a1", 7),
        ("anonymous_id:a2", 7),
        ("anonymous_id:a3", 9),
        ("email:e", 8),
        ("user_id:u1", 7),
        ("user_id:u2", 7),
        ("user_id:u9", 9),
    ]
    assert rows(database, "SELECT b, rules FROM edges ORDER BY rules, a, b") == [
        ("user_id:u1", 7),
        ("user_id:u2", 7),
        ("email:e", 8),
        ("user_id:u9", 9),
        ("user_id:u9", 9),
    ]
    assert rows(database, "SELECT rules FROM merges") == [(9,)]
    assert rows(database, "SELECT key, violation, rules FROM violations") == [
        ("anonymous_id:a2", "Identifier value limit exceeded", 8)
    ]


# ── Windows ───────────────────────────────────────────────────────────────────────────────────────────────────────


def weekly(limit: int) -> Rules:
    return Rules(IdentityConfig(types={"anonymous_id": IdTypeConfig(limit=limit, window="weekly")}))


def test_rules_that_begin_to_have_a_window_count_what_was_added_before(database: Database):
    """Through a merge too: a2 was another person's until then."""
    put(database, [event(0, "u1", "a1"), event(1, None, "a2"), event(2, "u1", "a2")], Rules(), 0)
    [refused, added] = put(database, [event(3, "u1", "a3", day=6), event(4, "u1", "a4", day=8)], weekly(2), 3)

    assert refused.ids == [ExternalId("user_id", "u1")]
    assert added.ids == [ExternalId("user_id", "u1"), ExternalId("anonymous_id", "a4")]
    [(times,)] = rows(database, "SELECT added FROM profiles WHERE merged_into IS NULL")
    assert orjson.loads(str(times)) == {"anonymous_id": [NOW, NOW + 1, NOW + 8 * DAY + 4]}


def test_times_are_forgotten_with_the_window(database: Database):
    put(database, [event(0, "u1", "a1")], weekly(2), 0)
    assert rows(database, "SELECT added FROM profiles") != [(None,)]
    put(database, [event(1, "u1", "a1")], Rules(), 1)
    assert rows(database, "SELECT added FROM profiles") == [(None,)]


# ── What was refused ──────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_refused_is_counted_with_its_first_event(database: Database):
    put(database, [event(0, "u1", "a1"), event(1, "u2", "a1", day=3), event(2, "u2", "a1", day=1)], Rules(), 0)
    put(database, [event(3, "u2", "a1", day=5), event(4, "null", None)], Rules(), 3)

    columns = "key, violation, count, first_at, last_at, message_id, type"
    assert rows(database, f"SELECT {columns} FROM violations ORDER BY key, violation") == [
        ("", "No matching identifiers on event", 1, NOW + 4, NOW + 4, "m4", "track"),
        ("anonymous_id:a1", "Identifier value limit exceeded", 3, NOW + DAY + 2, NOW + 5 * DAY + 3, "m1", "track"),
        ("user_id:null", "ID value blocked", 1, NOW + 4, NOW + 4, "m4", "track"),
    ]


def test_refused_ids_of_one_profile_are_bounded(database: Database):
    """Beyond the first hundred they count under their type; those that are known go on to count as themselves."""
    one_device = Rules(IdentityConfig(types={"anonymous_id": IdTypeConfig(limit=1)}))
    first = [event(number, "u1", f"a{number}") for number in range(MOST_IDS)]
    put(database, first, one_device, 0)
    more = [event(1_000 + number, "u1", f"a{number + 95}") for number in range(20)]
    put(database, more, one_device, len(first))

    found = {str(key): times for key, times in rows(database, "SELECT key, count FROM violations")}
    known = {f"anonymous_id:a{number}": 1 + (number >= 95) for number in range(1, MOST_IDS + 1)} | {
        "anonymous_id:a100": 1
    }
    assert found == known | {"anonymous_id:*": 14}


def test_an_account_is_resolved_and_linked_and_counts_its_own(database: Database):
    put(
        database,
        [
            event(0, "u1", "a1"),
            event(1, "u1", None, kind="group", groupId="g7", traits={"plan": "ent", "seats": 5}),
            event(2, "u2", None, kind="group", groupId="g7", traits={"seats": 9}),
            event(3, "u2", None, event="Opened", context={"groupId": "g7"}),
        ],
        Rules(),
        0,
    )
    assert rows(
        database, "SELECT collection, events, ids, substr(id, 1, 4) FROM profiles ORDER BY collection, events"
    ) == [
        ("accounts", 3, '{"group_id":1}', "acc_"),
        ("users", 2, '{"anonymous_id":1,"user_id":1}', "use_"),
        ("users", 2, '{"user_id":1}', "use_"),
    ]
    assert rows(database, "SELECT node, account, count, message_id FROM links ORDER BY node") == [
        ("user_id:u1", "group_id:g7", 1, "m1"),
        ("user_id:u2", "group_id:g7", 1, "m2"),
    ]
    [(written,)] = rows(database, "SELECT traits FROM profiles WHERE collection = 'accounts'")
    assert {name: write[3:] for name, write in orjson.loads(str(written)).items()} == {
        "plan": ["ent", "web"],
        "seats": [9, "web"],
    }
