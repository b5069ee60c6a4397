"""Reads the part of the identity graph that a batch touches, locked against other processes, and writes it back.

SQLite has one writer, so the transaction is the lock. On PostgreSQL rows are locked nodes first, then profiles, each in
sorted order; a profile that was absorbed meanwhile is followed and locked too, and the rare deadlock that this allows
makes the whole transaction run again.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import Connection

from pipeline.graph import Graph, Merge
from pipeline.profile import Node, Profile
from pipeline.store import bulk, schema
from schemas.exact_json import json_dumps, json_loads

_NODES = f"SELECT {', '.join(column.name for column in schema.nodes.columns)} FROM nodes WHERE key {{}}"
_PROFILES = f"SELECT {', '.join(column.name for column in schema.profiles.columns)} FROM profiles WHERE id {{}}"
_CLAIM = "INSERT INTO nodes (key) SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING"
_SURVIVORS = """
    WITH RECURSIVE up(id) AS (
      SELECT id FROM profiles WHERE id {}
      UNION SELECT profiles.merged_into FROM profiles JOIN up ON profiles.id = up.id WHERE profiles.merged_into IS NOT NULL
    )
    SELECT id FROM up
"""
"""A chain of merges in one statement, however long it is."""
_MERGES = """
    WITH RECURSIVE family(id) AS (
      SELECT id FROM profiles WHERE id {}
      UNION SELECT profiles.id FROM profiles JOIN family ON profiles.merged_into = family.id
    )
    SELECT survivor, absorbed, at, source, message_id, type, rules, seq FROM merges JOIN family ON survivor = family.id
    ORDER BY seq, merges.id
"""
_UNUSED = 1 << 62


def load(connection: Connection, keys: Iterable[str], *, lock: bool = True) -> Graph:
    """The nodes with these keys and every profile they lead to. `lock` keeps others from changing them until the end of
    the transaction; nodes that are not there are claimed."""
    wanted = sorted(set(keys))
    postgres = connection.dialect.name == "postgresql"
    lock = lock and postgres
    graph = Graph()
    while wanted:
        if lock:
            connection.connection.driver_connection.execute(_CLAIM, [wanted])  # type: ignore[union-attr]  # psycopg's own
        for row in bulk.select(connection, _NODES + (" ORDER BY key FOR UPDATE" if lock else ""), wanted):
            node = _node(row)
            graph.nodes[node.key] = node
        # Whoever deleted a node that we waited for leaves nothing to lock: it is claimed once more.
        wanted = [key for key in wanted if key not in graph.nodes] if lock else []
    follow = {node.profile for node in graph.nodes.values() if node.profile is not None}
    while follow:
        read = read_profiles(connection, follow, lock=lock)
        graph.profiles.update(read)
        follow = {one.merged_into for one in read.values() if one.merged_into is not None} - graph.profiles.keys()
        if follow:
            follow = {one for (one,) in bulk.select(connection, _SURVIVORS, sorted(follow))} - graph.profiles.keys()
    return graph


def read_profiles(connection: Connection, ids: Collection[str], *, lock: bool = False) -> dict[str, Profile]:
    """Profiles by id, absorbed ones as they are."""
    sql = _PROFILES + (" ORDER BY id FOR UPDATE" if lock and connection.dialect.name == "postgresql" else "")
    return {row[0]: _profile(row) for row in bulk.select(connection, sql, sorted(ids))}


def merges_into(connection: Connection, profiles: Sequence[str]) -> list[Merge]:
    """All merges of which these profiles are made, and those into them that were undone."""
    return [Merge(*row) for row in bulk.select(connection, _MERGES, profiles)]


def save(connection: Connection, graph: Graph) -> None:
    """Writes what `Graph.apply` changed."""
    bulk.upsert(connection, schema.nodes, [_node_row(graph.nodes[key]) for key in sorted(graph.changed_nodes)])
    bulk.upsert(
        connection, schema.profiles, [_profile_row(graph.profiles[one]) for one in sorted(graph.changed_profiles)]
    )
    bulk.upsert(
        connection,
        schema.edges,
        [
            (a, b, e.count, e.first_at, e.last_at, e.source, e.message_id, e.type, e.rules, e.seq)
            for (a, b), e in sorted(graph.edges.items())
        ],
        set_=_edge_changes(connection),
    )
    bulk.insert(
        connection,
        schema.merges,
        [
            (m.id, m.survivor, m.absorbed, m.at, m.source, m.message_id, m.type, m.rules, m.seq, None)
            for m in graph.merges
        ],
    )
    bulk.insert(
        connection,
        schema.disputes,
        [
            (merge, category, json_dumps(stamp).decode())
            for merge, held in sorted(graph.disputes.items())
            for category, stamp in held.items()
        ],
    )


def _edge_changes(connection: Connection) -> dict[str, str]:
    """Counts add up, times widen; the event that made the edge stays."""
    least, most = ("LEAST", "GREATEST") if connection.dialect.name == "postgresql" else ("MIN", "MAX")
    return {
        "count": "edges.count + excluded.count",
        "first_at": f"{least}(edges.first_at, excluded.first_at)",
        "last_at": f"{most}(edges.last_at, excluded.last_at)",
        **{name: f"edges.{name}" for name in ("source", "message_id", "type", "rules", "seq")},
    }


def _node(row: Sequence[Any]) -> Node:
    node = Node(*row)
    node.traits = json_loads(row[2]) if row[2] else {}
    node.first_seen = _UNUSED if row[4] is None else row[4]
    node.last_seen = row[5] or 0
    node.apart = json_loads(row[14]) if row[14] else []
    node.consent = json_loads(row[15]) if row[15] else {}
    return node


def _node_row(node: Node) -> tuple[Any, ...]:
    return (
        node.key,
        node.profile,
        _json(node.traits),
        node.events,
        node.first_seen if node.events else None,
        node.last_seen if node.events else None,
        node.added_at,
        node.home,
        node.seq,
        node.source,
        node.message_id,
        node.rules,
        node.last_source,
        node.last_message,
        _json(node.apart),
        _json(node.consent),
        node.former,
    )


def _profile(row: Sequence[Any]) -> Profile:
    profile = Profile(*row)
    profile.ids, profile.traits = json_loads(row[3]), json_loads(row[4])
    profile.added = json_loads(row[14]) if row[14] else {}
    profile.apart = json_loads(row[15]) if row[15] else []
    profile.consent = json_loads(row[17]) if row[17] else {}
    profile.disputed = json_loads(row[18]) if row[18] else {}
    return profile


def _profile_row(profile: Profile) -> tuple[Any, ...]:
    return (
        profile.id,
        profile.created_at,
        profile.merged_into,
        _sorted_json(profile.ids),
        _sorted_json(profile.traits),
        profile.events,
        profile.first_seen,
        profile.last_seen,
        profile.collection,
        profile.seq,
        profile.source,
        profile.message_id,
        profile.last_source,
        profile.last_message,
        _sorted_json(profile.added) if profile.added else None,
        _json(profile.apart),
        profile.merges,
        _sorted_json(profile.consent) if profile.consent else None,
        _sorted_json(profile.disputed) if profile.disputed else None,
    )


def _sorted_json(value: Any) -> str:
    """The same bytes in whatever order a profile came together."""
    return json_dumps(value, sort_keys=True).decode()


def _json(value: Any) -> str | None:
    return json_dumps(value).decode() if value else None
