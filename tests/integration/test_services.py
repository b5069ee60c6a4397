"""The services that other tests stand on do what they say."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.services.kafka import KafkaBroker
from tests.services.postgres import PostgresServer


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
