"""The command line as a script sees it: exit codes, stdout for results, stderr for problems with their remedy."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.config import Config
from tests.command_line import Said, millrace

FOLDER = Path(__file__).parents[2]


def test_version_is_one_fact_on_stdout(tmp_path: Path) -> None:
    assert millrace(tmp_path, "version") == Said(0, "0.1.0\n", "")


@pytest.mark.parametrize("wrong", [["fly"], ["up", "--port", "many"], ["profile"], ["send", "--count", "0"]])
def test_misuse_exits_2_and_explains_on_stderr(tmp_path: Path, wrong: list[str]) -> None:
    said = millrace(tmp_path, *wrong)
    assert (said.code, said.out) == (2, "")
    assert "Error:" in said.err


def test_check_reports_every_fault_and_exits_1(tmp_path: Path) -> None:
    (tmp_path / "millrace.yaml").write_text("sources: {web: {}}\nlogg: {}\n")
    assert millrace(tmp_path, "check") == Said(
        1,
        "",
        "millrace: millrace.yaml:1 sources.web.write_key: required; add `write_key: …`\n"
        f"millrace: millrace.yaml:2 logg: unknown key; did you mean log? (known: {', '.join(Config.model_fields)})\n",
    )


def test_check_of_good_files_exits_0(tmp_path: Path) -> None:
    said = millrace(tmp_path, "check", "--config", str(FOLDER / "millrace.example.yaml"))
    assert said == Said(
        0,
        f"{FOLDER}/millrace.example.yaml: no faults\n"
        "source website\nsource backend\ndestination warehouse (duckdb)\ndestination orders (webhook)\n",
        "",
    )
    assert list(tmp_path.iterdir()) == []


def test_schema_is_json_on_stdout(tmp_path: Path) -> None:
    said = millrace(tmp_path, "schema")
    assert (said.code, said.err) == (0, "")
    assert json.loads(said.out)["title"] == "millrace.yaml"


def test_destinations_are_listed_one_a_line_or_as_json(tmp_path: Path) -> None:
    lines = millrace(tmp_path, "destinations").out.splitlines()
    found = json.loads(millrace(tmp_path, "destinations", "list", "--json").out)
    assert [line.split()[0] for line in lines] == [one["name"] for one in found]
    assert {"duckdb", "webhook"} <= {one["name"] for one in found}


def test_a_destination_shows_its_settings(tmp_path: Path) -> None:
    said = millrace(tmp_path, "destinations", "show", "webhook")
    assert said.code == 0
    assert "setting url (url, required, " in said.out
    assert millrace(tmp_path, "destinations", "show", "webhok").code == 1


@pytest.mark.parametrize("command", [["profile", "user_id:u1"], ["balance"], ["event", "m1"], ["tail"]])
def test_without_a_token_a_question_says_where_to_find_one(tmp_path: Path, command: list[str]) -> None:
    said = millrace(tmp_path, *command)
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("millrace: no API token: ")
    assert "--data" in said.err


def test_nobody_there_is_said_with_a_remedy(tmp_path: Path) -> None:
    said = millrace(tmp_path, "balance", "--url", "http://127.0.0.1:1", MILLRACE_API_TOKEN="t")
    assert said == Said(
        1,
        "",
        "millrace: http://127.0.0.1:1 does not answer (Connection refused); start it with `millrace up`, "
        "or say where it is with --url or --data\n",
    )


@pytest.mark.parametrize("role", ["up", "process", "deliver"])
def test_an_unreachable_database_is_said_with_a_remedy_and_without_its_password(tmp_path: Path, role: str) -> None:
    said = millrace(tmp_path, role, MILLRACE_DATABASE="postgresql://u:s3cr3t@127.0.0.1:1/m", MILLRACE_PORT="0")
    assert (said.code, said.out) == (1, "")
    assert "millrace: database postgresql://u:***@127.0.0.1:1/m: " in said.err
    assert "say where it is with MILLRACE_DATABASE" in said.err
    assert "s3cr3t" not in said.err


def test_an_unreachable_broker_is_said_with_a_remedy(tmp_path: Path) -> None:
    said = millrace(tmp_path, "process", MILLRACE_LOG="kafka://127.0.0.1:1")
    assert (said.code, said.out) == (1, "")
    assert "millrace: log kafka://127.0.0.1:1: cannot reach Kafka; is it running at 127.0.0.1:1" in said.err


@pytest.mark.parametrize("role", ["up", "collect", "process", "deliver"])
def test_a_newer_data_folder_stops_every_role_and_stays_untouched(tmp_path: Path, role: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "VERSION").write_text("99\n")

    said = millrace(tmp_path, role)

    assert (said.code, said.out) == (1, "")
    assert "was written by a newer Millrace (data version 99, this one knows 1); upgrade Millrace" in said.err
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["VERSION"]


def test_the_command_line_starts_without_what_commands_need() -> None:
    out = subprocess.run(
        [sys.executable, "-c", "import millrace.cli, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    heavy = {
        "pydantic",
        "yaml",
        "rich",
        "sqlalchemy",
        "uvicorn",
        "aiohttp",
        "duckdb",
        "structlog",
        "pyarrow",
        "asyncio",
    }
    assert heavy & set(out) == set()


def imports_of(role: str) -> list[str]:
    """The modules that a role's function in the wiring imports."""
    wiring = ast.parse((FOLDER / "millrace" / "wiring.py").read_text())
    (function,) = [node for node in wiring.body if isinstance(node, ast.AsyncFunctionDef) and node.name == role]
    return [node.module for node in ast.walk(function) if isinstance(node, ast.ImportFrom) and node.module is not None]


@pytest.mark.parametrize(
    ("role", "others"),
    [
        ("collect", {"duckdb", "pyarrow", "aiohttp", "aiokafka", "alembic"}),
        ("process", {"uvicorn", "starlette", "duckdb", "pyarrow", "aiohttp", "aiokafka"}),
        ("deliver", {"uvicorn", "starlette", "duckdb", "pyarrow", "aiohttp", "aiokafka"}),
    ],
)
def test_a_role_does_not_load_what_only_others_need(role: str, others: set[str]) -> None:
    modules = ["millrace.cli", "millrace.roles", "millrace.wiring", "pipeline.log.embedded", *imports_of(role)]
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert others & set(loaded) == set()
