"""`profile`, `profiles`, `tokens`: people as they are, and who may read them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

import click

from millrace.cli.common import api_client, data_option, json_option, print_json, say, say_line, url_option

if TYPE_CHECKING:
    from millrace.client import Client

RECENT: Final = 10  # events shown of a person
_SCOPES: Final = ("profiles:read", "profiles:search", "profiles:delete_identifier")


@click.command()
@click.argument("address", metavar="ID")
@click.option("--after", metavar="MESSAGE", help="First wait until the event with this messageId is in the profile.")
@data_option
@url_option
@json_option
def profile(address: str, after: str | None, data: str | None, url: str | None, as_json: bool) -> None:
    """Show a person or an account: ids, traits, recent events, what it is linked with, what it was merged from.

    ID is one of its ids, such as user_id:u1, email:ada@example.com or group_id:g1, or the profile id itself."""
    client = api_client(data, url)
    found = _found(client, address, after)
    if as_json:
        print_json(found)
        return
    from millrace.cli.profiles_text import profile_lines

    base = f"/v1/spaces/default/collections/{found['collection']}/profiles/{found['id']}"
    for line in profile_lines(
        found,
        traits=_every_trait(client, base),
        events=client.get(f"{base}/events?type=all&limit={RECENT}")["data"],
        links=client.get(f"{base}/links?limit=20"),
        merges=client.get(f"{base}/merges?limit=20"),
    ):
        say_line(line)


@click.group()
def profiles() -> None:
    """Many people: search, export, and who read whom."""


@profiles.command()
@click.argument("conditions", nargs=-1, metavar="[CONDITION]…")
@click.option("--where", metavar="JSON", help="A whole tree of conditions instead, on consent too.")
@click.option("--accounts", is_flag=True, help="Search accounts, not people.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Show at most so many.")
@data_option
@url_option
@json_option
def search(
    conditions: tuple[str, ...],
    where: str | None,
    accounts: bool,
    limit: int,
    data: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Find people by ids and traits.

    A CONDITION is TYPE:VALUE for an id (a star at its end stands for anything: 'email:mia*'), or a trait compared with a value:
    plan=pro, plan!=pro, orders>3, orders<=10, city~Tur (contains), vip (has it). All must hold."""
    from millrace.cli.profiles_text import found_line, tree_of

    if where is None and not conditions:
        raise click.UsageError("say what to search for, such as 'email:mia*' or plan=pro")
    try:
        tree = tree_of(conditions) if where is None else json.loads(where)
    except ValueError as error:
        raise click.UsageError(f"--where is not JSON: {error}") from error
    client = api_client(data, url)
    path = f"/v1/spaces/default/collections/{'accounts' if accounts else 'users'}/profiles/search"
    shown, body = 0, {"where": tree, "limit": min(limit, 1_000)}
    while True:
        page = client.post(path, body)
        for one in page["data"][: limit - shown]:
            say(json.dumps(one, ensure_ascii=False) if as_json else found_line(one))
        shown += len(page["data"])
        if shown >= limit or not page["cursor"]["has_more"]:
            break
        body["next"] = page["cursor"]["next"]
    if not as_json:
        more = ", and there are more: raise --limit" if page["cursor"]["has_more"] or shown > limit else ""
        say(f"{min(shown, limit):,} found{more}", err=True)


@profiles.command()
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, metavar="FILE", help="Where to write."
)
@click.option("--progress", is_flag=True, help="Show how far it is.")
@data_option
@url_option
def export(out: Path, progress: bool, data: str | None, url: str | None) -> None:
    """Write every profile, one JSON object a line.

    Run again after an interruption, it goes on where it ended. The last line of an id holds: those that merged meanwhile come twice."""
    from millrace.cli.profiles_export import export_to

    count = export_to(api_client(data, url), out, progress=progress)
    say(f"{out}: {count:,} lines")


@profiles.command()
@click.argument("address", metavar="ID")
@data_option
@url_option
@json_option
def reads(address: str, data: str | None, url: str | None, as_json: bool) -> None:
    """Show who read a profile, by the hour."""
    client = api_client(data, url)
    found = client.get(f"/api/profiles/{_found(client, address, None)['id']}/reads")
    if as_json:
        print_json(found)
        return
    for one in found["data"]:
        who = f"{one['name'] or 'a token'} ({one['token']})"
        whom = "everybody" if one["profile"] == "*" else one["profile"]
        say(f"{one['last_at']} {who} read {one['resource']} of {whom}, {one['count']:,} times since {one['first_at']}")


# ── Tokens ────────────────────────────────────────────────────────────────────────────────────────────────────────


@click.group()
def tokens() -> None:
    """Tokens with which programs read profiles."""


@tokens.command("create")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(_SCOPES),
    multiple=True,
    default=("profiles:read",),
    show_default=True,
    help="What it may do; can be given several times.",
)
@click.option(
    "--trait", "traits", multiple=True, metavar="NAME", help="A trait that it sees; without any, all of them."
)
@click.option(
    "--rate",
    type=click.IntRange(1, 1_000_000),
    default=1_000,
    show_default=True,
    help="Requests per second to each process.",
)
@data_option
@url_option
@json_option
def create_token(
    name: str,
    scopes: tuple[str, ...],
    traits: tuple[str, ...],
    rate: int,
    data: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Make a token and show it, this once.

    NAME says what it is for."""
    wanted = {"name": name, "scopes": scopes, "traits": traits or None, "requests_per_second": rate}
    made = api_client(data, url).post("/api/tokens", wanted)
    if as_json:
        print_json(made)
        return
    say(made["token"])
    say(f"millrace: {made['id']}; keep the token now, it is not shown again", err=True)


@tokens.command("list")
@data_option
@url_option
@json_option
def list_tokens(data: str | None, url: str | None, as_json: bool) -> None:
    """List them, without their secrets."""
    found = api_client(data, url).get("/api/tokens")
    if as_json:
        print_json(found)
        return
    for one in found["data"]:
        state = f"revoked {one['revoked_at']}" if one["revoked_at"] else "valid"
        seen = "all traits" if one["traits"] is None else "traits " + ", ".join(one["traits"])
        rate = f"{one['requests_per_second']:,} requests/s"
        say(f"{one['id']} {one['name']}: {', '.join(one['scopes'])}, {seen}, {rate}, made {one['created_at']}, {state}")


@tokens.command("revoke")
@click.argument("token_id", metavar="ID")
@data_option
@url_option
def revoke_token(token_id: str, data: str | None, url: str | None) -> None:
    """End a token for good."""
    from millrace.client import NotFound
    from schemas.errors import ConfigError

    try:
        ended = api_client(data, url).delete(f"/api/tokens/{quote(token_id, safe='')}")
    except NotFound as error:
        raise ConfigError(f"no token has the id {token_id}; `millrace tokens list` shows them") from error
    say(f"{ended['id']} {ended['name']}: revoked {ended['revoked_at']}")


COMMANDS: Final = (profile, profiles, tokens)


def _found(client: "Client", address: str, after: str | None) -> Any:
    from millrace.client import NotFound
    from schemas.errors import ConfigError

    query = "?" + urlencode({"after": after}) if after else ""
    try:
        return client.get(f"/api/profiles/{quote(address, safe=':')}{query}")
    except NotFound as error:
        raise ConfigError(f"no profile has {address}; look at the ids of an event with `millrace tail`") from error


def _every_trait(client: "Client", base: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    following = ""
    while True:
        page = client.get(f"{base}/traits?verbose=true&limit=200&next={following}")
        found |= page["traits"]
        following = page["cursor"]["next"]
        if not following:
            return found
