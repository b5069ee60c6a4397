"""When the ids of a profile were added, for types whose limit has a window. Profiles keep these times from when their rules
ask for them; what came before is read from the nodes once."""

from collections import defaultdict
from collections.abc import Collection
from typing import Final

from sqlalchemy import Connection

from pipeline.graph import Graph
from pipeline.profile import Profile
from pipeline.store import bulk
from schemas.identity import WINDOWED_MOST

_TIMES: Final = """
    WITH RECURSIVE family(root, id) AS (
      SELECT id, id FROM profiles WHERE id {}
      UNION ALL SELECT family.root, profiles.id FROM profiles JOIN family ON profiles.merged_into = family.id
    )
    SELECT family.root, nodes.key, nodes.added_at FROM nodes JOIN family ON nodes.profile = family.id
"""


def complete(connection: Connection, graph: Graph, windowed: Collection[str]) -> None:
    """Makes the times of the loaded profiles complete, and forgets those of types without a window."""
    lacking = []
    for profile in graph.profiles.values():
        if profile.added:
            profile.added = {kind: times for kind, times in profile.added.items() if kind in windowed}
        if windowed and profile.merged_into is None and lacks(profile, windowed):
            lacking.append(profile.id)
    times: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for root, key, added_at in bulk.select(connection, _TIMES, sorted(lacking)):
        times[root, key.partition(":")[0]].append(added_at)
    for one in lacking:
        graph.profiles[one].added = {
            kind: sorted(times[one, kind])[-WINDOWED_MOST:] for kind in windowed if (one, kind) in times
        }


def lacks(profile: Profile, windowed: Collection[str]) -> bool:
    """Whether times are still to be read from the nodes."""
    return any(
        len(profile.added.get(kind, ())) < min(count, WINDOWED_MOST)
        for kind, count in profile.ids.items()
        if kind in windowed
    )
