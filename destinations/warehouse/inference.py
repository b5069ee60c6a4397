"""What type a column gets, and how it widens, pure.

Values are taken as if they came one by one: the first that is not null decides, later ones that do not fit widen the
column, what was there before is converted. So a stream gives the same column however it is cut into batches. A column
never narrows, and widening never loses a value: text holds everything.

Stored forms: boolean bool, bigint int, double float, timestamp int (UTC microseconds since 1970), text str.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import NoneType
from typing import Any, Final, Literal

from schemas.exact_json import json_dumps

Type = Literal["boolean", "bigint", "double", "timestamp", "text"]
MIN_BIGINT: Final = -(1 << 63)
MAX_BIGINT: Final = (1 << 63) - 1
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TIMESTAMP: Final = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:?\d\d)?", re.ASCII | re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Column:
    """Values ready to be stored. `steps` are the types through which a column that exists has to be widened, in order;
    `type` is None while every value so far was null."""

    type: Type | None
    values: Sequence[Any]
    steps: tuple[Type, ...] = ()


def parse_timestamp(text: str) -> int | None:
    """UTC microseconds of `YYYY-MM-DDTHH:MM:SS[.f][zone]`; None for anything else. No zone means UTC; finer fractions
    than a microsecond are cut."""
    if len(text) < 19 or text[4] != "-" or text[10] not in "Tt" or _TIMESTAMP.fullmatch(text) is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:  # the thirteenth month
        return None
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def number_text(number: float) -> str:
    """The one text of a double: whole numbers without a point, so that 5 and 5.0 read the same."""
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)


def timestamp_text(micros: int) -> str:
    """The one text of a timestamp: UTC with six digits and Z."""
    seconds, fraction = divmod(micros, 1_000_000)
    days, seconds = divmod(seconds, 86_400)
    moment = datetime.fromordinal(_EPOCH.toordinal() + days)
    hours, minutes = divmod(seconds // 60, 60)
    return f"{moment:%Y}".zfill(4) + f"-{moment:%m-%d}T{hours:02}:{minutes:02}:{seconds % 60:02}.{fraction:06}Z"


def json_text(value: Any) -> str:
    """Arrays and deep objects as JSON."""
    return json_dumps(value).decode()


def sorted_json(value: Any) -> str:
    """JSON whose keys stand in the same order wherever they came from."""
    return json_dumps(value, sort_keys=True).decode()


def text_of(value: Any) -> str:
    """A JSON value in a text column: strings as they are, everything else as its JSON text."""
    kind = type(value)
    if kind is str:
        return value  # type: ignore[no-any-return]  # `type(x) is str` narrows no Any
    if kind is float:
        return number_text(value)
    return json_text(value)


# ── One value ─────────────────────────────────────────────────────────────────────────────────────────────────────

_MISFIT: Final = object()


def type_of(value: Any) -> Type:
    """The type that a first value gives its column."""
    kind = type(value)
    if kind is bool:
        return "boolean"
    if kind is int:
        return "bigint" if MIN_BIGINT <= value <= MAX_BIGINT else "double" if _exact(value) else "text"
    if kind is float:
        return "double"
    return "timestamp" if kind is str and parse_timestamp(value) is not None else "text"


def _exact(number: int) -> bool:
    """Whether a double can hold this integer."""
    try:
        return int(float(number)) == number
    except OverflowError:
        return False


def _to_boolean(value: Any) -> Any:
    return value if type(value) is bool else _MISFIT


def _to_bigint(value: Any) -> Any:
    kind = type(value)
    if (kind is float and value.is_integer()) or (kind is str and _reads_back(value, int, str)):
        value = int(value)
        kind = int
    return value if kind is int and MIN_BIGINT <= value <= MAX_BIGINT else _MISFIT


def _to_double(value: Any) -> Any:
    kind = type(value)
    if kind is float:
        return value
    if (kind is int and _exact(value)) or (kind is str and _reads_back(value, float, number_text)):
        return float(value)
    return _MISFIT


def _to_timestamp(value: Any) -> Any:
    parsed = parse_timestamp(value) if type(value) is str else None
    return _MISFIT if parsed is None else parsed


def _reads_back(text: str, read: Callable[[str], Any], write: Callable[[Any], str]) -> bool:
    """Whether a string is exactly the text of its number, so that casting it loses nothing: `5`, not `05`."""
    if len(text) > 24:
        return False
    try:
        return write(read(text)) == text
    except (ValueError, OverflowError):
        return False


_CASTS: Final[Mapping[Type, Callable[[Any], Any]]] = {
    "boolean": _to_boolean,
    "bigint": _to_bigint,
    "double": _to_double,
    "timestamp": _to_timestamp,
    "text": text_of,
}
_CONVERSIONS: Final[Mapping[tuple[Type, Type], Callable[[Any], Any]]] = {
    ("bigint", "double"): float,
    ("boolean", "text"): json_text,
    ("bigint", "text"): str,
    ("double", "text"): number_text,
    ("timestamp", "text"): timestamp_text,
}


# ── A column of values ────────────────────────────────────────────────────────────────────────────────────────────


def _always() -> bool:
    return True


def settle(
    known: Type | None,
    values: Sequence[Any],
    exact: Callable[[], bool] = _always,
    ranks: Callable[[], Sequence[int]] | None = None,
) -> Column:
    """Fits `values` into a column of type `known` (None: it does not exist yet).

    `exact` says whether doubles can hold all that an existing bigint column has. `ranks` gives the indexes of `values` in
    the order in which they happened, when that is not the order they stand in. Both are asked only when it matters."""
    kinds = set(map(type, values))
    kinds.discard(NoneType)
    if not kinds:
        return Column(known, values)
    if len(kinds) == 1:
        quick = _settle_alike(known, values, kinds.pop())
        if quick is not None:
            return quick
    if ranks is None:
        return _settle_mixed(known, values, exact)
    order = ranks()
    settled = _settle_mixed(known, [values[at] for at in order], exact)
    back = [None] * len(values)
    for at, value in zip(order, settled.values, strict=True):
        back[at] = value
    return Column(settled.type, back, settled.steps)


def _settle_alike(known: Type | None, values: Sequence[Any], kind: type) -> Column | None:
    """Values of one JSON type, as nearly all columns have: no look at each. None when a look is needed."""
    if kind is str:
        if known == "text" or (known is None and not any(map(_timestamp_like, values))):
            return Column("text", values)
        if known in (None, "timestamp"):
            parsed = [None if value is None else parse_timestamp(value) for value in values]
            if parsed.count(None) == values.count(None):
                return Column("timestamp", parsed)
    elif kind is int:
        present = values if None not in values else [value for value in values if value is not None]
        if known in (None, "bigint") and min(present) >= MIN_BIGINT and max(present) <= MAX_BIGINT:
            return Column("bigint", values)
    elif kind is float and known in (None, "double"):
        return Column("double", values)
    elif kind is bool and known in (None, "boolean"):
        return Column("boolean", values)
    elif kind in (list, dict) and known in (None, "text"):
        return Column("text", [None if value is None else json_text(value) for value in values])
    return None


def _timestamp_like(value: str | None) -> bool:
    return value is not None and len(value) >= 19 and value[10] in "Tt"


def _settle_mixed(known: Type | None, values: Iterable[Any], exact: Callable[[], bool]) -> Column:
    current, stored, steps = known, list[Any](), list[Type]()
    for value in values:
        if value is None:
            stored.append(None)
            continue
        if current is None:
            current = type_of(value)
        cast = _CASTS[current](value)
        while cast is _MISFIT:
            wider = _wider(current, value, stored, exact if known == "bigint" else _always)
            convert = _CONVERSIONS[current, wider]
            stored = [None if one is None else convert(one) for one in stored]
            current = wider
            steps.append(wider)
            cast = _CASTS[current](value)
        stored.append(cast)
    return Column(current, stored, tuple(steps) if known is not None else ())


def _wider(current: Type, value: Any, stored: Sequence[Any], exact: Callable[[], bool]) -> Type:
    """The next wider type that `value` asks for. Integers become doubles only if every one survives it."""
    if current == "bigint" and type(value) in (int, float) and _to_double(value) is not _MISFIT:
        survives = all(_exact(one) for one in stored if one is not None) and exact()
        return "double" if survives else "text"
    return "text"
