"""What an outcome makes of an event: delivered, dead, or to be tried again, and when."""

from collections.abc import Callable, Iterable
from typing import Final

from destinations.contract import Delivered, Filtered, Outcome, Rejected
from pipeline.delivery.attempt import Attempt
from pipeline.delivery.done import without_rejections
from pipeline.delivery.lanes import DELIVERED, Item, State
from pipeline.delivery.limits import Limits
from pipeline.delivery.retry import delay

_SHRINK: Final = 8  # a chunk that broke is cut in so many


def settle(
    item: Item, outcome: Outcome, made: Attempt, now: float, chance: Callable[[], float], limits: Limits
) -> None:
    """Brings an event up to date with what came of an attempt at it. Bytes are kept only where they are needed yet."""
    item.attempts += 1
    item.first_at = item.first_at or now
    if isinstance(outcome, Delivered):
        item.state, item.reason, item.ended_at = State.DELIVERED, "", now
        item.let_go()
        return
    if isinstance(outcome, Filtered):
        item.state, item.reason, item.ended_at = State.FILTERED, outcome.reason, now
    elif isinstance(outcome, Rejected) or _is_hopeless(item, made, now, limits):
        item.state, item.reason, item.ended_at = State.DEAD, outcome.reason, now
    else:
        item.state, item.reason = State.RETRY, outcome.reason
        item.next_at = now + delay(item.attempts, outcome.after, chance(), limits)
    if item.state is State.RETRY and not item.listed:
        return  # it may go again from memory
    if item.state is State.DEAD:
        item.resolved = item.payload = None
        item.done = without_rejections(item.done)
    else:
        item.let_go()


def settle_delivered(items: Iterable[Item]) -> None:
    """The same for new events that were all delivered, as mostly: nobody asks any more when and how."""
    for item in items:
        item.state = DELIVERED
        item.value = item.payload = item.resolved = None


def _is_hopeless(item: Item, made: Attempt, now: float, limits: Limits) -> bool:
    """Too old, or broken alone too often. An event whose chunk broke goes in smaller ones from then on, so that it can be
    told from its neighbours."""
    if made.broken and len(made.items) > 1:
        item.most = max(1, len(made.items) // _SHRINK)
    elif made.faulty:
        item.faults += 1
    return item.faults >= limits.faults or now - item.first_at >= limits.age
