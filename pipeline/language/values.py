"""What JSON values are to the languages: their types, when two are the same, and what they are as another type."""

from typing import Any

from schemas.exact_json import json_dumps


def same(a: Any, b: Any) -> bool:
    """Equality without conversion: `1` is neither `"1"` nor `true`. Numbers are one type, whether written with a point or not."""
    kind, other = type(a), type(b)
    if kind is bool or other is bool:
        return a is b
    if kind is list and other is list:
        return len(a) == len(b) and all(map(same, a, b))
    if kind is dict and other is dict:
        return a.keys() == b.keys() and all(same(value, b[name]) for name, value in a.items())
    return bool(a == b)


def type_of(value: Any) -> str:
    """`null`, `bool`, `number`, `string`, `list` or `object`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "list" if isinstance(value, list) else "object"


def truth_of(value: Any) -> bool:
    """Of a text: whether it says something other than `false`. Of everything else: whether it is neither null, zero nor empty."""
    return value not in ("", "false") if isinstance(value, str) else bool(value)


def text_of(value: Any) -> str:
    """A text itself; everything else as JSON."""
    return value if isinstance(value, str) else json_dumps(value).decode()
