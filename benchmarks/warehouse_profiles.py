"""What the warehouse's tables of who is who cost: `python -m benchmarks.warehouse_profiles [--json FILE]`.

Batches of events, a third of them identifies of known profiles, with the tables and, as the floor, without; and changes of profiles,
with two hundred thousand of them there. CPU of the process, since batches of several runs share the machine.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, cast

from benchmarks.results import Result, finish, result
from destinations.contract import DELIVERED, Env
from destinations.warehouse.duckdb.destination import Warehouse, connect
from destinations.warehouse.duckdb.settings import DuckDBSettings
from schemas.changes import Cause, ProfileChange
from schemas.events import ExternalId, iso

PEOPLE: Final = 200_000
AT: Final = 1_790_000_000_000_000
POLL: Final = 2_000
BATCH: Final = 5_000


def created(number: int) -> ProfileChange:
    name, cause = f"use_{number:027d}", Cause("web", f"m{number}", "page", AT, AT)
    ids = [ExternalId("anonymous_id", f"device-{number}")]
    return ProfileChange(f"created:{name}", "created", name, AT + number, cause, profiles=[name], ids=ids)


def event(number: int, chance: random.Random) -> dict[str, Any]:
    at = iso(AT + number * 1_000)
    one = {"source": "web", "messageId": f"event-{number}", "profileId": f"use_{chance.randrange(20_000):027d}"}
    one |= {"timestamp": at, "receivedAt": at, "originalTimestamp": at}
    if number % 3:
        return one | {"type": "track", "event": "Product Viewed", "properties": {"sku": number % 997, "price": 9.5}}
    traits = {"plan": chance.choice("abc"), "email": f"{number}@shop.test", "name": "A name"}
    return one | {"type": "identify", "userId": f"u{number}", "traits": traits}


async def measure(folder: str) -> list[Result]:
    """Microseconds of CPU per change and per event."""
    env = Env(http=cast(Any, None), now=time.time, folder=folder)
    chance = random.Random(3)
    batches = [[event(start + n, chance) for n in range(BATCH)] for start in range(0, 8 * BATCH, BATCH)]
    async with connect(DuckDBSettings(path="with.duckdb", profiles=True), env) as warehouse:
        polls = [[created(start + n) for n in range(POLL)] for start in range(0, PEOPLE, POLL)]
        changes = spent(lambda: hear(warehouse, polls)) / PEOPLE
        told = spent(lambda: load(warehouse, batches)) / (len(batches) * BATCH)
    async with connect(DuckDBSettings(path="without.duckdb"), env) as warehouse:
        silent = spent(lambda: load(warehouse, batches)) / (len(batches) * BATCH)
    return [
        result("warehouse with profiles (floor: without)", told, "µs/event", floor=silent),
        result(f"changes of profiles, {PEOPLE:,} of them", changes, "µs/change"),
    ]


def hear(warehouse: Warehouse, polls: Sequence[Sequence[ProfileChange]]) -> None:
    for poll in polls:
        if warehouse.hear(poll, "profiles") != DELIVERED:
            raise RuntimeError("the warehouse did not take changes in")


def load(warehouse: Warehouse, batches: Sequence[Sequence[dict[str, Any]]]) -> None:
    for batch in batches:
        if set(warehouse.load(batch)) != {DELIVERED}:
            raise RuntimeError("the warehouse did not take events in")


def spent(work: Callable[[], None]) -> float:
    """Microseconds of CPU."""
    began = time.process_time()
    work()
    return (time.process_time() - began) * 1e6


def main(argv: list[str] | None = None) -> list[Result]:
    """Runs and prints; returns the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.warehouse_profiles", description=__doc__)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        results = asyncio.run(measure(folder))
    return finish("warehouse_profiles", results, asked.json)


if __name__ == "__main__":
    main()
