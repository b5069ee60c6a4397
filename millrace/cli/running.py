"""`up`, `collect`, `process`, `deliver`: what runs until it is stopped."""

import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from millrace.cli.common import config_option, data_option, environment, listen_options, say

if TYPE_CHECKING:
    from millrace.settings import Settings

supervisor_option = click.option("--supervisor-fd", type=int, hidden=True)


def _shared(option: str, meaning: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The option that says how many processes share a role's work."""
    return click.option(option, type=click.IntRange(1, 64), help=meaning)


@click.command()
@config_option
@data_option
@listen_options
@click.option("--single-process", is_flag=True, help="All roles in one process, for debugging.")
@_shared("--processors", "Processes of the pipeline; they share the work. [1]")
@_shared("--deliverers", "Processes that deliver; they share the work. [as many as cores beyond two, at most 4]")
def up(
    config: str | None,
    data: str | None,
    host: str | None,
    port: int | None,
    single_process: bool,
    processors: int | None,
    deliverers: int | None,
) -> None:
    """Start everything on this machine."""
    from millrace.roles import run_up

    asked = {"process": processors, "deliver": deliverers}
    processes = {role: count for role, count in asked.items() if count is not None}
    if single_process and processes:
        raise click.UsageError(
            "--single-process leaves no room for --processors and --deliverers; leave them or it out"
        )
    run_up(
        environment(config=config, data=data, host=host, port=port),
        single_process=single_process,
        processes=processes,
        announce=lambda settings, address: say(banner(settings, address)),
    )


@click.command()
@config_option
@data_option
@listen_options
@click.option("--listen-fd", type=int, hidden=True)
@supervisor_option
def collect(
    config: str | None,
    data: str | None,
    host: str | None,
    port: int | None,
    listen_fd: int | None,
    supervisor_fd: int | None,
) -> None:
    """Run the collector alone: HTTP in, log out.

    It also answers the profile and management APIs. Several may share a port of one machine with MILLRACE_REUSE_PORT=1."""
    from millrace.roles import run_collect

    run_collect(environment(config=config, data=data, host=host, port=port), listen_fd, supervisor_fd)


@click.command()
@config_option
@data_option
@supervisor_option
def process(config: str | None, data: str | None, supervisor_fd: int | None) -> None:
    """Run the pipeline alone: events in, profiles out."""
    from millrace.roles import run_process

    run_process(environment(config=config, data=data), supervisor_fd)


@click.command()
@config_option
@data_option
@click.option("--further", is_flag=True, hidden=True)
@supervisor_option
def deliver(config: str | None, data: str | None, further: bool, supervisor_fd: int | None) -> None:
    """Run the delivery alone: events to destinations. Several share the work."""
    from millrace.roles import run_deliver

    run_deliver(environment(config=config, data=data), supervisor_fd, first=not further)


COMMANDS: Final = (up, collect, process, deliver)


# ── What `up` says once it runs ───────────────────────────────────────────────────────────────────────────────────


def banner(settings: "Settings", address: str) -> str:
    """Address, write keys, and lines to paste."""
    keys = {name: source.write_key.get_secret_value() for name, source in settings.sources.items()}
    first = next(iter(keys.values()))
    folder = _shown(settings.environment.data)
    millrace = _program()
    there = "" if folder == "data" else f" --data {shlex.quote(folder)}"
    facts = [("address", address)]
    facts += [("write key", key if len(keys) == 1 else f"{key}  ({name})") for name, key in keys.items()]
    facts += [("data", folder)]
    lines = ["", "Millrace runs.", ""]
    lines += [f"  {name:<10} {value}" for name, value in facts]
    lines += ["", "Send an event:", "", f"  {curl(address, first)}", "", "See it:", ""]
    lines += [f"  {millrace} tail{there}", f"  {millrace} profile user_id:u1{there}", *_warehouse_lines(settings)]
    lines += ["", f"A demo stream: {millrace} send{there}", "Stop: Ctrl-C", ""]
    return "\n".join(lines)


def curl(address: str, write_key: str) -> str:
    """A track call, ready to paste."""
    body = '{"userId":"u1","event":"Signed Up","properties":{"plan":"free"}}'
    return f"curl -sS {shlex.quote(f'{address}/v1/track')} -u {shlex.quote(write_key + ':')} -H 'Content-Type: application/json' -d '{body}'"


def _warehouse_lines(settings: "Settings") -> list[str]:
    """A line of Python per DuckDB file that shows what the first source has tracked."""
    from destinations.warehouse.naming import schema_name

    schema = schema_name(next(iter(settings.sources)))
    select = f'select event_text, user_id, profile_id, received_at from "{schema}".tracks'
    lines = []
    for name, config in settings.destinations.items():
        if config.type == "duckdb":
            file = _shown(settings.environment.data / settings.destination_settings[name].path)
            query = f"import duckdb; duckdb.connect({file!r}, read_only=True).sql('{select}').show()"
            lines.append(f"  {_shown(Path(sys.executable))} -c {_quoted(query)}")
    return lines


def _quoted(text: str) -> str:
    """For a shell; in double quotes where these do, since the text is full of single ones."""
    return shlex.quote(text) if set("$`\\!") & set(text) else '"' + text.replace('"', '\\"') + '"'


def _program() -> str:
    beside = Path(sys.executable).with_name("millrace")
    on_path = shutil.which("millrace")
    if on_path is not None and Path(on_path) == beside:
        return "millrace"
    return shlex.quote(_shown(beside)) if beside.exists() else f"{shlex.quote(sys.executable)} -m millrace"


def _shown(path: Path) -> str:
    """A path as a person would write it here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
