"""The filters of Liquid templates. Each is total: what it cannot take it takes as text, as a number or as an empty list. Pure."""

import html
import math
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple
from urllib.parse import quote, quote_plus, unquote_plus

from pipeline.language.mapping.texts import json_text, text_of

LONGEST: Final = 100_000  # characters of any text on the way, and elements of any list
_LARGEST: Final = 10**21  # beyond it numbers are doubles, as all are where the language comes from


class Unrenderable(Exception):
    """A template that has no text for this event: divided by zero, grown beyond bounds."""


class Filter(NamedTuple):
    """A function of a value and of `least` to `most` more."""

    of: Callable[..., Any]
    least: int
    most: int


def capped(text: str) -> str:
    """A text that is not too long."""
    if len(text) > LONGEST:
        raise Unrenderable
    return text


def liquid_text(value: Any) -> str:
    """A value as it is shown: a list as its elements, one after another."""
    if isinstance(value, list):
        return capped("".join([liquid_text(one) for one in value]))
    return text_of(value) if value is None or isinstance(value, str | int | float | dict) else ""


# ── Numbers ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _number(value: Any) -> int | float:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int | float):
        return value
    text = value.strip() if isinstance(value, str) else ""
    if re.fullmatch(r"[+-]?[0-9]{1,300}(\.[0-9]{1,300})?", text):
        return float(text) if "." in text else _sized(int(text))
    return 0


def _sized(number: int | float) -> int | float:
    if isinstance(number, int):
        return number if abs(number) < _LARGEST else _sized(_float(number))
    if not math.isfinite(number):
        raise Unrenderable
    return number


def _float(number: int) -> float:
    try:
        return float(number)
    except OverflowError as error:
        raise Unrenderable from error


def _numeric(of: Callable[..., int | float]) -> Callable[..., int | float]:
    def call(*given: Any) -> int | float:
        try:
            return _sized(of(*map(_number, given)))
        except (ZeroDivisionError, OverflowError) as error:
            raise Unrenderable from error

    return call


def _divided(a: int | float, b: int | float) -> int | float:
    """As in JavaScript, where 7 by 2 is 3.5; what comes out whole keeps its digits."""
    return a // b if isinstance(a, int) and isinstance(b, int) and a % b == 0 else a / b


def _modulo(a: int | float, b: int | float) -> int | float:
    """The sign is that of what is divided."""
    rest = abs(a) % abs(b)
    return -rest if a < 0 else rest


def _rounded(value: int | float, digits: int | float = 0) -> int | float:
    places = max(-20, min(20, int(digits)))
    scale = 10.0**places
    number = math.floor(float(value) * scale + 0.5) / scale
    return int(number) if places <= 0 else number


# ── Texts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _textual(of: Callable[..., str]) -> Callable[..., str]:
    """Every value as text."""

    def call(*given: Any) -> str:
        return capped(of(*[liquid_text(one) for one in given]))

    return call


def _replaced(text: str, old: str, new: str = "") -> str:
    count = text.count(old) if old else len(text) + 1
    if len(text) + count * len(new) > LONGEST + count * len(old):
        raise Unrenderable
    return text.replace(old, new)


def _last_replaced(text: str, old: str, new: str = "") -> str:
    before, found, after = text.rpartition(old) if old else (text, "", "")
    return before + new + after if found else text


def _without_html(text: str) -> str:
    """Tags, comments, and scripts and styles whole. One pass: an end that is not there is looked for once."""
    made: list[str] = []
    place, missing = 0, set[str]()
    while (start := text.find("<", place)) >= 0:
        made.append(text[place:start])
        end = ">"
        for opening, closing in (("<!--", "-->"), ("<script", "</script>"), ("<style", "</style>")):
            if text.startswith(opening, start) and closing not in missing:
                if text.find(closing, start) >= 0:
                    end = closing
                else:
                    missing.add(closing)
        at = text.find(end, start)
        if at < 0:
            return "".join([*made, text[start:]])
        place = at + len(end)
    return "".join([*made, text[place:]])


