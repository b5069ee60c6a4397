"""Log records -> what the transaction needs. Pure; a record that cannot be read is a value here, never an exception."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.identity import extract
from pipeline.log import Batch
from pipeline.profile import message_key
from schemas.events import Event, ExternalId, Origin, decode_event, identified
from schemas.exact_json import json_loads
from schemas.reasons import Reason


class Parsed(NamedTuple):
    """An event the collector accepted."""

    origin: Origin
    key: bytes  # of deduplication
    event: Event
    ids: Sequence[ExternalId]
    traits: Mapping[str, Any] | None  # what it writes to its profile
    value: bytes  # the record as it stands in the log
    context: bytes | None = None  # what the server could tell of the sender


Enrich = Callable[[Event], bytes | None]
"""What the server can tell of an event's sender, as `Resolved.context` holds it."""


def nothing(event: Event) -> None:
    """No enrichment."""


class Refusal(NamedTuple):
    """An event that goes no further, with its reason and original bytes."""

    origin: Origin
    source: str
    message_id: str
    code: str
    received_at: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Work:
    """All that one poll of the log yielded. `ends` is the next offset of each partition in it."""

    events: Sequence[Parsed]
    refusals: Sequence[Refusal]
    ends: Mapping[int, int]


def parse(batches: Iterable[Batch], enrich: Enrich = nothing) -> Work:
    """Decodes the batches of one poll, records of a partition in order."""
    events: list[Parsed] = []
    refusals: list[Refusal] = []
    ends: dict[int, int] = {}
    for batch in batches:
        ends[batch.partition] = batch.next_offset
        for record in batch.records:
            origin = Origin(batch.partition, record.offset)
            one = _parse(origin, record.value, record.timestamp, enrich)
            if isinstance(one, Parsed):
                events.append(one)
            else:
                refusals.append(one)
    return Work(events, refusals, ends)


def _parse(origin: Origin, value: bytes, timestamp: int, enrich: Enrich) -> Parsed | Refusal:
    try:
        event = decode_event(value)
    except ValueError:
        return Refusal(origin, "", "", Reason.POISON_RECORD, timestamp * 1000, value)
    if event.refused is not None:
        return _refusal(origin, event, event.refused)
    if "\0" in event.message_id or "\0" in event.source:
        return _refusal(origin, event, Reason.BAD_REQUEST)
    try:
        body = _body(event)
    except ValueError:
        return _refusal(origin, event, Reason.BAD_REQUEST)
    ids = [one for one in extract(event.user_id, event.anonymous_id, body) if "\0" not in one.value]
    key = message_key(event.source, event.message_id)
    return Parsed(origin, key, event, ids, _traits(event, body), value, enrich(event))


def _refusal(origin: Origin, event: Event, code: str) -> Refusal:
    clean = event.message_id.replace("\0", "\ufffd"), event.source.replace("\0", "\ufffd")
    return Refusal(origin, clean[1], clean[0], code, event.received_at, event.body)


def _body(event: Event) -> Mapping[str, Any] | None:
    """The decoded body where identity or traits need it: most events carry neither traits nor an e-mail address. A
    backslash may hide a name behind an escape."""
    raw = event.body
    if event.type == "identify" or b"email" in raw or (b"\\" in raw and b"\\u00" in raw):
        body = json_loads(raw)
        return body if isinstance(body, dict) else None
    return None


def _traits(event: Event, body: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Only an identify writes traits; those in the context of other calls are passed on and change nothing."""
    if event.type != "identify" or body is None:
        return None
    return identified(body)
