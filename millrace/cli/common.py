"""What commands share: options, the way to the running collector, and how facts are printed."""

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from millrace import data_folder
from millrace.environment import Environment, Flags, read_environment
from millrace.plain_text import plain, plain_line
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from millrace.client import Client

F = TypeVar("F", bound=Callable[..., Any])


def config_option(command: F) -> F:
    """`--config FILE`"""
    return click.option("--config", metavar="FILE", help="millrace.yaml [MILLRACE_CONFIG; ./millrace.yaml if there]")(
        command
    )


def data_option(command: F) -> F:
    """`--data DIR`"""
    return click.option("--data", metavar="DIR", help="Data folder [MILLRACE_DATA; ./data]")(command)


def listen_options(command: F) -> F:
    """`--host`, `--port`"""
    host = click.option("--host", metavar="ADDRESS", help="Address to listen on [MILLRACE_HOST; 127.0.0.1]")
    port = click.option(
        "--port",
        type=click.IntRange(0, 65535),
        metavar="N",
        help="Port to listen on, 0 for a free one [MILLRACE_PORT; 8080]",
    )
    return host(port(command))


def url_option(command: F) -> F:
    """`--url URL`"""
    return click.option(
        "--url", metavar="URL", help="Where Millrace listens [MILLRACE_HOST, MILLRACE_PORT; the data folder knows]"
    )(command)


def json_option(command: F) -> F:
    """`--json`"""
    return click.option("--json", "as_json", is_flag=True, help="JSON, for machines.")(command)


def environment(**flags: Any) -> Environment:
    """The environment as this command sees it."""
    return read_environment(os.environ, Flags(**flags))


def address(here: Environment, url: str | None) -> str:
    """Where the collector listens: as said, else where it last started, else the default."""
    if url is not None:
        return url.rstrip("/")
    if here.placed:
        return here.address
    return data_folder.recall(here.data, data_folder.ADDRESS) or here.address


def api_client(data: str | None, url: str | None) -> "Client":
    """A client of the management API."""
    from millrace.client import Client

    here = environment(data=data)
    token = here.api_token or data_folder.recall(here.data, data_folder.API_TOKEN)
    if token is None:
        raise ConfigError(
            f"no API token: {here.data} is not the data folder of a Millrace that ran; start `millrace up`, "
            "name the folder with --data, or set MILLRACE_API_TOKEN"
        )
    return Client(address(here, url), token)


def say(text: str, *, err: bool = False) -> None:
    """Prints lines: results to stdout, problems (`err`) to stderr. What is in them of others commands no terminal."""
    click.echo(plain(text), err=err)


def say_line(text: str) -> None:
    """Prints one line to stdout, and no more of them, whatever is in it."""
    click.echo(plain_line(text))


def print_json(document: Any) -> None:
    """One JSON document, readable."""
    say(json.dumps(document, indent=2, ensure_ascii=False))
