"""Identity at sizes where a quadratic step would show: merges of large profiles, chains and stars of ten thousand, an id seen a
million times, taking such profiles apart, and looking for suspects among a million ids.

`python -m benchmarks.identity_scale [--ids N] [--seen N] [--store N] [--database URL …] [--json FILE]`. Each figure that could grow too
fast is given at a tenth of the size beside it: a step that is linear costs ten times as much, a merge hardly more. `--seen 1000000` takes
minutes.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import text

from benchmarks.pipeline import databases
from benchmarks.results import Result, finish, result
from pipeline.graph import Edge
from pipeline.identity import Rules
from pipeline.log import Batch, Record
from pipeline.parse import parse
from pipeline.profile import profile_id
from pipeline.store import bulk, schema, splits
from pipeline.store.database import Database
from pipeline.store.explain import explain
from pipeline.store.intake import apply
from pipeline.store.migrate import migrate
from pipeline.store.suspects import suspects
from pipeline.store.verify import verify
from schemas.events import Event, ExternalId, encode_event
from schemas.identity import IdentityConfig, IdTypeConfig

POLL = 1_000
AT = 1_790_000_000_000_000
RULES = Rules(
    IdentityConfig(
        types={name: IdTypeConfig(limit=1_000_000) for name in ("user_id", "email", "anonymous_id")},
        merges_per_profile=1_000_000,
        ids_per_profile=1_000_000,
    )
)


class Store:
    """A database that events are applied to, poll by poll."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        migrate(self.database)
        self._offset = 0

    def apply(self, events: Sequence[tuple[str | None, str | None]]) -> float:
        """Events of (user id, anonymous id); seconds that they took."""
        began = time.perf_counter()
        for start in range(0, len(events), POLL):
            records = [self._record(user, device) for user, device in events[start : start + POLL]]
            work = parse([Batch("events", 0, records, self._offset)], rules=RULES)
            self.database.run_sync(partial(apply, work=work, emitted={}, rules=RULES))
        return time.perf_counter() - began

    def timed(self, work: Callable[[Any], Any]) -> tuple[float, Any]:
        """Seconds of one transaction, and its result."""
        began = time.perf_counter()
        made = self.database.run_sync(work)
        return time.perf_counter() - began, made

    def _record(self, user: str | None, device: str | None) -> Record:
        at, message = AT + self._offset, f"m{self._offset:09d}"
        body = b'{"type":"track","event":"E"}'
        event = Event("web", "track", message, device, user, at, None, at, "server", None, None, body)
        self._offset += 1
        return Record(event.key, encode_event(event), 0, self._offset - 1)


def large(store: Store, name: str, ids: int, events: int) -> None:
    """A profile with so many ids and events."""
    store.apply([(f"{name}-user", f"{name}-{number % ids}") for number in range(events)])


