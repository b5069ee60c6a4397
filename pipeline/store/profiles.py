"""Reads profiles for people and programs: by any external id, or by any profile id there ever was."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select, text

from pipeline.identity import normalize
from pipeline.profile import Traits
from pipeline.store import schema
from schemas.events import ExternalId
from schemas.exact_json import json_loads

_FAMILY = text(
    """
    WITH RECURSIVE family(id) AS (
      SELECT id FROM profiles WHERE id = :id UNION SELECT profiles.id FROM profiles JOIN family ON profiles.merged_into = family.id
    )
    SELECT id FROM family
    """
)


@dataclass(frozen=True, slots=True)
class Found:
    """A canonical profile. Times are microseconds; `merged` are the profiles it absorbed, whose ids still lead here."""

    id: str
    created_at: int
    first_seen: int
    last_seen: int
    events: int
    traits: Traits
    external_ids: Sequence[tuple[ExternalId, int]]  # with the time each was added
    merged: Sequence[str]


def find(connection: Connection, kind: str, value: str) -> Found | None:
    """The profile that an external id or a profile id (`kind` is then `profile_id`) belongs to now."""
    start = value if kind == "profile_id" else _owner(connection, kind, value)
    row = None if start is None else _canonical(connection, start)
    if row is None:
        return None
    family = [one for (one,) in connection.execute(_FAMILY, {"id": row.id})]
    nodes = schema.nodes
    ids = connection.execute(
        select(nodes.c.key, nodes.c.added_at).where(nodes.c.profile.in_(family)).order_by(nodes.c.added_at, nodes.c.key)
    )
    return Found(
        id=row.id,
        created_at=row.created_at,
        first_seen=row.first_seen,
        last_seen=row.last_seen,
        events=row.events,
        traits=json_loads(row.traits),
        external_ids=[(ExternalId(*key.split(":", 1)), added_at) for key, added_at in ids],
        merged=sorted(one for one in family if one != row.id),
    )


def _owner(connection: Connection, kind: str, value: str) -> str | None:
    nodes = schema.nodes
    key = str(ExternalId(kind, normalize(kind, value)))
    return connection.execute(select(nodes.c.profile).where(nodes.c.key == key)).scalar()


def _canonical(connection: Connection, profile: str) -> Row[Any] | None:
    table = schema.profiles
    while True:
        row = connection.execute(select(table).where(table.c.id == profile)).first()
        if row is None or row.merged_into is None:
            return row
        profile = row.merged_into
