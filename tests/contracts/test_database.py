"""The database: how it gets its tables, and what its troubles are called."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from pipeline.store.database import Database
from pipeline.store.migrate import check_version, migrate
from pipeline.store.schema import metadata
from schemas.errors import ConfigError, Unavailable


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/millrace.sqlite"
    return str(request.getfixturevalue("empty_postgres_url"))


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database(url, threads=2)
    yield opened
    opened.close()


def test_migrations_lead_to_the_schema(database):
    migrate(database)
    absent = (
        () if database.postgres else ("nodes_by_prefix", "events_by_key", "events_by_node")
    )  # it has no need of them
    options = {"include_object": lambda _, name, *rest: name not in absent}
    different = database.read_sync(lambda c: compare_metadata(MigrationContext.configure(c, opts=options), metadata))
    assert different == []


def test_migrating_again_changes_nothing(database):
    assert migrate(database) == migrate(database)


def test_a_database_without_tables_says_what_to_run(database):
    with pytest.raises(ConfigError, match="no tables yet; run `millrace migrate` once"):
        check_version(database)
    migrate(database)
    check_version(database)


@pytest.mark.parametrize("act", [migrate, check_version])
def test_a_database_of_a_newer_version_is_left_alone(database, act):
    migrate(database)
    database.run_sync(lambda c: c.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(ConfigError, match="newer Millrace: install that version"):
        act(database)


def test_two_migrations_at_once_are_one(url):
    failures: list[BaseException] = []

    def start() -> None:
        one = Database(url)
        try:
            migrate(one)
        except BaseException as error:
            failures.append(error)
        finally:
            one.close()

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


async def test_writers_take_turns_and_lose_nothing(database):
    database.run_sync(lambda c: c.execute(text("CREATE TABLE counter (n bigint)")))
    database.run_sync(lambda c: c.execute(text("INSERT INTO counter VALUES (0)")))
    other = Database(database.url.replace("+psycopg", ""))

    def add(connection):
        connection.execute(text("UPDATE counter SET n = n + 1"))

    await asyncio.gather(*(one.run(add) for one in (database, other) for _ in range(50)))
    other.close()
    assert await database.read(lambda c: c.execute(text("SELECT n FROM counter")).scalar()) == 100


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://x/y", "unknown scheme 'mysql'; use sqlite:///path/to/file or postgresql://"),
        ("nonsense", "unknown scheme 'nonsense'"),
    ],
)
def test_a_url_of_another_kind_is_refused_with_the_remedy(url, said):
    with pytest.raises(ConfigError) as caught:
        Database(url)
    assert said in str(caught.value)


def test_a_server_that_does_not_answer_is_unavailable_and_no_password_is_shown():
    database = Database("postgresql://someone:secret@127.0.0.1:1/none")
    with pytest.raises(Unavailable, match="cannot be reached") as caught:
        database.read_sync(lambda c: c.execute(text("SELECT 1")))
    assert "secret" not in str(caught.value)
    database.close()


def test_a_full_disk_is_unavailable_and_loses_nothing(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/small.sqlite")
    database.run_sync(lambda c: c.execute(text("CREATE TABLE t (x text)")))
    database.run_sync(lambda c: c.execute(text("INSERT INTO t VALUES ('kept')")))
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 4")
        connection.rollback()

    def fill(c):
        c.exec_driver_sql("PRAGMA max_page_count = 4")
        c.execute(text("INSERT INTO t VALUES (:x)"), {"x": "x" * 100_000})

    with pytest.raises(Unavailable, match="disk is full; free space, nothing was lost"):
        database.run_sync(fill)
    assert database.read_sync(lambda c: c.execute(text("SELECT x FROM t")).scalars().all()) == ["kept"]
    database.close()


def test_a_folder_that_is_not_there_is_unavailable_with_the_remedy(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/none/x.sqlite")
    with pytest.raises(Unavailable, match=r"cannot be used .*; check the disk and its permissions"):
        database.run_sync(lambda c: c.execute(text("SELECT 1")))
    database.close()
