"""Child processes that never outlive the test run, free ports, and folders that go with it."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from random import SystemRandom
from typing import IO

GRACE = 20.0  # seconds between asking a service to stop and killing it
PORTS = (15_000, 32_000)  # below those of outgoing connections (Linux: 32768, others: 49152)


class ServiceFailed(RuntimeError):
    """A service did not come up; the message ends with what it printed last."""


class ServiceAbsent(RuntimeError):
    """This machine lacks what a service needs; the message names it and the remedy."""


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, all different: they are held together before they are given. The kernel gives none of them to
    anybody who asks for any port, so that a server that was killed finds its own again, whatever runs beside."""
    held: dict[int, socket.socket] = {}
    try:
        while len(held) < count:
            one, port = socket.socket(), SystemRandom().randrange(*PORTS)
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                one.close()
            else:
                held[port] = one
        return list(held)
    finally:
        for one in held.values():
            one.close()


def temporary_folder(name: str) -> Path:
    """A fresh folder that is removed when the test run ends, however it ends."""
    folder = Path(tempfile.mkdtemp(prefix=f"millrace-{name}-"))
    _order(f"remove {folder}")
    return folder


class Service:
    """A server process in a process group of its own. Start, stop and kill it as often as a test likes."""

    def __init__(self, name: str, output: Path) -> None:
        self.name = name
        self.output = output  # where its standard output and error go
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def spawn(
        self,
        command: Sequence[str],
        *,
        user: str | int | None = None,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        assert not self.running, f"{self.name} runs already"
        with self.output.open("ab") as output:
            self._process = spawn(command, output=output, user=user, cwd=cwd, environment=environment)

    def wait(self, seconds: float) -> int:
        """Waits for a command that ends by itself; its exit code."""
        assert self._process is not None, f"{self.name} was not started"
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise self.failed(f"did not end within {seconds:.0f} s") from None
        finally:
            self.kill()

    def failed(self, what: str) -> ServiceFailed:
        """The error that says what went wrong and what the service printed last."""
        said = self.output.read_text(errors="replace").splitlines()[-30:] if self.output.exists() else []
        return ServiceFailed("\n".join((f"{self.name}: {what}", *said)))

    def signal(self, sign: signal.Signals) -> None:
        """Asks it to stop with `sign` and waits; kills it when it does not within `GRACE`."""
        if self._process is None:
            return
        if self._process.poll() is None:
            os.kill(self._process.pid, sign)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE)
        self.kill()

    def kill(self) -> None:
        """kill -9 of the whole process group; returns when the process is gone."""
        if self._process is None:
            return
        end_group(self._process)
        self._process = None


def spawn(
    command: Sequence[str],
    *,
    output: IO[bytes] | int = subprocess.DEVNULL,
    user: str | int | None = None,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Starts a command in a process group of its own, which the reaper ends if the test run dies first."""
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        user=user,
        extra_groups=None if user is None else (),
        cwd=cwd,
        env=environment,
    )
    _order(f"watch {process.pid}")
    return process


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """kill -9 of a process that `spawn` started and of all its children."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _order(f"forget {process.pid}")


@cache
def _reaper() -> "subprocess.Popen[str]":
    script = Path(__file__).with_name("reaper.py")
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(script)], stdin=subprocess.PIPE, text=True, start_new_session=True
    )


def _order(line: str) -> None:
    pipe = _reaper().stdin
    assert pipe is not None
    pipe.write(line + "\n")
    pipe.flush()
