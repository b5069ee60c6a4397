"""Hands events to a function of yours, which runs in a process of its own and does with them what it likes."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from destinations.contract import Action, Definition, Deliver, Env, Outcome, RawEvent, Row, Settings
from schemas.config import FunctionConfig
from schemas.events import TYPES


class FunctionSettings(FunctionConfig, Settings):
    """Which function, and how it is run."""


@asynccontextmanager
async def connect(settings: FunctionSettings, env: Env) -> AsyncIterator[Deliver]:
    """Starts the function's process. Unavailable when its file cannot be loaded."""
    async with env.functions(settings) as deliver:
        yield deliver


async def check(deliver: Deliver) -> None:
    """That its file could be loaded is all that can be known without an event."""


async def call_handlers(deliver: Deliver, batch: Sequence[RawEvent]) -> Sequence[Outcome]:
    """on_batch where the function has it, else the handler of each event's type."""
    return await deliver(batch)


def preview(settings: FunctionSettings, batch: Sequence[RawEvent]) -> Sequence[Row]:
    """What the function would be handed. What it does with that cannot be known without doing it."""
    return [Row(f"function {settings.name}", event) for event in batch]


definition: Final[Definition[FunctionSettings, Deliver]] = Definition(
    name="function",
    description="Hands events to a function of yours, written in Python.",
    settings=FunctionSettings,
    connect=connect,
    check=check,
    preview=preview,
    actions=(
        Action(
            name="call_handlers",
            payload=None,
            types=TYPES,
            max_batch=100,
            deliver=call_handlers,
            concurrency=4,
        ),
    ),
)
