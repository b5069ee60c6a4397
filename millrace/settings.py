"""All that a role needs to know, from the environment, the data folder and `millrace.yaml`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr

from millrace import data_folder
from millrace.config.load import Loaded, SettingsModels, load_file
from millrace.environment import Environment
from millrace.references import References
from schemas.config import Config, DestinationConfig, FunctionConfig, SourceConfig
from schemas.errors import ConfigError

DEFAULT_SOURCE: Final = "default"
DEFAULT_DESTINATION: Final = "warehouse"
DEFAULT_WAREHOUSE: Final = DestinationConfig(type="duckdb", settings={"path": "warehouse.duckdb"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What was decided before anything starts."""

    environment: Environment
    config: Config
    sources: Mapping[str, SourceConfig]  # never empty
    destinations: Mapping[str, DestinationConfig]
    destination_settings: Mapping[str, Any]  # each of its type's own model; empty unless they were asked for
    api_token: SecretStr


def load_settings(environment: Environment, *, delivers: bool) -> Settings:
    """Checks everything and prepares the data folder. ConfigError holds every fault of the file.

    `delivers`: the settings of destinations are needed too; without it they are neither expanded nor checked."""
    loaded = load_config(environment, delivers=delivers)
    data_folder.prepare(environment.data)
    return Settings(
        environment=environment,
        config=loaded.config,
        sources=loaded.config.sources or {DEFAULT_SOURCE: SourceConfig(write_key=_write_key(environment))},
        destinations=destinations_of(loaded.config),
        destination_settings=loaded.settings,
        api_token=_api_token(environment),
    )


def destinations_of(config: Config) -> Mapping[str, DestinationConfig]:
    """Those that are named, or the default one when the section is left out."""
    return {DEFAULT_DESTINATION: DEFAULT_WAREHOUSE} if config.destinations is None else config.destinations


def load_config(environment: Environment, *, delivers: bool) -> Loaded:
    """The file's content, or what holds without a file. Touches nothing."""
    models = settings_models if delivers else None
    if environment.config is None:
        loaded = Loaded(Config())
    else:
        loaded = load_file(environment.config, References(environment), models)
    _functions_are_there(loaded, environment)
    if delivers and loaded.config.destinations is None:
        model = settings_models()[DEFAULT_WAREHOUSE.type]
        loaded.settings[DEFAULT_DESTINATION] = model.model_validate(DEFAULT_WAREHOUSE.settings)
    return loaded


def functions_folder(environment: Environment, config: Config) -> Path:
    """Where the files of functions are: beside millrace.yaml, unless it says otherwise."""
    beside = Path() if environment.config is None else environment.config.parent
    return (beside / config.functions.folder).absolute()


def _functions_are_there(loaded: Loaded, environment: Environment) -> None:
    """Every function that is named has its file; whether that can be loaded is seen when it runs."""
    folder = functions_folder(environment, loaded.config)
    faults = [
        f"{environment.config} {key}: there is no {folder / name}.py; write it, or name another function"
        for key, name in _functions_named(loaded)
        if not (folder / f"{name}.py").is_file()
    ]
    if faults:
        raise ConfigError(*faults)


def _functions_named(loaded: Loaded) -> Iterator[tuple[str, str]]:
    """Key and name of each function that is used."""
    for kind, members in (("sources", loaded.config.sources), ("destinations", loaded.config.destinations or {})):
        for name, member in members.items():
            if member.function is not None:
                yield f"{kind}.{name}.function", member.function.name
    for name, settings in loaded.settings.items():
        if isinstance(settings, FunctionConfig):
            yield f"destinations.{name}.settings.name", settings.name


def settings_models() -> SettingsModels:
    """The settings model of every destination type there is."""
    from destinations.registry import definitions

    return {name: one.settings for name, one in definitions().items()}


def _write_key(environment: Environment) -> SecretStr:
    return SecretStr(environment.write_key or data_folder.remembered(environment.data, data_folder.WRITE_KEY, "wk_"))


def _api_token(environment: Environment) -> SecretStr:
    return SecretStr(environment.api_token or data_folder.remembered(environment.data, data_folder.API_TOKEN, "token_"))
