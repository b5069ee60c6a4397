"""Until when a call of `deliver` has time: what makes several requests in a row ends with what is done before it is cut off.

The engine sets it for each call; outside of one there is no bound.
"""

import asyncio
from contextvars import ContextVar
from math import inf

_until: ContextVar[float] = ContextVar("deadline", default=inf)


def ends_at(when: float) -> None:
    """The call that this task is about to make is cut off at `when`, by the loop's clock."""
    _until.set(when)


def time_left() -> float:
    """Seconds until the present call is cut off."""
    return _until.get() - asyncio.get_running_loop().time()