def measure(url: str, ids: int, seen: int) -> list[Result]:
    """Every shape on one database, each at a tenth and at full size."""
    store = Store(url)
    name = "PostgreSQL" if store.database.postgres else "SQLite"
    results: list[Result] = []

    def add(what: str, small: float, full: float, unit: str = "ms") -> None:
        results.append(result(f"{name}: {what} (floor: a tenth of it)", full * 1e3, unit, floor=small * 1e3))

    merged = [merge_of(store, f"big{number}", size) for number, size in enumerate((ids // 10, ids))]
    add(f"merge two profiles of {ids:,} ids and {ids * 10:,} events", merged[0][0], merged[1][0])
    add(f"undo that merge ({2 * ids:,} ids)", merged[0][1], merged[1][1])
    add("lift that", merged[0][2], merged[1][2])
    add("cut two ids of it apart", merged[0][3], merged[1][3])
    add("explain it", merged[0][4], merged[1][4])
    chains = [chain_of(store, f"chain{number}", size) for number, size in enumerate((ids // 10, ids))]
    add(f"chain of {ids:,} merges, each joining the earlier", chains[0][0], chains[1][0])
    add("first event at its far end", chains[0][1], chains[1][1])
    add("events of all its ids", chains[0][2], chains[1][2])
    add("undo a merge in its middle", chains[0][3], chains[1][3])
    small, full = (store.apply(star(f"star{number}", size)) for number, size in enumerate((ids // 10, ids)))
    add(f"star of {ids:,} ids around one", small, full)
    small, full = (
        store.apply([("often", f"often-{number % 3}") for number in range(size)]) for size in (seen // 10, seen)
    )
    add(f"one id seen {seen:,} times", small, full)
    store.database.close()
    return results


def merge_of(store: Store, name: str, ids: int) -> tuple[float, float, float, float, float]:
    """Seconds to merge two profiles of so many ids, to undo that, to lift it, to cut two ids apart, and to explain it."""
    for side in ("a", "b"):
        large(store, f"{name}{side}", ids, ids * 10)
    merge = store.apply([(f"{name}a-user", f"{name}b-1")])
    found = store.database.read_sync(
        lambda c: c.execute(text("SELECT id FROM merges ORDER BY seq DESC LIMIT 1")).scalar_one()
    )
    undone, done = store.timed(lambda c: splits.unmerge(c, found, RULES))
    lifted, _ = store.timed(lambda c: splits.remerge(c, done.split.id, RULES))
    told, _ = store.timed(lambda c: explain(c, f"user_id:{name}a-user"))
    ends = ExternalId("user_id", f"{name}a-user"), ExternalId("anonymous_id", f"{name}a-7")
    cut, _ = store.timed(lambda c: splits.unmerge_ids(c, *ends, RULES))
    return merge, undone, lifted, cut, told


def chain_of(store: Store, name: str, length: int) -> tuple[float, float, float, float]:
    """Profiles that merge one after the other, each into an earlier one, so that pointers form one long chain."""
    store.apply([(None, f"{name}-{number}") for number in range(length + 1)])
    joins = [(f"{name}-user-{number}", f"{name}-{number}") for number in range(length, -1, -1)]
    store.apply(joins)
    bridges = [(f"{name}-user-{number}", f"{name}-{number - 1}") for number in range(length, 0, -1)]
    chained = store.apply(bridges)
    far = store.apply([(None, f"{name}-{length}")])
    every = store.apply([(None, f"{name}-{number}") for number in range(length, 0, -1)])
    middle = store.database.read_sync(
        lambda c: c.execute(
            text("SELECT id FROM merges ORDER BY seq DESC LIMIT 1 OFFSET :half"), {"half": length // 2}
        ).scalar_one()
    )
    undone, _ = store.timed(lambda c: splits.unmerge(c, middle, RULES))
    return chained, far, every, undone


def star(name: str, ids: int) -> list[tuple[str | None, str | None]]:
    """Ids that are known already, all tied to one."""
    known: list[tuple[str | None, str | None]] = [(None, f"{name}-{number}") for number in range(ids)]
    return known + [(f"{name}-hub", f"{name}-{number}") for number in range(ids)]


# ── A store of a million ids ──────────────────────────────────────────────────────────────────────────────────────


def whole_store(url: str, nodes: int) -> list[Result]:
    """Suspects of, and differences in, a store of so many ids."""
    database = Database(url)
    migrate(database)
    name = "PostgreSQL" if database.postgres else "SQLite"
    fill(database, nodes)
    began = time.perf_counter()
    found = database.read_sync(lambda c: suspects(c, RULES, 50))
    looked = time.perf_counter() - began
    began = time.perf_counter()
    rows = differences = 0
    for piece in verify(database, RULES):
        rows, differences = rows + piece.rows, differences + len(piece.differences)
    verified = time.perf_counter() - began
    if differences or not found:
        raise AssertionError(f"{differences} differences, {len(found)} suspects")
    began = time.perf_counter()
    database.read_sync(lambda c: sum(1 for _ in c.execute(text("SELECT * FROM profiles"))))
    floor = time.perf_counter() - began
    database.close()
    return [
        result(f"{name}: suspects among {nodes:,} ids (floor: read every profile)", looked, "s", floor=floor),
        result(f"{name}: verify {rows:,} rows (floor: read every profile)", verified, "s", floor=floor),
    ]


def fill(database: Database, nodes: int) -> None:
    """Profiles of one user and two devices each, a shared device, a placeholder, and refusals, written as rows."""
    chance = random.Random(3)
    people = nodes // 3
    profiles, ids, edges, refused = [], [], [], []
    for number in range(people):
        at = AT + number
        own = profile_id(number.to_bytes(16, "big"), at)
        keys = [f"user_id:u{number}", f"anonymous_id:d{number}-1", f"anonymous_id:d{number}-2"]
        counts = '{"anonymous_id":2,"user_id":1}'
        profiles.append(
            (
                own,
                at,
                None,
                counts,
                "{}",
                1,
                at,
                at,
                "users",
                at,
                "web",
                f"m{number}",
                "web",
                f"m{number}",
                None,
                None,
                0,
            )
        )
        for place, key in enumerate(keys):
            events = int(place == 0)
            last = ("web", f"m{number}") if events else ("", "")
            when = at if events else None
            ids.append((key, own, None, events, when, when, at, own, at, "web", f"m{number}", 1, *last, None))
        for other in keys[1:]:
            edge = Edge(at, at, "web", f"m{number}", "track", 1, at)
            edges.append((other, keys[0], 1, at, at, edge.source, edge.message_id, edge.type, 1, at))
        if chance.random() < 0.05:
            key = f"anonymous_id:kiosk-{chance.randrange(50)}"
            refused.append((own, key, "Identifier value limit exceeded", 3, at, at, "web", f"m{number}", "track", 1))
    for table, rows in (
        (schema.profiles, profiles),
        (schema.nodes, ids),
        (schema.edges, edges),
        (schema.violations, refused),
    ):
        for start in range(0, len(rows), 50_000):
            database.run_sync(partial(bulk.insert, table=table, rows=rows[start : start + 50_000]))


def main(argv: list[str] | None = None) -> list[Result]:
    """Runs and prints; returns the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ids", type=int, default=10_000)
    parser.add_argument("--seen", type=int, default=200_000)
    parser.add_argument("--store", type=int, default=1_000_000)
    parser.add_argument("--database", action="append", default=[])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(argv)
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder, databases(asked.database, folder) as urls:
        for url in urls:
            results += measure(url, asked.ids, asked.seen)
            if asked.store:
                part = f"sqlite:///{folder}/store.sqlite" if url.startswith("sqlite") else url
                results += whole_store(part, asked.store)
    return finish("identity at scale", results, asked.json)


if __name__ == "__main__":
    main()
