"""The JSON of requests: the envelope decoded, the rest left as the client's bytes.

Bytes are written anew only where they must be: when a batch adds context or integrations to its events, for names of old
libraries, and to replace lone surrogates and NUL (U+FFFD takes their place), which are legal JSON that no database holds.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from schemas.errors import Refused

EVENT_LIMIT: Final = 32_768  # bytes of one event's JSON
DEPTH_LIMIT: Final = 128  # levels; encoders downstream end at 254
SHALLOW_SIZE: Final = 2 * DEPTH_LIMIT  # bytes; what is shorter cannot be deeper
ID_LIMIT: Final = 512  # characters; at four bytes each they still fit an index page of PostgreSQL
MESSAGE_ID_LIMIT: Final = 100  # characters

Fields = dict[str, msgspec.Raw]
_Decoded = TypeVar("_Decoded")


class Object(msgspec.Struct, gc=False):
    """Some JSON object; its content is skipped."""


class Context(msgspec.Struct, gc=False):
    """The one thing in `context` that the collector acts on: the caller says that it is the end user's device."""

    direct: Any = None


_Other = list[msgspec.Raw] | str | float | bool | None


class Item(msgspec.Struct, gc=False, rename="camel"):
    """The envelope of one event. It takes any type anywhere, since each wrong one has its own reason code."""

    type: Any = None
    message_id: Any = None
    anonymous_id: Any = None
    user_id: Any = None
    timestamp: Any = None
    original_timestamp: Any = None  # RudderStack's Node.js SDK sends it in place of `timestamp`
    sent_at: Any = None
    write_key: Any = None
    event: Any = None
    name: Any = None
    category: Any = None
    group_id: Any = None
    previous_id: Any = None
    properties: Object | _Other = None
    traits: Object | _Other = None
    context: Context | _Other = None
    integrations: Object | _Other = None
    # Names of old libraries.
    action: Any = None
    session_id: Any = None
    from_: Any = msgspec.field(default=None, name="from")
    to: Any = None
    options: Object | _Other = None


_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=ID_LIMIT)]
_Type = Literal["track", "identify", "page", "screen", "group", "alias"]
_Name = Annotated[str, msgspec.Meta(min_length=1)]


class PlainContext(msgspec.Struct, gc=False):
    """A context whose sender does not speak for a device."""

    direct: None = None


class Plain(msgspec.Struct, gc=False, rename="camel"):
    """The envelope of an event with nothing unusual in it, its types and lengths checked while it is decoded.

    Whatever does not decode as this may still be in order: it has to be looked at as an `Item`."""

    type: _Type | None = None
    event: _Name | None = None
    message_id: Annotated[str, msgspec.Meta(max_length=MESSAGE_ID_LIMIT)] | None = None
    anonymous_id: _Id | None = None
    user_id: _Id | None = None
    timestamp: str | None = None
    properties: Object | None = None
    traits: Object | None = None
    context: PlainContext | None = None
    integrations: Object | None = None
    sent_at: Any = None
    write_key: Any = None
    name: _Name | None = None
    category: _Name | None = None
    original_timestamp: str | None = None
    options: None = None


class PlainBatch(msgspec.Struct, gc=False):
    """A batch whose events are all like that."""

    batch: list[Plain]


class Envelope(msgspec.Struct, gc=False, rename="camel"):
    """A batch: its events stay slices of the body."""

    batch: list[msgspec.Raw]
    write_key: Any = None
    sent_at: Any = None
    context: msgspec.Raw = msgspec.Raw()
    integrations: msgspec.Raw = msgspec.Raw()


decode_item: Final = msgspec.json.Decoder(Item).decode
decode_plain: Final = msgspec.json.Decoder(Plain).decode
decode_plain_lines: Final = msgspec.json.Decoder(Plain).decode_lines
decode_plain_batch: Final = msgspec.json.Decoder(PlainBatch).decode
decode_envelope: Final = msgspec.json.Decoder(Envelope).decode
_decode_fields: Final = msgspec.json.Decoder(Fields).decode
_encode: Final = msgspec.json.Encoder().encode


# ── A whole body ──────────────────────────────────────────────────────────────────────────────────────────────────


def is_literal(body: bytes) -> bool:
    """Whether every character stands for itself and is one byte."""
    return b"\\" not in body and body.isascii()


def decode(decoder: Callable[[bytes], _Decoded], body: bytes, *, literal: bool = False) -> tuple[_Decoded, bytes]:
    """The body decoded, and its bytes as they are to be kept. Refused when it is not the JSON that the decoder wants;
    RecursionError when it is nested too deeply to tell. `literal` says that it is known to be so (`is_literal`)."""
    if not literal:
        if body.startswith(b"\xef\xbb\xbf"):
            body = body[3:]
        if b"\\" in body and b"\\u0000" in body:
            body = _without_hazards(body)
    try:
        literal or body.isascii() or body.decode()  # the decoder skips strings without looking inside
        return decoder(body), body
    except msgspec.ValidationError as error:
        raise _invalid(f"body is not what this path takes ({error}): {_TAKEN}") from error
    except UnicodeDecodeError as error:
        raise _invalid(f"body is not valid JSON (not UTF-8 at byte {error.start}): {_UTF_8}") from error
    except msgspec.DecodeError as error:
        mended = _without_hazards(body)
        if mended == body:
            raise _invalid(f"body is not valid JSON ({error}): send one object") from error
    return decode(decoder, mended)


_TAKEN: Final = 'send one call as an object, or many to /v1/batch as {"batch": [...]}'
_UTF_8: Final = "send it in UTF-8, and name its Content-Encoding if it is compressed"


