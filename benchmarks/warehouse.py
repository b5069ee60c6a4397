"""What a load into the DuckDB warehouse costs, against its floor: the same rows, ready as Arrow tables, inserted.

`python -m benchmarks.warehouse [--json FILE] [--events N]`. Events are already materialised; file and folder are fresh.
CPU is user + system of this process, DuckDB's threads included.
"""

import argparse
import gc
import logging
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple, cast

import duckdb
import structlog

from benchmarks.results import Result, finish, result
from destinations.contract import DELIVERED, Env
from destinations.warehouse.duckdb.destination import Warehouse
from destinations.warehouse.duckdb.settings import DuckDBSettings
from schemas.events import iso

BATCH: Final = 5_000
START: Final = 1_767_225_600_000_000
NAMES: Final = ("Product Viewed", "Product Added", "Cart Viewed", "Checkout Started", "Order Completed", "Search Run")


class Cost(NamedTuple):
    """Seconds that something took."""

    cpu: float
    wall: float


def measured(work: Callable[[], object]) -> Cost:
    """Runs `work` once."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Cost(time.process_time() - cpu, time.perf_counter() - wall)


def tracks(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Track calls of a shop: some twenty-five leaves each, six event names."""
    dice = random.Random(seed)
    return [_event(dice, number, "track") for number in range(count)]


def mixture(count: int, seed: int = 2) -> list[dict[str, Any]]:
    """What a site sends: six tracks to three pages to one identify."""
    dice = random.Random(seed)
    kinds = ("track",) * 6 + ("page",) * 3 + ("identify",)
    return [_event(dice, number, dice.choice(kinds)) for number in range(count)]


def _event(dice: random.Random, number: int, kind: str) -> dict[str, Any]:
    user, at = dice.randrange(20_000), START + number * 1_000
    event: dict[str, Any] = {
        "type": kind,
        "messageId": str(uuid.UUID(int=dice.getrandbits(128))),
        "anonymousId": str(uuid.UUID(int=user)),
        "userId": f"user-{user}",
        "source": "shop",
        "profileId": f"profile-{user}",
        "externalIds": [{"type": "user_id", "id": f"user-{user}"}],
        "timestamp": iso(at),
        "originalTimestamp": iso(at),
        "sentAt": iso(at + 50_000),
        "receivedAt": iso(at + 80_000),
        "context": _context(dice),
    }
    if kind == "identify":
        return event | {"traits": {"email": f"user-{user}@example.com", "plan": "pro", "age": dice.randrange(90)}}
    if kind == "page":
        return event | {"name": "Product", "properties": {"path": f"/p/{number % 500}", "title": "A product"}}
    properties = {
        "orderId": f"order-{number}",
        "total": round(dice.random() * 300, 2),
        "currency": "EUR",
        "quantity": dice.randrange(9),
        "coupon": "SPRING" if number % 3 == 0 else None,
        "gift": number % 2 == 0,
        "products": [{"sku": f"sku-{number % 500}", "price": 9.5}, {"sku": "sku-0", "price": 1.5}],
    }
    return event | {"event": NAMES[number % len(NAMES)], "properties": properties}


def _context(dice: random.Random) -> dict[str, Any]:
    return {
        "ip": f"192.0.2.{dice.randrange(255)}",
        "locale": "fi-FI",
        "timezone": "Europe/Helsinki",
        "userAgent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36",
        "library": {"name": "analytics.js", "version": "2.1.0"},
        "page": {
            "path": "/p/7",
            "url": "https://shop.example/p/7?q=1",
            "referrer": "https://search.example/",
            "title": "P",
        },
        "campaign": {"name": "spring", "source": "mail", "medium": "email"},
        "app": {"name": "shop", "version": "1.2.3"},
    }


def batches(events: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """The events in batches of the size the engine hands over."""
    for start in range(0, len(events), BATCH):
        yield events[start : start + BATCH]


def load(folder: str, events: Sequence[dict[str, Any]]) -> None:
    """Loads all events and closes the file."""
    with ThreadPoolExecutor(1) as thread:
        env = Env(http=cast(Any, None), now=time.time, folder=folder)
        warehouse = Warehouse(DuckDBSettings(), env, thread)
        for batch in batches(events):
            if warehouse.load(batch) != [DELIVERED] * len(batch):
                raise RuntimeError("a batch was not delivered")
        warehouse.close()


def floor(source: str, folder: str, count: int) -> tuple[Cost, int]:
    """Inserts the rows that are in the warehouse at `source` into empty tables: as many transactions, ready Arrow
    tables. Returns the cost and the number of rows."""
    with duckdb.connect(source, read_only=True) as con:
        tables = con.execute(
            "SELECT schema_name || '.' || table_name, sql FROM duckdb_tables() WHERE NOT internal"
        ).fetchall()
        ready: dict[str, tuple[Any, str]] = {
            name: (con.sql(f"FROM {name}").to_arrow_table(), sql) for name, sql in tables
        }
    loads = -(-count // BATCH)
    con = duckdb.connect(folder + "/floor.duckdb", config={"threads": 1, "checkpoint_threshold": "128MiB"})
    con.execute("CREATE SCHEMA shop")
    for _, sql in ready.values():
        con.execute(sql)

    def insert() -> None:
        for number in range(loads):
            con.begin()
            for name, (table, _) in ready.items():
                part = -(-table.num_rows // loads)
                con.register("ready", table.slice(number * part, part))
                con.execute(f"INSERT INTO {name} SELECT * FROM ready")
                con.unregister("ready")
            con.commit()
        con.close()

    return measured(insert), sum(table.num_rows for table, _ in ready.values())


def results(label: str, events: Sequence[dict[str, Any]]) -> list[Result]:
    """Loads `events`, then everything once more (repeats), and measures both."""
    with TemporaryDirectory() as folder:
        cost = measured(lambda: load(folder, events))
        base, rows = floor(folder + "/warehouse.duckdb", folder, len(events))
        again = measured(lambda: load(folder, events))
    micros = 1e6 / len(events)
    return [
        result(f"load, {label}", cost.cpu * micros, "CPU µs/event", floor=base.cpu * micros),
        result(f"load, {label}", rows / cost.wall, "rows/s", floor=rows / base.wall),
        result(f"the same again, {label}", again.cpu * micros, "CPU µs/event"),
    ]


def main(argv: list[str] | None = None) -> list[Result]:
    """Measures and prints; with --json writes the results as a list."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.warehouse", description=__doc__)
    parser.add_argument("--json", type=Path, help="file that gets the results")
    parser.add_argument("--events", type=int, default=100_000, help="events per measurement")
    asked = parser.parse_args(argv)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    found: list[Result] = []
    for label, make in (("tracks", tracks), ("mixture", mixture)):
        events = make(asked.events)
        gc.collect()
        gc.freeze()  # the corpus is the benchmark's, and collecting it over and over would count as the load's
        found += results(label, events)
        gc.unfreeze()
    structlog.reset_defaults()
    return finish("Warehouse: a load into DuckDB", found, asked.json)


if __name__ == "__main__":
    main()
