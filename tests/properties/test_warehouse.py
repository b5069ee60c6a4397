"""Laws of the warehouse, each on a real DuckDB file."""

import json
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import duckdb
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from destinations.contract import DELIVERED, Env
from destinations.warehouse.duckdb.destination import connect, load_events
from destinations.warehouse.duckdb.load import WIDENINGS
from destinations.warehouse.duckdb.settings import DuckDBSettings
from destinations.warehouse.inference import _CONVERSIONS, settle, text_of

NOW = 1767225600.0
Event = dict[str, Any]
Content = dict[str, tuple[list[tuple[str, str]], list[str]]]

slow = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

numbers = st.one_of(
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.integers(-3, 3),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([5.0, 5.5, -0.0, 1e15, 1e16, 1e22, 2.0**53, 2**53 + 1, 2**63, -(2**63), 1e-7]),
)
texts = st.sampled_from(
    [
        "n/a",
        "",
        "5",
        "05",
        "5.5",
        "5.0",
        "true",
        "1e3",
        "9223372036854775808",
        "2026-01-01T00:00:00Z",
        "2026-01-01T02:00:00.123456789+02:00",
        "2025-13-40T00:00:00Z",
        "2026-01-01",
        "0001-01-01T00:00:00Z",
        "ä🛒",
    ]
)
leaves = st.one_of(st.none(), st.booleans(), numbers, texts, st.lists(st.integers(0, 3), max_size=2))
keys = st.sampled_from(["a", "A", "b", "a_b", "orderID", "userId", "购买", "context_ip", "name", "order", "x y"])
objects = st.dictionaries(keys, st.one_of(leaves, st.dictionaries(keys, leaves, max_size=2)), max_size=4)


def event(kind: str, number: int, at: int, body: Event, context: Event, user: str | None, name: str) -> Event:
    moment = f"2026-01-01T00:00:{at:02}.000Z"
    common = {"type": kind, "messageId": f"m{number}", "source": "shop", "profileId": "p", "anonymousId": "a"}
    times = {"timestamp": moment, "receivedAt": f"2026-01-01T00:00:{number % 60:02}.500Z", "originalTimestamp": moment}
    field = "traits" if kind in ("identify", "group", "alias") else "properties"
    special = {"track": {"event": name}, "page": {"name": name}, "group": {"groupId": name}}.get(kind, {})
    return common | times | special | {"userId": user, "context": context, field: body}


@st.composite
def streams(
    draw: st.DrawFn, kinds: Sequence[str] = ("track", "identify", "page", "group"), size: int = 12
) -> list[Event]:
    count = draw(st.integers(1, size))
    return [
        event(
            draw(st.sampled_from(kinds)),
            number,
            draw(st.integers(0, 5)),
            draw(objects),
            draw(objects),
            draw(st.sampled_from(["u1", "u2", None])),
            draw(st.sampled_from(["Order Completed", "order_completed", "Users", "🛒"])),
        )
        for number in range(count)
    ]


async def loaded(batches: Iterable[Sequence[Event]], **more: Any) -> Content:
    """Everything that is in the warehouse after these batches: columns with types in order, and rows."""
    with TemporaryDirectory() as folder:
        env = Env(http=cast(Any, None), now=lambda: NOW, folder=folder)
        async with connect(DuckDBSettings.model_validate(more), env) as warehouse:
            for batch in batches:
                if batch:
                    assert await load_events(warehouse, batch) == [DELIVERED] * len(batch)
        with duckdb.connect(str(Path(folder) / "warehouse.duckdb")) as con:
            return content(con)


def content(con: duckdb.DuckDBPyConnection) -> Content:
    tables = con.execute("SELECT table_name FROM duckdb_tables() WHERE NOT internal ORDER BY ALL").fetchall()
    found: Content = {}
    for (name,) in tables:
        columns = [(one[0], one[1]) for one in con.execute(f'DESCRIBE shop."{name}"').fetchall()]
        rows = con.execute(f'SELECT * FROM shop."{name}"').fetchall()
        named = [sorted(zip([column for column, _ in columns], row, strict=True)) for row in rows]
        found[name] = (columns, sorted(map(repr, named)))
    return found


