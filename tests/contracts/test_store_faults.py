"""What the database's own trouble comes to: conflicts are tried again, outages are Unavailable, on SQLite and on PostgreSQL."""

import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Connection, select, text

from pipeline.store import accepted, ledger, schema
from pipeline.store.database import Database
from schemas.errors import Unavailable
from tests.stores import prepare

ROW = accepted.Row(b"k" * 16, 0, 7, "use_1", "user_id:u1", 1, 1)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path}/millrace.sqlite"
    opened = Database(request.getfixturevalue("postgres_url") if request.param == "postgres" else url, threads=2)
    prepare(opened)
    yield opened
    opened.close()


def keys(connection: Connection) -> list[bytes]:
    return [bytes(key) for key in connection.execute(select(schema.events.c.key)).scalars()]


@pytest.mark.postgres
def test_a_key_that_another_transaction_writes_first_is_found_by_the_next_attempt(postgres_url: str) -> None:
    database = Database(postgres_url, threads=2)
    prepare(database)
    looked, other_done = threading.Event(), threading.Event()
    attempts: list[list[bytes]] = []

    def work(connection: Connection) -> None:
        attempts.append(keys(connection))
        looked.set()
        assert other_done.wait(10)
        if not attempts[-1]:
            accepted.insert(connection, [ROW])

    late = threading.Thread(target=database.run_sync, args=(work,))
    late.start()
    assert looked.wait(10)
    database.run_sync(lambda connection: accepted.insert(connection, [ROW]))
    other_done.set()
    late.join()
    assert attempts == [[], [ROW[0]]]
    database.close()


@pytest.mark.postgres
def test_a_connection_lost_within_a_bulk_write_is_an_outage_that_ends(postgres_url: str) -> None:
    database = Database(postgres_url)
    prepare(database)

    def work(connection: Connection) -> None:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with psycopg.connect(postgres_url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        accepted.insert(connection, [ROW])

    with pytest.raises(Unavailable, match="cannot be reached"):
        database.run_sync(work)
    database.run_sync(lambda connection: accepted.insert(connection, [ROW]))
    assert database.read_sync(keys) == [ROW[0]]
    database.close()


def test_an_event_that_waited_is_delivered_in_the_ledger(database: Database) -> None:
    def progress(claim: ledger.Claim, offset: int, **more: object) -> ledger.Progress:
        rest = {"marks": {}, "range": None, "counts": {}, "rows": (), "changes": ()} | more
        return ledger.Progress(partition=claim.partition, epoch=claim.epoch, offset=offset, **rest)  # type: ignore[arg-type]  # fields by name

    claim = database.run_sync(lambda connection: ledger.claim(connection, "hook", [3], 1))[3]
    row = ledger.Row(0, "retry", "web", "use_1", "m1", 1, "http 500", 1, 2, b"bytes")
    change = ledger.Change(0, "delivered", 2, "", 3)
    for step in (progress(claim, 1, rows=[row]), progress(claim, 1, changes=[change], writes=1)):
        assert database.run_sync(lambda connection, step=step: ledger.record(connection, "hook", 1, [step])) == set()  # type: ignore[misc]  # bound now
    listed = schema.exceptions.c
    assert database.read_sync(
        lambda connection: [
            tuple(one)
            for one in connection.execute(select(listed.state, listed.attempts, listed.next_at, listed.value))
        ]
    ) == [("delivered", 2, 3, None)]
