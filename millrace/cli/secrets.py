"""`millrace secrets`: what millrace.yaml names as `${secret:name}`."""

import sys
from typing import TYPE_CHECKING, Final

import click

from millrace.cli.common import data_option, environment, json_option, print_json, say

if TYPE_CHECKING:
    from millrace.secret_store import SecretStore


@click.group()
def secrets() -> None:
    """Secrets kept encrypted in the data folder, for ${secret:name} in millrace.yaml."""


@secrets.command("set")
@click.argument("name")
@data_option
def set_secret(name: str, data: str | None) -> None:
    """Add or replace one. Its value is asked for, or read from standard input."""
    value = click.prompt("Value", hide_input=True) if sys.stdin.isatty() else sys.stdin.read().rstrip("\r\n")
    if not value:
        raise click.UsageError("the value is empty; type it, or pipe it in")
    _store(data).set(name, value)
    say(f"secret {name} is set; write ${{secret:{name}}} where millrace.yaml needs it")


@secrets.command("list")
@data_option
@json_option
def list_secrets(data: str | None, as_json: bool) -> None:
    """Their names."""
    names = list(_store(data).names())
    if as_json:
        print_json(names)
        return
    for name in names:
        say(name)


@secrets.command("remove")
@click.argument("name")
@data_option
def remove_secret(name: str, data: str | None) -> None:
    """Forget one."""
    if not _store(data).remove(name):
        raise click.ClickException(f"there is no secret {name}; `millrace secrets list` names them")
    say(f"secret {name} is gone")


@secrets.command("key")
def key() -> None:
    """Print a new key for MILLRACE_SECRETS_KEY. Nothing is stored."""
    from secrets import token_urlsafe

    say(token_urlsafe(32))


def _store(data: str | None) -> "SecretStore":
    from millrace.secret_store import SecretStore

    here = environment(data=data)
    return SecretStore(here.data, here.secrets_key)


COMMANDS: Final = (secrets,)
