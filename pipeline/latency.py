"""Histograms of durations that can be added up: fixed bounds, a fourth of a doubling apart, from a millisecond to a month. Pure.

A quantile is off by at most a tenth, however many histograms it is taken of.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Final

PER_DOUBLING: Final = 4
BOUNDS: Final[Sequence[int]] = [round(1_000 * 2 ** (n / PER_DOUBLING)) for n in range(32 * PER_DOUBLING)]
"""Upper bounds in microseconds, inclusive; one bucket more holds what is longer."""
BUCKETS: Final = len(BOUNDS) + 1


def bucket(micros: int) -> int:
    """The bucket of a duration; clocks that disagree count as no time at all."""
    return bisect_left(BOUNDS, micros)


def quantile(counts: Mapping[int, int], share: float) -> float | None:
    """Seconds within which `share` of all are; None when there are none. `counts` are by bucket."""
    total = sum(counts.values())
    if total == 0:
        return None
    left = share * total
    for index in sorted(counts):
        left -= counts[index]
        if left <= 0:
            return _middle(index)
    return _middle(max(counts))


def _middle(index: int) -> float:
    """Of a bucket, in seconds: the geometric mean of its bounds."""
    low = BOUNDS[max(0, min(index, len(BOUNDS)) - 1)]
    high = BOUNDS[min(index, len(BOUNDS) - 1)]
    return float((low * high) ** 0.5 / 1e6)
