"""The answers of the tracking API, as bytes: bodies that every SDK can read, CORS on each of them."""

from math import ceil
from typing import Final

import orjson

from collector.headers import Headers, cors

SUCCESS: Final = b'{"success": true}'


def error_body(code: str, message: str) -> bytes:
    """One object for every parser: some read `code` and `message`, others `error` or `success`."""
    return orjson.dumps({"success": False, "code": code, "message": message, "error": message})


def json_headers(body: bytes, origin: bytes | None, after: float | None = None) -> Headers:
    """`after` seconds to wait become Retry-After and, for those SDKs that read only this, X-RateLimit-Reset: whole
    seconds, since several read no other form."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *cors(origin)]
    if after is not None:
        wait = b"%d" % max(1, ceil(after))
        headers += ((b"retry-after", wait), (b"x-ratelimit-reset", wait))
    return headers
