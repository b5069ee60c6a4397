"""The real services as fixtures. A missing one skips its tests on a laptop and fails them where `CI` is set.

`kafka_broker` is the session's own Apache Kafka (kill, start, stop); `kafka_bootstrap` its address, or that of
MILLRACE_TEST_KAFKA. `postgres_server` is the session's own PostgreSQL; `postgres_url` a database on it that has its tables
and no row, `empty_postgres_url` a fresh one without tables.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tree under test, whatever the working directory

from tests.services.emptied import EmptiedDatabases
from tests.services.kafka import KafkaBroker, kafka_libs
from tests.services.postgres import PostgresServer, postgres_binaries
from tests.services.process import ServiceAbsent


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores: each waits for disks, services and clocks for nearly half of its time."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of minutes come first, so that other processes find something to do beside them to the end."""
    items.sort(key=lambda item: item.get_closest_marker("crash") is None)


@pytest.fixture(scope="session")
def kafka_broker() -> Iterator[KafkaBroker]:
    """The session's broker, running. A test that kills it starts it again."""
    yield from running_broker()


@pytest.fixture
def own_kafka_broker() -> Iterator[KafkaBroker]:
    """A broker for one test: for what uses the topics by their real names."""
    yield from running_broker()


def running_broker() -> Iterator[KafkaBroker]:
    try:
        broker = KafkaBroker(kafka_libs())
    except ServiceAbsent as reason:
        absent(reason)
    try:
        broker.start()
        yield broker
    finally:
        broker.remove()


@pytest.fixture(scope="session")
def kafka_bootstrap(request: pytest.FixtureRequest) -> str:
    """`host:port` of a broker: MILLRACE_TEST_KAFKA, else the session's own. Give topics a prefix of the test's own."""
    if running := os.environ.get("MILLRACE_TEST_KAFKA"):
        return running
    broker: KafkaBroker = request.getfixturevalue("kafka_broker")
    return broker.bootstrap


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A running server."""
    try:
        binaries = postgres_binaries()
        server = PostgresServer(binaries)
    except ServiceAbsent as reason:
        absent(reason)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def migrated_postgres_url(postgres_server: PostgresServer) -> str:
    """A database with the tables of this version, to copy; nobody is connected to it."""
    url = postgres_server.create_database()
    migrate_once(url)
    return url


@pytest.fixture(scope="session")
def emptied_databases(postgres_server: PostgresServer, migrated_postgres_url: str) -> EmptiedDatabases:
    return EmptiedDatabases(postgres_server, migrated_postgres_url)


@pytest.fixture
def postgres_url(emptied_databases: EmptiedDatabases) -> Iterator[str]:
    """`postgresql://…` of a database with the tables of this version and no row, the test's own while it runs."""
    url = emptied_databases.take()
    yield url
    emptied_databases.give_back(url)


@pytest.fixture
def empty_postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """`postgresql://…` of a fresh, empty database, which goes with the test."""
    url = postgres_server.create_database()
    yield url
    postgres_server.drop_database(url)


def migrate_once(url: str) -> None:
    from pipeline.store.database import Database  # costs every run half a second at the top
    from pipeline.store.migrate import migrate

    database = Database(url)
    try:
        migrate(database)
    finally:
        database.close()


def absent(reason: ServiceAbsent) -> NoReturn:
    """A laptop may lack a service; continuous integration may not."""
    if os.environ.get("CI"):
        pytest.fail(str(reason), pytrace=False)
    pytest.skip(str(reason))
