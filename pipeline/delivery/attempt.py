"""One attempt at a chunk of events: payloads in, one answer per event out, whatever the destination does."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from destinations.contract import Action, Delivered, Filtered, Outcome, Payload, Rejected, Retry
from pipeline.delivery.lanes import Item, Lane
from pipeline.delivery.limits import Destination
from pipeline.delivery.mapping import mapping
from schemas.errors import CredentialsRejected
from schemas.events import Resolved, materialize

_OUTCOMES: Final = frozenset(one.__name__ for one in (Delivered, Retry, Rejected, Filtered))


@dataclass(slots=True)
class Attempt:
    """What came of a chunk. An outcome of None: nothing was tried, the event goes again as if nothing had been.

    `broken`: the destination hung, raised or miscounted, so that nothing is known of single events; `error` is the
    exception if there was one. `credentials`: why the service refused ours."""

    items: Sequence[Item]
    outcomes: list[Outcome | None] = field(default_factory=list)
    answered: bool = False  # the service took or refused at least one event
    retried: bool = False  # it wants at least one again
    broken: bool = False
    faulty: bool = False  # broken by a bug, not by a time-out
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


async def attempt(destination: Destination, client: Any, items: Sequence[Item], timeout: float) -> Attempt:
    """Delivers a chunk whose events are decoded. Calls of `deliver` are made one after another, one per action and
    `max_batch`; after one that was refused or broke, no further one is made."""
    made = Attempt(items, [None] * len(items))
    actions = destination.definition.actions
    blocked: set[Lane] = set()
    for action, indices in _calls(actions, items):
        going, payloads = _payloads(action, made, [index for index in indices if items[index].lane not in blocked])
        if action is None or not payloads:
            continue
        await _call(action, client, made, going, payloads, timeout)
        if made.broken or made.credentials is not None:
            break
        blocked.update(items[index].lane for index in going if isinstance(made.outcomes[index], Retry))
    return made


def action_of(actions: Sequence[Action[Any, Any]], kind: str) -> Action[Any, Any] | None:
    """The action that takes events of this type: the first that names it."""
    return next((action for action in actions if kind in action.types), None)


def _calls(
    actions: Sequence[Action[Any, Any]], items: Sequence[Item]
) -> Iterator[tuple[Action[Any, Any] | None, Sequence[int]]]:
    """Consecutive events of one action, at most its `max_batch` at a time, as indices."""
    if len(actions) == 1 and len(items) <= actions[0].max_batch and all(_taken(actions[0], one) for one in items):
        yield actions[0], range(len(items))
        return
    start = 0
    current = action_of(actions, _event(items[0]).event.type)
    for index, item in enumerate(items):
        action = action_of(actions, _event(item).event.type)
        if action is not current or (action is not None and index - start == action.max_batch):
            yield current, range(start, index)
            start, current = index, action
    yield current, range(start, len(items))


def _taken(action: Action[Any, Any], item: Item) -> bool:
    return _event(item).event.type in action.types


def _event(item: Item) -> Resolved:
    assert item.resolved is not None, "an event in flight is decoded"
    return item.resolved


def _payloads(action: Action[Any, Any] | None, made: Attempt, indices: Sequence[int]) -> tuple[list[int], list[Any]]:
    """The payloads that can be made and the indices of their events; the others are rejected."""
    going: list[int] = []
    payloads: list[Any] = []
    if action is None:  # listed under a configuration that took this type
        for index in indices:
            made.outcomes[index] = Rejected("UNSUPPORTED_EVENT_TYPE")
        return going, payloads
    build = None if action.payload is None else mapping(cast(type[Payload], action.payload))
    for index in indices:
        try:
            event = materialize(_event(made.items[index]))
            payloads.append(event if build is None else build(event))
        except ValueError as error:
            made.outcomes[index] = Rejected(str(error))
        else:
            going.append(index)
    return going, payloads


async def _call(
    action: Action[Any, Any],
    client: Any,
    made: Attempt,
    going: Sequence[int],
    payloads: Sequence[Any],
    timeout: float,
) -> None:
    try:
        async with asyncio.timeout(timeout) as limit:
            outcomes = await action.deliver(client, payloads)
        if len(outcomes) != len(payloads):
            raise ValueError(f"{len(outcomes)} outcomes for {len(payloads)} events")
        if strange := {type(one).__name__ for one in outcomes} - _OUTCOMES:
            raise TypeError(f"outcomes of type {', '.join(sorted(strange))}")
    except CredentialsRejected as error:
        made.credentials = str(error)
        return
    except Exception as error:  # whatever a destination raises concerns its own events only
        made.broken = True
        made.faulty = not (isinstance(error, TimeoutError) and limit.expired())
        made.error = error if made.faulty else None
        outcomes = [Retry(type(error).__name__ if made.faulty else "timeout")] * len(payloads)
    for index, outcome in zip(going, outcomes, strict=True):
        made.outcomes[index] = outcome
        if isinstance(outcome, Retry):
            made.retried = True
        else:
            made.answered = True
