"""`millrace alerts`: what is wrong now, and whether the channels work."""

from typing import Final

import click

from millrace.cli.common import config_option, data_option, environment, json_option, print_json, say


@click.group(invoke_without_command=True)
@config_option
@data_option
@json_option
@click.pass_context
def alerts(context: click.Context, config: str | None, data: str | None, as_json: bool) -> None:
    """What is wrong now, with what to do. Exit code 1 when something is."""
    if context.invoked_subcommand is None:
        raise SystemExit(_show(config, data, as_json=as_json))


@alerts.command("test")
@config_option
@data_option
def test_channels(config: str | None, data: str | None) -> None:
    """Send a test message to every channel."""
    import asyncio

    from millrace.checks import try_channels
    from millrace.settings import load_settings

    settings = load_settings(environment(config=config, data=data), delivers=False)
    if not settings.config.alerts.channels:
        raise click.ClickException("no channel is configured; name one under alerts.channels in millrace.yaml")
    failed = False
    for name, problem in asyncio.run(try_channels(settings)):
        failed = failed or problem is not None
        say(f"channel {name} {'was told' if problem is None else f'was not reached: {problem}'}", err=bool(problem))
    raise SystemExit(1 if failed else 0)


def _show(config: str | None, data: str | None, *, as_json: bool) -> int:
    from millrace import wiring
    from millrace.settings import load_settings
    from pipeline.query.alerts import view
    from pipeline.store import alerts as store

    settings = load_settings(environment(config=config, data=data), delivers=False)
    with wiring.open_database(settings) as database:
        wiring.usable(settings, database)
        open_ones = [one for one in database.read_sync(store.alerts).values() if one.is_on]
    known = [view(one) for one in open_ones]
    if as_json:
        print_json([one.json_object() for one in known])
    elif not known:
        say("all is well")
    else:
        for one in known:
            say(f"{one.alert}, since {one.since}: {one.text}\n  {one.remedy}")
    return 1 if known else 0


COMMANDS: Final = (alerts,)
