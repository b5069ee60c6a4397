"""What is wrong right now, from one look at the system and the looks before it. Pure.

Rates use two windows, as burn-rate alerts do: the long one says that it matters, the short one that it still goes on.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

MINUTE: Final = 60_000_000  # microseconds
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR
FEW: Final = 20  # outcomes; fewer say nothing about a rate
QUIET: Final = 100  # events in a day; a source with fewer comes and goes

Samples = Mapping[str, Sequence[tuple[int, int]]]
"""Counters over time: name -> (microseconds, value), oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """When a rule speaks; None: never. Rates and drops are fractions, `lag` is in microseconds, `dead_letters` per hour."""

    delivery_rate: float | None = 0.95
    volume_drop: float | None = 0.5
    lag: int | None = 10 * MINUTE
    dead_letters: int | None = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The system at one moment. `oldest` is when each destination's oldest undelivered event came in, where that is known;
    `off` is the sum that the books are off by, None while it cannot be counted."""

    at: int
    states: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # destination -> state, reason
    oldest: Mapping[str, int] = field(default_factory=dict)
    samples: Samples = field(default_factory=dict)
    off: int | None = 0


class Condition(NamedTuple):
    """Something that a rule looked at. `wrong` None: it cannot be told now, so nothing changes. It has to hold for `hold`
    before anybody is told, and to be gone for `calm` before all is well."""

    alert: str
    wrong: bool | None
    text: str
    remedy: str
    hold: int = 0
    calm: int = 5 * MINUTE


def conditions(look: Look, limits: Thresholds) -> Iterator[Condition]:
    """Every rule over every destination and source."""
    for name, (state, reason) in sorted(look.states.items()):
        yield _standing(name, state, reason)
        yield from _rate(name, look, limits.delivery_rate)
        yield from _dead(name, look, limits.dead_letters)
        yield from _lag(name, look, limits.lag)
    for counter in sorted(look.samples):
        if counter.startswith("accepted:"):
            yield from _volume(counter.removeprefix("accepted:"), look, limits.volume_drop)
    yield Condition(
        "books off",
        None if look.off is None else look.off != 0,
        f"the books are off by {look.off} events",
        "run `millrace balance`, and keep the logs of all roles: this is a fault of Millrace",
        hold=MINUTE,  # seen twice, so that no moment between two processes counts
    )


def _standing(name: str, state: str, reason: str) -> Condition:
    return Condition(
        f"destination {name} stopped",
        state in ("paused", "failed"),
        f"destination {name} is {state}: {reason}",
        f"mend what it says, then `millrace destinations check {name}`; nothing is lost meanwhile",
    )


def _rate(name: str, look: Look, least: float | None) -> Iterator[Condition]:
    if least is None:
        return
    hour, minutes = (_share(name, look, span) for span in (HOUR, 5 * MINUTE))
    if hour is None:
        return
    wrong = hour < least and (minutes is None or minutes < least)
    yield Condition(
        f"destination {name} delivery rate",
        wrong,
        f"destination {name} delivered {hour:.1%} of the last hour's events, below {least:.1%}",
        f"`millrace dead-letters list --destination {name}` groups them by cause",
    )


def _share(name: str, look: Look, span: int) -> float | None:
    delivered, dead = (seen(look.samples.get(f"{kind}:{name}", ()), look.at, span) for kind in ("delivered", "dead"))
    if delivered is None or dead is None or delivered + dead < FEW:
        return None
    return delivered / (delivered + dead)


def _dead(name: str, look: Look, most: int | None) -> Iterator[Condition]:
    dead = seen(look.samples.get(f"dead:{name}", ()), look.at, HOUR)
    if most is None or dead is None:
        return
    yield Condition(
        f"destination {name} dead letters",
        dead > most,
        f"destination {name} refused {dead} events for good in the last hour",
        f"`millrace dead-letters list --destination {name}` groups them by cause; `retry` sends them again",
        calm=HOUR,
    )


def _lag(name: str, look: Look, most: int | None) -> Iterator[Condition]:
    if most is None:
        return
    oldest = look.oldest.get(name)
    late = 0 if oldest is None else look.at - oldest
    yield Condition(
        f"destination {name} lag",
        late > most,
        f"destination {name} has events waiting for {late // MINUTE} minutes",
        f"`millrace destinations status {name}` says what it waits for",
        hold=MINUTE,
    )


def _volume(source: str, look: Look, most: float | None) -> Iterator[Condition]:
    if most is None:
        return
    samples = look.samples.get(f"accepted:{source}", ())
    today, both = (grown(samples, look.at, span) for span in (DAY, 2 * DAY))
    if today is None or both is None or both - today < QUIET:
        return
    before = both - today
    yield Condition(
        f"source {source} volume",
        today < before * (1 - most),
        f"source {source} sent {today} events in 24 hours, {before} in the 24 hours before",
        "look whether it still sends: `millrace tail`, and `millrace tail --refused` for what is turned away",
        calm=HOUR,
    )


def grown(samples: Sequence[tuple[int, int]], now: int, span: int) -> int | None:
    """By how much a counter grew in the last `span`; None when it has not been watched for that long."""
    start = bisect_right(samples, (now - span, 1 << 63)) - 1
    return None if start < 0 else samples[-1][1] - samples[start][1]


def seen(samples: Sequence[tuple[int, int]], now: int, span: int) -> int | None:
    """The same since it is watched, where that is not as long ago: an outage in the first hour is one. None when it is not watched."""
    start = max(0, bisect_right(samples, (now - span, 1 << 63)) - 1)
    return samples[-1][1] - samples[start][1] if samples else None
