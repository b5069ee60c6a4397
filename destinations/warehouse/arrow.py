"""Columns as Arrow arrays. Arrow is imported when first used: listing destinations does without it."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from types import NoneType
from typing import Any, Final

from destinations.warehouse.inference import Type, parse_timestamp

Array = Any
"""A `pyarrow.Array`."""


def array_of(kind: Type, values: Sequence[Any]) -> Array:
    """Stored values of a column (see `inference`) as an array; timestamps are UTC without a zone."""
    import pyarrow as pa

    types: Final[Mapping[Type, Any]] = {
        "boolean": pa.bool_(),
        "bigint": pa.int64(),
        "double": pa.float64(),
        "timestamp": pa.timestamp("us"),
        "text": pa.string(),
    }
    return pa.array(values, types[kind])


def times_of(values: Sequence[Any]) -> tuple[Array, dict[int, Any]]:
    """ISO 8601 strings as an array of UTC timestamps, and by row what is none (null in the array)."""
    import pyarrow as pa

    if set(map(type, values)) <= {str, NoneType}:
        try:
            return pa.array(values, pa.string()).cast(pa.timestamp("us", tz="UTC")).cast(pa.timestamp("us")), {}
        except pa.ArrowInvalid:  # another form of ISO 8601, or none: look at each
            pass
    parsed = [_moment(value) for value in values]
    stray = {
        row: value
        for row, (value, micros) in enumerate(zip(values, parsed, strict=True))
        if value is not None and micros is None
    }
    return pa.array(parsed, pa.int64()).cast(pa.timestamp("us")), stray


def _moment(value: Any) -> int | None:
    """UTC microseconds of a client's timestamp; a plain date is its midnight."""
    if type(value) is not str:
        return None
    if len(value) == 10:
        try:
            datetime.strptime(value, "%Y-%m-%d")  # only asks whether it is a date
        except ValueError:
            return None
        return parse_timestamp(f"{value}T00:00:00Z")
    return parse_timestamp(value)
