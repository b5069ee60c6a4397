"""The durable end of a journal in memory shared by all processes of the machine.

Readers poll one 64-bit word. Writers, who hold the topic's lock, keep what the next frame needs in two slots, written in turn and
checksummed, so that one killed while writing leaves the other slot whole. The file belongs to one boot of one machine:
after a restart, or in a copy of the folder, it is not trusted and the journal's last segment says where the end is.
"""

import mmap
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Final
from zlib import crc32

from pipeline.log.embedded.frame import Tail

_IDENTITY: Final = Struct("<8sII40sQ")  # magic, version, partitions, boot, inode
_MAGIC: Final = b"MRSTATE\x00"
_VERSION: Final = 1
_WORD_AT: Final = 64
_SLOTS_AT: Final = 128
_SEQUENCE_IN_SLOT: Final = 8


@dataclass(frozen=True, slots=True)
class Published:
    """What the writer before left. A sealed segment takes no more frames: the next one begins a new segment."""

    sequence: int
    sealed: bool
    tail: Tail


def boot_id() -> bytes:
    """Names this boot of this machine; empty where the system does not tell, and then no state is ever trusted."""
    if sys.platform != "linux":
        return b""
    return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()[:40]


class SharedState:
    """One topic's state file, mapped. Only a holder of the topic's lock may call `publish` and `claim`."""

    def __init__(self, path: Path, partitions: int) -> None:
        self._partitions = partitions
        self._slot = Struct(f"<IIQQqII{partitions}Q{partitions}q")  # crc sealed sequence at written chain - next high
        self._stride = -(-self._slot.size // 64) * 64
        size = _SLOTS_AT + 2 * self._stride
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if os.fstat(self._fd).st_size != size:
                os.ftruncate(self._fd, size)
            self._map = mmap.mmap(self._fd, size)
        except BaseException:
            os.close(self._fd)
            raise
        self._view = memoryview(self._map)
        self._words = self._view[_WORD_AT : _WORD_AT + 8].cast("Q")
        self._sequences = [
            self._view[at : at + 8].cast("Q")
            for at in (_SLOTS_AT + _SEQUENCE_IN_SLOT, _SLOTS_AT + self._stride + _SEQUENCE_IN_SLOT)
        ]

    @property
    def end(self) -> int:
        """The place up to which every frame is durable. One aligned load, safe without the lock."""
        return self._words[0]

    @property
    def sequence(self) -> int:
        """Changes with every `publish` of any process."""
        first, second = self._sequences
        return max(first[0], second[0])

    def trusted(self) -> bool:
        """Whether the state was written since the machine started, for this very file."""
        boot = boot_id()
        return bool(boot) and self._map[: _IDENTITY.size] == self._identity(boot) and self.load() is not None

    def load(self) -> Published | None:
        """What was published last. Without the lock the answer may be an older one; None: no slot is whole just now."""
        whole = [slot for slot in (self._load(0), self._load(1)) if slot is not None]
        return max(whole, key=lambda slot: slot.sequence, default=None)

    def publish(self, published: Published) -> None:
        """Moves the durable end to the tail given. The sequence must be one more than that of `load`."""
        tail = published.tail
        at = _SLOTS_AT + (published.sequence & 1) * self._stride
        numbers = (*tail.next_offsets, *tail.highs)
        fields = (published.sealed, published.sequence, tail.at, tail.written, tail.chain, 0)
        self._slot.pack_into(self._view, at, 0, *fields, *numbers)
        crc = crc32(self._view[at + 4 : at + self._slot.size])
        self._view[at : at + 4] = crc.to_bytes(4, "little")
        self._words[0] = tail.at

    def claim(self, tail: Tail) -> Published:
        """Starts over from `tail`, for this boot."""
        newest = self.load()
        published = Published(newest.sequence + 1 if newest else 1, False, tail)
        self._map[: _IDENTITY.size] = bytes(_IDENTITY.size)
        self.publish(published)
        self._map[: _IDENTITY.size] = self._identity(boot_id())
        return published

    def close(self) -> None:
        for view in (self._words, *self._sequences, self._view):
            view.release()
        self._map.close()
        os.close(self._fd)

    def _identity(self, boot: bytes) -> bytes:
        return _IDENTITY.pack(_MAGIC, _VERSION, self._partitions, boot, os.fstat(self._fd).st_ino)

    def _load(self, index: int) -> Published | None:
        at = _SLOTS_AT + index * self._stride
        raw = self._map[at : at + self._slot.size]
        crc, sealed, sequence, place, written, chain, _, *numbers = self._slot.unpack(raw)
        if not sequence or crc32(memoryview(raw)[4:]) != crc:
            return None
        tail = Tail(place, chain, written, numbers[: self._partitions], numbers[self._partitions :])
        return Published(sequence, bool(sealed), tail)
