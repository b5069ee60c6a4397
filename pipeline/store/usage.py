"""Usage on its way to the database and back."""

from collections.abc import Mapping
from typing import NamedTuple

from sqlalchemy import Connection, select, tuple_

from pipeline.store import bulk, schema
from pipeline.usage import Usage, estimate, joined, with_users

Key = tuple[str, str, int]
"""Month, source, partition of `events`."""


class Used(NamedTuple):
    """What a source used in a month; `users` is an estimate."""

    month: str
    source: str
    events: int
    bytes: int
    users: int


def count(connection: Connection, usage: Mapping[Key, Usage]) -> None:
    """Adds to what is there. The caller holds the partitions' positions, so nobody else writes these rows meanwhile."""
    table = schema.usage
    if not usage:
        return
    key = tuple_(table.c.month, table.c.source, table.c.partition)
    known = {
        (row.month, row.source, row.partition): row
        for row in connection.execute(select(table).where(key.in_(list(usage))))
    }
    rows = []
    for one, used in sorted(usage.items()):
        row = known.get(one)
        events, size, users = (row.events, row.bytes, bytes(row.users)) if row is not None else (0, 0, b"")
        rows.append((*one, events + used.events, size + used.bytes, with_users(users, used.users)))
    bulk.upsert(connection, table, rows)


def read(connection: Connection, month: str | None = None, most: int = 1_000) -> list[Used]:
    """By month, the latest first, and source."""
    table = schema.usage
    statement = select(table).order_by(table.c.month.desc(), table.c.source)
    if month is not None:
        statement = statement.where(table.c.month == month)
    found: dict[tuple[str, str], tuple[int, int, bytes]] = {}
    for row in connection.execute(statement):
        events, size, users = found.get((row.month, row.source), (0, 0, b""))
        found[row.month, row.source] = (events + row.events, size + row.bytes, joined(users, bytes(row.users)))
    return [
        Used(name, source, events, size, estimate(users))
        for (name, source), (events, size, users) in list(found.items())[:most]
    ]
