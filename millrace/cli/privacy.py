"""`privacy`: deleting people, suppressing them, and the receipts of both."""

import sys
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

import click

from millrace.cli.common import api_client, data_option, json_option, print_json, say, say_line, url_option

if TYPE_CHECKING:
    from millrace.client import Client

LOOK: Final = 0.5  # seconds between two looks at a request that is waited for
_ENDED: Final = ("FINISHED", "PARTIAL_SUCCESS", "FAILED")


@click.group()
def privacy() -> None:
    """Delete people, suppress them, and show what was erased where.

    Only hashes of the ids are kept of whoever was deleted."""


@privacy.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID…")
@click.option("--internal", is_flag=True, help="Do not tell destinations.")
@click.option("--suppress", is_flag=True, help="Also let no further event with these ids pass.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--wait", is_flag=True, help="Wait until it is done, and print the receipt.")
@data_option
@url_option
@json_option
def delete(
    ids: tuple[str, ...],
    internal: bool,
    suppress: bool,
    yes: bool,
    wait: bool,
    data: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Delete people: profiles, events, traits, ids, whatever waits, and their bytes on the log.

    An ID is any id of a person, such as user_id:u1 or email:ada@example.com. All profiles that merged into theirs go, too. It cannot
    be undone. Events from before now do not pass any more; later ones begin a new profile."""
    if not yes and sys.stdin.isatty():
        click.confirm(f"Delete {len(ids):,} people for good?", abort=True, err=True)
    kind = ("SUPPRESS_WITH_DELETE" if suppress else "DELETE_ONLY") if not internal else _INTERNAL[suppress]
    client = api_client(data, url)
    made = _regulate(client, kind, ids)
    if wait:
        _show(_waited_for(client, made["regulateId"]), as_json)
    elif as_json:
        print_json(made)
    else:
        say(made["regulateId"])
        say(f"millrace privacy receipt {made['regulateId']} shows how far it is", err=True)


_INTERNAL: Final = {False: "DELETE_INTERNAL", True: "SUPPRESS_WITH_DELETE_INTERNAL"}


@privacy.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID…")
@data_option
@url_option
@json_option
def suppress(ids: tuple[str, ...], data: str | None, url: str | None, as_json: bool) -> None:
    """Let no event with these ids pass from now on. What is there stays.

    Only events that carry one of these very ids are meant; name a person's other ids too."""
    _done(_regulate(api_client(data, url), "SUPPRESS_ONLY", ids), f"{len(ids):,} suppressed", as_json)


@privacy.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID…")
@data_option
@url_option
@json_option
def unsuppress(ids: tuple[str, ...], data: str | None, url: str | None, as_json: bool) -> None:
    """Let events with these ids pass again."""
    _done(_regulate(api_client(data, url), "UNSUPPRESS", ids), f"{len(ids):,} lifted", as_json)


@privacy.command()
@click.argument("address", metavar="ID", required=False)
@data_option
@url_option
@json_option
def suppressions(address: str | None, data: str | None, url: str | None, as_json: bool) -> None:
    """List suppressed ids, or say whether one is (exit 1 when not). Those of deleted people are shown as hashes."""
    client = api_client(data, url)
    query = {"limit": "1000", **({"id": address} if address else {})}
    found: list[Any] = []
    while True:
        page = client.get(f"/api/suppressions?{urlencode(query)}")
        found += page["data"]
        if not page["next"]:
            break
        query["next"] = page["next"]
    if as_json:
        print_json(found)
    else:
        for one in found:
            say(f"{one['since']}  {one['id'] or one['hash']}")
    if address and not found:
        say(f"millrace: {address} is not suppressed", err=True)
        raise SystemExit(1)


@privacy.command()
@click.argument("regulation")
@click.option("--wait", is_flag=True, help="Wait until it is done.")
@data_option
@url_option
@json_option
def receipt(regulation: str, wait: bool, data: str | None, url: str | None, as_json: bool) -> None:
    """Show how far a request is, and what was erased where."""
    client = api_client(data, url)
    _show(_waited_for(client, regulation) if wait else _one(client, regulation), as_json)


@privacy.command("list")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="Show at most so many.")
@data_option
@url_option
@json_option
def list_(limit: int, data: str | None, url: str | None, as_json: bool) -> None:
    """List requests, the latest first."""
    found = api_client(data, url).get(f"/api/regulations?limit={limit}")["data"]
    if as_json:
        print_json(found)
        return
    for one in found:
        say(f"{one['createdAt']}  {one['id']}  {one['regulationType']:<29}  {one['overallStatus']}")


