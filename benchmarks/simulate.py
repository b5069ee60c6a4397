"""Trying other rules of identity: `python -m benchmarks.simulate [--events N] [--json FILE]`. CPU of `identity simulate` per recorded
event, from reading `resolved` to the comparison, against the pipeline's transaction over the same events. Two sets of rules are two
such transactions, so a ratio of two is the least there can be.
"""

import argparse
import asyncio
import random
import tempfile
from pathlib import Path

from benchmarks.pipeline import cpu, event
from benchmarks.results import Result, finish, result
from millrace.process import settle
from pipeline.identity import Rules
from pipeline.log import Batch, Log, Record, open_log
from pipeline.parse import parse
from pipeline.simulate import simulate
from pipeline.store.database import Database
from pipeline.store.intake import apply
from pipeline.store.migrate import migrate
from schemas.events import Origin, encode_event, encode_resolved
from schemas.identity import IdentityConfig, IdTypeConfig
from schemas.topics import EVENTS, RESOLVED

PRESENT = Rules()
OTHER = Rules(IdentityConfig(types={"email": IdTypeConfig(limit=1), "anonymous_id": IdTypeConfig(limit=2)}), 2)
POLL = 4_000


async def measure(count: int, folder: Path) -> list[Result]:
    """Records events as the pipeline would have emitted them, and resolves them both ways."""
    chance = random.Random(7)
    values = [(one.key, encode_event(one)) for one in (event(number, chance) for number in range(count))]
    async with open_log(f"embedded://{folder}/log") as log:
        await record(log, values)
        settle()
        transaction = apply_all(values, folder)
        database = Database(f"sqlite:///{folder}/transaction.sqlite")
        used = cpu()
        made = await simulate(
            log,
            database,
            PRESENT,
            OTHER,
            since=0,
            folder=folder / "scratch",
            examples=5,
            advance=lambda done, total: None,
        )
        spent = (cpu() - used) / count * 1e6
        database.close()
    assert made.events == count
    return [result("identity simulate, CPU (floor: the pipeline's transaction)", spent, "µs/event", floor=transaction)]


async def record(log: Log, values: list[tuple[bytes, bytes]]) -> None:
    for start in range(0, len(values), 1_000):
        some = enumerate(values[start : start + 1_000], start)
        await log.append(
            RESOLVED,
            [
                Record(key, encode_resolved(key.decode(), Origin(0, number), (), value), 1 + number)
                for number, (key, value) in some
            ],
        )


def apply_all(values: list[tuple[bytes, bytes]], folder: Path) -> float:
    """CPU microseconds per event of parsing and applying these, a poll at a time."""
    database = Database(f"sqlite:///{folder}/transaction.sqlite")
    migrate(database)
    used = cpu()
    for start in range(0, len(values), POLL):
        records = [Record(key, value, 0, start + n) for n, (key, value) in enumerate(values[start : start + POLL])]
        work = parse([Batch(EVENTS, 0, records, start + len(records))], rules=PRESENT)
        database.run_sync(lambda c, work=work: apply(c, work, {}, PRESENT))  # type: ignore[misc]  # bound at once
    spent = cpu() - used
    database.close()
    return spent / len(values) * 1e6


def main(argv: list[str] | None = None) -> list[Result]:
    """Runs and prints; returns the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulate", description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        results = asyncio.run(measure(asked.events, Path(folder)))
    return finish("simulate", results, asked.json)


if __name__ == "__main__":
    main()
