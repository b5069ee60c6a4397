"""Request bodies as they come over the wire: decompressed, never beyond the limit."""

import zlib
from collections.abc import Callable, Mapping
from typing import Final

import brotli
import zstandard

from schemas.errors import Refused

BODY_LIMIT: Final = 524_288  # bytes, decompressed

ENCODINGS_LIMIT: Final = 3  # of a body that was compressed more than once
ZSTD_WINDOW: Final = 8 << 20  # bytes that a decoder has to offer, says RFC 8878; a frame that wants more is refused

Decode = Callable[[bytes], bytes]


def too_large() -> Refused:
    return Refused("body_too_large", f"Exceed payload limit: a body holds at most {BODY_LIMIT} bytes, decompressed")


def decompress(wire: bytes, encoding: bytes) -> bytes:
    """The body behind a Content-Encoding (b"" when there is none). Refused when it cannot be read or passes the limit;
    no more than the limit is ever decompressed."""
    names = [name for part in encoding.split(b",") if (name := part.strip().lower()) not in (b"", b"identity")]
    if len(names) > ENCODINGS_LIMIT:
        raise Refused("unsupported_encoding", f"a body is compressed at most {ENCODINGS_LIMIT} times")
    for name in reversed(names):
        decode = _DECODERS.get(name)
        if decode is None:
            raise Refused(
                "unsupported_encoding",
                f"Content-Encoding {name[:40].decode('latin-1')!r} is not supported; use gzip, deflate, br, zstd or none",
            )
        try:
            wire = decode(wire)
        except (zlib.error, brotli.error, zstandard.ZstdError, EOFError) as error:
            message = f"the body is not valid {name.decode()} ({error}): compress it so, or leave Content-Encoding out"
            raise Refused("invalid_encoding", message) from error
    if len(wire) > BODY_LIMIT:
        raise too_large()
    return wire


def _gzip(wire: bytes) -> bytes:
    return _inflate(wire, 16 + zlib.MAX_WBITS)


def _deflate(wire: bytes) -> bytes:
    """`deflate` means a zlib header, yet some clients send the bare stream. A header is a multiple of 31 with method 8."""
    has_header = len(wire) > 1 and wire[0] & 0x0F == 8 and (wire[0] << 8 | wire[1]) % 31 == 0
    return _inflate(wire, zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)


def _inflate(wire: bytes, bits: int) -> bytes:
    """All members of the stream: gzip files may be concatenated."""
    parts: list[bytes] = []
    room = BODY_LIMIT
    while wire:
        stream = zlib.decompressobj(bits)
        part = stream.decompress(wire, room + 1)
        room -= len(part)
        if room < 0:
            raise too_large()
        if not stream.eof:
            raise EOFError("it ends too early")
        parts.append(part)
        wire = stream.unused_data
    return b"".join(parts)


def _brotli(wire: bytes) -> bytes:
    stream = brotli.Decompressor()
    parts: list[bytes] = []
    room = BODY_LIMIT
    while not stream.is_finished():
        part = stream.process(wire, output_buffer_limit=room + 1)
        room -= len(part)
        if room < 0:
            raise too_large()
        if not part and stream.can_accept_more_data() and not stream.is_finished():
            raise EOFError("it ends too early")
        parts.append(part)
        wire = b""
    return b"".join(parts)


def _zstd(wire: bytes) -> bytes:
    """All frames. The reader knows a limit but not whether the end is missing, the other way about: so both, in this order."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
    with decompressor.stream_reader(wire, read_across_frames=True) as reader:
        body = reader.read(BODY_LIMIT + 1)
    if len(body) > BODY_LIMIT:
        raise too_large()
    while wire:
        frame = decompressor.decompressobj()
        frame.decompress(wire)
        if not frame.eof:
            raise EOFError("it ends too early")
        wire = frame.unused_data
    return body


_DECODERS: Final[Mapping[bytes, Decode]] = {
    b"gzip": _gzip,
    b"x-gzip": _gzip,
    b"deflate": _deflate,
    b"br": _brotli,
    b"zstd": _zstd,
}
