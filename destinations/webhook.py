"""Posts events to an address of the customer's: JSON arrays over HTTP, signed, in order per profile.

The body is a JSON array of whole events as the client sent them, with `messageId`, `timestamp`, `receivedAt`, `source`,
`profileId` and `externalIds` set, or of what mappings make of them. An event may come more than once; its `messageId` tells.

Where `forget_url` is set, it gets one JSON object for each request to delete people: `type` (delete), `regulationId`, `externalIds`,
`profileIds` and `deletedAt`. It may come more than once, too.

With a secret, `Millrace-Signature: t=<unix seconds>,v1=<hex>` is sent. To verify: compute HMAC-SHA256, keyed with the
secret, over the bytes `<t>.` followed by the raw body; compare its hex form with `v1` in constant time; refuse a `t`
more than five minutes away from your clock.
"""

import hashlib
import hmac
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from pydantic import Field, HttpUrl, SecretStr, field_validator, model_validator

from destinations.contract import (
    DELIVERED,
    UNTRIED,
    Action,
    Definition,
    EncodedEvent,
    Env,
    Filtered,
    Outcome,
    Payload,
    Person,
    Preset,
    Retry,
    Settings,
    mapped,
)
from destinations.deadline import time_left
from destinations.http.failure import ExchangeFailed
from destinations.http.request import Request
from destinations.oauth import OAuth, Tokens, tokens_of
from destinations.outbound import send, user_agent
from schemas.errors import CredentialsRejected, Unavailable
from schemas.events import TYPES
from schemas.exact_json import json_dumps

MAX_BODY_BYTES: Final = 4 << 20
_OWN_HEADERS: Final = frozenset(
    ("content-type", "content-length", "transfer-encoding", "idempotency-key", "millrace-signature", "user-agent")
)


class WebhookSettings(Settings):
    """Where to post, and how the receiver knows that it is us."""

    url: HttpUrl = Field(description="Address that gets POST requests with a JSON array of events.")
    secret: SecretStr | None = Field(
        None, min_length=1, description="Signs each body: HMAC-SHA256 in the header Millrace-Signature."
    )
    forget_url: HttpUrl | None = Field(
        None, description="Address that gets a POST request for people who are to be deleted; without it none is sent."
    )
    headers: dict[str, SecretStr] = Field(
        default_factory=dict, description="Headers sent with each request, such as Authorization."
    )
    oauth: OAuth | None = Field(
        None, description="Sends an access token with each request: token_url, client_id, client_secret, perhaps scope."
    )
    batch_size: int = Field(100, ge=1, le=1_000, description="Most events in one request.")
    timeout: float = Field(10.0, gt=0, le=300, description="Seconds to wait for the whole answer.")

    @field_validator("url", "forget_url")
    @classmethod
    def _without_password(cls, url: HttpUrl | None) -> HttpUrl | None:
        if url is not None and (url.username or url.password):
            raise ValueError("credentials in an address are printed with it; send them as a header Authorization")
        return url

    @field_validator("headers")
    @classmethod
    def _sendable(cls, headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, value in headers.items():
            if name.lower() in _OWN_HEADERS:
                raise ValueError(f"header {name!r} is set by Millrace; leave it out")
            if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"header {name!r} is not a header name; use letters, digits and '-'")
            if any(ord(one) < 32 or ord(one) == 127 for one in value.get_secret_value()):
                raise ValueError(f"the value of header {name!r} holds a control character; remove line breaks")
            if not value.get_secret_value().isascii():
                raise ValueError(f"the value of header {name!r} is not ASCII; HTTP allows nothing else")
        return headers

    @model_validator(mode="after")
    def _one_authorization(self) -> "WebhookSettings":
        if self.oauth is not None and any(name.lower() == "authorization" for name in self.headers):
            raise ValueError("oauth and a header Authorization exclude each other; leave one out")
        return self


class Data(Payload):
    """What a mapping makes of an event."""

    data: Any = mapped({"@path": "$."}, "What stands in the array, any JSON; the whole event by default.")


@dataclass(frozen=True, slots=True)
class Webhook:
    """An open webhook: its settings, the world, and what its requests have in common."""

    settings: WebhookSettings
    env: Env
    events: Request
    forgetting: Request | None
    tokens: Tokens | None = None


