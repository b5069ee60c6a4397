"""One process of a function, as seen from outside: started, asked, timed, killed."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from pipeline.functions.wire import Answer, Kind, Opening, answer, frame, frames
from schemas.errors import Unavailable
from schemas.exact_json import json_dumps, json_loads
from schemas.functions import FunctionCode

START: Final = 10.0  # seconds to load the file
_INTERPRETER: Final = "import sys; from pipeline.functions.child import main; main(int(sys.argv[1]), int(sys.argv[2]))"
_KEPT_VARIABLES: Final = ("PATH", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR")
_CHUNK: Final = 1 << 18  # bytes read at once
_LOG_CHUNK: Final = 65_536  # bytes of its own words, at most so many in LOG_PAUSE: then it waits
_LOG_PAUSE: Final = 0.05

Said = Callable[[bytes], None]
"""Is told what a function prints, as it comes."""


@dataclass(eq=False, slots=True)
class Process:
    """Belongs to the event loop it was started in. `handlers` is what the file defines."""

    child: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    logs: "asyncio.Task[None]"
    handlers: frozenset[str] = frozenset()
    buffer: bytearray = field(default_factory=bytearray)

    async def run(self, events: Sequence[bytes], timeout: float) -> list[Answer]:
        """One answer per event, in order; fewer when the process failed: the last is then TIMEOUT, MEMORY or CRASHED, and
        the process is of no more use. `timeout` is for each answer."""
        try:
            self.writer.write(frame(b"[" + b",".join(events) + b"]"))
        except ValueError:
            return [Answer(Kind.ANSWER, b"too large an event")] * len(events)
        answers: list[Answer] = []
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while len(answers) < len(events):
            try:
                async with asyncio.timeout_at(deadline):
                    chunk = await self.reader.read(_CHUNK)
            except TimeoutError:
                return [*answers, Answer(Kind.TIMEOUT)]
            except ConnectionError:
                chunk = b""
            if not chunk:
                return [*answers, Answer(Kind.CRASHED)]
            before = len(answers)
            self.buffer += chunk
            try:
                answers += map(answer, frames(self.buffer))
            except ValueError:
                return [*answers[: len(events) - 1], Answer(Kind.CRASHED)]
            if len(answers) > before:
                deadline = loop.time() + timeout
                if answers[-1].kind is Kind.MEMORY:
                    return answers
        return answers if len(answers) == len(events) else [*answers[: len(events) - 1], Answer(Kind.CRASHED)]

    async def end(self) -> None:
        """Kills it with all that it may have started. Never waits for its goodwill."""
        self.writer.close()
        if self.child.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGKILL)
        await self.child.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):  # its last words
                await asyncio.shield(self.logs)
        self.logs.cancel()
        await asyncio.wait((self.logs,))


async def start(opening: Opening, said: Said) -> Process:
    """Starts a process and loads the file in it. Unavailable says what is wrong with it."""
    ours, theirs = socket.socketpair()
    try:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-c", _INTERPRETER, str(theirs.fileno()), str(os.getpid())),
            pass_fds=(theirs.fileno(),),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
            start_new_session=True,
        )
    except OSError as error:
        ours.close()
        raise Unavailable(
            f"{FunctionCode.BAD_DEPLOY}: no process for it: {error.strerror}; free some memory"
        ) from error
    finally:
        theirs.close()
    ours.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=ours, limit=_CHUNK)
    process = Process(child, reader, writer, asyncio.create_task(_listen(child.stdout, said)))
    try:
        writer.write(frame(json_dumps(opening._asdict())))
        async with asyncio.timeout(START):
            head = await reader.readexactly(4)
            hello: Any = json_loads(await reader.readexactly(int.from_bytes(head, "big")))
        if "fault" in hello:
            raise Unavailable(f"{FunctionCode.BAD_DEPLOY}: {hello['fault']}; mend the file")
    except (TimeoutError, asyncio.IncompleteReadError, ConnectionError) as error:
        await process.end()
        what = f"takes longer than {START:.0f} s" if isinstance(error, TimeoutError) else "ends its process"
        raise Unavailable(f"{FunctionCode.BAD_DEPLOY}: loading {opening.file} {what}; mend the file") from error
    except BaseException:
        await process.end()
        raise
    process.handlers = frozenset(hello["handlers"])
    return process


async def _listen(words: asyncio.StreamReader | None, said: Said) -> None:
    """Takes what it prints, no faster than a person could ever want to read."""
    assert words is not None, "stdout is a pipe"
    began, taken = time.monotonic(), 0
    while chunk := await words.read(_LOG_CHUNK):
        said(chunk)
        taken += len(chunk)
        if taken >= _LOG_CHUNK:
            await asyncio.sleep(max(0.0, began + _LOG_PAUSE - time.monotonic()))
            began, taken = time.monotonic(), 0
