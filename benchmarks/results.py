"""How a benchmark says what it found: a table for people, JSON for machines."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import orjson
from rich.console import Console
from rich.table import Table


class Result(TypedDict):
    """One figure. `floor` is what the machine gave in the same run for the unavoidable part; `ratio` is value / floor."""

    name: str
    value: float
    unit: str
    floor: float | None
    ratio: float | None


def result(name: str, value: float, unit: str, *, floor: float | None = None) -> Result:
    """A figure, with its ratio when there is a floor."""
    return Result(name=name, value=value, unit=unit, floor=floor, ratio=None if not floor else value / floor)


def finish(title: str, results: Sequence[Result], json: Path | None) -> list[Result]:
    """Prints the table, writes the JSON when asked, and hands the results on."""
    table = Table(title=title)
    for column in ("figure", "value", "unit", "floor", "ratio"):
        table.add_column(column, justify="left" if column in ("figure", "unit") else "right")
    for one in results:
        floor, ratio = one["floor"], one["ratio"]
        table.add_row(
            one["name"],
            _number(one["value"]),
            one["unit"],
            "" if floor is None else _number(floor),
            "" if ratio is None else f"{ratio:.2f}",
        )
    Console(width=120).print(table)
    if json is not None:
        json.write_bytes(orjson.dumps(list(results), option=orjson.OPT_INDENT_2))
    return list(results)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
