"""`millrace dead-letters`: what destinations refused for good, by cause, and what can be done with it."""

import base64
import json
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote, urlencode

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

F = TypeVar("F", bound=Callable[..., Any])


@click.group("dead-letters")
def dead_letters() -> None:
    """Events that a destination refused for good."""


def _chosen(*, required: bool) -> Callable[[F], F]:
    """The options that say which letters."""

    def add(command: F) -> F:
        for option in (
            click.option("--until", type=Moment(), help="That died before then."),
            click.option("--since", type=Moment(), help="That died from then on: 15m, 1d, 2026-01-31."),
            click.option("--cause", metavar="CAUSE", help="That died of this, such as 'http 422'."),
            click.option(
                "--destination", required=required, metavar="NAME", help="Of this destination, or of a replay."
            ),
        ):
            command = option(command)
        return command

    return add


@dead_letters.command("list")
@_chosen(required=False)
@click.option("--each", is_flag=True, help="Every letter, a line each. Needs --destination.")
@data_option
@url_option
@json_option
def list_letters(
    destination: str | None,
    cause: str | None,
    since: datetime | None,
    until: datetime | None,
    each: bool,
    data: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Show dead letters by destination and cause, with what can be done."""
    if each and destination is None:
        raise click.UsageError("--each needs --destination")
    client = api_client(data, url)
    query = _query(None if each else destination, cause, since, until)
    if each:
        _print_each(
            _pages(client, f"/api/destinations/{quote(destination or '', safe='')}/dead-letters", query), as_json
        )
        return
    groups = list(_pages(client, "/api/dead-letters", query))
    if as_json:
        print_json(groups)
    elif not groups:
        say("no dead letters")
    else:
        for one in groups:
            _print_group(one)


@dead_letters.command()
@click.argument("message_id")
@click.option("--destination", metavar="NAME", help="Only at this one.")
@config_option
@data_option
@url_option
@json_option
def show(
    message_id: str, destination: str | None, config: str | None, data: str | None, url: str | None, as_json: bool
) -> None:
    """Show a dead letter: its event, what was tried, and the request that would be made now, secrets struck out."""
    from millrace.client import NotFound
    from schemas.errors import ConfigError

    client = api_client(data, url)
    try:
        letters = client.get(f"/api/dead-letters/{quote(message_id, safe='')}")["letters"]
        found = [one for one in letters if destination in (None, one["destination"])]
        if not found:
            raise NotFound(f"not dead at {destination}")
    except NotFound as error:
        raise ConfigError(
            f"no dead letter has the messageId {message_id}; `millrace event {message_id}` tells its path"
        ) from error
    for one in found:
        one["sends"] = _rehearsed(one, environment(config=config, data=data))
    if as_json:
        print_json(found)
        return
    for one in found:
        _print_letter(one)


@dead_letters.command()
@_chosen(required=True)
@click.option("--dry-run", is_flag=True, help="Only say how many there are.")
@data_option
@url_option
@json_option
def retry(**options: Any) -> None:
    """Put dead letters back, to be tried again.

    They are delivered at their place: before later events of the same person that are still to come. What was delivered meanwhile
    cannot be overtaken any more."""
    _move("retry", **options)


@dead_letters.command()
@_chosen(required=True)
@click.option("--all", "every", is_flag=True, help="Of whatever cause. Without it --cause is needed.")
@click.option("--dry-run", is_flag=True, help="Only say how many there are.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@data_option
@url_option
@json_option
def purge(every: bool, yes: bool, **options: Any) -> None:
    """Give dead letters up: they count as purged from then on, and cannot be put back."""
    if options["cause"] is None and not every:
        raise click.UsageError("say which ones with --cause, or --all")
    _move("purge", ask=not yes, **options)


COMMANDS: Final = (dead_letters,)


# ── Moving ────────────────────────────────────────────────────────────────────────────────────────────────────────

_DONE: Final = {"retry": "put back", "purge": "purged"}


def _move(
    act: str,
    *,
    destination: str,
    cause: str | None,
    since: datetime | None,
    until: datetime | None,
    dry_run: bool,
    data: str | None,
    url: str | None,
    as_json: bool,
    ask: bool = False,
) -> None:
    client = api_client(data, url)
    groups = list(_pages(client, "/api/dead-letters", _query(destination, cause, since, until)))
    total = sum(one["count"] for one in groups)
    if dry_run:
        _tell(f"{total:,} dead letters would be {_DONE[act]}", {"count": total, "groups": groups}, groups, as_json)
        return
    if ask and total and sys.stdin.isatty():
        click.confirm(f"purge {total:,} dead letters of {destination}?", abort=True, err=True)
    body = {key: value for key, value in _query(destination, cause, since, until).items() if value}
    moved = 0
    with _Progress(total, quiet=as_json) as progress:
        following: str | None = ""
        while following is not None:
            answer = client.post(f"/api/dead-letters/{act}", body | {"next": following})
            moved += answer["count"]
            progress.advance(moved)
            following = answer["next"] or None
    _tell(f"{moved:,} dead letters {_DONE[act]}", {"count": moved}, [], as_json)


def _tell(words: str, facts: Any, groups: list[Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    for one in groups:
        _print_group(one)
    say(words)


def _query(
    destination: str | None, cause: str | None, since: datetime | None, until: datetime | None
) -> dict[str, str]:
    given = {
        "destination": destination,
        "cause": cause,
        "since": None if since is None else since.isoformat(),
        "until": None if until is None else until.isoformat(),
    }
    return {name: value for name, value in given.items() if value is not None}


def _pages(client: "Client", path: str, query: dict[str, str]) -> Iterator[Any]:
    following = ""
    while True:
        page = client.get(f"{path}?{urlencode(query | {'next': following})}")
        yield from page["data"]
        following = page["cursor"]["next"]
        if not following:
            return


class _Progress:
    """A bar on a terminal, nothing elsewhere."""

    def __init__(self, total: int, *, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("letters"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        hidden = quiet or not sys.stderr.isatty()
        self._bar = Progress(*columns, console=Console(stderr=True), disable=hidden, transient=True)
        self._task = self._bar.add_task("letters", total=total)

    def advance(self, done: int) -> None:
        self._bar.update(self._task, completed=done)

    def __enter__(self) -> "_Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


# ── The request that would be made now ────────────────────────────────────────────────────────────────────────────


def _rehearsed(letter: Any, here: Any) -> Any:
    """What the destination, as configured here, would send of a letter. Nothing leaves this process."""
    import asyncio

    from millrace import logs, preflight
    from millrace.settings import load_settings
    from schemas.errors import ConfigError

    if letter["record"] is None:
        return {"requests": [], "reason": "the bytes are gone"}
    logs.configure("dead-letters")
    try:
        settings = load_settings(here, delivers=True)
    except ConfigError as error:
        return {"requests": [], "reason": f"no usable configuration here: {error.faults[0]}"}
    name = letter["destination"].partition(":")[0]
    return asyncio.run(preflight.rehearsed(settings, name, base64.b64decode(letter["record"])))


# ── For people ────────────────────────────────────────────────────────────────────────────────────────────────────


def _print_group(one: Any) -> None:
    say(f"{one['destination']}: {one['count']:,} × {one['cause']}, {one['first_at']} to {one['last_at']}")
    say(f"  {one['reason']}, such as {one['message_id']}")
    say(f"  {one['remedy']}")


def _print_each(letters: Iterator[Any], as_json: bool) -> None:
    for one in letters:
        if as_json:
            say(json.dumps(one, ensure_ascii=False, separators=(",", ":")))
        else:
            say(f"{one['died_at']} {one['message_id']} {one['source']} {one['reason']}")


def _print_letter(one: Any) -> None:
    say(f"{one['message_id']} at {one['destination']}, from {one['source']}, profile {one['profile'] or 'none'}")
    attempts = "once" if one["attempts"] == 1 else f"{one['attempts']:,} times"
    say(f"tried {attempts}, {one['first_at']} to {one['died_at']}: {one['reason']}")
    say(one["remedy"])
    say("event:")
    say(json.dumps(one["event"], indent=2, ensure_ascii=False))
    if one["sample"] is not None:
        sample = one["sample"]
        say(f"exchange of {sample['at']} for {sample['message_id']}:")
        say(json.dumps({key: sample[key] for key in ("request", "answer")}, indent=2, ensure_ascii=False))
    sends = one["sends"]
    if sends["reason"] is not None:
        say(f"no request: {sends['reason']}")
    for request in sends["requests"]:
        say("would send now:")
        say(json.dumps(request, indent=2, ensure_ascii=False))
