"""An event as a function sees it, and back again. Pure."""

from datetime import UTC, datetime
from typing import Any, Final

from schemas.events import INTERNAL_FIELDS, TYPES, Event, Resolved, iso, materialize
from schemas.exact_json import json_dumps, json_loads

LONGEST_ID: Final = 512  # characters, as the collector has it
LARGEST_BODY: Final = 512 << 10  # bytes of an event that a function made
_OURS: Final = ("messageId", "receivedAt", "sentAt", "originalTimestamp", "source", "profileId", "externalIds")
_OBJECTS: Final = ("properties", "traits", "context", "integrations")


def seen(resolved: Resolved) -> bytes:
    """The event that a function gets, as JSON: what destinations get. ValueError when its body cannot be read."""
    return json_dumps(materialize(resolved))


def changed(event: Event, made: Any) -> Event:
    """`event` as a function made it. What is ours stays: messageId, times of receipt, source, profile; its time, too, where the
    function gives none, as one that puts an event together from nothing.

    ValueError says what cannot be of what it made, in words without values."""
    if not isinstance(made, dict):
        raise ValueError("an event is an object")
    original = json_loads(event.body)
    _check(made, original)
    body = {name: value for name, value in made.items() if name not in _OURS and name != "timestamp"}
    body |= {name: original[name] for name in (*INTERNAL_FIELDS, *_OURS, "timestamp") if name in original}
    timestamp = event.timestamp
    if (given := made.get("timestamp")) is not None and given != iso(timestamp):
        timestamp = _micros(given)
        body["timestamp"] = given
    raw = json_dumps(body)
    if len(raw) > LARGEST_BODY:
        raise ValueError(f"more than {LARGEST_BODY:,} bytes")
    context = made.get("context")
    ip = context.get("ip") if isinstance(context, dict) else None
    return event._replace(
        type=made["type"],
        user_id=made.get("userId"),
        anonymous_id=made.get("anonymousId"),
        timestamp=timestamp,
        ip=ip if isinstance(ip, str) else None,
        body=raw,
    )


def _check(made: dict[str, Any], original: dict[str, Any]) -> None:
    if made.get("type") not in TYPES:
        raise ValueError(f"type is none of {', '.join(TYPES)}")
    for name in ("userId", "anonymousId"):
        one = made.get(name)
        if one is not None and not (isinstance(one, str) and 0 < len(one) <= LONGEST_ID):
            raise ValueError(f"{name} is not a text of 1 to {LONGEST_ID} characters")
    if made.get("userId") is None and made.get("anonymousId") is None:
        raise ValueError("neither userId nor anonymousId")
    if made["type"] == "track" and not (isinstance(made.get("event"), str) and made["event"]):
        raise ValueError("a track call without the name of its event")
    for name in _OBJECTS:
        if made.get(name) is None or isinstance(made[name], dict):
            continue
        if made[name] != original.get(name):  # what the client sent so may stay so
            raise ValueError(f"{name} is not an object")


def _micros(text: Any) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError) as error:
        raise ValueError("timestamp is not an ISO 8601 time") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    micros = round(moment.timestamp() * 1e6)
    iso(micros)
    return micros
