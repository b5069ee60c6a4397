"""What is true of a source beyond its write keys: whether it takes events, from which pages, and how many."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Final

from schemas.errors import Refused
from schemas.reasons import Reason

LONGEST_WAIT: Final = 300  # seconds; SDKs cut longer ones down to it
BURST: Final = 10  # seconds' worth of events that a source may send at once after a pause


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """`origins` are those of pages that may send, None for any; `events_per_second` on average, None without limit;
    `require_oauth`: a write key alone opens nothing."""

    enabled: bool = True
    require_oauth: bool = False
    origins: frozenset[str] | None = None
    events_per_second: float | None = None


class RateLimited(Refused):
    """The source has sent too much; try again after `after` seconds."""

    def __init__(self, source: str, after: float) -> None:
        message = f"source {source} sends more events than its events_per_second; send again in {after:.0f} seconds"
        super().__init__("too_many_requests", message, status=429)
        self.after = after


def unknown_source() -> Refused:
    """For a request that names no source, or one that is not there."""
    message = (
        "the write key is missing or unknown: send the key of a configured source as the user of HTTP Basic, or as writeKey in "
        "the body"
    )
    return Refused(Reason.UNKNOWN_SOURCE, message)


def token_required(source: str) -> Refused:
    """400, which every SDK takes for final; some send again for ever after a 401."""
    message = (
        f"source {source} takes events by OAuth only: get a token at /token with the key of one of its clients, and send it "
        "as Authorization: Bearer"
    )
    return Refused("oauth_required", message)


class Gates:
    """Applies the policies of the sources that have any. `clock` gives seconds that never go back."""

    def __init__(self, policies: Mapping[str, Policy], clock: Callable[[], float] = time.monotonic) -> None:
        self.disabled = frozenset(name for name, policy in policies.items() if not policy.enabled)
        self.token_only = frozenset(name for name, policy in policies.items() if policy.require_oauth)
        self._origins = {
            name: frozenset(origin.lower().encode() for origin in policy.origins)
            for name, policy in policies.items()
            if policy.origins is not None
        }
        self._allowances = {
            name: _Allowance(name, policy.events_per_second, clock)
            for name, policy in policies.items()
            if policy.events_per_second is not None
        }

    def __bool__(self) -> bool:
        return bool(self._origins or self._allowances or self.token_only)

    def enter(self, source: str, origin: bytes | None) -> None:
        """Before the body is read. Raises Refused when the page may not send, or the source has sent too much."""
        allowed = self._origins.get(source)
        if allowed is not None and origin is not None and origin.lower() not in allowed:
            message = (
                f"source {source} takes no events from pages of this origin; its origins are named in millrace.yaml"
            )
            raise Refused("origin_not_allowed", message)
        if (allowance := self._allowances.get(source)) is not None:
            allowance.check()

    def enter_by_key(self, source: str, origin: bytes | None) -> None:
        """The same for a source that nothing but a write key in the body names."""
        if source in self.token_only:
            raise token_required(source)
        self.enter(source, origin)

    def pass_events(self, source: str, count: int) -> None:
        """Counts events about to be taken; called after `enter`."""
        if (allowance := self._allowances.get(source)) is not None:
            allowance.spend(count)


class _Allowance:
    """A bucket that fills steadily. One request may overdraw it, so that no batch is too large for any rate; the next ones
    wait until it is made good."""

    def __init__(self, source: str, rate: float, clock: Callable[[], float]) -> None:
        self._source, self._rate, self._clock = source, rate, clock
        self._most = max(1.0, rate * BURST)
        self._left = self._most
        self._at = clock()

    def check(self) -> None:
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left <= 0:
            raise RateLimited(self._source, min(LONGEST_WAIT, ceil((1 - self._left) / self._rate)))

    def spend(self, count: int) -> None:
        self._left -= count
