"""`preflight`: what a new configuration would send of recorded events, against the present one."""

import sys
from collections import Counter, defaultdict
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from millrace.cli.common import data_option, environment, json_option, print_json, say
from millrace.cli.moments import Moment
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.delivery.preflight import Difference, Tally


@click.command()
@click.option("--config", "new", required=True, metavar="FILE", help="The new millrace.yaml.")
@click.option("--against", metavar="FILE", help="The present one [MILLRACE_CONFIG; ./millrace.yaml if there]")
@click.option(
    "--since", type=Moment(), default="1d", show_default=True, help="Events from then on: 15m, 1d, 2026-01-31."
)
@click.option("--destination", "only", multiple=True, metavar="NAME", help="Only this destination; may be repeated.")
@click.option("--examples", type=click.IntRange(0), default=3, show_default=True, help="Shown of each kind of change.")
@data_option
@json_option
def preflight(
    new: str,
    against: str | None,
    since: datetime,
    only: tuple[str, ...],
    examples: int,
    data: str | None,
    as_json: bool,
) -> None:
    """Show what a new configuration would send differently.

    Recorded events go through both configurations, and the requests and rows are compared. Nothing is sent: requests end in this
    process, and functions have no network. Exit 0: the same, 1: differences, 2: misused."""
    import asyncio

    from millrace import logs, preflight
    from millrace.settings import load_settings

    logs.configure("preflight")
    try:
        before = load_settings(environment(config=against, data=data), delivers=True)
        after = load_settings(environment(config=new, data=data), delivers=True)
        wanted, same = preflight.pairs(before, after, only)
    except ConfigError as error:
        for fault in error.faults:
            say(f"millrace: {fault}", err=True)
        raise SystemExit(2) from error
    known = {*before.destinations, *after.destinations}
    if unknown := [name for name in only if name not in known]:
        raise click.UsageError(f"no destination is called {unknown[0]}; known: {', '.join(sorted(known)) or 'none'}")
    found = _Found(examples, preflight.secrets_of(before, after))
    with EventsBar(quiet=as_json) as progress:
        tallies = asyncio.run(preflight.run(before, since, wanted, found.differs, progress.advance))
    notes = {pair.name for pair in wanted if preflight.rewritten(pair, before, after)}
    report = {
        "since": since.isoformat(),
        "same": not notes and not any(one.changes for one in tallies.values()),
        "destinations": {name: _told(tallies[name], name in notes, found.kept[name]) for name in tallies}
        | {name: {"state": "same configuration"} for name in same},
    }
    if as_json:
        print_json(report)
    else:
        _print(report)
    if not report["same"]:
        raise SystemExit(1)


COMMANDS: Final = (preflight,)


class _Found:
    """Keeps the first differences of each kind."""

    def __init__(self, examples: int, secrets: list[str]) -> None:
        self.kept: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self._most, self._secrets = examples, secrets
        self._seen: Counter[tuple[str, str]] = Counter()

    def differs(self, one: "Difference") -> None:
        from millrace.preflight import told

        kind = (one.destination, one.change)
        self._seen[kind] += 1
        if self._seen[kind] <= self._most:
            self.kept[one.destination].append(told(one, self._secrets))


def _told(tally: "Tally", rewritten: bool, examples: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "state": "compared",
        "events": tally.events,
        "same": tally.same,
        **{change: tally.changes[change] for change in ("added", "removed", "changed")},
        "code_changed": rewritten,
        "not_sent": {"before": dict(tally.before.most_common()), "after": dict(tally.after.most_common())},
        "examples": examples,
    }


def _print(report: dict[str, Any]) -> None:
    from millrace.difference import lines, print_lines

    for name, one in report["destinations"].items():
        if one["state"] != "compared":
            say(f"{name}: {one['state']}")
            continue
        numbers = ", ".join(f"{one[kind]:,} {kind}" for kind in ("same", "added", "removed", "changed"))
        say(f"{name}: {one['events']:,} events, {numbers}")
        if one["code_changed"]:
            say("  its code changed; see what that does with `millrace functions test`")
        for when, reasons in one["not_sent"].items():
            if reasons:
                say(f"  not sent {when}: " + ", ".join(f"{reason} {n:,}" for reason, n in reasons.items()))
        for example in one["examples"]:
            reason = example["before"]["reason"] or example["after"]["reason"]
            because = "" if reason is None else f" ({reason})"
            say(f"  {example['change']} {example['type']} {example['messageId']}{because}")
            print_lines(lines(example["before"]["sends"], example["after"]["sends"]))
    say("the same" if report["same"] else "differences")


class EventsBar:
    """A bar on a terminal, nothing elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("events"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        hidden = quiet or not sys.stderr.isatty()
        self._bar = Progress(*columns, console=Console(stderr=True), disable=hidden, transient=True)
        self._task = self._bar.add_task("events", total=None)

    def advance(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)

    def __enter__(self) -> "EventsBar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