def _invalid(message: str) -> Refused:
    return Refused("invalid_request", message)


_ESCAPE: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2}|u0000)|.)",
    re.DOTALL,
)


def _without_hazards(body: bytes) -> bytes:
    """Lone surrogates and NUL replaced by U+FFFD. Every escape is looked at, so that an escaped backslash hides none."""
    return _ESCAPE.sub(lambda escape: b"\\ufffd" if escape[1] else escape[0], body)


# ── One event ─────────────────────────────────────────────────────────────────────────────────────────────────────


_STRING_OR_BRACKET: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


def is_nested_too_deeply(body: bytes) -> bool:
    """Counting brackets settles it for honest events."""
    size = len(body)
    if size < SHALLOW_SIZE:
        return False
    # Replacing takes a third of the time of counting.
    if 2 * size - len(body.replace(b"{", b"")) - len(body.replace(b"[", b"")) <= DEPTH_LIMIT:
        return False
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(body):
        first = body[token.start()]
        if first in b"[{":
            depth += 1
            if depth > DEPTH_LIMIT:
                return True
        elif first in b"]}":
            depth -= 1
    return False


def without_depths(body: bytes, new_id: Callable[[], str]) -> tuple[bytes, dict[bytes, bytes]]:
    """A batch that cannot be decoded for its depth, each event that is nested too deeply replaced by a string that stands
    for it; and these events by their strings. So it is refused alone, and its neighbours go on."""
    replaced: dict[bytes, bytes] = {}
    pieces: list[bytes] = []
    depth = deepest = begin = kept = 0
    for token in _STRING_OR_BRACKET.finditer(body):
        first = body[token.start()]
        if first in b"[{":
            depth += 1
            if depth == _EVENT_DEPTH:
                begin = token.start()
                deepest = 0
            deepest = max(deepest, depth)
        elif first in b"]}":
            if depth == _EVENT_DEPTH and deepest - depth >= DEPTH_LIMIT:
                stand_in = b'"%b"' % new_id().encode()
                replaced[stand_in] = body[begin : token.end()]
                pieces += (body[kept:begin], stand_in)
                kept = token.end()
            depth -= 1
    return b"".join((*pieces, body[kept:])), replaced


_EVENT_DEPTH: Final = 3  # the batch, its list, an event


def has_old_names(item: Item, kind: Any) -> bool:
    """Whether a name of an old library stands in for one that is missing."""
    return (
        (kind is None and item.action is not None)
        or (item.session_id is not None and item.anonymous_id is None and item.user_id is None)
        or (item.options is not None and item.context is None)
        or (
            kind == "alias"
            and (
                (item.from_ is not None and item.previous_id is None) or (item.to is not None and item.user_id is None)
            )
        )
    )


def with_new_names(body: bytes, kind: Any) -> bytes:
    """The event under today's names: `action` is `type`, `sessionId` `anonymousId`, `options` `context`; of an alias,
    `from` is `previousId` and `to` `userId`. A name of today that is there wins; `kind` is the event's type."""
    fields = _decode_fields(body)
    _rename(fields, "action", "type")
    if _is_missing(fields, "userId"):
        _rename(fields, "sessionId", "anonymousId")
    if kind == "alias":
        _rename(fields, "from", "previousId")
        _rename(fields, "to", "userId")
    if _is_missing(fields, "context") and "options" in fields:
        _rename(fields, "options", "context")
        _take_out_integrations(fields)
    return _encode(fields)


def _rename(fields: Fields, old: str, new: str) -> None:
    if old in fields and _is_missing(fields, new):
        fields[new] = fields.pop(old)


def _is_missing(fields: Fields, name: str) -> bool:
    return name not in fields or _is_null(fields[name])


def _take_out_integrations(fields: Fields) -> None:
    """`options` held the integrations too, once named providers."""
    if not _is_object(fields["context"]):
        return
    inner = _decode_fields(fields["context"])
    for old in ("providers", "integrations"):
        if old in inner:
            given = inner.pop(old)
            if _is_missing(fields, "integrations"):
                fields["integrations"] = given
    fields["context"] = _raw(inner)


def merged(body: bytes, context: msgspec.Raw | None, integrations: msgspec.Raw | None) -> bytes:
    """The event with the batch's context and integrations under its own. Context merges deeply; of integrations each
    name has one value. What the event says wins, null says nothing, and what is no object is left for the rules."""
    fields = _decode_fields(body)
    for name, under, deep in (("context", context, True), ("integrations", integrations, False)):
        if under is not None:
            fields[name] = _over(fields.get(name), under, deep=deep)
    return _encode(fields)


def _over(upper: msgspec.Raw | None, lower: msgspec.Raw, *, deep: bool) -> msgspec.Raw:
    if upper is None or _is_null(upper):
        return lower
    if not (_is_object(upper) and _is_object(lower)):
        return upper
    result = _decode_fields(upper)
    for name, value in _decode_fields(lower).items():
        own = result.get(name)
        result[name] = _over(own, value, deep=True) if deep or own is None else own
    return _raw(result)


def object_or_none(raw: msgspec.Raw) -> msgspec.Raw | None:
    """The slice, when it is an object that says something."""
    return raw if raw and _is_object(raw) and _decode_fields(raw) else None


def _is_null(raw: msgspec.Raw) -> bool:
    return bytes(raw) == b"null"


def _is_object(raw: msgspec.Raw) -> bool:
    return bytes(memoryview(raw)[:1]) == b"{"


def _raw(fields: Fields) -> msgspec.Raw:
    return msgspec.Raw(_encode(fields))
