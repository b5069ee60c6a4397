"""Brings a database to the present schema. `schema.py` is the truth; `migrations/` is how to get there."""

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from pipeline.store.database import Database
from schemas.errors import ConfigError

_FOLDER = Path(__file__).parent / "migrations"
_LOCK = 7_423_905_111  # any number that is ours: one migration at a time


def migrate(database: Database) -> str:
    """Applies what is missing, in one transaction, and returns the revision reached. ConfigError when the database is of a
    newer version; Unavailable when it cannot be reached."""

    def work(connection: Connection) -> str:
        if database.postgres:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
        if _refuse_newer(connection) == _head():
            return _head()
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        return _head()

    return database.run_sync(work)


def check_version(database: Database) -> None:
    """ConfigError, with the remedy, unless the database has exactly the schema this version works with."""

    def work(connection: Connection) -> str | None:
        return _refuse_newer(connection)

    found = database.read_sync(work)
    if found != _head():
        state = "has no tables yet" if found is None else f"is at version {found}, this program needs {_head()}"
        raise ConfigError(f"the database {state}; run `millrace migrate` once")


def _refuse_newer(connection: Connection) -> str | None:
    """The revision of the database, None when it has no tables yet."""
    found = MigrationContext.configure(connection).get_current_revision()
    if found is not None and found not in _revisions():
        raise ConfigError(
            f"the database is at version {found}, which this program does not know; it is from a newer Millrace: "
            "install that version, or restore a backup"
        )
    return found


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    return config


@cache
def _script() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _revisions() -> set[str]:
    return {one.revision for one in _script().walk_revisions()}


def _head() -> str:
    head = _script().get_current_head()
    assert head is not None, "the package ships its migrations"
    return head
