"""Whose turn it is where a service's rate is shared: sources that wait get equal parts of it, however much one of them sends.
Pure decisions: start-time fair queueing, counted in events."""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Shares:
    """What each source has had of a destination's rate. What one did not use while it had nothing to send is not owed to it."""

    def __init__(self) -> None:
        self._had: dict[str, int] = {}
        self._waiting: Counter[str] = Counter()
        self._now = 0  # what the source whose turn was last had had before

    def had(self, source: str) -> int:
        """Events counted against a source: of those that wait, the one with the least is next."""
        had = self._had.get(source, 0)
        return had if source in self._waiting else max(had, self._now)

    def part(self, source: str, room: int) -> int:
        """How many events of a source may go together where there is room for so many: half of them while another waits."""
        alone = len(self._waiting) == (source in self._waiting)
        return room if alone else (room + 1) // 2

    def took(self, source: str, count: int) -> None:
        """So many events of a source went."""
        before = self.had(source)
        self._now = max(self._now, before)
        self._had[source] = before + count

    def begins(self, source: str) -> None:
        """Something of a source waits."""
        self._had[source] = self.had(source)
        self._waiting[source] += 1

    def ends(self, source: str) -> None:
        """It waits no longer."""
        self._waiting[source] -= 1
        if not self._waiting[source]:
            del self._waiting[source]


class Turns(Generic[T]):
    """Things that wait, in order per source; the first is that of the source that has had least. To be used as a deque is, so that
    where nothing is shared a deque does."""

    def __init__(self, source_of: Callable[[T], str], shares: Shares) -> None:
        self._source_of, self._shares = source_of, shares
        self._queues: dict[str, deque[T]] = {}

    def append(self, one: T) -> None:
        source = self._source_of(one)
        self._shares.begins(source)
        queue = self._queues.get(source)
        if queue is None:
            queue = self._queues[source] = deque()
        queue.append(one)

    def popleft(self) -> T:
        source = self._next()
        queue = self._queues[source]
        one = queue.popleft()
        if not queue:
            del self._queues[source]
        self._shares.ends(source)
        return one

    def clear(self) -> None:
        while self._queues:
            self.popleft()

    def __getitem__(self, index: int) -> T:
        return self._queues[self._next()][index]

    def __iter__(self) -> Iterator[T]:
        for queue in self._queues.values():
            yield from queue

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __bool__(self) -> bool:
        return bool(self._queues)

    def _next(self) -> str:
        return min(self._queues, key=self._shares.had)
