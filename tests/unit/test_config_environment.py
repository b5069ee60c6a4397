"""The environment is read once; flags win over variables, variables over defaults."""

from pathlib import Path

import pytest

from millrace.environment import Environment, Flags, read_environment
from schemas.errors import ConfigError


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_without_anything_said_the_defaults_hold(tmp_path: Path) -> None:
    assert read_environment({}) == Environment(
        config=None,
        data=tmp_path / "data",
        host="127.0.0.1",
        port=8080,
        placed=False,
        log_url=f"embedded://{tmp_path}/data/log",
        database_url=f"sqlite:///{tmp_path}/data/millrace.sqlite",
        write_key=None,
        api_token=None,
        secrets_key=None,
        reuse_port=False,
        variables={},
    )


def test_variables_win_over_defaults_and_flags_over_variables(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").touch()
    (tmp_path / "two.yaml").touch()
    variables = {
        "MILLRACE_CONFIG": "one.yaml",
        "MILLRACE_DATA": "/var/one",
        "MILLRACE_HOST": "0.0.0.0",
        "MILLRACE_PORT": "9000",
        "MILLRACE_LOG": "kafka://k:9092",
        "MILLRACE_DATABASE": "postgresql://db/m",
        "MILLRACE_WRITE_KEY": "wk",
        "MILLRACE_API_TOKEN": "token",
        "MILLRACE_REUSE_PORT": "1",
    }

    said = read_environment(variables)
    assert said == Environment(
        config=Path("one.yaml"),
        data=Path("/var/one"),
        host="0.0.0.0",
        port=9000,
        placed=True,
        log_url="kafka://k:9092",
        database_url="postgresql://db/m",
        write_key="wk",
        api_token="token",
        secrets_key=None,
        reuse_port=True,
        variables=variables,
    )
    assert said.address == "http://127.0.0.1:9000"

    flagged = read_environment(variables, Flags(config="two.yaml", data="/var/two", host="::", port=0))
    assert (flagged.config, flagged.data, flagged.host, flagged.port) == (Path("two.yaml"), Path("/var/two"), "::", 0)
    assert flagged.address == "http://[::1]:0"


def test_millrace_yaml_in_the_current_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "millrace.yaml").touch()
    assert read_environment({}).config == Path("millrace.yaml")


def test_an_empty_variable_says_nothing() -> None:
    assert read_environment({"MILLRACE_PORT": "", "MILLRACE_CONFIG": ""}).port == 8080


def test_all_that_cannot_work_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        read_environment({"MILLRACE_PORT": "http", "MILLRACE_CONFIG": "gone.yaml", "MILLRACE_WRITE_KEY": "a:b"})
    assert list(caught.value.faults) == [
        "MILLRACE_PORT: 'http' is not a port; set a number from 0 to 65535 (0 picks a free one)",
        "gone.yaml: no such file; give an existing file to --config or MILLRACE_CONFIG, or neither",
        "MILLRACE_WRITE_KEY: holds a character that means something else in an address or in HTTP Basic; use letters, digits, "
        "- . _ and ~",
    ]


def test_secrets_are_not_in_the_repr() -> None:
    secrets = {
        "MILLRACE_WRITE_KEY": "s3cr3t",
        "MILLRACE_API_TOKEN": "s3cr3t",
        "MILLRACE_DATABASE": "postgresql://u:s3cr3t@db/m",
        "MILLRACE_LOG": "kafka://u:s3cr3t@k",
    }
    assert "s3cr3t" not in repr(read_environment(secrets))
