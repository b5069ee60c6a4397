"""Log records -> what the transaction needs. Pure; a record that cannot be read is a value here, never an exception."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from pipeline.corrections import named
from pipeline.extract import Extract, Found, extractor
from pipeline.identity import DEFAULT, Rules
from pipeline.log import Batch
from pipeline.profile import message_key
from schemas.events import Event, Origin, decode_event
from schemas.reasons import Reason


class Parsed(NamedTuple):
    """An event the collector accepted."""

    origin: Origin
    key: bytes  # of deduplication
    event: Event
    found: Found  # what identity needs of it
    value: bytes  # the record as it stands in the log
    context: bytes | None = None  # what the server could tell of the sender
    correction: bool = False  # one of ours, which tells of a profile and changes none


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


def parse(batches: Iterable[Batch], enrich: Enrich = nothing, rules: Rules = DEFAULT) -> Work:
    """Decodes the batches of one poll, records of a partition in order. The transaction gets the same rules."""
    extract = extractor(rules)
    events: list[Parsed] = []
    refusals: list[Refusal] = []
    ends: dict[int, int] = {}
    for batch in batches:
        partition = batch.partition
        ends[partition] = batch.next_offset
        for record in batch.records:
            origin = _origin((partition, record.offset))
            one = _parse(origin, record.value, record.timestamp, enrich, extract)
            if isinstance(one, Parsed):
                events.append(one)
            else:
                refusals.append(one)
    return Work(events, refusals, ends)


def _parse(origin: Origin, value: bytes, timestamp: int, enrich: Enrich, extract: Extract) -> Parsed | Refusal:
    try:
        event = decode_event(value)
    except ValueError:
        return Refusal(origin, "", "", Reason.POISON_RECORD, timestamp * 1000, value)
    source, _, message_id, _, _, _, _, _, _, _, refused, _ = event
    if refused is not None:
        return _refusal(origin, event, refused)
    if "\0" in message_id or "\0" in source:
        return _refusal(origin, event, Reason.BAD_REQUEST)
    key = message_key(source, message_id)
    try:
        if (ids := named(event)) is not None:
            return Parsed(origin, key, event, Found(ids, (), (), None), value, correction=True)
        found = extract(event)
    except ValueError:
        return _refusal(origin, event, Reason.BAD_REQUEST)
    if type(found) is Reason:
        return _refusal(origin, event, found)
    return _parsed((origin, key, event, found, value, enrich(event), False))


# A third of the cost of calling the classes.
_origin: Final = partial(tuple.__new__, Origin)
_parsed: Final = partial(tuple.__new__, Parsed)


def _refusal(origin: Origin, event: Event, code: str) -> Refusal:
    clean = event.message_id.replace("\0", "\ufffd"), event.source.replace("\0", "\ufffd")
    return Refusal(origin, clean[1], clean[0], code, event.received_at, event.body)
