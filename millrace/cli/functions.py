"""`millrace functions`: which there are, and what one makes of events."""

import json
import sys
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

from millrace.cli.common import config_option, data_option, environment, json_option, print_json, say
from millrace.cli.events import given, recorded_since
from millrace.cli.moments import Moment
from millrace.cli.preflight import EventsBar

if TYPE_CHECKING:
    from millrace.function_trial import Role, Trial
    from schemas.events import Resolved

MOST: Final = 100_000  # recorded events of one trial: they are kept in memory


@click.group()
def functions() -> None:
    """Code of yours that events pass through."""


@functions.command("list")
@config_option
@data_option
@json_option
def list_functions(config: str | None, data: str | None, as_json: bool) -> None:
    """List the functions' files with their handlers and who uses them. Exit code 1 when one cannot be loaded."""
    import asyncio

    from millrace.function_trial import listed
    from millrace.settings import load_settings

    found = asyncio.run(listed(load_settings(environment(config=config, data=data), delivers=True)))
    if as_json:
        print_json(
            [
                {"name": one.name, "handlers": one.handlers, "used_by": one.used_by, "problem": one.problem}
                for one in found
            ]
        )
    elif not found:
        say("no functions")
    else:
        for one in found:
            used = f", used by {', '.join(one.used_by)}" if one.used_by else ", not used"
            say(f"{one.name}: {', '.join(one.handlers) or 'cannot be loaded'}{used}")
            if one.problem is not None:
                say(f"millrace: function {one.name}: {one.problem}; mend its file", err=True)
    if any(one.problem is not None for one in found):
        raise SystemExit(1)


@functions.command("test")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--events", type=click.File(encoding="utf-8"), metavar="FILE", help="Events, a JSON object a line; -: stdin."
)
@click.option("--since", type=Moment(), help="Recorded events from then on: 15m, 1d, 2026-01-31. [1h]")
@click.option(
    "--as", "role", type=click.Choice(("source", "insert", "destination")), help="[as it is used, else insert]"
)
@click.option("--network", is_flag=True, help="Let it reach the network. Without it, nothing can be sent.")
@click.option("--examples", type=click.IntRange(0), default=10, show_default=True, help="Shown of each result.")
@config_option
@data_option
@json_option
def test(
    file: Path,
    events: TextIO | None,
    since: datetime | None,
    role: "Role | None",
    network: bool,
    examples: int,
    config: str | None,
    data: str | None,
    as_json: bool,
) -> None:
    """Show what a function makes of events: the difference, event by event.

    It runs confined as in earnest; what it prints goes to stderr. With --json a line per event. Exit code 1 when it failed on one."""
    import asyncio

    from millrace import logs
    from millrace.function_trial import spec_for, tried
    from millrace.settings import load_settings

    if events is not None and since is not None:
        raise click.UsageError("--events and --since exclude each other")
    logs.configure("functions")
    settings = load_settings(environment(config=config, data=data), delivers=True)
    allow = [str(one) for one in settings.config.outbound.allow] if network else None
    spec = spec_for(file, role, settings, allow)
    tries = _from_file(events) if events is not None else _recorded(config, data, since, quiet=as_json)
    found = _Found(examples, as_json=as_json)
    asyncio.run(tried(spec, tries, _said, found.add))
    if not as_json:
        found.print()
    if found.counts["failed"]:
        raise SystemExit(1)


COMMANDS: Final = (functions,)


def _from_file(events: TextIO) -> "list[Resolved]":
    import time

    from millrace.function_trial import as_recorded
    from schemas.events import TYPES

    now = time.time_ns() // 1_000
    found = []
    for number, event in enumerate(given(events), 1):
        if event.get("type") not in TYPES:
            raise click.UsageError(f"{events.name}: event {number} has no type of {', '.join(TYPES)}")
        found.append(as_recorded(number, event, now))
    return found


def _recorded(config: str | None, data: str | None, since: datetime | None, *, quiet: bool) -> "list[Resolved]":
    found: list[Resolved] = []
    start = since or Moment().convert("1h", None, None)

    def take(resolved: "Resolved") -> None:
        if len(found) == MOST:
            raise click.ClickException(f"there are more than {MOST:,} events since then; choose a later --since")
        found.append(resolved)

    with EventsBar(quiet=quiet) as bar:
        recorded_since(config, data, start, bar.advance, take)
    return found


def _said(words: bytes) -> None:
    sys.stderr.write(words.decode(errors="replace"))


class _Found:
    """Counts, and shows the first of each result."""

    def __init__(self, examples: int, *, as_json: bool) -> None:
        self.counts: Counter[str] = Counter()
        self._kept: list[Trial] = []
        self._examples, self._json = examples, as_json

    def add(self, trial: "Trial") -> None:
        self.counts[trial.result] += 1
        if self._json:
            say(json.dumps(trial.told(), ensure_ascii=False, separators=(",", ":")))
        elif trial.result not in ("same", "handled") and self.counts[trial.result] <= self._examples:
            self._kept.append(trial)

    def print(self) -> None:
        for trial in self._kept:
            because = f": {trial.reason}{_remedy(trial.reason)}" if trial.reason else ""
            say(f"{trial.result} {trial.type} {trial.message_id}{because}")
            if trial.after:
                _print_difference([trial.before], trial.after)
        numbers = ", ".join(f"{count:,} {result}" for result, count in sorted(self.counts.items()))
        say(f"{sum(self.counts.values()):,} events" + (f": {numbers}" if numbers else ""))


def _print_difference(before: Any, after: Any) -> None:
    from millrace.difference import lines, print_lines

    print_lines(lines(before, after))


def _remedy(reason: str) -> str:
    from schemas.functions import FUNCTION_REMEDIES

    remedy = FUNCTION_REMEDIES.get(reason.partition(":")[0])
    return "" if remedy is None else f"\n  {remedy}"
