"""Numbers keep their value from the client's bytes to what destinations get, however long they are."""

import json
import math
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from destinations.warehouse.inference import json_text, settle
from pipeline.delivery.batching import encoded
from pipeline.log import Batch, Record
from pipeline.parse import parse
from schemas.events import Event, Origin, Resolved, encode_event, materialize
from schemas.exact_json import LONGEST_INTEGER, json_dumps, json_loads

whole = st.integers() | st.integers(-(10**400), 10**400) | st.sampled_from([2**63, -(2**63) - 1, 2**64, 10**400])
floats = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | whole | floats | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def identify(traits: Any) -> Event:
    body = json.dumps({"type": "identify", "userId": "u", "traits": traits}).encode()
    return Event("web", "identify", "m", None, "u", 0, None, 0, "server", None, None, body)


def seen(event: Event) -> Any:
    return materialize(Resolved("p", Origin(0, 0), (), event))


@given(values)
@example([2**64 - 1, 2**64, -(2**63) - 1, 0.1, 1e300])
def test_what_is_written_is_read_as_it_was(value: Any) -> None:
    assert json_loads(json_dumps(value)) == value
    assert json_loads(json.dumps(value)) == value
    assert json_loads(json_dumps(value, sort_keys=True)) == value


@given(values)
def test_types_are_those_that_the_standard_library_reads(value: Any) -> None:
    assert repr(json_loads(json.dumps(value))) == repr(value)


@given(st.dictionaries(texts, whole, max_size=5))
def test_keys_are_sorted_whatever_the_numbers(value: dict[str, int]) -> None:
    assert list(json_loads(json_dumps(value, sort_keys=True))) == sorted(value, key=str.encode)


@given(st.dictionaries(texts, values, max_size=4))
def test_every_destination_gets_the_integers_of_an_event_digit_by_digit(traits: dict[str, Any]) -> None:
    event = seen(identify(traits))
    assert event["traits"] == traits
    assert json.loads(encoded(event).json)["traits"] == traits


@given(st.dictionaries(texts.filter(lambda name: "\0" not in name), values, max_size=4))
def test_profiles_get_them_too(traits: dict[str, Any]) -> None:
    record = Record(b"u", encode_event(identify(traits)), 0, 0)
    (parsed,) = parse([Batch("events", 0, [record], 1)]).events
    assert parsed.found.traits == traits


@given(st.lists(whole, min_size=1, max_size=6))
def test_a_warehouse_keeps_them_as_number_or_text(numbers: list[int]) -> None:
    """A column is bigint while all fit, double only while every one survives it, and text else."""
    column = settle(None, numbers)
    read: dict[str, Callable[[Any], int]] = {
        "bigint": int,
        "double": int,
        "text": lambda text: int(float(text)) if "e" in text else int(text),
    }
    assert column.type is not None
    assert [read[column.type](one) for one in column.values] == numbers
    assert json.loads(json_text(numbers)) == numbers


@pytest.mark.parametrize(("text", "value"), [("1e999", None), ("-1e999", None), ("1e400", None), ("1.5e3", 1500.0)])
def test_a_number_beyond_a_double_is_null_as_javascript_writes_it(text: str, value: float | None) -> None:
    assert json_loads(f'{{"a":{text},"b":{2**70}}}') == {"a": value, "b": 2**70}


def test_an_integer_that_python_does_not_convert_is_kept_as_text() -> None:
    digits = "-" + "7" * LONGEST_INTEGER
    assert json_loads(digits) == int(digits)
    assert json_dumps(int(digits)) == digits.encode()
    assert json_loads(digits + "7") == digits + "7"


@pytest.mark.parametrize("raw", [b"", b"{", b"[1,]", b"NaN", b"-Infinity", b"01", b"\xff", b"[" * 100_000, b'"\xff"'])
def test_what_is_no_json_is_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError):
        json_loads(raw)


def test_what_is_written_is_what_is_always_written() -> None:
    """An integer beyond 64 bits changes nothing for what stands beside it."""
    for value in ('é\u2028\x7f"\\/<\n', 1e-7, 5.0, 0.1, -0.0, True, None, math.pi):
        assert json_dumps([value, 2**70]) == orjson.dumps([value, 7])[:-2] + b"%d]" % 2**70
