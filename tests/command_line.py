"""`millrace` as a script sees it: a process with an exit code and what it printed.

Such a process computes for most of a second, nearly all of it imports. So one process, which this module is when it is
run, has imported already, and forks off each command."""

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
PATIENCE: Final = 60  # seconds until a command is ended
# What most commands import. None of them may start a thread: forks have only the one that forked.
IMPORTED: Final = (
    "destinations.webhook",
    "millrace.checks",
    "millrace.cli",
    "millrace.client",
    "millrace.difference",
    "millrace.function_trial",
    "millrace.logs",
    "millrace.preflight",
    "millrace.settings",
    "millrace.wiring",
    "pipeline.log.embedded",
    "pipeline.simulate",
    "pipeline.store.migrate",
    "pipeline.store.verify",
    "psycopg",
    "rich.console",
    "rich.progress",
    "uvloop",
)


class Said(NamedTuple):
    code: int
    out: str
    err: str


def millrace(folder: Path, *arguments: str, **variables: str) -> Said:
    """Runs a command in a folder. Of our variables it sees only these."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
    with tempfile.TemporaryDirectory() as said:
        order = Order(
            str(folder), arguments, clean | {"PYTHONPATH": str(ROOT)} | variables, f"{said}/out", f"{said}/err"
        )
        code = _forks().run(order)
        return Said(code, Path(order.out).read_text(), Path(order.err).read_text())


class Order(NamedTuple):
    """A command, and the files for what it prints."""

    folder: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    out: str
    err: str


class _Forks:
    """The process that has imported, as the tests see it. It ends with them."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.command_line"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )

    def run(self, order: Order) -> int:
        """The command's exit code, negative for the signal that ended it."""
        orders, codes = self._process.stdin, self._process.stdout
        assert orders is not None
        assert codes is not None
        orders.write(json.dumps(order) + "\n")
        orders.flush()
        code = codes.readline()
        assert code, "the process that forks off commands has ended; what it said is in the captured output"
        return int(code)


@cache
def _forks() -> _Forks:
    return _Forks()


def _serve() -> None:
    for name in IMPORTED:
        with suppress(Exception):  # the commands that need it say why
            importlib.import_module(name)
    gc.freeze()  # a collection in a fork would copy every page
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _become(Order(*json.loads(line)))
            return
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _become(order: Order) -> None:
    """Runs the command as `python -m millrace` does, and ends without taking apart what was imported, which would take
    longer than the command."""
    signal.alarm(PATIENCE)
    os.chdir(order.folder)
    os.environ.clear()
    os.environ.update(order.environment)
    sys.argv = ["millrace", *order.arguments]
    sys.path[0] = order.folder
    for number, path, mode in ((0, os.devnull, os.O_RDONLY), (1, order.out, _WRITING), (2, order.err, _WRITING)):
        file = os.open(path, mode, 0o600)
        os.dup2(file, number)
        os.close(file)
    try:
        importlib.import_module("millrace.cli").main()
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else end.code is not None)


_WRITING: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC

if __name__ == "__main__":
    _serve()
