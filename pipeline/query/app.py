"""The HTTP face of everything that can be asked. Ingestion never depends on it: without a database it answers 503."""

import base64
import binascii
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

from prometheus_client import Metric
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from pipeline.identity import Rules
from pipeline.log import Log
from pipeline.query import alerts, identity, letters, metrics, paths, privacy, refusals, replays, usage
from pipeline.query import destinations as faring
from pipeline.query.balance import balance
from pipeline.query.endpoints import Endpoints, Handler
from pipeline.query.profile_api import manage
from pipeline.query.profile_api.app import ProfileApi, ProfileRoute
from pipeline.query.profile_api.operations import OPERATIONS
from pipeline.store.database import Database
from schemas.api import (
    Balance,
    DeadLetterList,
    DeadLettersPage,
    DeadLetterViews,
    Error,
    ErrorDetail,
    EventPaths,
    LettersChosen,
    LettersMoved,
    ProfileReads,
    ProfileView,
    RefusalsPage,
    ReplaysPage,
    ReplayView,
    ReplayWanted,
    Shape,
    State,
    TokenMade,
    TokensPage,
    TokenView,
    TokenWanted,
    UsagePage,
)
from schemas.delivery_api import AlertsPage, DestinationStatuses
from schemas.errors import MillraceError, Refused, Unavailable
from schemas.exact_json import json_dumps, json_loads
from schemas.identity_api import (
    Explanation,
    RemergeBody,
    SplitDone,
    Suspects,
    UnmergeBody,
    UnmergeProfileBody,
)
from schemas.openapi import TEXT, Media, Operation, Parameter, document, whole
from schemas.privacy_api import (
    RegulationAnswer,
    RegulationMadeAnswer,
    RegulationsPage,
    RegulationWanted,
    SuppressionsPage,
)
from schemas.topics import EVENTS


