"""Triggers of mappings: where the reference's rules for what is not there differ from those of filters."""

from typing import Any

import pytest

from pipeline.language.filters import FilterError
from pipeline.language.triggers import compile_trigger

EVENT: dict[str, Any] = {
    "type": "track",
    "event": "Order Completed",
    "properties": {"n": 5, "text": "5", "flag": True, "null": None, "list": ["a"], "a b": 1},
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", True),
        ("type = 'track'", True),
        ("type = 'track' and event = 'Order Completed'", True),
        # = and !=: without conversion; what is missing is different
        ("properties.n = '5'", False),
        ("properties.n != '5'", True),
        ("properties.missing = 'x'", False),
        ("properties.missing != 'x'", True),
        # numbers: what is none is neither equal nor different
        ("properties.n = 5", True),
        ("properties.n != 5", False),
        ("properties.n != 4", True),
        ("properties.text != 5", False),
        ("properties.missing = 5", False),
        ("properties.missing != 5", False),
        ("properties.n > 4", True),
        ("properties.text > 4", False),
        ("properties.missing < 4", False),
        # texts: what is none contains nothing, and lacks nothing
        ("contains(event, 'Order')", True),
        ("!contains(event, 'Order')", False),
        ("!contains(event, 'Cart')", True),
        ("contains(properties.n, '5')", False),
        ("!contains(properties.n, '5')", False),
        ("!contains(properties.missing, 'x')", False),
        ("!match(properties.missing, 'x*')", False),
        ("match(event, 'Order*')", True),
        ("match(event, '*Completed')", True),
        ("!match(event, 'Cart*')", True),
        # booleans and null
        ("properties.flag = true", True),
        ("properties.flag != true", False),
        ("properties.missing = true", False),
        ("properties.null = null", True),
        ("properties.missing = null", True),
        ("properties.n != null", True),
        ("properties.a\\ b = 1", True),
        # a condition that cannot be evaluated is false by itself
        ("properties.text > 4 or type = 'track'", True),
        ("type = 'track' or properties.text > 4", True),
        ("type = 'page' and properties.text > 4", False),
        # what the reference's own parser gets wrong
        ("type = 'track' or type = 'page' and event = 'x'", True),
        ("type = 'page' and event = 'x' or properties.flag = true", True),
        ("event in ['Order Completed', 'x']", True),
        ("match(event, '*Comp*')", True),
        ("lowercase(event) = 'order completed'", True),
    ],
)
def test_a_trigger_says(text: str, expected: bool) -> None:
    assert compile_trigger(text)(EVENT) is expected


@pytest.mark.parametrize("text", ["", "type =", "type = 'track' and", "upper(event) = 'X'"])
def test_a_trigger_that_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(FilterError):
        compile_trigger(text)
