"""docker-compose.yml and Dockerfile: what they say, and that the very commands they name do their work on real services.

No container engine is needed: the commands run here, with the environment of the file."""

import json
import os
import re
import signal
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.services.kafka import KafkaBroker
from tests.services.process import Service, free_ports

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ROLES = ("collect", "process", "deliver")
PATIENCE = 60.0
SECRETS = {"MILLRACE_WRITE_KEY": "wk_compose", "MILLRACE_API_TOKEN": "token_compose"}


# ── What the files say ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_services_are_the_broker_the_database_and_one_process_per_role() -> None:
    commands = {name: service.get("command") for name, service in SERVICES.items()}

    assert commands == {
        "kafka": None,
        "postgres": None,
        "migrate": ["millrace", "migrate"],
        "collect": ["millrace", "collect"],
        "process": ["millrace", "process"],
        "deliver": ["millrace", "deliver"],
    }


def test_every_image_names_its_version() -> None:
    bases = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    tags = {image: image.partition(":")[2] for image in [*(one["image"] for one in SERVICES.values()), *bases]}

    assert {image for image, tag in tags.items() if not tag or tag == "latest"} == set()


def test_the_broker_is_the_version_that_the_tests_run_on() -> None:
    pom = (ROOT / "tools" / "kafka" / "pom.xml").read_text()

    assert SERVICES["kafka"]["image"] == f"apache/kafka:{re.findall('<kafka.version>(.+)</kafka.version>', pom)[0]}"


def test_roles_wait_for_healthy_services_and_a_migrated_database() -> None:
    healthy = {"kafka": {"condition": "service_healthy"}, "postgres": {"condition": "service_healthy"}}

    assert SERVICES["migrate"]["depends_on"] == healthy
    for role in ROLES:
        assert SERVICES[role]["depends_on"] == healthy | {"migrate": {"condition": "service_completed_successfully"}}
    assert {name for name, service in SERVICES.items() if "healthcheck" in service} == {"kafka", "postgres", "collect"}


def test_roles_come_back_and_the_migration_runs_once() -> None:
    assert {name: service["restart"] for name, service in SERVICES.items()} == {
        "kafka": "unless-stopped",
        "postgres": "unless-stopped",
        "migrate": "no",
        "collect": "unless-stopped",
        "process": "unless-stopped",
        "deliver": "unless-stopped",
    }


@pytest.mark.parametrize("secret", sorted(SECRETS))
def test_a_secret_that_is_not_given_stops_the_start_with_its_name(secret: str) -> None:
    given = {name: value for name, value in SECRETS.items() if name != secret}

    with pytest.raises(KeyError, match=secret):
        environment("collect", given)


def test_services_listen_on_this_machine_only() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert ports == {
        "kafka": ["127.0.0.1:9092:9092"],
        "postgres": ["127.0.0.1:5432:5432"],
        "collect": ["${MILLRACE_PORT:-8080}:8080"],
    }


def test_the_broker_keeps_its_data_in_a_volume_and_advertises_the_address_that_roles_use() -> None:
    kafka = SERVICES["kafka"]["environment"]
    advertised = dict(one.split("://") for one in kafka["KAFKA_ADVERTISED_LISTENERS"].split(","))

    assert environment("collect", SECRETS)["MILLRACE_LOG"] == f"kafka://{advertised['INTERNAL']}"
    assert SERVICES["kafka"]["volumes"] == [f"kafka:{kafka['KAFKA_LOG_DIRS']}"]
    assert set(COMPOSE["volumes"]) == {"kafka", "postgres", "data"}


def test_the_image_runs_as_a_user_without_rights() -> None:
    final = (ROOT / "Dockerfile").read_text().rpartition("FROM ")[2]

    assert re.findall(r"^USER (.+)$", final, re.MULTILINE) == ["10001"]


def test_the_image_installs_nothing_without_its_hash() -> None:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    installs = re.findall(r"pip install[^&\n]*", text)

    assert len(installs) == 2
    assert [one for one in installs if "--require-hashes" not in one and "--no-deps" not in one] == []


