"""The browser SDK, served to pages that load it by the standard snippet, so that they ask no other host for anything.

The files are the published package's own (`dist/umd` of @segment/analytics-next), put into a folder by whoever runs this;
none of them is part of Millrace. They are read once: no request reaches the file system.
"""

import gzip
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Final

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from collector.answers import error_body, json_headers
from collector.headers import cors, preflight
from collector.sdk import UNKNOWN_KEY
from schemas.errors import ConfigError

REMEDY: Final = "run `make browser-sdk`, or put the files of dist/umd of the npm package @segment/analytics-next into it, and start again"

_ENTRY: Final = "standalone.js"
_PLACEHOLDER: Final = b'"__WRITE_KEY__"'  # the package's own, for those who host it themselves
_CHUNK: Final = re.compile(r"[\w.-]+\.bundle\.[0-9a-f]+\.js")
_GZIP: Final = re.compile(r"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))")
# The SDK recognises where it was loaded from only when that is https, and goes to its vendor's host otherwise.
_PROLOGUE: Final = (
    b'!function(s){if(!s)return;var k=s.getAttribute("data-global-segment-analytics-key")||"analytics",'
    b'a=window[k]=window[k]||[];a._cdn=a._cdn||s.src.split("/analytics.js/v1/")[0]}(document.currentScript);\n'
)


@dataclass(frozen=True, slots=True)
class BrowserSdk:
    """The package's entry, and by file name the parts that it loads when it needs them."""

    entry: bytes
    chunks: Mapping[str, bytes]

    def bundle(self, write_key: str) -> bytes:
        """The entry for one source, which then works without a snippet too."""
        return _PROLOGUE + self.entry.replace(_PLACEHOLDER, orjson.dumps(write_key), 1)


def read_browser_sdk(folder: Path) -> BrowserSdk | None:
    """What the folder holds; None when there is no such folder. ConfigError when it holds something else."""
    if not folder.is_dir():
        return None
    try:
        entry = (folder / _ENTRY).read_bytes()
        chunks = {path.name: path.read_bytes() for path in folder.iterdir() if _CHUNK.fullmatch(path.name)}
    except OSError as error:
        raise ConfigError(f"{folder}: no browser SDK there ({error.strerror}: {error.filename}); {REMEDY}") from error
    if _PLACEHOLDER not in entry or not chunks:
        raise ConfigError(f"{folder}: not the browser SDK's own build; {REMEDY}")
    return BrowserSdk(entry, chunks)


def browser_sdk_routes(sdk: BrowserSdk | None, sources: Mapping[str, str]) -> Sequence[BaseRoute]:
    """Starlette routes. `sources` maps write keys to source names. Without an SDK they answer 404 with the remedy."""

    @lru_cache(maxsize=256)  # sources are few, and compressing takes milliseconds
    def compressed(name: str, write_key: str) -> bytes:
        return gzip.compress(content(name, write_key), 9, mtime=0)

    def content(name: str, write_key: str) -> bytes:
        assert sdk is not None
        return sdk.bundle(write_key) if write_key else sdk.chunks[name]

    async def bundle(request: Request) -> Response:
        write_key = request.path_params["write_key"]
        if sdk is None:
            return _missing(
                request, "browser_sdk_missing", f"the folder browser-sdk of the data folder is empty: {REMEDY}"
            )
        if write_key not in sources:
            return _missing(request, "unknown_source", UNKNOWN_KEY)
        return script(request, _ENTRY, write_key, b"public, max-age=3600")

    async def chunk(request: Request) -> Response:
        name = request.path_params["name"]
        if sdk is None or name not in sdk.chunks:
            return _missing(request, "not_found", f"the browser SDK has no such part: {REMEDY}")
        return script(request, name, "", b"public, max-age=31536000, immutable")

    def script(request: Request, name: str, write_key: str, caching: bytes) -> Response:
        squeezed = _GZIP.search(request.headers.get("accept-encoding", "")) is not None
        body = compressed(name, write_key) if squeezed else content(name, write_key)
        tag = b'"%s"' % sha256(body).hexdigest()[:16].encode()
        headers = [(b"cache-control", caching), (b"etag", tag), (b"vary", b"Accept-Encoding"), *cors(_origin(request))]
        if request.headers.get("if-none-match", "").encode("latin-1") == tag:
            return _respond(b"", 304, headers)
        headers += [(b"content-type", b"text/javascript; charset=utf-8"), (b"content-length", b"%d" % len(body))]
        if squeezed:
            headers.append((b"content-encoding", b"gzip"))
        return _respond(body, 200, headers)

    async def permission(request: Request) -> Response:
        return _respond(b"", 200, preflight(dict(request.scope["headers"])))

    paths = {
        "/analytics.js/v1/{write_key}/analytics.js": bundle,
        "/analytics.js/v1/{write_key}/analytics.min.js": bundle,
        "/analytics.js/v1/{write_key}/platform/analytics.min.js": bundle,
        "/analytics-next/bundles/{name}": chunk,
    }
    served = [Route(path, endpoint, methods=["GET"]) for path, endpoint in paths.items()]
    return [*served, *(Route(path, permission, methods=["OPTIONS"]) for path in paths)]


def _origin(request: Request) -> bytes | None:
    origin = request.headers.get("origin")
    return origin.encode("latin-1") if origin is not None else None


def _missing(request: Request, code: str, message: str) -> Response:
    body = error_body(code, message)
    return _respond(body, 404, json_headers(body, _origin(request)))


def _respond(body: bytes, status: int, headers: list[tuple[bytes, bytes]]) -> Response:
    response = Response(body, status)
    response.raw_headers = headers
    return response
