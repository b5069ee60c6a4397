"""`millrace destinations`: the kinds there are, whether those configured answer, and how their deliveries go."""

import json
import sys
from contextlib import suppress
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
from millrace.environment import Environment


@click.group(invoke_without_command=True)
@click.pass_context
def destinations(context: click.Context) -> None:
    """The kinds of destinations there are, and how those configured fare."""
    if context.invoked_subcommand is None:
        context.invoke(list_destinations, as_json=False)


@destinations.command("list")
@json_option
def list_destinations(as_json: bool) -> None:
    """List the kinds with what they do."""
    from destinations.registry import definitions

    found = definitions().values()
    if as_json:
        print_json([{"name": one.name, "description": one.description} for one in found])
        return
    width = max((len(one.name) for one in found), default=0)
    for one in found:
        say(f"{one.name:<{width}}  {one.description}")


@destinations.command()
@click.argument("name")
@config_option
@json_option
def describe(name: str, config: str | None, as_json: bool) -> None:
    """What a kind is and takes: settings, mappings, presets, limits. NAME is a kind, or a destination as millrace.yaml calls it."""
    from destinations.described import described
    from destinations.registry import definition, definitions

    kind = name if name in definitions() else _kind_of(name, environment(config=config, data=None)) or name
    found = described(definition(kind))
    if as_json:
        print_json(found)
    else:
        _print_described(found)


destinations.add_command(describe, "show")


@destinations.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@config_option
@data_option
@json_option
def check(names: tuple[str, ...], config: str | None, data: str | None, as_json: bool) -> None:
    """Ask configured destinations whether they can be reached and know us; without names, all.

    Nothing is sent or written. Exit code 1 when one fails."""
    from millrace.checks import check_all
    from millrace.settings import load_settings
    from schemas.errors import ConfigError

    settings = load_settings(environment(config=config, data=data), delivers=True)
    if unknown := [name for name in names if name not in settings.destinations]:
        known = ", ".join(settings.destinations) or "none"
        raise ConfigError(f"no destination is called {unknown[0]}; configured: {known}")
    findings = check_all(settings, names)
    if as_json:
        print_json([{"name": name, "type": kind, "problem": problem} for name, kind, problem in findings])
    else:
        for name, kind, problem in findings:
            say(f"destination {name} ({kind}) {'answers' if problem is None else 'fails'}")
            if problem is not None:
                say(f"millrace: destination {name}: {problem}", err=True)
    if any(problem is not None for _, _, problem in findings):
        raise SystemExit(1)


@destinations.command()
@click.argument("name", required=False)
@click.option(
    "--since", type=Moment(), default="1h", show_default=True, help="Attempts from then on: 15m, 1d, 2026-01-31."
)
@data_option
@url_option
@json_option
def status(name: str | None, since: datetime, data: str | None, url: str | None, as_json: bool) -> None:
    """How deliveries go: attempts, success rate, latency, what waits, errors with what to do.

    The lag is what stands on the log before a destination, of all sources and filters: `millrace balance` has the events that are pending.
    With a name also an example of each error; secrets and values are struck out of it."""
    from millrace.client import NotFound
    from schemas.errors import ConfigError

    path = "/api/destinations" + ("" if name is None else f"/{quote(name, safe='')}")
    try:
        found = api_client(data, url).get(f"{path}?since={quote(since.isoformat(), safe='')}")
    except NotFound as error:
        raise ConfigError(f"no destination is called {name}; `millrace destinations status` names all") from error
    if as_json:
        print_json(found)
    elif not found["destinations"]:
        say("no destination is configured")
    else:
        _print_table(found["destinations"])
        for one in found["destinations"]:
            _print_errors(one, examples=name is not None)


COMMANDS: Final = (destinations,)


def _kind_of(name: str, asked: Environment) -> str | None:
    """The kind of a configured destination. A configuration that has faults names none: `check` is for those."""
    from millrace.settings import load_config
    from schemas.errors import ConfigError

    with suppress(ConfigError):
        found = (load_config(asked, delivers=False).config.destinations or {}).get(name)
        return None if found is None else found.type
    return None


