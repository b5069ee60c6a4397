"""The HTTP server around an ASGI application: our own socket, our own signals, a bounded stop."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final

import uvicorn

from millrace.environment import http_address
from schemas.errors import ConfigError

BACKLOG: Final = 2_048
GRACE: Final = 8  # seconds that requests under way get to end


def listen(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """A listening socket, or ConfigError saying what to do when the port is not to be had.

    Port 0 picks a free one. `reuse_port` lets several collectors of one machine share a port, and so would hide that
    a stranger's Millrace is already there: it has to be asked for."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(_cannot_listen(host, port, error)) from error
    return listener


def address_of(listener: socket.socket) -> str:
    """The URL at which a listening socket is reached from this machine."""
    host, port = listener.getsockname()[:2]
    return http_address(host, port)


async def serve(
    app: Any, listener: socket.socket, stop: asyncio.Event, ready: Callable[[], None], **options: Any
) -> None:
    """Serves until `stop` is set, then lets requests under way end within GRACE seconds."""
    server = _Server(
        uvicorn.Config(
            app,
            loop="none",
            http=options.pop("http", "httptools"),
            ws="none",
            lifespan="on" if options.pop("lifespan", False) else "off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,  # the collector reads X-Forwarded-For itself, as far back as it is told to trust
            backlog=BACKLOG,
            timeout_graceful_shutdown=GRACE,
            **options,
        ),
        ready,
    )
    stopping = asyncio.ensure_future(stop.wait())
    stopping.add_done_callback(lambda _: server.leave())
    try:
        await server.serve(sockets=[listener])
    finally:
        stopping.cancel()
        listener.close()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers; tells when it accepts connections."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if not self.should_exit:
            self._ready()

    def leave(self) -> None:
        """Stops accepting and ends."""
        self.should_exit = True


def _cannot_listen(host: str, port: int, error: OSError) -> str:
    place = f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return f"{place}: the port is taken by another program; stop that one, or choose another with --port or MILLRACE_PORT"
    if error.errno == errno.EACCES:
        return f"{place}: not allowed to listen there; choose a port above 1023 with --port or MILLRACE_PORT"
    return f"{place}: cannot listen there: {error.strerror or error}; name an address of this machine with --host or MILLRACE_HOST"