@privacy.command("delete-id")
@click.argument("user", metavar="USER")
@click.argument("identifier", metavar="ID")
@data_option
@url_option
@json_option
def delete_id(user: str, identifier: str, data: str | None, url: str | None, as_json: bool) -> None:
    """Delete one id of a person, who keeps everything else.

    USER is the person's user_id, as user_id:u1; ID the id to delete, such as phone:+358401234567. Older events do not bring it back."""
    kind, colon, value = identifier.partition(":")
    if not colon:
        raise click.UsageError(f"{identifier} is not an id; write type:value, such as phone:+358401234567")
    path = f"/v1/spaces/default/collections/users/profiles/{quote(user, safe=':')}/external_ids/delete"
    done = api_client(data, url).post(path, {"delete_external_ids": [{"type": kind, "id": value}]})["data"]
    if as_json:
        print_json(done)
    else:
        say(f"deleted from {done['profile']}")


COMMANDS: Final = (privacy,)


def _regulate(client: "Client", kind: str, ids: tuple[str, ...]) -> Any:
    return client.post("/api/regulations", {"regulationType": kind, "subjectIds": list(ids)})["data"]


def _one(client: "Client", regulation: str) -> Any:
    return client.get(f"/api/regulations/{quote(regulation, safe='')}")["data"]


def _waited_for(client: "Client", regulation: str) -> Any:
    from rich.console import Console

    with Console(stderr=True).status("deleting") as status:
        while (found := _one(client, regulation))["overallStatus"] not in _ENDED:
            status.update(f"deleting: {_PHASES.get(found['phase'], 'waiting')}")
            time.sleep(LOOK)
    return found


_PHASES: Final = {
    "people": "out of the tables",
    "log": "off the log",
    "settle": "waiting for what is on its way to destinations",
    "told": "waiting for destinations to forget",
    "ended": "out of the database's files",
}


def _done(made: Any, said: str, as_json: bool) -> None:
    if as_json:
        print_json(made)
    else:
        say(said)


def _show(found: Any, as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        for line in receipt_lines(found):
            say_line(line)
    if found["overallStatus"] == "FAILED":
        say("millrace: a destination has not deleted; delete there by hand, or ask again", err=True)
        raise SystemExit(1)


def receipt_lines(found: Any) -> list[str]:
    """A request as people read it."""
    result = found["receipt"]
    lines = [f"{found['id']}  {found['regulationType']}  {found['overallStatus']}"]
    lines.append(f"  asked       {found['createdAt']}")
    if found["finishedAt"]:
        lines.append(f"  done        {found['finishedAt']}")
    elif found["phase"]:
        lines.append(f"  now         {_PHASES.get(found['phase'], found['phase'])}")
    lines += [f"  {name.replace('_', ' '):<32} {count:>12,}" for name, count in result.get("erased", {}).items()]
    for name in ("log", "log_gone_by", "database", "tombstones"):
        if result.get(name):
            lines.append(f"  {name.replace('_', ' '):<11} {result[name]}")
    lines += [f"  left        {one}" for one in result.get("scratch_stores_left", ())]
    for stream in found["streamStatus"]:
        for one in stream["destinationStatus"]:
            said = f": {one['errString']}" if one["errString"] else ""
            lines.append(f"  destination {one['name']}  {one['status']}{said}")
    return lines