def cut(stream: Sequence[Event], places: Iterable[int]) -> list[Sequence[Event]]:
    edges = [0, *sorted({place % len(stream) for place in places}), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


@slow
@given(streams(), st.lists(st.integers(0, 100), max_size=6))
async def test_a_stream_gives_the_same_tables_however_it_is_cut(stream: list[Event], places: list[int]) -> None:
    assert await loaded(cut(stream, places)) == await loaded([stream])


@slow
@given(streams(), st.lists(st.integers(0, 100), max_size=3))
async def test_the_same_holds_when_columns_and_tables_run_out(stream: list[Event], places: list[int]) -> None:
    limits = {"max_columns": 2, "max_tables": 1}
    assert await loaded(cut(stream, places), **limits) == await loaded([stream], **limits)


@slow
@given(streams(), st.lists(st.integers(0, 100), max_size=4), st.data())
async def test_whatever_is_repeated_counts_once(stream: list[Event], places: list[int], data: st.DataObject) -> None:
    batches = cut(stream, places)
    repeats = data.draw(st.lists(st.sampled_from(stream), max_size=6))
    assert await loaded([*batches, repeats, stream + stream]) == await loaded(batches)


@slow
@given(streams(kinds=("identify", "group"), size=8), st.randoms(use_true_random=False))
async def test_the_latest_state_does_not_depend_on_the_order_of_arrival(stream: list[Event], random: Any) -> None:
    late = list(stream)
    random.shuffle(late)
    states = []
    for arrival in (stream, late):
        tables = await loaded([[one | {name: texted(one[name]) for name in ("traits", "context")}] for one in arrival])
        states.append(
            {name: (sorted(columns), rows) for name, (columns, rows) in tables.items() if name in ("users", "accounts")}
        )
    assert states[0] == states[1]


def texted(traits: Event) -> Event:
    """Traits whose types cannot depend on which came first: short texts and nulls."""
    return {
        name: None if value is None or isinstance(value, dict) else f"v{json.dumps(value)}"
        for name, value in traits.items()
    }


@given(st.one_of(st.none(), st.sampled_from(["boolean", "bigint", "double", "timestamp", "text"])), st.lists(leaves))
def test_a_column_holds_every_value_that_is_not_null(known: Any, values: list[Any]) -> None:
    column = settle(known, values)
    assert [one is None for one in column.values] == [one is None for one in values]


@given(st.lists(leaves))
def test_a_text_column_keeps_the_text_of_every_value(values: list[Any]) -> None:
    assert settle("text", values).values == [None if one is None else text_of(one) for one in values]


@settings(max_examples=300, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
@example(1e15)
@example(1e16)
@example(-1e15)
@example(123456789012345680.0)
@example(5e-324)
@example(1e-5)
@example(0.0001)
def test_doubles_widen_to_one_text_in_python_and_in_the_database(number: float) -> None:
    assert widened("double", "text", number) == _CONVERSIONS["double", "text"](number)


@given(st.integers(-62135596800_000000, 253402300799_999999))
def test_timestamps_widen_to_one_text_in_python_and_in_the_database(micros: int) -> None:
    expression = WIDENINGS["timestamp", "text"].format("make_timestamp(?)")
    found = duckdb.execute(f"SELECT {expression}", [micros]).fetchall()[0][0]
    assert found == _CONVERSIONS["timestamp", "text"](micros)


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_integers_widen_to_one_text_and_one_double(number: int) -> None:
    assert widened("bigint", "text", number) == _CONVERSIONS["bigint", "text"](number)
    assert math.isclose(widened("bigint", "double", number), _CONVERSIONS["bigint", "double"](number), rel_tol=0)


def widened(kind: str, wider: str, value: Any) -> Any:
    given_type = {"double": "DOUBLE", "bigint": "BIGINT"}[kind]
    expression = WIDENINGS[kind, wider].format(f"CAST(? AS {given_type})")
    marks = expression.count("?")
    return duckdb.execute(f"SELECT {expression}", [value] * marks).fetchall()[0][0]
