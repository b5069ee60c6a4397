"""Whether a destination gets an event: decided from the event and the configuration alone.

The order is the reference's: connection, supported type, consent, `integrations` object, what the device sent itself, filters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypedDict

import msgspec

from pipeline.delivery.limits import Destination
from pipeline.delivery.shared import Latest, is_shared, whole
from pipeline.language.rules import compile_rules
from pipeline.log import Record
from schemas.config import FilterConfig
from schemas.events import Event, Resolved, decode_resolved
from schemas.exact_json import json_loads

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


def decode(value: bytes) -> Resolved | Unreadable:
    """The event of a value of `resolved`. Knows no destination, so that its result can serve all of them."""
    try:
        return decode_resolved(value)
    except ValueError as error:
        return Unreadable(str(error))


_latest: Final[Latest[Resolved | Unreadable]] = Latest(decode)


def decoded(partition: int, records: Sequence[Record]) -> list[Resolved | Unreadable]:
    """`decode` for records of one partition that other destinations read as well, each at its own pace."""
    return _latest.of(partition, records)


def rules(destination: Destination, *, whole_next: bool = False) -> Decide:
    """The destination's decision, with everything looked up once. `whole_next`: what passes is made whole next, so that its body is
    decoded once for both."""
    types = frozenset(kind for action in destination.definition.actions for kind in action.types)
    sources = destination.sources
    names = (destination.name, destination.definition.name)
    warehouse = destination.definition.warehouse
    plain = _filter(destination.filter)
    passes = compile_rules(destination.filter.where, destination.filters).passes
    consent = destination.consent
    read = _everything if whole_next else _consenting if consent else _little

    def decide(resolved: Resolved) -> str | None:
        event = resolved.event
        if event.refused is not None:
            return DELETED
        if sources is not None and event.source not in sources:
            return SOURCE_NOT_CONNECTED
        if event.type not in types:
            return UNSUPPORTED_EVENT_TYPE
        body = read(resolved)
        if consent:
            tells = event.type == "track" and body.get("event") == CONSENT_EVENT
            if not tells and not consented(body.get("context"), consent):
                return FILTERED_BY_END_USER_CONSENT
        said = body.get("integrations")
        if isinstance(said, dict) and said and not allowed(said, names, warehouse=warehouse):
            return FILTERED_BY_INTEGRATIONS_OBJECT
        metadata = body.get("_metadata")
        if metadata is not None and sent_by_device(metadata, names):
            return MESSAGE_SENT_CLIENT_SIDE
        if (plain is not None and not plain(event, body)) or (passes is not None and not passes(whole(resolved))):
            return FILTERED_BY_RULES
        return None

    return decide


# ── What is looked at of a body ──────────────────────────────────────────────────────────────────────────────────

Body = Mapping[str, Any]
"""The fields that decisions look at, those that are there, and perhaps others."""

# Cheaper than to look for a name in the bytes first, and an escaped name is found too.
_LITTLE: Final = TypedDict("_LITTLE", {"integrations": Any, "_metadata": Any, "event": Any}, total=False)
_little_of: Final = msgspec.json.Decoder(_LITTLE).decode
_CONSENTING: Final = TypedDict(
    "_CONSENTING", {"integrations": Any, "_metadata": Any, "event": Any, "context": Any}, total=False
)
_consenting_of: Final = msgspec.json.Decoder(_CONSENTING).decode


def _little(resolved: Resolved) -> Body:
    return _parsed(_little_of, resolved.event.body)


def _consenting(resolved: Resolved) -> Body:
    return _parsed(_consenting_of, resolved.event.body)


def _everything(resolved: Resolved) -> Body:
    """Leaves it with the event, for `materialize`. What is shared would keep it for too long, and needs it only once."""
    if is_shared(resolved):
        return _consenting(resolved)
    said = resolved.said = _parsed(json_loads, resolved.event.body)
    return said


def _parsed(decode: Callable[[bytes], Any], body: bytes) -> dict[str, Any]:
    try:
        said = decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ValueError(f"the body cannot be read: {error}") from error
    if not isinstance(said, dict):
        raise ValueError("the body cannot be read: not a JSON object")
    return said


# ── Consent ───────────────────────────────────────────────────────────────────────────────────────────────────────

CONSENT_EVENT: Final = "Segment Consent Preference Updated"  # tells of consent, so it needs none


def consented(context: Any, categories: Sequence[str]) -> bool:
    """Whether an event's context allows it to a destination of these categories: all of them must be agreed to. What states no
    preferences passes; a category that is not among those stated was not agreed to."""
    consent = context.get("consent") if isinstance(context, dict) else None
    stated = consent.get("categoryPreferences") if isinstance(consent, dict) else None
    return not isinstance(stated, dict) or all(stated.get(category) is True for category in categories)


# ── The integrations object ───────────────────────────────────────────────────────────────────────────────────────


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


def _filter(config: FilterConfig) -> Callable[[Event, Body], bool] | None:
    if config.types is None and config.events is None:
        return None
    types = None if config.types is None else frozenset(config.types)
    names = None if config.events is None else frozenset(config.events)

    def passes(event: Event, body: Body) -> bool:
        if types is not None and event.type not in types:
            return False
        if names is None or event.type != "track":
            return True
        name = body.get("event")
        return isinstance(name, str) and name in names

    return passes
