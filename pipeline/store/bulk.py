"""Many rows in one statement, on either database: the only SQL that is made by rule, from the tables in `schema`."""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Any, Final

import orjson
from sqlalchemy import BigInteger, Connection, Integer, LargeBinary, SmallInteger, Table
from sqlalchemy.types import TypeEngine

Rows = Sequence[Sequence[Any]]


def insert(connection: Connection, table: Table, rows: Rows) -> None:
    """Appends whole rows, columns in the table's order. A key that is there already fails the transaction."""
    if not rows:
        return
    if _postgres(connection):
        with _driver(connection).cursor() as cursor, cursor.copy(_copy(table)) as copy:
            copy.set_types([_type(column.type) for column in table.columns])
            for row in rows:
                copy.write_row(row)
    else:
        _write(connection, table, rows, "")


def upsert(connection: Connection, table: Table, rows: Rows, *, set_: Mapping[str, str] | None = None) -> None:
    """Writes whole rows, each key at most once. On a row that is there, the columns outside the key are overwritten, or
    become what `set_` says: an expression over `excluded.column` and `table.column`."""
    if not rows:
        return
    if _postgres(connection):
        names = [str(column.name) for column in table.columns]
        given = _json([dict(zip(names, row, strict=True)) for row in rows])
        _driver(connection).execute(_postgres_upsert(table, _frozen(set_)), [given])
    else:
        _write(connection, table, rows, _on_conflict(table, _frozen(set_)))


def select(connection: Connection, sql: str, values: Sequence[Any], *, kind: str = "text") -> list[Any]:
    """Runs a statement whose `{}` stands for "is one of `values`" and returns its rows."""
    if not values:
        return []
    if _postgres(connection):
        wanted = f"= ANY(ARRAY(SELECT value::{kind} FROM json_array_elements_text(%s::json)))"
        rows: list[Any] = _driver(connection).execute(sql.format(wanted), [_json(values)]).fetchall()
        return rows
    rows = []
    for start in range(0, len(values), _CHUNK):
        chunk = list(values[start : start + _CHUNK])
        chunk += chunk[-1:] * (_padded(len(chunk)) - len(chunk))
        marks = ",".join("?" * len(chunk))
        rows += _driver(connection).execute(sql.format(f"IN ({marks})"), chunk).fetchall()
    return rows


_CHUNK: Final = 8_192
TOGETHER: Final = 1_024  # rows of a statement on SQLite, which takes 32,766 values; a power of two


def _write(connection: Connection, table: Table, rows: Rows, on_conflict: str) -> None:
    """Writes rows on SQLite, many with one statement: a statement for each costs a third more, and has the interpreter change hands at every
    row while another thread works. What is left after full statements goes in powers of two, so that few are prepared."""
    driver, columns = _driver(connection), len(table.columns)
    values = list(chain.from_iterable(rows))
    count, at = TOGETHER, 0
    while at < len(values):
        while count * columns > len(values) - at:
            count //= 2
        driver.execute(_sqlite_insert(table, count) + on_conflict, values[at : (at := at + count * columns)])


def _json(values: Sequence[Any]) -> str:
    """Values for PostgreSQL, in one piece: the driver takes five times as long for arrays of them. Bytes as it writes them itself."""
    return orjson.dumps(values, default=_hex).decode()


def _hex(value: Any) -> str:
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    raise TypeError(f"{type(value).__name__} is no value of a column")


def _padded(count: int) -> int:
    """The next power of two, so that few statements are prepared and each is found in the driver's cache."""
    return 1 << (count - 1).bit_length()


def _postgres(connection: Connection) -> bool:
    return connection.dialect.name == "postgresql"


def _driver(connection: Connection) -> Any:
    """psycopg's or sqlite3's own connection, inside the same transaction."""
    return connection.connection.driver_connection


def _frozen(set_: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    return tuple((set_ or {}).items())


def _type(kind: TypeEngine[Any]) -> str:
    if isinstance(kind, LargeBinary):
        return "bytea"
    if isinstance(kind, SmallInteger):
        return "int2"
    if isinstance(kind, BigInteger):
        return "int8"
    return "int4" if isinstance(kind, Integer) else "text"


@cache
def _names(table: Table) -> str:
    return ", ".join(f'"{column.name}"' for column in table.columns)


@cache
def _copy(table: Table) -> str:
    return f"COPY {table.name} ({_names(table)}) FROM STDIN (FORMAT BINARY)"


@cache
def _sqlite_insert(table: Table, rows: int) -> str:
    row = f"({', '.join('?' * len(table.columns))})"
    return f"INSERT INTO {table.name} ({_names(table)}) VALUES {', '.join([row] * rows)}"


@cache
def _postgres_upsert(table: Table, set_: tuple[tuple[str, str], ...]) -> str:
    columns = ", ".join(f'"{column.name}" {_type(column.type)}' for column in table.columns)
    rows = f"json_to_recordset(%s::json) AS given({columns})"
    return f"INSERT INTO {table.name} ({_names(table)}) SELECT * FROM {rows}" + _on_conflict(table, set_)


@cache
def _on_conflict(table: Table, set_: tuple[tuple[str, str], ...]) -> str:
    special = dict(set_)
    key = ", ".join(f'"{column.name}"' for column in table.primary_key)
    rest = ", ".join(
        f'"{column.name}" = {special.get(column.name, f"excluded.{chr(34)}{column.name}{chr(34)}")}'
        for column in table.columns
        if not column.primary_key
    )
    return f" ON CONFLICT ({key}) DO UPDATE SET {rest}"
