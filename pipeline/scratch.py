"""Folders in which recorded events are resolved once more, beside the store in use. They hold people, so deletions must reach them,
also after their process has died: each is known to the database while anything is in it. Who works in one finds out that somebody was
deleted, and takes them out or begins anew; one that nobody works in is emptied by the process that deletes, if it is on its machine."""

import fcntl
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pipeline.store import scratches
from pipeline.store.database import Database
from pipeline.store.scratches import Scratch
from schemas.errors import Refused

FOLDER: Final = "scratch"
"""Of a data folder: it holds these folders and nothing else."""
_LOCK: Final = "lock"
_ID: Final = "id"


class Scratched:
    """A folder, held by this process. Blocks."""

    def __init__(self, database: Database, folder: Path, work: str) -> None:
        self.folder = folder
        self._database, self._work = database, work
        self._id = _id_in(folder)

    @property
    def is_kept(self) -> bool:
        """Whether what is in it may be gone on with."""
        return self._database.read_sync(lambda connection: scratches.known(connection, self._id)) is not None

    def begin(self) -> None:
        """Empties the folder, and says that something is in it from now on: before anything is read that goes into it."""
        self.clear()
        made = Scratch(secrets.token_hex(12), self._work, socket.gethostname(), str(self.folder.resolve()))
        (self.folder / _ID).write_text(made.id)
        self._database.run_sync(lambda connection: scratches.note(connection, made))
        self._id = made.id

    def clear(self) -> None:
        """Leaves nothing in it."""
        _clear(self._database, self.folder, self._id)

    def check(self) -> None:
        """Raises Changed when somebody was deleted since it was begun."""
        self._database.read_sync(lambda connection: scratches.check(connection, self._id))

    def heed(self) -> bool:
        """Whether it may hold somebody who was deleted. Who asks takes them out, and says so with `heeded`. Raises Changed when it
        was emptied."""
        if self.is_kept:  # asked often, and a look is cheaper than a turn to write
            return False
        return self._database.run_sync(lambda connection: scratches.heed(connection, self._id))

    def heeded(self) -> None:
        """Nobody is left in it who was deleted before `heed`."""
        self._database.run_sync(lambda connection: scratches.heeded(connection, self._id))


@contextmanager
def held(database: Database, folder: Path, work: str) -> Iterator[Scratched]:
    """A folder for `work`, which is made when it is missing. Refused while another process works in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder) as mine:
        if not mine:
            raise Refused(
                "already_running", f"Another `{work}` works in {folder}; wait until it is done, or stop it.", status=409
            )
        yield Scratched(database, folder, work)


def erase(database: Database, root: Path) -> tuple[int, list[Scratch]]:
    """Empties the folders below `root` that may hold somebody who was deleted and that nobody works in. Answers how many that
    were, and those that are left. Blocks."""
    wanted = {one.id: one for one in database.read_sync(scratches.stale)}
    done = 0
    for folder in sorted(path.parent for path in root.glob(f"*/{_ID}")) if wanted else ():
        with _locked(folder) as mine:
            if mine and _id_in(folder) in wanted:
                one = wanted.pop(_id_in(folder))
                _clear(database, folder, one.id)
                done += 1
    for one in [one for one in wanted.values() if _is_gone(one)]:
        database.run_sync(lambda connection: scratches.forget(connection, one.id))  # noqa: B023 - called at once
        del wanted[one.id]
    return done, list(wanted.values())


def _is_gone(one: Scratch) -> bool:
    """Whether somebody has removed it from this machine by hand."""
    return one.host == socket.gethostname() and _id_in(Path(one.path)) != one.id


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether the folder is this process's meanwhile. The kernel lets go of it however a process ends."""
    with (folder / _LOCK).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _id_in(folder: Path) -> str:
    try:
        return (folder / _ID).read_text()
    except FileNotFoundError:
        return ""


def _clear(database: Database, folder: Path, name: str) -> None:
    """Removes all but the lock, which somebody may be waiting for. The id goes last, so that whoever comes after a crash knows what
    it was."""
    for path in [path for path in folder.iterdir() if path.name not in (_LOCK, _ID)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    database.run_sync(lambda connection: scratches.forget(connection, name))
    (folder / _ID).unlink(missing_ok=True)
