"""The connection to the database: SQLite in the data folder or PostgreSQL, through SQLAlchemy.

All work is a plain function of a connection, run whole in one transaction on a thread of its own, so that the event loop
never waits for a disk. A function may run again when the database asks for it, so it must not change anything else.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from pipeline.store import leftovers
from schemas.errors import ConfigError, Unavailable

T = TypeVar("T")

# Serialization failure, deadlock, lock not available; and a unique key that another transaction wrote first, which the
# next attempt finds.
_CONFLICTS: Final = frozenset({"40001", "40P01", "55P03", "23505"})
_ATTEMPTS: Final = 8
_CLEAN: Final = 1  # `user_version` of an SQLite file in which nothing deleted is left from before deletes overwrote


class Database:
    """A database and the threads that talk to it.

    `threads` is how many transactions of this process may run at once; SQLite has one writer, whatever is asked for.
    `repeatable`: what a power cut takes back is done again by whoever reads the positions then, so SQLite need not wait
    for the disk at each commit. (A server can lose its last commits while we live, so PostgreSQL always waits.)"""

    def __init__(self, url: str, *, threads: int = 1, repeatable: bool = False) -> None:
        self.url = normalize(url)
        self.postgres = self.url.startswith("postgresql")
        self.engine = _engine(self.url, threads + 1, "NORMAL" if repeatable else "FULL")
        self._reading = self.engine.execution_options(
            **({"isolation_level": "REPEATABLE READ"} if self.postgres else {"read": True})
        )
        self._glancing = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._glance = threading.Lock()
        self._kept: Connection | None = None
        path = None if self.postgres else make_url(self.url).database
        self._file = Path(path).resolve() if path else None  # beside which SQLite has its others
        self._queue = Path(f"{path}-queue") if path else None
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="database")

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` in one transaction and returns its result once that is durable.

        Conflicts with other transactions are tried again. Unavailable: nothing was written (the database cannot be
        reached, or its disk is full), except that a commit whose answer was lost may have happened."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.run_sync, work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """`run` for work that only reads: it sees one snapshot and waits for no writer."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.read_sync, work)

    def run_sync(self, work: Callable[[Connection], T]) -> T:
        """`run` on the calling thread."""
        with self._turn():
            return _transact(self.engine, work)

    def read_sync(self, work: Callable[[Connection], T]) -> T:
        """`read` on the calling thread."""
        return _transact(self._reading, work)

    async def glance(self, work: Callable[[Connection], T]) -> T:
        """`read` for a few small bulk statements, of which each may see another instant: on a connection that is kept open, one after
        the other, since a transaction would cost more than they do. On SQLite in the event loop itself, as the log is read:
        a thread would take longer to wake up than its pages to be found."""
        if not self.postgres:
            try:
                return self.glance_sync(work)
            except Unavailable:  # it is being recovered, or is not there: a thread may wait for it
                return await self.read(work)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.glance_sync, work)

    def glance_sync(self, work: Callable[[Connection], T]) -> T:
        """`glance` on the calling thread."""
        with self._glance:
            try:
                return self._glance_once(work)
            except Unavailable:  # a connection that was kept may have ended long ago
                return self._glance_once(work)

    def _glance_once(self, work: Callable[[Connection], T]) -> T:
        dbapi: Any = self.engine.dialect.loaded_dbapi
        try:
            if self._kept is None:
                self._kept = self._glancing.connect()
                if not self.postgres:
                    self._kept.connection.cursor().execute("PRAGMA busy_timeout=0")
            return work(self._kept)
        except (DBAPIError, dbapi.Error) as raised:
            if self._kept is not None:
                self._kept.invalidate()
                self._kept.close()
                self._kept = None
            raise unavailable(_named(raised, dbapi)) from raised

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """SQLite's one writer: processes queue for it in the kernel, which wakes the next at once. Left to itself, SQLite polls
        with sleeps of up to 100 ms, which is most of an event's way."""
        if self._queue is None:
            yield
            return
        try:
            queue = self._queue.open("ab")
        except OSError as error:
            raise _unusable(error.strerror or "no answer") from error
        with queue:
            flock(queue, LOCK_EX)
            yield

    def overwrite_deleted(self) -> bool:
        """Sees to it that nothing that was deleted can be found in SQLite's files: it is zeroed in the pages and in what they do not use, and
        the log of writes is emptied. A file from before deletes overwrote is written anew. False while somebody
        reads: try again. PostgreSQL has ways of its own. Blocks."""
        if self._file is None:
            return True
        with self._turn():
            dbapi: Any = self.engine.dialect.loaded_dbapi
            connection: Any = self.engine.raw_connection()
            try:
                return _overwrite_deleted(connection.driver_connection.execute, self._file)
            except dbapi.Error as raised:
                raise unavailable(_named(raised, dbapi)) from raised
            except OSError as error:
                raise _unusable(error.strerror or "no answer") from error
            finally:
                connection.invalidate()  # it alone would keep pages as they were

    def close(self) -> None:
        """Waits for transactions under way, then closes the connections."""
        self._threads.shutdown(wait=True)
        if self._kept is not None:
            self._kept.close()
        self.engine.dispose()


