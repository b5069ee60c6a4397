"""Events on the log: the Avro envelope around the client's JSON bytes, and the event as destinations see it.

Values carry the Confluent wire format: a zero byte, the schema's id (4 bytes, big-endian), the Avro body. Ids are fixed
here (`SCHEMA_IDS`), so that a reader without a registry knows every version that was ever written.
Times are UTC microseconds since 1970.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from struct import Struct
from struct import error as TooShort
from typing import Any, Final, NamedTuple

import orjson

from schemas.exact_json import json_loads

TYPES: Final = ("track", "identify", "page", "screen", "group", "alias")
SCHEMA_IDS: Final[Mapping[str, int]] = {"event": 1, "resolved": 5}
EVENT_HEADER: Final = b"\x00" + SCHEMA_IDS["event"].to_bytes(4, "big")
HEADER_BYTES: Final = len(EVENT_HEADER)
FENCED_HEADER: Final = b"\x00" + SCHEMA_IDS["resolved"].to_bytes(4, "big")
RESOLVED_HEADER: Final = b"\x00" + (3).to_bytes(4, "big")  # has no `fences`: most records need none, and are written so
RESOLVED_V1_HEADER: Final = b"\x00" + (2).to_bytes(4, "big")  # had no `context`


class Event(NamedTuple):
    """What the collector wrote to `events`. Field meanings: `avro/event.avsc`."""

    source: str
    type: str
    message_id: str
    anonymous_id: str | None
    user_id: str | None
    timestamp: int
    sent_at: int | None
    received_at: int
    channel: str
    ip: str | None
    refused: str | None
    body: bytes

    @property
    def key(self) -> bytes:
        """Partition key: `anonymousId` first, since it survives login and logout of one device."""
        return (self.anonymous_id or self.user_id or self.message_id).encode(errors="surrogatepass")


class ExternalId(NamedTuple):
    """An identifier that names a person: `user_id:u1`. `str()` gives that form, the key of its graph node."""

    type: str
    value: str

    def __str__(self) -> str:
        return f"{self.type}:{self.value}"


class Origin(NamedTuple):
    """Where in `events` a record came from."""

    partition: int
    offset: int


class Fence(NamedTuple):
    """What has to be over before a record of `resolved` may be delivered: the records of another profile that stand before the offset
    `end` of a partition."""

    profile_id: str
    partition: int
    end: int


@dataclass(slots=True)
class Resolved:
    """An accepted event with its profile. Field meanings: `avro/resolved.avsc`. Destinations share one: nobody changes it. (It is not
    frozen since making it would cost three times as much.)"""

    profile_id: str
    origin: Origin
    external_ids: Sequence[ExternalId]
    event: Event
    context: bytes | None = None
    fences: Sequence[Fence] = ()
    whole: dict[str, Any] | None = field(default=None, init=False, repr=False, compare=False)
    """What `materialize` made of it, once somebody shares that."""
    said: dict[str, Any] | None = field(default=None, init=False, repr=False, compare=False)
    """Its body, where somebody has decoded that and `materialize` comes next."""


# ── Avro ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _varint(n: int) -> bytes:
    """Seven bits a byte, lowest first; the top bit says that more follow."""
    out = bytearray()
    while n > 0x7F:
        out.append((n & 0x7F) | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


# Two bytes of a varint at once: with more to follow, and as its end. Half the time of the loop.
PAIRS: Final = tuple(bytes((n & 0x7F | 0x80, n >> 7 | 0x80)) for n in range(1 << 14))
_ENDS: Final = tuple(_varint(n) for n in range(1 << 14))


def _long(n: int) -> bytes:
    """Avro's zigzag varint."""
    n = (n << 1) ^ (n >> 63)
    if n < 1 << 14:
        return _ENDS[n]
    if 1 << 42 <= n < 1 << 56:  # microseconds of the years 1970 to 3111
        return PAIRS[n & 0x3FFF] + PAIRS[n >> 14 & 0x3FFF] + PAIRS[n >> 28 & 0x3FFF] + _ENDS[n >> 42]
    return _varint(n)


