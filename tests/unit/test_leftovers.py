"""What SQLite leaves in the unused space of its pages is written over with the rest of what was deleted."""

import os
import random
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from pipeline.store import leftovers
from pipeline.store.database import Database
from pipeline.store.leftovers import overwrite

GONE = b"mia@shop.test"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "millrace.sqlite"


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{path}", repeatable=True)
    with closing(connected(path)) as connection:
        connection.execute("PRAGMA user_version=1")
    yield database
    database.close()


def connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=OFF", "secure_delete=ON", "cache_size=-65536"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def live(connection: sqlite3.Connection, seed: int) -> list[tuple[str, str]]:
    """People come, their rows grow, and those who are to go are deleted one after the other, so that pages are split and joined. What is left."""
    chance = random.Random(seed)
    connection.execute("CREATE TABLE people (id TEXT PRIMARY KEY, traits TEXT)")
    for number in range(300):
        name = GONE.decode() if number % 10 == 0 else "bob"
        connection.execute("INSERT INTO people VALUES (?, ?)", (number, name + "x" * chance.randrange(300)))
    for _ in range(300):
        grown = ("y" * chance.randrange(900), chance.randrange(300))
        connection.execute("UPDATE people SET traits = traits || ? WHERE id = ?", grown)
    for number in range(0, 300, 10):
        connection.execute("DELETE FROM people WHERE id = ?", (number,))
    return connection.execute("SELECT id, traits FROM people ORDER BY id").fetchall()


def with_leftovers(connection: sqlite3.Connection, path: Path) -> list[tuple[str, str]]:
    """Such a life after which deleting was not enough. Many are: it depends on which pages are joined when."""
    for seed in range(50):
        left = live(connection, seed)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if GONE in files(path):
            return left
        connection.execute("DROP TABLE people")
    raise AssertionError("deleting alone does")


def files(path: Path) -> bytes:
    return b"".join(one.read_bytes() for one in path.parent.iterdir())


def test_rows_that_were_moved_before_they_were_deleted_are_nowhere_in_the_files(path: Path, database: Database) -> None:
    with closing(connected(path)) as connection:
        left = with_leftovers(connection, path)
        assert database.overwrite_deleted()
        assert GONE not in files(path)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT id, traits FROM people ORDER BY id").fetchall() == left


EVERYTHING = "SELECT sum(length(traits)) FROM people NOT INDEXED"
IN_PLACE = "UPDATE people SET traits = 'eve' || substr(traits, 4)"


def test_who_has_such_a_page_in_memory_does_not_write_it_again(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(connected(path)) as connection:

        def read_and_overwrite(path: Path) -> int | None:
            connection.execute(EVERYTHING).fetchone()
            return overwrite(path)

        monkeypatch.setattr(leftovers, "overwrite", read_and_overwrite)
        with_leftovers(connection, path)
        assert database.overwrite_deleted()
        connection.execute(IN_PLACE)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert GONE not in files(path)


def test_nor_does_the_connection_that_saw_to_it(path: Path, database: Database) -> None:
    with closing(connected(path)) as connection:
        with_leftovers(connection, path)
    database.read_sync(lambda c: c.execute(text(EVERYTHING)).scalar_one())
    assert database.overwrite_deleted()
    database.run_sync(lambda c: c.execute(text(IN_PLACE)))
    database.close()  # writes the file
    assert GONE not in files(path)


def test_a_file_without_leftovers_is_not_written(path: Path, database: Database) -> None:
    with closing(connected(path)) as connection:
        with_leftovers(connection, path)
        assert database.overwrite_deleted()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        before = path.read_bytes()
        assert (overwrite(path), database.overwrite_deleted()) == (0, True)
        assert path.read_bytes() == before


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_pages_of_every_size_are_read(path: Path, page_size: int) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size={page_size}")
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA secure_delete=ON")
        left = with_leftovers(connection, path)
        assert overwrite(path)
        assert GONE not in files(path)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT id, traits FROM people ORDER BY id").fetchall() == left


def test_a_file_with_a_map_of_its_pages_is_written_anew(path: Path) -> None:
    """Pages of the map may look like any other."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA auto_vacuum=FULL")
        connection.execute("PRAGMA user_version=1")
    database = Database(f"sqlite:///{path}", repeatable=True)
    with closing(connected(path)) as connection:
        left = with_leftovers(connection, path)
        assert overwrite(path) is None

        assert database.overwrite_deleted()

        assert GONE not in files(path)
        assert connection.execute("SELECT id, traits FROM people ORDER BY id").fetchall() == left
    database.close()


def test_while_somebody_reads_it_is_to_be_tried_again(path: Path, database: Database) -> None:
    with closing(connected(path)) as reader, closing(connected(path)) as writer:
        with_leftovers(writer, path)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM people").fetchone()
        writer.execute("UPDATE people SET traits = 'z'")
        with closing(database.engine.raw_connection()) as impatient:
            impatient.cursor().execute("PRAGMA busy_timeout=0")
        assert not database.overwrite_deleted()
        reader.execute("COMMIT")
        assert database.overwrite_deleted()
        assert GONE not in files(path)


def test_a_database_may_be_reached_through_a_link(path: Path, database: Database) -> None:
    (link := path.parent / "link.sqlite").symlink_to(path)
    linked = Database(f"sqlite:///{link}")
    with closing(connected(path)) as connection:
        with_leftovers(connection, path)
        assert linked.overwrite_deleted()
        assert GONE not in files(path)
    linked.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
def test_the_space_of_a_removed_file_is_given_back_when_the_next_is_looked_at(tmp_path: Path) -> None:
    def descriptors() -> int:
        return sum("gone.sqlite" in os.readlink(one) for one in Path("/proc/self/fd").iterdir() if one.is_symlink())

    for _ in range(3):
        gone = Database(f"sqlite:///{tmp_path}/gone.sqlite")
        assert gone.overwrite_deleted()
        gone.close()
        (tmp_path / "gone.sqlite").unlink()
    assert descriptors() == 1


def test_pages_that_end_with_bytes_of_an_extension_are_left_alone(path: Path, database: Database) -> None:
    with closing(connected(path)) as connection:
        with_leftovers(connection, path)
    database.close()
    raw = bytearray(path.read_bytes())
    raw[20] = 8  # reserved at the end of each page
    path.write_bytes(raw)
    assert overwrite(path) is None
    assert path.read_bytes() == raw
