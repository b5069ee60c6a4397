"""The life of one process: its event loop, its signals, its tie to the supervisor."""

import asyncio
import ctypes
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

log = structlog.get_logger()

DEADLINE: Final = 20.0  # seconds from the first signal to the end
READY: Final = b"ready\n"
KEPT_FREE: Final = 32 << 20  # bytes that the allocator keeps for what comes next
_M_TRIM_THRESHOLD, _M_TOP_PAD = -1, -2  # of malloc.h

Main = Callable[[asyncio.Event, Callable[[], None]], Awaitable[None]]
"""What a role does: works until the event is set, and calls back once it is ready."""


def run(main: Main, supervisor: int | None = None) -> None:
    """Runs `main` to its end. The first SIGTERM or SIGINT asks it to stop, the second ends the process at once.

    `supervisor` is a socket of the parent: it hears that we are ready, and when it closes the parent is gone and we
    stop as if asked to."""
    tie = _Tie(supervisor) if supervisor is not None else None

    async def whole() -> None:
        stop = asyncio.Event()
        _obey_signals(stop)
        if tie is not None:
            tie.watch()
        log.info("starting", pid=os.getpid())

        def ready() -> None:
            log.info("ready")
            if tie is not None:
                tie.tell_ready()

        await main(stop, ready)
        log.info("stopped")

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(whole())


def _obey_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def asked() -> None:
        if stop.is_set():
            log.warning("stopping at once")
            os._exit(1)
        log.info("stopping")
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def settle() -> None:
    """Called once a role is set up: what exists now stays, and need not be looked through at every collection of garbage.
    Records are no garbage in cycles, so a higher threshold costs no memory; below the objects of several polls of the log, each of which
    makes some fifty thousand, it has each poll looked through for nothing. What is freed stays ours up to a bound: glibc returns it to the
    system, and each poll of the log would have the kernel clear the same pages anew."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:  # glibc's
        mallopt(_M_TRIM_THRESHOLD, KEPT_FREE)
        mallopt(_M_TOP_PAD, KEPT_FREE // 4)


class _Tie:
    """The thread that notices the parent's death even when the event loop is busy or stuck."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)

    def watch(self) -> None:
        threading.Thread(target=self._wait_for_end, name="supervisor", daemon=True).start()

    def tell_ready(self) -> None:
        try:
            self._socket.sendall(READY)
        except OSError as error:  # the parent is gone; the watching thread acts on it
            log.warning("supervisor not told", error=str(error))

    def _wait_for_end(self) -> None:
        try:
            while self._socket.recv(64):
                pass
        except OSError as error:
            log.warning("supervisor lost", error=str(error))
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(DEADLINE)
        os._exit(1)
