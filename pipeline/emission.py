"""Puts resolved events onto the log, so that readers of several partitions can keep a person's events in order.

A profile has one partition, and its events are in order there. When ids of an event were of another profile before, that one's events
stand in a partition of their own: they are appended first, and the event says until where a reader has to be done with them. So
an event only ever points at what was on the log before it.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from pipeline.log import Log
from pipeline.log.contract import Draft, Drafts
from pipeline.running import steadily
from pipeline.store.intake import Emission
from schemas.events import HEADER_BYTES, Fence, resolved_head
from schemas.topics import RESOLVED, partition_of

Bounds = Mapping[int, tuple[int, int]]


async def emit(log: Log, emissions: Sequence[Emission], stop: asyncio.Event) -> None:
    """Appends `emissions`, in order. Raises Unavailable once `stop` is set; what was appended then is appended again by the next."""
    partitions = log.partitions(RESOLVED)

    def partition(key: bytes) -> int:
        return partition_of(key, partitions)

    for part in rounds(emissions, partition):
        bounds: Bounds = {}
        if any(one.left for one in part):
            bounds = await steadily(lambda: log.bounds(RESOLVED), stop, "reading the ends of resolved events")
        records = records_of(part, bounds, partition)
        await steadily(partial(log.append, RESOLVED, records), stop, "emitting resolved events")


def rounds(emissions: Sequence[Emission], partition: Callable[[bytes], int]) -> Sequence[Sequence[Emission]]:
    """Cuts a poll into as few appends as may be: none holds an event together with one of a profile that the event left, and
    each partition gets its events in order."""
    if not any(one.left for one in emissions):
        return (emissions,)
    made: list[list[Emission]] = [[]]
    reached: dict[int, int] = {}  # by partition, the append that holds its last event
    last: dict[str, int] = {}  # by profile
    for one in emissions:
        place = partition(one.key)
        number = max(reached.get(place, 0), *(last.get(profile, -1) + 1 for profile in one.left), 0)
        reached[place] = last[one.profile] = number
        if number == len(made):
            made.append([])
        made[number].append(one)
    return made


def records_of(emissions: Sequence[Emission], bounds: Bounds, partition: Callable[[bytes], int]) -> Drafts:
    """Keyed by profile, so that a person's events stay in order. Stamped with the present, not the event's time: the path
    of an event is found by when it was processed. `bounds` are those of `resolved` before these are appended."""
    now = time.time_ns() // 1_000_000
    rows: list[Draft] = []
    size = 0
    for origin, profile, ids, fallback, value, context, _, left in emissions:
        key = profile.encode() or fallback
        head = resolved_head(profile, origin, ids, context, fences(left, bounds, partition) if left else ())
        body = value[HEADER_BYTES:]
        size += len(key) + len(head) + len(body)
        rows.append((key, head, body, now))
    return Drafts(rows, size)


def fences(left: Sequence[str], bounds: Bounds, partition: Callable[[bytes], int]) -> Sequence[Fence]:
    """What to wait for of these profiles. An empty partition holds nothing of theirs."""
    made = []
    for profile in left:
        place = partition(profile.encode())
        earliest, end = bounds[place]
        if end > earliest:
            made.append(Fence(profile, place, end))
    return made
