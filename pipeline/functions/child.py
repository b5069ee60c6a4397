"""The process of one function: `python -m pipeline.functions.child FD PARENT`. Reads events, calls handlers, answers.

What it prints goes to our pipe, not among the answers. It knows nothing but the opening; its settings are all it has of secrets.
"""

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import isawaitable
from traceback import extract_tb
from types import ModuleType
from typing import Any, Final

from pipeline.functions import confine
from pipeline.functions.wire import Kind, Opening, frame
from schemas.exact_json import json_dumps, json_loads
from schemas.functions import HANDLERS, Drop, Invalid, Retry

Handler = Callable[[Any, dict[str, Any]], Any]
_SPELLINGS: Final = {"on_identity": "on_identify"}  # of the reference's documents
_WORDS: Final = 200  # characters of what an author says


def main(descriptor: int, parent: int) -> None:
    """Serves until the other side closes."""
    confine.die_with(parent)
    sys.stdout = open(1, "w", buffering=1, errors="replace", closefd=False)  # noqa: SIM115 - for life
    channel = socket.socket(fileno=descriptor)
    opening = Opening(**json_loads(_received(channel)))
    _make_importable()
    sys.path.insert(0, opening.folder)
    confine.limit(opening.memory)
    confine.keep_apart(opening.folder, opening.allow)
    confine.limit_cpu(opening.seconds)
    try:
        handlers = load(opening.file, opening.code)
    except BaseException as error:
        channel.sendall(frame(json_dumps({"fault": fault_of(error, opening.file)})))
        return
    channel.sendall(frame(json_dumps({"handlers": sorted(handlers)})))
    while raw := _received(channel):
        for kind, data in _answers(json_loads(raw), handlers, opening):
            try:
                channel.sendall(frame(kind.value + data))
            except ValueError:
                channel.sendall(frame(Kind.ANSWER.value + b"returned too much"))
            if kind is Kind.MEMORY:
                return  # what it holds on to would fail the next as well


def _received(channel: socket.socket) -> bytes:
    """The next frame; nothing once the other side has closed."""
    head = channel.recv(4, socket.MSG_WAITALL)
    if len(head) < 4:
        return b""
    return channel.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)


def _make_importable() -> None:
    """`millrace.functions`, loaded while its file can be read; the package itself would not be found later on."""
    import schemas.functions

    package, module = ModuleType("millrace"), schemas.functions
    setattr(package, "functions", module)  # noqa: B010 - mypy knows no attribute of a new module
    sys.modules.update({"millrace": package, "millrace.functions": module})


def load(file: str, code: str) -> dict[str, Handler]:
    """Runs a function's file; its handlers by name. Raises whatever the file raises, ValueError when it has no handler."""
    module = ModuleType("function")
    module.__file__ = file
    sys.modules["function"] = module
    exec(compile(code, file, "exec"), module.__dict__)
    names = {_SPELLINGS.get(name, name): one for name, one in vars(module).items() if callable(one)}
    handlers: dict[str, Handler] = {name: names[name] for name in HANDLERS if name in names}
    if not handlers:
        raise ValueError(f"defines none of {', '.join(HANDLERS)}")
    return handlers


def fault_of(error: BaseException, file: str) -> str:
    """Names an exception and where in the file it arose. Its words may hold what was in the event, so they stay inside; those of
    the interpreter about a file that cannot be loaded do not."""
    kind = type(error).__name__
    if isinstance(error, SyntaxError):
        return f"{kind} at {os.path.basename(error.filename or file)}:{error.lineno}: {error.msg}"
    lines = [one.lineno for one in extract_tb(error.__traceback__) if one.filename == file]
    words = f": {error}" if isinstance(error, ImportError) or (isinstance(error, ValueError) and not lines) else ""
    return f"{kind} at {os.path.basename(file)}:{lines[-1]}{words}" if lines else f"{kind}{words}"


# ── Events ────────────────────────────────────────────────────────────────────────────────────────────────────────

_Said = tuple[Kind, bytes]


