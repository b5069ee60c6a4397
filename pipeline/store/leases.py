"""Tasks that one process at a time does."""

from typing import Final

from sqlalchemy import Connection, delete, text

from pipeline.store import schema

_LEASE: Final = text("""
    INSERT INTO leases (name, owner, until) VALUES (:name, :owner, :until)
    ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, until = excluded.until
    WHERE leases.owner = excluded.owner OR leases.until < :now
""")


def lease(connection: Connection, name: str, owner: str, now: int, span: int) -> bool:
    """Whether `owner` holds the task called `name` for the next `span` microseconds. It is free again when it is not
    asked for in time."""
    asked = {"name": name, "owner": owner, "until": now + span, "now": now}
    return bool(connection.execute(_LEASE, asked).rowcount)


def release(connection: Connection, name: str, owner: str) -> None:
    """Lets the next one have it at once."""
    table = schema.leases
    connection.execute(delete(table).where(table.c.name == name, table.c.owner == owner))