def _truncated(value: Any, length: Any = 50, ellipsis: Any = "...") -> str:
    text, end, most = liquid_text(value), liquid_text(ellipsis), int(_number(length))
    return text if len(text) <= most else capped(text[: max(0, most - len(end))] + end)


def _words_truncated(value: Any, count: Any = 15, ellipsis: Any = "...") -> str:
    words, most = liquid_text(value).split(), max(1, int(_number(count)))
    return " ".join(words) if len(words) <= most else capped(" ".join(words[:most]) + liquid_text(ellipsis))


def _split(value: Any, by: Any) -> list[str]:
    text, separator = liquid_text(value), liquid_text(by)
    parts = text.split(separator) if separator else list(text)
    while parts and not parts[-1]:
        parts.pop()
    return parts


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _decoded(text: str) -> str:
    try:
        return b64decode(text, validate=True).decode()
    except ValueError as error:
        raise Unrenderable from error


def _escaped(text: str) -> str:
    return (
        text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&#34;").replace("'", "&#39;")
    )


def _utf8(text: str) -> bytes:
    return text.encode(errors="replace")


# ── Lists ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _joined(value: Any, by: Any = " ") -> str:
    parts, glue = [liquid_text(one) for one in _list(value)], liquid_text(by)
    if sum(map(len, parts)) + len(parts) * len(glue) > LONGEST + len(glue):
        raise Unrenderable
    return glue.join(parts)


def _slice(value: Any, start: Any, length: Any = 1) -> Any:
    whole = value if isinstance(value, list) else liquid_text(value)
    first, count = int(_number(start)), max(0, int(_number(length)))
    first = max(0, first + len(whole)) if first < 0 else first
    return whole[first : first + count]


def _sum(value: Any, key: Any = None) -> int | float:
    items = _list(value)
    if key is not None:
        items = [one.get(key) if isinstance(one, dict) else None for one in items]
    return _sized(sum(map(_number, items)))


def _where(value: Any, key: Any, wanted: Any = None) -> list[Any]:
    found = [(one, one.get(key)) for one in _list(value) if isinstance(one, dict) and isinstance(key, str)]
    return [
        one for one, has in found if (has == wanted if wanted is not None else has is not None and has is not False)
    ]


def _end(value: Any, index: int) -> Any:
    return value[index] if isinstance(value, list) and value else None


def _default(value: Any, other: Any = "", *, allow_false: Any = False) -> Any:
    missing = value is None or value in ("", []) or (value is False and allow_false is not True)
    return other if missing else value


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list) else 0


# ── Times ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _moment(value: Any) -> datetime | None:
    """An ISO 8601 time or Unix seconds, in UTC."""
    try:
        if isinstance(value, str) and not re.fullmatch(r"-?[0-9]+", value):
            moment = datetime.fromisoformat(value)
            return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=float(value))
    except (ValueError, OverflowError):
        return None
    return None


_CODES: Final = re.compile(r"%([-_0^#:]?)([0-9]*)([A-Za-z%])")
_WHOLE: Final = {"F": "%Y-%m-%d", "T": "%H:%M:%S", "X": "%H:%M:%S", "R": "%H:%M", "D": "%m/%d/%y", "x": "%m/%d/%y",
                 "r": "%I:%M:%S %p", "c": "%a %b %e %H:%M:%S %Y", "h": "%b", "v": "%e-%b-%Y"}  # fmt: skip
_DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS: Final = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December",
)  # fmt: skip


def _dated(value: Any, pattern: Any = "%A, %B %-e, %Y at %-l:%M %P %z") -> Any:
    """What is no time stays as it is: `now` too, since there is no clock."""
    moment = _moment(value)
    return value if moment is None else capped(_formatted(moment, liquid_text(pattern)))


