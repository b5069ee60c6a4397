"""`event`, `balance`, `tail`: questions to the running collector."""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote

import click

from millrace.cli.common import api_client, data_option, json_option, print_json, say, url_option

RECONNECT: Final = 1.0  # seconds


@click.command()
@click.argument("message_id")
@data_option
@url_option
@json_option
def event(message_id: str, data: str | None, url: str | None, as_json: bool) -> None:
    """Show the whole path of one event."""
    from millrace.client import NotFound
    from millrace.show import event_lines
    from schemas.errors import ConfigError

    try:
        found = api_client(data, url).get(f"/api/events/{quote(message_id, safe='')}")["events"]
    except NotFound as error:
        raise ConfigError(
            f"no event has the messageId {message_id}; it was never accepted, retention has removed it, "
            "or its person was deleted or suppressed"
        ) from error
    _show(found, (line for one in found for line in event_lines(one)), as_json)


@click.command()
@click.option("--check", is_flag=True, help="Exit 1 unless everything adds up.")
@data_option
@url_option
@json_option
def balance(check: bool, data: str | None, url: str | None, as_json: bool) -> None:
    """Show the books.

    For each source and destination: accepted = delivered + filtered + dead + purged + pending. Where retention took events while a
    destination was not configured, they are a part as well: missed."""
    books = api_client(data, url).get("/api/balance")
    if as_json:
        print_json(books)
    else:
        _print_balance(books)
    if check and books["off"] != 0:
        say(f"millrace: {_imbalance(books)}", err=True)
        raise SystemExit(1)


@click.command()
@click.option("--refused", is_flag=True, help="Only events that were refused.")
@data_option
@url_option
@json_option
def tail(refused: bool, data: str | None, url: str | None, as_json: bool) -> None:
    """Follow events and their paths as they come."""
    paths = _paths(data, url)
    if refused:
        paths = (one for one in paths if one.get("refused") is not None)
    if as_json:
        for one in paths:
            say(json.dumps(one, ensure_ascii=False, separators=(",", ":")))
            sys.stdout.flush()
        return
    from millrace.show import follow

    follow(paths)


@click.command()
@click.option("--month", help="Only this one, such as 2026-11.")
@data_option
@url_option
@json_option
def usage(month: str | None, data: str | None, url: str | None, as_json: bool) -> None:
    """Show what each source used.

    By month: accepted events, the bytes of their bodies, and about how many users they name (within 1.6 % on average)."""
    used = api_client(data, url).get("/api/usage" + (f"?month={quote(month, safe='')}" if month else ""))
    if as_json:
        print_json(used)
        return
    for one in used["usage"]:
        numbers = f"{one['events']:,} events, {one['bytes']:,} bytes, {one['users']:,} users"
        say(f"{one['month']} {one['source']}: {numbers}")
    if not used["usage"]:
        say(f"no source has sent an event{f' in {month}' if month else ' yet'}", err=True)


COMMANDS: Final = (tail, event, balance, usage)


def _show(document: Any, lines: Iterator[str], as_json: bool) -> None:
    if as_json:
        print_json(document)
    else:
        for line in lines:
            say(line)


def _paths(data: str | None, url: str | None) -> Iterator[dict[str, Any]]:
    """The paths of events from now on, through restarts of the collector. Trouble is one line when it starts and one when
    it ends."""
    from schemas.errors import Unavailable

    following, lost = "", False

    def connected() -> None:
        nonlocal following, lost
        if lost or following != client.address:
            say(f"millrace: following {client.address}", err=True)
        following, lost = client.address, False

    while True:
        client = api_client(data, url)  # each time anew: a restart may have moved it
        try:
            for line in client.lines("/api/tail", connected):
                yield json.loads(line)
        except Unavailable as error:
            if not lost:
                say(f"millrace: waiting: {error}", err=True)
            lost = True
        time.sleep(RECONNECT)


def _print_balance(books: Any) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    columns = ["accepted", "delivered", "filtered", "dead", "purged", "pending", "missed", "off"]
    if not any(row["missed"] for rows in books["destinations"].values() for row in rows.values()):
        columns.remove("missed")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("source", "destination"):
        table.add_column(column, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for destination, rows in books["destinations"].items():
        for source, row in rows.items():
            table.add_row(source, destination, *(_count(row[column]) for column in columns))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    if table.row_count:
        console.print(table)
    for name, counts in books["replays"].items():
        console.print(f"{name}: " + ", ".join(f"{_count(count)} {kind}" for kind, count in counts.items()))
    for source, counts in books["sources"].items():
        console.print(f"{source}: " + ", ".join(f"{_count(count)} {name}" for name, count in counts.items()))
    console.print("the books balance" if books["off"] == 0 else _imbalance(books))


def _count(number: int | None) -> str:
    return "not counted" if number is None else f"{number:,}"


def _imbalance(books: Any) -> str:
    if books["off"] is None:
        return "the backlog is too long to be counted; ask again once it is shorter"
    return f"the books are off by {books['off']}; keep the data folder and look at the column off for where"
