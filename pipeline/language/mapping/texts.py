"""What values are as text: in templates, replacements and Liquid. Pure."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any, Final

from pipeline.language.mapping.paths import UNDEFINED, Value, at
from schemas.exact_json import json_dumps

_PLACES: Final = re.compile(r"\{\{\{([^}]+)\}\}\}|\{\{([^}]+)\}\}")


def text_of(value: Any) -> str:
    """The text of a value as the reference has it; of an object JSON, where the reference says `[object Object]`. Empty for null
    and for what is not there."""
    if type(value) is str:
        return value
    if value is None or value is UNDEFINED:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return number_text(value)
    if isinstance(value, list):
        return ",".join([text_of(one) for one in value])
    return json_text(value)


def number_text(value: int | float) -> str:
    """As JavaScript writes it, whole numbers with every digit."""
    if isinstance(value, int):
        return str(value)
    if value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    text = repr(value)
    if 1e-6 <= abs(value) < 1e21:
        return format(Decimal(text), "f")
    return re.sub(r"e([+-])0+", r"e\1", text)


def json_text(value: Any) -> str:
    """JSON without blanks."""
    try:
        return json_dumps(value).decode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(value, separators=(",", ":"))


def template(text: str) -> Value:
    """A text with `{{path}}` and `{{{path}}}` in it, which mean the same: nothing is escaped."""
    parts = list(_parts(text))
    if not parts:
        return lambda _: ""
    if len(parts) == 1:
        (only,) = parts
        return _constant(only) if isinstance(only, str) else only
    return _joined([_constant(one) if isinstance(one, str) else one for one in parts])


def _parts(text: str) -> Iterator[str | Callable[[Any], str]]:
    end = 0
    for found in _PLACES.finditer(text):
        if found.start() > end:
            yield text[end : found.start()]
        yield _text_at((found[1] or found[2]).strip())
        end = found.end()
    if end < len(text):
        yield text[end:]


def _constant(text: str) -> Callable[[Any], str]:
    return lambda _: text


def _text_at(path: str) -> Callable[[Any], str]:
    value = at(path)

    def text(payload: Any) -> str:
        found = value(payload)
        return found if type(found) is str else text_of(found)

    return text


def _joined(parts: Sequence[Callable[[Any], str]]) -> Value:
    return lambda payload: "".join([part(payload) for part in parts])
