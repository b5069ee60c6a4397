"""What the pipeline's transaction promises, on SQLite and on PostgreSQL."""

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from sqlalchemy import text

from pipeline.identity import Rules
from pipeline.log import Batch, Record
from pipeline.parse import parse
from pipeline.profile import values
from pipeline.store import books, paths
from pipeline.store.database import Database
from pipeline.store.intake import Emission, apply, positions
from pipeline.store.profiles import find
from schemas.events import Event, ExternalId, Origin, encode_event
from tests.stores import prepare

SECOND = 1_000_000


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = (
        f"sqlite:///{tmp_path}/millrace.sqlite"
        if request.param == "sqlite"
        else request.getfixturevalue("postgres_url")
    )
    opened = Database(url, threads=2)
    prepare(opened)
    yield opened
    opened.close()


def event(
    message: str, *, user: str | None = None, anonymous: str | None = None, at: int = 100, **body: object
) -> Event:
    kind = "identify" if "traits" in body else "track"
    full = {"type": kind, "messageId": message, **body}
    return Event(
        "web",
        kind,
        message,
        anonymous,
        user,
        at * SECOND,
        None,
        1000 * SECOND,
        "server",
        None,
        None,
        orjson.dumps(full),
    )


def batch(*events: Event, partition: int = 0, first: int = 0) -> Batch:
    records = [Record(one.key, encode_event(one), 0, first + i) for i, one in enumerate(events)]
    return Batch("events", partition, records, first + len(events))


def put(database: Database, *batches: Batch, emitted: dict[int, int] | None = None) -> list[Emission]:
    work = parse(batches)
    return database.run_sync(lambda connection: apply(connection, work, emitted or {}, Rules()))


def person(database: Database, address: str) -> dict[str, object] | None:
    found = database.read_sync(lambda connection: find(connection, *address.split(":", 1)))
    if found is None:
        return None
    return {
        "ids": sorted(str(one.external) for one in found.external_ids),
        "traits": values(found.traits),
        "events": found.events,
    }


def intake(database: Database) -> books.Intake:
    return database.read_sync(books.read).intake["web"]


def test_ids_on_one_event_belong_to_one_person(database):
    put(database, batch(event("m1", anonymous="a1"), event("m2", user="u1", anonymous="a1", traits={"plan": "pro"})))

    assert person(database, "anonymous_id:a1") == {
        "ids": ["anonymous_id:a1", "user_id:u1"],
        "traits": {"plan": "pro"},
        "events": 2,
    }
    assert person(database, "user_id:u1") == person(database, "anonymous_id:a1")


def test_a_merged_profile_is_found_by_every_id_it_ever_had(database):
    first, second = put(database, batch(event("m1", user="u1", anonymous="a1"), event("m2", anonymous="a2")))
    put(database, batch(event("m3", user="u1", anonymous="a2"), first=2))

    whole = {"ids": ["anonymous_id:a1", "anonymous_id:a2", "user_id:u1"], "traits": {}, "events": 3}
    assert person(database, f"profile_id:{first.profile}") == whole
    assert person(database, f"profile_id:{second.profile}") == whole


def test_a_repeated_message_changes_nothing_and_is_not_emitted(database):
    put(database, batch(event("m1", user="u1")))
    again = put(database, batch(event("m1", user="u1"), first=1), batch(event("m1", user="u1"), partition=3))

    assert again == []
    assert person(database, "user_id:u1") == {"ids": ["user_id:u1"], "traits": {}, "events": 1}
    assert intake(database) == books.Intake(accepted=1, duplicates=2, refused=0, unresolved=0)


def test_a_repeat_within_one_poll_counts_once(database):
    emissions = put(database, batch(event("m1", user="u1"), event("m1", user="u1")))

    assert [one.origin for one in emissions] == [Origin(0, 0)]
    assert intake(database) == books.Intake(accepted=1, duplicates=1, refused=0, unresolved=0)


def test_records_delivered_again_are_emitted_again_and_counted_once(database):
    poll = batch(event("m1", user="u1", anonymous="a1"), event("m1", user="u1"), event("m2", user="u2", anonymous="a1"))
    first = put(database, poll)
    second = put(database, poll)

    assert second == first
    assert [one.ids for one in first] == [
        [ExternalId("user_id", "u1"), ExternalId("anonymous_id", "a1")],
        [ExternalId("user_id", "u2")],
    ]
    assert intake(database) == books.Intake(accepted=2, duplicates=1, refused=0, unresolved=0)


def test_emission_begins_where_it_was_last_known_to_be_complete(database):
    put(database, batch(event("m1", user="u1")))
    assert database.read_sync(positions) == {0: 0}
    put(database, batch(event("m2", user="u1"), first=1), emitted={0: 1})
    assert database.read_sync(positions) == {0: 1}


