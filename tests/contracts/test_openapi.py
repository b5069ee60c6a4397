"""The OpenAPI document: it names what is served, and what is served keeps to it, whatever is asked."""

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPMessage
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.routing import Route

from collector.app import create_collector
from collector.operations import OPERATIONS as TRACKING
from collector.protocol import protocol_class
from collector.routes import ROUTES
from pipeline.log import open_log
from pipeline.query.app import create_api
from pipeline.query.profile_api.app import ProfileApi
from pipeline.query.profile_api.operations import OPERATIONS as PROFILES
from pipeline.store.database import Database
from pipeline.worker import run_worker
from schemas.openapi import document
from tests.http import Server
from tests.stores import prepare

TOKEN = "operator"
WRITE_KEY = "wk"
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


class Running(threading.Thread):
    """Collector, API and pipeline on a port, in a thread of their own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.port, self.document = folder, 0, dict[str, Any]()
        self.routes: list[tuple[str, str]] = []
        self.ready = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.stop = asyncio.Event()

    def run(self) -> None:
        self.loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        database = Database(f"sqlite:///{self.folder}/millrace.sqlite")
        prepare(database)
        async with open_log(f"embedded://{self.folder}/log", partitions=2) as log:
            collector = create_collector(log=log, sources={WRITE_KEY: "web"})
            api = create_api(log, database, token=TOKEN, destinations=["crm"], operations=TRACKING)
            self.routes = [
                (method, route.path)
                for route in api.router.routes
                if isinstance(route, Route)
                for method in sorted(route.methods or ())
                if method != "HEAD" and route.path != "/{path:path}"
            ]
            api.router.routes[:0] = collector.routes()
            collector.fallback = api
            async with Server(collector, protocol_class(collector.intake)).running() as port:
                worker = asyncio.create_task(run_worker(log, database, stop=self.stop))
                self.port = port
                self.ready.set()
                await self.stop.wait()
                await worker
            await api.state.profiles.close()
        database.close()

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.stop.set)
        self.join(30)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    server = Running(tmp_path_factory.mktemp("openapi"))
    server.start()
    assert server.ready.wait(30)
    yield server
    server.end()


@pytest.fixture(scope="module")
def schema(running: Running) -> Any:
    return schemathesis.openapi.from_url(f"http://127.0.0.1:{running.port}/api/openapi.json")


def test_the_document_names_every_route_of_the_management_api_and_no_other(running: Running, schema: Any) -> None:
    ours = {(one.method, one.path) for one in (*TRACKING, *PROFILES)}
    named = {
        (method.upper(), path)
        for path, operations in schema.raw_schema["paths"].items()
        for method in operations
        if (method.upper(), path) not in ours
    }
    assert named == {(method, path.replace(":path}", "}")) for method, path in running.routes}


def test_the_document_names_every_path_that_takes_events() -> None:
    named = {one.path for one in TRACKING if one.method == "POST"}
    assert {path.removeprefix("/v1").rstrip("/").removeprefix("/v1") for path in ROUTES} == {
        path.removeprefix("/v1") for path in named
    }


def test_the_document_names_every_resource_of_the_profile_api(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/none.sqlite")
    api = ProfileApi(None, database, api_token=TOKEN)  # type: ignore[arg-type]  # only its table of contents is looked at
    names = {one.path.rpartition("/")[2] for one in PROFILES}
    assert names == {*api.resources, *api.posts, "profiles", "delete"}
    database.close()


def test_the_document_is_the_same_whenever_it_is_made() -> None:
    made = document((*TRACKING, *PROFILES), version("millrace"))
    assert made == document((*TRACKING, *PROFILES), version("millrace"))
    assert made["openapi"] == "3.1.0"


ENDLESS = {"/api/tail"}


def test_whatever_is_asked_is_answered_as_the_document_says(running: Running, schema: Any, examples: int) -> None:
    """Sound and unsound requests are made from the document, with the token and without."""
    asked = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path in ENDLESS:
            continue
        asked += 1
        _ask(operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE), examples)
        with suppress(Unsatisfiable):  # of some operations nothing unsound can be made
            _ask(operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE), examples)
    assert asked > 30


def test_what_is_nowhere_can_be_read_by_every_sdk_and_by_pages(running: Running) -> None:
    """An SDK whose host has a path too much: without `code` at the top some send again, and pages read nothing without CORS."""
    status, headers, body = _request(running, "POST", "/somewhere/v1/batch")
    assert (status, headers["Access-Control-Allow-Origin"]) == (404, "*")
    assert body == {"success": False, **body["error"], "error": {"code": "not_found", "message": body["message"]}}
    assert "/somewhere/v1/batch" in body["message"]


def test_what_is_asked_in_another_way_is_told_how(running: Running) -> None:
    for method, path, allowed in (
        ("DELETE", "/api/balance", "GET"),
        ("OPTIONS", "/api/balance", "GET"),
        ("GET", "/api/identity/unmerge", "POST"),
        ("PUT", "/v1/batch", "POST, OPTIONS"),
    ):
        status, headers, body = _request(running, method, path)
        assert (status, headers["Allow"], "method_not_allowed" in str(body)) == (405, allowed, True), path


def _request(running: Running, method: str, path: str) -> tuple[int, HTTPMessage, Any]:
    connection = HTTPConnection("127.0.0.1", running.port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers, json.loads(answer.read())
    finally:
        connection.close()


def _ask(cases: Any, examples: int) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def ask(case: Any) -> None:
        case.call_and_validate(
            checks=CHECKS, auth=(WRITE_KEY if case.path.startswith("/v1/") and "spaces" not in case.path else TOKEN, "")
        )

    ask()


@pytest.fixture(scope="module")
def examples() -> int:
    """Requests of each kind and operation."""
    return int(os.environ.get("MILLRACE_REQUESTS", "8"))
