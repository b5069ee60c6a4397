"""Events that are in order in the usual way, as nearly all are: from decoded envelope to log record in one loop.

It decides nothing of its own: whatever it cannot take for sure, the general way looks at (`collector.accept`), and a property
holds that both make the same of everything. A function call is a twentieth of what an event costs here, hence one
loop that looks the pieces of a record up in place. The head of a record is put together as text whose characters stand for
bytes (Latin-1): that is one instruction of the interpreter, whatever the number of pieces. The body stays a slice of the request.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from collector.item import DEPTH_LIMIT, EVENT_LIMIT, Plain, is_nested_too_deeply
from collector.rules import CONSENT_EVENT
from collector.timestamps import LEAD, MILLIS, TAIL, event_time, parse_time
from pipeline.log.contract import Draft, Piece
from schemas import events

_OTHERS: Final = frozenset({"identify", "page", "screen"})
_DOUBLED: Final = {tail: micros << 1 for tail, micros in MILLIS.items()}
_UNREAD: Final = object()


def _text(raw: bytes) -> str:
    return raw.decode("latin-1")


_ABSENT: Final = _text(events.ABSENT)
_PRESENT: Final = "\x02"
_SIZES: Final = tuple(map(_text, events.SIZES))
_TEXTS: Final = tuple(map(_text, events.TEXTS))
_PAIRS: Final = tuple(map(_text, events.PAIRS))


@lru_cache(maxsize=4096)
def heads(source: str) -> Mapping[str, str]:
    """How the records of a source begin, by type."""
    return {kind: _text(events.event_head(source, kind)) for kind in ("track", *_OTHERS)}


@lru_cache(maxsize=4096)
def caller(channel: str, ip: str | None) -> str:
    """What a record says of who called, behind the time of receipt."""
    return _text(events.event_tail(0, channel, ip)[1:])  # behind the time, which is one byte for zero


def received(received_at: int) -> str:
    """What a record says of the time of receipt, in microseconds."""
    return _time(received_at << 1)


_UPPERS: Final[dict[int, str]] = {}


def _upper(upper: int) -> str:
    """The end of a time, given its double without the lower 28 bits; empty where it takes more or fewer than four bytes."""
    if len(_UPPERS) >= 4096:  # times that clients make up
        _UPPERS.clear()
    piece = _UPPERS[upper] = _text(events.upper_micros(upper))
    return piece


def _time(doubled: int) -> str:
    """A time, given its double: written fourteen bits at a time, the upper ones shared with the times near it."""
    upper, low = _UPPERS.get(doubled >> 28) or _upper(doubled >> 28), doubled & _LOWER
    return f"{_PAIRS[low & 0x3FFF]}{_PAIRS[low >> 14]}{upper}" if upper else _text(events.micros(doubled >> 1))


_LOWER: Final = (1 << 28) - 1


def plain_drafts(
    plains: Iterable[Plain | None],
    bodies: Iterable[Piece],
    sizes: Sequence[int],
    kinds: Iterable[str | None],
    heads: Iterable[Mapping[str, str]],
    tails: Iterable[str],
    *,
    literal: bool,
    unusual: bool,
    batch_sent_at: Any,
    received_at: int,
    new_id: Callable[[], str],
) -> tuple[list[Draft], list[int], int]:
    """The records of events, each given decoded and as bytes; which of these are left out, by number, since the general way has to decide
    about those; and the bytes of the records.

    A decoded event's fields have the right types and lengths; what is left is what the types cannot say. Each has the kind that its path
    implies, if any, the `heads` of its source, and a tail, which is `received` and `caller`. `literal` promises that ids are ASCII, `unusual` leaves size and nesting to be looked
    at; `batch_sent_at` is what the batch says of all its events, `received_at` is in microseconds."""
    stamp = received_at // 1000
    rows: list[Draft] = []
    left: list[int] = []
    total = sum(sizes)
    said: Any = _UNREAD  # of sentAt, by the event before
    sent_at: int | None = None
    sent = _ABSENT
    second, lower, upper = "", 0, ""  # of the event before: its text, and the two parts of its double
    key = b""
    for plain, body, size, kind, head, tail in zip(plains, bodies, sizes, kinds, heads, tails, strict=False):
        if plain is None:
            left.append(len(rows) + len(left))
            total -= size
            continue
        name, anonymous_id, user_id = kind or plain.type, plain.anonymous_id, plain.user_id
        if (
            (((event := plain.event) is None or event == CONSENT_EVENT) if name == "track" else name not in _OTHERS)
            or (user_id.isspace() if user_id is not None else anonymous_id is None)
            or (anonymous_id is not None and anonymous_id.isspace())
            or (unusual and (size > EVENT_LIMIT or is_nested_too_deeply(bytes(body))))
        ):
            left.append(len(rows) + len(left))
            total -= size
            continue

        message_id = plain.message_id or new_id()
        if not literal:
            message_id = _text(message_id.encode())
        user_size = anonymous_size = _ABSENT
        if user_id is None:
            user_id = ""
        else:
            key = user_id.encode()
            user_size = _TEXTS[len(key)]
            if not literal:
                user_id = _text(key)
        if anonymous_id is None:
            anonymous_id = ""
        else:
            key = anonymous_id.encode()
            anonymous_size = _TEXTS[len(key)]
            if not literal:
                anonymous_id = _text(key)

        says = plain.sent_at
        if says is None:
            says = batch_sent_at
        steady = says is said or says == said
        if not steady:
            said, sent_at, second = says, parse_time(says), ""
            sent = _ABSENT if sent_at is None else f"{_PRESENT}{_time(sent_at << 1)}"

        # The time: in a batch mostly of the same second as the one before.
        text = plain.timestamp or plain.original_timestamp or ""
        millis = _DOUBLED.get(text[TAIL])
        if millis is not None and text[LEAD] == second and (low := lower + millis) <= _LOWER:
            time = f"{_PAIRS[low & 0x3FFF]}{_PAIRS[low >> 14]}{upper}"
        else:
            original = parse_time(text)
            doubled = event_time(original, sent_at, received_at) << 1
            time = _time(doubled)
            if steady and original is not None and millis is not None and text[19] == ".":
                # Within a second, and far from the ends of the calendar, times differ as their texts do.
                doubled -= millis
                second, lower, upper = text[LEAD], doubled & _LOWER, _upper(doubled >> 28)
                if not upper:
                    second = ""

        pieces = f"{head[name]}{_SIZES[len(message_id)]}{message_id}{anonymous_size}{anonymous_id}{user_size}{user_id}{time}{sent}{tail}{_SIZES[size]}"
        value = pieces.encode("latin-1")
        total += len(key) + len(value)
        rows.append((key, value, body, stamp))
    return rows, left, total


_STRETCH: Final = 4096  # bytes; cheaper to count through than many small pieces


def all_shallow(whole: bytes, longest: int) -> bool:
    """Whether no part of at most `longest` bytes can be nested too deeply: it lies within two neighbouring stretches, which hold
    too few brackets. False says nothing. Replacing takes a third of the time of counting."""
    stretch, before = max(longest, _STRETCH), 0
    for at in range(0, len(whole), stretch):
        piece = whole[at : at + stretch]
        brackets = 2 * len(piece) - len(piece.replace(b"{", b"")) - len(piece.replace(b"[", b""))
        if before + brackets > DEPTH_LIMIT:
            return False
        before = brackets
    return True
