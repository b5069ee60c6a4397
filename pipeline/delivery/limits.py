"""What a destination is to the engine, and the bounds it works within."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import random as uniform
from time import time
from typing import TYPE_CHECKING, Any

from destinations.contract import Definition, Settings
from destinations.guard import Outbound
from destinations.http.client import session
from pipeline.functions.installed import Functions
from schemas.config import (
    RETRY_HOURS,
    DestinationFilter,
    DestinationLimits,
    FilterConfig,
    FunctionConfig,
    MappingConfig,
)

if TYPE_CHECKING:
    from destinations.http.client import Client


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A configured destination. `sources` None: every source is connected."""

    name: str
    definition: Definition[Any, Any]
    settings: Settings
    sources: frozenset[str] | None = None
    filter: FilterConfig = field(default_factory=lambda: FilterConfig(types=None, events=None, where=None))
    filters: Sequence[DestinationFilter] = ()
    consent: Sequence[str] = ()
    function: FunctionConfig | None = None
    mappings: Sequence[MappingConfig] | None = None
    presets: bool | Sequence[str] | None = None  # with both None: what the definition ships
    limits: DestinationLimits | None = None  # what it leaves out is as the definition has it

    @property
    def group(self) -> str:
        """Its consumer group on `resolved`."""
        return f"destination.{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one destination in one process. Seconds, unless named otherwise."""

    attempt: float = 30.0  # the longest a call of `deliver` or `check` may take
    age: float = RETRY_HOURS * 3_600  # an event that fails later than this after its first attempt is dead
    backoff: float = 2.0  # doubles with each attempt
    longest_backoff: float = 1_200.0
    longest_asked: float = 3_600.0  # of what a service asks us to wait
    faults: int = 3  # attempts that may end in an unknown exception before the event is dead
    outstanding: int = 10_000  # events listed as held or waiting for a retry; beyond it nothing new is read
    outstanding_down: int = 1_000  # the same while the service is down: the backlog is to stay in the log
    patience: float = 5.0  # how long the position waits for an attempt before its events are listed
    grace: float = 10.0  # for attempts in flight when asked to stop
    window: float = 60.0  # of which the requests are counted that failed
    share: float = 0.5  # more of them than this part mean that the service is down
    requests: int = 20  # of that many at least
    failures: int = 5  # requests failed in a row, over as many profiles, that mean so too
    silence: float = 10.0  # after that long without an answer
    rest: float = 30.0  # before a service that is down is probed; doubles
    longest_rest: float = 600.0
    probe: float = 1.0  # between tries to start a destination, and the first one of rejected credentials; doubles
    longest_probe: float = 60.0
    longest_pause: float = 300.0  # between probes of rejected credentials
    records: int = 2_000  # read at once, at least
    remember: float = 30 * 86_400.0  # how long the path of a delivered or filtered event can be told
    fresh: float = 3_600.0  # how long each commit keeps a row of its own; later they are joined by the minute
    look: float = 1.0  # between looks for dead letters that were put back, and for replays
    ask: float = 0.1  # between questions how far other processes are, while something here waits for that
    tidy: float = 600.0  # between removals of what need not be remembered


def bounded(limits: Limits, destination: Destination) -> Limits:
    """The same with what the destination's configuration says of it, else its definition."""
    hours = (destination.limits and destination.limits.retry_hours) or destination.definition.limits.retry_hours
    return limits if hours is None else replace(limits, age=hours * 3_600)


def rate_of(destination: Destination) -> float | None:
    """Most events per second, of all processes together; None: as many as the service takes."""
    wanted = destination.limits and destination.limits.events_per_second
    return wanted or destination.definition.limits.events_per_second


_public = partial(session, Outbound())
_none = Functions(folder=Path("functions"))


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Time, chance and the network. `now` is Unix time in seconds; `chance` is uniform in [0, 1); `http` opens the session of
    a destination; `functions` are the customer's."""

    now: Callable[[], float] = time
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[], float] = uniform
    http: "Callable[[], Client]" = _public
    functions: Functions = _none
