"""The services that other tests stand on do what they say."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from pipeline.store.database import Database
from pipeline.store.migrate import check_version
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