def _answers(events: Sequence[Any], handlers: Mapping[str, Handler], opening: Opening) -> Iterator[_Said]:
    batch = handlers.get("on_batch") if opening.role != "source" else None
    most = 1 if batch is None else opening.batch
    ends = time.monotonic() + opening.within
    for start in range(0, len(events), most):
        if time.monotonic() >= ends:
            yield from [(Kind.LATE, b"")] * (len(events) - start)
            return
        confine.limit_cpu(opening.seconds)
        if batch is None:
            yield _single(events[start], handlers, opening)
        else:
            yield from _together(events[start : start + most], batch, opening)


def _single(event: dict[str, Any], handlers: Mapping[str, Handler], opening: Opening) -> _Said:
    name = f"on_{event.get('type')}"
    handler = handlers.get(name)
    if handler is None:
        return Kind.UNSUPPORTED, b""
    try:
        result = _called(handler, event, opening.settings)
        return _handled(result, opening.role, name)
    except BaseException as error:
        return _raised(error, opening.file)


def _together(events: Sequence[Any], handler: Handler, opening: Opening) -> list[_Said]:
    try:
        results = _called(handler, list(events), opening.settings)
    except BaseException as error:
        return [_raised(error, opening.file)] * len(events)
    if results is None and opening.role == "destination":
        return [(Kind.DONE, b"")] * len(events)
    if not isinstance(results, list) or len(results) != len(events):
        words = f"on_batch returned {_shape(results)} for {len(events)} events".encode()
        return [(Kind.ANSWER, words)] * len(events)
    verdict = _status if opening.role == "destination" else _handled_in_batch
    return [verdict(one) for one in results]


def _called(handler: Handler, event: Any, settings: dict[str, Any]) -> Any:
    result = handler(event, settings)
    return asyncio.run(_awaited(result)) if isawaitable(result) else result


async def _awaited(result: Any) -> Any:
    return await result


def _handled(result: Any, role: str, name: str) -> _Said:
    if role == "destination":
        return Kind.DONE, b""
    if isinstance(result, dict):
        return Kind.EVENT, json_dumps(result)
    if role == "source" and isinstance(result, list) and result and all(isinstance(one, dict) for one in result):
        return Kind.SEVERAL, json_dumps(result)
    wanted = "an event or a list of events" if role == "source" else "an event"
    return Kind.ANSWER, f"{name} returned {_shape(result)} instead of {wanted}; raise Drop to drop one".encode()


def _handled_in_batch(result: Any) -> _Said:
    """None in the place of an event drops it: a list has no other way to say so."""
    if result is None:
        return Kind.DROPPED, b""
    try:
        return _handled(result, "insert", "on_batch")
    except (TypeError, ValueError, RecursionError):
        return Kind.ANSWER, b"on_batch returned what is not JSON"


def _status(result: Any) -> _Said:
    """One entry of what a destination's on_batch returns: an HTTP status and perhaps what was wrong."""
    status = result.get("status") if isinstance(result, dict) else None
    if not isinstance(status, int):
        return Kind.ANSWER, b'on_batch answers each event with {"status": 200}'
    if 200 <= status < 300:
        return Kind.DONE, b""
    words = f"{status} {result.get('errormessage') or ''}".strip()
    if status in (408, 423, 429) or (status >= 500 and status != 501):
        return Kind.RETRY, json_dumps([words[:_WORDS], None])
    return Kind.INVALID, words[:_WORDS].encode()


def _shape(result: Any) -> str:
    if result is None:
        return "nothing"
    return f"a list of {len(result)}" if isinstance(result, list) else f"{type(result).__name__}"


def _raised(error: BaseException, file: str) -> _Said:
    match error:
        case Drop():
            return Kind.DROPPED, str(error)[:_WORDS].encode(errors="replace")
        case Retry():
            after = error.after if isinstance(error.after, int | float) else None
            return Kind.RETRY, json_dumps([str(error.reason)[:_WORDS], after])
        case Invalid():
            return Kind.INVALID, str(error)[:_WORDS].encode(errors="replace")
        case MemoryError():
            return Kind.MEMORY, b""
        case TypeError() | RecursionError() if not _within(error, file):
            return Kind.ANSWER, b"returned what is not JSON"
    return Kind.RAISED, fault_of(error, file).encode()


def _within(error: BaseException, file: str) -> bool:
    return any(one.filename == file for one in extract_tb(error.__traceback__))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
