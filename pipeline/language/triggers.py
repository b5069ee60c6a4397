"""Triggers of mappings: expressions of the filter language, with the reference's rules for what is not there.

A filter guards what must not leave, so one that cannot be evaluated fails whole. A trigger is made of conditions, and each that
cannot be evaluated is false by itself: `contains` and `match` of what is no text, and their negations, and comparisons with a
number of what is none.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.language.filters import Filter, _Operand, _Parser, _Unevaluable, _Value, _Word, compile_filter

_OF_TEXTS = frozenset(("contains", "match"))


def compile_trigger(text: str) -> Filter:
    """Whether an event, as destinations get it, triggers. FilterError when the text is no expression."""
    whole = compile_filter(text)
    if text.strip() == "all":
        return whole
    value = _Triggers(text).whole()
    return lambda event: value(event) is True


class _Triggers(_Parser):
    """The filter language's parser; what makes the difference is where a condition ends."""

    def _negated(self) -> _Value:
        return _condition(super()._negated())

    def _comparison(self) -> _Value:
        start = self._next
        left = self._operand()
        if self._take("!="):
            right = self._operand()
            if right.constant and type(right.value({})) in (int, float):
                return _other_number(left.value, right.value)
        self._next = start
        return super()._comparison()

    def _call(self, name: _Word) -> _Operand:
        if name.text not in _OF_TEXTS:
            return super()._call(name)
        start = self._next
        subject = self._operand().value
        self._next = start
        return _of_text(subject, super()._call(name).value)


def _condition(of: _Value) -> _Value:
    def value(event: Mapping[str, Any]) -> bool:
        try:
            return of(event) is True
        except _Unevaluable:
            return False

    return value


def _of_text(subject: _Value, of: _Value) -> _Operand:
    def value(event: Mapping[str, Any]) -> Any:
        if type(subject(event)) is not str:
            raise _Unevaluable
        return of(event)

    return _Operand(value)


def _other_number(left: _Value, right: _Value) -> _Value:
    def value(event: Mapping[str, Any]) -> bool:
        number = left(event)
        return type(number) in (int, float) and number != right(event)

    return value
