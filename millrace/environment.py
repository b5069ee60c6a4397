"""The process environment, read once and here. Flags win over variables, variables over defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from schemas.errors import ConfigError

DEFAULT_CONFIG: Final = Path("millrace.yaml")
DEFAULT_DATA: Final = "data"
DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8080


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """What the command line said; None where it said nothing."""

    config: str | None = None
    data: str | None = None
    host: str | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Where this process finds things. Anything that may hold a secret is kept out of `repr`."""

    config: Path | None  # None: no file, the defaults
    data: Path  # absolute
    host: str
    port: int
    placed: bool  # host or port was said, not assumed or left to the system
    log_url: str = field(repr=False)
    database_url: str = field(repr=False)
    write_key: str | None = field(repr=False)
    api_token: str | None = field(repr=False)
    secrets_key: str | None = field(repr=False)
    reuse_port: bool
    variables: Mapping[str, str] = field(repr=False)  # for ${VAR} in millrace.yaml

    @property
    def address(self) -> str:
        """The URL under which this machine reaches the collector."""
        return http_address(self.host, self.port)


def read_environment(variables: Mapping[str, str], flags: Flags | None = None) -> Environment:
    """ConfigError names every variable that cannot work."""
    flags = flags or Flags()
    faults: list[str] = []
    said = {name: value for name, value in variables.items() if name.startswith("MILLRACE_") and value}
    data = Path(flags.data or said.get("MILLRACE_DATA") or DEFAULT_DATA).absolute()
    port = flags.port if flags.port is not None else _port(said.get("MILLRACE_PORT"), faults)
    config = _config(flags.config or said.get("MILLRACE_CONFIG"), faults)
    write_key = _write_key(said.get("MILLRACE_WRITE_KEY"), faults)
    if faults:
        raise ConfigError(*faults)
    return Environment(
        config=config,
        data=data,
        host=flags.host or said.get("MILLRACE_HOST") or DEFAULT_HOST,
        port=port,
        placed=port != 0 and bool(flags.host or flags.port or said.keys() & {"MILLRACE_HOST", "MILLRACE_PORT"}),
        log_url=said.get("MILLRACE_LOG") or f"embedded://{data / 'log'}",
        database_url=said.get("MILLRACE_DATABASE") or f"sqlite:///{data / 'millrace.sqlite'}",
        write_key=write_key,
        api_token=said.get("MILLRACE_API_TOKEN"),
        secrets_key=said.get("MILLRACE_SECRETS_KEY"),
        reuse_port=said.get("MILLRACE_REUSE_PORT", "").lower() in ("1", "true", "yes", "on"),
        variables=variables,
    )


def http_address(host: str, port: int) -> str:
    """A listening address as a URL to connect to: a wildcard is reached over loopback."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"


def _port(text: str | None, faults: list[str]) -> int:
    if text is None:
        return DEFAULT_PORT
    if text.isdecimal() and int(text) <= 65535:
        return int(text)
    faults.append(f"MILLRACE_PORT: {text!r} is not a port; set a number from 0 to 65535 (0 picks a free one)")
    return DEFAULT_PORT


def _write_key(text: str | None, faults: list[str]) -> str | None:
    if not text:
        return None
    from schemas.config import a_write_key  # not at once: commands start faster without it

    try:
        return a_write_key(text)
    except ValueError as error:
        faults.append(f"MILLRACE_WRITE_KEY: {error}")
        return None


def _config(said: str | None, faults: list[str]) -> Path | None:
    if said is None:
        return DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else None
    path = Path(said)
    if not path.is_file():
        faults.append(f"{path}: no such file; give an existing file to --config or MILLRACE_CONFIG, or neither")
    return path
