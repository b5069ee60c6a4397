"""Functions for tests: code in a folder, a runner in its own process, events to put through."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import orjson

from pipeline.functions.runner import Runner, Spec, running


def write(folder: Path, name: str, code: str) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.py"
    file.write_text(dedent(code))
    return file


@asynccontextmanager
async def function(
    folder: Path,
    code: str,
    *,
    role: str = "insert",
    settings: Mapping[str, Any] | None = None,
    said: list[bytes] | None = None,
    **bounds: Any,
) -> AsyncIterator[Runner]:
    file = write(folder, "shop", code)
    words = [] if said is None else said
    spec = Spec(name="shop", file=file, code=file.read_text(), role=role, settings=settings or {}, **bounds)
    async with running(spec, words.append) as runner:
        yield runner


def track(event: str, **properties: Any) -> bytes:
    return orjson.dumps({"type": "track", "event": event, "properties": properties})
