"""Databases that have their tables: a session migrates one of each kind, and every test gets a copy of it."""

import sqlite3
import tempfile
from functools import cache
from pathlib import Path

from sqlalchemy.engine import make_url

from pipeline.store.database import Database
from pipeline.store.migrate import migrate


def prepare(database: Database) -> None:
    """What `migrate` does to a new database, at the cost of a copy. For tests that migration itself is nothing to."""
    path = None if database.postgres else make_url(database.url).database
    if path is not None and not Path(path).exists():
        Path(path).write_bytes(_migrated_file())
    else:
        migrate(database)


@cache
def _migrated_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "millrace.sqlite"
        database = Database(f"sqlite:///{path}")
        migrate(database)
        database.close()
        with sqlite3.connect(path) as connection:  # what is in the log of writes belongs into the file
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        return path.read_bytes()
