"""Which events are refused, and for which reason: the tracking API's ingest validation."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from collector.item import ID_LIMIT, MESSAGE_ID_LIMIT, Context, Item, Object
from schemas.reasons import Reason

CONSENT_EVENT: Final = "Segment Consent Preference Updated"


def usable_id(value: Any) -> str | None:
    """The id, or None when it is blank or no string."""
    return value if type(value) is str and value and not value.isspace() else None


def refusal(kind: Any, item: Item, body: bytes, anonymous_id: str | None, user_id: str | None) -> Reason | None:
    """Why the event cannot proceed, or None. The two ids are the item's own made `usable_id`.

    A blank id is no id, and is passed over when the other one is there; alone it is `id_not_string`."""
    rule = _RULES.get(kind) if type(kind) is str else None
    if rule is None:
        return Reason.BAD_REQUEST
    if (anonymous_id is None or user_id is None) and (reason := _missing_id(item, anonymous_id or user_id)):
        return reason
    if (anonymous_id and len(anonymous_id) > ID_LIMIT) or (user_id and len(user_id) > ID_LIMIT):
        return Reason.ID_TOO_LONG
    message_id = item.message_id
    if message_id is not None:
        if type(message_id) is not str:
            return Reason.MESSAGE_ID_NOT_STRING
        if len(message_id) > MESSAGE_ID_LIMIT:
            return Reason.MESSAGE_ID_TOO_LONG
    if item.context is not None and type(item.context) is not Context:
        return Reason.CONTEXT_NOT_OBJECT
    if item.integrations is not None and type(item.integrations) is not Object:
        return Reason.INTEGRATIONS_NOT_OBJECT
    return rule(item, body)


def _missing_id(item: Item, other: str | None) -> Reason | None:
    for value in (item.anonymous_id, item.user_id):
        if value is not None and type(value) is not str:
            return Reason.ID_NOT_STRING
    if other is not None:
        return None
    given = item.anonymous_id is not None or item.user_id is not None
    return Reason.ID_NOT_STRING if given else Reason.NO_USER_ANON_ID


def _track(item: Item, body: bytes) -> Reason | None:
    event = item.event
    if type(event) is not str:
        return Reason.EVENT_NOT_DEFINED if event is None else Reason.EVENT_NOT_STRING
    if not event:
        return Reason.EVENT_NOT_DEFINED
    if item.properties is not None and type(item.properties) is not Object:
        return Reason.PROPERTIES_NOT_OBJECT
    return _consent(body) if event == CONSENT_EVENT else None


def _identify(item: Item, body: bytes) -> Reason | None:
    if item.traits is not None and type(item.traits) is not Object:
        return Reason.TRAITS_NOT_OBJECT
    return None


def _view(item: Item, body: bytes) -> Reason | None:
    if item.name is not None and (type(item.name) is not str or not item.name):
        return Reason.NAME_NOT_STRING
    if item.category is not None and (type(item.category) is not str or not item.category):
        return Reason.CATEGORY_NOT_STRING
    if item.properties is not None and type(item.properties) is not Object:
        return Reason.PROPERTIES_NOT_OBJECT
    return None


def _group(item: Item, body: bytes) -> Reason | None:
    return _required(item.group_id, Reason.GROUP_ID_REQUIRED) or _identify(item, body)


def _alias(item: Item, body: bytes) -> Reason | None:
    return _required(item.user_id, Reason.USER_ID_REQUIRED) or _required(item.previous_id, Reason.PREVIOUS_ID_REQUIRED)


def _required(value: Any, reason: Reason) -> Reason | None:
    if usable_id(value) is None:
        return reason
    return Reason.ID_TOO_LONG if len(value) > ID_LIMIT else None


class _Consent(msgspec.Struct, rename="camel"):
    category_preferences: Any = None
    version: Any = None


class _Device(msgspec.Struct, rename="camel"):
    advertising_id: Any = None


class _ConsentContext(msgspec.Struct):
    consent: _Consent | None = None
    device: _Device | None = None


class _ConsentItem(msgspec.Struct):
    context: _ConsentContext | None = None


def _consent(body: bytes) -> Reason | None:
    """The reserved event is the only one whose context is looked into."""
    try:
        context = msgspec.json.decode(body, type=_ConsentItem).context or _ConsentContext()
    except msgspec.ValidationError:  # consent or device is no object
        return Reason.CONSENT_NOT_OBJECT
    consent, device = context.consent or _Consent(), context.device or _Device()
    if consent.category_preferences is None:
        return Reason.CONSENT_MISSING
    if not isinstance(consent.category_preferences, dict):
        return Reason.CONSENT_NOT_OBJECT
    if not all(type(value) is bool for value in consent.category_preferences.values()):
        return Reason.CONSENT_NOT_BOOL
    if consent.version is not None and type(consent.version) not in (int, float):
        return Reason.CONSENT_VERSION_NOT_NUMBER
    if device.advertising_id is not None and type(device.advertising_id) is not str:
        return Reason.ADVERTISING_ID_NOT_STRING
    return None


_RULES: Final[Mapping[str, Callable[[Item, bytes], Reason | None]]] = {
    "track": _track,
    "identify": _identify,
    "page": _view,
    "screen": _view,
    "group": _group,
    "alias": _alias,
}
