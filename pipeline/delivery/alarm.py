"""One timer: it wakes whoever sleeps at the earliest moment asked for."""

import asyncio
from collections.abc import Callable

from pipeline.delivery.limits import World


class Alarm:
    """Calls `wake` at the time set last."""

    def __init__(self, world: World, wake: Callable[[], None]) -> None:
        self._world = world
        self._wake = wake
        self._at = 0.0
        self._task: asyncio.Task[None] | None = None

    def set(self, at: float | None) -> None:
        """Rings at `at` (Unix seconds), or not at all. An alarm that rings earlier is kept: whoever wakes sets it anew."""
        if self._task is not None:
            if at is not None and self._at <= at and not self._task.done():
                return
            self._task.cancel()
            self._task = None
        if at is not None:
            self._at = at
            self._task = asyncio.ensure_future(self._ring(at))

    async def _ring(self, at: float) -> None:
        await self._world.sleep(max(0.0, at - self._world.now()))
        self._wake()
