"""What a courier lives on: a connection to its destination, and pauses that end when it is asked to stop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from destinations.contract import Env
from pipeline.delivery.insert import shaping
from pipeline.delivery.limits import Destination, World
from pipeline.functions.installed import Insert
from pipeline.language.rules import compile_rules


@asynccontextmanager
async def connected(destination: Destination, folder: str, world: World) -> AsyncIterator[tuple[Any, Insert | None]]:
    """The destination's client, and what events go through before they are mapped. Raises what `connect` raises, and
    Unavailable when a function cannot run."""
    functions = world.functions
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(world.http())
        env = Env(http=http, now=world.now, folder=folder, functions=functions.delivering)
        client = await stack.enter_async_context(destination.definition.connect(destination.settings, env))
        insert = None
        if destination.function is not None:
            insert = await stack.enter_async_context(functions.inserted(destination.function))
        yield client, shaping(compile_rules(None, destination.filters).shape, insert)


async def rest(seconds: float, stop: asyncio.Event, world: World) -> None:
    """Waits so long, or until `stop` is set."""
    waits = [asyncio.ensure_future(world.sleep(seconds)), asyncio.ensure_future(stop.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in waits:
            one.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