def test_late_traits_do_not_undo_newer_ones(database):
    put(database, batch(event("m1", user="u1", at=100, traits={"plan": "pro", "tier": None})))
    put(database, batch(event("m2", user="u1", at=50, traits={"plan": "free", "tier": "B", "city": "Lyon"}), first=1))

    assert person(database, "user_id:u1") == {
        "ids": ["user_id:u1"],
        "traits": {"city": "Lyon", "plan": "pro"},
        "events": 2,
    }


def test_what_cannot_go_on_is_kept_with_its_reason(database):
    refused = event("m1")._replace(refused="no_user_anon_id")
    poison = Record(b"k", b"not avro", 7, 1)
    emissions = put(database, Batch("events", 0, [*batch(refused).records, poison], 2))

    assert emissions == []
    [row] = database.read_sync(lambda connection: paths.refusals(connection, "m1"))
    assert (row["code"], row["body"]) == ("no_user_anon_id", refused.body)
    [row] = database.read_sync(lambda connection: paths.refusals(connection, ""))
    assert (row["code"], row["body"]) == ("poison_record", b"not avro")


def test_an_event_without_a_usable_id_is_accepted_and_belongs_to_nobody(database):
    [emission] = put(database, batch(event("m1", user="null")))

    assert (emission.profile, emission.ids) == ("", ())
    assert intake(database) == books.Intake(accepted=1, duplicates=0, refused=0, unresolved=1)


def test_nul_characters_harm_nobody(database):
    put(database, batch(event("m\0", user="u1"), event("m2", user="u\0", anonymous="a1", traits={"x": "\0"})))

    assert person(database, "anonymous_id:a1") == {"ids": ["anonymous_id:a1"], "traits": {"x": "\0"}, "events": 1}
    assert intake(database) == books.Intake(accepted=1, duplicates=0, refused=1, unresolved=0)


async def test_a_transaction_that_fails_leaves_nothing(database):
    def fails(connection):
        apply(connection, parse([batch(event("m1", user="u1"))]), {}, Rules())
        raise KeyError("crash")

    with pytest.raises(KeyError):
        await database.run(fails)
    assert person(database, "user_id:u1") is None
    assert database.read_sync(positions) == {}


WRITER = """
import random, sys
sys.path.insert(0, sys.argv[4])
from tests.contracts.test_intake import *
database, partition, seed = Database(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
for poll in range(12):
    put(database, batch(*(
        event(f"{partition}-{poll}-{i}", user=f"u{seed.randrange(9)}", anonymous=f"a{seed.randrange(30)}")
        for i in range(40)
    ), partition=partition, first=40 * poll))
"""


def test_two_processes_that_touch_the_same_people_agree(database):
    root = str(Path(__file__).parents[2])
    writers = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                WRITER,
                database.engine.url.render_as_string(hide_password=False).replace("+psycopg", ""),
                str(p),
                str(p),
                root,
            ],
            env=os.environ | {"PYTHONPATH": root},
        )
        for p in range(3)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]

    def audit(connection):
        scalar = lambda sql: connection.execute(text(sql)).scalar()  # noqa: E731
        return {
            "accepted": int(scalar("SELECT sum(accepted) FROM intake")),
            "events of people": int(scalar("SELECT sum(events) FROM profiles WHERE merged_into IS NULL")),
            "events of nodes": int(scalar("SELECT sum(events) FROM nodes")),
            "user ids": int(scalar("SELECT count(*) FROM nodes WHERE key LIKE 'user_id:%'")),
            "absorbed": int(scalar("SELECT count(*) FROM profiles WHERE merged_into IS NOT NULL")),
            "merges": int(scalar("SELECT count(*) FROM merges")),
        }

    found = database.read_sync(audit)
    assert found == {
        "accepted": 1440,
        "events of people": 1440,
        "events of nodes": 1440,
        "user ids": 9,
        "absorbed": found["merges"],
        "merges": found["merges"],
    }
    users = [database.read_sync(lambda c, u=u: find(c, "user_id", f"u{u}")) for u in range(9)]
    assert all(user is not None for user in users)
    owned = [str(one.external) for user in users if user for one in user.external_ids]
    assert len(owned) == len(set(owned)), "an id belongs to one person"
    assert all(sum(one.external.type == "user_id" for one in user.external_ids) == 1 for user in users if user)


async def test_racing_transactions_on_one_new_cookie_give_one_person(database):
    events = [event(f"m{i}", user="u9", anonymous="a9") for i in range(50)]
    random.Random(1).shuffle(events)
    await asyncio.gather(
        *(asyncio.to_thread(put, database, batch(*events[part::2], partition=part)) for part in range(2))
    )
    assert person(database, "user_id:u9") == {"ids": ["anonymous_id:a9", "user_id:u9"], "traits": {}, "events": 50}
