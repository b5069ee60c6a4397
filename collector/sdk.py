"""What SDKs call besides sending events: their settings, pixels, and metrics of their own. Off the hot path."""

import re
from base64 import b64decode, urlsafe_b64decode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import orjson
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.routing import Route as Path

from collector.answers import error_body, json_headers
from collector.headers import client_ip, cors, preflight, public_host
from collector.routes import Route
from schemas.errors import Refused
from schemas.events import TYPES
from schemas.exact_json import json_dumps, json_loads

Take = Callable[[bytes, Route, str | None, bytes | None], Awaitable[int]]
"""Accepts and appends one event: body, route, the caller's address, the origin of the page. Returns the HTTP status it comes to."""

log = structlog.get_logger()

UNKNOWN_KEY: Final = "the write key in the path is unknown: use the key of a configured source"
_PREFIXES: Final = ("/v1", "", "/v1/v1")


def sdk_routes(
    sources: Mapping[str, str], take: Take, trusted_hops: int, consent: Mapping[str, Sequence[str]]
) -> Sequence[BaseRoute]:
    """Starlette routes; `sources` maps write keys to source names, `consent` those to the categories that are asked for."""

    async def settings(request: Request) -> Response:
        write_key = request.path_params["write_key"]
        if write_key not in sources:
            return _json(request, error_body("unknown_source", UNKNOWN_KEY), status=404)
        forwarded_hosts = request.headers.getlist("x-forwarded-host")
        host = public_host(request.headers.get("host", ""), forwarded_hosts, trusted_hops) + _mounted_under(request)
        categories = consent.get(sources[write_key], ())
        return _json(request, orjson.dumps(_settings(write_key, host, _scheme(request), categories)))

    async def metrics(request: Request) -> Response:
        async for _ in request.stream():
            pass  # discarded: counters about the SDK's own work, of use to nobody here
        return _json(request, b"{}")

    async def pixel(request: Request) -> Response:
        if request.method == "GET":  # who only looks whether the picture is there has not seen it
            await _take_pixel(request, take, trusted_hops)
        return _answer(request, _GIF, [(b"content-type", b"image/gif"), (b"cache-control", b"no-store")])

    endpoints = (
        ("projects/{write_key}/settings", _only("GET", settings)),
        ("{write_key}/settings", _only("GET", settings)),  # React Native
        ("m", _only("POST", metrics)),
        ("pixel/{type}", _only("GET", pixel)),
    )
    return [
        Path(f"{prefix}/{path}{slash}", endpoint, methods=_METHODS)
        for prefix in _PREFIXES
        for slash in ("", "/")
        for path, endpoint in endpoints
    ]


Endpoint = Callable[[Request], Awaitable[Response]]
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def _only(method: str, endpoint: Endpoint) -> Endpoint:
    """Answers preflights, and other methods with 405 in the form that pages can read."""
    taken = (method, "HEAD") if method == "GET" else (method,)

    async def answer(request: Request) -> Response:
        if request.method == "OPTIONS":
            response = Response()
            response.raw_headers = preflight(dict(request.scope["headers"]))
            return response
        if request.method not in taken:
            response = _json(request, error_body("method_not_allowed", f"this path takes {method}"), status=405)
            response.headers["allow"] = ", ".join((*taken, "OPTIONS"))
            return response
        return await endpoint(request)

    return answer


def _origin(request: Request) -> bytes | None:
    origin = request.headers.get("origin")
    return origin.encode("latin-1") if origin is not None else None


def _json(request: Request, body: bytes, status: int = 200) -> Response:
    response = Response(body, status_code=status)
    response.raw_headers = json_headers(body, _origin(request))
    return response


def _answer(request: Request, body: bytes, headers: list[tuple[bytes, bytes]]) -> Response:
    response = Response(body)
    response.raw_headers = [*headers, (b"content-length", b"%d" % len(body)), *cors(_origin(request))]
    return response


# ── Settings ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _scheme(request: Request) -> str:
    """What the asker's own settings say of the way to us; nobody else is concerned, so that whoever ends TLS is believed."""
    forwarded = request.headers.get("x-forwarded-proto")
    return forwarded.rpartition(",")[2].strip().lower() if forwarded else request.url.scheme


_PREFIX: Final = re.compile(r"(/[A-Za-z0-9._~-]+){1,8}")


def _mounted_under(request: Request) -> str:
    """The path that a proxy takes away in front of ours. Under one of their own, events are on nobody's list of trackers."""
    prefix = request.headers.get("x-forwarded-prefix", "").rstrip("/")
    return prefix if _PREFIX.fullmatch(prefix) else ""