def test_the_image_is_built_from_the_packages_alone() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)

    assert {one[1:] for one in ignored if one.startswith("!")} == {name for line in copied for name in line.split()}


# ── The commands ────────────────────────────────────────────────────────────────────────────────────────────────────


class Composed:
    """The roles of the file as processes of this machine, on the tests' broker and database."""

    def __init__(self, folder: Path, log: str, database: str) -> None:
        (port,) = free_ports(1)
        self.folder = folder
        self.url = f"http://127.0.0.1:{port}"
        self._here = {
            "MILLRACE_LOG": log,
            "MILLRACE_DATABASE": database,
            "MILLRACE_DATA": str(folder / "data"),
            "MILLRACE_HOST": "127.0.0.1",
            "MILLRACE_PORT": str(port),
        }
        self.services = {name: Service(name, folder / f"{name}.log") for name in ("migrate", *ROLES)}

    def start(self, name: str) -> Service:
        """Starts a service's command with its environment, addresses of this machine in place of the containers'."""
        said = environment(name, SECRETS)
        given = said | {key: value for key, value in self._here.items() if key in said}
        program, *arguments = SERVICES[name]["command"]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MILLRACE_")}
        self.services[name].spawn(
            [str(Path(sys.executable).with_name(program)), *arguments], cwd=self.folder, environment=clean | given
        )
        return self.services[name]

    def ask(self, path: str, *, body: object = None, key: str = SECRETS["MILLRACE_API_TOKEN"]) -> Any:
        request = urllib.request.Request(
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Basic {b64encode(f'{key}:'.encode()).decode()}",
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read())

    def until(self, condition: Callable[[], Any]) -> Any:
        """What `condition` says once it is true; requests may fail until then."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                if found := condition():
                    return found
            except (urllib.error.URLError, ConnectionError):
                pass
            if time.monotonic() > end:
                raise AssertionError("\n".join(str(one.failed("so far")) for one in self.services.values()))
            time.sleep(0.1)


def environment(name: str, variables: Mapping[str, str]) -> dict[str, str]:
    """A service's environment as the engine would make it of `variables`. KeyError for a required one that lacks."""

    def value(found: re.Match[str]) -> str:
        variable, operator, rest = found["name"], found["operator"], found["rest"]
        if given := variables.get(variable):
            return given
        if operator == ":-":
            return rest
        raise KeyError(f"{variable}: {rest}")

    pattern = re.compile(r"\$\{(?P<name>\w+)(?:(?P<operator>:-|:\?)(?P<rest>[^}]*))?\}")
    return {key: pattern.sub(value, str(text)) for key, text in SERVICES[name]["environment"].items()}


@pytest.fixture
def composed(tmp_path: Path, own_kafka_broker: KafkaBroker, empty_postgres_url: str) -> Iterator[Composed]:
    composed = Composed(tmp_path, f"kafka://{own_kafka_broker.bootstrap}", empty_postgres_url)
    yield composed
    for service in composed.services.values():
        service.kill()


@pytest.mark.kafka
@pytest.mark.postgres
def test_the_commands_of_the_file_take_an_event_the_whole_way(composed: Composed) -> None:
    assert composed.start("migrate").wait(PATIENCE) == 0
    for role in ROLES:
        composed.start(role)
    composed.until(lambda: composed.ask("/ready"))

    event = {"userId": "u-compose", "event": "Composed", "messageId": "compose-1"}
    answer = composed.ask("/v1/track", body=event, key=SECRETS["MILLRACE_WRITE_KEY"])

    assert answer == {"success": True}
    (path,) = composed.until(
        lambda: [one for one in composed.ask("/api/events/compose-1")["events"] if one["complete"]]
    )
    assert path["destinations"]["warehouse"]["outcome"] == "delivered"
    for role in ROLES:
        os.kill(composed.services[role].pid, signal.SIGTERM)
    assert [composed.services[role].wait(PATIENCE) for role in ROLES] == [0, 0, 0]
