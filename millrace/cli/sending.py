"""`send`: a demo stream to the running collector, over HTTP like any other client's."""

import random
import sys
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import click

from millrace import data_folder
from millrace.cli.common import (
    address,
    config_option,
    data_option,
    environment,
    json_option,
    print_json,
    say,
    url_option,
)
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from millrace.environment import Environment

SLOWEST_PACE: Final = timedelta(seconds=20)  # no demo event is further from the one before
PATIENCE: Final = 30.0  # seconds without an acknowledgement after which we give up


@click.command()
@click.option("--count", type=click.IntRange(1), default=1_000, show_default=True, help="Events to send.")
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), help="Events a second; as fast as it goes when left out."
)
@click.option("--seed", type=click.IntRange(0), help="The same seed sends the same events, which count once.")
@click.option("--write-key", help="Write key of the source [MILLRACE_WRITE_KEY; millrace.yaml; the data folder]")
@config_option
@data_option
@url_option
@json_option
def send(
    count: int,
    rate: float | None,
    seed: int | None,
    write_key: str | None,
    config: str | None,
    data: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Send a demo stream of events.

    A shop with visitors, logins, orders and returning devices."""
    from millrace.client import Client
    from millrace.demo import stream
    from millrace.sender import requests, send_all

    here = environment(config=config, data=data)
    seed = random.randrange(1_000, 10_000) if seed is None else seed
    client = Client(address(here, url), write_key or _write_key(here))
    start = datetime.now(UTC) - SLOWEST_PACE * count
    calls = requests(stream(seed, start), count, random.Random(seed))
    with _Progress(count, quiet=as_json) as progress:
        summary = send_all(client, calls, rate=rate, sent=progress.advance, patience=PATIENCE)
    facts = {"seed": seed, **summary.as_dict()}
    if as_json:
        print_json(facts)
        return
    say(f"sent {summary.events:,} events in {summary.requests:,} requests, {summary.seconds:.1f} s, seed {seed}")
    for kind, number in sorted(summary.types.items()):
        say(f"{kind} {number:,}")
    if summary.user_id is not None:
        say(f"look at one of them: millrace profile user_id:{summary.user_id}")


COMMANDS: Final = (send,)


def _write_key(here: "Environment") -> str:
    """The variable, else the first source of millrace.yaml, else what the data folder remembers."""
    from millrace.settings import load_config

    if here.write_key is not None:
        return here.write_key
    for source in load_config(here, delivers=False).config.sources.values():
        return source.write_key.get_secret_value()
    kept = data_folder.recall(here.data, data_folder.WRITE_KEY)
    if kept is None:
        raise ConfigError(
            f"no write key: {here.data} is not the data folder of a Millrace that ran; start `millrace up`, "
            "name the folder with --data, or give --write-key"
        )
    return kept


class _Progress:
    """A bar on a terminal, nothing elsewhere."""

    def __init__(self, total: int, *, quiet: bool) -> None:
        self._bar: Any = None
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("sending"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("sending", total=total)

    def advance(self, events: int) -> None:
        if self._bar is not None:
            self._bar.advance(self._task, events)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
