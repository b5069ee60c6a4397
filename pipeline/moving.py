"""Which ids may leave their profiles while a poll is applied: of those that belong to their latest owner. Pure."""

from collections.abc import Iterable

from pipeline.graph import Graph
from pipeline.identity import Rules
from pipeline.parse import Parsed


def movable(events: Iterable[Parsed], graph: Graph, rules: Rules) -> set[str]:
    """Keys of the ids that an event of the poll names together with one that does not stand in the same profile, before any event is
    applied, or that may itself move. Nothing else can: profiles that are one stay one."""
    if not rules.moving:
        return set()
    found: set[str] = set()
    for parsed in events:
        ids = parsed.found.ids
        if len(ids) > 1 and ids[-1].type in rules.moving:
            owners = {graph.profile_of(one) for one in ids}
            if len(owners) > 1 or ids[0].type in rules.moving:
                found.update(str(one) for one in ids if one.type in rules.moving and graph.profile_of(one) is not None)
    return found
