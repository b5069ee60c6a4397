"""Where a person's events stand in the log, in the order in which they happened.

The events hang on the person's nodes, so that the answer is the same across merges and after a merge is undone."""

from collections.abc import Collection
from typing import Final, NamedTuple

import orjson
from sqlalchemy import Connection, text

from schemas.events import Origin

FIRST: Final = (-(1 << 62), b"")
LAST: Final = (1 << 62, b"\xff" * 17)


class Place(NamedTuple):
    """An event: when it happened (µs) and its key of deduplication, which together order a person's events, and where its
    record is."""

    at: int
    key: bytes
    partition: int
    offset: int

    @property
    def origin(self) -> Origin:
        return Origin(self.partition, self.offset)


def places(
    connection: Connection,
    nodes: Collection[str],
    *,
    after: tuple[int, bytes],
    before: tuple[int, bytes],
    newest_first: bool,
    most: int,
) -> list[Place]:
    """At most `most` events of these nodes strictly between two places in time: the latest of them, newest first, or the
    earliest, oldest first."""
    rows = connection.execute(
        text(_statement(connection.dialect.name == "postgresql", newest_first)),
        {
            "nodes": list(nodes) if connection.dialect.name == "postgresql" else orjson.dumps(list(nodes)).decode(),
            "after_at": after[0],
            "after_key": after[1],
            "before_at": before[0],
            "before_key": before[1],
            "most": most,
        },
    )
    return [Place(at, bytes(key), partition, offset) for at, key, partition, offset in rows]


def _statement(postgres: bool, newest_first: bool) -> str:
    """Each node gives at most `most` events from its own stretch of the index; the best of them are the answer."""
    order = "DESC" if newest_first else "ASC"
    stretch = f"""
          FROM events AS own
          WHERE own.node = given.value AND own.at >= :after_at AND own.at <= :before_at
            AND (own.at, own.key) > (:after_at, :after_key) AND (own.at, own.key) < (:before_at, :before_key)
          ORDER BY own.at {order}, own.key {order} LIMIT :most
    """
    if postgres:
        found = f"""unnest(CAST(:nodes AS text[])) AS given(value)
          CROSS JOIN LATERAL (SELECT own.at, own.key, own.partition, own."offset" {stretch}) AS found"""
    else:  # which has no LATERAL, but looks a list of keys up one by one
        found = f"""json_each(:nodes) AS given CROSS JOIN events AS found
          WHERE found.key IN (SELECT own.key {stretch})"""
    return f"""
        SELECT found.at, found.key, found.partition, found."offset" FROM {found}
        ORDER BY found.at {order}, found.key {order} LIMIT :most
    """
