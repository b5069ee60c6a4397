"""Which scratch stores there are, and which of them may hold somebody who was deleted since they were begun."""

from typing import Final, NamedTuple

from sqlalchemy import Connection, delete, insert, select, update

from pipeline.store import schema

_CLEAN: Final = 0
_STALE: Final = 1
_HEEDING: Final = 2  # they are being taken out; another deletion makes it stale again


class Changed(Exception):
    """People were deleted, taken apart or joined by hand meanwhile: what was resolved so far does not know of it."""


class Scratch(NamedTuple):
    """A scratch store: the command that it is of, and where it is."""

    id: str
    work: str
    host: str
    path: str


def note(connection: Connection, one: Scratch) -> None:
    """Before anything is put into it, in a transaction of its own."""
    connection.execute(insert(schema.scratches).values(**one._asdict(), stale=_CLEAN))


def known(connection: Connection, name: str) -> Scratch | None:
    """A scratch store that holds nobody who was deleted."""
    table = schema.scratches.c
    found = select(table.id, table.work, table.host, table.path).where(table.id == name, table.stale == _CLEAN)
    row = connection.execute(found).first()
    return None if row is None else Scratch(*row)


def check(connection: Connection, name: str) -> None:
    """Raises Changed when somebody was deleted whom it may hold."""
    if known(connection, name) is None:
        raise Changed


def disturb(connection: Connection) -> None:
    """Notes that somebody was deleted, once that is committed: whatever is begun from here on does not hold them."""
    connection.execute(update(schema.scratches).where(schema.scratches.c.stale != _STALE).values(stale=_STALE))


def heed(connection: Connection, name: str) -> bool:
    """Notes that whoever works in it is about to take out who was deleted until now; whether it may hold anybody. Raises Changed when
    nobody knows of it any more."""
    table = schema.scratches.c
    held = connection.execute(select(table.stale).where(table.id == name)).scalar()
    if held is None:
        raise Changed
    if held == _STALE:
        connection.execute(update(schema.scratches).where(table.id == name).values(stale=_HEEDING))
    return bool(held != _CLEAN)


def heeded(connection: Connection, name: str) -> None:
    """Nobody is left in it who was deleted before `heed`. It may hold who was deleted since: then it stays as it is."""
    table = schema.scratches.c
    clean = update(schema.scratches).where(table.id == name, table.stale == _HEEDING).values(stale=_CLEAN)
    connection.execute(clean)


def stale(connection: Connection) -> list[Scratch]:
    """Those that may hold somebody who was deleted."""
    table = schema.scratches.c
    rows = connection.execute(
        select(table.id, table.work, table.host, table.path).where(table.stale != _CLEAN).order_by(table.id)
    )
    return [Scratch(*row) for row in rows]


def forget(connection: Connection, name: str) -> None:
    """Nothing is left of it."""
    connection.execute(delete(schema.scratches).where(schema.scratches.c.id == name))
