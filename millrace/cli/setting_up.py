"""`check`, `schema`, `migrate`, `version`: before and around running."""

from typing import Final

import click

from millrace.cli.common import config_option, data_option, environment, print_json


@click.command()
@config_option
@click.option("--connect", is_flag=True, help="Also ask each destination whether it is reachable and knows us.")
@data_option
def check(config: str | None, data: str | None, connect: bool) -> None:
    """Report every fault of the configuration at once."""
    from millrace.settings import DEFAULT_SOURCE, destinations_of, load_config, load_settings

    here = environment(config=config, data=data)
    loaded = load_config(here, delivers=True)
    click.echo(f"{here.config or 'no configuration file, the defaults'}: no faults")
    for name in list(loaded.config.sources) or [DEFAULT_SOURCE]:
        click.echo(f"source {name}")
    if not connect:
        for name, one in destinations_of(loaded.config).items():
            click.echo(f"destination {name} ({one.type})")
        return
    from millrace.checks import check_all

    failed = False
    for name, kind, problem in check_all(load_settings(here, delivers=True)):
        click.echo(f"destination {name} ({kind}) {'answers' if problem is None else 'fails'}")
        if problem is not None:
            failed = True
            click.echo(f"millrace: destination {name}: {problem}", err=True)
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
    click.echo(f"database {without_password(here.database_url)} is at version {version}")


@click.group(invoke_without_command=True)
@click.pass_context
def destinations(context: click.Context) -> None:
    """The kinds of destinations there are."""
    if context.invoked_subcommand is None:
        context.invoke(list_destinations, as_json=False)


@destinations.command("list")
@json_option
def list_destinations(as_json: bool) -> None:
    """List them with what they do."""
    from destinations.registry import definitions

    found = definitions().values()
    if as_json:
        print_json([{"name": one.name, "description": one.description} for one in found])
        return
    width = max((len(one.name) for one in found), default=0)
    for one in found:
        click.echo(f"{one.name:<{width}}  {one.description}")


@destinations.command("show")
@click.argument("name")
@json_option
def show_destination(name: str, as_json: bool) -> None:
    """What one is and takes: its settings, its actions."""
    from destinations.registry import definition

    found = definition(name)
    settings = found.settings.model_json_schema()
    if as_json:
        actions = [{"name": one.name, "types": list(one.types), "max_batch": one.max_batch} for one in found.actions]
        print_json({"name": name, "description": found.description, "settings": settings, "actions": actions})
        return
    click.echo(f"{name}: {found.description}")
    for setting, about in settings.get("properties", {}).items():
        needed = "required" if setting in settings.get("required", ()) else f"default {_default(about)}"
        click.echo(f"setting {setting} ({needed}): {about.get('description', '')}")
    for action in found.actions:
        click.echo(f"action {action.name} ({', '.join(action.types)}), at most {action.max_batch} events at once")


def _default(about: dict[str, Any]) -> str:
    import json

    return json.dumps(about["default"]) if "default" in about else "empty"


@click.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    click.echo(installed("millrace"))


COMMANDS: Final = (check, schema, migrate, version)
