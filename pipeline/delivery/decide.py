"""Whether a destination gets an event: decided from the event and the configuration alone.

The order is the reference's: connection, supported type, consent, `integrations` object, what the device sent itself, filters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec

from pipeline.delivery.limits import Destination
from pipeline.delivery.shared import Latest, whole
from pipeline.language.rules import compile_rules
from pipeline.log import Record
from schemas.config import FilterConfig
from schemas.events import Event, Resolved, decode_resolved

SOURCE_NOT_CONNECTED: Final = "SOURCE_NOT_CONNECTED"
UNSUPPORTED_EVENT_TYPE: Final = "UNSUPPORTED_EVENT_TYPE"
FILTERED_BY_END_USER_CONSENT: Final = "FILTERED_BY_END_USER_CONSENT"
FILTERED_BY_INTEGRATIONS_OBJECT: Final = "FILTERED_BY_INTEGRATIONS_OBJECT"
MESSAGE_SENT_CLIENT_SIDE: Final = "MESSAGE_SENT_CLIENT_SIDE"
FILTERED_BY_RULES: Final = "FILTERED_BY_RULES"
DELETED: Final = "DELETED"
"""Ours: the person was deleted before the event got here."""

Decide = Callable[[Resolved], str | None]
"""The reason why an event is filtered, None when it passes. ValueError when its body cannot be read."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A poison record: what is wrong with it."""

    reason: str


def decode(record: Record) -> Resolved | Unreadable:
    """The event of a record of `resolved`. Knows no destination, so that its result can serve all of them."""
    try:
        return decode_resolved(record.value)
    except ValueError as error:
        return Unreadable(str(error))


_latest: Final[Latest[Resolved | Unreadable]] = Latest(lambda value: decode(Record(b"", value, 0)))


def decoded(partition: int, records: Sequence[Record]) -> list[Resolved | Unreadable]:
    """`decode` for records of one partition that other destinations read as well, each at its own pace."""
    return _latest.of(partition, records)


def rules(destination: Destination) -> Decide:
    """The destination's decision, with everything looked up once."""
    types = frozenset(kind for action in destination.definition.actions for kind in action.types)
    sources = destination.sources
    names = (destination.name, destination.definition.name)
    warehouse = destination.definition.warehouse
    plain = _filter(destination.filter)
    passes = compile_rules(destination.filter.where, destination.filters).passes
    consent = destination.consent

    def decide(resolved: Resolved) -> str | None:
        event = resolved.event
        if event.refused is not None:
            return DELETED
        if sources is not None and event.source not in sources:
            return SOURCE_NOT_CONNECTED
        if event.type not in types:
            return UNSUPPORTED_EVENT_TYPE
        body: _Body
        if consent:
            body = stated = _parse(_body_with_context, event.body)
            tells = event.type == "track" and body.event == CONSENT_EVENT
            if not tells and not consented(stated.context, consent):
                return FILTERED_BY_END_USER_CONSENT
        else:
            body = _parse(_body, event.body)
        said = body.integrations
        if isinstance(said, dict) and said and not allowed(said, names, warehouse=warehouse):
            return FILTERED_BY_INTEGRATIONS_OBJECT
        if body.metadata is not None and sent_by_device(body.metadata, names):
            return MESSAGE_SENT_CLIENT_SIDE
        if (plain is not None and not plain(event, body)) or (passes is not None and not passes(whole(resolved))):
            return FILTERED_BY_RULES
        return None

    return decide


# ── Consent ───────────────────────────────────────────────────────────────────────────────────────────────────────

CONSENT_EVENT: Final = "Segment Consent Preference Updated"  # tells of consent, so it needs none


def consented(context: Any, categories: Sequence[str]) -> bool:
    """Whether an event's context allows it to a destination of these categories: all of them must be agreed to. What states no
    preferences passes; a category that is not among those stated was not agreed to."""
    consent = context.get("consent") if isinstance(context, dict) else None
    stated = consent.get("categoryPreferences") if isinstance(consent, dict) else None
    return not isinstance(stated, dict) or all(stated.get(category) is True for category in categories)


# ── The integrations object ───────────────────────────────────────────────────────────────────────────────────────


class _Body(msgspec.Struct):
    integrations: Any = None
    metadata: Any = msgspec.field(default=None, name="_metadata")
    event: Any = None


class _BodyWithContext(_Body):
    context: Any = None


# Cheaper than to look for a name in the bytes first, and an escaped name is found too.
_body: Final = msgspec.json.Decoder(_Body).decode
_body_with_context: Final = msgspec.json.Decoder(_BodyWithContext).decode
T = TypeVar("T")


def _parse(decode: Callable[[bytes], T], body: bytes) -> T:
    try:
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"the body cannot be read: {error}") from error


def allowed(said: Mapping[str, Any], names: Sequence[str], *, warehouse: bool) -> bool:
    """What an `integrations` object says of the destination called `names`, the more specific name first.

    Names are case-sensitive, `All` is not; an object means true. `All` does not concern warehouses: those obey
    `Warehouses`, as a whole or by id."""
    for name in names:
        own = _flag(said.get(name))
        if own is not None:
            return own
    if warehouse:
        return _warehouses(said.get("Warehouses"), names[0])
    every = _flag(next((value for name, value in said.items() if name.lower() == "all"), None))
    return True if every is None else every


def _warehouses(said: Any, name: str) -> bool:
    if not isinstance(said, dict):
        return said is not False
    chosen = said.get("warehouseIds")
    if isinstance(chosen, list):
        return name in chosen
    every = next((value for key, value in said.items() if key.lower() == "all"), None)
    return every is not False


def _flag(value: Any) -> bool | None:
    """An options object enables; anything that is neither that nor a boolean says nothing."""
    if isinstance(value, bool):
        return value
    return True if isinstance(value, dict) else None


def sent_by_device(metadata: Any, names: Sequence[str]) -> bool:
    """Whether the `_metadata` of an SDK says that its device has sent the event to this destination itself: `bundled` lists
    names, `bundledIds` ids. (`Segment.io`, which every browser lists, is the collector.)"""
    if not isinstance(metadata, dict):
        return False
    lists = (metadata.get("bundled"), metadata.get("bundledIds"))
    return any(name in one for one in lists if isinstance(one, list) for name in names)


# ── The configured filter ─────────────────────────────────────────────────────────────────────────────────────────


def _filter(config: FilterConfig) -> Callable[[Event, _Body], bool] | None:
    if config.types is None and config.events is None:
        return None
    types = None if config.types is None else frozenset(config.types)
    names = None if config.events is None else frozenset(config.events)

    def passes(event: Event, body: _Body) -> bool:
        if types is not None and event.type not in types:
            return False
        if names is None or event.type != "track":
            return True
        return isinstance(body.event, str) and body.event in names

    return passes