@asynccontextmanager
async def connect(settings: WebhookSettings, env: Env) -> AsyncIterator[Webhook]:
    """The HTTP client is the engine's; of our own there are access tokens at most."""
    headers = _headers(settings)
    events = Request("POST", str(settings.url), headers)
    forgetting = None if settings.forget_url is None else Request("POST", str(settings.forget_url), headers)
    async with AsyncExitStack() as stack:
        tokens = None if settings.oauth is None else await stack.enter_async_context(tokens_of(settings.oauth, env))
        yield Webhook(settings, env, events, forgetting, tokens)


async def check(webhook: Webhook) -> None:
    """Asks for the address with HEAD, which changes nothing there. Any answer but 401 and 403 will do, since a receiver
    need not know HEAD."""
    if webhook.tokens is None:
        await _ask(webhook, {})
    elif isinstance(said := await webhook.tokens.authorized(partial(_ask, webhook)), Retry):
        raise Unavailable(f"webhook: {said.reason}")


async def _ask(webhook: Webhook, bearing: Mapping[str, str]) -> Outcome:
    settings = webhook.settings
    headers = {**_plain_headers(settings), **bearing}
    try:
        answer = await webhook.env.http.request("HEAD", str(settings.url), headers=headers, timeout=settings.timeout)
    except ExchangeFailed as error:
        raise Unavailable(f"webhook: {error.reason}") from error
    if answer.status in (401, 403):
        raise CredentialsRejected(f"http {answer.status}")
    return DELIVERED


async def send_events(webhook: Webhook, batch: Sequence[EncodedEvent]) -> Sequence[Outcome]:
    """Posts the batch in requests of at most `batch_size` events, one after another, for as long as there is time."""
    return await _send_all(webhook, [one.message_id for one in batch], [one.json for one in batch])


async def send_data(webhook: Webhook, batch: Sequence[Data]) -> Sequence[Outcome]:
    """The same with what mappings made of events."""
    return await _send_all(webhook, [one.message_id for one in batch], [json_dumps(one.data) for one in batch])


async def _send_all(webhook: Webhook, message_ids: Sequence[str], batch: Sequence[bytes]) -> Sequence[Outcome]:
    """Once a request has to come back later, so do the events after it: one of them may be of the same profile. A request
    that is rejected holds nothing back. No request is begun that may be cut off in the middle, which would take the answers
    to those before it along."""
    outcomes: list[Outcome] = []
    most = webhook.settings.timeout
    for bodies in requests(batch, webhook.settings.batch_size):
        start = len(outcomes)
        left = time_left() - _SPARE
        if outcomes and left < min(most, _AMPLE):
            return outcomes + [UNTRIED] * (len(batch) - len(outcomes))
        part = message_ids[start : start + len(bodies)]
        body = b"[" + b",".join(bodies) + b"]"
        try:
            outcome = await _post(webhook, webhook.events, idempotency_key(part), body, min(most, max(left, _SPARE)))
        except CredentialsRejected as error:
            if not outcomes:
                raise
            outcome = Retry(str(error), after=0.0)  # keeps the answers already given; the next attempt pauses us
        outcomes += [outcome] * len(part)
        if isinstance(outcome, Retry):
            return outcomes + [outcome] * (len(batch) - len(outcomes))
    return outcomes


_SPARE: Final = 0.5  # seconds of a call's time that its last request leaves
_AMPLE: Final = 10.0  # seconds that have to be left for a further request, where it may take as long


def requests(batch: Sequence[bytes], most: int) -> Iterator[list[bytes]]:
    """Cuts events as JSON into requests of at most `most` events and about MAX_BODY_BYTES. An event larger than that goes alone."""
    size, bodies = 0, list[bytes]()
    for body in batch:
        if bodies and (len(bodies) == most or size + len(body) > MAX_BODY_BYTES):
            yield bodies
            size, bodies = 0, []
        bodies.append(body)
        size += len(body)
    if bodies:
        yield bodies


