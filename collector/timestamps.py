"""When an event happened: what the device says, corrected by how far its clock is off.

Times are UTC microseconds since 1970. Digits beyond the microsecond are cut.
"""

import re
from datetime import UTC, datetime
from typing import Any, Final

EARLIEST: Final = -62_135_596_800_000_000  # 0001-01-01
LATEST: Final = 253_402_300_799_999_999  # 9999-12-31
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def parse_time(text: Any) -> int | None:
    """An ISO 8601 time: any number of fraction digits, any offset, `t` and `z` in either case, UTC where no zone is given.

    None for everything else, and for times outside the years 1 to 9999."""
    if type(text) is not str:
        return None
    second, millis = _SECONDS.get(text[LEAD]), MILLIS.get(text[TAIL])
    if second is not None and millis is not None:  # what nearly all SDKs send
        return second + millis
    return _parse_any(text) if millis is None else _parse_new_second(text)


LEAD: Final = slice(20)
TAIL: Final = slice(20, None)
"""Of such a time, what stands before and behind the end of the point. Making a slice anew takes as long as cutting the text."""
MILLIS: Final = {f"{number:03d}Z": number * 1000 for number in range(1000)}
"""The end of such a time, after the point, in microseconds."""
_SECONDS: Final[dict[str, int]] = {}  # the beginning, up to and with the point: events of a batch mostly share theirs
_SECOND: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.")


def _parse_new_second(text: str) -> int | None:
    micros = _parse_any(text)
    if micros is not None and _SECOND.fullmatch(text, 0, 20):
        if len(_SECONDS) >= 8192:
            _SECONDS.clear()
        _SECONDS[text[:20]] = micros - MILLIS[text[20:]]
    return micros


def _parse_any(text: str) -> int | None:
    if text[4:5] != "-" or text[7:8] != "-":
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return _parse_unusual(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    since = moment - _EPOCH
    micros = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    return micros if EARLIEST <= micros <= LATEST else None


def _parse_unusual(text: str) -> int | None:
    """What the standard library does not know: a lower-case `z`, leap seconds, which fall into the next minute, and, before Python
    3.13, midnight at the end of a day."""
    if text[-1:] == "z":
        return parse_time(text[:-1] + "Z")
    if text[16:19] == ":60" and (before := parse_time(f"{text[:16]}:59{text[19:]}")) is not None:
        return before + 1_000_000
    if text[11:19] == "24:00:00" and (before := parse_time(f"{text[:11]}00:00:00{text[19:]}")) is not None:
        return before + 86_400_000_000
    return None


def event_time(original: int | None, sent_at: int | None, received_at: int) -> int:
    """`received_at - (sent_at - original)`: the device's own delay, on the server's clock.

    Without `original` the event happened when it was received; without `sent_at` the device's clock is believed, which
    imports rely on. A result that no calendar holds is `received_at`."""
    if original is None:
        return received_at
    if sent_at is None:
        return original
    corrected = received_at - (sent_at - original)
    return corrected if EARLIEST <= corrected <= LATEST else received_at
