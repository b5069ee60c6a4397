"""Request bodies as they come over the wire: decompressed, never beyond the limit."""

import zlib
from typing import Final

from schemas.errors import Refused

BODY_LIMIT: Final = 524_288  # bytes, decompressed

_WINDOW_BITS: Final = {b"gzip": 16 + zlib.MAX_WBITS, b"x-gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}


def too_large() -> Refused:
    return Refused("body_too_large", f"Exceed payload limit: a body holds at most {BODY_LIMIT} bytes, decompressed")


def decompress(wire: bytes, encoding: bytes) -> bytes:
    """The body behind a Content-Encoding (b"" when there is none). Refused when it cannot be read or passes the limit;
    no more than the limit is ever decompressed."""
    encoding = encoding.strip().lower()
    if encoding in (b"", b"identity"):
        if len(wire) > BODY_LIMIT:
            raise too_large()
        return wire
    bits = _WINDOW_BITS.get(encoding)
    if bits is None:
        name = encoding.decode("latin-1")
        raise Refused("unsupported_encoding", f"Content-Encoding {name!r} is not supported; use gzip, deflate or none")
    try:
        return _inflate(wire, _raw_deflate(wire) if encoding == b"deflate" else bits)
    except (zlib.error, EOFError) as error:
        raise Refused("invalid_encoding", f"the body is not valid {encoding.decode()}: {error}") from error


def _raw_deflate(wire: bytes) -> int:
    """`deflate` means a zlib header, yet some clients send the bare stream. A header is a multiple of 31 with method 8."""
    has_header = len(wire) > 1 and wire[0] & 0x0F == 8 and (wire[0] << 8 | wire[1]) % 31 == 0
    return zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS


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
