"""What becomes of a request's body: every event in it accepted, or refused with a reason; nothing vanishes.

Pure: body, route, source, clock and id factory in, log records out.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Final, NamedTuple, cast

import msgspec

from collector.body import BODY_LIMIT, too_large
from collector.item import (
    DEPTH_LIMIT,
    EVENT_LIMIT,
    ID_LIMIT,
    MESSAGE_ID_LIMIT,
    Context,
    Envelope,
    Item,
    Plain,
    decode,
    decode_envelope,
    decode_item,
    decode_plain,
    decode_plain_batch,
    decode_plain_lines,
    has_old_names,
    is_literal,
    is_nested_too_deeply,
    merged,
    object_or_none,
    with_new_names,
    without_depths,
)
from collector.plain import all_shallow, caller, heads, plain_drafts, received
from collector.routes import Channel, Route
from collector.rules import refusal, usable_id
from collector.sources import unknown_source
from collector.timestamps import event_time, parse_time
from pipeline.log.contract import Draft, Drafts, Piece
from schemas.errors import Refused
from schemas.events import TYPES, Event, encode_event
from schemas.reasons import Reason

EVENTS_LIMIT: Final = 2_500  # events of one batch
GROWTH_LIMIT: Final = 16 << 20  # bytes that the events of one request may grow to by what the batch adds to each


@dataclass(slots=True)
class Accepted:
    """What a request comes to. `records` go to the log in one append, refused events among them.

    `accepted` counts by source, `refused` by source and reason. `answer` is set when the client is to get an error
    although its event was kept (a single call that is too large)."""

    source: str
    records: Drafts
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
    disabled: Collection[str] = frozenset(),
) -> Accepted:
    """Takes a decompressed body apart.

    `source` is the one that a header named, which wins over any write key in the body; `sources` finds a source by its
    write key. Events of `disabled` sources are refused, one by one. `received_at` is in microseconds, `ip` the caller's address. Raises Refused when the request as a whole is
    wrong: no JSON, not an object, too large, no known write key; then nothing is to be stored."""
    if len(body) > BODY_LIMIT:
        raise too_large()
    channel, kind = route.channel, route.type
    if kind is not None:
        usual = accept_singles(
            ((body, route, source, ip),), sources=sources, received_at=received_at, new_id=new_id, disabled=disabled
        )
        if not usual.left:
            return single(usual.sources[0], usual.rows[0])
    request = _Request(channel, received_at, ip, new_id, disabled)
    if kind is None:
        return _accept_batch(body, source, sources, request)
    return _accept_single(body, kind, source, sources, request)


def single(source: str, row: Draft) -> Accepted:
    """What one usual call comes to."""
    return Accepted(source, _drafts([row]), {source: 1}, _NONE_REFUSED)


_NONE_REFUSED: Final[Mapping[tuple[str, Reason], int]] = {}


def source_of(sources: Mapping[str, str], write_key: Any) -> str:
    """The source that a write key authorises writing to; Refused when there is none."""
    source = sources.get(write_key) if type(write_key) is str else None
    if source is None:
        raise unknown_source()
    return source


class _Request(NamedTuple):
    """What all events of a request share."""

    channel: Channel
    received_at: int
    ip: str | None
    new_id: Callable[[], str]
    disabled: Collection[str] = frozenset()


Single = tuple[bytes, Route, str | None, str | None]
"""A request with one call: its body, decompressed, the path's route, the source that a header named, and the caller's address."""


class Singles(NamedTuple):
    """What requests with one call each come to: the sources and records of those that are in order in the usual way, one record each, the
    numbers of the others, which `accept` has to look at, and the bytes of the records."""

    sources: Sequence[str]
    rows: list[Draft]
    left: Sequence[int]
    size: int


def none_of(singles: Sequence[object]) -> Singles:
    """When none can be taken together."""
    return Singles((), [], range(len(singles)), 0)


def accept_singles(
    singles: Sequence[Single],
    *,
    sources: Mapping[str, str],
    received_at: int,
    new_id: Callable[[], str],
    disabled: Collection[str] = frozenset(),
) -> Singles:
    """Takes many small bodies at once: most of what one alone costs is calls. Every one is decoded by itself, so that no body says
    anything of another."""
    bodies, routes, named, ips = zip(*singles, strict=True)
    lines = b"\n".join(bodies)
    literal = is_literal(lines)
    if not literal and not _is_text(lines):
        return none_of(bodies)
    sizes = list(map(len, bodies))
    longest = max(sizes)
    plains = _plain_lines(lines, bodies)
    owners = [
        source or (plain and type(key := plain.write_key) is str and sources.get(key)) or ""
        for source, plain in zip(named, plains, strict=True)
    ]
    if disabled or "" in owners:
        plains = [
            plain if owner and owner not in disabled else None for plain, owner in zip(plains, owners, strict=True)
        ]
    now = received(received_at)
    rows, left, size = plain_drafts(
        plains,
        bodies,
        sizes,
        [route.type for route in routes],
        map(heads, owners),
        [
            now + caller(route.channel, ip if route.channel == "client" else None)
            for route, ip in zip(routes, ips, strict=True)
        ],
        literal=literal,
        unusual=longest > EVENT_LIMIT or not all_shallow(lines, longest),
        batch_sent_at=None,
        received_at=received_at,
        new_id=new_id,
    )
    if left:
        others = set(left)
        owners = [owner for number, owner in enumerate(owners) if number not in others]
    return Singles(owners, rows, left, size)


def _plain_lines(lines: bytes, bodies: Sequence[bytes]) -> Sequence[Plain | None]:
    """Bodies decoded as usual events, at once if all of them are that; None for one that is not.

    The decoder asks for no line ends between events, so that a body of two beside one of none would pass for one each. But inside of an
    event no end of an object is followed by a line end and the begin of another: bodies that begin and end so hold one at least."""
    if b"" not in bodies and False not in [body[0] == _OPENING and body[-1] == _CLOSING for body in bodies]:
        try:
            plains = decode_plain_lines(lines)
        except (msgspec.MsgspecError, RecursionError):
            plains = []
        if len(plains) == len(bodies):
            return plains
    return [_plain(body) for body in bodies]


_OPENING, _CLOSING = b"{}"


def _is_text(lines: bytes) -> bool:
    """Whether the bytes can be kept as they are: UTF-8, without NUL. The decoder skips strings without looking inside."""
    try:
        lines.decode()
    except UnicodeDecodeError:
        return False
    return b"\\u0000" not in lines


def _drafts(rows: list[Draft]) -> Drafts:
    return Drafts(rows, sum([len(key) + len(head) + len(body) for key, head, body, _ in rows]))


def _accept_single(
    body: bytes, kind: str, source: str | None, sources: Mapping[str, str], request: _Request
) -> Accepted:
    try:
        item, body = decode(decode_item, body)
    except RecursionError as error:
        raise _nested_too_deeply() from error
    taker = _Taker(source or source_of(sources, item.write_key), request)
    taker.take(item, kind, body, reason=_disabled(taker))
    taken = _sum(taker.source, (taker,))
    if Reason.MESSAGE_TOO_LARGE in taker.refused:
        message = f"Exceed payload limit: an event holds at most {EVENT_LIMIT} bytes"
        taken.answer = Refused(Reason.MESSAGE_TOO_LARGE, message)
    return taken


def _disabled(taker: "_Taker") -> Reason | None:
    return Reason.SOURCE_DISABLED if taker.source in taker.request.disabled else None


def _accept_batch(body: bytes, source: str | None, sources: Mapping[str, str], request: _Request) -> Accepted:
    literal = is_literal(body)
    envelope, body, too_deep = _decode_batch(body, literal, request.new_id)
    if source is None and envelope.write_key is not None:
        source = source_of(sources, envelope.write_key)
    additions, sent_at = _additions(envelope), parse_time(envelope.sent_at)
    if source is not None and additions is None and not too_deep and source not in request.disabled:
        return _accept_plainly(body, literal, envelope, source, request)
    bodies = [too_deep.pop(bytes(raw), bytes(raw)) for raw in envelope.batch]
    if too_deep:  # elsewhere than in the list of events
        raise _nested_too_deeply()
    items = [_item(body) for body in bodies]
    each_by_its_own_key = source is None
    source = source or _first_source(items, sources)
    takers = {source: _Taker(source, request)}
    taker, reason = takers[source], None
    for number, (item, body) in enumerate(zip(items, bodies, strict=True)):
        if each_by_its_own_key:
            taker, reason = _taker_for(item, sources, takers, source, request)
        if number >= EVENTS_LIMIT:
            taker.take(item, item.type, body, sent_at, additions, Reason.TOO_MANY_EVENTS)
        else:
            taker.take(item, item.type, body, sent_at, additions, reason or _disabled(taker))
    return _sum(source, takers.values())


def _decode_batch(body: bytes, literal: bool, new_id: Callable[[], str]) -> tuple[Envelope, bytes, dict[bytes, bytes]]:
    """The batch, its bytes as they are to be kept, and the events in it that were too deep to be looked into, by what stands
    for them."""
    try:
        return *decode(decode_envelope, body, literal=literal), {}
    except RecursionError:
        shallow, too_deep = without_depths(body, new_id)
    try:
        return *decode(decode_envelope, shallow), too_deep
    except RecursionError as error:
        raise _nested_too_deeply() from error


def _nested_too_deeply() -> Refused:
    return Refused("invalid_request", f"body is nested too deeply: an event has at most {DEPTH_LIMIT} levels")


def _accept_plainly(body: bytes, literal: bool, envelope: Envelope, source: str, request: _Request) -> Accepted:
    """A batch of one source that adds nothing to its events, as nearly all are."""
    events = envelope.batch if len(envelope.batch) <= EVENTS_LIMIT else envelope.batch[:EVENTS_LIMIT]
    bodies = cast("Sequence[Piece]", events)
    sizes = list(map(len, events))
    longest = max(sizes, default=0)
    channel, received_at, ip, new_id, _ = request
    rows, left, size = plain_drafts(
        _plains(body, events),
        bodies,
        sizes,
        repeat(None),
        repeat(heads(source)),
        repeat(received(received_at) + caller(channel, ip if channel == "client" else None)),
        literal=literal,
        unusual=longest > EVENT_LIMIT or not all_shallow(body, longest),
        batch_sent_at=envelope.sent_at,
        received_at=received_at,
        new_id=new_id,
    )
    if not left and len(events) == len(envelope.batch):
        accepted = {source: len(rows)} if rows else {}
        return Accepted(source, Drafts(rows, size), accepted, _NONE_REFUSED)
    taker, sent_at = _Taker(source, request), parse_time(envelope.sent_at)
    quick, slow = iter(rows), set(left)
    for number, event in enumerate(events):
        if number in slow:
            own = bytes(event)
            taker.take(item := _item(own), item.type, own, sent_at)
        else:
            taker.rows.append(next(quick))
            taker.accepted += 1
    for raw in envelope.batch[EVENTS_LIMIT:]:
        own = bytes(raw)
        taker.take(item := _item(own), item.type, own, sent_at, None, Reason.TOO_MANY_EVENTS)
    return _sum(source, (taker,))


def _plains(body: bytes, events: Sequence[msgspec.Raw]) -> Iterable[Plain | None]:
    """The events of a batch decoded as usual ones, at once if all of them are; None for one that is not."""
    try:
        return decode_plain_batch(body).batch
    except (msgspec.MsgspecError, RecursionError):
        return map(_plain, events)


def _plain(body: bytes | msgspec.Raw) -> Plain | None:
    try:
        return decode_plain(body)
    except (msgspec.MsgspecError, RecursionError):
        return None


_NOT_AN_EVENT: Final = Item()


def _item(body: bytes) -> Item:
    """The envelope of one event of a batch; of what is no object, an empty one, which has no type."""
    try:
        return decode_item(body)
    except (msgspec.ValidationError, RecursionError):
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
    rows = first.rows
    for taker in others:
        rows += taker.rows
    return Accepted(
        source=source,
        records=_drafts(rows),
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
    """Turns any events of one source into log records, one after the other."""

    __slots__ = ("accepted", "refused", "request", "rows", "source")

    def __init__(self, source: str, request: _Request) -> None:
        self.source, self.request = source, request
        self.rows: list[Draft] = []
        self.accepted = 0
        self.refused: dict[Reason, int] = {}

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
        request, original = self.request, body
        if reason is None and (additions is not None or has_old_names(item, kind)):
            item, kind, body, reason = _rewritten(item, kind, body, additions)
        anonymous_id, user_id = usable_id(item.anonymous_id), usable_id(item.user_id)
        if reason is None:
            reason = _size_refusal(body) or refusal(kind, item, body, anonymous_id, user_id)
        sent_at = batch_sent_at if item.sent_at is None else parse_time(item.sent_at)
        timestamp = event_time(parse_time(item.timestamp or item.original_timestamp), sent_at, request.received_at)
        message_id = item.message_id
        if reason is None:
            self.accepted += 1
            message_id = message_id or request.new_id()
        else:
            self.refused[reason] = self.refused.get(reason, 0) + 1
            body = original
            kind = kind if kind in TYPES else ""
            anonymous_id, user_id = _short(anonymous_id, ID_LIMIT), _short(user_id, ID_LIMIT)
            message_id = _short(usable_id(message_id), MESSAGE_ID_LIMIT) or request.new_id()
        ip = request.ip if request.channel == "client" or _speaks_for_a_device(item) else None
        event = Event(
            self.source,
            kind,
            message_id,
            anonymous_id,
            user_id,
            timestamp,
            sent_at,
            request.received_at,
            request.channel,
            ip,
            reason,
            body,
        )
        self.rows.append((event.key, encode_event(event), b"", request.received_at // 1000))


def _speaks_for_a_device(item: Item) -> bool:
    """A server may say that it is the end user's device, whose address is then worth keeping."""
    return type(item.context) is Context and item.context.direct is True


def _rewritten(
    item: Item, kind: Any, body: bytes, additions: _Additions | None
) -> tuple[Item, Any, bytes, Reason | None]:
    """The event with today's names and what the batch adds, or why it cannot have them."""
    if reason := _size_refusal(body):
        return item, kind, body, reason
    if item is _NOT_AN_EVENT:
        return item, kind, body, Reason.BAD_REQUEST
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
