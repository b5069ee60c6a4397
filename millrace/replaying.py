"""What a replay would send, by the configuration here: nothing leaves this process."""

import time
from collections.abc import Callable
from typing import Any

from millrace.settings import Settings
from millrace.wiring import mounted, open_database, open_log, usable
from pipeline.delivery import replay as delivery
from pipeline.delivery.decide import rules
from pipeline.query.replays import ranges, wanted_of
from pipeline.store.replays import Replay
from schemas.errors import ConfigError


async def rehearse(settings: Settings, asked: dict[str, Any], advance: Callable[[int, int], None]) -> dict[str, Any]:
    """Counts what would become of the recorded events. ConfigError when the destination is not configured here."""
    now = time.time_ns() // 1_000
    wanted = wanted_of(asked, now)
    destination = next((one for one in mounted(settings) if one.name == wanted.destination), None)
    if destination is None:
        known = ", ".join(sorted(settings.destinations)) or "none"
        raise ConfigError(f"no destination is called {wanted.destination}; known: {known}")
    async with open_log(settings) as log:
        with open_database(settings) as database:
            usable(settings, database)
            found = await ranges(log, database, wanted)
            total = sum(end - first for first, end in found.values())
            replay = Replay(0, wanted, "running", now, None, found, "")
            counts = await delivery.rehearse(
                log, database, replay, rules(destination), lambda done: advance(done, total)
            )
    would_send = counts.pop("", 0)
    return {"records": total, "would_send": would_send, "not_sent": dict(sorted(counts.items()))}
