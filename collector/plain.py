"""Events that are in order in the usual way, as nearly all are: from decoded envelope to log record in one loop.

It decides nothing of its own: whatever it cannot take for sure, the general way looks at (`collector.accept`), and a property
holds that both make the same of everything. A function call is a twentieth of what an event costs here, hence one
loop that looks the pieces of a record up in place.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from collector.item import DEPTH_LIMIT, EVENT_LIMIT, SHALLOW_SIZE, Plain, is_nested_too_deeply
from collector.rules import CONSENT_EVENT
from collector.timestamps import MILLIS, event_time, parse_time
from pipeline.log.contract import Record
from schemas.events import ABSENT, PAIRS, SIZES, TEXTS, event_head, event_sent, micros, upper_micros

_OTHERS: Final = frozenset({"identify", "page", "screen"})
_UNREAD: Final = object()
_new_record: Final = partial(tuple.__new__, Record)  # a third of the cost of calling the class


def plain_records(
    events: Iterable[tuple[Plain | None, bytes]],
    kind: str | None,
    batch_sent_at: Any,
    source: str,
    received_at: int,
    tail: bytes,
    new_id: Callable[[], str],
) -> list[Record | None]:
    """The records of events, each given decoded and as bytes; None for those that the general way has to decide about.

    A decoded event's fields have the right types and lengths; what is left is what the types cannot say. `kind` is implied by the
    path, `batch_sent_at` is what the batch says of all its events, `tail` their `event_tail`; times in microseconds."""
    stamp = received_at // 1000
    records: list[Record | None] = []
    add, join, replace = records.append, b"".join, bytes.replace
    said: Any = _UNREAD  # of sentAt, by the event before
    sent_at: int | None = None
    sent_tail = b""
    second, second_doubled = "", 0  # of the event before: its text, and its double
    upper, upper_piece = -1, b""
    for plain, body in events:
        if plain is None:
            add(None)
            continue
        name, size = kind or plain.type, len(body)
        context, anonymous_id, user_id = plain.context, plain.anonymous_id, plain.user_id
        if (
            (((event := plain.event) is None or event == CONSENT_EVENT) if name == "track" else name not in _OTHERS)
            or (anonymous_id is None and user_id is None)
            or (anonymous_id is not None and anonymous_id.isspace())
            or (user_id is not None and user_id.isspace())
            or (context is not None and context.direct is True)
            or (
                size >= SHALLOW_SIZE
                and 2 * size - len(replace(body, b"{", b"")) - len(replace(body, b"[", b"")) > DEPTH_LIMIT
                and is_nested_too_deeply(body)
            )
            or size > EVENT_LIMIT
        ):
            add(None)
            continue

        key = anonymous = user = b""
        anonymous_piece = user_piece = ABSENT
        if user_id is not None:
            key = user = user_id.encode()
            user_piece = TEXTS[len(user)]
        if anonymous_id is not None:
            key = anonymous = anonymous_id.encode()
            anonymous_piece = TEXTS[len(anonymous)]
        message_id = (plain.message_id or new_id()).encode()

        says = batch_sent_at if plain.sent_at is None else plain.sent_at
        if says is not said and says != said:
            said, sent_at, second = says, parse_time(says), ""
            sent_tail = event_sent(sent_at) + tail

        # The time: mostly of the same second as the one before. It is written as its double, fourteen bits at a time.
        text = plain.timestamp or plain.original_timestamp
        if type(text) is str and text[:20] == second and text[20:] in MILLIS:
            doubled = second_doubled + (MILLIS[text[20:]] << 1)
        else:
            original = parse_time(text)
            doubled = event_time(original, sent_at, received_at) << 1
            if original is not None and text[19:20] == "." and text[20:] in MILLIS and upper_micros(doubled >> 28):
                # Within a second, and far from the ends of the calendar, times differ as their texts do.
                second, second_doubled = text[:20], doubled - (MILLIS[text[20:]] << 1)
        if doubled >> 28 != upper:
            upper, upper_piece = doubled >> 28, upper_micros(doubled >> 28)
        if upper_piece:
            lower = doubled & 0xFFFFFFF
            time_1, time_2 = PAIRS[lower & 0x3FFF], PAIRS[lower >> 14]
        else:
            time_1, time_2 = micros(event_time(parse_time(text), sent_at, received_at)), b""

        value = join(
            (
                event_head(source, name),
                SIZES[len(message_id)],
                message_id,
                anonymous_piece,
                anonymous,
                user_piece,
                user,
                time_1,
                time_2,
                upper_piece,
                sent_tail,
                SIZES[size],
                body,
            )
        )
        add(_new_record((key, value, stamp, -1)))
    return records
