"""`millrace filters test`: which events an expression of the filter language is true of, and why."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

from millrace.cli.common import config_option, data_option, json_option, print_json, say
from millrace.cli.events import given, recorded_since
from millrace.cli.moments import Moment
from millrace.cli.preflight import EventsBar

if TYPE_CHECKING:
    from pipeline.language.filters import Explanation

_WORDS: Final[Mapping[bool | None, str]] = {
    True: "pass",
    False: "do not pass",
    None: "do not pass, since the expression cannot be evaluated for them",
}


@click.group("filters")
def filters() -> None:
    """Expressions of the filter language."""


@filters.command("test")
@click.argument("expression")
@click.option(
    "--events", type=click.File(encoding="utf-8"), metavar="FILE", help="Events, a JSON object a line; -: stdin."
)
@click.option("--since", type=Moment(), help="Recorded events from then on: 15m, 1d, 2026-01-31. [1h]")
@click.option("--examples", type=click.IntRange(0), default=3, show_default=True, help="Shown of each answer.")
@config_option
@data_option
@json_option
def test(
    expression: str,
    events: TextIO | None,
    since: datetime | None,
    examples: int,
    config: str | None,
    data: str | None,
    as_json: bool,
) -> None:
    """Show which events an expression is true of, and why the others do not pass.

    Nothing is configured or sent. Quote the expression for your shell: "type = 'track' and properties.total > 5"."""
    from pipeline.language.filters import FilterError, explaining

    if events is not None and since is not None:
        raise click.UsageError("--events and --since exclude each other")
    try:
        explain = explaining(expression)
    except FilterError as error:
        say(f"millrace: {error}", err=True)
        say(f"  {' '.join(expression.splitlines())}\n  {' ' * error.place}^", err=True)
        raise SystemExit(2) from error
    found = _Found(examples)
    if events is not None:
        for event in given(events):
            found.add(event, explain(event))
    else:
        start = since or Moment().convert("1h", None, None)
        with EventsBar(quiet=as_json) as bar:
            _recorded(config, data, start, bar.advance, lambda event: found.add(event, explain(event)))
    if as_json:
        print_json({"expression": expression, **found.told()})
    else:
        found.print()


COMMANDS: Final = (filters,)


def _recorded(
    config: str | None,
    data: str | None,
    since: datetime,
    advance: Callable[[int, int], None],
    take: Callable[[dict[str, Any]], None],
) -> None:
    """Events as destinations get them."""
    from millrace import logs
    from schemas.events import materialize

    logs.configure("filters")
    recorded_since(config, data, since, advance, lambda resolved: take(materialize(resolved)))


class _Found:
    """Counts, and the first events of each answer."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._counts: Counter[bool | None] = Counter()
        self._kept: dict[bool | None, list[tuple[Mapping[str, Any], Explanation]]] = {True: [], False: [], None: []}

    def add(self, event: Mapping[str, Any], why: "Explanation") -> None:
        self._counts[why.said] += 1
        if len(self._kept[why.said]) < self._most:
            self._kept[why.said].append((event, why))

    def told(self) -> dict[str, Any]:
        return {
            "passes": self._counts[True],
            "fails": self._counts[False],
            "unevaluable": self._counts[None],
            "examples": [
                {
                    **{name: event.get(name) for name in ("type", "event", "messageId")},
                    "result": said,
                    "parts": [{"expression": part, "result": result} for part, result in why.parts],
                    "values": dict(why.values),
                }
                for said, kept in self._kept.items()
                for event, why in kept
            ],
        }

    def print(self) -> None:
        if not self._counts:
            say("no events; widen --since, or name a file with --events")
        for said, kept in self._kept.items():
            if self._counts[said]:
                say(f"{self._counts[said]:,} {_WORDS[said]}")
            for event, why in kept:
                _print_event(event, why)


def _print_event(event: Mapping[str, Any], why: "Explanation") -> None:
    names = (event.get(name) for name in ("type", "event", "messageId"))
    say("  " + " ".join(str(name) for name in names if name is not None))
    if why.said:
        return
    results = {True: "true", False: "false", None: "cannot be evaluated"}
    for part, result in why.parts:
        say(f"    {part}: {results[result]}")
    for path, value in why.values.items():
        say(f"    {path} is {_short(value)}")


def _short(value: Any, most: int = 80) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most else f"{text[:most]}…"
