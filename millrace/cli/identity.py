"""`identity`: why a profile is what it is, taking profiles apart and together, what looks wrong, and whether all agrees."""

import sys
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

import click

from millrace.cli.common import (
    api_client,
    config_option,
    data_option,
    environment,
    json_option,
    print_json,
    say,
    url_option,
)
from millrace.cli.moments import Moment

dry_run_option = click.option("--dry-run", is_flag=True, help="Only show what would happen.")
SHOWN: Final = 1_000  # differences that `verify` prints


@click.group()
def identity() -> None:
    """Why a profile is what it is, and what mends it."""


@identity.command()
@click.argument("address", metavar="ID")
@click.option("--dot", "drawing", flag_value="dot", help="The graph as Graphviz DOT.")
@click.option("--svg", "drawing", flag_value="svg", help="The graph as a picture.")
@click.option("--all", "everything", is_flag=True, help="Every id and link, however many.")
@data_option
@url_option
@json_option
def explain(
    address: str, drawing: str | None, everything: bool, data: str | None, url: str | None, as_json: bool
) -> None:
    """Show why a profile is what it is.

    ID is one of its ids, such as user_id:u1 or email:ada@example.com, or a profile id. Every id, link, merge, split and refusal is
    shown with the event that did it."""
    from millrace.cli.identity_graph import dot, svg
    from millrace.cli.identity_text import explanation_text
    from millrace.client import NotFound
    from schemas.errors import ConfigError

    try:
        found = api_client(data, url).get(f"/api/identity/explain?id={quote(address, safe='')}")
    except NotFound as error:
        raise ConfigError(f"no profile has {address}; look at the ids of an event with `millrace tail`") from error
    if as_json:
        print_json(found)
    elif drawing is not None:
        say(dot(found) if drawing == "dot" else svg(found))
    else:
        _print(explanation_text(found, None if everything else 40))


@identity.command()
@click.argument("merge", required=False)
@click.option("--cut", nargs=2, metavar="ID ID", help="Two ids of one profile to take apart, as type:value.")
@dry_run_option
@data_option
@url_option
@json_option
def unmerge(
    merge: str | None, cut: tuple[str, str] | None, dry_run: bool, data: str | None, url: str | None, as_json: bool
) -> None:
    """Take a profile apart: undo a merge, or part two ids.

    MERGE is its id, as `millrace identity explain` shows it. Both profiles get what each would have had, the same evidence does not
    join them again, and destinations are told."""
    if (merge is None) == (cut is None):
        raise click.UsageError("name a merge, or two ids with --cut")
    asked: dict[str, Any] = {"merge": merge} if cut is None else {"cut": list(cut)}
    _split("unmerge", asked, dry_run, data, url, as_json)


@identity.command()
@click.argument("split")
@dry_run_option
@data_option
@url_option
@json_option
def remerge(split: str, dry_run: bool, data: str | None, url: str | None, as_json: bool) -> None:
    """Lift a split: its two profiles are one again, as before.

    SPLIT is its id, as `unmerge` printed it and `millrace identity explain` shows it."""
    _split("remerge", {"split": split}, dry_run, data, url, as_json)


@identity.command()
@click.option("--limit", type=click.IntRange(1, 500), default=50, show_default=True, help="How many at most.")
@data_option
@url_option
@json_option
def suspects(limit: int, data: str | None, url: str | None, as_json: bool) -> None:
    """List ids and profiles that look wrong.

    Shared devices, values that are no ids, profiles beyond the normal: the worst first, each with what mends it."""
    from millrace.cli.identity_text import suspects_text

    found = api_client(data, url).get(f"/api/identity/suspects?limit={limit}")
    if as_json:
        print_json(found)
    else:
        _print(suspects_text(found))