def create_api(
    log: Log,
    database: Database,
    *,
    token: str,
    destinations: Collection[str],
    ingest_metrics: Callable[[], Iterable[Metric]] = tuple,
    rules: Rules | None = None,
    operations: Sequence[Operation] = (),
    forgetful: Collection[str] = (),
) -> Starlette:
    """The application. `token` opens the profile and management APIs, as Basic user name or Bearer; `/health`, `/ready` and
    `/metrics` are open. `destinations` are the configured names; `ingest_metrics` adds the collector's own counters; `rules` say how
    ids are compared; `forgetful` are destinations that can delete people; `operations` are what else the server answers, for the OpenAPI document. `state.profiles` is the profile API, to be closed at the end."""
    profiles = ProfileApi(log, database, api_token=token, rules=rules)
    endpoints = Endpoints()
    get, post, delete = endpoints.get, endpoints.post, endpoints.delete

    @get("/health", "Whether the process lives", State, open_to_all=True)
    async def health(_: Request) -> Response:
        return Json(State(status="alive"))

    @get("/ready", "Whether events can be taken", State, open_to_all=True)
    async def ready(_: Request) -> Response:
        await log.bounds(EVENTS)
        return Json(State(status="ready"))

    @get("/metrics", "Figures for Prometheus", Media(metrics.CONTENT_TYPE, TEXT), open_to_all=True)
    async def show_metrics(_: Request) -> Response:
        return Response(await metrics.exposition(log, database, ingest_metrics()), media_type=metrics.CONTENT_TYPE)

    @get("/api/openapi.json", "This document", Media("application/json", {"type": "object"}), open_to_all=True)
    async def show_document(_: Request) -> Response:
        return Json(document([*operations, *OPERATIONS, *endpoints.operations()], version("millrace")))

    @get("/api/balance", "The books of every source and destination", Balance)
    async def show_balance(_: Request) -> Response:
        return Json(await balance(log, database, destinations))

    @get("/api/events/{message_id}", "The path of an event", EventPaths, whole_path=True)
    async def show_event(request: Request) -> Response:
        found = await paths.find(log, database, destinations, request.path_params["message_id"])
        return Json(found)

    @get("/api/tail", "Paths of events as they come, without end", Media("application/x-ndjson", TEXT))
    async def tail(_: Request) -> Response:
        async def lines() -> AsyncIterator[bytes]:
            async for line in paths.Tail(log, database, destinations).lines():
                shown = {"passed_over": line} if isinstance(line, int) else line.json_object()
                yield json_dumps(shown) + b"\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    @get("/api/refusals", "Refused events, the latest first", RefusalsPage, *_REFUSALS)
    async def show_refusals(request: Request) -> Response:
        return Json(await refusals.page(database, request.query_params, request.url.path))

    @get("/api/usage", "Events, bytes and users by month and source", UsagePage, *_USAGE)
    async def show_usage(request: Request) -> Response:
        return Json(await usage.page(database, request.query_params))

    # ── Deliveries ──

    @get("/api/destinations", "How every destination fares", DestinationStatuses, faring.SINCE)
    async def show_destinations(request: Request) -> Response:
        return Json(await faring.statuses(log, database, destinations, request.query_params))

    @get("/api/destinations/{destination}", "How a destination fares", DestinationStatuses, faring.SINCE)
    async def show_destination(request: Request) -> Response:
        only = request.path_params["destination"]
        return Json(await faring.statuses(log, database, destinations, request.query_params, only))

    @get("/api/alerts", "What is wrong, with what to do", AlertsPage)
    async def show_alerts(_: Request) -> Response:
        return Json(await alerts.page(database))

    # ── Dead letters ──

    @get("/api/dead-letters", "Dead letters by destination and cause", DeadLettersPage, *letters.GROUPS)
    async def dead_letters(request: Request) -> Response:
        return Json(await letters.groups(database, request.query_params, request.url.path))

    @get("/api/destinations/{destination}/dead-letters", "A destination's dead letters", DeadLetterList, *letters.LIST)
    async def list_letters(request: Request) -> Response:
        name = request.path_params["destination"]
        return Json(await letters.listed(database, name, request.query_params, request.url.path))

    @post("/api/dead-letters/retry", "Put dead letters back, to be tried again", LettersChosen, LettersMoved)
    async def retry_letters(request: Request) -> Response:
        return Json(await letters.retry(database, destinations, await body_of(request)))

    @post("/api/dead-letters/purge", "Give dead letters up", LettersChosen, LettersMoved)
    async def purge_letters(request: Request) -> Response:
        return Json(await letters.purge(database, await body_of(request)))

    @get("/api/dead-letters/{message_id}", "What is dead of an event", DeadLetterViews, whole_path=True)
    async def show_letter(request: Request) -> Response:
        return Json(await letters.show(database, request.path_params["message_id"]))

    # ── Replays ──

    @get("/api/replays", "Replays, the latest first", ReplaysPage, *replays.LIST)
    async def list_replays(request: Request) -> Response:
        return Json(await replays.page(database, request.query_params, request.url.path))

    @post("/api/replays", "Send recorded events to a destination again", ReplayWanted, ReplayView)
    async def begin_replay(request: Request) -> Response:
        return Json(await replays.begin(log, database, destinations, await body_of(request)))

    @get("/api/replays/{replay}", "How far a replay is", ReplayView)
    async def show_replay(request: Request) -> Response:
        return Json(await replays.show(database, request.path_params["replay"]))

    @delete("/api/replays/{replay}", "End a replay", ReplayView)
    async def cancel_replay(request: Request) -> Response:
        return Json(await replays.cancel(database, request.path_params["replay"]))

    # ── Profiles ──

    @get("/api/profiles/export", "Every profile, a line each", Media("application/x-ndjson", TEXT), *_EXPORT)
    async def export(request: Request) -> Response:
        headers, lines = await manage.every_profile(profiles, database, request.query_params)
        return StreamingResponse(lines, headers=dict(headers), media_type="application/x-ndjson")

    @get("/api/profiles/{address}/reads", "Who read a profile", ProfileReads, _READS, whole_path=True)
    async def show_reads(request: Request) -> Response:
        address = request.path_params["address"]
        return Json(await manage.reads_of(profiles, database, address, request.query_params))

    @get("/api/profiles/{address}", "A profile in one object", ProfileView, _AFTER, whole_path=True)
    async def show_profile(request: Request) -> Response:
        address = request.path_params["address"]
        return Json(await manage.show(profiles, database, address, request.query_params))

    @get("/api/tokens", "All tokens, without their secrets", TokensPage)
    async def tokens(_: Request) -> Response:
        return Json(await manage.list_tokens(database))

    @post("/api/tokens", "Make a token", TokenWanted, TokenMade)
    async def make_token(request: Request) -> Response:
        return Json(await manage.make_token(profiles, database, await body_of(request)))

    @delete("/api/tokens/{token}", "End a token", TokenView)
    async def revoke_token(request: Request) -> Response:
        return Json(await manage.revoke_token(profiles, database, request.path_params["token"]))

    # ── Privacy ──

    @post("/api/regulations", "Delete or suppress people", RegulationWanted, RegulationMadeAnswer)
    async def regulate(request: Request) -> Response:
        return Json(await privacy.regulate(database, await body_of(request), destinations, forgetful))

    @get("/api/regulations", "Requests to delete and suppress", RegulationsPage, _limited(100, 20), _NEXT)
    async def list_regulations(request: Request) -> Response:
        return Json(await privacy.regulations(database, request.query_params))

    @get("/api/regulations/{regulation}", "How far a request is, and its receipt", RegulationAnswer)
    async def show_regulation(request: Request) -> Response:
        return Json(await privacy.regulation(database, request.path_params["regulation"]))

    @get("/api/suppressions", "Suppressed ids", SuppressionsPage, _SUPPRESSED, _limited(1_000, 100), _NEXT)
    async def list_suppressions(request: Request) -> Response:
        return Json(await privacy.suppressions(database, request.query_params))

    # ── Identity ──

    @get("/api/identity/explain", "Why a profile is what it is", Explanation, _ID)
    async def explain_identity(request: Request) -> Response:
        return Json(await identity.explanation(database, request.query_params.get("id", "")))

    @get("/api/identity/suspects", "Ids and profiles that look wrong", Suspects, _limited(500, 50))
    async def suspects(request: Request) -> Response:
        return Json(await identity.suspicious(database, request.query_params))

    @post("/api/identity/unmerge", "Undo a merge, or take two ids apart", UnmergeBody, SplitDone)
    async def unmerge(request: Request) -> Response:
        return Json(await identity.unmerge(log, database, await body_of(request)))

    @post("/api/identity/remerge", "Lift a split", RemergeBody, SplitDone)
    async def remerge(request: Request) -> Response:
        return Json(await identity.remerge(log, database, await body_of(request)))

    @post(
        "/v1/spaces/default/collections/users/profiles/{address}/unmerge",
        "Undo a merge of a profile",
        UnmergeProfileBody,
        SplitDone,
        whole_path=True,
    )
    async def unmerge_profile(request: Request) -> Response:
        address = request.path_params["address"]
        return Json(await identity.unmerge_of(log, database, address, await body_of(request)))

    api = Starlette(
        routes=[
            *endpoints.routes(_guard(token), under="/v1/"),
            ProfileRoute(profiles),
            *endpoints.routes(_guard(token), under="/"),
            Route("/{path:path}", endpoints.unknown, methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]),
        ],
        exception_handlers={MillraceError: _failed, 404: _nowhere, 405: _otherwise},
    )
    api.state.profiles = profiles
    return api


