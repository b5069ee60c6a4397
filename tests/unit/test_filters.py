"""The filter language: the reference's vectors, what it leaves open, and expressions that are none."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.language.filters import Explanation, FilterError, compile_filter, explaining


def deep(levels: int) -> Any:
    return [deep(levels - 1)] if levels else []


EVENT: dict[str, Any] = {
    "type": "track",
    "event": "Cart Viewed",
    "userId": "u1",
    "properties": {
        "n": 3,
        "half": 0.5,
        "tags": ["a", "b"],
        "mixed": [1, "1", True, None],
        "ok": True,
        "off": False,
        "name x": "Z",
        "a.b": "dotted",
        "ü": "é!",
        "order_id": "o1",
        "in": "kept",
        "box": {"w": 1},
        "big": 2**70,
        "halves": ["\ud800"],
    },
    "context": {"lib": {"v": "1.4"}, "path": "/a*b?c[d]"},
}


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("all", True),
        (" all ", True),
        # Comparison
        ("event = 'Cart Viewed' and type = \"track\"", True),
        ("event = 'cart viewed'", False),
        ("event='Cart Viewed'", True),
        ("'track' = type", True),
        ("type != 'track'", False),
        ("properties.n > 2", True),
        ("properties.n >= 3", True),
        ("properties.n < 3", False),
        ("properties.n <= 3.0", True),
        ("properties.n = 3.0", True),
        ("properties.n = '3'", False),
        ("properties.n = true", False),
        ("properties.half > -1.5", True),
        ("properties.half < +1", True),
        ("properties.big > 1180591620717411303423", True),
        ("properties.big = 1180591620717411303424", True),
        ("properties.ok = 1", False),
        ("properties.tags = ['a', 'b']", True),
        ("properties.tags = ['b', 'a']", False),
        ("properties.box = properties.box", True),
        # null and what is missing
        ("properties.missing = null", True),
        ("properties.missing.deeper = null", True),
        ("event.deeper = null", True),
        ("properties.n != null", True),
        ("null = null", True),
        ("properties.missing > 1", False),
        ("!(properties.missing > 1)", True),
        ("properties.missing", False),
        ("!properties.missing", True),
        ("properties.missing or properties.ok", True),
        ("length(properties.missing) = 0", True),
        ("contains(properties.missing, 'a')", False),
        ("match(properties.missing, '*')", False),
        ("lowercase(properties.missing) = null", True),
        ("'a' in properties.missing", False),
        # Connectives
        ("properties.ok", True),
        ("properties.off", False),
        ("!properties.off", True),
        ("!properties.ok or properties.ok", True),
        ("properties.ok or properties.off and properties.off", True),
        ("(properties.ok or properties.off) and properties.off", False),
        ("!(properties.ok and properties.off)", True),
        ("! event = 'x'", True),
        # Membership
        ("'a' in properties.tags", True),
        ("'c' in properties.tags", False),
        ("type in ['identify','page']", False),
        ("type in ['identify', \"track\"]", True),
        ("properties.n in [1, 2, 3]", True),
        ("properties.n in ['3']", False),
        ("1 in properties.mixed", True),
        ("null in properties.mixed", True),
        ("false in properties.mixed", False),
        ("type in []", False),
        # Paths
        ("properties.name\\ x = 'Z'", True),
        ("properties.a\\.b = 'dotted'", True),
        ("properties.\\ü = 'é!'", True),
        ("properties.order_id = 'o1'", True),
        ("properties.in = 'kept'", True),
        ("properties\n.n = 3", None),
        ("properties.n\n=\t3", True),
        # Functions
        ("match(event, 'Cart *')", True),
        ("match(event, 'Cart')", False),
        ("match(event, 'cart *')", False),
        ("match(event, 'C??t [A-Z]*d')", True),
        ("match(event, '[^C]*')", False),
        ("match(event, '*')", True),
        ("match(event, '*a*t*V*d')", True),
        ("match(event, '')", False),
        ("match(context.path, '/a\\*b\\?c\\[d\\]')", True),
        ("match(event, event)", True),
        ("match(context.lib.v, '1.*') and !contains(userId, 'x')", True),
        ("contains(event, 'Cart')", True),
        ("length(properties.tags) = 2", True),
        ("length(properties.\\ü) = 3", True),
        ("lowercase(event) = 'cart viewed'", True),
        ("uppercase(event) = 'CART VIEWED'", True),
        ("snakecase(lowercase(event)) = 'cart_viewed'", True),
        ("kebabcase(event) = 'Cart-Viewed'", True),
        ("titlecase('two words') = 'Two Words'", True),
        ("typeof(properties.tags) = 'list'", True),
        ("typeof(properties.ok) = 'bool'", True),
        ("typeof(properties.n) = 'number'", True),
        ("typeof(properties.box) = 'object'", True),
        ("typeof(properties.missing) = 'null'", True),
        ("number('12.5') = 12.5", True),
        ("number(properties.n) = 3", True),
        ("string(properties.n) = '3'", True),
        ('string(properties.tags) = \'["a","b"]\'', True),
        ("bool('false')", False),
        ("bool('no')", True),
        ("bool(properties.missing)", False),
        ("bool(properties.tags)", True),
        # What cannot be evaluated does not pass, nor does its opposite
        ("event > 1", False),
        ("!(event > 1)", False),
        ("length(properties.box) = 0 or true", False),
        ("event", False),
        ("event or true", False),
        ("!event", False),
        ("contains(properties.tags, 'a')", False),
        ("'a' in event", False),
        ("number('x') = 1 or true", False),
        ("number(properties.missing) = 1 or true", False),
        ("string(properties.box) = '' or true", False),
        ("match(event, context.lib) or true", False),
        ("string(properties.halves) = '' or true", False),
    ],
)
def test_an_expression_passes_the_event_or_not(text: str, passes: bool | None) -> None:
    if passes is None:
        with pytest.raises(FilterError):
            compile_filter(text)
    else:
        assert compile_filter(text)(EVENT) is passes


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "expected a path, a value or a function, found the end (character 1)"),
        ("userId = oops\"", "a string has no end; close it with the quote that opens it (character 14)"),
        ("type = 'track' and", "expected a path, a value or a function, found the end (character 19)"),
        ("type = 'a' 'b'", "expected and, or, or the end, found 'b' (character 12)"),
        ("type == 'a'", "expected a path, a value or a function, found = (character 7)"),
        ("(type = 'a'", "expected ')', found the end (character 12)"),
        ("type in ['a'", "expected ',', found the end (character 13)"),
        ("type in [type]", "expected a value, found type (character 10)"),
        ("includes(type, 'a')", "unknown function includes; there are bool, contains, kebabcase, length, lowercase, match, "
         "number, snakecase, string, titlecase, typeof, uppercase (character 1)"),
        ("length()", "length takes 1 values, not 0 (character 1)"),
        ("match(event, '[a')", "a set in the pattern has no end or no members; write \\[ for the character itself (character 1)"),
        ("match(event, '[b-a]')", "the range b-a in the pattern is empty; write its ends the other way round (character 1)"),
        ("match(event, 'a\\')", "the pattern ends with a backslash; write \\\\ for the character itself (character 1)"),
        ("match(event, 5)", "match takes a pattern in quotes (character 1)"),
        ("properties.price€ > 1", "unexpected €; a path escapes it as \\€ (character 17)"),
        ("and = 1", "expected a path, a value or a function, found and (character 1)"),
        ("(" * 51 + "ok" + ")" * 51, "nested deeper than 50; write it flatter (character 52)"),
        ("a = " + "1" * 301, "a number of more than 300 characters (character 5)"),
        ("a" * 5_121, "the expression is longer than 5120 bytes; make it two filters (character 1)"),
    ],
)  # fmt: skip
def test_what_is_no_expression_is_refused_with_its_place(text: str, problem: str) -> None:
    with pytest.raises(FilterError) as raised:
        compile_filter(text)
    assert str(raised.value) == problem


def test_an_explanation_has_each_comparison_as_it_is_written_and_the_values_at_its_paths() -> None:
    explain = explaining(r"type = 'page' or !(properties.n >  2 and match( event, 'C*' )) or properties.name\ x")
    assert explain(EVENT) == Explanation(
        None,
        [
            ("type = 'page'", False),
            ("properties.n >  2", True),
            ("match( event, 'C*' )", True),
            (r"properties.name\ x", None),
        ],
        {"type": "track", "properties.n": 3, "event": "Cart Viewed", r"properties.name\ x": "Z"},
    )
    assert explaining("all")(EVENT) == Explanation(True, [], {})


@pytest.mark.parametrize("text", ["string(deep) = ''", "deep = deep", "deep in deep", "deep = []", "bool(deep)"])
def test_a_value_nested_a_thousand_deep_is_an_answer_and_no_error(text: str) -> None:
    assert compile_filter(text)({"deep": deep(950)}) in (True, False)


def test_a_pattern_of_many_stars_takes_no_time_for_a_long_text() -> None:
    passes = compile_filter("match(event, '*a*a*a*a*a*a*a*a*a*a*b')")
    assert passes({"event": "a" * 30_000}) is False  # with backtracking: longer than the universe has been


def test_a_pattern_that_an_event_holds_is_a_short_one() -> None:
    passes = compile_filter("match(text, pattern)")
    assert passes({"text": "aab", "pattern": "*" * 255 + "b"})
    assert not passes({"text": "aab", "pattern": "*" * 256 + "b"})


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
operands = st.recursive(
    st.sampled_from(["a", "a.b", "b.c", "c", "1", "-2.5", "'x'", "true", "null", "['x', 1, null]"]),
    lambda inner: st.builds("{}({})".format, st.sampled_from(["length", "lowercase", "typeof", "bool", "string", "number"]), inner)
    | st.builds("{}({}, {})".format, st.sampled_from(["contains", "match"]), inner, st.sampled_from(["'x'", "'*'", "'[a-c]?'"])),
    max_leaves=3,
)  # fmt: skip
expressions = st.recursive(
    operands | st.builds("{} {} {}".format, operands, st.sampled_from(["=", "!=", "<", "<=", ">", ">=", "in"]), operands),
    lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from(["and", "or"]), inner)
    | st.builds("!({})".format, inner),
    max_leaves=5,
)  # fmt: skip


@given(expressions, st.dictionaries(st.sampled_from("abc"), values))
def test_every_expression_answers_yes_or_no_for_every_event(text: str, event: dict[str, Any]) -> None:
    assert compile_filter(text)(event) in (True, False)


@given(st.text(max_size=30) | st.text("ab.()[]'\"=!<> and\\1", max_size=30))
def test_any_text_is_an_expression_or_refused(text: str) -> None:
    with suppress(FilterError):
        assert compile_filter(text)({}) in (True, False)


@given(expressions, st.dictionaries(st.sampled_from("abc"), values))
def test_an_expression_and_its_opposite_never_both_pass(text: str, event: dict[str, Any]) -> None:
    assert not (compile_filter(text)(event) and compile_filter(f"!({text})")(event))
