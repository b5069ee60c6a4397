"""Accepted events are found by key and by person, whatever generation they are in; on SQLite and on PostgreSQL."""

import random
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Table

from pipeline.store import accepted, bulk, schema
from pipeline.store.accepted import Applied, Row
from pipeline.store.database import Database
from pipeline.store.history import Place, places
from schemas.events import Origin
from tests.stores import prepare

POLL = 25
BEFORE_ALL, BEHIND_ALL = Place(-(1 << 62), -1, -1), Place(1 << 62, -1, -1)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path}/millrace.sqlite"
    opened = Database(request.getfixturevalue("postgres_url") if request.param == "postgres" else url, threads=2)
    prepare(opened)
    yield opened
    opened.close()


@pytest.fixture
def rows(database: Database, monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """A thousand events of five nodes in the store, in polls; a generation is a hundred. Some share half of their key, some
    the moment, and one in ten comes late."""
    monkeypatch.setattr(accepted, "GENERATION", 100)
    chance, made = random.Random(3), list[Row]()
    for start in range(0, 1_000, POLL):
        poll = []
        for number in range(start, start + POLL):
            at = 1_000 + number // 3 - (chance.randrange(900) if number % 10 == 0 else 0)
            half = chance.randbytes(8) if number % 4 else b"the same"
            node = chance.choice(["user_id:u1", "user_id:u2", "user_id:u3", "user_id:u4", ""])
            key = half + number.to_bytes(8, "big")
            poll.append(Row(key, number % 3, number, "use_1" if node else "", node, number, at))
        database.run_sync(partial(take, poll=poll, applied=start + POLL))
        made += poll
    return made


def take(connection: Connection, poll: list[Row], applied: int) -> None:
    accepted.insert(connection, poll)
    bulk.upsert(connection, schema.positions, [(0, applied, 0, 0)])


def test_every_key_leads_to_its_event_and_no_other_key_does(database: Database, rows: list[Row]) -> None:
    found = database.read_sync(lambda c: accepted.find(c, [row.key for row in rows]))
    assert found == {row.key: Applied(Origin(row.partition, row.offset), row.profile, row.processed_at) for row in rows}
    strangers = [b"the same" + b"\xff" * 8, b"\xff" * 16]
    assert database.read_sync(lambda c: accepted.find(c, strangers)) == {}


@pytest.mark.parametrize("newest_first", [True, False])
def test_pages_of_a_person_go_through_all_their_events_in_order(
    database: Database, rows: list[Row], newest_first: bool
) -> None:
    nodes = ["user_id:u1", "user_id:u3"]
    expected = sorted(
        (Place(row.at, row.partition, row.offset) for row in rows if row.node in nodes), reverse=newest_first
    )
    for most in (1, 7, 400):
        seen, after, before = list[Place](), BEFORE_ALL, BEHIND_ALL
        while page := database.read_sync(
            lambda c, after=after, before=before, most=most: places(  # type: ignore[misc]  # bound now
                c, nodes, after=after, before=before, newest_first=newest_first, most=most
            )
        ):
            seen += page
            after, before = (after, page[-1]) if newest_first else (page[-1], before)
        assert seen == expected


def test_a_stretch_of_time_has_its_own_events_only(database: Database, rows: list[Row]) -> None:
    after, before = Place(1_050, -1, -1), Place(1_200, -1, -1)
    found = database.read_sync(
        lambda c: places(c, ["user_id:u2"], after=after, before=before, newest_first=False, most=1_000)
    )
    assert found == sorted(
        Place(row.at, row.partition, row.offset) for row in rows if row.node == "user_id:u2" and 1_050 <= row.at < 1_200
    )


def test_what_is_deleted_is_found_no_more_and_the_rest_is(database: Database, rows: list[Row]) -> None:
    gone = [row for row in rows if row.node in ("user_id:u1", "user_id:u3")]
    origins = list[Origin]()
    while some := database.run_sync(lambda c: accepted.delete(c, ["user_id:u1", "user_id:u3"], most=70)):
        assert len(some) <= 70
        origins += [Origin(one.partition, one.offset) for one in some]
    assert sorted(origins) == sorted(Origin(row.partition, row.offset) for row in gone)
    found = database.read_sync(lambda c: accepted.find(c, [row.key for row in rows]))
    assert set(found) == {row.key for row in rows} - {row.key for row in gone}
    assert (
        database.read_sync(
            lambda c: places(c, ["user_id:u3"], after=BEFORE_ALL, before=BEHIND_ALL, newest_first=True, most=9)
        )
        == []
    )
    for table in (schema.event_keys, schema.event_keys_new, schema.event_times):
        left = database.read_sync(partial(rows_of, table=table))
        assert {(one.partition, one.offset) for one in left}.isdisjoint(origins)


def rows_of(connection: Connection, table: Table) -> Sequence[Any]:
    return connection.execute(table.select()).all()
