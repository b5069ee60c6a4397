"""The services that other tests stand on do what they say."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from pipeline.store.database import Database
from pipeline.store.migrate import check_version
from tests.services.emptied import EmptiedDatabases
from tests.services.kafka import KafkaBroker
from tests.services.postgres import PostgresServer
from tests.stores import prepare


@pytest.mark.kafka
async def test_the_broker_keeps_its_topics_and_its_port_over_kill_9(kafka_broker: KafkaBroker) -> None:
    async with admin(kafka_broker) as before:
        await before.create_topics([NewTopic("kept-over-kill", num_partitions=3, replication_factor=1)])

    await asyncio.to_thread(kafka_broker.kill)
    await asyncio.to_thread(kafka_broker.start)

    async with admin(kafka_broker) as after:
        (topic,) = await after.describe_topics(["kept-over-kill"])
    assert len(topic["partitions"]) == 3


@asynccontextmanager
async def admin(broker: KafkaBroker) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


def test_copies_of_a_migrated_file_have_the_tables_of_this_version_and_nothing_of_each_other(tmp_path: Path) -> None:
    for name in ("first", "second"):
        alter_and_close(Database(f"sqlite:///{tmp_path}/{name}"))


@pytest.mark.postgres
def test_copies_of_a_migrated_database_have_the_tables_of_this_version_and_nothing_of_each_other(
    postgres_server: PostgresServer, migrated_postgres_url: str
) -> None:
    for _ in range(2):
        alter_and_close(Database(postgres_server.create_database(like=migrated_postgres_url)))


def alter_and_close(database: Database) -> None:
    prepare(database)
    check_version(database)
    database.run_sync(lambda connection: connection.exec_driver_sql("CREATE TABLE only_here (x INTEGER)"))
    database.close()


@pytest.mark.postgres
def test_a_database_that_was_used_is_empty_when_it_is_given_again(emptied: EmptiedDatabases) -> None:
    url, last = emptied.take(), emptied.take()
    with psycopg.connect(url, autocommit=True) as left:
        left.execute("insert into positions (applied, emitted, updated_at) values (1, 1, 1), (2, 2, 2)")
        left.execute("insert into suppressions (mark, regulation, at) values ('mark', 'r1', 1)")
        emptied.give_back(url)
        emptied.give_back(last)

        assert emptied.take() == url

        with pytest.raises(psycopg.OperationalError):
            left.execute("select 1")
    with psycopg.connect(url) as connection:
        assert connection.execute("select * from positions").fetchall() == []
        assert connection.execute("select * from suppressions").fetchall() == []
        assert connection.execute("select nextval('positions_partition_seq')").fetchone() == (1,)
        assert connection.execute("select count(*) from alembic_version").fetchone() == (1,)


@pytest.mark.postgres
@pytest.mark.parametrize(
    "change",
    [
        "create table only_here ()",
        "drop table merges",
        "alter table merges alter absorbed set default 'nobody'",
        "drop index links_by_account",
        "create function one() returns int language sql as 'select 1'",
        "update alembic_version set version_num = '9999'",
    ],
)
def test_a_database_whose_tables_were_changed_is_not_given_again(
    emptied: EmptiedDatabases, change: LiteralString
) -> None:
    url, last = emptied.take(), emptied.take()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(change)
    emptied.give_back(url)
    emptied.give_back(last)

    assert emptied.take() not in (url, last)


@pytest.fixture
def emptied(postgres_server: PostgresServer, migrated_postgres_url: str) -> EmptiedDatabases:
    """Databases of a test's own."""
    return EmptiedDatabases(postgres_server, migrated_postgres_url)


@pytest.mark.postgres
def test_every_database_is_fresh(postgres_server: PostgresServer) -> None:
    first, second = postgres_server.create_database(), postgres_server.create_database()
    with psycopg.connect(first, autocommit=True) as connection:
        connection.execute("create table only_here ()")

    with psycopg.connect(second) as connection:
        tables = connection.execute("select tablename from pg_tables where schemaname = 'public'").fetchall()

    assert tables == []


@pytest.mark.postgres
def test_a_killed_backend_ends_its_connection_and_the_server_recovers(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("create table durable as select 1 as one")

        killed = postgres_server.kill_backend(postgres_url)

        assert killed == connection.info.backend_pid
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    postgres_server.wait_until_ready()
    with psycopg.connect(postgres_url) as again:
        assert again.execute("select one from durable").fetchall() == [(1,)]


@pytest.mark.postgres
def test_what_is_written_survives_fsync_and_kill_9_of_the_server(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("show fsync").fetchone() == ("on",)
        connection.execute("create table durable as select 1 as one")

    postgres_server.kill()
    postgres_server.start()

    with psycopg.connect(postgres_url) as again:
        assert again.execute("select one from durable").fetchall() == [(1,)]