def _settings(write_key: str, host: str, scheme: str, categories: Sequence[str]) -> dict[str, Any]:
    """Everything is delivered by the server, so the only integration is ourselves. No object may be null (Kotlin), the
    host has no scheme (mobile), and the retry limits keep Swift and Kotlin from trying for ever. A consent banner sends what a
    person said of the categories named; profiles need no consent, so it never keeps the SDK from starting."""
    ourselves: dict[str, Any] = {
        "apiKey": write_key,
        "apiHost": f"{host}/v1",
        "unbundledIntegrations": [],
        "addBundledMetadata": True,
        "maybeBundledConfigIds": {},
        "versionSettings": {"version": "4.4.7", "componentTypes": ["browser"]},
        "httpConfig": _HTTP_CONFIG,
    }
    if scheme == "http":
        ourselves["protocol"] = "http"
    return {
        "integrations": {"Segment.io": ourselves},
        "plan": {
            "track": {"__default": {"enabled": True, "integrations": {}}},
            "identify": {"__default": {"enabled": True}},
            "group": {"__default": {"enabled": True}},
        },
        "edgeFunction": {},
        "middlewareSettings": {"routingRules": []},
        "enabledMiddleware": {},
        "metrics": {"sampleRate": 0},
        "consentSettings": {"allCategories": list(categories), "hasUnmappedDestinations": True},
        "legacyVideoPluginsEnabled": False,
        "remotePlugins": [],
        "analyticsNextEnabled": True,
        "httpConfig": _HTTP_CONFIG,
    }


_HTTP_CONFIG: Final = {
    "rateLimitConfig": {
        "enabled": True,
        "maxRetryCount": 10,
        "maxRetryInterval": 300,
        "maxRateLimitDuration": 43_200,
    },
    "backoffConfig": {
        "enabled": True,
        "maxRetryCount": 10,
        "baseBackoffInterval": 0.5,
        "maxBackoffInterval": 60,
        "maxTotalBackoffDuration": 43_200,
        "jitterPercent": 10,
        "default4xxBehavior": "drop",
        "default5xxBehavior": "retry",
        "unknownCodeBehavior": "drop",
        "statusCodeOverrides": {
            "408": "retry",
            "410": "retry",
            "429": "retry",
            "460": "retry",
            "501": "drop",
            "505": "drop",
        },
    },
}


# ── Pixels ────────────────────────────────────────────────────────────────────────────────────────────────────────

_GIF: Final = bytes.fromhex(
    "47494638396101000100800000000000ffffff21f90401000000002c000000000100010000020144003b"
)  # one transparent point
_MAX_PATH: Final = 8  # names of a dotted path
_DANGEROUS: Final = frozenset({"__proto__", "constructor", "prototype"})


async def _take_pixel(request: Request, take: Take, trusted_hops: int) -> None:
    """A mail client shows whatever it gets: every failure is ours to note, none is the picture's."""
    kind = request.path_params["type"].removesuffix(".gif")
    if kind not in TYPES:
        return
    peer = request.client.host if request.client else None
    forwarded = [value.encode("latin-1") for value in request.headers.getlist("x-forwarded-for")]
    try:
        event = _pixel_event(dict(request.query_params))
        agent = request.headers.get("user-agent")
        context = event.setdefault("context", {})
        if agent and isinstance(context, dict):
            context.setdefault("userAgent", agent)
        ip = client_ip(peer, forwarded, trusted_hops)
        status = await take(_body(event), Route(kind, "client"), ip, _origin(request))
        if status != 200:
            log.debug("pixel not taken", status=status)
    except Refused as refused:
        log.debug("pixel refused", code=refused.code)


def _body(event: Mapping[str, Any]) -> bytes:
    try:
        return json_dumps(event)
    except (TypeError, ValueError) as error:
        raise Refused("invalid_request", f"data is no event: {error}") from error


def _pixel_event(query: Mapping[str, str]) -> dict[str, Any]:
    """The event of `data`, base64 of either alphabet with or without padding, else of the query's dotted paths."""
    data = query.get("data")
    if data is None:
        return _nested(query)
    text = re.sub(r"\s", "+", data).rstrip("=")
    text += "=" * (-len(text) % 4)
    try:
        event = json_loads(urlsafe_b64decode(text) if re.search("[-_]", text) else b64decode(text, validate=True))
    except ValueError as error:
        raise Refused("invalid_request", f"data is not base64 of JSON: {error}") from error
    if not isinstance(event, dict):
        raise Refused("invalid_request", "data is not a JSON object")
    if "writeKey" in query:
        event.setdefault("writeKey", query["writeKey"])
    return event


def _nested(query: Mapping[str, str]) -> dict[str, Any]:
    event: dict[str, Any] = {}
    for path, value in query.items():
        names = path.split(".")
        if len(names) > _MAX_PATH or not _DANGEROUS.isdisjoint(names):
            raise Refused("invalid_request", "a query parameter is no path of an event")
        node = event
        for name in names[:-1]:
            inner = node.setdefault(name, {})
            if not isinstance(inner, dict):
                raise Refused("invalid_request", "query parameters contradict each other")
            node = inner
        node[names[-1]] = value
    return event