@identity.command()
@click.option("--repair", is_flag=True, help="Recombine profiles whose row is not what their ids make it.")
@config_option
@data_option
@json_option
def verify(repair: bool, config: str | None, data: str | None, as_json: bool) -> None:
    """Check that everything identity stores agrees with itself.

    Reads the database directly and may run at any time, beside a running Millrace. Exit 1 when something does not agree."""
    from millrace import wiring
    from millrace.cli.identity_verify import run
    from millrace.settings import load_settings

    settings = load_settings(environment(config=config, data=data), delivers=False)
    with wiring.open_database(settings) as database:
        wiring.usable(settings, database)
        found = run(database, repair=repair, most=SHOWN)
    if as_json:
        print_json(found)
    else:
        for one in found["differences"]:
            say(f"{one['subject']} {one['says']}" + (" (repaired)" if one["repaired"] else ""))
    left = found["found"] - found["repaired"]
    more = f", {found['repaired']:,} of them repaired" if found["repaired"] else ""
    said = f"{_differences(found['found'])}{more}" if found["found"] else "everything agrees"
    say(f"{found['rows']:,} rows looked at: {said}", err=as_json)
    if left:
        remedy = "" if repair else "; `--repair` recombines profiles from their ids"
        say(f"millrace: {_differences(left)}{remedy}", err=True)
        raise SystemExit(1)


@identity.command()
@click.option(
    "--rules",
    required=True,
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="A millrace.yaml; its identity section counts.",
)
@click.option(
    "--since", type=Moment(), help="Events from then on: 15m, 1d, 2026-01-31. All that the log holds when left out."
)
@click.option("--examples", type=click.IntRange(0, 100), default=3, show_default=True, help="Shown of each difference.")
@config_option
@data_option
@json_option
def simulate(
    rules: str, since: datetime | None, examples: int, config: str | None, data: str | None, as_json: bool
) -> None:
    """Try other rules on recorded events.

    The events go through the present rules and through the others, in scratch stores beside each other, and the profiles are
    compared; what people split by hand counts on neither side. Nothing is sent or changed, and Millrace may run meanwhile. Exit 0: the
    same profiles, 1: differences, 2: misused."""
    from millrace import wiring
    from millrace.cli.identity_simulate import report, report_text, run
    from millrace.settings import load_config, load_settings
    from schemas.errors import ConfigError

    try:
        settings = load_settings(environment(config=config, data=data), delivers=False)
        other = load_config(environment(config=rules, data=data), delivers=False).config.identity
        with wiring.open_database(settings) as database:
            wiring.usable(settings, database)
            found = report(run(settings, database, other, since, examples), settings.config.identity, other)
    except ConfigError as error:
        for fault in error.faults:
            say(f"millrace: {fault}", err=True)
        raise SystemExit(2) from error
    if as_json:
        print_json(found)
    else:
        _print(report_text(found))
    if found["differs"]:
        raise SystemExit(1)


@identity.command()
@config_option
@data_option
@json_option
def apply(config: str | None, data: str | None, as_json: bool) -> None:
    """Apply the rules in force to what was recorded before they were.

    Everybody becomes who they would be had the rules always been: profiles come apart, are joined, gain and lose ids, with their traits and
    events; `simulate` shows it beforehand. Events go on meanwhile. When it is stopped, run it again: it goes on where it stood.
    Whoever is deleted meanwhile leaves this work as well, and it goes on. Exit 1 when some profiles were changing all the while and are
    left."""
    from millrace import wiring
    from millrace.cli.identity_apply import report_text, run
    from millrace.settings import load_settings

    settings = load_settings(environment(config=config, data=data), delivers=False)
    with wiring.open_database(settings) as database:
        wiring.usable(settings, database)
        found = run(settings, database)
    if as_json:
        print_json(found)
    else:
        say(report_text(found))
    if found["left"]:
        raise SystemExit(1)


COMMANDS: Final = (identity,)


def _differences(count: int) -> str:
    return "1 difference" if count == 1 else f"{count:,} differences"


def _split(verb: str, asked: dict[str, Any], dry_run: bool, data: str | None, url: str | None, as_json: bool) -> None:
    from millrace.cli.identity_text import split_text

    done = api_client(data, url).post(f"/api/identity/{verb}", {**asked, "dry_run": dry_run})
    if as_json:
        print_json(done)
    else:
        _print(split_text(done))


def _print(text: Any) -> None:
    from rich.console import Console

    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(text)
