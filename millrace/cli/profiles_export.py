"""Writes an export to a file, and goes on with one that was cut off.

What has arrived stands in FILE.partial, whose first line says when the export began; it becomes FILE once it is whole."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final
from urllib.parse import urlencode

from schemas.errors import ConfigError, Unavailable

if TYPE_CHECKING:
    from millrace.client import Client

PATIENCE: Final = 30.0  # seconds that a server may be away
_PATH: Final = "/api/profiles/export"


def export_to(client: "Client", out: Path, *, progress: bool, pause: Callable[[float], None] = time.sleep) -> int:
    """Writes all lines and returns how many. Unavailable when the server stays away; what has arrived is kept for the next
    attempt."""
    partial = out.with_name(out.name + ".partial")
    try:
        with partial.open("ab+") as file, _bar(progress) as advance:
            as_of, after, count = _kept(file)
            advance(count, None)
            away, complete = 0.0, False
            while True:
                query = urlencode({"as_of": as_of, "after": after} if as_of else {})
                try:
                    for headers, line in client.stream(f"{_PATH}?{query}"):
                        if not as_of:
                            as_of = headers["millrace-export-as-of"]
                            file.write(f"{as_of}\n".encode())
                        told = json.loads(line) if line.endswith(b"\n") else {}
                        complete = told.get("complete", False)
                        if "cursor" in told:
                            file.write(line)
                            after, away, count = told["cursor"], 0.0, count + 1
                            advance(count, int(headers["millrace-export-profiles"]))
                    if complete:
                        break
                    raise Unavailable(f"{client.address} ended the export before it was complete")
                except Unavailable:
                    file.flush()
                    if away >= PATIENCE:
                        raise
                    pause(1.0)
                    away += 1.0
            _finish(file, out)
    except OSError as error:
        raise ConfigError(f"{out}: {error.strerror or error}; free space there, or choose another --out") from error
    partial.unlink()
    return count


def _kept(file: BinaryIO) -> tuple[str, str, int]:
    """When the export in the file began, the cursor of its last whole line, and how many lines there are. A line that was cut off
    goes."""
    file.seek(0)
    as_of = file.readline()
    if not as_of.endswith(b"\n"):
        file.truncate(0)
        return "", "", 0
    end, count, last = file.tell(), 0, b""
    for line in file:
        if not line.endswith(b"\n"):
            break
        end, count, last = end + len(line), count + 1, line
    file.truncate(end)
    return as_of.decode().strip(), json.loads(last)["cursor"] if last else "", count


def _finish(file: BinaryIO, out: Path) -> None:
    """The lines without the first, under their real name, all or nothing."""
    file.seek(0)
    file.readline()
    draft = out.with_name(out.name + ".draft")
    with draft.open("wb") as whole:
        while part := file.read(1 << 20):
            whole.write(part)
        whole.flush()
        os.fsync(whole.fileno())
    draft.replace(out)


@contextmanager
def _bar(shown: bool) -> Iterator[Callable[[int, int | None], None]]:
    """Called with how many lines there are, and of how many."""
    if not shown:
        yield lambda _count, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns: list[Any] = [TextColumn("profiles"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("profiles", total=None)
        yield lambda count, total: bar.update(task, completed=count, total=total)
