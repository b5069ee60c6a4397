"""Secrets: kept encrypted, named in millrace.yaml, told to nobody."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from millrace.cli import commands
from millrace.environment import Flags, read_environment
from millrace.secret_store import KEY, STORE, SecretStore
from millrace.settings import load_config
from schemas.errors import ConfigError

CANARY = "canary-5f1d"


def run(*arguments: str, given: str | None = None) -> tuple[int, str]:
    said = CliRunner().invoke(commands, ["secrets", *arguments], input=given)
    return said.exit_code, said.output


def test_a_secret_is_set_listed_and_removed_without_being_shown(tmp_path: Path) -> None:
    here = ("--data", str(tmp_path))
    assert run("set", "crm", *here, given=CANARY) == (
        0,
        "secret crm is set; write ${secret:crm} where millrace.yaml needs it\n",
    )
    assert run("list", *here) == (0, "crm\n")
    assert SecretStore(tmp_path, None).get("crm") == CANARY
    assert run("remove", "crm", *here) == (0, "secret crm is gone\n")
    assert run("list", *here) == (0, "")


def test_the_data_folder_holds_no_secret_in_the_clear_and_only_the_owner_may_read_it(tmp_path: Path) -> None:
    SecretStore(tmp_path, None).set("crm", CANARY)
    assert [file.name for file in tmp_path.rglob("*") if file.is_file() and CANARY.encode() in file.read_bytes()] == []
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in (STORE, KEY)] == [0o600, 0o600]


def test_a_secret_opens_with_its_own_key_only(tmp_path: Path) -> None:
    SecretStore(tmp_path, "k" * 32).set("crm", CANARY)
    assert SecretStore(tmp_path, "k" * 32).get("crm") == CANARY
    with pytest.raises(ConfigError, match="sealed with another key"):
        SecretStore(tmp_path, "l" * 32).get("crm")
    with pytest.raises(ConfigError, match="shorter than 32"):
        SecretStore(tmp_path, "short").get("crm")
    with pytest.raises(ConfigError, match="is gone; restore it"):
        SecretStore(tmp_path, None).get("crm")


def test_the_configuration_takes_secrets_and_files_by_name(tmp_path: Path) -> None:
    SecretStore(tmp_path / "data", None).set("key", "wk_secret")
    (tmp_path / "next.txt").write_text("wk_file\n")
    (tmp_path / "millrace.yaml").write_text(
        "sources: {web: {write_key: '${secret:key}', second_write_key: '${file:next.txt}'}}"
    )
    flags = Flags(config=str(tmp_path / "millrace.yaml"), data=str(tmp_path / "data"))
    source = load_config(read_environment({}, flags), delivers=False).config.sources["web"]
    assert source.second_write_key is not None
    assert (source.write_key.get_secret_value(), source.second_write_key.get_secret_value()) == ("wk_secret", "wk_file")


def test_what_is_not_there_is_a_fault_with_its_remedy_unless_a_default_is_given(tmp_path: Path) -> None:
    (tmp_path / "millrace.yaml").write_text(
        "sources:\n  web: {write_key: '${secret:none}'}\n  app: {write_key: '${file:none.txt}'}\n"
        "  server: {write_key: '${secret:none:-fallback}'}\n"
    )
    flags = Flags(config=str(tmp_path / "millrace.yaml"), data=str(tmp_path / "data"))
    with pytest.raises(ConfigError) as caught:
        load_config(read_environment({}, flags), delivers=False)
    assert [fault.removeprefix(f"{tmp_path}/") for fault in caught.value.faults] == [
        "millrace.yaml:2 sources.web.write_key: there is no secret none; add it with `millrace secrets set none`",
        "millrace.yaml:3 sources.app.write_key: there is no file none.txt; a relative path begins at the folder of this file",
    ]


def test_a_name_must_be_usable_in_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a name"):
        SecretStore(tmp_path, None).set("a}b", CANARY)
