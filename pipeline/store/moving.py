"""What the tables know of ids that may leave their profiles, and what a move writes beside the graph."""

from collections.abc import Collection, Sequence
from typing import Any, Final

from sqlalchemy import Connection, text

from pipeline.graph import Edge, Graph, Move, Sighting
from pipeline.identity import Rules
from pipeline.store import bulk, schema, withdrawn
from pipeline.store.graph import load

_EDGES: Final = (
    "SELECT a, b, count, first_at, last_at, source, message_id, type, rules, seq FROM edges WHERE {column} {{}}"
)
_LINKS: Final = "SELECT node, account, count, first_at, last_at, source, message_id FROM links WHERE node {}"
_OTHERS: Final = """
    WITH RECURSIVE family(id) AS (
      SELECT id FROM profiles WHERE id {}
      UNION SELECT profiles.id FROM profiles JOIN family ON profiles.merged_into = family.id
    )
    SELECT key, seq FROM nodes JOIN family ON profile = family.id
"""
_MOVES: Final = f"SELECT {', '.join(one.name for one in schema.moves.columns)} FROM moves WHERE key {{}} ORDER BY seq"
_CUT: Final = text("DELETE FROM edges WHERE a = :one AND b = :other")
_UNLINKED: Final = text("DELETE FROM links WHERE node = :one AND account = :other")


def load_evidence(connection: Connection, graph: Graph, keys: Collection[str], rules: Rules) -> None:
    """Reads into a graph what hangs on ids beside their own rows, and locks the ids that may inherit it."""
    if not keys:
        return
    evidence = {key: dict[tuple[str, str], Edge]() for key in sorted(keys)}
    for column in ("a", "b"):
        for a, b, count, first_at, last_at, source, message_id, kind, version, seq in bulk.select(
            connection, _EDGES.format(column=column), list(evidence)
        ):
            edge = Edge(first_at, last_at, source, message_id, kind, version, seq, count)
            for key in {a, b} & evidence.keys():
                evidence[key][a, b] = edge
    graph.evidence = evidence
    graph.memberships = {key: {} for key in evidence}
    for node, account, count, first_at, last_at, source, message_id in bulk.select(connection, _LINKS, list(evidence)):
        graph.memberships[node][account] = Sighting(first_at, last_at, source, message_id, "group", 0, count)
    wanted = {end for edges in evidence.values() for pair in edges for end in pair}
    for key, edges in evidence.items():
        if not edges:
            wanted.update(_trusted(connection, graph, key, rules))
    more = load(connection, wanted - graph.nodes.keys())
    graph.nodes.update(more.nodes)
    graph.profiles.update((name, one) for name, one in more.profiles.items() if name not in graph.profiles)


def _trusted(connection: Connection, graph: Graph, key: str, rules: Rules) -> list[str]:
    """The most trusted other id of a profile, for one that a split left without evidence."""
    profile = graph.nodes[key].profile
    if profile is None:
        return []
    others = [(key, seq) for key, seq in bulk.select(connection, _OTHERS, [graph.canonical(profile)])]
    ranked = sorted((rules.rank(one.partition(":")[0]), seq, one) for one, seq in others if one != key)
    return [one for _, _, one in ranked[:1]]


def save_moves(connection: Connection, graph: Graph) -> None:
    """Writes what moved; before the graph is saved, since evidence may come again."""
    if not graph.moves:
        return
    for move in graph.moves:
        if move.events:
            withdrawn.move(connection, move.key, move.heir)
    for sql, pairs in ((_CUT, graph.cut), (_UNLINKED, graph.unlinked)):
        if pairs:
            connection.execute(sql, [{"one": one, "other": other} for one, other in sorted(pairs)])
    bulk.insert(connection, schema.moves, [_row(one) for one in graph.moves])


def moves_of(connection: Connection, keys: Sequence[str]) -> list[Move]:
    """All moves of these ids, in serial order."""
    return [Move(*row[1:]) for row in bulk.select(connection, _MOVES, keys)]


def _row(move: Move) -> tuple[Any, ...]:
    return (
        move.id,
        move.key,
        move.left,
        move.joined,
        move.at,
        move.source,
        move.message_id,
        move.type,
        move.rules,
        move.seq,
        move.was_home,
        move.was_added_at,
        move.was_seq,
        move.was_source,
        move.was_message_id,
    )