def micros(n: int) -> bytes:
    """`_long` for a time. Times of one run mostly lie in the same two minutes and share their upper bytes."""
    n <<= 1
    upper = _UPPER.get(n >> 28) or upper_micros(n >> 28)
    lower = n & 0xFFFFFFF
    return PAIRS[lower & 0x3FFF] + PAIRS[lower >> 14] + upper if upper else _long(n >> 1)


_UPPER: Final[dict[int, bytes]] = {}


def upper_micros(upper: int) -> bytes:
    """The last bytes of a time from 1970 to 3111, given its double without the lower 28 bits, which are two of `PAIRS`. Empty for
    other times."""
    piece = _UPPER.get(upper)
    if piece is not None:
        return piece
    if not 1 << 14 <= upper < 1 << 28:
        return b""
    if len(_UPPER) >= 4096:  # times that clients make up
        _UPPER.clear()
    piece = _UPPER[upper] = PAIRS[upper & 0x3FFF] + _ENDS[upper >> 14]
    return piece


def _utf8(text: str) -> bytes:
    return text.encode(errors="replace")


def _text(text: str) -> bytes:
    raw = _utf8(text)
    return _long(len(raw)) + raw


def _optional_text(text: str | None) -> bytes:
    return b"\x00" if text is None else b"\x02" + _text(text)


# What other records of the log are written with.
avro_text: Final = _text
avro_long: Final = _long
avro_optional_text: Final = _optional_text

# What stands before a text or bytes of a size, and before one that may be absent. A loop over events looks them up in place.
SIZES: Final = tuple(_varint(n << 1) for n in range((1 << 15) + 1))
TEXTS: Final = tuple(b"\x02" + SIZES[n] for n in range(1 << 12))
ABSENT: Final = b"\x00"


def _length(n: int) -> bytes:
    return SIZES[n] if n <= 1 << 15 else _varint(n << 1)


@lru_cache(maxsize=4096)
def event_head(source: str, kind: str) -> bytes:
    """The first part of a record value, up to and with the type."""
    return EVENT_HEADER + _text(source) + _text(kind)


def event_tail(received_at: int, channel: str, ip: str | None, refused: str | None = None) -> bytes:
    """The part of a record value from `received_at` up to and with `refused`."""
    return micros(received_at) + (
        _caller(channel, ip) if refused is None else _caller(channel, ip)[:-1] + _optional_text(refused)
    )


@lru_cache(maxsize=4096)
def _caller(channel: str, ip: str | None) -> bytes:
    """The part of a record value that is the channel, the address, and that nothing was refused."""
    return _text(channel) + _optional_text(ip) + ABSENT


def event_sent(sent_at: int | None) -> bytes:
    """The part of a record value that is `sent_at`."""
    return ABSENT if sent_at is None else b"\x02" + micros(sent_at)


def _present(text: bytes) -> bytes:
    """The second branch of an optional text or bytes."""
    size = len(text)
    return (TEXTS[size] if size < 1 << 12 else b"\x02" + _length(size)) + text


def encode_event(event: Event) -> bytes:
    """The record value of an event, byte for byte what fastavro writes, at a quarter of the cost."""
    return b"".join(
        (
            event_head(event.source, event.type),
            _text(event.message_id),
            _optional_text(event.anonymous_id),
            _optional_text(event.user_id),
            micros(event.timestamp),
            event_sent(event.sent_at),
            event_tail(event.received_at, event.channel, event.ip, event.refused),
            _length(len(event.body)),
            event.body,
        )
    )


@lru_cache(maxsize=50_000)
def _external_id(one: ExternalId) -> bytes:
    """Most ids come again and again."""
    return _text(one[0]) + _text(one[1])


def encode_resolved(
    profile_id: str,
    origin: Origin,
    external_ids: Sequence[ExternalId],
    event_value: bytes,
    context: bytes | None = None,
    fences: Sequence[Fence] = (),
) -> bytes:
    """The record value of a resolved event. `event_value` is the value read from `events`; its Avro body is carried
    over untouched, since a nested Avro record is its bytes in place."""
    return resolved_head(profile_id, origin, external_ids, context, fences) + event_value[HEADER_BYTES:]


