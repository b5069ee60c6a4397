"""The warehouse as the engine sees it. DuckDB lets one process at a time have the file, and people want to look into it; so it is
opened for work and closed when there is none.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import structlog

from destinations.contract import (
    DELIVERED,
    Action,
    Definition,
    Delivered,
    Env,
    Hear,
    Outcome,
    Person,
    RawEvent,
    Rejected,
    Retry,
    Row,
)
from destinations.warehouse.duckdb.file import File, Refused, open_file, refusal_of
from destinations.warehouse.duckdb.forget import rewritten, without
from destinations.warehouse.duckdb.load import Load
from destinations.warehouse.duckdb.settings import DuckDBSettings
from destinations.warehouse.naming import schema_name
from destinations.warehouse.rows import build
from schemas.changes import ProfileChange
from schemas.errors import Unavailable
from schemas.events import TYPES

log = structlog.get_logger()
T = TypeVar("T")

IDLE: Final = 0.1  # seconds without work after which the file is closed: a trickle of events must not lock people out
HOLD: Final = 5.0  # seconds after which the file is closed between two batches, however busy


@dataclass(slots=True)
class Warehouse:
    """The warehouse while Millrace runs. Its file is opened and closed as there is work, always in `thread`."""

    settings: DuckDBSettings
    env: Env
    thread: ThreadPoolExecutor
    file: File | None = None
    loads: int = 0
    timer: asyncio.TimerHandle | None = field(default=None)

    @property
    def path(self) -> Path:
        return Path(self.env.folder) / self.settings.path

    def load(self, events: Sequence[RawEvent]) -> list[Outcome]:
        """Loads a batch in one transaction. When an event makes that impossible, halves are tried until it stands alone."""
        import duckdb

        try:
            rejected = self._transact(lambda load: load.run(events))
        except Refused as error:
            return [Retry(str(error), error.after)] * len(events)
        except (duckdb.DataError, ValueError, TypeError, OverflowError) as error:
            if len(events) == 1:
                return [Rejected(f"cannot be a row: {type(error).__name__}")]
            middle = len(events) // 2
            return self.load(events[:middle]) + self.load(events[middle:])
        except duckdb.OutOfMemoryException:
            if len(events) == 1:
                return [Retry("warehouse is out of memory; raise memory_mb", 10.0)]
            middle = len(events) // 2
            return self.load(events[:middle]) + self.load(events[middle:])
        except (duckdb.IOException, duckdb.FatalException, duckdb.TransactionException) as error:
            return [_failed(error)] * len(events)
        return [Rejected(rejected[at]) if at in rejected else DELIVERED for at in range(len(events))]

    def hear(self, changes: Sequence[ProfileChange], schema: str) -> Delivered | Retry:
        """Takes in changes of who is who in one transaction."""
        import duckdb

        try:
            self._transact(lambda load: load.hear(changes, schema))
        except Refused as error:
            return Retry(str(error), error.after)
        except duckdb.OutOfMemoryException:
            return Retry("warehouse is out of memory; raise memory_mb", 10.0)
        except (duckdb.IOException, duckdb.FatalException, duckdb.TransactionException) as error:
            return _failed(error)
        return DELIVERED

    def _transact(self, work: Callable[["Load"], T]) -> T:
        self.loads += 1
        now = self.env.now()
        if self.file is None:
            self.file = open_file(self.path, self.settings.memory_mb, now)
        try:
            with self.file.transaction():
                done = work(Load(self.file, self.settings, round(now * 1_000_000)))
        except BaseException:
            self.close()  # rolls back, and forgets what this transaction made of the schemas
            raise
        if not 0 <= self.env.now() - self.file.opened < HOLD:
            self.close()
        return done

    def forget(self, people: Sequence[Person]) -> list[Outcome]:
        """Deletes the rows of these people and writes the file anew without them."""
        import duckdb

        if not self.path.exists():
            return [DELIVERED] * len(people)
        try:
            if self.file is None:
                self.file = open_file(self.path, self.settings.memory_mb, self.env.now())
            try:
                with self.file.transaction():
                    count = without(self.file, people)
                self.file.con.close()  # and still nobody else of ours opens what is about to be replaced
                rewritten(self.path, self.settings.memory_mb)
            finally:
                self.close()
        except Refused as error:
            return [Retry(str(error), error.after)] * len(people)
        except (duckdb.Error, OSError) as error:
            refusal = refusal_of(error)
            log.warning("warehouse has not forgotten yet", error=f"{type(error).__name__}: {error}")
            return [Retry(str(refusal), refusal.after)] * len(people)
        log.info("warehouse written anew without people who were deleted", people=len(people), rows=count)
        return [DELIVERED] * len(people)

    def close(self) -> None:
        """Closes the file; the next load opens it."""
        if self.file is None:
            return
        try:
            self.file.close()
        finally:
            self.file = None

    def close_after(self, loads: int) -> None:
        """Closes the file unless there was another load since."""
        if self.loads == loads:
            self.close()

    def rest(self) -> None:
        """Sees to it, from the event loop, that the file is closed once there is no more work."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = asyncio.get_running_loop().call_later(IDLE, self._close_later, self.loads)

    def _close_later(self, loads: int) -> None:
        self.thread.submit(self.close_after, loads).add_done_callback(_report)


