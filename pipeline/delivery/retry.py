"""When to try again, and when to stop trying: pure decisions over times that are passed in."""

from enum import Enum

from pipeline.delivery.limits import Limits


def delay(attempts: int, asked: float | None, chance: float, limits: Limits) -> float:
    """Seconds until the next attempt after `attempts` failed ones: what the service asked for, within bounds, else full
    jitter under an exponential ceiling."""
    if asked is not None:
        return min(max(asked, 0.0), limits.longest_asked)
    return chance * ceiling(attempts - 1, limits.backoff, limits.longest_backoff)


def ceiling(doublings: int, first: float, longest: float) -> float:
    """`first`, doubled `doublings` times, at most `longest`."""
    return min(longest, first * 2.0 ** min(doublings, 64))


class Reach(Enum):
    """What is known of the service behind a destination."""

    UP = "up"
    DOWN = "down"  # one probe at a time


class Breaker:
    """Tells an outage of the service from the trouble of single events.

    It opens after `failures` chunks that failed whole, one after the other, over at least as many profiles: a few events
    that fail for ever never stop the others. While it is open, one probe at a time is allowed, at growing intervals."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._failed = 0
        self._profiles: set[object] = set()
        self._probes = 0
        self.reach = Reach.UP
        self.probe_at = 0.0

    @property
    def open(self) -> bool:
        return self.reach is Reach.DOWN

    def failed(self, profiles: set[object], now: float, asked: float | None) -> bool:
        """A chunk failed whole; True when that opens the breaker."""
        self._failed += 1
        if len(self._profiles) < self._limits.failures:
            self._profiles |= profiles
        if self.open:
            self._probes += 1
        elif self._failed < self._limits.failures or len(self._profiles) < self._limits.failures:
            return False
        opened = not self.open
        self.reach = Reach.DOWN
        wait = ceiling(self._probes, self._limits.probe, self._limits.longest_probe)
        self.probe_at = now + max(wait, min(asked or 0.0, self._limits.longest_asked))
        return opened

    def answered(self) -> bool:
        """The service took or refused an event, so it is there; True when that closes the breaker."""
        closed = self.open
        self._failed = self._probes = 0
        if self._profiles:
            self._profiles = set()
        self.reach = Reach.UP
        return closed
