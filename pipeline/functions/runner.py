"""A function that is ready to run: its processes, replaced when they fail, and locked out when they fail too often."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import structlog

from pipeline.functions.process import Process, Said, start
from pipeline.functions.wire import Answer, Kind, Opening
from schemas.config import FunctionConfig
from schemas.errors import ConfigError, Unavailable

PIECE: Final = 100  # events handed over at once, at most
_PIECE_BYTES: Final = 1 << 20
_FAULTS: Final = 3  # in a row, until it is locked out
_LOCK: Final = 1.0  # seconds; doubles
_LONGEST_LOCK: Final = 60.0
_FAILED: Final = frozenset({Kind.TIMEOUT, Kind.CRASHED, Kind.MEMORY})

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A function and how it is to be run. `allow` as in `Opening`."""

    name: str
    file: Path
    code: str
    role: str
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    timeout: float = 5.0
    memory: int = 256 << 20
    processes: int = 1
    batch: int = 20
    within: float = 10.0
    allow: Sequence[str] | None = ()

    @property
    def version(self) -> str:
        """The same for the same code."""
        return sha256(self.code.encode()).hexdigest()[:12]

    @property
    def opening(self) -> Opening:
        return Opening(
            file=str(self.file),
            code=self.code,
            settings=dict(self.settings),
            role=self.role,
            memory=self.memory,
            seconds=int(self.timeout) + 1,
            batch=self.batch,
            within=self.within,
            folder=str(self.file.parent),
            allow=None if self.allow is None else list(self.allow),
        )


def spec_of(config: FunctionConfig, folder: Path, role: str, allow: Sequence[str] | None) -> Spec:
    """The function that a configuration names, its code read once: all its processes run the same until the role starts again.
    ConfigError when there is no such file."""
    return Spec(
        name=config.name,
        file=folder / f"{config.name}.py",
        code=code_of(folder, config.name),
        role=role,
        settings=config.settings,
        timeout=config.timeout,
        memory=config.memory_mb << 20,
        processes=config.processes,
        batch=config.batch,
        allow=allow,
    )


def code_of(folder: Path, name: str) -> str:
    """The text of a function. ConfigError when there is none."""
    file = folder / f"{name}.py"
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"function {name}: {file} cannot be read; write it, or name another") from error


class Runner:
    """Runs events through a function. Any number of calls at once; its processes are shared among them."""

    def __init__(self, spec: Spec, said: Said) -> None:
        self.spec = spec
        self._said = said
        self._idle: asyncio.LifoQueue[Process | None] = asyncio.LifoQueue()
        self._all: set[Process] = set()
        self._faults = 0  # in a row
        self._locked_until = 0.0

    async def open(self) -> frozenset[str]:
        """Starts the first process, the others when they are needed; the handlers it has. Unavailable: the file cannot be loaded."""
        for _ in range(self.spec.processes - 1):
            self._idle.put_nowait(None)
        process = await self._start()
        self._idle.put_nowait(process)
        return process.handlers

    async def close(self) -> None:
        """Ends all processes."""
        await asyncio.gather(*(one.end() for one in self._all))
        self._all.clear()

    @property
    def locked_for(self) -> float:
        """Seconds that it is locked out for."""
        return max(0.0, self._locked_until - asyncio.get_running_loop().time())

    async def run(self, events: Sequence[bytes]) -> list[Answer]:
        """One answer per event (JSON), in order."""
        pieces = _pieces(events)
        if len(pieces) == 1:
            return await self._piece(pieces[0])
        answers = await asyncio.gather(*(self._piece(piece) for piece in pieces))
        return [one for piece in answers for one in piece]

    async def _piece(self, events: Sequence[bytes]) -> list[Answer]:
        process = await self._idle.get()
        answers: list[Answer] = []
        again = False  # the event under way has ended a process before
        try:
            while len(answers) < len(events):
                if self.locked_for > 0:
                    return answers + [Answer(Kind.LOCKED_OUT)] * (len(events) - len(answers))
                if process is None:
                    try:
                        process = await self._start()
                    except Unavailable as error:
                        self._fault(str(error))
                        continue
                got = await process.run(events[len(answers) :], self.spec.timeout)
                last = got[-1].kind
                if last in _FAILED:
                    await self._discard(process)
                    process = None
                again = last is Kind.CRASHED and not (again and len(got) == 1)
                if again:  # once more, by itself: something else may have ended it
                    got.pop()
                elif last in _FAILED:
                    self._fault(last.name.lower())
                else:
                    self._recovered()
                answers += got
        except BaseException:
            if process is not None:
                await self._discard(process)
                process = None
            raise
        finally:
            self._idle.put_nowait(process)
        return answers

    def _fault(self, what: str) -> None:
        self._faults += 1
        if self._faults >= _FAULTS:
            wait = min(_LONGEST_LOCK, _LOCK * 2.0 ** min(self._faults - _FAULTS, 16))
            self._locked_until = asyncio.get_running_loop().time() + wait
            if self._faults == _FAULTS:
                log.error("function locked out: it fails again and again", function=self.spec.name, error=what)

    def _recovered(self) -> None:
        if self._faults >= _FAULTS:
            log.info("function works again", function=self.spec.name)
        self._faults = 0

    async def _start(self) -> Process:
        process = await start(self.spec.opening, self._said)
        self._all.add(process)
        return process

    async def _discard(self, process: Process) -> None:
        self._all.discard(process)
        await process.end()


@asynccontextmanager
async def running(spec: Spec, said: Said) -> AsyncIterator[Runner]:
    """A function for as long as the block runs. Unavailable: its file cannot be loaded."""
    runner = Runner(spec, said)
    try:
        await runner.open()
        yield runner
    finally:
        await runner.close()


def _pieces(events: Sequence[bytes]) -> list[Sequence[bytes]]:
    """Cuts events into what is handed over at once."""
    pieces: list[Sequence[bytes]] = []
    start = size = 0
    for at, event in enumerate(events):
        if at > start and (at - start == PIECE or size + len(event) > _PIECE_BYTES):
            pieces.append(events[start:at])
            start, size = at, 0
        size += len(event)
    return [*pieces, events[start:]] if len(events) > start else pieces
