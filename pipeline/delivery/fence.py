"""Lanes whose next event has to wait until another profile's events are over: order across a merge.

An event with fences (`schemas.events.Fence`) waits until all before the end of a partition was read and nothing of the
profile is outstanding there. Of a partition that is ours memory knows; of another process's the ledger is asked, a few times a
second and for all at once, while somebody waits.

Nobody waits for ever. A fence names what was on the log before the event that carries it, so events wait for older ones only, and
the oldest that is outstanding anywhere waits for nobody. It can be read, too: a courier that has as much outstanding as it may goes
on reading when all of it waits for fences. What retention has removed is not waited for, nor are dead letters.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.store.ledger import Standing
from schemas.events import Fence

if TYPE_CHECKING:
    from pipeline.delivery.lanes import Lane, Partition

Awaited = tuple[int, str]
"""A profile's events in a partition."""


class Fences:
    """The lanes of a destination in this process that wait, each by the first fence of its head that stands. `partitions` are those that
    are ours, kept by who made this."""

    def __init__(self, partitions: "Mapping[int, Partition]") -> None:
        self._partitions = partitions
        self._waiting: dict[Awaited, dict[Lane, int]] = {}  # and until which offset
        self._floors: dict[int, int] = {}  # before which there is nothing to read
        self.asking = False  # something of another process's is awaited

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def holds(self, lane: "Lane") -> bool:
        """Whether the lane's head has to wait. It is held then until it is among those that one of the methods below returns."""
        item = lane.queue[0]
        while item.fences:
            fence = item.fences[0]
            if not self._is_over(fence):
                self._hold(lane, fence)
                return True
            item.fences = item.fences[1:]
        return False

    # ── Of our own partitions ─────────────────────────────────────────────────────────────────────────────────────

    def read_on(self, numbers: Iterable[int]) -> list["Lane"]:
        """Those to be looked at again because more of these partitions was read, or they became ours."""
        wanted = frozenset(numbers)
        return self._freed(awaited for awaited in self._waiting if awaited[0] in wanted)

    def landed(self, lanes: Iterable["Lane"]) -> list["Lane"]:
        """Those to be looked at again because attempts of these lanes have ended."""
        return self._freed((lane.partition.number, lane.profile) for lane in lanes)

    def forget(self, lane: "Lane") -> None:
        """Lets go of a lane that has another head now."""
        assert lane.awaits is not None, "a lane that is held awaits something"
        lanes = self._waiting[lane.awaits]
        del lanes[lane]
        if not lanes:
            del self._waiting[lane.awaits]
        lane.awaits = None

    def drop(self, number: int) -> None:
        """Forgets the lanes of a partition that is another's now."""
        for lane in [one for lanes in self._waiting.values() for one in lanes if one.partition.number == number]:
            self.forget(lane)
        self.asking = bool(self.foreign)

    # ── Of others', and of what nobody has ────────────────────────────────────────────────────────────────────────

    @property
    def foreign(self) -> Sequence[Awaited]:
        """What is awaited in partitions of other processes."""
        return [awaited for awaited in self._waiting if awaited[0] not in self._partitions]

    def told(self, standing: Standing) -> list["Lane"]:
        """Those to be looked at again, and with one fence less, after what the ledger said of foreign partitions."""
        freed = []
        for partition, profile in self.foreign:
            position = max(standing.positions.get(partition, 0), self._floors.get(partition, 0))
            oldest = standing.outstanding.get((partition, profile), position)
            for lane, end in list(self._waiting[partition, profile].items()):
                if end <= min(position, oldest):
                    lane.queue[0].fences = lane.queue[0].fences[1:]
                    freed.append(lane)
        return self._let_go(freed)

    def unread(self, standing: Standing) -> dict[int, int]:
        """Which partitions are awaited that are not read so far, and the next offset of each."""
        unread = {}
        for partition in {partition for partition, _ in self._waiting}:
            ours = self._partitions.get(partition)
            position = standing.positions.get(partition, 0) if ours is None else ours.read
            if max(position, self._floors.get(partition, 0)) < self._end(partition):
                unread[partition] = position
        return unread

    def bounded(self, unread: Mapping[int, int], bounds: Mapping[int, tuple[int, int]]) -> list["Lane"]:
        """Those to be looked at again because of what the log has of partitions that are unread: nothing behind the position, as a replay
        that does not reach as far, or nothing before some offset any more."""
        for partition, position in unread.items():
            earliest, end = bounds.get(partition, (0, 0))
            self._floors[partition] = self._end(partition) if position >= end else earliest
        return self.read_on(unread)

    def _end(self, partition: int) -> int:
        """Until where a partition is awaited."""
        return max(
            (end for one, lanes in self._waiting.items() if one[0] == partition for end in lanes.values()), default=0
        )

    # ── Inside ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _is_over(self, fence: Fence) -> bool:
        partition = self._partitions.get(fence.partition)
        if partition is None:
            return False  # until the ledger says so
        if max(partition.read, self._floors.get(fence.partition, 0)) < fence.end:
            return False
        lane = partition.lanes.get(fence.profile_id)
        if lane is None:
            return True
        is_new = not lane.queue  # its first events are of the poll that is being taken
        return not lane.busy and (is_new or lane.queue[0].offset >= fence.end)

    def _hold(self, lane: "Lane", fence: Fence) -> None:
        lane.awaits = (fence.partition, fence.profile_id)
        self.asking = self.asking or fence.partition not in self._partitions
        self._waiting.setdefault(lane.awaits, {})[lane] = fence.end

    def _freed(self, awaited: Iterable[Awaited]) -> list["Lane"]:
        return self._let_go([lane for one in list(awaited) for lane in self._waiting.get(one, ())])

    def _let_go(self, lanes: list["Lane"]) -> list["Lane"]:
        for lane in lanes:
            self.forget(lane)
        return lanes
