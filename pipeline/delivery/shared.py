"""What destinations of one process share: an event that several read is decoded once, and made whole once.

Destinations read for themselves, each at its own pace. Those that are at the same place find here what another has made; one that
lags makes it again. What is kept is bounded by the bytes of the records it came from, whatever anybody waits for.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from destinations.contract import RawEvent
from schemas.events import Resolved, materialize

KEPT: Final = 8 << 20  # bytes of records
K = TypeVar("K")
S = TypeVar("S")
V = TypeVar("V")


class Latest(Generic[K, S, V]):
    """Keeps the latest things made, until more than `most` bytes of sources were. A key whose source is another one is made again."""

    def __init__(self, make: Callable[[S], V], most: int = KEPT) -> None:
        self._make, self._most, self._size = make, most, 0
        # by key: source, what was made, size. A plain dict looks for its oldest entry past all that went before it
        self._kept: OrderedDict[K, tuple[S, V, int]] = OrderedDict()

    def get(self, key: K, source: S, size: int) -> V:
        """What is made of the source, which is of `size` bytes."""
        found = self._kept.get(key)
        if found is not None:
            if found[0] is source or found[0] == source:
                return found[1]
            self._size -= self._kept.pop(key)[2]
        made = self._make(source)
        self._kept[key] = (source, made, size)
        self._size += size
        while self._size > self._most:
            self._size -= self._kept.popitem(last=False)[1][2]
        return made


_whole: Final[Latest[int, Resolved, RawEvent]] = Latest(materialize)


def whole(resolved: Resolved) -> RawEvent:
    """The event as destinations get it. Several may hold it: nobody changes it. ValueError when its body cannot be read."""
    return _whole.get(id(resolved), resolved, len(resolved.event.body))
