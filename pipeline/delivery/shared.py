"""What destinations of one process share: an event that several read is decoded once, and made whole once.

Destinations read for themselves, each at its own pace. Those that are at the same place find here what another has made; one that
lags makes it again. What is kept is bounded by the bytes of the records it came from, whatever anybody waits for.
"""

from collections.abc import Callable
from typing import Final, Generic, NamedTuple, TypeVar

from destinations.contract import RawEvent
from schemas.events import Resolved, materialize

KEPT: Final = 8 << 20  # bytes of records
K = TypeVar("K")
S = TypeVar("S")
V = TypeVar("V")


class _Made(NamedTuple, Generic[S, V]):
    """Something, and what it was made of."""

    source: S
    made: V
    size: int


class Latest(Generic[K, S, V]):
    """Keeps the latest things made, until more than `most` bytes of sources were. A key whose source is another one is made again."""

    def __init__(self, make: Callable[[S], V], most: int = KEPT) -> None:
        self._make, self._most, self._size = make, most, 0
        self._kept: dict[K, _Made[S, V]] = {}

    def get(self, key: K, source: S, size: int) -> V:
        """What is made of the source, which is of `size` bytes."""
        found = self._kept.get(key)
        if found is not None:
            if found.source is source or found.source == source:
                return found.made
            self._size -= self._kept.pop(key).size
        made = self._make(source)
        self._kept[key] = _Made(source, made, size)
        self._size += size
        while self._size > self._most:
            self._size -= self._kept.pop(next(iter(self._kept))).size
        return made


_whole: Final[Latest[int, Resolved, RawEvent]] = Latest(materialize)


def whole(resolved: Resolved) -> RawEvent:
    """The event as destinations get it. Several may hold it: nobody changes it. ValueError when its body cannot be read."""
    return _whole.get(id(resolved), resolved, len(resolved.event.body))
