"""The open file, what its schemas look like, and why it cannot be used now."""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from destinations.warehouse.inference import Type

LOADED: Final = "_loaded"
SQL_TYPES: Final[Mapping[Type, str]] = {
    "boolean": "BOOLEAN",
    "bigint": "BIGINT",
    "double": "DOUBLE",
    "timestamp": "TIMESTAMP",
    "text": "VARCHAR",
}
KINDS: Final[Mapping[str, Type]] = {sql: kind for kind, sql in SQL_TYPES.items()}


_LOCKED: Final = "warehouse file is locked by another program"


class Refused(Exception):
    """The file cannot be used now. `after` is in seconds."""

    def __init__(self, reason: str, after: float) -> None:
        super().__init__(reason)
        self.after = after


@dataclass(slots=True)
class File:
    """The open file and what its schemas look like. Used by one thread at a time."""

    con: Any
    lock: int  # descriptor of what keeps other processes of ours out
    opened: float
    tables: dict[tuple[str, str], dict[str, Type]]
    owners: dict[str, str]  # source of each schema

    def execute(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self.con.execute(sql, values or None).fetchall()
        return rows

    @contextmanager
    def given(self, name: str, columns: Mapping[str, Any]) -> Iterator[None]:
        """Lets statements read Arrow arrays as a table called `name`."""
        import pyarrow as pa

        self.con.register(name, pa.table(dict(columns)))
        try:
            yield
        finally:
            self.con.unregister(name)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self.con.begin()
        yield
        self.con.commit()

    def close(self) -> None:
        """Others of ours may have the file once DuckDB has written all and let go of it."""
        try:
            self.con.close()
        finally:
            os.close(self.lock)


def open_file(path: Path, memory_mb: int, now: float) -> File:
    """Opens or creates the file. Raises Refused with a reason for people."""
    import duckdb

    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{memory_mb}MiB",
        "threads": 1,  # a batch is too small to share out; a second thread costs more than it gives
        "preserve_insertion_order": False,
        "checkpoint_threshold": "128MiB",  # each checkpoint rewrites the last rows of every table; closing makes one too
        "autoinstall_known_extensions": False,  # nothing is fetched behind the operator's back
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(path)
    except OSError as error:
        raise refusal_of(error) from error
    try:
        con = duckdb.connect(str(path), config=config)
    except (duckdb.Error, OSError) as error:
        os.close(lock)
        raise refusal_of(error) from error
    try:
        return File(con, lock, now, _tables(con), _owners(con))
    except duckdb.Error:
        con.close()
        os.close(lock)
        raise


def _locked(path: Path) -> int:
    """The descriptor of a lock of our own, beside the file. DuckDB's is a POSIX record lock, which a process loses when it closes any
    descriptor of the file, and DuckDB opens and closes it to look at the first bytes; nor does it last while a file is written anew."""
    whole = path.resolve()
    lock = os.open(whole.with_name(f"{whole.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise Refused(_LOCKED, 2.0) from error
    return lock


def refusal_of(error: Exception) -> Refused:
    """Names what keeps the file from being used, by the words of DuckDB and the system."""
    text = str(error).lower()
    if "lock" in text or "different configuration" in text or "already attached" in text:
        return Refused(_LOCKED, 2.0)
    if "not a valid duckdb" in text or "corrupt" in text or "checksum" in text:
        return Refused("warehouse file is not a sound DuckDB database; restore it or move it away", 60.0)
    if "newer version" in text or "version number" in text:
        return Refused("warehouse file was written by another version of DuckDB", 60.0)
    if any(words in text for words in ("no space", "disk quota", "disk full", "file too large")):
        return Refused("the disk of the warehouse file is full", 30.0)
    if isinstance(error, PermissionError) or "permission denied" in text or "read-only" in text:
        return Refused("warehouse file cannot be written: permission denied", 30.0)
    if isinstance(error, OSError) or "cannot open file" in text or "is a directory" in text:
        return Refused("warehouse file cannot be opened", 30.0)
    return Refused(f"warehouse failed: {type(error).__name__}", 10.0)


def _tables(con: Any) -> dict[tuple[str, str], dict[str, Type]]:
    rows = con.execute(
        "SELECT schema_name, table_name, column_name, data_type FROM duckdb_columns()"
        " SEMI JOIN (SELECT table_oid FROM duckdb_tables() WHERE database_name = current_database()) USING (table_oid)"
        " WHERE database_name = current_database() AND NOT internal ORDER BY table_oid, column_index"
    ).fetchall()
    tables: dict[tuple[str, str], dict[str, Type]] = {}
    for schema, table, column, kind in rows:
        tables.setdefault((schema, table), {})[column] = KINDS.get(kind, "text")
    return tables


def _owners(con: Any) -> dict[str, str]:
    rows = con.execute(
        "SELECT schema_name, comment FROM duckdb_tables()"
        " WHERE database_name = current_database() AND table_name = ? AND comment IS NOT NULL",
        [LOADED],
    ).fetchall()
    return dict(rows)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
