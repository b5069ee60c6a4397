"""How many events may go to a service: the rate that people set, and a lower one for a while after the service said it was too much.
Pure decisions over times that are passed in."""

from math import inf, nextafter
from typing import Final

HALVED_ONCE: Final = 10.0  # seconds in which several 429 are one: what was under way went at the same rate
RESTORED_EVERY: Final = 10.0  # seconds
RESTORED_BY: Final = 0.05  # of the full rate, which is also the least that is left of it
KEPT: Final = 0.5  # of a second's worth: what is left to those who come first


class Throttle:
    """`most` is in events per second, None without a limit. A second's worth may go at once.

    A 429 halves the rate, and every ten seconds five hundredths of the full rate come back (source: delivery, rate limiting). Where
    people set no limit there is no rate to halve: events wait as the service asks, each on its own."""

    def __init__(self, most: float | None = None) -> None:
        self._most = most
        self._full = self._rate = inf if most is None else most
        self._room = max(1.0, self._rate)
        self._at: float | None = None
        self._halved_at = -inf
        self._restored_at = 0.0

    @property
    def rate(self) -> float:
        """Events per second now; infinity without a limit."""
        return self._rate

    def share(self, part: float) -> None:
        """Sets which part of the rate is this process's: several may deliver to one service."""
        if self._most is not None and self._full != self._most * part:
            scale = self._most * part / self._full
            self._full, self._rate = self._full * scale, self._rate * scale

    def room(self, now: float, *, kept: float = 0.0) -> int:
        """How many events may go now. `kept` is the part of a second's worth that is to be left."""
        if self._rate == inf:
            return 1 << 30
        self._refill(now)
        return max(0, int(self._room - self._least(kept)))

    def took(self, count: int, now: float) -> None:
        """Notes that so many went."""
        if self._rate != inf:
            self._refill(now)
            self._room -= count

    def next_at(self, now: float, *, kept: float = 0.0) -> float:
        """When the next event may go."""
        if self._rate == inf:
            return now
        self._refill(now)
        missing = 1.0 + self._least(kept) - self._room
        if missing <= 0:
            return now
        return max(now + missing / self._rate, nextafter(now, inf))  # a moment too short for a clock is one yet

    def too_much(self, now: float) -> bool:
        """The service answered 429; True when that lowers the rate."""
        if self._rate == inf or now - self._halved_at < HALVED_ONCE:
            return False
        self._halved_at = self._restored_at = now
        self._refill(now)
        before, self._rate = self._rate, max(self._rate / 2, RESTORED_BY * self._full)
        return self._rate < before

    def _least(self, kept: float) -> float:
        """What is to be left; nothing where a second's worth is a single event."""
        return kept * self._rate if self._rate * (1 - kept) >= 1 else 0.0

    def _refill(self, now: float) -> None:
        if self._at is not None:
            self._room = min(self._room + (now - self._at) * self._rate, max(1.0, self._rate))
        self._at = now
        if self._rate < self._full and (steps := int((now - self._restored_at) / RESTORED_EVERY)) > 0:
            self._restored_at += steps * RESTORED_EVERY
            self._rate = min(self._full, self._rate + steps * RESTORED_BY * self._full)


class Leftover:
    """A throttle as it is to those who are to have what is left of the rate: they go only while more than half of a second's worth is
    there, which whoever comes first uses up as long as they need all of it. The rate itself is not theirs to divide."""

    def __init__(self, throttle: Throttle) -> None:
        self._throttle = throttle

    @property
    def rate(self) -> float:
        return self._throttle.rate

    def share(self, part: float) -> None:
        """Nothing."""

    def room(self, now: float) -> int:
        return self._throttle.room(now, kept=KEPT)

    def took(self, count: int, now: float) -> None:
        self._throttle.took(count, now)

    def next_at(self, now: float) -> float:
        return self._throttle.next_at(now, kept=KEPT)

    def too_much(self, now: float) -> bool:
        return self._throttle.too_much(now)
