"""Events that commands try things on: from a file, or recorded ones as destinations get them."""

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, TextIO

import click

from millrace.cli.common import environment

if TYPE_CHECKING:
    from schemas.events import Resolved


def given(events: TextIO) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one a line. Misuse names the line."""
    from schemas.exact_json import json_loads

    for number, line in enumerate(events, 1):
        if not line.strip():
            continue
        try:
            event = json_loads(line)
        except ValueError as error:
            raise click.UsageError(f"{events.name}:{number}: no JSON ({error}); write one event a line") from error
        if not isinstance(event, dict):
            raise click.UsageError(f"{events.name}:{number}: an event is a JSON object")
        yield event


def recorded_since(
    config: str | None,
    data: str | None,
    since: datetime,
    advance: Callable[[int, int], None],
    take: "Callable[[Resolved], None]",
) -> None:
    """Tells `take` of each event that the log holds from then on; `advance` of records done and of all."""
    import asyncio

    from millrace.settings import load_settings
    from millrace.wiring import open_log
    from pipeline.delivery.preflight import recorded

    settings = load_settings(environment(config=config, data=data), delivers=False)

    async def read() -> None:
        async with open_log(settings) as log:
            async for resolved in recorded(log, int(since.timestamp() * 1000), advance):
                if resolved.event.refused is None:
                    take(resolved)

    asyncio.run(read())
