"""What `${…}` in millrace.yaml may name: an environment variable, `file:path`, `secret:name`."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from millrace.environment import Environment
from millrace.secret_store import SecretStore
from schemas.errors import ConfigError


class References(Mapping[str, str]):
    """Variables as they are; files whole, without the line break at their end, relative to the folder of millrace.yaml;
    secrets from the store."""

    def __init__(self, here: Environment) -> None:
        self._variables = here.variables
        self._folder = here.config.absolute().parent if here.config is not None else Path()
        self._secrets = SecretStore(here.data, here.secrets_key)

    def __getitem__(self, name: str) -> str:
        kind, colon, rest = name.partition(":")
        if not colon:
            return self._variables[name]
        value = self._secrets.get(rest) if kind == "secret" else self._file(self._folder / rest)
        if value is None:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)

    @staticmethod
    def _file(path: Path) -> str | None:
        try:
            return path.read_text(encoding="utf-8").rstrip("\r\n")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{path}: cannot be read as text: {error}; mend its permissions or its content"
            ) from error
