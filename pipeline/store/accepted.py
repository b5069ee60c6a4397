"""The events that were accepted: a row of each, found by its key of deduplication.

PostgreSQL indexes its rows. SQLite has to write a whole page, to the log of its writes and again to the file, for each place of a
tree that it touches, and keys and nodes are as good as random: with millions of events that would cost more than all the rest
of the pipeline. There the rows stand in the order of the log, and the two indexes are tables of their own that new entries
go to by generation, so that they touch few pages however many there are:

  keys    are looked for in the unfinished generations and in the one table where all end up, sorted, a few with every poll
  times   stay in their generation; `history` goes through those that can hold what is asked for
"""

from collections.abc import Collection, Sequence
from struct import unpack
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, case, func, select, update
from sqlalchemy import delete as sql_delete

from pipeline.store import bulk, schema
from schemas.events import Origin

GENERATION: Final = 1 << 18  # events: their keys take about five megabytes
_SETTLED: Final = 2  # how many times as many keys go on as came: a generation is through before the next one is full
_BY_KEY: Final = 'SELECT key, partition, "offset", profile, processed_at FROM events WHERE key {}'
_BY_PLACE: Final = (
    'SELECT key, partition, "offset", profile, processed_at FROM events WHERE partition = ? AND "offset" = ?'
)
_DELETE: Final = (
    'DELETE FROM events WHERE partition = ? AND "offset" = ? '
    'RETURNING key, partition, "offset", profile, node, processed_at, at'
)
_SETTLED_KEYS: Final = 'SELECT hash, partition, "offset" FROM event_keys WHERE hash {}'
_NEW_KEYS: Final = 'SELECT hash, partition, "offset" FROM event_keys_new WHERE generation = %d AND hash {}'


class Row(NamedTuple):
    """An accepted event, in the order of the table's columns."""

    key: bytes  # of deduplication, 16 bytes
    partition: int
    offset: int
    profile: str  # empty when there is none
    node: str  # that its state hangs on; empty when there is none
    processed_at: int  # µs
    at: int  # µs; when it happened


class Applied(NamedTuple):
    """Where a message was first accepted, the profile it was taken into (empty: none), and when (µs)."""

    origin: Origin
    profile: str
    processed_at: int


def find(connection: Connection, keys: Collection[bytes]) -> dict[bytes, Applied]:
    """Accepted events by key of deduplication."""
    if connection.dialect.name == "postgresql":
        rows = bulk.select(connection, _BY_KEY, list(keys), kind="bytea")
    else:
        rows = _rows(connection, keys)
    return {bytes(key): Applied(Origin(partition, offset), *rest) for key, partition, offset, *rest in rows}


def insert(connection: Connection, rows: Sequence[Row]) -> None:
    """Adds accepted events. On PostgreSQL a key that another transaction added meanwhile fails this one; SQLite has one
    writer at a time."""
    bulk.insert(connection, schema.events, rows)
    if connection.dialect.name == "postgresql" or not rows:
        return
    generation = _generation(connection)
    hashes = _hashes([row[0] for row in rows])
    keys = [
        (generation, hashed, partition, offset)
        for hashed, (_, partition, offset, _, _, _, _) in zip(hashes, rows, strict=True)
    ]
    keys.sort()
    bulk.insert(connection, schema.event_keys_new, keys)
    _insert_times(connection, generation, rows)
    _settle(connection, generation, _SETTLED * len(rows))


def hang(connection: Connection, moves: Sequence[tuple[Row, str, str]]) -> None:
    """Lets events hang on other nodes: each row as it is, its node from now on (empty: none), and the profile that it counts as applied
    to if it had none."""
    table = schema.events.c
    changed = (
        update(schema.events)
        .where(table.partition == bindparam("_p"), table.offset == bindparam("_o"), table.key == bindparam("_k"))
        .values(node=bindparam("_n"), profile=case((table.profile == "", bindparam("_to")), else_=table.profile))
    )
    some = [{"_p": row.partition, "_o": row.offset, "_k": row.key, "_n": node, "_to": to} for row, node, to in moves]
    if some:
        connection.execute(changed, some)
    if connection.dialect.name != "postgresql" and some:
        _hang_times(connection, moves)


def _hang_times(connection: Connection, moves: Sequence[tuple[Row, str, str]]) -> None:
    every = [generation for (generation,) in connection.execute(select(schema.event_spans.c.generation))]
    gone = [(one, row.node, row.at, row.partition, row.offset) for row, _, _ in moves if row.node for one in every]
    where = 'generation = ? AND node = ? AND at = ? AND partition = ? AND "offset" = ?'
    if gone:
        connection.exec_driver_sql(f"DELETE FROM event_times WHERE {where}", gone)
    _insert_times(connection, _generation(connection), [row._replace(node=node) for row, node, _ in moves])


