"""Who read which profile: a row for each token, profile, resource and hour, so that the record grows with whom was looked at and
not with how often."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, delete, select

from pipeline.store import bulk, schema

EVERYBODY = "*"  # in place of a profile: all were read


class Read(NamedTuple):
    """A token looked at a resource of a profile in an hour (since 1970)."""

    profile: str
    token: str
    resource: str
    hour: int


class Times(NamedTuple):
    """How often, and when first and last (µs)."""

    reads: int
    first_at: int
    last_at: int


def record(connection: Connection, reads: Mapping[Read, Times]) -> None:
    """Adds to what is on record."""
    least, most = ("LEAST", "GREATEST") if connection.dialect.name == "postgresql" else ("MIN", "MAX")
    bulk.upsert(
        connection,
        schema.profile_reads,
        [(*read, *times) for read, times in sorted(reads.items())],
        set_={
            "count": "profile_reads.count + excluded.count",
            "first_at": f"{least}(profile_reads.first_at, excluded.first_at)",
            "last_at": f"{most}(profile_reads.last_at, excluded.last_at)",
        },
    )


def forget(connection: Connection, before: int) -> None:
    """Removes what is on record of hours before that one."""
    connection.execute(delete(schema.profile_reads).where(schema.profile_reads.c.hour < before))


def of_profiles(connection: Connection, profiles: Sequence[str], most: int) -> list[tuple[Read, Times]]:
    """Reads of these profiles, and those of everybody, the latest first."""
    table = schema.profile_reads
    rows = connection.execute(
        select(table)
        .where(table.c.profile.in_([*profiles, EVERYBODY]))
        .order_by(table.c.last_at.desc(), table.c.token, table.c.resource)
        .limit(most)
    )
    return [(Read(*row[:4]), Times(*row[4:])) for row in rows]
