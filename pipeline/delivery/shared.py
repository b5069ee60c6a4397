"""What destinations of one process share: an event that several read is decoded once, and made whole once.

Destinations read for themselves, each at its own pace. Those that are at the same place find here what another has made; one that
lags makes it again. What is kept is bounded by the bytes of the records it came from, whatever anybody waits for. A destination that
has the process to itself keeps nothing.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

from destinations.contract import RawEvent
from pipeline.log import Record
from schemas.events import Resolved, materialize

KEPT: Final = 8 << 20  # bytes of records
V = TypeVar("V")

_STRETCH: Final = (
    6  # bits of an offset: 64 records are kept, and go, together, since each by itself would cost a microsecond
)


class Readers:
    """Those that read in this process now. Nothing is kept for one alone."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """To be entered by each."""
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1

    @property
    def several(self) -> bool:
        """There is somebody to share with."""
        return self.count > 1


_readers: Final = Readers()
reading: Final = _readers.reading


class _Stretch(Generic[V]):
    """Neighbouring records of a partition: by offset the value, and what was made of it."""

    __slots__ = ("made", "size")

    def __init__(self) -> None:
        self.made: dict[int, tuple[bytes, V]] = {}
        self.size = 0


class Latest(Generic[V]):
    """Keeps what was made of records, until more than `most` bytes of them were. A place that holds another record is made again."""

    def __init__(self, make: Callable[[bytes], V], most: int = KEPT, readers: Readers = _readers) -> None:
        self._make, self._most, self._size, self._readers = make, most, 0, readers
        # a plain dict looks for its oldest entry past all that went before it
        self._kept: OrderedDict[tuple[int, int], _Stretch[V]] = OrderedDict()

    def of(self, partition: int, records: Sequence[Record]) -> list[V]:
        """What is made of the values of records, which are of one partition and in order."""
        if not self._readers.several:
            self._kept.clear()
            self._size = 0
            return [self._make(record.value) for record in records]
        all_made: list[V] = []
        number, stretch = -1, _Stretch[V]()
        for _, value, _, offset in records:
            if offset >> _STRETCH != number:
                number = offset >> _STRETCH
                stretch = self._stretch(partition, number)
            found = stretch.made.get(offset)
            if found is None or (found[0] is not value and found[0] != value):
                found = stretch.made[offset] = (value, self._make(value))
                stretch.size += len(value)
                self._size += len(value)
                if self._size > self._most:
                    self._size -= self._kept.popitem(last=False)[1].size
                    number = -1  # it may have been this one
            all_made.append(found[1])
        return all_made

    def _stretch(self, partition: int, number: int) -> _Stretch[V]:
        key = partition, number
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = _Stretch()
        return found


def whole(resolved: Resolved) -> RawEvent:
    """The event as destinations get it. Several may hold it: nobody changes it. ValueError when its body cannot be read."""
    made = resolved.whole
    if made is None:
        made = resolved.whole = materialize(resolved)
    return made


def passing(resolved: Resolved) -> RawEvent:
    """`whole` for a use after which nobody here asks again: kept for others only, since what goes at once is freed while it is at
    hand."""
    return whole(resolved) if is_shared(resolved) else materialize(resolved)


def is_shared(resolved: Resolved) -> bool:
    """Whether others have made it whole, or may want that."""
    return resolved.whole is not None or _readers.several
