"""Kills something every second or two. The same seed chooses the same victims."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from random import Random
from typing import Final

from tests.crash.deployment import Deployment
from tests.crash.load import Load

BETWEEN: Final = (1.0, 2.0)  # seconds between kills
DOWN: Final = (0.0, 0.5)  # seconds a role stays down
BLOWS: Final = 0.4  # of what happens, while one is due
AMBUSH: Final = 1.0  # seconds to wait for the collector's next answer

Blow = Callable[[], Awaitable[None]]
"""Something worse than the death of a role; returns when it is over."""


class Storm:
    """Kills roles, and strikes each blow at most once in so many seconds."""

    def __init__(
        self, deployment: Deployment, load: Load, blows: Mapping[str, tuple[Blow, float]], *, random: Random
    ) -> None:
        self._deployment, self._load, self._blows, self._random = deployment, load, blows, random
        self._free_at = {name: time.monotonic() + rest / 2 for name, (_, rest) in blows.items()}
        self._recovering: dict[str, asyncio.Task[None]] = {}
        self.kills: list[str] = []

    async def rage(self, seconds: float) -> None:
        """Goes on for so long; everything is up again, or coming up, when it returns."""
        began = time.monotonic()
        while (now := time.monotonic()) < began + seconds:
            await asyncio.sleep(self._random.uniform(*BETWEEN))
            victim = self._victim(now)
            self.kills.append(f"{time.monotonic() - began:.1f} {victim}")
            if victim in self._blows:
                self._strike(victim)
            else:
                await self._kill(victim)
            self._deployment.tend()
            self._reap()
        await asyncio.gather(*self._recovering.values())

    def _victim(self, now: float) -> str:
        """Mostly somebody who is at work: it takes seconds to get there on a busy machine, and there is more to break."""
        due = [name for name, at in self._free_at.items() if at <= now and name not in self._recovering]
        roles = {name: role for name, role in self._deployment.roles.items() if not role.frozen}
        working = [name for name, role in roles.items() if role.at_work]
        return self._random.choice(
            [*roles, *working * 3, *due * 3, "collect", "collect"]
        )  # it is one, the others are two

    async def _kill(self, name: str) -> None:
        role = self._deployment.roles[name]
        if name == "collect":
            await self._ambush()
        await asyncio.to_thread(role.kill)
        await asyncio.sleep(self._random.uniform(*DOWN))
        await asyncio.to_thread(role.start)

    async def _ambush(self) -> None:
        """Kills the collector in the moment after a 200, when it has promised most."""
        sprung = asyncio.Event()

        def trap() -> None:
            self._deployment.roles["collect"].strike()
            sprung.set()

        self._load.trap = trap
        with suppress(TimeoutError):
            await asyncio.wait_for(sprung.wait(), AMBUSH)
        self._load.trap = None

    def _strike(self, name: str) -> None:
        strike, rest = self._blows[name]
        self._free_at[name] = time.monotonic() + rest
        self._recovering[name] = asyncio.ensure_future(strike())

    def _reap(self) -> None:
        for name, task in list(self._recovering.items()):
            if task.done():
                del self._recovering[name]
                task.result()
