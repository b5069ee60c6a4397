"""The HTTP face of everything that can be asked. Ingestion never depends on it: without a database it answers 503."""

import base64
import binascii
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from typing import Any

from prometheus_client import Metric
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from pipeline.identity import Rules
from pipeline.log import Log
from pipeline.query import identity, metrics, paths, refusals, usage
from pipeline.query.balance import balance
from pipeline.query.profile_api import manage
from pipeline.query.profile_api.app import ProfileApi, ProfileRoute
from pipeline.store.database import Database
from schemas.api import Error, ErrorDetail, Shape
from schemas.errors import MillraceError, Refused, Unavailable
from schemas.exact_json import json_dumps, json_loads
from schemas.topics import EVENTS

Handler = Callable[[Request], Awaitable[Response]]


def create_api(
    log: Log,
    database: Database,
    *,
    token: str,
    destinations: Collection[str],
    ingest_metrics: Callable[[], Iterable[Metric]] = tuple,
    rules: Rules | None = None,
) -> Starlette:
    """The application. `token` opens the profile and management APIs, as Basic user name or Bearer; `/health`, `/ready` and
    `/metrics` are open. `destinations` are the configured names; `ingest_metrics` adds the collector's own counters; `rules` say how
    ids are compared. `state.profiles` is the profile API, to be closed at the end."""
    profiles = ProfileApi(log, database, api_token=token, rules=rules)

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
        address = request.path_params["address"]
        return Json(await manage.show(profiles, database, address, request.query_params))

    async def show_reads(request: Request) -> Response:
        address = request.path_params["address"]
        return Json(await manage.reads_of(profiles, database, address, request.query_params))

    async def export(request: Request) -> Response:
        headers, lines = await manage.every_profile(profiles, database, request.query_params)
        return StreamingResponse(lines, headers=dict(headers), media_type="application/x-ndjson")

    async def tokens(request: Request) -> Response:
        if request.method == "POST":
            return Json(await manage.make_token(profiles, database, await body_of(request)))
        return Json(await manage.list_tokens(database))

    async def revoke_token(request: Request) -> Response:
        return Json(await manage.revoke_token(profiles, database, request.path_params["token"]))

    async def explain_identity(request: Request) -> Response:
        return Json(await identity.explanation(database, request.query_params.get("id", "")))

    async def unmerge(request: Request) -> Response:
        return Json(await identity.unmerge(log, database, await body_of(request)))

    async def remerge(request: Request) -> Response:
        return Json(await identity.remerge(log, database, await body_of(request)))

    async def unmerge_profile(request: Request) -> Response:
        address = request.path_params["address"]
        return Json(await identity.unmerge_of(log, database, address, await body_of(request)))

    async def suspects(request: Request) -> Response:
        return Json(await identity.suspicious(database, request.query_params))

    async def show_refusals(request: Request) -> Response:
        return Json(await refusals.page(database, request.query_params, request.url.path))

    async def show_usage(request: Request) -> Response:
        return Json(await usage.page(database, request.query_params))

    guarded = _guard(token)
    api = Starlette(
        routes=[
            Route(
                "/v1/spaces/default/collections/users/profiles/{address:path}/unmerge",
                guarded(unmerge_profile),
                methods=["POST"],
            ),
            ProfileRoute(profiles),
            Route("/health", health),
            Route("/ready", ready),
            Route("/metrics", show_metrics),
            Route("/api/balance", guarded(show_balance)),
            Route("/api/events/{message_id:path}", guarded(show_event)),
            Route("/api/identity/explain", guarded(explain_identity)),
            Route("/api/identity/unmerge", guarded(unmerge), methods=["POST"]),
            Route("/api/identity/remerge", guarded(remerge), methods=["POST"]),
            Route("/api/identity/suspects", guarded(suspects)),
            Route("/api/refusals", guarded(show_refusals)),
            Route("/api/usage", guarded(show_usage)),
            Route("/api/tail", guarded(tail)),
            Route("/api/profiles/export", guarded(export)),
            Route("/api/profiles/{address:path}/reads", guarded(show_reads)),
            Route("/api/profiles/{address:path}", guarded(show_profile)),
            Route("/api/tokens", guarded(tokens), methods=["GET", "POST"]),
            Route("/api/tokens/{token}", guarded(revoke_token), methods=["DELETE"]),
            Route("/{path:path}", _unknown, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
        ],
        exception_handlers={MillraceError: _failed},
    )
    api.state.profiles = profiles
    return api


async def body_of(request: Request) -> dict[str, Any]:
    """The JSON object in a body. Refused when it is none."""
    try:
        body = json_loads(await request.body())
    except ValueError as error:
        raise Refused("bad_request", "The body is not JSON.") from error
    if not isinstance(body, dict):
        raise Refused("bad_request", "The body must be a JSON object.")
    return body


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
