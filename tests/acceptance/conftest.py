"""A real `millrace up` in a folder of its own, and the command line beside it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from millrace import data_folder
from millrace.client import Client

PATIENCE = 60.0  # seconds; a machine under load is slow, not wrong


class Said(NamedTuple):
    code: int
    out: str
    err: str


class Machine:
    """A person's folder: what they start, type and see there. Ports are free ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[Up] = []
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
        self.variables = clean | {"MILLRACE_PORT": "0", "PYTHONUNBUFFERED": "1"}

    def up(self, *arguments: str) -> "Up":
        up = Up(self, *arguments)
        self.running.append(up)
        return up

    def millrace(self, *arguments: str) -> Said:
        return self._run([sys.executable, "-m", "millrace", *arguments])

    def paste(self, line: str) -> Said:
        """A line into a shell, as it was printed."""
        return self._run(["sh", "-c", line])

    def json(self, *arguments: str) -> Any:
        said = self.millrace(*arguments, "--json")
        assert said.code == 0, said.err
        return json.loads(said.out)

    def ask(self, path: str) -> Any:
        """The API, without the cost of a command: for waiting."""
        address, token = (
            data_folder.recall(self.folder / "data", name) or ""
            for name in (data_folder.ADDRESS, data_folder.API_TOKEN)
        )
        client = Client(address, token)
        try:
            return client.get(path)
        finally:
            client.close()

    @contextmanager
    def tail(self, *arguments: str) -> Iterator[Iterator[Any]]:
        """What `millrace tail --json` says from now on."""
        command = [sys.executable, "-m", "millrace", "tail", "--json", *arguments]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, cwd=self.folder, env=self._asking(), stdout=pipe, stderr=pipe, text=True
        ) as tail:
            try:
                assert tail.stdout is not None
                assert tail.stderr is not None
                assert "following" in tail.stderr.readline()
                yield (json.loads(line) for line in tail.stdout)
            finally:
                tail.kill()

    def _run(self, command: list[str]) -> Said:
        done = subprocess.run(
            command, cwd=self.folder, env=self._asking(), capture_output=True, text=True, timeout=PATIENCE
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def _asking(self) -> dict[str, str]:
        """Commands find the address in the data folder."""
        return {name: value for name, value in self.variables.items() if name != "MILLRACE_PORT"}


class Up:
    """A running `millrace up`."""

    def __init__(self, machine: Machine, *arguments: str) -> None:
        self.log = machine.folder / f"up-{len(machine.running)}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "millrace", "up", *arguments],
                cwd=machine.folder,
                env=machine.variables,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.banner = self._read_banner()

    def _read_banner(self) -> list[str]:
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line.strip())
            if line.startswith("Stop:"):
                return lines
        raise AssertionError(f"up ended: {self.log.read_text()}")

    def fact(self, name: str) -> str:
        return next(line.removeprefix(name).strip() for line in self.banner if line.startswith(name))

    def line(self, start: str) -> str:
        """The line to paste that begins so."""
        return next(line for line in self.banner if line.startswith(start) or f" {start}" in line)

    def role(self, name: str) -> psutil.Process:
        for child in psutil.Process(self.process.pid).children():
            if name in child.cmdline():
                return child
        raise LookupError(name)

    def family(self) -> list[psutil.Process]:
        whole = psutil.Process(self.process.pid)
        return [whole, *whole.children(recursive=True)]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


def until(condition: Callable[[], bool]) -> None:
    """Waits for what must come to pass."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "did not come to pass"
        time.sleep(0.05)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    for up in machine.running:
        if up.process.poll() is None:
            up.process.kill()
            up.process.wait()
        if up.process.stdout is not None:
            up.process.stdout.close()
