"""`millrace dead-letters` and `millrace replay`, as far as they need no server."""

import click
import pytest
from click.testing import CliRunner

from millrace.cli.dead_letters import dead_letters
from millrace.cli.replay import Rate, replay


@pytest.mark.parametrize(
    ("text", "rate"), [("500", 500.0), ("500/s", 500.0), ("90/m", 1.5), ("1800/h", 0.5), ("0.5/s", 0.5), (2.0, 2.0)]
)
def test_rates_are_events_a_second(text: object, rate: float) -> None:
    assert Rate().convert(text, None, None) == rate


@pytest.mark.parametrize("text", ["0", "0/s", "-1", "fast", "5/d", "5 / s", ""])
def test_what_is_no_rate_is_misuse(text: str) -> None:
    with pytest.raises(click.BadParameter, match="write 500/s, 1000/m or 100/h"):
        Rate().convert(text, None, None)


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        (dead_letters, ["list", "--each"], "--each needs --destination"),
        (dead_letters, ["retry"], "Missing option '--destination'"),
        (dead_letters, ["purge", "--destination", "crm"], "say which ones with --cause, or --all"),
        (replay, [], "a replay needs --destination and --since"),
        (replay, ["--destination", "crm"], "a replay needs --destination and --since"),
        (replay, ["cancel", "0"], "0 is not in the range"),
    ],
)
def test_misuse_is_explained(command: click.Command, arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(command, arguments)
    assert (result.exit_code, said in result.output) == (2, True)
