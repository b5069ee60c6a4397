"""Rows arrive whole and in any number, on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection, select

from pipeline.store import bulk, schema
from pipeline.store.database import Database
from tests.stores import prepare

# Around the statements of many rows that SQLite gets, and around a half of one.
COUNTS = (0, 1, 2, 511, 513, 1_023, 1_024, 1_025, 2_500)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path}/millrace.sqlite"
    opened = Database(request.getfixturevalue("postgres_url") if request.param == "postgres" else url)
    prepare(opened)
    yield opened
    opened.close()


def rows_of(connection: Connection) -> list[tuple[int, int, int, int]]:
    return [tuple(row) for row in connection.execute(select(schema.positions).order_by("partition"))]


def test_as_many_rows_are_written_as_were_given(database: Database) -> None:
    whole: list[tuple[int, int, int, int]] = []
    for count in COUNTS:
        rows = [(number, number * 3, number * 5, number * 7) for number in range(len(whole), len(whole) + count)]
        database.run_sync(partial(bulk.insert, table=schema.positions, rows=rows))
        whole += rows

    assert database.read_sync(rows_of) == whole


def test_rows_that_are_there_become_what_is_said_and_others_are_added(database: Database) -> None:
    there = [(number, 1, 2, 3) for number in range(0, COUNTS[-1], 2)]
    database.run_sync(partial(bulk.insert, table=schema.positions, rows=there))

    given = [(number, number, 10, 20) for number in range(COUNTS[-1])]
    sums = {"emitted": "positions.emitted + excluded.emitted"}
    database.run_sync(partial(bulk.upsert, table=schema.positions, rows=given, set_=sums))

    expected = [(number, number, 10 if number % 2 else 12, 20) for number in range(COUNTS[-1])]
    assert database.read_sync(rows_of) == expected


def test_every_row_that_is_asked_for_is_found_however_many_they_are(database: Database) -> None:
    whole = [(number, 1, 2, 3) for number in range(17_000)]
    database.run_sync(partial(bulk.insert, table=schema.positions, rows=whole))
    sql = "SELECT partition FROM positions WHERE partition {}"

    found = database.read_sync(lambda c: bulk.select(c, sql, [number for number, *_ in whole], kind="int"))
    assert sorted(number for (number,) in found) == [number for number, *_ in whole]


def test_no_table_has_more_columns_than_a_statement_of_many_rows_takes() -> None:
    assert max(len(table.columns) for table in schema.metadata.tables.values()) * bulk.TOGETHER <= 32_766


def test_rows_of_a_wide_table_arrive_whole(database: Database) -> None:
    rows = [
        (f"use_{number}", number, None, "{}", "{}", *range(3), "users", 0, "", "", "", "") for number in range(3_000)
    ]
    whole = [(*row, None, None, 0, None, None) for row in rows]

    database.run_sync(partial(bulk.insert, table=schema.profiles, rows=whole))

    found = database.read_sync(lambda c: [tuple(row) for row in c.execute(select(schema.profiles))])
    assert sorted(found) == sorted(whole)
