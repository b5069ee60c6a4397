"""When to try again, and when to stop trying: pure decisions over times that are passed in."""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

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


class Breaker:
    """Tells an outage of the service from the trouble of single events, by what became of requests.

    It opens when more than half of a minute's requests failed, of twenty at least (source: delivery, rate limiting per destination).
    That says nothing yet of a service that hangs, whose requests are few, or is gone after a busy minute in which all went
    well. So it opens, too, when of `failures` requests and more in a row none was answered, the first of them sent `silence`
    seconds ago, or the service asks to be left alone for as long as an open breaker would leave it. Either way the failures are of at least
    as many profiles: a few events that fail for ever never stop the others.

    While it is open, one probe at a time is allowed, at growing intervals, and only probes are judged: what was sent before
    it opened says nothing of what is now."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._last = Window(limits.window, limits.failures)
        self._failed = 0  # in a row
        self._profiles: set[object] = set()
        self._since = 0.0  # when the first of them was sent
        self._opened_at = 0.0
        self._probes = 0
        self.open = False
        self.probe_at = 0.0

    def failed(
        self, profiles: set[object], sent: float, now: float, asked: float | None, *, too_much: bool = False
    ) -> bool:
        """Whatever was in a request sent at `sent` has to come again; True when that opens the breaker. `too_much`: because the service
        takes less for now, which is no outage unless it takes nothing at all."""
        if self.open:
            if sent > self._opened_at:
                self._probes += 1
                self._wait(now, asked)
            return False
        self._last.note(now, () if too_much else profiles)
        if self._failed == 0:
            self._since = sent
        self._failed += 1
        _widen(self._profiles, profiles, self._limits.failures)
        sent_away = too_much and asked is not None and asked >= self._limits.rest
        if not self._is_out(now, sent_away):
            return False
        self.open = True
        self._opened_at = now
        self._wait(now, asked)
        return True

    def answered(self, sent: float, now: float) -> bool:
        """The service took or refused an event of a request sent at `sent`, so it is there; True when that closes the breaker."""
        if self.open:
            if sent <= self._opened_at:
                return False
            self.open, self._probes = False, 0
            self._last = Window(self._limits.window, self._limits.failures)
            self._begin_row()
            return True
        self._last.note(now)
        if self._failed:
            self._begin_row()
        return False

    def _is_out(self, now: float, sent_away: bool) -> bool:
        limits, last = self._limits, self._last.sums(now)
        enough = limits.failures
        if last.requests >= limits.requests and last.failed > limits.share * last.requests and last.profiles >= enough:
            return True
        silent = self._failed >= enough and len(self._profiles) >= enough
        return silent and (sent_away or now - self._since >= limits.silence)

    def _begin_row(self) -> None:
        self._failed, self._profiles = 0, set()

    def _wait(self, now: float, asked: float | None) -> None:
        wait = ceiling(self._probes, self._limits.rest, self._limits.longest_rest)
        self.probe_at = now + max(wait, min(asked or 0.0, self._limits.longest_asked))


class Sums(NamedTuple):
    """Of the requests of a while: how many, how many failed, and over how many profiles, as far as those are told apart."""

    requests: int
    failed: int
    profiles: int


class Window:
    """Counts the requests of the last `seconds`, second by second; of the profiles of failed ones it tells `most` apart."""

    def __init__(self, seconds: float, most: int) -> None:
        self._seconds = seconds
        self._most = most
        self._counts: deque[_Second] = deque(maxlen=max(1, int(seconds)))

    def note(self, now: float, failed: Collection[object] = ()) -> None:
        """One request more, with the profiles it failed over."""
        at = int(now)
        last = self._counts[-1] if self._counts else None
        if last is None or last.at != at:
            last = _Second(at)
            self._counts.append(last)
        last.requests += 1
        if failed:
            last.failed += 1
            _widen(last.profiles, failed, self._most)

    def sums(self, now: float) -> Sums:
        """Those of the last `seconds`."""
        counts = [one for one in self._counts if one.at > now - self._seconds]
        profiles = set().union(*(one.profiles for one in counts))
        return Sums(sum(one.requests for one in counts), sum(one.failed for one in counts), len(profiles))


@dataclass(slots=True)
class _Second:
    at: int
    requests: int = 0
    failed: int = 0
    profiles: set[object] = field(default_factory=set)


def _widen(profiles: set[object], more: Collection[object], most: int) -> None:
    """Adds profiles to those that are told apart, as long as more are to be."""
    if len(profiles) < most:
        profiles.update(islice(more, most))
