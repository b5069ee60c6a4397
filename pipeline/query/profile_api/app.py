"""The profile API as an ASGI application: a path is taken apart once, a token is found once, and the answer of the store goes out as
bytes. A framework's routing and request objects would cost more than the answer does."""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from itertools import count
from secrets import token_hex
from typing import Any, Final
from urllib.parse import parse_qsl

import orjson
import structlog
from starlette.routing import BaseRoute, Match

from pipeline.extract import extractor
from pipeline.identity import Rules
from pipeline.log import Log
from pipeline.query import privacy
from pipeline.query.pages import owner_of, unreadable
from pipeline.query.profile_api import events, many, views
from pipeline.query.profile_api.address import Target, address, checked_collection, decoded, target
from pipeline.query.profile_api.after import Applied
from pipeline.query.profile_api.audit import Audit
from pipeline.query.profile_api.look_up import LookUps, not_found
from pipeline.query.profile_api.tokens import Quota, Rates, Tokens, allow
from pipeline.store import profiles
from pipeline.store.consent import stated
from pipeline.store.database import Database
from pipeline.store.profiles import Head
from pipeline.store.tokens import Token
from schemas.errors import MillraceError, Refused, Unavailable
from schemas.exact_json import json_dumps

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

SPACE: Final = "default"
BODY: Final = 1 << 20  # bytes of a request
BATCH: Final = 100  # look-ups in one call
STRANGERS: Final = 200  # requests per second that come without a valid token, all together
PREFIXES: Final = ("/v1/spaces/", "/v1/namespaces/")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that was let in: whose, in which collection, and what it wants to know."""

    token: Token
    space: str
    collection: str
    query: Mapping[str, str]

    def url(self, *rest: str) -> str:
        """The address of a list, which names a profile by its own id: nothing personal stands in it."""
        return "/".join(("/v1/spaces", self.space, "collections", self.collection, "profiles", *rest))


class ProfileApi:
    """See the module. Belongs to the event loop it is first called in; `close` keeps the last reads on record."""

    def __init__(
        self, log: Log, database: Database, *, api_token: str, rules: Rules | None = None, rates: Rates | None = None
    ) -> None:
        self._log, self._database = log, database
        self.rules = rules or Rules()
        self.tokens = Tokens(database, api_token)
        self.audit = Audit(database)
        self.look_ups = LookUps(database)
        self._applied = Applied(log, database)
        self._searches = many.Searches(database)
        self._rates = rates or Rates()
        self._requests = (f"{prefix}{number:x}".encode() for prefix in [token_hex(6)] for number in count(1))
        self.resources: Mapping[str, Callable[[Ask, Head], Awaitable[dict[str, Any]]]] = {
            "traits": self._traits,
            "external_ids": self._external_ids,
            "events": self._events,
            "metadata": self._metadata,
            "links": self._links,
            "merges": self._merges,
            "consent": self._consent,
        }
        self.posts: Mapping[str, Callable[[Ask, Mapping[str, Any]], Awaitable[dict[str, Any]]]] = {
            "lookup": self._lookup,
            "batch": self._batch,
            "search": self._search,
        }

    async def close(self) -> None:
        """Puts the last reads on record, and lets go of the database."""
        await self.audit.close()
        await self.look_ups.close()

    async def found(self, named: str, query: Mapping[str, str]) -> Head:
        """The profile at `type:value` or a profile id, in whichever collection, after the event that `after` names. Refused when
        there is none."""
        await self._wait(query)
        return await self.look_ups.one(address(named, self._normalize))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        quota: Quota | None = None
        extra: Headers = []
        try:
            given = {name: value for name, value in scope["headers"] if name in _READ_HEADERS}
            token, quota = await self._admitted(given.get(b"authorization", b""))
            status, body = 200, await self._answer(token, scope, given, receive)
        except Exception as error:
            quota = quota or getattr(error, "quota", None)
            status, body, extra = _failed(error, quota)
        headers: Headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"cache-control", b"no-store"),
            (b"request-id", next(self._requests)),
            *extra,
        ]
        if quota is not None:
            headers += (
                (b"x-ratelimit-limit", b"%d" % quota.limit),
                (b"x-ratelimit-remaining", b"%d" % max(0, quota.remaining)),
                (b"x-ratelimit-reset", b"%d" % quota.reset),
            )
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    # ── Who asks ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _admitted(self, authorization: bytes) -> tuple[Token, Quota]:
        """The token and what is left to it. Those without one share a rate, so that nobody can try tokens for long."""
        try:
            token = await self.tokens.authenticate(authorization)
        except Refused as refused:
            quota = self._rates.take("", STRANGERS)
            raise _Limited(quota) if quota.exceeded else _Stranger(refused, quota) from refused
        quota = self._rates.take(token.id, token.per_second)
        if quota.exceeded:
            raise _Limited(quota)
        return token, quota

    # ── What is asked ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _answer(self, token: Token, scope: Scope, given: Mapping[bytes, bytes], receive: Receive) -> bytes:
        found = target(scope["raw_path"])
        deletes = found is not None and found.rest[1:] == _DELETE_ID
        if found is None or (len(found.rest) > 2 and not deletes):
            raise _no_route(scope)
        if found.space != SPACE:
            raise Refused("authentication_error", "The token is not one of that space.", status=401)
        ask = Ask(token, found.space, checked_collection(found.collection), _query(scope["query_string"]))
        if deletes:
            _allow_method(scope, "POST", True)
            return json_dumps(await self._delete_id(ask, decoded(found.rest[0]), _json(given, await _body(receive))))
        post = self.posts.get(found.rest[0].decode("ascii", "replace")) if len(found.rest) == 1 else None
        _allow_method(scope, "POST" if post is not None else "GET", self._is_route(found))
        if post is not None:
            return json_dumps(await post(ask, _json(given, await _body(receive))))
        await self._wait(ask.query)
        if not found.rest:
            return json_dumps(await self._list(ask))
        named = address(decoded(found.rest[0]), self._normalize)
        resource = found.rest[1].decode("ascii", "replace")
        return json_dumps(await self._of_profile(ask, named, resource))

    def _is_route(self, found: Target) -> bool:
        if len(found.rest) == 2:
            return found.rest[1].decode("ascii", "replace") in self.resources
        return not found.rest or found.rest[0].decode("ascii", "replace") in self.posts

    async def _wait(self, query: Mapping[str, str]) -> None:
        if message_id := query.get("after"):
            await self._applied.wait(message_id)

    async def _of_profile(self, ask: Ask, named: str, resource: str) -> dict[str, Any]:
        allow(ask.token, "profiles:read")
        head = await self.look_ups.one(named)
        if head.collection != ask.collection:
            raise not_found()
        if ask.query.get("next"):
            await self._check_owner(ask.query, head)
        self.audit.note(ask.token.id, resource, (head.id,))
        return await self.resources[resource](ask, head)

    async def _check_owner(self, query: Mapping[str, str], head: Head) -> None:
        """A cursor is of the profile's own list, or of one that it has absorbed since."""
        owner = owner_of(query)
        if owner != head.id and (await self.look_ups.one(owner)).id != head.id:
            raise unreadable()

    def _normalize(self, kind: str, value: str) -> str:
        return self.rules.normalize(kind, value) if kind in self.rules.types else value.strip()

    # ── Of one profile ────────────────────────────────────────────────────────────────────────────────────────────

    async def _traits(self, ask: Ask, head: Head) -> dict[str, Any]:
        return views.traits_page(head, ask.query, ask.url(head.id, "traits"), ask.token.traits)

    async def _external_ids(self, ask: Ask, head: Head) -> dict[str, Any]:
        ids, merges = await self._database.read(
            lambda connection: (profiles.ids(connection, head.id), profiles.merges(connection, head.id))
        )
        return views.external_ids_page(head, ids, merges, ask.query, ask.url(head.id, "external_ids"))

    async def _events(self, ask: Ask, head: Head) -> dict[str, Any]:
        extract, url = extractor(self.rules), ask.url(head.id, "events")
        return await events.page(self._log, self._database, extract, head, ask.query, url, ask.token.traits)

    async def _metadata(self, ask: Ask, head: Head) -> dict[str, Any]:
        return {"metadata": views.metadata(head)}

    async def _links(self, ask: Ask, head: Head) -> dict[str, Any]:
        page, told = await many.linked(self._database, head, ask.query, ask.url(head.id, "links"))
        self.audit.note(ask.token.id, "links", told)
        return page

    async def _consent(self, ask: Ask, head: Head) -> dict[str, Any]:
        found = await self._database.read(lambda connection: stated(connection, head.id))
        return views.consent(found, ask.query)

    async def _merges(self, ask: Ask, head: Head) -> dict[str, Any]:
        ids, merges = await self._database.read(
            lambda connection: (profiles.ids(connection, head.id), profiles.merges(connection, head.id))
        )
        return views.merges_page(head, ids, merges, ask.query, ask.url(head.id, "merges"))

    async def _delete_id(self, ask: Ask, named: str, body: Mapping[str, Any]) -> dict[str, Any]:
        allow(ask.token, "profiles:delete_identifier")
        done = await privacy.delete_identifier(self._database, named, body)
        self.audit.note(ask.token.id, "delete_identifier", (done.data.profile,))
        return done.json_object()

    # ── Of many ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _list(self, ask: Ask) -> dict[str, Any]:
        allow(ask.token, "profiles:search")
        page, told = await many.listed(self._database, ask.collection, ask.query, ask.url(), ask.token.traits)
        self.audit.note(ask.token.id, "list", told)
        return page

    async def _search(self, ask: Ask, body: Mapping[str, Any]) -> dict[str, Any]:
        allow(ask.token, "profiles:search")
        await self._wait({**_texts(body), **ask.query})
        search = many.asked(body, ask.collection, self._normalize, ask.token.traits)
        page, told = await self._searches.page(search, ask.collection, ask.url("search"), ask.token.traits)
        self.audit.note(ask.token.id, "search", told)
        return page

    async def _lookup(self, ask: Ask, body: Mapping[str, Any]) -> dict[str, Any]:
        """A GET whose id stands in the body, where it is not logged: `id`, `resource`, and the parameters of that resource."""
        named, resource = body.get("id"), body.get("resource", "traits")
        if not isinstance(named, str) or not isinstance(resource, str) or resource not in self.resources:
            known = ", ".join(self.resources)
            raise Refused("invalid_request_error", f"The body needs `id`, and `resource` as one of {known}.")
        query = {**_texts(body), **ask.query}
        await self._wait(query)
        inner = Ask(ask.token, ask.space, ask.collection, query)
        return await self._of_profile(inner, address(named, self._normalize), resource)

    async def _batch(self, ask: Ask, body: Mapping[str, Any]) -> dict[str, Any]:
        """Each look-up has a status of its own."""
        allow(ask.token, "profiles:read")
        named = body.get("ids")
        if not isinstance(named, list) or not 0 < len(named) <= BATCH:
            raise Refused("validation_error", f"ids must be a list of 1 to {BATCH} ids of profiles.")
        fields = views.fields_of(body.get("fields"))
        await self._wait({**_texts(body), **ask.query})
        addresses = [self._address_or_refusal(one) for one in named]
        heads = await self.look_ups.find([one for one in addresses if isinstance(one, str)])
        rows = {head.id: head for head in heads.values() if head.collection == ask.collection}
        whole = await self._database.read(lambda connection: profiles.whole(connection, list(rows.values())))
        told_of = await many.items(self._database, whole, fields, ask.token.traits)
        items = {one["id"]: one for one in told_of}
        self.audit.note(ask.token.id, "batch", items)

        def told(asked: Any, found: str | Refused) -> dict[str, Any]:
            if isinstance(found, Refused):
                return {"id": asked, "status": found.status, "error": _error(found.code, found.message)}
            item = items.get(heads[found].id) if found in heads else None
            if item is None:
                return {"id": asked, "status": 404, "error": _error("not_found", not_found().message)}
            return {"id": asked, "status": 200, "profile": item}

        return {"data": [told(*pair) for pair in zip(named, addresses, strict=True)]}

    def _address_or_refusal(self, named: Any) -> str | Refused:
        try:
            return address(named if isinstance(named, str) else "", self._normalize)
        except Refused as refused:
            return refused