# ── Parameters ────────────────────────────────────────────────────────────────────────────────────────────────────


def _limited(most: int, default: int) -> Parameter:
    return Parameter("limit", "At most so many.", whole(1, most, default))


_NEXT: Final = Parameter("next", "The cursor of the page before.", TEXT)
_AFTER: Final = Parameter("after", "Wait for the event with this messageId.", TEXT)
_ID: Final = Parameter("id", "Any id of the profile, as type:value, or its own.", TEXT)
_SUPPRESSED: Final = Parameter("id", "Only this one, as type:value.", TEXT)
_READS: Final = _limited(1_000, 100)
_REFUSALS: Final = (
    Parameter("source", "Only of this source.", TEXT),
    Parameter("code", "Only with this reason.", TEXT),
    Parameter("since", "Received at this time or later, ISO 8601.", TEXT),
    _limited(500, 50),
    _NEXT,
)
_USAGE: Final = (Parameter("month", "Only this month, such as 2026-11.", TEXT),)
_EXPORT: Final = (
    Parameter("as_of", "What an export that was interrupted said in Millrace-Export-As-Of.", TEXT),
    Parameter("after", "The cursor of the last line that arrived.", TEXT),
)


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


async def _nowhere(request: Request, _: Exception) -> Response:
    """An SDK whose host was given with a wrong path comes here too. It reads `code` and `message` at the top, where else it would
    send again; its page reads nothing without CORS."""
    message = (
        f"There is nothing at {request.url.path[:200]}. SDKs send to /v1/batch and the like; all paths are listed at "
        "/api/openapi.json."
    )
    detail = {"code": "not_found", "message": message}
    return Json({"success": False, **detail, "error": detail}, 404, {"Access-Control-Allow-Origin": "*"})


async def _otherwise(_: Request, error: Exception) -> Response:
    """A path that is asked in another way."""
    assert isinstance(error, HTTPException)
    return _error(405, "method_not_allowed", error.detail, error.headers)


async def _failed(_: Request, error: Exception) -> Response:
    if isinstance(error, Refused):
        return _error(error.status, error.code, error.message)
    if isinstance(error, Unavailable):
        return _error(503, "unavailable", str(error), {"Retry-After": str(max(1, round(error.after)))})
    return _error(500, "internal", "This is a fault of ours; the log of the collect role has the details.")


def _error(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
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
