"""Profiles and ids that were deleted and of which `profile-changes` may not tell yet."""

from collections.abc import Collection
from typing import Final

from sqlalchemy import Connection, delete, select

from pipeline.changes import deleted, id_removed
from pipeline.store import schema
from schemas.changes import ProfileChange

MOST: Final = 1_000  # that are told at once


def pending(connection: Connection) -> dict[str, ProfileChange]:
    """Some of them, the earliest first, by the id of the deletion."""
    rows = connection.execute(select(schema.deletions).order_by(schema.deletions.c.id).limit(MOST))
    return {
        one.id: deleted(one.id, one.profile, one.at)
        if one.kind == "profile"
        else id_removed(one.id, one.profile, one.at, one.type, one.hash)
        for one in rows
    }


def told(connection: Connection, deletions: Collection[str]) -> None:
    """Notes that the log has these."""
    table = schema.deletions
    connection.execute(delete(table).where(table.c.id.in_(sorted(deletions))))