class ProfileRoute(BaseRoute):
    """Where the paths of the profile API begin."""

    def __init__(self, api: ProfileApi) -> None:
        self._api = api

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        meant = scope["type"] == "http" and scope["path"].startswith(PREFIXES)
        return (Match.FULL if meant else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._api(scope, receive, send)


# ── Requests ──────────────────────────────────────────────────────────────────────────────────────────────────────

_DELETE_ID: Final = (b"external_ids", b"delete")
_READ_HEADERS: Final = frozenset((b"authorization", b"content-encoding"))


def _query(raw: bytes) -> dict[str, str]:
    if not raw:
        return {}
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=100)
    except ValueError as error:
        raise Refused("invalid_request_error", "The query is not percent-encoded UTF-8.") from error
    return dict(pairs)


async def _body(receive: Receive) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused("invalid_request_error", "The request ended before its body did.")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > BODY:
            raise Refused("invalid_request_error", f"The body has more than {BODY} bytes.", status=413)
        if not message.get("more_body", False):
            return b"".join(parts)


def _json(given: Mapping[bytes, bytes], raw: bytes) -> Mapping[str, Any]:
    if given.get(b"content-encoding", b"identity") not in (b"", b"identity"):
        raise Refused("invalid_request_error", "Send the body without a content encoding.")
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Refused("invalid_request_error", "The body is not JSON.") from error
    if not isinstance(body, dict):
        raise Refused("invalid_request_error", "The body must be a JSON object.")
    return body