def _generation(connection: Connection) -> int:
    """The present one."""
    return int(connection.execute(select(func.sum(schema.positions.c.applied))).scalar() or 0) // GENERATION


def _insert_times(connection: Connection, generation: int, rows: Sequence[Row]) -> None:
    timed = [(generation, node, at, partition, offset) for _, partition, offset, _, node, _, at in rows if node]
    timed.sort()
    bulk.insert(connection, schema.event_times, timed)
    at = [one[2] for one in timed]
    if at:
        bulk.upsert(
            connection,
            schema.event_spans,
            [(generation, min(at), max(at))],
            set_={
                "first_at": "MIN(event_spans.first_at, excluded.first_at)",
                "last_at": "MAX(event_spans.last_at, excluded.last_at)",
            },
        )


def delete(connection: Connection, nodes: Collection[str], most: int) -> list[Row]:
    """Deletes up to `most` of the events that hang on these nodes, and answers them."""
    if connection.dialect.name == "postgresql":
        row = schema.events.c
        some = select(row.key).where(row.node.in_(nodes)).limit(most)
        gone = sql_delete(schema.events).where(row.key.in_(some)).returning(*row)
        return [_row(one) for one in connection.execute(gone)]
    times = schema.event_times.c
    every = select(schema.event_spans.c.generation)
    wanted = select(times.generation, times.node, times.at, times.partition, times.offset)
    wanted = wanted.where(times.generation.in_(every), times.node.in_(nodes)).limit(most)
    rows = [tuple(row) for row in connection.execute(wanted)]
    events = [_row(connection.exec_driver_sql(_DELETE, row[3:]).one()) for row in rows]
    hashes = _hashes([one.key for one in events])
    entries = [(hashed, one.partition, one.offset) for hashed, one in zip(hashes, events, strict=True)]
    for table, matching, values in (
        ("event_times", "generation = ? AND node = ? AND at = ?", rows),
        ("event_keys", "hash = ?", entries),
        *(("event_keys_new", f"generation = {one} AND hash = ?", entries) for one in _generations(connection)),
    ):
        if values:
            connection.exec_driver_sql(
                f'DELETE FROM {table} WHERE {matching} AND partition = ? AND "offset" = ?', values
            )
    return events


def _row(values: Sequence[Any]) -> Row:
    key, *rest = values
    return Row(bytes(key), *rest)


# ── SQLite ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _rows(connection: Connection, keys: Collection[bytes]) -> list[Sequence[object]]:
    """Rows of these keys. Different keys may share a hash, so it is the row that tells."""
    hashes = _hashes(keys)
    found = bulk.select(connection, _SETTLED_KEYS, hashes)
    for generation in _generations(connection):
        found += bulk.select(connection, _NEW_KEYS % generation, hashes)
    wanted = frozenset(keys)
    rows = (connection.exec_driver_sql(_BY_PLACE, tuple(place)).fetchone() for _, *place in found)
    return [tuple(row) for row in rows if row is not None and row.key in wanted]


def _hashes(keys: Collection[bytes]) -> list[int]:
    """The first half of each key."""
    return list(unpack(f">{2 * len(keys)}q", b"".join(keys))[::2])


def _generations(connection: Connection) -> range:
    """Those whose keys are not all settled."""
    column = schema.event_keys_new.c.generation
    first = connection.execute(select(func.min(column))).scalar()
    last = connection.execute(select(func.max(column))).scalar()
    return range(0) if first is None or last is None else range(first, last + 1)


def _settle(connection: Connection, generation: int, most: int) -> None:
    """Lets up to `most` keys of the oldest generation go on, the lowest first, unless it is the present one."""
    oldest = connection.execute(select(func.min(schema.event_keys_new.c.generation))).scalar()
    if oldest is None or oldest >= generation:
        return
    run = connection.exec_driver_sql
    columns, chosen = 'hash, partition, "offset"', f"generation = {oldest}"
    end = run(
        f"SELECT {columns} FROM event_keys_new WHERE {chosen} ORDER BY {columns} LIMIT 1 OFFSET {most}"
    ).fetchone()
    if end is not None:
        chosen += " AND ({}) < ({}, {}, {})".format(columns, *end)
    run(f"INSERT INTO event_keys SELECT {columns} FROM event_keys_new WHERE {chosen} ORDER BY {columns}")
    run(f"DELETE FROM event_keys_new WHERE {chosen}")
