"""Rules applied to what was recorded: resolving the events in the scratch store, and settling people who differ.

`python -m benchmarks.resolving_again [--events N] [--json FILE]`. Shops of ten people at one tablet each, who were one person as long as an
address was no limit; an event is about 300 bytes. The floor of the first is the same transaction in the pipeline's store.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import orjson

from benchmarks.results import Result, finish, result
from pipeline.identity import Rules
from pipeline.log import Batch, Log, Record, open_log
from pipeline.parse import parse
from pipeline.resolve_again import resolve_again
from pipeline.store.database import Database
from pipeline.store.intake import apply
from pipeline.store.migrate import migrate
from pipeline.store.rules import in_force
from schemas.events import Event, encode_event, encode_resolved
from schemas.identity import IdentityConfig, IdTypeConfig
from schemas.topics import EVENTS, RESOLVED

PEOPLE = 10
POLL = 1_000
AT = 1_790_000_000_000_000


def event(number: int, shops: int) -> Event:
    shop, person = number % shops, number // shops % PEOPLE
    entries = [
        {"type": "ios.id", "id": f"tablet{shop}", "collection": "users", "encoding": "none"},
        {"type": "email", "id": f"{person}@shop{shop}.test", "collection": "users", "encoding": "none"},
    ]
    body = orjson.dumps({"type": "identify", "traits": {"visit": number}, "context": {"externalIds": entries}})
    at = AT + number * 1_000
    return Event("web", "identify", f"m{number}", None, None, at, None, at, "server", None, None, body)


async def measure(count: int, folder: Path) -> list[Result]:
    shops = max(1, count // 100)
    database = Database(f"sqlite:///{folder}/live.sqlite", repeatable=True)
    migrate(database)
    loose, strict = (IdentityConfig(types={"email": IdTypeConfig(limit=most)}) for most in (100, 1))
    async with open_log(f"embedded://{folder}/log", partitions=1) as log:
        before = database.run_sync(lambda connection: in_force(connection, loose))
        floor = 0.0
        for first in range(0, count, POLL):
            records = [
                Record(b"k", encode_event(event(number, shops)), 1, number)
                for number in range(first, min(count, first + POLL))
            ]
            begun = time.process_time()
            work = parse([Batch(EVENTS, 0, records, first + len(records))], rules=before)
            emissions = database.run_sync(partial(apply, work=work, emitted={}, rules=before))
            floor += time.process_time() - begun
            stamp = time.time_ns() // 1_000_000
            values = [(one.profile, encode_resolved(one.profile, one.origin, one.ids, one.value)) for one in emissions]
            await log.append(RESOLVED, [Record(key.encode(), value, stamp) for key, value in values])
        after = database.run_sync(lambda connection: in_force(connection, strict))
        return await _applied(log, database, after, folder, count, floor / count)


async def _applied(log: Log, database: Database, rules: Rules, folder: Path, count: int, floor: float) -> list[Result]:
    turns: dict[str, float] = {}

    def advance(what: str, *_: int) -> None:
        turns.setdefault(what, time.process_time())

    begun = time.process_time()
    tally = await resolve_again(log, database, rules, folder / "apply", advance)
    ended = time.process_time()
    database.close()
    resolving, settling = turns["people"] - begun, ended - turns["people"]
    people = tally.settled * PEOPLE
    return [
        result(
            "resolve a recorded event again and compare it", 1e6 * resolving / count, "CPU µs/event", floor=1e6 * floor
        ),
        result(f"settle {tally.settled:,} groups of {PEOPLE} people", 1e6 * settling / max(1, people), "CPU µs/person"),
        result("the same, by event", 1e6 * settling / count, "CPU µs/event"),
    ]


def main(arguments: Sequence[str] = ()) -> list[Result]:
    """Runs the benchmark with these command-line arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        return finish("resolving again", asyncio.run(measure(asked.events, Path(folder))), asked.json)


if __name__ == "__main__":
    main(sys.argv[1:])
