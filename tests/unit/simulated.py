"""An event loop whose time is simulated: it passes only while nothing else can happen, and then at once. So a test of hours is
over in a moment, and comes out the same on a busy machine."""

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, Final, ParamSpec, TypeVar, TypeVarTuple

from pipeline.delivery.limits import World

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

BEGAN: Final = 1_800_000_000.0  # Unix seconds
_LONGEST: Final = 30.0  # real seconds that a thread may take


class _Clock:
    """Seconds since the present test began. Threads read it, too."""

    passed = 0.0


_clock: Final = _Clock()


class SimulatedLoop(asyncio.SelectorEventLoop):
    """While threads work, time stands still."""

    def __init__(self) -> None:
        _clock.passed = 0.0
        self.threads = 0
        super().__init__(_Idle(self))

    def time(self) -> float:
        return _clock.passed

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> "asyncio.Future[T]":
        future = super().run_in_executor(executor, func, *args)
        self.threads += 1
        future.add_done_callback(self._back)
        return future

    def _back(self, _: object) -> None:
        self.threads -= 1


class _Idle(selectors.DefaultSelector):
    """Where the loop waits for the next moment there is nothing to wait for."""

    def __init__(self, loop: SimulatedLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        if self._loop.threads or timeout is None:
            events = super().select(_LONGEST)
            if not events:
                raise TimeoutError("nothing will ever happen again")
            return events
        _clock.passed += timeout
        return []


def simulated(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Makes an asynchronous test one that runs in simulated time. Its fixtures are made outside of it."""

    @functools.wraps(test)
    def run(*args: P.args, **rest: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
            runner.run(test(*args, **rest))

    return run


def now() -> float:
    """Unix seconds."""
    return BEGAN + _clock.passed


async def sleep(seconds: float) -> None:
    """At least a millisecond: on a machine time passes while things are done, here it must be asked to."""
    await asyncio.sleep(max(seconds, 0.001))


def simulated_world(chance: Callable[[], float] = lambda: 1.0) -> World:
    """The engine's, in simulated time."""
    return World(now=now, sleep=sleep, chance=chance)
