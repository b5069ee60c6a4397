"""Takes accepted events out again, and lets them hang on other nodes."""

from collections.abc import Collection, Iterable
from typing import Any, Final

from sqlalchemy import Connection, delete, tuple_, update
from sqlalchemy import select as sql_select

from pipeline.store import accepted, bulk, schema
from pipeline.store.accepted import Row
from schemas.events import Origin

_COLUMNS: Final = 'key, partition, "offset", profile, node, processed_at, at'
_OF_NODES: Final = f"SELECT {_COLUMNS} FROM events WHERE node {{}}"
_AT: Final = f'SELECT {_COLUMNS} FROM events WHERE partition = ? AND "offset" = ?'
_SPANS: Final = "SELECT generation FROM event_spans"
_SOME: Final = 2_000  # events at a time


def of_nodes(connection: Connection, nodes: Collection[str]) -> list[Row]:
    """Every event whose state hangs on one of these nodes."""
    if connection.dialect.name == "postgresql":
        return [_row(row) for row in bulk.select(connection, _OF_NODES, sorted(nodes))]
    places = {
        (partition, offset)
        for (generation,) in connection.exec_driver_sql(_SPANS).fetchall()
        for partition, offset in bulk.select(
            connection,
            f'SELECT partition, "offset" FROM event_times WHERE generation = {generation} AND node {{}}',
            sorted(nodes),
        )
    }
    rows = (connection.exec_driver_sql(_AT, place).fetchone() for place in sorted(places))
    return [_row(row) for row in rows if row is not None]


def of_keys(connection: Connection, keys: Collection[bytes]) -> list[Row]:
    """Those events of these keys of deduplication that hang on no node."""
    return [row for row in with_keys(connection, keys) if not row.node]


def with_keys(connection: Connection, keys: Collection[bytes]) -> list[Row]:
    """Every event of these keys of deduplication."""
    table = schema.events
    found = accepted.find(connection, keys)
    origins = [tuple(one.origin) for one in found.values()]
    rows: list[Row] = []
    for start in range(0, len(origins), _SOME):
        some = origins[start : start + _SOME]
        wanted = sql_select(table).where(tuple_(table.c.partition, table.c.offset).in_(some))
        rows += [_row(row) for row in connection.execute(wanted)]
    return rows


def remove(connection: Connection, rows: Iterable[Row]) -> int:
    """Deletes these events with all that finds them; how many."""
    count = 0
    nodes: dict[str, int] = {}
    loose: list[Row] = []
    for row in rows:
        if row.node:
            nodes[row.node] = nodes.get(row.node, 0) + 1
        else:
            loose.append(row)
    while nodes and (gone := accepted.delete(connection, sorted(nodes), _SOME)):
        count += len(gone)
    for row in loose:
        count += _remove(connection, row)
    return count


def _remove(connection: Connection, row: Row) -> int:
    table = schema.events
    gone = connection.execute(
        delete(table).where(table.c.partition == row.partition, table.c.offset == row.offset)
    ).rowcount
    hashed = int.from_bytes(row.key[:8], "big", signed=True)
    for index in (schema.event_keys, schema.event_keys_new):
        found = (index.c.hash == hashed, index.c.partition == row.partition, index.c.offset == row.offset)
        connection.execute(delete(index).where(*found))
    return gone


def move(connection: Connection, node: str, to: str) -> None:
    """Lets the events of a node hang on another one."""
    events, times = schema.events, schema.event_times
    if connection.dialect.name == "postgresql":
        connection.execute(update(events).where(events.c.node == node).values(node=to))
        return
    for row in of_nodes(connection, [node]):
        connection.execute(
            update(events).where(events.c.partition == row.partition, events.c.offset == row.offset).values(node=to)
        )
    every = sql_select(schema.event_spans.c.generation)
    connection.execute(update(times).where(times.c.generation.in_(every), times.c.node == node).values(node=to))


def places(rows: Iterable[Row]) -> list[Origin]:
    """Where their records stand."""
    return [Origin(row.partition, row.offset) for row in rows]


def _row(values: Any) -> Row:
    key, *rest = values
    return Row(bytes(key), *rest)
