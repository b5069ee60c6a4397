"""Writes what a batch saw beside the graph: ids that a rule refused, and users' nodes seen with an account."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection

from pipeline.graph import Graph, Sighting
from pipeline.store import bulk, schema

MOST_IDS: Final = 100
"""Refused ids that are kept apart for one profile; what is refused beyond that counts under the id's type alone."""

_KNOWN: Final = "SELECT profile, key FROM violations WHERE profile {}"
_COUNTS: Final = "SELECT profile, count(DISTINCT key) FROM violations WHERE profile {} GROUP BY profile"

Refused = Mapping[tuple[str, str, str], Sighting]


def save(connection: Connection, graph: Graph) -> None:
    """Writes the violations and links of what was applied."""
    violations = _bounded(connection, graph.violations)
    bulk.upsert(
        connection,
        schema.violations,
        [(*key, *_columns(one), one.type, one.rules) for key, one in sorted(violations.items())],
        set_=_again(connection, "violations", ("source", "message_id", "type", "rules")),
    )
    bulk.upsert(
        connection,
        schema.links,
        [(*key, *_columns(one)) for key, one in sorted(graph.links.items())],
        set_=_again(connection, "links", ("source", "message_id")),
    )


def _columns(one: Sighting) -> tuple[Any, ...]:
    return one.count, one.first_at, one.last_at, one.source, one.message_id


def _again(connection: Connection, table: str, first: Sequence[str]) -> dict[str, str]:
    """Counts add up, times widen; the first event stays."""
    least, most = ("LEAST", "GREATEST") if connection.dialect.name == "postgresql" else ("MIN", "MAX")
    return {
        "count": f"{table}.count + excluded.count",
        "first_at": f"{least}({table}.first_at, excluded.first_at)",
        "last_at": f"{most}({table}.last_at, excluded.last_at)",
        **{name: f"{table}.{name}" for name in first},
    }


def _bounded(connection: Connection, violations: Refused) -> Refused:
    """The same with at most `MOST_IDS` ids to a profile, those that are stored counted in."""
    fresh = Counter(profile for profile, _ in {(profile, key) for profile, key, _ in violations})
    stored = Counter(dict(bulk.select(connection, _COUNTS, sorted(fresh))))
    full = sorted(profile for profile in fresh if stored[profile] + fresh[profile] > MOST_IDS)
    if not full:
        return violations
    room = {profile: MOST_IDS - stored[profile] for profile in full}
    known = {(profile, key) for profile, key in bulk.select(connection, _KNOWN, full)}
    kept: dict[tuple[str, str, str], Sighting] = {}
    for (profile, key, violation), one in sorted(violations.items()):
        if profile in room and (profile, key) not in known:
            if room[profile] > 0:
                room[profile] -= 1
                known.add((profile, key))
            else:
                key = key.partition(":")[0] + ":*"
        earlier = kept.get((profile, key, violation))
        kept[profile, key, violation] = one if earlier is None else _joined(earlier, one)
    return kept


def _joined(first: Sighting, second: Sighting) -> Sighting:
    earliest, at = min(first.first_at, second.first_at), max(first.last_at, second.last_at)
    return Sighting(earliest, at, first.source, first.message_id, first.type, first.rules, first.count + second.count)
