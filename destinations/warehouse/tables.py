"""Puts the rows of a table together, pure: one column per name, its type settled, what has no room in the overflow."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import NoneType
from typing import Any

from destinations.warehouse.inference import Column, Type, settle, sorted_json, text_of
from destinations.warehouse.rows import OVERFLOW, TIME_COLUMNS, Rows

Stray = dict[int, dict[str, Any]]
"""Values that found no column: by index of the event, then by name."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows ready to be stored, column by column, aligned with `order` (the events' indexes in the batch).

    `columns` holds what is to be inserted besides `fixed`; `added` the columns to create first, in order; `widened` the
    columns to alter first, with the types on the way."""

    order: Sequence[int]
    fixed: Mapping[str, Sequence[Any]]
    columns: Mapping[str, Column]
    added: Sequence[tuple[str, Type]]
    widened: Sequence[tuple[str, Sequence[Type]]]
    odd: Mapping[str, str]


def order_of(rows: Rows) -> Sequence[int]:
    """The index of each row's event, as the rows stand in the table."""
    return (
        rows.chunks[0].order if len(rows.chunks) == 1 else list(chain.from_iterable(one.order for one in rows.chunks))
    )


def column_of(rows: Rows, name: str) -> Sequence[Any]:
    """All values of one column; None where an event has no such key."""
    if len(rows.chunks) == 1:
        return rows.chunks[0].columns.get(name) or (None,) * len(rows.chunks[0].order)
    values: list[Any] = []
    for one in rows.chunks:
        values += one.columns.get(name) or (None,) * len(one.order)
    return values


def text_column(rows: Rows, name: str) -> Sequence[str | None]:
    """A column that is text whatever comes."""
    values = column_of(rows, name)
    if set(map(type, values)) <= {str, NoneType}:
        return values
    return [None if value is None else text_of(value) for value in values]


def assemble(rows: Rows, known: Mapping[str, Type], exact: Callable[[str], bool], room: int, stray: Stray) -> Table:
    """Settles every column of `rows`.

    `known` are the columns that the table has, `exact(column)` whether doubles can hold all of an existing bigint column,
    `room` how many columns may still be added, `stray` what goes to the overflow column in any case."""
    order = order_of(rows)
    ranks: Callable[[], Sequence[int]] | None = None
    if len(rows.chunks) > 1:
        ranks = lambda: sorted(range(len(order)), key=order.__getitem__)  # noqa: E731  # three lines say no more
    skipped = {*rows.fixed, *TIME_COLUMNS, OVERFLOW}
    names = [
        name for name in dict.fromkeys(chain.from_iterable(one.columns for one in rows.chunks)) if name not in skipped
    ]
    overflow: Stray = {index: dict(values) for index, values in stray.items()}
    _gather(overflow, order, column_of(rows, OVERFLOW))
    values = {name: column_of(rows, name) for name in names}
    appeared = _by_appearance(rows, [name for name in names if name not in known])
    for _, _, name in appeared[room:]:
        _gather(overflow, order, values.pop(name), name)
    columns: dict[str, Column] = {}
    for name, given in values.items():
        column = settle(known.get(name), given, lambda name=name: exact(name), ranks)  # type: ignore[misc]  # default binds the loop's name
        if given.count(None) < len(given):
            columns[name] = column
    if overflow:
        texts = [sorted_json(overflow[index]) if index in overflow else None for index in order]
        columns[OVERFLOW] = Column("text", texts)
    appeared = appeared[:room]
    if overflow and OVERFLOW not in known:
        appeared.append((min(overflow), sys.maxsize, OVERFLOW))  # after the columns of its event
    return Table(
        order=order,
        fixed={name: text_column(rows, name) for name in rows.fixed},
        columns=columns,
        added=[(name, _typed(columns[name])) for _, _, name in sorted(appeared)],
        widened=[(name, column.steps) for name, column in columns.items() if column.steps],
        odd={name: path for one in rows.chunks for name, path in one.odd.items()},
    )


def _typed(column: Column) -> Type:
    assert column.type is not None  # it has a value, so it has a type
    return column.type


def _by_appearance(rows: Rows, names: Iterable[str]) -> list[tuple[int, int, str]]:
    """Those of `names` that have a value, in the order in which a reader of the stream meets them: the index of the
    event, the place in it, the name."""
    met: list[tuple[int, int, str]] = []
    for name in names:
        firsts = [
            (one.order[at], list(one.columns).index(name))
            for one in rows.chunks
            if (at := _first(one.columns.get(name, ()))) is not None
        ]
        if firsts:
            met.append((*min(firsts), name))
    return sorted(met)


def _first(values: Sequence[Any]) -> int | None:
    return next((at for at, value in enumerate(values) if value is not None), None)


def _gather(overflow: Stray, order: Sequence[int], values: Sequence[Any], name: str | None = None) -> None:
    """Notes values for the overflow column, under `name`, or as the objects that they are."""
    for index, value in zip(order, values, strict=True):
        if value is not None:
            overflow.setdefault(index, {}).update(value if name is None else {name: value})
