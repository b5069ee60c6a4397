"""What becomes of a request's body: every event in it accepted, or refused with a reason; nothing vanishes.

Pure: body, route, source, clock and id factory in, log records out.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec

from collector.body import BODY_LIMIT, too_large
from collector.item import (
    Context,
    Envelope,
    Item,
    decode,
    decode_envelope,
    decode_item,
    has_old_names,
    is_nested_too_deeply,
    merged,
    object_or_none,
    with_new_names,
)
from collector.reasons import Reason
from collector.routes import Channel, Route
from collector.rules import ID_LIMIT, MESSAGE_ID_LIMIT, refusal, usable_id
from collector.timestamps import event_time, parse_time
from pipeline.log.contract import Record
from schemas.errors import Refused
from schemas.events import TYPES, WriteEvent, event_writer

EVENT_LIMIT: Final = 32_768  # bytes of one event's JSON
EVENTS_LIMIT: Final = 2_500  # events of one batch
GROWTH_LIMIT: Final = 16 << 20  # bytes that the events of one request may grow to by what the batch adds to each


@dataclass(slots=True)
class Accepted:
    """What a request comes to. `records` go to the log in one append, refused events among them.

    `accepted` counts by source, `refused` by source and reason. `answer` is set when the client is to get an error
    although its event was kept (a single call that is too large)."""

    source: str
    records: Sequence[Record]
    accepted: Mapping[str, int]
    refused: Mapping[tuple[str, Reason], int] = field(default_factory=dict)
    answer: Refused | None = None


def accept(
    body: bytes,
    route: Route,
    *,
    source: str | None,
    sources: Mapping[str, str],
    received_at: int,
    ip: str | None,
    new_id: Callable[[], str],
) -> Accepted:
    """Takes a decompressed body apart.

    `source` is the one that a header named, which wins over any write key in the body; `sources` finds a source by its
    write key. `received_at` is in microseconds, `ip` the caller's address. Raises Refused when the request as a whole is
    wrong: no JSON, not an object, too large, no known write key; then nothing is to be stored."""
    if len(body) > BODY_LIMIT:
        raise too_large()
    request = _Request(route.channel, received_at, ip, new_id)
    if route.type is None:
        return _accept_batch(body, source, sources, request)
    return _accept_single(body, route.type, source, sources, request)


def source_of(sources: Mapping[str, str], write_key: Any) -> str:
    """The source that a write key authorises writing to; Refused when there is none."""
    source = sources.get(write_key) if type(write_key) is str else None
    if source is None:
        raise Refused(Reason.UNKNOWN_SOURCE, "the write key is missing or unknown")
    return source


class _Request(NamedTuple):
    """What all events of a request share."""

    channel: Channel
    received_at: int
    ip: str | None
    new_id: Callable[[], str]


def _accept_single(
    body: bytes, kind: str, source: str | None, sources: Mapping[str, str], request: _Request
) -> Accepted:
    item, body = decode(decode_item, body)
    taker = _Taker(source or source_of(sources, item.write_key), request)
    taker.take(item, kind, body)
    taken = _sum(taker.source, (taker,))
    if Reason.MESSAGE_TOO_LARGE in taker.refused:
        message = f"Exceed payload limit: an event holds at most {EVENT_LIMIT} bytes"
        taken.answer = Refused(Reason.MESSAGE_TOO_LARGE, message)
    return taken


def _accept_batch(body: bytes, source: str | None, sources: Mapping[str, str], request: _Request) -> Accepted:
    envelope, _ = decode(decode_envelope, body)
    if source is None and envelope.write_key is not None:
        source = source_of(sources, envelope.write_key)
    bodies = [bytes(raw) for raw in envelope.batch]
    items = [_item(body) for body in bodies]
    each_by_its_own_key = source is None
    source = source or _first_source(items, sources)
    takers = {source: _Taker(source, request)}
    taker, reason = takers[source], None
    sent_at, additions = parse_time(envelope.sent_at), _additions(envelope)
    for number, (item, body) in enumerate(zip(items, bodies, strict=True)):
        if each_by_its_own_key:
            taker, reason = _taker_for(item, sources, takers, source, request)
        if number >= EVENTS_LIMIT:
            reason = Reason.TOO_MANY_EVENTS
        taker.take(item, item.type, body, sent_at, additions, reason)
    return _sum(source, takers.values())


_NOT_AN_EVENT: Final = Item()


def _item(body: bytes) -> Item:
    """The envelope of one event of a batch; of what is no object, an empty one, which has no type."""
    try:
        return decode_item(body)
    except msgspec.ValidationError:
        return _NOT_AN_EVENT


def _first_source(items: Sequence[Item], sources: Mapping[str, str]) -> str:
    """A batch without a key of its own is authorised by the first event that has a known one."""
    keys = (item.write_key for item in items)
    return source_of(sources, next((key for key in keys if type(key) is str and key in sources), None))


def _taker_for(
    item: Item, sources: Mapping[str, str], takers: dict[str, "_Taker"], default: str, request: _Request
) -> tuple["_Taker", Reason | None]:
    """Events with an unknown key are refused on the books of the source that authorised the batch."""
    source = sources.get(item.write_key) if type(item.write_key) is str else None
    if source is None:
        return takers[default], Reason.UNKNOWN_SOURCE
    if source not in takers:
        takers[source] = _Taker(source, request)
    return takers[source], None


def _sum(source: str, takers: Collection["_Taker"]) -> Accepted:
    first, *others = takers
    records = first.records
    for taker in others:
        records += taker.records
    return Accepted(
        source=source,
        records=records,
        accepted={taker.source: taker.accepted for taker in takers if taker.accepted},
        refused={(taker.source, reason): count for taker in takers for reason, count in taker.refused.items()},
    )


class _Additions:
    """What a batch adds to each of its events, and how many bytes it may still grow them to in all."""

    def __init__(self, context: msgspec.Raw | None, integrations: msgspec.Raw | None) -> None:
        self._context, self._integrations = context, integrations
        self._size = len(context or b"") + len(integrations or b"")
        self._room = GROWTH_LIMIT

    def to(self, body: bytes) -> bytes | None:
        """None when the event would become too large."""
        self._room -= self._size + len(body)
        if self._size > EVENT_LIMIT or self._room < 0:
            return None
        body = merged(body, self._context, self._integrations)
        return body if len(body) <= EVENT_LIMIT else None


def _additions(envelope: Envelope) -> _Additions | None:
    context, integrations = object_or_none(envelope.context), object_or_none(envelope.integrations)
    return _Additions(context, integrations) if context or integrations else None


class _Taker:
    """Turns the events of one source into log records, one after the other."""

    __slots__ = ("accepted", "direct_write", "records", "refused", "request", "source", "stamp", "write")

    def __init__(self, source: str, request: _Request) -> None:
        self.source, self.request = source, request
        self.records: list[Record] = []
        self.accepted = 0
        self.refused: dict[Reason, int] = {}
        self.stamp = request.received_at // 1000
        self.write = self._writer(request.ip if request.channel == "client" else None)
        self.direct_write: WriteEvent | None = None

    def _writer(self, ip: str | None) -> WriteEvent:
        return event_writer(self.source, self.request.received_at, self.request.channel, ip)

    def _writer_for(self, item: Item) -> WriteEvent:
        """A server may say that it is the end user's device, whose address is then worth keeping."""
        if type(item.context) is not Context or item.context.direct is not True:
            return self.write
        if self.direct_write is None:
            self.direct_write = self._writer(self.request.ip)
        return self.direct_write

    def take(
        self,
        item: Item,
        kind: Any,
        body: bytes,
        batch_sent_at: int | None = None,
        additions: _Additions | None = None,
        reason: Reason | None = None,
    ) -> None:
        """Adds the record of one event. `reason` is set when it is refused already."""
        original = body
        if reason is None and (additions is not None or has_old_names(item, kind)):
            item, kind, body, reason = _rewritten(item, kind, body, additions)
        anonymous_id, user_id = usable_id(item.anonymous_id), usable_id(item.user_id)
        if reason is None:
            reason = _size_refusal(body) or refusal(kind, item, body, anonymous_id, user_id)
        sent_at = batch_sent_at if item.sent_at is None else parse_time(item.sent_at)
        timestamp = event_time(parse_time(item.timestamp), sent_at, self.request.received_at)
        message_id = item.message_id
        if reason is None:
            self.accepted += 1
            write = self._writer_for(item)
            message_id = message_id or self.request.new_id()
        else:
            self.refused[reason] = self.refused.get(reason, 0) + 1
            write, body = self.write, original
            kind = kind if kind in TYPES else ""
            anonymous_id, user_id = _short(anonymous_id, ID_LIMIT), _short(user_id, ID_LIMIT)
            message_id = _short(usable_id(message_id), MESSAGE_ID_LIMIT) or self.request.new_id()
        value = write(kind, message_id, anonymous_id, user_id, timestamp, sent_at, reason, body)
        self.records.append(Record((anonymous_id or user_id or message_id).encode(), value, self.stamp))


def _rewritten(
    item: Item, kind: Any, body: bytes, additions: _Additions | None
) -> tuple[Item, Any, bytes, Reason | None]:
    """The event with today's names and what the batch adds, or why it cannot have them."""
    if item is _NOT_AN_EVENT:
        return item, kind, body, Reason.BAD_REQUEST
    if reason := _size_refusal(body):
        return item, kind, body, reason
    if has_old_names(item, kind):
        body = with_new_names(body, item.action if kind is None else kind)
    if additions is not None:
        grown = additions.to(body)
        if grown is None:
            return item, kind, body, Reason.MESSAGE_TOO_LARGE
        body = grown
    item = decode_item(body)
    return item, kind or item.type, body, None


def _size_refusal(body: bytes) -> Reason | None:
    if len(body) > EVENT_LIMIT:
        return Reason.MESSAGE_TOO_LARGE
    return Reason.NESTED_TOO_DEEPLY if is_nested_too_deeply(body) else None


def _short(value: str | None, limit: int) -> str | None:
    return value if value is not None and len(value) <= limit else None
