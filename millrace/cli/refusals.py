"""`refusals`: what was refused so far, and what to do about it. `tail --refused` shows what is refused from now on."""

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import click

from millrace.cli.common import api_client, data_option, json_option, print_json, say, url_option
from millrace.cli.moments import Moment

if TYPE_CHECKING:
    from millrace.client import Client

PAGE: Final = 500  # the server's most
SHOWN: Final = 200  # characters of an event


@click.command()
@click.option("--source", metavar="NAME", help="Only of this source.")
@click.option("--code", metavar="CODE", help="Only for this reason, such as event_not_defined.")
@click.option("--since", type=Moment(), help="Received from then on: 15m, 1d, 2026-01-31.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="The latest so many.")
@data_option
@url_option
@json_option
def refusals(
    source: str | None,
    code: str | None,
    since: datetime | None,
    limit: int,
    data: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Show events that were refused, the latest first, with what to do.

    `millrace tail --refused` shows those that come from now on."""
    wanted = {"source": source, "code": code, "since": None if since is None else since.isoformat()}
    query = {name: value for name, value in wanted.items() if value is not None}
    found = list(islice(_refused(api_client(data, url), query, min(limit, PAGE)), limit))
    if as_json:
        print_json({"data": found})
        return
    for one in found:
        say(f"{one['receivedAt']} {one['source']} {one['code']} {one['messageId']} {_short(one['body'])}")
    remedies = {one["code"]: one["remedy"] for one in found}
    for reason, number in Counter(one["code"] for one in found).most_common():
        say(f"{number:,} × {reason}: {remedies[reason] or 'a later release knows what to do'}")
    if not found:
        say("no event was refused", err=True)


COMMANDS: Final = (refusals,)


def _refused(client: "Client", query: Mapping[str, str], page: int) -> Iterator[dict[str, Any]]:
    further: dict[str, str] = {}
    while True:
        answer = client.get("/api/refusals?" + urlencode({**query, "limit": page, **further}))
        yield from answer["data"]
        if not answer["cursor"]["has_more"]:
            return
        further = {"next": answer["cursor"]["next"]}


def _short(body: str) -> str:
    line = " ".join(body.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"
