"""The data folder: its version, its lock, and the keys that Millrace made up and must remember."""

import fcntl
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from schemas.errors import ConfigError

VERSION: Final = 1
WRITE_KEY: Final = "write-key"
API_TOKEN: Final = "api-token"
ADDRESS: Final = "address"


def prepare(folder: Path) -> None:
    """Creates the folder when missing and checks that this release may write to it. ConfigError, folder untouched,
    when it may not."""
    try:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder}: is a file; name a folder with --data or MILLRACE_DATA")
        _check_version(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _probe(folder)
        _write_once(folder / "VERSION", f"{VERSION}\n", mode=0o644)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be used as data folder: {error.strerror}; "
            "free space or permissions there, or name another folder with --data or MILLRACE_DATA"
        ) from error


def remembered(folder: Path, name: str, prefix: str) -> str:
    """The secret kept under `name`, made up the first time: 192 random bits after the prefix. Readable by the owner alone; processes that start together
    agree on one."""
    path = folder / name
    if not path.exists():
        _write_once(path, f"{prefix}{secrets.token_urlsafe(24)}\n", mode=0o600)
    kept = path.read_text().strip()
    if not kept:
        raise ConfigError(f"{path}: is empty; delete it and a new one is made at the next start")
    return kept


def recall(folder: Path, name: str) -> str | None:
    """What is kept under `name`, or None."""
    try:
        return (folder / name).read_text().strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None


def note_address(folder: Path, address: str) -> None:
    """Remembers where the collector listens, for the commands that talk to it."""
    replace(folder / ADDRESS, f"{address}\n", mode=0o644)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder for one `millrace up`; the kernel lets go of it however the process ends."""
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise ConfigError(
                f"{folder}: in use by another `millrace up` (process {holder}); "
                "stop that one first, or name another folder with --data"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@contextmanager
def one_at_a_time(folder: Path, name: str) -> Iterator[None]:
    """Waits until nobody else on this machine is in the section called `name`."""
    with (folder / f"{name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_version(folder: Path) -> None:
    kept = recall(folder, "VERSION")
    if kept is None:
        return
    if not kept.isdecimal():
        raise ConfigError(f"{folder / 'VERSION'}: says {kept[:40]!r}, not a version; restore the folder from a backup")
    if int(kept) > VERSION:
        raise ConfigError(
            f"{folder}: was written by a newer Millrace (data version {kept}, this one knows {VERSION}); "
            "upgrade Millrace, or name another folder with --data. Nothing was changed"
        )


def _probe(folder: Path) -> None:
    """Says now that the disk is full or read-only, not with the first event."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0" * 65_536)
        file.flush()
        os.fsync(file.fileno())


def _write_once(path: Path, text: str, *, mode: int) -> None:
    """Whole or not at all; the first writer wins."""
    if path.exists():
        return
    draft = _draft(path, text, mode)
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def replace(path: Path, text: str, *, mode: int) -> None:
    """Writes a file whole or not at all."""
    _draft(path, text, mode).replace(path)


def _draft(path: Path, text: str, mode: int) -> Path:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as file:
        os.fchmod(handle, mode)
        file.write(text)
        file.flush()
        os.fsync(handle)
    return Path(name)
