"""What directives do to whole values: flatten, drop nulls, tell blank from not. Pure."""

from collections.abc import Iterator
from typing import Any

from pipeline.language.mapping.paths import UNDEFINED


def flattened(value: Any, separator: str, *, omit_arrays: bool) -> Any:
    """One level of keys, joined by the separator; lists count as objects whose keys are 0, 1, … unless they are omitted. Empty
    objects and lists vanish. What holds nothing to flatten stays as it is."""
    if not _opens(value, omit_arrays):
        return value
    flat: dict[str, Any] = {}
    open_ = [("", _members(value))]
    while open_:
        prefix, members = open_[-1]
        for key, one in members:
            if _opens(one, omit_arrays):
                open_.append((f"{prefix}{key}{separator}", _members(one)))
                break
            flat[prefix + key] = one
        else:
            open_.pop()
    return flat


def _opens(value: Any, omit_arrays: bool) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and not omit_arrays)


def _members(value: dict[str, Any] | list[Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        return iter(value.items())
    return ((str(index), one) for index, one in enumerate(value))


def without_nulls(value: Any) -> Any:
    """Takes nulls out of objects and the objects in them. Lists stay as they are."""
    if isinstance(value, dict):
        return {name: without_nulls(one) for name, one in value.items() if one is not None}
    return value


def is_blank(value: Any) -> bool:
    """Undefined, null, and what JavaScript finds loosely equal to an empty text."""
    if value is None or value is UNDEFINED or value is False:
        return True
    if isinstance(value, str):
        return value == ""
    if isinstance(value, list):
        return not value or (len(value) == 1 and _is_silent(value[0]))
    return isinstance(value, int | float) and value is not True and value == 0


def _is_silent(item: Any) -> bool:
    """Whether an item makes no text of its own in a list's."""
    if isinstance(item, list):
        return not item or (len(item) == 1 and _is_silent(item[0]))
    return item is None or item == ""


def is_truthy(value: Any) -> bool:
    """JavaScript's truth of a JSON value: empty lists and objects are true."""
    return isinstance(value, dict | list) or bool(value)