def _formatted(moment: datetime, pattern: str) -> str:
    def code(found: re.Match[str]) -> str:
        flag, _, letter = found.groups()
        if letter in _WHOLE:
            return _formatted(moment, _WHOLE[letter])
        part = _part(moment, letter)
        if part is None:
            return found[0]
        text, width, fill = part
        if flag == "^":
            text = text.upper()
        fill = {"_": " ", "0": "0"}.get(flag, fill)
        return text if flag == "-" else text.rjust(width, fill)

    return _CODES.sub(code, pattern)


def _part(moment: datetime, letter: str) -> tuple[str, int, str] | None:
    """A part of a time: its text, its width, and what fills it."""
    hour = moment.hour % 12 or 12
    day_of_year = moment.timetuple().tm_yday
    week = (day_of_year + 6 - (moment.weekday() + 1) % 7) // 7
    parts: dict[str, tuple[Any, int, str]] = {
        "Y": (moment.year, 4, "0"), "C": (moment.year // 100, 2, "0"), "y": (moment.year % 100, 2, "0"),
        "m": (moment.month, 2, "0"), "d": (moment.day, 2, "0"), "e": (moment.day, 2, " "), "j": (day_of_year, 3, "0"),
        "H": (moment.hour, 2, "0"), "k": (moment.hour, 2, " "), "I": (hour, 2, "0"), "l": (hour, 2, " "),
        "M": (moment.minute, 2, "0"), "S": (moment.second, 2, "0"), "L": (moment.microsecond // 1000, 3, "0"),
        "N": (moment.microsecond * 1000, 9, "0"), "s": (int(moment.timestamp()), 1, "0"), "U": (week, 2, "0"),
        "u": (moment.isoweekday(), 1, "0"), "w": (moment.isoweekday() % 7, 1, "0"), "z": ("+0000", 5, "0"), "Z": ("UTC", 3, " "),
        "a": (_DAYS[moment.weekday()][:3], 3, " "), "A": (_DAYS[moment.weekday()], 1, " "),
        "b": (_MONTHS[moment.month - 1][:3], 3, " "), "B": (_MONTHS[moment.month - 1], 1, " "),
        "p": ("AM" if moment.hour < 12 else "PM", 2, " "), "P": ("am" if moment.hour < 12 else "pm", 2, " "),
        "%": ("%", 1, " "), "n": ("\n", 1, " "), "t": ("\t", 1, " "),
    }  # fmt: skip
    found = parts.get(letter)
    return None if found is None else (str(found[0]), found[1], found[2])


def _fixed(pattern: str) -> Callable[[Any], Any]:
    return lambda value: _dated(value, pattern)


# ── All ───────────────────────────────────────────────────────────────────────────────────────────────────────────

FILTERS: Final[Mapping[str, Filter]] = {
    "abs": Filter(_numeric(abs), 0, 0),
    "append": Filter(_textual(lambda text, more: text + more), 1, 1),
    "at_least": Filter(_numeric(max), 1, 1),
    "at_most": Filter(_numeric(min), 1, 1),
    "base64_decode": Filter(_textual(_decoded), 0, 0),
    "base64_encode": Filter(_textual(lambda text: b64encode(_utf8(text)).decode()), 0, 0),
    "capitalize": Filter(_textual(lambda text: text[:1].upper() + text[1:].lower()), 0, 0),
    "ceil": Filter(_numeric(math.ceil), 0, 0),
    "cgi_escape": Filter(_textual(lambda text: quote_plus(_utf8(text), safe="!'()*")), 0, 0),
    "compact": Filter(lambda value: [one for one in _list(value) if one is not None], 0, 0),
    "date": Filter(_dated, 0, 1),
    "date_to_long_string": Filter(_fixed("%d %B %Y"), 0, 0),
    "date_to_rfc822": Filter(_fixed("%a, %d %b %Y %H:%M:%S %z"), 0, 0),
    "date_to_string": Filter(_fixed("%d %b %Y"), 0, 0),
    "date_to_xmlschema": Filter(_fixed("%Y-%m-%dT%H:%M:%S+00:00"), 0, 0),
    "default": Filter(_default, 0, 1),
    "divided_by": Filter(_numeric(_divided), 1, 1),
    "downcase": Filter(_textual(str.lower), 0, 0),
    "escape": Filter(_textual(_escaped), 0, 0),
    "escape_once": Filter(_textual(lambda text: _escaped(html.unescape(text))), 0, 0),
    "first": Filter(lambda value: _end(value, 0), 0, 0),
    "floor": Filter(_numeric(math.floor), 0, 0),
    "inspect": Filter(lambda value: capped(json_text(value)), 0, 0),
    "join": Filter(_joined, 0, 1),
    "json": Filter(lambda value: capped(json_text(value)), 0, 0),
    "jsonify": Filter(lambda value: capped(json_text(value)), 0, 0),
    "last": Filter(lambda value: _end(value, -1), 0, 0),
    "lstrip": Filter(_textual(str.lstrip), 0, 0),
    "minus": Filter(_numeric(lambda a, b: a - b), 1, 1),
    "modulo": Filter(_numeric(_modulo), 1, 1),
    "normalize_whitespace": Filter(_textual(lambda text: re.sub(r"\s+", " ", text)), 0, 0),
    "number_of_words": Filter(lambda value: len(liquid_text(value).split()), 0, 0),
    "plus": Filter(_numeric(lambda a, b: a + b), 1, 1),
    "pop": Filter(lambda value: _list(value)[:-1], 0, 0),
    "prepend": Filter(_textual(lambda text, more: more + text), 1, 1),
    "push": Filter(lambda value, one: [*_list(value), one], 1, 1),
    "remove": Filter(_textual(_replaced), 1, 1),
    "remove_first": Filter(_textual(lambda text, old: text.replace(old, "", 1)), 1, 1),
    "remove_last": Filter(_textual(_last_replaced), 1, 1),
    "replace": Filter(_textual(_replaced), 1, 2),
    "replace_first": Filter(_textual(lambda text, old, new="": text.replace(old, new, 1)), 1, 2),
    "replace_last": Filter(_textual(_last_replaced), 1, 2),
    "round": Filter(_numeric(_rounded), 0, 1),
    "rstrip": Filter(_textual(str.rstrip), 0, 0),
    "shift": Filter(lambda value: _list(value)[1:], 0, 0),
    "size": Filter(_size, 0, 0),
    "slice": Filter(_slice, 1, 2),
    "slugify": Filter(_textual(_slug), 0, 0),
    "split": Filter(_split, 1, 1),
    "strip": Filter(_textual(str.strip), 0, 0),
    "strip_html": Filter(_textual(_without_html), 0, 0),
    "strip_newlines": Filter(_textual(lambda text: text.replace("\r\n", "").replace("\n", "")), 0, 0),
    "sum": Filter(_sum, 0, 1),
    "times": Filter(_numeric(lambda a, b: a * b), 1, 1),
    "to_integer": Filter(_numeric(int), 0, 0),
    "truncate": Filter(_truncated, 0, 2),
    "truncatewords": Filter(_words_truncated, 0, 2),
    "unshift": Filter(lambda value, one: [one, *_list(value)], 1, 1),
    "upcase": Filter(_textual(str.upper), 0, 0),
    "uri_escape": Filter(_textual(lambda text: quote(_utf8(text), safe="!#$&'()*+,/:;=?@[]~")), 0, 0),
    "url_decode": Filter(_textual(unquote_plus), 0, 0),
    "url_encode": Filter(_textual(lambda text: quote_plus(_utf8(text))), 0, 0),
    "where": Filter(_where, 1, 2),
    "xml_escape": Filter(_textual(_escaped), 0, 0),
}
