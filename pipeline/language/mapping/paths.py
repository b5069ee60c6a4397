"""Paths into an event: dots, `[0]`, `['a b']`. Pure."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

Value = Callable[[Any], Any]
"""What a part of a mapping is for a payload; UNDEFINED where there is nothing."""


class _Undefined:
    """What is not there, which null is not: a key whose value it is goes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "UNDEFINED"


UNDEFINED: Final = _Undefined()
_STEPS: Final = re.compile(r"""\[(?:'([^']*)'|"([^"]*)")\]|([^.\[\]]+)""")


def steps_of(path: str) -> Sequence[str] | None:
    """The keys that a path names, one after another; none for the whole payload, None for a path that names nothing."""
    path = path.replace("$.", "", 1)
    if path in ("", "."):
        return ()
    steps = [quoted or double or plain for quoted, double, plain in _STEPS.findall(path)]
    return steps or None


def at(path: str) -> Value:
    """The value at a path. Beyond a value that counts as false (null, false, 0, empty text), that value itself."""
    steps = steps_of(path)
    if steps is None:
        return _nothing
    if not steps:
        return _whole
    if len(steps) == 1:
        return _one(steps[0])
    if len(steps) == 2:
        return _two(*steps)
    return _several(steps)


def _nothing(_: Any) -> Any:
    return UNDEFINED


def _whole(payload: Any) -> Any:
    return payload


def _one(step: str) -> Value:
    def value(payload: Any) -> Any:
        return payload.get(step, UNDEFINED) if type(payload) is dict else _step(payload, step)

    return value


def _two(first: str, second: str) -> Value:
    def value(payload: Any) -> Any:
        found = payload.get(first, UNDEFINED) if type(payload) is dict else _step(payload, first)
        return found.get(second, UNDEFINED) if type(found) is dict else _step(found, second)

    return value


def _several(steps: Sequence[str]) -> Value:
    def value(payload: Any) -> Any:
        found = payload
        for step in steps:
            found = found.get(step, UNDEFINED) if type(found) is dict else _step(found, step)
        return found

    return value


def _step(value: Any, step: str) -> Any:
    """From what is no object: a list's or text's element and its `length`."""
    if value is UNDEFINED or value is None or value is False:
        return value
    if isinstance(value, list | str):
        if value == "":
            return value
        if step == "length":
            return len(value)
        if step.isascii() and step.isdigit() and (step == "0" or step[0] != "0") and len(step) < 10:
            return value[int(step)] if int(step) < len(value) else UNDEFINED
        return UNDEFINED
    if isinstance(value, int | float) and value == 0 and value is not True:
        return value
    return UNDEFINED
