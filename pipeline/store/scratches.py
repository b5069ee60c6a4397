"""Which scratch stores there are, and which of them may hold somebody who was deleted since they were begun."""

from typing import NamedTuple

from sqlalchemy import Connection, delete, insert, select, update

from pipeline.store import schema


class Changed(Exception):
    """People were deleted, suppressed, taken apart or joined by hand meanwhile: what was resolved so far does not know of it."""


class Scratch(NamedTuple):
    """A scratch store: the command that it is of, and where it is."""

    id: str
    work: str
    host: str
    path: str


def note(connection: Connection, one: Scratch) -> None:
    """Before anything is put into it, in a transaction of its own."""
    connection.execute(insert(schema.scratches).values(**one._asdict(), stale=0))


def known(connection: Connection, name: str) -> Scratch | None:
    """A scratch store that holds nobody who was deleted."""
    table = schema.scratches.c
    found = select(table.id, table.work, table.host, table.path).where(table.id == name, table.stale == 0)
    row = connection.execute(found).first()
    return None if row is None else Scratch(*row)


def check(connection: Connection, name: str) -> None:
    """Raises Changed when somebody was deleted whom it may hold."""
    if known(connection, name) is None:
        raise Changed


def disturb(connection: Connection) -> None:
    """Notes that somebody was deleted, once that is committed: whatever is begun from here on does not hold them."""
    connection.execute(update(schema.scratches).where(schema.scratches.c.stale == 0).values(stale=1))


def stale(connection: Connection) -> list[Scratch]:
    """Those that may hold somebody who was deleted."""
    table = schema.scratches.c
    rows = connection.execute(
        select(table.id, table.work, table.host, table.path).where(table.stale == 1).order_by(table.id)
    )
    return [Scratch(*row) for row in rows]


def forget(connection: Connection, name: str) -> None:
    """Nothing is left of it."""
    connection.execute(delete(schema.scratches).where(schema.scratches.c.id == name))