def _overwrite_deleted(run: Callable[[str], Any], file: Path) -> bool:
    if run("PRAGMA user_version").fetchone()[0] < _CLEAN:
        run("VACUUM")
        run(f"PRAGMA user_version={_CLEAN}")
    if run("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
        return False
    run("BEGIN IMMEDIATE")
    try:
        log = Path(f"{file}-wal")
        if log.exists() and log.stat().st_size:  # another program wrote in between
            return False
        found = leftovers.overwrite(file)
        if found:  # a write that changes nothing: other connections forget what they have in memory
            run(f"PRAGMA user_version={run('PRAGMA user_version').fetchone()[0]}")
    finally:
        run("COMMIT")
    if found is None:
        run("VACUUM")
    return found is not None or not run("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]


def normalize(url: str) -> str:
    """SQLAlchemy's form of a database URL, with the driver named. ConfigError for one that we do not speak."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("postgresql", "postgres", "postgresql+psycopg", "sqlite"):
        raise ConfigError(
            f"database: unknown scheme {scheme!r}; use sqlite:///path/to/file or postgresql://user@host/name"
        )
    full = url if scheme == "sqlite" else f"postgresql+psycopg://{rest}"
    try:
        make_url(full)
    except (ArgumentError, ValueError) as error:
        raise ConfigError("database: the URL cannot be read; use postgresql://user:password@host:port/name") from error
    return full


def _transact(engine: Engine, work: Callable[[Connection], T]) -> T:
    dbapi: Any = engine.dialect.loaded_dbapi
    for attempt in range(_ATTEMPTS):
        try:
            with engine.begin() as connection:
                return work(connection)
        except (DBAPIError, dbapi.Error) as raised:
            error = _named(raised, dbapi)
            if _sqlstate(error) not in _CONFLICTS or attempt == _ATTEMPTS - 1:
                raise unavailable(error) from raised
            time.sleep(0.005 * 2**attempt)
    raise AssertionError("the loop returns or raises")


def _named(error: Exception, dbapi: Any) -> DBAPIError:
    """SQLAlchemy's form of an error: bulk statements speak to the driver itself, whose errors come as they are."""
    if isinstance(error, DBAPIError):
        return error
    kind = OperationalError if isinstance(error, dbapi.OperationalError) else DBAPIError
    return kind(None, None, error)


def _sqlstate(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)


def unavailable(error: DBAPIError) -> Exception:
    """What a database error means for the caller: Unavailable with the remedy, or the error itself when it is a bug."""
    state = _sqlstate(error)
    said = (str(error.orig).strip() or "no answer").splitlines()[0]
    if state == "53100" or "database or disk is full" in said:
        return Unavailable("the database's disk is full; free space, nothing was lost", after=5)
    if any(words in said for words in ("disk I/O error", "readonly database", "unable to open database")):
        return _unusable(said)
    if "database is locked" in said:
        return Unavailable("the database is locked by another program; close it", after=1)
    if state in ("28P01", "28000", "3D000"):
        return Unavailable(f"the database refuses us ({said}); check user, password and name in MILLRACE_DATABASE")
    postgres = hasattr(error.orig, "sqlstate")
    if error.connection_invalidated or (
        postgres and isinstance(error, OperationalError) and (state or "08")[:2] in ("08", "57", "53")
    ):
        return Unavailable(f"the database cannot be reached ({said})", after=1)
    return error


def _unusable(said: str) -> Unavailable:
    return Unavailable(f"the database file cannot be used ({said}); check the disk and its permissions", after=5)


def _engine(url: str, connections: int, synchronous: str) -> Engine:
    if not url.startswith("sqlite"):
        return create_engine(
            url,
            pool_size=connections,
            max_overflow=0,
            pool_pre_ping=True,
            connect_args={"connect_timeout": 10, "application_name": "millrace"},
        )
    engine = create_engine(
        url, pool_size=connections, max_overflow=0, connect_args={"timeout": 30, "check_same_thread": False}
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say so, see below
        for pragma in (
            "journal_mode=WAL",
            f"synchronous={synchronous}",
            "cache_size=-65536",
            "wal_autocheckpoint=4000",
            "secure_delete=ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        read = connection.get_execution_options().get("read")
        connection.exec_driver_sql("BEGIN" if read else "BEGIN IMMEDIATE")

    return engine