def signature(secret: str, timestamp: int, body: bytes) -> str:
    """The value of `Millrace-Signature`. `timestamp` is in Unix seconds."""
    return f"t={timestamp},v1={hmac.digest(secret.encode(), b'%d.' % timestamp + body, 'sha256').hex()}"


def idempotency_key(message_ids: Sequence[str]) -> str:
    """The same for the same events in the same order, whenever they are sent. Ids are length-prefixed, so that no two
    lists run together."""
    digest = hashlib.sha256()
    for one in message_ids:
        raw = one.encode(errors="surrogatepass")
        digest.update(b"%d:" % len(raw) + raw)
    return digest.hexdigest()[:32]


async def forget(webhook: Webhook, people: Sequence[Person]) -> Sequence[Outcome]:
    """Posts one notice for each person: their ids, and the request, which is the same in each repetition."""
    request = webhook.forgetting
    if request is None:
        return [Filtered("no forget_url is configured")] * len(people)
    outcomes: list[Outcome] = []
    for person in people:
        notice = {
            "type": "delete",
            "regulationId": person.regulation,
            "externalIds": [{"type": kind, "id": value} for kind, value in person.ids],
            "profileIds": list(person.profiles),
            "deletedAt": person.deleted_at,
        }
        body = json_dumps(notice)
        outcomes.append(await _post(webhook, request, person.regulation, body, webhook.settings.timeout))
    return outcomes


async def _post(webhook: Webhook, request: Request, key: str, body: bytes, timeout: float) -> Outcome:
    settings, env = webhook.settings, webhook.env
    now = env.now()
    headers = {"Idempotency-Key": key}
    if settings.secret is not None:
        headers["Millrace-Signature"] = signature(settings.secret.get_secret_value(), int(now), body)
    if webhook.tokens is None:
        return await send(env.http, request, body, headers, timeout=timeout, now=now)
    return await webhook.tokens.authorized(
        lambda bearing: send(env.http, request, body, {**headers, **bearing}, timeout=timeout, now=now)
    )


def _headers(settings: WebhookSettings) -> dict[str, str]:
    return _plain_headers(settings) | {"Content-Type": "application/json"}


def _plain_headers(settings: WebhookSettings) -> dict[str, str]:
    own = {name: value.get_secret_value() for name, value in settings.headers.items()}
    return own | {"User-Agent": user_agent()}


PRESETS: Final = (
    Preset(
        name="People",
        action="send_data",
        trigger="type = 'identify'",
        mapping={
            "data": {
                "type": "person",
                "profileId": {"@path": "$.profileId"},
                "userId": {"@path": "$.userId"},
                "anonymousId": {"@path": "$.anonymousId"},
                "traits": {"@path": "$.traits"},
                "at": {"@path": "$.timestamp"},
                "messageId": {"@path": "$.messageId"},
            }
        },
        on=False,
    ),
    Preset(
        name="Orders",
        action="send_data",
        trigger="type = 'track' and event = 'Order Completed'",
        mapping={
            "data": {
                "type": "order",
                "profileId": {"@path": "$.profileId"},
                "userId": {"@path": "$.userId"},
                "anonymousId": {"@path": "$.anonymousId"},
                "orderId": {"@path": "$.properties.order_id"},
                "total": {"@path": "$.properties.total"},
                "currency": {"@path": "$.properties.currency"},
                "products": {"@path": "$.properties.products"},
                "at": {"@path": "$.timestamp"},
                "messageId": {"@path": "$.messageId"},
            }
        },
        on=False,
    ),
)
"""Off by default: without mappings a receiver gets whole events."""


definition: Final[Definition[WebhookSettings, Webhook]] = Definition(
    name="webhook",
    description="Posts events as signed JSON arrays to an address of yours.",
    settings=WebhookSettings,
    connect=connect,
    check=check,
    forget=forget,
    presets=PRESETS,
    actions=(
        Action(
            name="send_events",
            payload=None,
            types=TYPES,
            max_batch=1_000,
            deliver=send_events,
            encoded=True,
            atomic=True,
            concurrency=8,
        ),
        Action(
            name="send_data",
            payload=Data,
            types=TYPES,
            max_batch=1_000,
            deliver=send_data,
            atomic=True,
            concurrency=8,
        ),
    ),
)
