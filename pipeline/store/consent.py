"""What people prefer by category, and where profiles that merged differed."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, select, update

from pipeline.graph import Merge
from pipeline.profile import Profile, Stamp, Traits, dispute, disputes, preferences, take_newer
from pipeline.store import bulk, schema
from schemas.exact_json import json_dumps, json_loads

_HELD: Final = """
    WITH RECURSIVE family(root, id) AS (
      SELECT id, id FROM profiles WHERE id {}
      UNION ALL SELECT family.root, profiles.id FROM profiles JOIN family ON profiles.merged_into = family.id
    )
    SELECT family.root, disputes.category, disputes.stamp FROM family
    JOIN merges ON merges.survivor = family.id AND merges.undone_by IS NULL
    JOIN disputes ON disputes.merge = merges.id
"""
_STATED: Final = "SELECT id, consent, disputed FROM profiles WHERE consent IS NOT NULL AND id {}"


class Stated(NamedTuple):
    """As a profile's row has it: see `pipeline.profile.preferences`."""

    consent: Traits
    disputed: dict[str, Stamp]


def stated(connection: Connection, profile: str) -> Stated:
    """Of a canonical profile."""
    table = schema.profiles.c
    row = connection.execute(select(table.consent, table.disputed).where(table.id == profile)).first()
    return Stated(*({} if row is None or text is None else json_loads(text) for text in (row or (None, None))))


def preferences_of(connection: Connection, profiles: Sequence[str]) -> dict[str, dict[str, bool | str]]:
    """What each of these canonical profiles prefers by category; nothing of those who were never asked."""
    return {
        one: preferences(json_loads(consent), json_loads(held) if held else {})
        for one, consent, held in bulk.select(connection, _STATED, profiles)
    }


def note_differing(connection: Connection, profiles: Mapping[str, Profile], merges: Iterable[Merge]) -> None:
    """Keeps on what profiles differ that merge one after the other, as they were before."""
    survivors: dict[str, Profile] = {}
    rows = []
    for merge in merges:
        whole = survivors.setdefault(merge.survivor, _copied(profiles[merge.survivor]))
        other = profiles[merge.absorbed]
        held = disputes(whole, other)
        rows += [(merge.id, category, json_dumps(stamp).decode()) for category, stamp in held.items()]
        take_newer(whole.consent, other.consent)
        dispute(whole, {**other.disputed, **held})
    bulk.insert(connection, schema.disputes, rows)


def _copied(profile: Profile) -> Profile:
    return Profile(profile.id, 0, consent=dict(profile.consent), disputed=dict(profile.disputed))


def disputed(connection: Connection, profiles: Collection[str]) -> dict[str, dict[str, Sequence[Any]]]:
    """What the merges say that made canonical profiles: the categories in dispute, of those that have any."""
    held: dict[str, Profile] = {}
    if _any(connection):
        for root, category, stamp in bulk.select(connection, _HELD, sorted(profiles)):
            dispute(held.setdefault(root, Profile(root, 0)), {category: json_loads(stamp)})
    return {root: one.disputed for root, one in held.items()}


def recount(connection: Connection, profiles: Collection[str]) -> None:
    """Writes what is disputed in canonical profiles, which are made of other merges now than before."""
    if not _any(connection):
        return
    held, table = disputed(connection, profiles), schema.profiles
    for one in sorted(profiles):
        found = json_dumps(held[one], sort_keys=True).decode() if one in held else None
        connection.execute(update(table).where(table.c.id == one).values(disputed=found))


def _any(connection: Connection) -> bool:
    return connection.execute(select(schema.disputes.c.merge).limit(1)).first() is not None
