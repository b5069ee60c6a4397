"""What goes between us and the process of a function: frames of a length (4 bytes, big-endian) and so many bytes.

Ours is an `Opening`, then one JSON array of events after the other; each event is answered by one frame, in order: a letter
that says what came of it, and what belongs to it.
"""

from collections.abc import Iterator
from enum import Enum
from typing import Any, Final, NamedTuple

MAX_FRAME: Final = 16 << 20  # bytes
_HEAD: Final = 4


class Kind(Enum):
    """What came of an event. The values are the letters on the wire."""

    EVENT = b"E"  # the event that stands in its place, JSON
    SEVERAL = b"S"  # the events that stand in its place, a JSON array
    DONE = b"N"  # handled, nothing to hand on
    DROPPED = b"D"
    RETRY = b"R"  # JSON: [reason, seconds or null]
    INVALID = b"I"  # the author's words
    RAISED = b"X"  # exception and place
    ANSWER = b"A"  # what is wrong with what it returned
    UNSUPPORTED = b"U"  # no handler for its type
    MEMORY = b"M"
    LATE = b"W"  # its turn did not come: those before it took the time
    # Ours, never sent: the process had no say.
    TIMEOUT = b"t"
    CRASHED = b"c"
    LOCKED_OUT = b"l"


class Answer(NamedTuple):
    """What came of one event."""

    kind: Kind
    data: bytes = b""


class Opening(NamedTuple):
    """The first thing that the process hears."""

    file: str  # its path, for traces
    code: str
    settings: dict[str, Any]
    role: str  # source, insert or destination
    memory: int  # bytes on top of what the interpreter needs
    seconds: int  # of CPU for one call of a handler
    within: float  # seconds after which no further call is begun for events handed over together
    batch: int  # most events in one call of on_batch
    folder: str  # may be read
    allow: list[str] | None  # networks beside the public internet; None: no network at all


def frame(payload: bytes) -> bytes:
    """ValueError for a payload beyond MAX_FRAME."""
    if len(payload) > MAX_FRAME:
        raise ValueError(f"a frame of {len(payload)} bytes")
    return len(payload).to_bytes(_HEAD, "big") + payload


def frames(buffer: bytearray) -> Iterator[bytes]:
    """Takes the whole frames off the buffer's beginning. ValueError for one beyond MAX_FRAME."""
    at = 0
    try:
        while len(buffer) - at >= _HEAD:
            size = int.from_bytes(buffer[at : at + _HEAD], "big")
            if size > MAX_FRAME:
                raise ValueError(f"a frame of {size} bytes")
            if len(buffer) - at - _HEAD < size:
                return
            start = at + _HEAD
            at = start + size
            yield bytes(buffer[start:at])
    finally:
        del buffer[:at]


_KINDS: Final = {one.value: one for one in Kind if one.value.isupper()}


def answer(payload: bytes) -> Answer:
    """Reads an answer. ValueError when it is none."""
    kind = _KINDS.get(payload[:1])
    if kind is None:
        raise ValueError("not an answer")
    return Answer(kind, payload[1:])
