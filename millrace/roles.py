"""How roles become processes: each alone, all under a supervisor, or all in one event loop."""

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence

import structlog

from millrace import data_folder, logs, wiring
from millrace.environment import Environment
from millrace.process import run
from millrace.settings import Settings, load_settings

NAMES = ("collect", "process", "deliver")  # the journey of an event, and the order of stopping
FURTHER = {"deliver": ("--further",)}  # what all but the first of a role are told
MOST_DELIVERERS = 4  # unless asked for more: one process sends tens of thousands of events a second
Ready = Callable[[], None]

log = structlog.get_logger()


def run_collect(environment: Environment, listen_fd: int | None, supervisor_fd: int | None) -> None:
    """The collector as this process, on its own socket or on one inherited from the supervisor."""
    logs.configure("collect")
    settings = load_settings(environment, delivers=False)
    listener = socket.socket(fileno=listen_fd) if listen_fd is not None else _own_listener(environment)

    async def main(stop: asyncio.Event, ready: Ready) -> None:
        await wiring.collect(settings, listener, stop, ready)

    run(main, supervisor_fd)


def run_process(environment: Environment, supervisor_fd: int | None) -> None:
    """The pipeline as this process."""
    logs.configure("process")
    settings = load_settings(environment, delivers=False)

    async def main(stop: asyncio.Event, ready: Ready) -> None:
        await wiring.process(settings, stop, ready)

    run(main, supervisor_fd)


def run_deliver(environment: Environment, supervisor_fd: int | None, *, first: bool = True) -> None:
    """The delivery engine as this process; `first`: of those of this machine."""
    logs.configure("deliver")
    settings = load_settings(environment, delivers=True)

    async def main(stop: asyncio.Event, ready: Ready) -> None:
        await wiring.deliver(settings, stop, ready, first=first)

    run(main, supervisor_fd)


def _cores() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes_for(cores: int) -> Mapping[str, int]:
    """How many processes each role has where nobody said: those cores that the other roles leave deliver."""
    return {"collect": 1, "process": 1, "deliver": max(1, min(cores - 2, MOST_DELIVERERS))}


def run_up(
    environment: Environment,
    *,
    single_process: bool,
    processes: Mapping[str, int],
    announce: Callable[[Settings, str], None],
) -> None:
    """Everything on this machine. `processes` says how many there are of roles that share their work, where it was asked for; `announce`
    is told the address once all is ready."""
    from millrace.serve import address_of, listen

    logs.configure("up")
    settings = load_settings(environment, delivers=True)
    with data_folder.locked(environment.data):
        listener = listen(environment.host, environment.port, reuse_port=environment.reuse_port)
        address = address_of(listener)
        with wiring.open_database(settings) as database:
            wiring.usable(settings, database)
        data_folder.note_address(environment.data, address)

        def ready() -> None:
            announce(settings, address)

        if single_process:
            _run_in_one(settings, listener, ready)
        else:
            _run_apart(environment, listener, {**processes_for(_cores()), **processes}, ready)


def _run_apart(environment: Environment, listener: socket.socket, processes: Mapping[str, int], ready: Ready) -> None:
    from millrace.supervisor import Role, supervise

    roles = []
    for name in NAMES:
        own = listener if name == "collect" else None
        roles.append(
            Role(name=name, command=_command(environment, name, own), descriptors=(own.fileno(),) if own else ())
        )
        further = [*_command(environment, name), *FURTHER.get(name, ())]
        roles += [Role(name=f"{name}-{one}", command=further, beside=True) for one in range(2, processes[name] + 1)]
    asyncio.run(supervise(roles, ready=ready, before_stop=listener.close))


def _command(environment: Environment, role: str, listener: socket.socket | None = None) -> Sequence[str]:
    """`-P` keeps the current folder from hiding our modules."""
    command = [sys.executable, "-P", "-m", "millrace", role, "--data", str(environment.data)]
    if environment.config is not None:
        command += ["--config", str(environment.config)]
    if listener is not None:
        command += ["--listen-fd", str(listener.fileno())]
    return command


def _run_in_one(settings: Settings, listener: socket.socket, ready: Ready) -> None:
    """All roles in one event loop, for debugging; they stop in the same order."""

    async def main(stop: asyncio.Event, tell: Ready) -> None:
        events = [asyncio.Event() for _ in NAMES]
        waiting = set(NAMES)

        def one_ready(name: str) -> Ready:
            def call() -> None:
                waiting.discard(name)
                if not waiting:
                    ready()
                    tell()

            return call

        async with asyncio.TaskGroup() as group:
            collect, process, deliver = events
            tasks = [
                group.create_task(wiring.collect(settings, listener, collect, one_ready("collect"))),
                group.create_task(wiring.process(settings, process, one_ready("process"))),
                group.create_task(wiring.deliver(settings, deliver, one_ready("deliver"))),
            ]
            group.create_task(_stop_in_order(stop, events, tasks))

    run(main)


async def _stop_in_order(
    stop: asyncio.Event, events: Sequence[asyncio.Event], tasks: Sequence["asyncio.Task[None]"]
) -> None:
    await stop.wait()
    for event, task in zip(events, tasks, strict=True):
        event.set()
        await asyncio.wait((task,))


def _own_listener(environment: Environment) -> socket.socket:
    from millrace.serve import address_of, listen

    listener = listen(environment.host, environment.port, reuse_port=environment.reuse_port)
    address = address_of(listener)
    data_folder.note_address(environment.data, address)
    log.info("listening", address=address)
    return listener
