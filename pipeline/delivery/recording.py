"""An HTTP session that reaches nobody: every request ends at a listener of ours, which notes it and answers 200 with `{}`.

The requests are real: what is noted is what would have gone over the wire, made by the client that makes it otherwise.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import aiohttp
    from aiohttp import web

_ADDRESSED: Final = "Millrace-Rehearsed-Url"
_HOPS: Final = frozenset(
    (_ADDRESSED.lower(), "host", "content-length", "transfer-encoding", "accept-encoding", "accept")
)


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it would have gone out. Header names are in lower case; those of the connection are left out."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class Recorder:
    """Notes requests until they are taken."""

    path: str
    requests: list[Request] = field(default_factory=list)

    def taken(self) -> tuple[Request, ...]:
        """What came since the last time."""
        requests, self.requests = tuple(self.requests), []
        return requests

    def session(self) -> "aiohttp.ClientSession":
        """A client session whose requests end here, whatever their address. Belongs to the running event loop."""
        import aiohttp

        async def address(_: object, __: SimpleNamespace, request: "aiohttp.TraceRequestStartParams") -> None:
            request.headers[_ADDRESSED] = str(request.url)

        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(address)
        return aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(self.path), cookie_jar=aiohttp.DummyCookieJar(), trace_configs=[trace]
        )

    async def note(self, request: "web.BaseRequest") -> "web.StreamResponse":
        """The listener."""
        from aiohttp import web

        headers = {name.lower(): value for name, value in request.headers.items()}
        url = headers.get(_ADDRESSED.lower(), str(request.url))
        kept = {name: value for name, value in sorted(headers.items()) if name not in _HOPS}
        self.requests.append(Request(request.method, url, kept, await request.read()))
        return web.json_response({})


@asynccontextmanager
async def recording() -> AsyncIterator[Recorder]:
    """A recorder that listens while the block runs."""
    from aiohttp import web

    with TemporaryDirectory(prefix="millrace-") as folder:
        recorder = Recorder(f"{folder}/requests")
        runner = web.ServerRunner(web.Server(recorder.note, access_log=None))
        await runner.setup()
        await web.UnixSite(runner, recorder.path).start()
        try:
            yield recorder
        finally:
            await runner.cleanup()
