"""Whose next events wait for those of another profile, because ids were taken out of that one: order across a split.

What stood on `resolved` under the former profile has to be delivered before what the ids send under their new one. A profile's events are
in order, so it takes one that waits; but each partition of `events` may be emitted by another member of the pipeline, which
has the earlier ones of that partition to emit first. So the first event of the profile in each of them says for whom it waits.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, bindparam, delete, select

from pipeline.parse import Parsed
from pipeline.profile import USERS
from pipeline.store import bulk, schema
from schemas.changes import ProfileChange

if TYPE_CHECKING:
    from pipeline.store.intake import Emission

KEPT: Final = 30 * 86_400_000_000
"""Microseconds: longer than anything is tried at a destination."""

_OF: Final = "SELECT partition, profile, left_profile FROM partings WHERE profile {}"


def note(connection: Connection, changes: Iterable[ProfileChange], at: int) -> None:
    """In the transaction that gave ids of people another profile; `at` is in UTC microseconds. Who is taken out of somebody who still waits
    waits for the same. Removes what nothing waits for any more."""
    table = schema.partings
    connection.execute(delete(table).where(table.c.at < at - KEPT))
    pairs = sorted({(one.profile, one.other) for one in changes if one.collection == USERS and one.ids and one.other})
    partitions = connection.execute(select(schema.positions.c.partition)).scalars().all()
    rows = {(profile, partition, left, at) for profile, left in pairs for partition in partitions}
    for partition, waiting, left in bulk.select(connection, _OF, sorted({left for _, left in pairs})):
        rows |= {(profile, partition, left, at) for profile, other in pairs if other == waiting and profile != left}
    bulk.upsert(connection, table, sorted(rows))


def behind(
    connection: Connection, emissions: list["Emission"], fresh: Mapping[int, int], events: Sequence[Parsed]
) -> list["Emission"]:
    """The same; the first of a profile in each partition is behind what its ids were taken out of. `fresh` is the first offset of
    each partition that was not applied before; `events` are those of the poll. Corrections of ours wait as well, but in a partition of their
    own, so they say nothing of what others have to emit first."""
    table = schema.partings
    if connection.execute(select(table.c.profile).limit(1)).first() is None:
        return emissions
    told = {one.origin for one in events if one.correction}
    wanted = {name for one in emissions for name in (one.profile, *one.left)}
    waits: dict[tuple[int, str], list[str]] = {}
    for partition, profile, left in bulk.select(connection, _OF, sorted(wanted)):
        waits.setdefault((partition, profile), []).append(left)
    done: set[tuple[int, str]] = set()
    made: list[Emission] = []
    for one in emissions:
        partition, offset = one.origin
        places = [(partition, name) for name in (one.profile, *one.left) if (partition, name) in waits]
        if places and offset >= fresh[partition]:
            left = dict.fromkeys([*one.left, *(name for place in places for name in waits[place])])
            one = one._replace(left=[name for name in left if name != one.profile])
            if one.origin not in told:
                done.update(places)
                for place in places:
                    del waits[place]
        made.append(one)
    if done:
        of = (table.c.partition == bindparam("_partition"), table.c.profile == bindparam("_profile"))
        gone = [{"_partition": partition, "_profile": profile} for partition, profile in sorted(done)]
        connection.execute(delete(table).where(*of), gone)
    return made