def resolved_head(
    profile_id: str,
    origin: Origin,
    external_ids: Sequence[ExternalId],
    context: bytes | None = None,
    fences: Sequence[Fence] = (),
) -> bytes:
    """The part of a record value of `resolved` that stands before the event's Avro body."""
    partition, offset = origin
    ids = (_long(len(external_ids)), *map(_external_id, external_ids)) if external_ids else ()
    said = b"\x00" + ABSENT if context is None else b"\x00" + _present(context)
    head = b"".join((_resolved_of(profile_id, partition, bool(fences)), _long(offset), *ids, said))
    return head + _fences(fences) if fences else head


@lru_cache(maxsize=50_000)
def _resolved_of(profile_id: str, partition: int, fenced: bool) -> bytes:
    """The first part of a record value of `resolved`, up to and with the origin's partition: the same for a person's events."""
    return (FENCED_HEADER if fenced else RESOLVED_HEADER) + _text(profile_id) + _long(partition)


def _fences(fences: Sequence[Fence]) -> bytes:
    each = (_text(one.profile_id) + _long(one.partition) + _long(one.end) for one in fences)
    return b"".join((_long(len(fences)), *each, b"\x00"))


def source_of(value: bytes) -> str:
    """The source of a value of `events`, without reading the rest. ValueError when it is not one."""
    if value[:5] != EVENT_HEADER:
        raise ValueError(f"not an event record: starts with {value[:5].hex()}")
    try:
        return _read_text(value, 5)[0]
    except IndexError as error:
        raise ValueError(f"not an event record: {error}") from error


def origin_of(value: bytes) -> Origin:
    """The origin of a value of `resolved`, without reading the rest. ValueError when it is not one."""
    if value[:5] not in (RESOLVED_HEADER, FENCED_HEADER, RESOLVED_V1_HEADER):
        raise ValueError(f"not a resolved record: starts with {value[:5].hex()}")
    try:
        size, at = _read_long(value, 5)
        partition, at = _read_long(value, at + size)
        return Origin(partition, _read_long(value, at)[0])
    except IndexError as error:
        raise ValueError(f"not a resolved record: {error}") from error


def decode_event(value: bytes) -> Event:
    """Reads a value of `events`. ValueError when it is not one (a poison record)."""
    if value[:5] != EVENT_HEADER:
        raise ValueError(f"not an event record: starts with {value[:5].hex()}")
    try:
        return _read_event(value, 5)
    except (IndexError, ValueError, TooShort) as error:
        raise ValueError(f"not an event record: {error}") from error


def decode_resolved(value: bytes) -> Resolved:
    """Reads a value of `resolved`. ValueError when it is not one."""
    header = value[:5]
    if header not in (RESOLVED_HEADER, FENCED_HEADER, RESOLVED_V1_HEADER):
        raise ValueError(f"not a resolved record: starts with {value[:5].hex()}")
    try:
        if (n := value[5]) & _LONG_OR_NEGATIVE:
            profile_id, at = _read_text(value, 5)
        else:
            profile_id = value[6 : (at := 6 + (n >> 1))].decode()
        if (n := value[at]) < 0x80:
            partition, at = (n >> 1) ^ -(n & 1), at + 1
        else:
            partition, at = _read_long(value, at)
        offset, at = _read_long(value, at)
        external_ids, at = ((), at + 1) if value[at] == 0 else _ids_of(profile_id, value, at)
        context: bytes | None = None
        if header != RESOLVED_V1_HEADER:
            context, at = (None, at + 1) if value[at] == 0 else _read_present_bytes(value, at)
        fences, at = _read_fences(value, at) if header == FENCED_HEADER else ((), at)
        event = _read_event(value, at)
    except (IndexError, ValueError, TooShort) as error:
        raise ValueError(f"not a resolved record: {error}") from error
    return Resolved(profile_id, _origin((partition, offset)), external_ids, event, context, fences)


