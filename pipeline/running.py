"""How a role's loop runs: until it is asked to stop, and steadily through outages of what it depends on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import structlog

from schemas.errors import Unavailable

log = structlog.get_logger()
T = TypeVar("T")

_LONGEST_WAIT = 10.0


async def until(stop: asyncio.Event, iterator: AsyncIterator[T]) -> AsyncIterator[T]:
    """Yields what `iterator` yields, and ends when `stop` is set, also in the middle of a wait."""
    stopped = asyncio.ensure_future(stop.wait())
    try:
        while not stop.is_set():
            following = asyncio.ensure_future(anext(iterator, None))
            try:
                await asyncio.wait((following, stopped), return_when=asyncio.FIRST_COMPLETED)
            finally:
                if unfinished := not following.done():
                    following.cancel()
                    await asyncio.wait((following,))
            if unfinished:
                return
            one = following.result()
            if one is None:
                return
            yield one
    finally:
        stopped.cancel()


async def steadily(action: Callable[[], Awaitable[T]], stop: asyncio.Event, doing: str) -> T:
    """The result of `action`, tried again for as long as it is Unavailable; one line when trouble starts and one when it ends.
    Raises Unavailable once `stop` is set."""
    failures = 0
    while True:
        try:
            result = await action()
        except Unavailable as error:
            if stop.is_set():
                raise
            if failures == 0:
                log.warning("waiting", doing=doing, error=str(error))
            failures += 1
            delay = min(max(error.after, 0.05 * 2 ** min(failures, 8)), _LONGEST_WAIT)
            await asyncio.wait((asyncio.ensure_future(stop.wait()),), timeout=delay)
        else:
            if failures:
                log.info("going on", doing=doing, failures=failures)
            return result


@asynccontextmanager
async def one_behind() -> AsyncIterator[Callable[[Callable[[], Coroutine[Any, Any, None]]], Awaitable[None]]]:
    """Lets a piece of work go on beside what follows it: the next one begins when it has ended, and so ends the block. Its
    error ends the block at once, and is raised as it is."""
    last: asyncio.Task[None] | None = None
    try:
        async with asyncio.TaskGroup() as group:

            async def begin(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
                nonlocal last
                if last is not None:
                    await last
                last = group.create_task(work())

            yield begin
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def ahead(iterator: AsyncIterator[T]) -> AsyncIterator[T]:
    """What `iterator` yields, each fetched while the one before it is worked on."""
    following = asyncio.ensure_future(anext(iterator, None))
    try:
        while (one := await following) is not None:
            following = asyncio.ensure_future(anext(iterator, None))
            yield one
    finally:
        if not following.done():
            following.cancel()
            await asyncio.wait((following,))
