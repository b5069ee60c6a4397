"""`millrace replay`: recorded events, sent to one destination again."""

import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

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

if TYPE_CHECKING:
    from millrace.client import Client

_LOOK: Final = 0.5  # seconds between looks at a replay
_RATE: Final = re.compile(r"(\d+(?:\.\d+)?)(?:/([smh]))?")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600}


class Rate(click.ParamType[float]):
    """Events a second: `500`, `500/s`, `1000/m`, `100/h`."""

    name = "rate"

    def convert(self, value: object, parameter: click.Parameter | None, context: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = _RATE.fullmatch(str(value))
        if found is None or float(found[1]) == 0:
            self.fail(f"{value!r} is no rate; write 500/s, 1000/m or 100/h", parameter, context)
        return float(found[1]) / _SECONDS[found[2] or "s"]


@click.group(invoke_without_command=True)
@click.option("--destination", metavar="NAME", help="Where to.")
@click.option("--since", type=Moment(), help="Events recorded from then on: 15m, 1d, 2026-01-31.")
@click.option("--until", type=Moment(), help="Events recorded before then; until now when left out.")
@click.option("--source", "sources", multiple=True, metavar="NAME", help="Only of this source; may be repeated.")
@click.option(
    "--filter", "filter_", default="", metavar="TEXT", help="Only events that match, such as 'type = \"track\"'."
)
@click.option(
    "--rate", type=Rate(), default="500/s", show_default=True, help="Events a second, a minute (/m) or an hour."
)
@click.option("--again", is_flag=True, help="Also what the destination has had already.")
@click.option("--dry-run", is_flag=True, help="Only say what would be sent, by the configuration here.")
@click.option("--detach", is_flag=True, help="Do not wait for the end.")
@config_option
@data_option
@url_option
@json_option
@click.pass_context
def replay(
    context: click.Context,
    destination: str | None,
    since: datetime | None,
    until: datetime | None,
    sources: tuple[str, ...],
    filter_: str,
    rate: float,
    again: bool,
    dry_run: bool,
    detach: bool,
    config: str | None,
    data: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Send recorded events to one destination again.

    The deliver role does it beside the live flow, whose position and books stay as they are. What the ledger says was delivered is
    passed over unless --again, and so is what is still pending or dead. Ctrl-C only ends the looking; the replay goes on, also after a
    crash."""
    if context.invoked_subcommand is not None:
        return
    if destination is None or since is None:
        raise click.UsageError("a replay needs --destination and --since; see also `millrace replay list`")
    asked = {
        "destination": destination,
        "since": since.isoformat(),
        "until": (until or datetime.now(UTC)).isoformat(),
        "sources": list(sources),
        "filter": filter_,
        "rate": rate,
        "again": again,
    }
    if dry_run:
        _rehearse(asked, config, data, as_json=as_json)
        return
    client = api_client(data, url)
    begun = client.post("/api/replays", asked)
    if detach:
        _show(begun, as_json=as_json)
        return
    _watch(client, begun, as_json=as_json)


@replay.command("list")
@click.option("--destination", metavar="NAME", help="Only to this destination.")
@data_option
@url_option
@json_option
def list_replays(destination: str | None, data: str | None, url: str | None, as_json: bool) -> None:
    """Show replays, the latest first."""
    client = api_client(data, url)
    query = {} if destination is None else {"destination": destination}
    found: list[Any] = []
    following = ""
    while True:
        page = client.get(f"/api/replays?{urlencode(query | {'next': following})}")
        found += page["data"]
        following = page["cursor"]["next"]
        if not following:
            break
    if as_json:
        print_json(found)
        return
    for one in found:
        say(_line(one))
    if not found:
        say("no replays")


@replay.command()
@click.argument("number", type=click.IntRange(1))
@data_option
@url_option
@json_option
def watch(number: int, data: str | None, url: str | None, as_json: bool) -> None:
    """Follow a replay to its end."""
    client = api_client(data, url)
    _watch(client, client.get(f"/api/replays/{number}"), as_json=as_json)


@replay.command()
@click.argument("number", type=click.IntRange(1))
@data_option
@url_option
@json_option
def cancel(number: int, data: str | None, url: str | None, as_json: bool) -> None:
    """End a replay. What it has delivered stays delivered."""
    _show(api_client(data, url).delete(f"/api/replays/{number}"), as_json=as_json)


COMMANDS: Final = (replay,)


# ── Looking ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _watch(client: "Client", seen: Any, *, as_json: bool) -> None:
    """Follows a replay to its end, through restarts of the server."""
    from schemas.errors import Unavailable

    number = seen["id"]
    try:
        with Bar("records", quiet=as_json) as bar:
            while seen["state"] in ("running", "cancelling"):
                bar.show(seen["read"], seen["records"], f"{seen['delivered']:,} delivered {seen['note']}".strip())
                time.sleep(_LOOK)
                try:
                    seen = client.get(f"/api/replays/{number}")
                except Unavailable as error:
                    bar.show(seen["read"], seen["records"], f"waiting: {error}")
    except KeyboardInterrupt:
        say(
            f"millrace: replay {number} goes on; `millrace replay watch {number}` shows it, "
            f"`millrace replay cancel {number}` ends it",
            err=True,
        )
        raise
    _show(seen, as_json=as_json)


def _show(one: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(one)
    else:
        say(_line(one))


def _line(one: Any) -> str:
    parts = [f"{one['read']:,} of {one['records']:,} records", f"{one['delivered']:,} delivered"]
    parts += [f"{one[kind]:,} {kind}" for kind in ("pending", "dead", "purged") if one[kind]]
    parts += [f"{count:,} {reason}" for reason, count in one["not_sent"].items()]
    note = f" ({one['note']})" if one["note"] else ""
    return f"replay {one['id']} to {one['destination']} since {one['since']}: {one['state']}{note}, {', '.join(parts)}"


class Bar:
    """A bar on a terminal, nothing elsewhere."""

    def __init__(self, name: str, *, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[words]}")
        )  # fmt: skip
        hidden = quiet or not sys.stderr.isatty()
        self._bar = Progress(*columns, console=Console(stderr=True), disable=hidden, transient=True)
        self._task = self._bar.add_task(name, total=None, words="")

    def show(self, done: int, total: int, words: str = "") -> None:
        self._bar.update(self._task, completed=done, total=total, words=words)

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


# ── What would be sent ────────────────────────────────────────────────────────────────────────────────────────────


def _rehearse(asked: Any, config: str | None, data: str | None, *, as_json: bool) -> None:
    import asyncio

    from millrace import logs, replaying
    from millrace.settings import load_settings

    logs.configure("replay")
    settings = load_settings(environment(config=config, data=data), delivers=True)
    with Bar("records", quiet=as_json) as bar:
        advance: Callable[[int, int], None] = bar.show
        found = asyncio.run(replaying.rehearse(settings, asked, advance))
    if as_json:
        print_json(found)
        return
    say(f"{found['records']:,} records: {found['would_send']:,} events would be sent")
    for reason, count in found["not_sent"].items():
        say(f"{count:,} {reason}")
