"""`check`, `schema`, `migrate`, `version`: before and around running."""

from typing import Final

import click

from millrace.cli.common import config_option, data_option, environment, print_json, say


@click.command()
@config_option
@click.option("--connect", is_flag=True, help="Also ask each destination whether it is reachable and knows us.")
@data_option
def check(config: str | None, data: str | None, connect: bool) -> None:
    """Report every fault of the configuration at once."""
    from millrace.settings import DEFAULT_SOURCE, destinations_of, load_config, load_settings

    here = environment(config=config, data=data)
    loaded = load_config(here, delivers=True)
    say(f"{here.config or 'no configuration file, the defaults'}: no faults")
    for name in list(loaded.config.sources) or [DEFAULT_SOURCE]:
        say(f"source {name}")
    if not connect:
        for name, one in destinations_of(loaded.config).items():
            say(f"destination {name} ({one.type})")
        return
    from millrace.checks import check_all

    failed = False
    for name, kind, problem in check_all(load_settings(here, delivers=True)):
        say(f"destination {name} ({kind}) {'answers' if problem is None else 'fails'}")
        if problem is not None:
            failed = True
            say(f"millrace: destination {name}: {problem}", err=True)
    if failed:
        raise SystemExit(1)


@click.command()
def schema() -> None:
    """Print the JSON Schema of millrace.yaml, for editors."""
    from millrace.config.json_schema import config_schema

    print_json(config_schema())


@click.command()
@config_option
@data_option
def migrate(config: str | None, data: str | None) -> None:
    """Bring the database to the tables of this release."""
    from millrace import wiring
    from millrace.problems import without_password
    from millrace.settings import load_settings

    here = environment(config=config, data=data)
    settings = load_settings(here, delivers=False)
    with wiring.open_database(settings) as database:
        version = wiring.migrated(settings, database)
    say(f"database {without_password(here.database_url)} is at version {version}")


@click.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    say(installed("millrace"))


COMMANDS: Final = (check, schema, migrate, version)
