"""Which profile each profile id leads to, in whatever order changes of it are heard. Pure.

A profile was canonical when something came to lead to it. So an arrow goes on over another only when that one is later: paths are of
growing `seq`, and never go in circles.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from schemas.changes import Cause, ProfileChange


class Pointer(NamedTuple):
    """`segment` leads to `canonical` since `seq`, because of `cause`. Names are Segment's."""

    segment: str
    canonical: str
    seq: int
    cause: Cause


class Pointers:
    """The newest pointer of each profile id that a batch touches. `known` must hold, of every profile that the batch names, all that
    lead where it leads."""

    def __init__(self, known: Iterable[Pointer]) -> None:
        self.newest = {one.segment: one for one in known}
        self.changed: set[str] = set()
        self._led: defaultdict[str, set[str]] = defaultdict(set)
        for one in self.newest.values():
            self._led[one.canonical].add(one.segment)

    def canonical(self, segment: str) -> str:
        """Where a profile id leads; one that nothing is known of leads to itself."""
        known = self.newest.get(segment)
        return segment if known is None else known.canonical

    def family(self, canonical: str) -> set[str]:
        """All that lead to a profile, itself among them."""
        return self._led[canonical] | {canonical}

    def hear(self, change: ProfileChange) -> list[Pointer]:
        """The rows that a change adds: one for each profile that it moves, and one for each that led to such a one before."""
        rows: list[Pointer] = []
        for segment in change.profiles if change.kind in _MOVES else ():
            rows += self._move(Pointer(segment, change.profile, change.seq, change.cause))
        return rows

    def _move(self, told: Pointer) -> list[Pointer]:
        known = self.newest.get(told.segment)
        if known is not None and known.seq >= told.seq:
            return [told]  # history: it has moved on since
        rows = [told]
        reached = self._onward(told)
        if reached != told:
            rows.append(reached)
        self._set(reached)
        if reached.canonical == told.segment:
            return rows
        for follower in sorted(self._led[told.segment] - {told.segment}):
            if self.newest[follower].seq < told.seq:
                moved = reached._replace(segment=follower)
                rows.append(moved)
                self._set(moved)
        return rows

    def _onward(self, one: Pointer) -> Pointer:
        """Over what has become of the profile reached since."""
        while (after := self.newest.get(one.canonical)) is not None:
            if after.canonical == one.canonical or after.seq <= one.seq:
                break
            one = after._replace(segment=one.segment)
        return one

    def _set(self, one: Pointer) -> None:
        before = self.newest.get(one.segment)
        if before is not None:
            self._led[before.canonical].discard(one.segment)
        self.newest[one.segment] = one
        self._led[one.canonical].add(one.segment)
        self.changed.add(one.segment)


_MOVES: Mapping[str, None] = dict.fromkeys(("created", "merged", "unmerged", "remerged"))
