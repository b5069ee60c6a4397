"""Consumer groups in files: who is a member, which partitions it holds, what the group has committed.

Being alive is holding a lock: the system frees it when a process dies, however it dies. Members agree without talking, since all
compute the same assignment from the same sorted list; where their views differ for a moment, the partition's own lock
keeps two from holding it. Two subscriptions of one process are two members: a lock belongs to an open file.
"""

import fcntl
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import Final
from urllib.parse import quote
from zlib import crc32

import structlog

log = structlog.get_logger()

LOOK_EVERY: Final = 0.02
"""Seconds between looks at the member folder's time stamp and at the locks of partitions still missing."""
PROBE_EVERY: Final = 0.2
"""Seconds between tries of every member's lock, which is how a killed one is noticed."""
_OFFSET: Final = Struct("<QII")  # next offset, its checksum, zero


def group_folder(topic: Path, group: str) -> Path:
    return topic / "groups" / quote(group, safe=" ").replace(".", "%2E")


def assignment(members: Sequence[str], member: str, partitions: int) -> frozenset[int]:
    """The partitions that `member` should hold: every one has one owner, shares differ by at most one."""
    ordered = sorted(members)
    return frozenset(range(ordered.index(member), partitions, len(ordered)))


def committed_offsets(folder: Path, partitions: int) -> Mapping[int, int]:
    """What a group has committed, per partition that it ever committed."""
    found: dict[int, int] = {}
    for partition in range(partitions):
        with suppress(FileNotFoundError):
            offset = _decode(_offset_path(folder, partition).read_bytes())
            if offset is not None:
                found[partition] = offset
    return found


class Member:
    """One live member. `check` may take and give up partitions; nothing else does, except leaving."""

    def __init__(self, folder: Path, partitions: int) -> None:
        self._folder = folder
        self._partitions = partitions
        self._members = folder / "members"
        self._members.mkdir(parents=True, exist_ok=True)
        self._locks: dict[int, int] = {}
        self._target: frozenset[int] = frozenset()
        self._stamp = 0
        self._next_look = self._next_probe = 0.0
        self.name, self._own = self._join()

    @property
    def held(self) -> frozenset[int]:
        return frozenset(self._locks)

    def holds(self, partition: int) -> bool:
        return partition in self._locks

    def check(self, now: float) -> bool:
        """Looks around when it is time (`now` is monotonic); True when the partitions held have changed."""
        if now < self._next_look:
            return False
        self._next_look = now + LOOK_EVERY
        stamp = os.stat(self._members).st_mtime_ns
        if stamp != self._stamp or now >= self._next_probe:
            self._stamp = stamp
            self._next_probe = now + PROBE_EVERY
            self._target = assignment(self._live(), self.name, self._partitions)
        return self._settle()

    def commit(self, partition: int, offset: int) -> None:
        """Only for a partition held."""
        os.pwrite(self._locks[partition], _encode(offset), 0)

    def committed(self, partition: int) -> int | None:
        """Only for a partition held."""
        return _decode(os.pread(self._locks[partition], _OFFSET.size, 0))

    def leave(self) -> None:
        for descriptor in self._locks.values():
            os.close(descriptor)
        self._locks.clear()
        with suppress(FileNotFoundError):
            (self._members / self.name).unlink()
        os.close(self._own)

    def _join(self) -> tuple[str, int]:
        """A locked file of its own. Names sort by the time of joining, so that a new member disturbs the others least."""
        while True:
            name = f"{time.time_ns():020}-{os.getpid()}-{os.urandom(4).hex()}"
            path = self._members / name
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return name, descriptor
            os.close(descriptor)  # another member took it for dead between the two calls

    def _live(self) -> Sequence[str]:
        """Every member whose file is locked; removes the files of the dead."""
        others = (name for name in os.listdir(self._members) if name != self.name)
        return [self.name, *(name for name in others if _is_locked(self._members / name))]

    def _settle(self) -> bool:
        """Gives up what is another's, takes what is its own and free."""
        surplus = self._locks.keys() - self._target
        for partition in surplus:
            os.close(self._locks.pop(partition))
        gained = [partition for partition in sorted(self._target - self._locks.keys()) if self._take(partition)]
        return bool(surplus or gained)

    def _take(self, partition: int) -> bool:
        path = _offset_path(self._folder, partition)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._locks[partition] = descriptor
        return True


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        with suppress(FileNotFoundError):
            path.unlink()
        return False
    finally:
        os.close(descriptor)


def _offset_path(folder: Path, partition: int) -> Path:
    return folder / f"{partition}.offset"


def _encode(offset: int) -> bytes:
    raw = offset.to_bytes(8, "little")
    return _OFFSET.pack(offset, crc32(raw), 0)


def _decode(raw: bytes) -> int | None:
    """None when nothing was committed, or a power failure left something that is no offset: then records come again."""
    if len(raw) < _OFFSET.size:
        return None
    offset, crc, _ = _OFFSET.unpack_from(raw)
    if crc32(raw[:8]) != crc:
        log.warning("committed offset unreadable, records come again")
        return None
    return int(offset)