def _failed(error: Exception) -> Retry:
    log.warning("warehouse load failed", error=f"{type(error).__name__}: {error}")
    refusal = refusal_of(error)
    return Retry(str(refusal), refusal.after)


def _report(done: "Future[None]") -> None:
    error = done.exception()
    if error is not None:
        log.warning("warehouse file not closed cleanly", error=f"{type(error).__name__}: {error}")


@asynccontextmanager
async def connect(settings: DuckDBSettings, env: Env) -> AsyncIterator[Warehouse]:
    """Opens nothing yet: the file belongs to whoever needs it until there are events."""
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="warehouse")
    warehouse = Warehouse(settings, env, thread)
    try:
        yield warehouse
    finally:
        if warehouse.timer is not None:
            warehouse.timer.cancel()
        await asyncio.get_running_loop().run_in_executor(thread, warehouse.close)
        thread.shutdown(wait=False)


async def check(warehouse: Warehouse) -> None:
    """Opens the file if it is there, else asks whether it could be made."""
    await asyncio.get_running_loop().run_in_executor(warehouse.thread, _probe, warehouse)


def _probe(warehouse: Warehouse) -> None:
    path = warehouse.path
    if warehouse.file is not None:  # it works
        return
    if path.exists():
        try:
            open_file(path, warehouse.settings.memory_mb, warehouse.env.now()).close()
        except Refused as error:
            raise Unavailable(f"duckdb: {error}", after=error.after) from error
        return
    folder = next(one for one in path.absolute().parents if one.exists())
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Unavailable("duckdb: the folder of the warehouse file cannot be written", after=30.0)


async def load_events(warehouse: Warehouse, batch: Sequence[RawEvent]) -> Sequence[Outcome]:
    """Loads a batch in the warehouse's thread. Cancelled, it leaves the thread to finish: what got in is in once."""
    outcomes = await asyncio.get_running_loop().run_in_executor(warehouse.thread, warehouse.load, batch)
    warehouse.rest()
    return outcomes


async def forget(warehouse: Warehouse, people: Sequence[Person]) -> Sequence[Outcome]:
    """In the warehouse's thread, between two loads."""
    return await asyncio.get_running_loop().run_in_executor(warehouse.thread, warehouse.forget, people)


def hear(settings: DuckDBSettings) -> Hear[Warehouse] | None:
    """What takes in changes of who is who, where their tables are wanted."""
    schema = settings.profiles_schema
    if schema is None:
        return None

    async def load_changes(warehouse: Warehouse, changes: Sequence[ProfileChange]) -> Delivered | Retry:
        outcome = await asyncio.get_running_loop().run_in_executor(warehouse.thread, warehouse.hear, changes, schema)
        warehouse.rest()
        return outcome

    return load_changes


def preview(settings: DuckDBSettings, batch: Sequence[RawEvent]) -> Sequence[Row]:
    """The rows of events, as if each table had been made for them alone: values before their columns' types."""
    made = build(batch)
    return [
        Row(f"{schema_name(source)}.{name}", {column: values[at] for column, values in chunk.columns.items()})
        for (source, name), rows in sorted(made.tables.items())
        for chunk in rows.chunks
        for at in range(len(chunk.order))
    ]


definition: Final[Definition[DuckDBSettings, Warehouse]] = Definition(
    name="duckdb",
    description="A warehouse in one local DuckDB file: a table per call type and one per event name.",
    settings=DuckDBSettings,
    warehouse=True,
    exclusive=True,
    connect=connect,
    check=check,
    preview=preview,
    forget=forget,
    hear=hear,
    actions=(
        Action(
            name="load_events",
            payload=None,
            types=TYPES,
            max_batch=5_000,
            deliver=load_events,
            atomic=True,
            concurrency=1,
        ),
    ),
)
