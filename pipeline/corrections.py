"""What destinations are told once profiles were taken apart, or are one again: an identify of ours for each. Pure.

It goes through the log like any event, so that books, order and exactly-once hold. On `events` it only names the profile; the
pipeline fills in the traits as they are then, emits it, and folds nothing in. Its source has no write key, so that nobody
else can send one.
"""

from collections.abc import Collection, Sequence
from typing import Annotated

import msgspec

from pipeline.profile import Traits, values
from pipeline.split import Correction
from schemas.events import Event, ExternalId, encode_event
from schemas.exact_json import json_dumps
from schemas.topics import INTERNAL_SOURCE


class _Marker(msgspec.Struct):
    split: str
    reason: str
    profile: str
    ids: Annotated[list[Annotated[str, msgspec.Meta(pattern="^[^:]+:")]], msgspec.Meta(min_length=1)]
    gone: list[str]


class _Ours(msgspec.Struct):
    correction: _Marker


class _Context(msgspec.Struct):
    millrace: _Ours


class _Body(msgspec.Struct):
    context: _Context


def event_of(one: Correction, now: int) -> Event:
    """As it stands on `events`."""
    split, reason, _ = one.message.split(":")
    ids = [one.node, *(key for key in one.ids if key != one.node)]
    marker = {"split": split, "reason": reason, "profile": one.profile, "ids": ids, "gone": list(one.gone)}
    body = json_dumps({"type": "identify", "context": {"millrace": {"correction": marker}}})
    event = Event(INTERNAL_SOURCE, "identify", one.message, None, None, now, None, now, "server", None, None, body)
    return _addressed(event, _ids(ids))


def named(event: Event) -> Sequence[ExternalId] | None:
    """The ids that a correction names, the one it goes by first; None for any other event."""
    marker = _marker(event)
    return None if marker is None else _ids(marker.ids)


def filled(event: Event, profile: str, ids: Collection[ExternalId], traits: Traits) -> bytes:
    """The record value of a correction with what the profile has now: its traits, null for those it lost, and its ids."""
    marker = _marker(event)
    if marker is None:
        raise ValueError(f"{event.message_id} is not a correction")
    context = {
        "externalIds": [{"id": one.value, "type": one.type, "collection": "users", "encoding": "none"} for one in ids],
        "millrace": {"correction": {"split": marker.split, "reason": marker.reason, "profile": profile}},
    }
    told = {**dict.fromkeys(marker.gone), **values(traits)} if ids else {}
    body = {"type": "identify", "traits": told, "context": context}
    return encode_event(_addressed(event._replace(body=json_dumps(body)), ids))


def _marker(event: Event) -> _Marker | None:
    if event.source != INTERNAL_SOURCE:
        return None
    try:
        return msgspec.json.decode(event.body, type=_Body).context.millrace.correction
    except msgspec.DecodeError:
        return None  # from before the source was ours


def _ids(keys: Sequence[str]) -> list[ExternalId]:
    return [ExternalId(*key.split(":", 1)) for key in keys]


def _addressed(event: Event, ids: Collection[ExternalId]) -> Event:
    """With the most trusted user and device of these ids; an identify needs one of the two."""

    def first(kind: str) -> str | None:
        return next((one.value for one in ids if one.type == kind), None)

    return event._replace(user_id=first("user_id"), anonymous_id=first("anonymous_id"))