def _texts(body: Mapping[str, Any]) -> dict[str, str]:
    """Parameters in a body, as they would stand in a query."""
    found = {}
    for name, value in body.items():
        if isinstance(value, str):
            found[name] = value
        elif isinstance(value, bool):
            found[name] = "true" if value else "false"
        elif isinstance(value, int):
            found[name] = str(value)
        elif isinstance(value, list) and all(isinstance(one, str) for one in value):
            found[name] = ",".join(value)
    return found


def _allow_method(scope: Scope, method: str, known: bool) -> None:
    if not known:
        raise _no_route(scope)
    if scope["method"] != method:
        raise Refused("invalid_request_error", f"Use {method} here.", status=405)


def _no_route(scope: Scope) -> Refused:
    return Refused("not_found", f"There is nothing at {scope['path'][:200]}.", status=404)


# ── What went wrong ───────────────────────────────────────────────────────────────────────────────────────────────


class _Limited(Refused):
    """Over the rate."""

    def __init__(self, quota: Quota) -> None:
        message = (
            f"More than {quota.limit} requests in a second; wait {quota.reset} s, and longer each time it happens."
        )
        super().__init__("rate_limit_error", message, status=429)
        self.quota = quota


class _Stranger(Refused):
    """Without a valid token, with what is left to all of those."""

    def __init__(self, refused: Refused, quota: Quota) -> None:
        super().__init__(refused.code, refused.message, status=refused.status)
        self.quota = quota


def _failed(error: Exception, quota: Quota | None) -> tuple[int, bytes, Headers]:
    """Status, body and headers. What nobody foresaw is logged, and the client may try again."""
    if isinstance(error, Refused):
        extra: Headers = []
        if error.status == 401:
            extra.append((b"www-authenticate", b'Basic realm="millrace"'))
        if error.status in (429, 504):
            extra.append((b"retry-after", b"%d" % (quota.reset if quota is not None else 1)))
        if error.status == 405:
            extra.append((b"allow", error.message.split()[1].encode()))
        return error.status, orjson.dumps({"error": _error(error.code, error.message)}), extra
    if isinstance(error, Unavailable):
        after = (b"retry-after", b"%d" % max(1, round(error.after)))
        return 503, orjson.dumps({"error": _error("unavailable", str(error))}), [after]
    if not isinstance(error, MillraceError):
        log.error("a request about profiles failed", error=repr(error), exc_info=error)
    message = "This is a fault of ours; the log of the collect role has the details."
    return 500, orjson.dumps({"error": _error("internal", message)}), []


def _error(code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": message}
