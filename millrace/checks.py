"""Asks each destination whether it can be reached and knows us, without an event."""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from millrace.settings import Settings
from millrace.wiring import channels, functions, outbound
from schemas.errors import CredentialsRejected, MillraceError

TIMEOUT: Final = 30.0  # seconds for each

Finding = tuple[str, str, str | None]
"""Name, type, and the problem with its remedy or None."""


def check_all(settings: Settings, only: Sequence[str] = ()) -> Sequence[Finding]:
    """One finding per destination, or for each of those named, all asked at once, in the order of the file."""
    return asyncio.run(_check_all(settings, [name for name in settings.destinations if not only or name in only]))


async def _check_all(settings: Settings, names: Sequence[str]) -> Sequence[Finding]:
    problems = await asyncio.gather(*(_check(settings, name) for name in names))
    return [(name, settings.destinations[name].type, problem) for name, problem in zip(names, problems, strict=True)]


async def _check(settings: Settings, name: str) -> str | None:
    from destinations.contract import Env
    from destinations.http.client import session
    from destinations.registry import definition

    found = definition(settings.destinations[name].type)
    try:
        async with asyncio.timeout(TIMEOUT), session(outbound(settings)) as http:
            env = Env(
                http=http,
                now=time.time,
                folder=str(settings.environment.data),
                functions=functions(settings).delivering,
            )
            async with found.connect(settings.destination_settings[name], env) as client:
                await found.check(client)
    except CredentialsRejected as error:
        return f"refuses our credentials ({error}); mend them under destinations.{name}.settings"
    except TimeoutError:
        return f"does not answer within {TIMEOUT:.0f} s; see whether it runs and can be reached from here"
    except (MillraceError, OSError) as error:
        return f"{error}; mend destinations.{name}.settings or the service"
    return None


async def try_channels(settings: Settings) -> Sequence[tuple[str, str | None]]:
    """Sends a test notice to every alert channel: the channel's name, and what went wrong if anything did."""
    from destinations.http.client import session
    from schemas.notices import Notice

    now = time.time_ns() // 1000
    notice = Notice(
        id=f"test {now}",
        alert="test",
        state="test",
        text="This is how an alert looks.",
        remedy="Nothing is wrong; nothing is to be done.",
        since=now,
        at=now,
    )
    said: list[tuple[str, str | None]] = []
    async with session(outbound(settings)) as http:
        for name, tell in channels(settings, http).items():
            try:
                await tell(notice)
                said.append((name, None))
            except MillraceError as error:
                said.append((name, str(error)))
    return said
