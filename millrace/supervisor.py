"""One operating-system process per role: started together, kept alive, stopped in the order of the journey.

A role that dies is started again after a growing pause; one that cannot even start at first ends the whole. However the
supervisor itself ends, its children end too: each holds a socket that closes with us.
"""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog

from millrace.process import DEADLINE, READY
from schemas.errors import MillraceError

log = structlog.get_logger()

FIRST_PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 30.0
STEADY: Final = 10.0  # seconds that a role must have been ready for its deaths to be forgiven
SLOW: Final = 15.0  # seconds after which a start is worth a line


class StartFailed(MillraceError):
    """A role could not start; it has said why on stderr."""

    def __init__(self, role: str, code: int) -> None:
        super().__init__(f"{role} could not start ({_ending(code)}); what it said is above")
        self.role = role


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """How a role's process is started. `command` is completed by `--supervisor-fd N`."""

    name: str
    command: Sequence[str]
    descriptors: Sequence[int] = ()  # further file descriptors that it inherits
    beside: bool = False  # stops together with the role before


def pause_before_restart(deaths: int) -> float:
    """Seconds to wait after so many deaths in a row."""
    return float(min(FIRST_PAUSE * 2 ** min(deaths - 1, 16), LONGEST_PAUSE))


async def supervise(
    roles: Sequence[Role],
    *,
    ready: Callable[[], None],
    before_stop: Callable[[], None] = lambda: None,
    deadline: float = DEADLINE,
) -> None:
    """Runs the roles until SIGTERM or SIGINT, then stops them one after another, in the order given (those `beside` another with it), within
    `deadline` seconds; a second signal kills them. `ready` is called once all are. StartFailed when one cannot start."""
    stop, kill = asyncio.Event(), asyncio.Event()
    _obey_signals(stop, kill)
    keepers = [_Keeper(role, kill) for role in roles]
    tasks = [asyncio.create_task(keeper.run(), name=keeper.role.name) for keeper in keepers]
    stopped = asyncio.create_task(stop.wait())
    try:
        all_ready = asyncio.create_task(_all_ready(keepers))
        await _first(stopped, all_ready, *tasks)
        if all_ready.done():
            ready()
            await _first(stopped, *tasks)
        all_ready.cancel()
    finally:
        stopped.cancel()
        before_stop()
        failures = await _stop_in_order(keepers, tasks, deadline)
    if failures:
        raise failures[0]


async def _stop_in_order(
    keepers: Sequence["_Keeper"], tasks: Sequence["asyncio.Task[None]"], deadline: float
) -> list[BaseException]:
    end = time.monotonic() + deadline
    for together in _together(list(zip(keepers, tasks, strict=True))):
        for keeper, _ in together:
            keeper.ask_to_stop()
        ending = [task for _, task in together]
        await asyncio.wait(ending, timeout=max(0.0, end - time.monotonic()))
        for keeper, task in together:
            if not task.done():
                log.warning("killed at the deadline", name=keeper.role.name, seconds=deadline)
                keeper.kill()
        await asyncio.wait(ending)
    return [error for task in tasks if (error := task.exception()) is not None]


def _together(
    kept: Sequence[tuple["_Keeper", "asyncio.Task[None]"]],
) -> list[list[tuple["_Keeper", "asyncio.Task[None]"]]]:
    """Those that stop at once, in the order of stopping."""
    groups: list[list[tuple[_Keeper, asyncio.Task[None]]]] = []
    for one in kept:
        if groups and one[0].role.beside:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


class _Keeper:
    """Keeps one role's process alive."""

    def __init__(self, role: Role, kill: asyncio.Event) -> None:
        self.role = role
        self.ready = asyncio.Event()
        self._stopping = asyncio.Event()
        self._kill = kill
        self._process: asyncio.subprocess.Process | None = None

    async def run(self) -> None:
        """Returns when asked to stop and the process has ended; StartFailed when it never got ready."""
        deaths = 0
        while not self._stopping.is_set():
            lived, code = await self._one_life()
            if self._stopping.is_set():
                return
            if not self.ready.is_set():
                raise StartFailed(self.role.name, code)
            deaths = 1 if lived >= STEADY else deaths + 1
            pause = pause_before_restart(deaths)
            log.warning("role died", name=self.role.name, ending=_ending(code), restart_in_seconds=pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)

    def ask_to_stop(self) -> None:
        self._stopping.set()
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._stopping.set()
        self._signal(signal.SIGKILL)

    async def _one_life(self) -> tuple[float, int]:
        """How many seconds it was ready, and its exit code."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            self._process = process = await asyncio.create_subprocess_exec(
                *self.role.command,
                "--supervisor-fd",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(), *self.role.descriptors),
                process_group=0,
            )
            theirs.close()
            if self._stopping.is_set():  # asked while it was being started
                self._signal(signal.SIGTERM)
            ended = asyncio.create_task(process.wait())
            since = await self._becomes_ready(ours, ended)
            killed = asyncio.create_task(self._kill.wait())
            await _first(ended, killed)
            if not ended.done():
                self.kill()
            killed.cancel()
            code = await ended
            return (time.monotonic() - since if since is not None else 0.0), code

    async def _becomes_ready(self, tie: socket.socket, ended: "asyncio.Task[int]") -> float | None:
        """When it said that it was ready; None when it ended or we are to kill it."""
        loop = asyncio.get_running_loop()
        heard = asyncio.create_task(loop.sock_recv(tie, len(READY)))
        killed = asyncio.create_task(self._kill.wait())
        slow = loop.call_later(SLOW, lambda: log.warning("slow to start", name=self.role.name, seconds=SLOW))
        try:
            await _first(heard, ended, killed)
            if heard.done() and not heard.exception() and heard.result():
                self.ready.set()
                return time.monotonic()
            return None
        finally:
            slow.cancel()
            for task in (heard, killed):
                task.cancel()
            await asyncio.wait((heard, killed))

    def _signal(self, number: signal.Signals) -> None:
        """To the role's whole process group, so that nothing it started is left."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


async def _all_ready(keepers: Sequence["_Keeper"]) -> None:
    for keeper in keepers:
        await keeper.ready.wait()


async def _first(*awaited: "asyncio.Future[Any]") -> None:
    await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)


def _obey_signals(stop: asyncio.Event, kill: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def asked() -> None:
        if stop.is_set():
            log.warning("killing")
            kill.set()
        else:
            log.info("stopping")
            stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked)


def _ending(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit {code}"
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
