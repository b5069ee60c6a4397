"""Millrace as an operator runs it: real commands as real processes, started again when they end, killed when a test says so."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import aiohttp

from tests.services.process import end_group, free_ports, spawn

WRITE_KEY: Final = "wk_crash"
TOKEN: Final = "token_crash"
PATIENCE: Final = 60.0  # seconds a start may take on a busy machine
GRACE: Final = 30.0  # seconds a role gets to stop
PAUSE: Final = 0.3  # seconds before a role that ended by itself is started again
ROLES: Final = ("collect", "process-1", "process-2", "deliver-1", "deliver-2")
_CONFIG: Final = """
sources:
  shop: {{write_key: {write_key}}}
outbound: {{allow: [127.0.0.0/8]}}
destinations:
  warehouse: {{type: duckdb, settings: {{path: warehouse.duckdb}}}}
  hook: {{type: webhook, settings: {{url: "http://127.0.0.1:{sink}/", timeout: 3}}}}
"""


class Process:
    """A command that is started again and again. What it prints goes to one file."""

    def __init__(self, name: str, command: Iterable[str], output: Path, environment: Mapping[str, str]) -> None:
        self.name, self.output = name, output
        self._command, self._environment = list(command), environment
        self._process: subprocess.Popen[bytes] | None = None
        self._printed = 0  # bytes, by those before
        self.frozen = False

    @property
    def at_work(self) -> bool:
        """Whether it has said that it is ready."""
        with self.output.open("rb") as output:
            output.seek(self._printed)
            return b'"event": "ready"' in output.read()

    @property
    def code(self) -> int | None:
        """The exit code of one that ended by itself; None while it runs, and before it was started or once it was killed."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        self.kill()
        with self.output.open("ab") as output:
            self._printed = output.tell()
            self._process = spawn(self._command, output=output, environment=self._environment)

    def kill(self) -> None:
        """kill -9; returns when it is gone."""
        if self._process is not None:
            end_group(self._process)
            self._process = None

    def strike(self) -> None:
        """kill -9 at this very moment; `start` makes sure that it is gone."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)

    async def freeze(self, seconds: float) -> None:
        """Stops it where it stands, as a machine does that swaps; it goes on as if nothing had been."""
        process = self._process
        if process is not None and process.poll() is None:
            self.frozen = True
            process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(seconds)
            process.send_signal(signal.SIGCONT)
            self.frozen = False

    def stop(self) -> int:
        """Asks it to stop and waits; its exit code. -9 when it had to be killed."""
        if self._process is None:
            return 0
        process = self._process
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        self.kill()
        return process.returncode

    def said(self, lines: int) -> str:
        """The last it printed."""
        text = self.output.read_text(errors="replace") if self.output.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


class Deployment:
    """All roles over one log and one database, and the receiver of the webhook."""

    def __init__(self, folder: Path, *, seed: int, log: str | None = None, database: str | None = None) -> None:
        self.folder, self.data = folder, folder / "data"
        self.sightings = folder / "sightings.ndjson"
        self.sightings.touch()
        self._port, sink = free_ports(2)
        self.url = f"http://127.0.0.1:{self._port}"
        config = folder / "millrace.yaml"
        config.write_text(_CONFIG.format(write_key=WRITE_KEY, sink=sink))
        self.log = log or f"embedded://{self.data / 'log'}"
        self.database = database or f"sqlite:///{self.data / 'millrace.sqlite'}"
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")} | {
            "MILLRACE_CONFIG": str(config),
            "MILLRACE_DATA": str(self.data),
            "MILLRACE_PORT": str(self._port),
            "MILLRACE_API_TOKEN": TOKEN,
            "MILLRACE_LOG": self.log,
            "MILLRACE_DATABASE": self.database,
        }
        self.roles = {
            name: Process(name, _millrace(name.partition("-")[0]), folder / f"{name}.log", self._environment)
            for name in ROLES
        }
        command = (sys.executable, "-m", "tests.crash.sink", str(sink), str(self.sightings), str(seed))
        self._sink = Process("sink", command, folder / "sink.log", {"PYTHONPATH": str(Path(__file__).parents[2])})
        self.ended: list[str] = []  # what ended by itself, with its last words

    def start(self) -> None:
        """Migrates the database and starts everything."""
        self.run("migrate")
        self._sink.start()
        for role in self.roles.values():
            role.start()

    def run(self, *arguments: str) -> str:
        """A command to its end; what it printed. Fails with its complaint."""
        done = subprocess.run(_millrace(*arguments), env=self._environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"millrace {' '.join(arguments)} failed:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def tend(self, held: Iterable[str] = ()) -> None:
        """Starts again what ended by itself, as a supervisor would, and notes that it did. Leaves alone what is `held`."""
        for name, role in self.roles.items():
            if name not in held and role.code is not None:
                self.ended.append(f"{name} ended with {role.code}: {role.said(3)}")
                role.start()

    def stop(self) -> dict[str, int]:
        """An orderly end in the order of the journey; exit codes by role."""
        return {name: role.stop() for name, role in self.roles.items()}

    def remove(self) -> None:
        """The end of every process."""
        for one in (*self.roles.values(), self._sink):
            one.kill()

    async def ready(self) -> None:
        """Returns when the collector takes events."""
        deadline = time.monotonic() + PATIENCE
        while await self.ask("/ready") is None:
            assert time.monotonic() < deadline, f"not ready after {PATIENCE:.0f} s:\n{self.last_words()}"
            await asyncio.sleep(0.1)

    async def balance(self) -> Any | None:
        """`GET /api/balance`; None when there is no answer just now."""
        return await self.ask("/api/balance")

    async def ask(self, path: str) -> Any | None:
        """A question to the API; None unless it is answered 200."""
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as http,
                http.get(self.url + path, headers={"Authorization": f"Bearer {TOKEN}"}) as response,
            ):
                return json.loads(await response.read()) if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    def last_words(self, lines: int = 12) -> str:
        """What each process printed last."""
        return "\n".join(f"── {one.name}\n{one.said(lines)}" for one in (*self.roles.values(), self._sink))

    def tracebacks(self) -> list[str]:
        """Where a process printed a Python traceback: a fault that nobody foresaw."""
        found = []
        for one in (*self.roles.values(), self._sink):
            text = one.output.read_text(errors="replace") if one.output.exists() else ""
            if (at := text.find("Traceback")) >= 0:
                found.append(f"{one.name}: {text[max(0, at - 300) : at + 2500]}")
        return found


def _millrace(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "millrace", *arguments]
