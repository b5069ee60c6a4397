"""The latest state of users and accounts, pure: per column the newest value wins, whatever order events come in.

An event's clock is (timestamp, received_at, message id). A row keeps the clock of each of its columns, so that a late
event can fill what is missing and cannot undo what is newer.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import orjson

Clock = tuple[int, int, str]
"""Timestamp and received_at in UTC microseconds, and the message id."""


class Change(NamedTuple):
    """An entity's new state: for each column that changes, the row whose value it takes; and all of its clocks."""

    entity: str
    rows: Mapping[str, int]
    clocks: Mapping[str, Clock]


def fold(rows: Iterable[tuple[str, Clock, Sequence[str]]], known: Mapping[str, Mapping[str, Clock]]) -> list[Change]:
    """What `rows` (entity, clock, columns they supply) change about the `known` clocks, in order of appearance."""
    states: dict[str, tuple[dict[str, int], dict[str, Clock]]] = {}
    for at, (entity, clock, columns) in enumerate(rows):
        state = states.get(entity)
        if state is None:
            state = states[entity] = ({}, dict(known.get(entity, {})))
        winners, clocks = state
        for column in columns:
            before = clocks.get(column)
            if before is None or clock > before:
                clocks[column] = clock
                winners[column] = at
    return [Change(entity, winners, clocks) for entity, (winners, clocks) in states.items() if winners]


def encode_clocks(clocks: Mapping[str, Clock]) -> str:
    """JSON: for each clock, newest first, [timestamp, received_at, message id, column, …]."""
    columns: dict[Clock, list[str]] = {}
    for column, clock in clocks.items():
        columns.setdefault(clock, []).append(column)
    return orjson.dumps([[*clock, *sorted(columns[clock])] for clock in sorted(columns, reverse=True)]).decode()


def decode_clocks(text: str) -> dict[str, Clock]:
    """Reads what `encode_clocks` wrote."""
    return {
        column: (timestamp, received_at, message_id)
        for timestamp, received_at, message_id, *columns in orjson.loads(text)
        for column in columns
    }