# ── Words ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _print_described(found: dict[str, Any]) -> None:
    say(f"{found['name']}: {found['description']}")
    say(f"people are forgotten there: {'yes' if found['forgets_people'] else 'no'}")
    for one in found["settings"]:
        say(f"setting {one['name']} ({_traits(one)}): {one['description']}")
    rate = found["limits"]["events_per_second"]
    say(
        f"limits, unless the configuration has others: {f'{rate:g} events per second' if rate else 'as many events as it takes'}, "
        f"tried again for {found['limits']['retry_hours']:g} hours"
    )
    for action in found["actions"]:
        together = "" if action["several_of_one_profile"] else ", one per profile"
        say(
            f"action {action['name']} ({', '.join(action['types'])}): {action['takes']}, at most {action['max_batch']:,} in a "
            f"batch{_of_bytes(action['max_bytes'])}{together}, {action['concurrency']} batches at once"
            + (f", sync_mode {' or '.join(action['sync_modes'])}" if action["sync_modes"] else "")
        )
        for one in action["fields"]:
            mapped = json.dumps(one["mapped"], ensure_ascii=False)
            say(f"  field {one['name']} ({_traits(one)}; by default {mapped}): {one['description']}")
    for preset in found["presets"]:
        on = "on by default" if preset["on"] else "off by default"
        say(f"preset {preset['name']} ({on}): {preset['action']} when {preset['trigger']}")
        if preset["mapping"] is not None:
            say(f"  mapping {json.dumps(preset['mapping'], ensure_ascii=False)}")


def _of_bytes(most: int | None) -> str:
    return "" if most is None else f" of at most {most:,} bytes"


def _traits(one: dict[str, Any]) -> str:
    default = "required" if one["required"] else f"default {_default(one['default'])}"
    bounds = [f"{_BOUNDS[name]} {value}" for name, value in one["bounds"].items()]
    return ", ".join([one["type"], default, *bounds, *(["secret"] if one["secret"] else [])])


_BOUNDS: Final = {
    "minimum": "from",
    "exclusiveMinimum": "above",
    "maximum": "to",
    "exclusiveMaximum": "below",
    "maxLength": "at most as long as",
    "enum": "one of",
}


def _default(value: Any) -> str:
    return "empty" if value in (None, [], {}, "") else json.dumps(value, ensure_ascii=False)


def _print_table(found: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("destination", "state"):
        table.add_column(column, no_wrap=True)
    for column in ("attempts", "success", "p50", "p95", "p99", "waiting", "oldest", "lag (records)"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in found:
        rate = "–" if one["success_rate"] is None else f"{one['success_rate']:.2%}"
        latency = (_seconds(one["latency"][name]) for name in ("p50", "p95", "p99"))
        waiting = f"{sum(one['waiting'].values()):,}"
        table.add_row(
            one["name"], one["state"], f"{one['attempts']:,}", rate, *latency, waiting, _age(one["oldest_at"]), f"{one['lag']:,}"
        )  # fmt: skip
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)


def _print_errors(one: dict[str, Any], *, examples: bool) -> None:
    if one["reason"]:
        say(f"{one['name']} is {one['state']}: {one['reason']}")
    for error in one["errors"]:
        said = f": {error['message']}" if error["message"] else ""
        say(f"{one['name']}: {error['count']:,} × {error['code']}{said}\n  {error['remedy']}")
        if examples and error["message_id"] is not None:
            say(f"  {error['message_id']} at {error['at']}")
            for part in ("request", "answer"):
                if error[part] is not None:
                    say(f"  {part} {error[part]}")


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    if value < 1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.1f} s" if value < 100 else f"{value / 60:.0f} min"


def _age(at: str | None) -> str:
    from datetime import UTC

    return "–" if at is None else _seconds((datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds())
