"""Where a person's events stand in the log, in the order in which they happened.

The events hang on the person's nodes, so that the answer is the same across merges and after a merge is undone."""

from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

import orjson
from sqlalchemy import Connection, text

from schemas.events import Origin


class Place(NamedTuple):
    """An event: when it happened (µs) and where its record is, which together order a person's events."""

    at: int
    partition: int
    offset: int

    @property
    def origin(self) -> Origin:
        return Origin(self.partition, self.offset)


def places(
    connection: Connection,
    nodes: Collection[str],
    *,
    after: Place,
    before: Place,
    newest_first: bool,
    most: int,
) -> list[Place]:
    """At most `most` events of these nodes strictly between two places in time: the latest of them, newest first, or the
    earliest, oldest first."""
    bounds = {
        **{f"after_{name}": value for name, value in after._asdict().items()},
        **{f"before_{name}": value for name, value in before._asdict().items()},
        "most": most,
    }
    if connection.dialect.name == "postgresql":
        statement = text(_of_rows(newest_first))
        return [Place(*row) for row in connection.execute(statement, bounds | {"nodes": list(nodes)})]
    return _by_generation(connection, bounds | {"nodes": _array(nodes)}, newest_first, most)


def _by_generation(connection: Connection, given: dict[str, Any], newest_first: bool, most: int) -> list[Place]:
    """Looks in one generation, then in two more, then in four, until no other can hold what belongs to the answer."""
    spans = connection.execute(text(_spans(newest_first)), given).fetchall()
    statement = text(_of_generations(newest_first))
    found: list[Place] = []
    begin, size = 0, 1
    while begin < len(spans):
        nearest = spans[begin].last_at if newest_first else spans[begin].first_at
        if len(found) == most and (found[-1].at > nearest if newest_first else found[-1].at < nearest):
            break
        generations = _array([span.generation for span in spans[begin : begin + size]])
        rows = connection.execute(statement, given | {"generations": generations})
        found = sorted([*found, *(Place(*row) for row in rows)], reverse=newest_first)[:most]
        begin, size = begin + size, size * 2
    return found


def _array(values: Collection[str] | Sequence[int]) -> str:
    return orjson.dumps(list(values)).decode()


_BETWEEN: Final = """own.at >= :after_at AND own.at <= :before_at
    AND (own.at, own.partition, own."offset") > (:after_at, :after_partition, :after_offset)
    AND (own.at, own.partition, own."offset") < (:before_at, :before_partition, :before_offset)"""


def _of_rows(newest_first: bool) -> str:
    """Each node gives at most `most` events from its own stretch of the index; the best of them are the answer."""
    return f"""
        SELECT found.at, found.partition, found."offset" FROM unnest(CAST(:nodes AS text[])) AS given(value)
        CROSS JOIN LATERAL (
          SELECT own.at, own.partition, own."offset" FROM events AS own WHERE own.node = given.value AND {_BETWEEN}
          ORDER BY {_order("own", newest_first)} LIMIT :most) AS found
        ORDER BY {_order("found", newest_first)} LIMIT :most
    """


def _of_generations(newest_first: bool) -> str:
    """The same of each node in each generation. SQLite has no LATERAL, but looks a list of keys up one by one."""
    return f"""
        SELECT found.at, found.partition, found."offset"
        FROM json_each(:generations) AS old CROSS JOIN json_each(:nodes) AS given CROSS JOIN event_times AS found
        WHERE found.generation = old.value AND found.node = given.value
          AND (found.at, found.partition, found."offset") IN (
            SELECT own.at, own.partition, own."offset" FROM event_times AS own
            WHERE own.generation = old.value AND own.node = given.value AND {_BETWEEN}
            ORDER BY {_order("own", newest_first)} LIMIT :most)
        ORDER BY {_order("found", newest_first)} LIMIT :most
    """


def _spans(newest_first: bool) -> str:
    nearest = "last_at DESC" if newest_first else "first_at"
    return f"""SELECT generation, first_at, last_at FROM event_spans
               WHERE last_at >= :after_at AND first_at <= :before_at ORDER BY {nearest}"""


def _order(table: str, newest_first: bool) -> str:
    return ", ".join(f"{table}.{name} {'DESC' if newest_first else 'ASC'}" for name in ("at", "partition", '"offset"'))