# The readers below are fastavro's schemaless reader for these two schemas, unrolled: a fifth of its cost. What is absent, and a text
# shorter than 64 bytes, is read in place: a call costs more than it does. A length that points beyond the end is noticed where the
# body has to end exactly where the value does.


def _read_varint(buffer: bytes, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = buffer[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, at
        shift += 7
        if shift > 63:
            raise ValueError("a number has more than 64 bits")


def _read_long(buffer: bytes, at: int) -> tuple[int, int]:
    n = buffer[at]
    if n < 0x80:
        return (n >> 1) ^ -(n & 1), at + 1
    more = buffer[at + 1]
    if more < 0x80:
        n = n & 0x7F | more << 7
        return (n >> 1) ^ -(n & 1), at + 2
    last = buffer[at + 2]
    if last < 0x80:
        n = n & 0x7F | (more & 0x7F) << 7 | last << 14
        return (n >> 1) ^ -(n & 1), at + 3
    n, at = _read_varint(buffer, at)
    return (n >> 1) ^ -(n & 1), at


def _read_micros(buffer: bytes, at: int) -> tuple[int, int]:
    """A long that is mostly eight bytes, two at a time. Times of one run mostly lie in the same two minutes and share the upper four."""
    low, high, four = _eight(buffer, at)
    upper = _UPPER_READ.get(four) or _upper_read(four)
    n = upper | _PAIR_READ[high] << 14 | _PAIR_READ[low]
    if n < 0 or n & 1:
        return _read_long(buffer, at)
    return n >> 1, at + 8


_eight: Final = Struct("<HHI").unpack_from
# By the two bytes, the first being the lower; -1 where they are no such pair.
_PAIR_READ: Final = [-1] * (1 << 16)
_END_READ: Final = [-1] * (1 << 16)
for _n, (_pair, _end) in enumerate(zip(PAIRS, _ENDS, strict=True)):
    _PAIR_READ[int.from_bytes(_pair, "little")] = _n
    if len(_end) == 2:
        _END_READ[int.from_bytes(_end, "little")] = _n
_UPPER_READ: Final[dict[int, int]] = {}


def _upper_read(four: int) -> int:
    """What the last four of eight bytes of a varint stand for; negative when they do not end one."""
    upper = _END_READ[four >> 16] << 42 | _PAIR_READ[four & 0xFFFF] << 28
    if upper >= 0:
        if len(_UPPER_READ) >= 4096:  # times that clients make up
            _UPPER_READ.clear()
        _UPPER_READ[four] = upper
    return upper


def _read_text(buffer: bytes, at: int) -> tuple[str, int]:
    n = buffer[at]
    at += 1
    if n > 0x7F:
        n, at = _read_varint(buffer, at - 1)
    if n & 1:
        raise ValueError("a negative length")
    end = at + (n >> 1)
    return buffer[at:end].decode(), end


_LONG_OR_NEGATIVE: Final = 0x81  # bits of the first byte of a length that tell that it needs a closer look


def _read_present_text(buffer: bytes, at: int) -> tuple[str, int]:
    """The second branch of an optional text."""
    if buffer[at] != 2:
        raise ValueError("neither null nor a string")
    n = buffer[at + 1]
    if n & _LONG_OR_NEGATIVE:
        return _read_text(buffer, at + 1)
    end = at + 2 + (n >> 1)
    return buffer[at + 2 : end].decode(), end


def _read_present_bytes(buffer: bytes, at: int) -> tuple[bytes, int]:
    """The second branch of optional bytes."""
    if buffer[at] != 2:
        raise ValueError("neither null nor bytes")
    size, at = _read_long(buffer, at + 1)
    if size < 0:
        raise ValueError("a negative length")
    return buffer[at : at + size], at + size


_IDS_READ: Final[dict[str, tuple[bytes, tuple[ExternalId, ...]]]] = {}


def _ids_of(profile_id: str, buffer: bytes, at: int) -> tuple[tuple[ExternalId, ...], int]:
    """The ids of a profile, which are mostly what they were in its last event."""
    known = _IDS_READ.get(profile_id)
    if known is not None and buffer.startswith(known[0], at):
        return known[1], at + len(known[0])
    ids, end = _read_external_ids(buffer, at)
    if len(_IDS_READ) >= 16_384:
        _IDS_READ.clear()
    if end - at <= 1_024:
        _IDS_READ[profile_id] = buffer[at:end], ids
    return ids, end


def _read_external_ids(buffer: bytes, at: int) -> tuple[tuple[ExternalId, ...], int]:
    ids: list[ExternalId] = []
    count, at = _read_count(buffer, at)
    while count:
        for _ in range(count):
            kind, at = _read_text(buffer, at)
            value, at = _read_text(buffer, at)
            ids.append(ExternalId(kind, value))
        count, at = _read_count(buffer, at)
    return tuple(ids), at


def _read_fences(buffer: bytes, at: int) -> tuple[tuple[Fence, ...], int]:
    fences: list[Fence] = []
    count, at = _read_count(buffer, at)
    while count:
        for _ in range(count):
            profile_id, at = _read_text(buffer, at)
            partition, at = _read_long(buffer, at)
            end, at = _read_long(buffer, at)
            fences.append(Fence(profile_id, partition, end))
        count, at = _read_count(buffer, at)
    return tuple(fences), at


def _read_count(buffer: bytes, at: int) -> tuple[int, int]:
    """How many items of an Avro array follow: it is blocks of items, each after its count, and a last one of none. A negative count has
    the block's size in bytes behind it."""
    count, at = _read_long(buffer, at)
    if count < 0:
        _, at = _read_long(buffer, at)
    return abs(count), at


def _read_event(buffer: bytes, at: int) -> Event:
    """The event that fills the buffer from `at` to its end."""
    if (n := buffer[at]) & _LONG_OR_NEGATIVE:
        source, at = _read_text(buffer, at)
    else:
        source = buffer[at + 1 : (at := at + 1 + (n >> 1))].decode()
    if (n := buffer[at]) & _LONG_OR_NEGATIVE:
        kind, at = _read_text(buffer, at)
    else:
        kind = buffer[at + 1 : (at := at + 1 + (n >> 1))].decode()
    if (n := buffer[at]) & _LONG_OR_NEGATIVE:
        message_id, at = _read_text(buffer, at)
    else:
        message_id = buffer[at + 1 : (at := at + 1 + (n >> 1))].decode()
    anonymous_id: str | None = None
    if (n := buffer[at]) == 0:
        at += 1
    elif n != 2 or (n := buffer[at + 1]) & _LONG_OR_NEGATIVE:
        anonymous_id, at = _read_present_text(buffer, at)
    else:
        anonymous_id = buffer[at + 2 : (at := at + 2 + (n >> 1))].decode()
    user_id: str | None = None
    if (n := buffer[at]) == 0:
        at += 1
    elif n != 2 or (n := buffer[at + 1]) & _LONG_OR_NEGATIVE:
        user_id, at = _read_present_text(buffer, at)
    else:
        user_id = buffer[at + 2 : (at := at + 2 + (n >> 1))].decode()
    timestamp, at = _read_micros(buffer, at)
    if buffer[at] == 0:
        sent_at, at = None, at + 1
    elif buffer[at] == 2:
        sent_at, at = _read_micros(buffer, at + 1)
    else:
        raise ValueError("neither null nor a time")
    received_at, at = _read_micros(buffer, at)
    if (n := buffer[at]) & _LONG_OR_NEGATIVE:
        channel, at = _read_text(buffer, at)
    else:
        channel = buffer[at + 1 : (at := at + 1 + (n >> 1))].decode()
    ip, at = (None, at + 1) if buffer[at] == 0 else _read_present_text(buffer, at)
    refused, at = (None, at + 1) if buffer[at] == 0 else _read_present_text(buffer, at)
    size, at = _read_long(buffer, at)
    if at + size != len(buffer):
        raise ValueError(f"a body of {size} bytes where {len(buffer) - at} are left")
    return _event(
        (
            source,
            kind,
            message_id,
            anonymous_id,
            user_id,
            timestamp,
            sent_at,
            received_at,
            channel,
            ip,
            refused,
            buffer[at:],
        )
    )


# Half the cost of calling the class.
_event: Final = partial(tuple.__new__, Event)
_origin: Final = partial(tuple.__new__, Origin)


# ── Time ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FRACTIONS: Final = tuple(f".{n:03d}Z" for n in range(1_000))


@lru_cache(maxsize=8192)
def _second(seconds: int) -> str:
    try:
        return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")
    except OverflowError as error:
        raise ValueError(f"{seconds} seconds since 1970 are not within the years 1 to 9999") from error


def iso(micros: int) -> str:
    """ISO 8601 in UTC with milliseconds and `Z`: finer fractions have broken receivers (spec: tracking API).

    ValueError for a time outside the years 1 to 9999."""
    millis = micros // 1000
    return _second(millis // 1000) + _FRACTIONS[millis % 1000]


# ── The event as destinations see it ──────────────────────────────────────────────────────────────────────────────

INTERNAL_FIELDS: Final = ("writeKey", "projectId", "_metadata")


def identified(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """The traits that an identify writes. RudderStack's Python SDK has them in `context.traits` alone."""
    traits, context = body.get("traits"), body.get("context")
    if traits is None and isinstance(context, dict):
        traits = context.get("traits")
    return traits if isinstance(traits, dict) else None


def materialize(resolved: Resolved) -> dict[str, Any]:
    """The whole event, decoded: what the client sent, with the server's fields set and the internal ones gone.

    Adds `source`, `profileId` and `externalIds`, and to `context` what the server could tell; `originalTimestamp` is the client's `timestamp` verbatim. ValueError when the body is not a
    JSON object (the collector lets none through)."""
    source, kind, message_id, anonymous_id, user_id, timestamp, sent_at, received_at, _, ip, _, body = resolved.event
    full, resolved.said = resolved.said, None
    if full is None:
        full = json_loads(body)
        if not isinstance(full, dict):
            raise ValueError("the body is not a JSON object")
    drop = full.pop
    for name in INTERNAL_FIELDS:
        drop(name, None)
    full["originalTimestamp"] = full.get("timestamp") or full.get("originalTimestamp")
    if kind == "identify" and (traits := identified(full)) is not None:
        full["traits"] = traits
    full["type"] = kind
    full["messageId"] = message_id
    full["timestamp"] = iso(timestamp)
    full["receivedAt"] = iso(received_at)
    if sent_at is not None:
        full["sentAt"] = iso(sent_at)
    else:
        drop("sentAt", None)
    if anonymous_id is not None:
        full["anonymousId"] = anonymous_id
    else:
        drop("anonymousId", None)
    if user_id is not None:
        full["userId"] = user_id
    else:
        drop("userId", None)
    if ip is not None:
        context = full.get("context")
        if not isinstance(context, dict):
            context = full["context"] = {}
        if context.get("ip") is None:
            context["ip"] = ip
    if resolved.context is not None:
        _add_context(full, resolved.context)
    full["source"] = source
    full["profileId"] = resolved.profile_id or None
    ids = resolved.external_ids
    full["externalIds"] = [{"type": kind, "id": value} for kind, value in ids] if ids else []
    return full


def _add_context(full: dict[str, Any], told: bytes) -> None:
    """What the client said of a name stands alone: half of it from each would be true of neither."""
    context = full.get("context")
    if not isinstance(context, dict):
        context = full["context"] = {}
    for name, value in orjson.loads(told).items():
        if _says_nothing(context.get(name)):
            context[name] = value


def _says_nothing(value: Any) -> bool:
    """Null, or as RudderStack's browser SDK has it, an object of blanks."""
    return value is None or (isinstance(value, dict) and all(inner in (None, "") for inner in value.values()))
