"""One attempt at a chunk of events: mappings, payloads, calls; one answer per event out, whatever the destination does.

An event that triggers several mappings is done when all of them are. What of it is done already is not done again.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from destinations.contract import DELIVERED, UNTRIED, Delivered, EncodedEvent, Filtered, Outcome, Rejected, Retry
from destinations.deadline import ends_at
from pipeline.delivery.batching import encoded
from pipeline.delivery.decide import UNSUPPORTED_EVENT_TYPE
from pipeline.delivery.done import Done
from pipeline.delivery.insert import through
from pipeline.delivery.lanes import Item, Lane
from pipeline.delivery.mapping import NO_MATCHING_MAPPING, Route, Routing
from pipeline.delivery.shared import passing, whole
from pipeline.functions.installed import Insert
from schemas.errors import CredentialsRejected
from schemas.events import Resolved

_OUTCOMES: Final = frozenset(one.__name__ for one in (Delivered, Retry, Rejected, Filtered))


@dataclass(slots=True)
class Attempt:
    """What came of a chunk. An outcome of None: nothing was tried, the event goes again as if nothing had been.

    `broken`: the destination hung, raised or miscounted, so that nothing is known of single events; `error` is the
    exception if there was one. `credentials`: why the service refused ours. `done`: of events with several mappings only."""

    items: Sequence[Item]
    outcomes: list[Outcome | None] = field(default_factory=list)
    done: dict[Item, Done] = field(default_factory=dict)
    answered: bool = False  # the service took or refused at least one event
    retried: bool = False  # it wants at least one again
    broken: bool = False
    faulty: bool = False  # broken by a bug, not by a time-out
    interrupted: bool = False  # a call had no time for the last of its events
    error: Exception | None = None
    credentials: str | None = None

    @property
    def failed(self) -> bool:
        """Whatever was tried has to come again: the service may be down."""
        return self.retried and not self.answered

    @property
    def asked(self) -> float | None:
        """The longest wait that the service asked for."""
        waits = [one.after for one in self.outcomes if isinstance(one, Retry) and one.after is not None]
        return max(waits, default=None)


class _Going:
    """An event under way: which mappings it triggers, and what became of them."""

    __slots__ = ("index", "item", "outcomes", "resolved", "routes")

    def __init__(self, index: int, item: Item, resolved: Resolved, routes: Sequence[Route]) -> None:
        self.index = index
        self.item = item
        self.resolved = resolved  # as a function left it
        self.routes = routes
        self.outcomes: dict[str, Outcome] = {}


class _Job:
    """A payload to deliver."""

    __slots__ = ("going", "kind", "payload", "route", "size")

    def __init__(self, going: _Going, route: Route, payload: Any) -> None:
        self.going = going
        self.route = route
        self.payload = payload
        self.size = route.batching.size(payload)
        self.kind = route.batching.kind(payload)


async def attempt(
    routing: Routing, client: Any, items: Sequence[Item], timeout: float, insert: Insert | None = None
) -> Attempt:
    """Delivers a chunk whose events are decoded. Triggers see events as they came, payloads are made of what `insert` leaves.

    Calls of `deliver` are made one after another, one per mapping and as many as it takes at once, each with what is next of its
    profiles; after one that was refused or broke, no further one is made."""
    made = Attempt(items, [None] * len(items))
    only = routing.only
    if only is not None and insert is None and len(items) <= only.batching.most:
        await _straight(only, routing.by_type, client, made, timeout)
        return made
    going = list(_chosen(routing, items, made))
    if insert is not None and going:
        going = await _inserted(insert, routing, going, made)
    lanes = _jobs(going, made)
    while lanes:
        route, jobs = _next(lanes)
        outcomes = await _call(route, client, made, [one.payload for one in jobs], timeout)
        for job, outcome in zip(jobs, outcomes, strict=False):
            job.going.outcomes[route.name] = outcome
        if made.broken or made.interrupted or made.credentials is not None:
            break
        lanes = _left(lanes, jobs)
    for one in going:
        _conclude(one, made, named=routing.triggered)
    return made


def early(routing: Routing, insert: Insert | None) -> Callable[[Resolved], EncodedEvent | None] | None:
    """What makes the payload of an event as soon as that is to go, while it is at hand: where every event goes by one mapping, as JSON,
    so that nothing else of it is wanted later. It gives None for one that an attempt will reject."""
    only = routing.only
    if only is None or insert is not None or only.build is not None or not only.action.encoded:
        return None

    def payload(resolved: Resolved) -> EncodedEvent | None:
        try:
            return encoded(passing(resolved))
        except ValueError:
            return None

    return payload


async def _straight(route: Route, types: Collection[str], client: Any, made: Attempt, timeout: float) -> None:
    """One call of the only mapping that there is: what the rest of this module comes to for most chunks, without books of what waits
    for what."""
    payloads: list[Any] = []
    places: list[int] = []
    for index, item in enumerate(made.items):
        payload: Any = item.payload
        if payload is None:
            resolved = _event(item)
            if resolved.event.type not in types:
                made.outcomes[index] = _untaken()
                continue
            if route.name in item.done:  # by a mapping that is no more
                made.outcomes[index] = item.done[route.name]
                continue
            try:
                payload = route.payload(passing(resolved))
            except ValueError as error:
                made.outcomes[index] = Rejected(str(error))
                continue
        payloads.append(payload)
        places.append(index)
    if payloads:
        for index, outcome in zip(places, await _call(route, client, made, payloads, timeout), strict=False):
            made.outcomes[index] = outcome


def _event(item: Item) -> Resolved:
    event = item.event
    assert event is not None, "an event in flight has its bytes"
    return event


# ── Mappings ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _chosen(routing: Routing, items: Sequence[Item], made: Attempt) -> Iterator[_Going]:
    for index, item in enumerate(items):
        resolved = _event(item)
        try:
            routes = routing.triggered_by(resolved) if routing.triggered else routing.of_type(resolved.event.type)
        except ValueError as error:
            made.outcomes[index] = Rejected(str(error))
            continue
        if routes:
            yield _Going(index, item, resolved, routes)
        elif routing.triggered:
            done = list(item.done.items())  # by mappings that are no more
            made.outcomes[index] = _together(done) if done else Filtered(NO_MATCHING_MAPPING)
        else:
            made.outcomes[index] = _untaken()


async def _inserted(insert: Insert, routing: Routing, going: Sequence[_Going], made: Attempt) -> list[_Going]:
    """The events that go on, as the function left them."""
    by_item = {one.item: one for one in going}
    inserted = await through(insert, list(by_item))
    for item, outcome in inserted.outcomes.items():
        made.outcomes[by_item[item].index] = outcome
    left = []
    for item, shown in zip(inserted.going, inserted.shown, strict=True):
        one = by_item[item]
        assert shown.resolved is not None, "what goes on is there"
        one.resolved = shown.resolved
        if not routing.triggered:
            one.routes = routing.of_type(shown.resolved.event.type)
        if one.routes:
            left.append(one)
        else:
            made.outcomes[one.index] = _untaken()
    return left


def _untaken() -> Outcome:
    """Of an event that was listed under a configuration that took its type, or that a function gave another."""
    return Rejected(UNSUPPORTED_EVENT_TYPE)


def _jobs(going: Sequence[_Going], made: Attempt) -> list[deque[_Job]]:
    """The payloads to deliver, by profile and in order. One that cannot be made is rejected."""
    lanes: dict[Lane, deque[_Job]] = {}
    for one in going:
        try:
            event = whole(one.resolved)
        except ValueError as error:
            one.outcomes |= {route.name: Rejected(str(error)) for route in one.routes}
            continue
        for route in one.routes:
            if route.name in one.item.done:
                continue
            try:
                job = _Job(one, route, route.payload(event))
            except ValueError as error:
                one.outcomes[route.name] = Rejected(str(error))
                continue
            lane = lanes.get(one.item.lane)
            if lane is None:
                lane = lanes[one.item.lane] = deque()
            lane.append(job)
    return list(lanes.values())


# ── Calls ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _next(lanes: Sequence[deque[_Job]]) -> tuple[Route, list[_Job]]:
    """The mapping that most profiles wait for, and what it gets: of each profile what comes next, in order, if that is its and may
    go with the rest."""
    route = lanes[0][0].route
    if len(lanes) > 1:
        heads = {lane[0].route.name: lane[0].route for lane in lanes}
        if len(heads) > 1:
            count = Counter(lane[0].route.name for lane in lanes)
            route = heads[max(heads, key=lambda name: count[name])]
    most, max_bytes, several = route.batching.most, route.batching.max_bytes, route.action.atomic
    jobs: list[_Job] = []
    size = 0
    for lane in lanes:
        while lane and lane[0].route is route and (not jobs or lane[0].kind == jobs[0].kind):
            size += lane[0].size
            if jobs and max_bytes is not None and size > max_bytes:
                return route, jobs
            jobs.append(lane.popleft())
            if len(jobs) == most:
                return route, jobs
            if not several:
                break
    return route, jobs


def _left(lanes: Sequence[deque[_Job]], jobs: Sequence[_Job]) -> list[deque[_Job]]:
    """What is still to be delivered: nothing of a profile whose payload has to come again."""
    waiting = {one.going.item.lane for one in jobs if isinstance(one.going.outcomes.get(one.route.name), Retry)}
    return [lane for lane in lanes if lane and lane[0].going.item.lane not in waiting]


async def _call(route: Route, client: Any, made: Attempt, payloads: Sequence[Any], timeout: float) -> Sequence[Outcome]:
    """One outcome per payload; none where the credentials were rejected, nor for what the call had no time for."""
    try:
        async with asyncio.timeout(timeout) as limit:
            ends_at(asyncio.get_running_loop().time() + timeout)
            outcomes = await route.action.deliver(client, payloads)
        if len(outcomes) != len(payloads):
            raise ValueError(f"{len(outcomes)} outcomes for {len(payloads)} events")
        if strange := {kind.__name__ for kind in set(map(type, outcomes))} - _OUTCOMES:
            raise TypeError(f"outcomes of type {', '.join(sorted(strange))}")
    except CredentialsRejected as error:
        made.credentials = str(error)
        return ()
    except Exception as error:  # whatever a destination raises concerns its own events only
        made.broken = True
        made.faulty = not (isinstance(error, TimeoutError) and limit.expired())
        made.error = error if made.faulty else None
        outcomes = [Retry(type(error).__name__ if made.faulty else "timeout")] * len(payloads)
    if outcomes and outcomes[-1] is UNTRIED:
        made.interrupted = True
        outcomes = outcomes[: next(index for index, one in enumerate(outcomes) if one is UNTRIED)]
    kinds = set(map(type, outcomes))
    made.retried = made.retried or Retry in kinds
    made.answered = made.answered or bool(kinds - {Retry})
    return outcomes


# ── Outcomes ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _conclude(one: _Going, made: Attempt, *, named: bool) -> None:
    """From what became of an event's mappings to what becomes of the event. `named`: reasons name the mapping."""
    if not named:
        (route,) = one.routes
        made.outcomes[one.index] = one.outcomes.get(route.name, one.item.done.get(route.name))
        return
    done = dict(one.item.done)
    waits: list[tuple[str, Retry]] = []
    for name, outcome in one.outcomes.items():
        if isinstance(outcome, Retry):
            waits.append((name, outcome))
        else:
            done[name] = outcome
    if waits:
        name, wait = waits[0]
        outcome = Retry(_named(wait.reason, name), wait.after)
    elif all(route.name in done for route in one.routes):
        outcome = _together([(route.name, done[route.name]) for route in one.routes])
    elif one.outcomes:  # the others were not tried: some other call was refused, or broke
        outcome = Retry(made.credentials or "interrupted", after=0.0)
    else:
        return
    if len(one.routes) > 1:
        made.done[one.item] = done
    made.outcomes[one.index] = outcome


def _together(all_: Sequence[tuple[str, Outcome]]) -> Outcome:
    rejected = [_named(one.reason, name) for name, one in all_ if isinstance(one, Rejected)]
    if rejected:
        return Rejected("; ".join(rejected))
    if any(isinstance(one, Delivered) for _, one in all_):
        return DELIVERED
    return all_[0][1]


def _named(reason: str, mapping: str) -> str:
    """Behind a colon, before which is what groups reasons."""
    return f"{reason}: mapping {mapping}"
