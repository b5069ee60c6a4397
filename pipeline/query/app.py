"""The HTTP face of everything that can be asked. Ingestion never depends on it: without a database it answers 503."""

import base64
import binascii
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable

from prometheus_client import Metric
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from pipeline.log import Log
from pipeline.query import metrics, paths, profiles, refusals, usage
from pipeline.query.balance import balance
from pipeline.store.database import Database
from schemas.api import Error, ErrorDetail, Shape
from schemas.errors import MillraceError, Refused, Unavailable
from schemas.exact_json import json_dumps
from schemas.topics import EVENTS

Handler = Callable[[Request], Awaitable[Response]]


def create_api(
    log: Log,
    database: Database,
    *,
    token: str,
    destinations: Collection[str],
    ingest_metrics: Callable[[], Iterable[Metric]] = tuple,
) -> Starlette:
    """The application. `token` opens the profile and management APIs, as Basic user name or Bearer; `/health`, `/ready` and
    `/metrics` are open. `destinations` are the configured names; `ingest_metrics` adds the collector's own counters."""

    async def health(_: Request) -> Response:
        return Json({"status": "alive"})

    async def ready(_: Request) -> Response:
        await log.bounds(EVENTS)
        return Json({"status": "ready"})

    async def show_metrics(_: Request) -> Response:
        return Response(await metrics.exposition(log, database, ingest_metrics()), media_type=metrics.CONTENT_TYPE)

    async def show_balance(_: Request) -> Response:
        return Json(await balance(log, database, destinations))

    async def show_event(request: Request) -> Response:
        found = await paths.find(log, database, destinations, request.path_params["message_id"])
        return Json(found)

    async def tail(_: Request) -> Response:
        async def lines() -> AsyncIterator[bytes]:
            async for line in paths.Tail(log, database, destinations).lines():
                shown = {"passed_over": line} if isinstance(line, int) else line.json_object()
                yield json_dumps(shown) + b"\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def show_profile(request: Request) -> Response:
        return Json(profiles.summary(await profiles.look_up(database, request.path_params["address"])))

    async def show_traits(request: Request) -> Response:
        found = await profiles.look_up(database, request.path_params["address"])
        return Json(profiles.traits_page(found, request.query_params, request.url.path))

    async def show_external_ids(request: Request) -> Response:
        found = await profiles.look_up(database, request.path_params["address"])
        return Json(profiles.external_ids_page(found, request.query_params, request.url.path))

    async def show_refusals(request: Request) -> Response:
        return Json(await refusals.page(database, request.query_params, request.url.path))

    async def show_usage(request: Request) -> Response:
        return Json(await usage.page(database, request.query_params))

    guarded = _guard(token)
    profile = "/v1/spaces/default/collections/users/profiles/{address:path}"
    return Starlette(
        routes=[
            Route("/health", health),
            Route("/ready", ready),
            Route("/metrics", show_metrics),
            Route("/api/balance", guarded(show_balance)),
            Route("/api/events/{message_id:path}", guarded(show_event)),
            Route("/api/refusals", guarded(show_refusals)),
            Route("/api/usage", guarded(show_usage)),
            Route("/api/tail", guarded(tail)),
            Route("/api/profiles/{address:path}", guarded(show_profile)),
            Route(f"{profile}/traits", guarded(show_traits)),
            Route(f"{profile}/external_ids", guarded(show_external_ids)),
            Route("/{path:path}", _unknown, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
        ],
        exception_handlers={MillraceError: _failed},
    )


class Json(JSONResponse):
    """JSON whose numbers are exact."""

    def render(self, content: object) -> bytes:
        return json_dumps(content.json_object() if isinstance(content, Shape) else content)


async def _unknown(request: Request) -> Response:
    raise Refused("not_found", f"There is nothing at {request.url.path}.", status=404)


async def _failed(_: Request, error: Exception) -> Response:
    if isinstance(error, Refused):
        return _error(error.status, error.code, error.message)
    if isinstance(error, Unavailable):
        return _error(503, "unavailable", str(error), {"Retry-After": str(max(1, round(error.after)))})
    return _error(500, "internal", "This is a fault of ours; the log of the collect role has the details.")


def _error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    return Json(Error(error=ErrorDetail(code=code, message=message)), status, headers)


def _guard(token: str) -> Callable[[Handler], Handler]:
    wanted = token.encode()

    def guarded(handler: Handler) -> Handler:
        async def check(request: Request) -> Response:
            if not secrets.compare_digest(_credential(request.headers.get("authorization", "")), wanted):
                return _error(
                    401,
                    "authentication_error",
                    "Send the API token as Basic user name (empty password) or as Bearer.",
                    {"WWW-Authenticate": 'Basic realm="millrace"'},
                )
            return await handler(request)

        return check

    return guarded


def _credential(header: str) -> bytes:
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[0]
        except binascii.Error:
            return b""
    return b""
