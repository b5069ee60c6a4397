"""Who read which profile: a row for each token, profile, resource and hour, so that the record grows with whom was looked at and
not with how often."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import orjson
from sqlalchemy import Connection, TextClause, delete, select, text

from pipeline.store import schema

EVERYBODY = "*"  # in place of a profile: all were read


_COLUMNS = [column.name for column in schema.profile_reads.columns]


def _recording(given: str, value: str, least: str, most: str) -> TextClause:
    values = ", ".join(value.format(number) for number in range(3))
    numbers = ", ".join(f"CAST({value.format(number)} AS bigint)" for number in range(3, len(_COLUMNS)))
    return text(
        f"""INSERT INTO profile_reads ({", ".join(_COLUMNS)})
        SELECT {values}, {numbers} FROM {given} WHERE true ORDER BY 1, 2, 3, 4
        ON CONFLICT (profile, token, resource, hour) DO UPDATE SET
          count = profile_reads.count + excluded.count,
          first_at = {least}(profile_reads.first_at, excluded.first_at),
          last_at = {most}(profile_reads.last_at, excluded.last_at)"""
    )


_RECORD = {
    "sqlite": _recording("json_each(:rows) AS given", "json_extract(given.value, '$[{}]')", "MIN", "MAX"),
    "postgresql": _recording(
        "json_array_elements(CAST(:rows AS json)) AS given(value)", "given.value ->> {}", "LEAST", "GREATEST"
    ),
}


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
    """Adds to what is on record: one statement over one text, during which the event loop has the interpreter to itself. Rows are
    taken in order, so that processes do not wait for each other in a circle."""
    rows = orjson.dumps([(*read, *times) for read, times in reads.items()]).decode()
    connection.execute(_RECORD[connection.dialect.name], {"rows": rows})


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
