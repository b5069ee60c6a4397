"""The command line. Results go to stdout, one fact per line, problems with their remedy to stderr; exit 0 done, 1 failed,
2 misused. These modules import next to nothing: each command imports what it needs when it runs."""

import os
import sys

import click

from millrace.cli import (
    alerts,
    asking,
    dead_letters,
    destinations,
    filters,
    functions,
    identity,
    preflight,
    privacy,
    profiles,
    refusals,
    replay,
    running,
    secrets,
    sending,
    setting_up,
)
from millrace.cli.common import say
from millrace.problems import explained


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def commands() -> None:
    """Millrace: every event kept, one profile per person, every tool fed.

    `millrace up` starts everything on this machine; no file is needed."""


for command in (
    *running.COMMANDS,
    *asking.COMMANDS,
    *identity.COMMANDS,
    *profiles.COMMANDS,
    *privacy.COMMANDS,
    *refusals.COMMANDS,
    *sending.COMMANDS,
    *setting_up.COMMANDS,
    *secrets.COMMANDS,
    *alerts.COMMANDS,
    *preflight.COMMANDS,
    *dead_letters.COMMANDS,
    *destinations.COMMANDS,
    *filters.COMMANDS,
    *functions.COMMANDS,
    *replay.COMMANDS,
):
    commands.add_command(command)


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    try:
        outcome = commands.main(prog_name="millrace", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:  # `millrace tail | head`: whoever read us has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        problems = explained(error)
        if problems is None:
            raise
        for line in problems:
            say(f"millrace: {line}", err=True)
        sys.exit(1)
    sys.exit(outcome if isinstance(outcome, int) else 0)
