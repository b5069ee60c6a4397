"""A running Millrace with a webhook and a warehouse, and what reached both."""

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import Popen
from typing import Any, Final, TypeVar
from urllib.request import Request, urlopen

import duckdb
import yaml
from joserfc.jwk import RSAKey

from tests.services.process import end_group, spawn

PATIENCE: Final = 60.0  # seconds; a machine under load is slow, not wrong
SOURCES: Final = 200  # each test takes a fresh one
NAMED: Final = {"customerio": "pk_us_0c1a2b3c4d"}  # write keys whose form means something to an SDK
OAUTH: Final = ("reports", "billing", "shipping")  # take events by OAuth only; client and key are named as the source
TOKEN: Final = "token-of-the-sdk-tests"

T = TypeVar("T")
Event = dict[str, Any]
Row = dict[str, Any]


class Sink:
    """The webhook's receiver. A repeated message id is one event: deliveries are at least once."""

    def __init__(self) -> None:
        self._events: dict[tuple[str, str], Event] = {}
        self._more = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/events"

    def wait(self, source: str, count: int) -> list[Event]:
        """At least `count` events of a source, in order of arrival."""

        def enough() -> bool:
            return len(self._of(source)) >= count

        with self._more:
            assert self._more.wait_for(enough, PATIENCE), (
                f"{len(self._of(source))} of {count} events: {self._of(source)}"
            )
            return self._of(source)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _of(self, source: str) -> list[Event]:
        return [event for (name, _), event in self._events.items() if name == source]

    def _take(self, events: Sequence[Event]) -> None:
        with self._more:
            for event in events:
                self._events.setdefault((event["source"], event["messageId"]), event)
            self._more.notify_all()

    def _handler(sink) -> type[BaseHTTPRequestHandler]:  # the handler's own `self` is inside
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                sink._take(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
                """Silent."""

        return Handler


@dataclass(frozen=True)
class Source:
    """A source that nobody else writes to."""

    running: "Running"
    name: str
    write_key: str

    def calls_seen(self, count: int, refused: int = 0) -> list[Event]:
        """What the webhook got, once it has `count` events and the books say that there is nothing else."""
        self.settled(count, refused)
        events = self.running.sink.wait(self.name, count)
        assert len(events) == count, events
        return events

    def settled(self, accepted: int, refused: int = 0) -> Mapping[str, int]:
        """The source's books, once so many events were accepted and refused and every destination is done with them."""

        def done() -> Mapping[str, int] | None:
            intake, deliveries = self.running.books(self.name)
            whole = intake["accepted"] >= accepted and intake["refused"] >= refused and intake["waiting"] == 0
            return intake if whole and all(row["pending"] == 0 for row in deliveries) else None

        intake = until(done, lambda: f"{self.name} came to {self.running.books(self.name)}")
        assert (intake["accepted"], intake["refused"]) == (accepted, refused), intake
        return intake

    def traits(self, user_id: str) -> Mapping[str, Any]:
        """The traits of a person's profile."""
        traits: Mapping[str, Any] = self.running.ask(f"/api/profiles/user_id:{user_id}")["traits"]
        return traits

    def rows(self, table: str) -> list[Row]:
        """The rows of a warehouse table, as dicts without empty columns; times are aware."""
        with self.running.warehouse() as connection:
            cursor = connection.execute(f'SELECT * FROM "{self.name}"."{table}"')
            names = [column[0] for column in cursor.description or ()]
            return [
                {name: _aware(value) for name, value in zip(names, row, strict=True) if value is not None}
                for row in cursor.fetchall()
            ]

    def tables(self) -> set[str]:
        with self.running.warehouse() as connection:
            found = connection.execute("SELECT table_name FROM duckdb_tables() WHERE schema_name = ?", [self.name])
            return {name for (name,) in found.fetchall() if not name.startswith("_")}


class Running:
    """`millrace up` in a folder of its own. `browser_sdk` is the folder of the files that it serves to pages."""

    def __init__(self, folder: Path, browser_sdk: Path | None = None) -> None:
        self.sink = Sink()
        self._data = folder / "data"
        self.oauth_key = RSAKey.generate_key(2048, private=True)
        self._unused = iter(range(SOURCES))
        self._unused_oauth = iter(OAUTH)
        if browser_sdk is not None:
            shutil.copytree(browser_sdk, self._data / "browser-sdk")
        config = folder / "millrace.yaml"
        config.write_text(yaml.safe_dump(self._config()))
        self._process = self._start(folder, config)
        self.address = self._address(folder / "up.log")

    @property
    def host(self) -> str:
        """`127.0.0.1:port`, for SDKs that want no scheme."""
        return self.address.removeprefix("http://")

    def source(self) -> Source:
        name = _source_name(next(self._unused))
        return Source(self, name, _write_key(name))

    def named(self, name: str) -> Source:
        """One of `NAMED`."""
        return Source(self, name, NAMED[name])

    def oauth(self) -> Source:
        name = next(self._unused_oauth)
        return Source(self, name, _write_key(name))

    def books(self, source: str) -> tuple[Mapping[str, int], Sequence[Mapping[str, int]]]:
        """The intake of a source, and its row at each destination."""
        balance = self.ask("/api/balance")
        nothing = {"accepted": 0, "refused": 0, "waiting": 0, "duplicates": 0}
        rows = [rows[source] for rows in balance["destinations"].values() if source in rows]
        return balance["sources"].get(source, nothing), rows

    def ask(self, path: str) -> Any:
        """The management API's answer."""
        request = Request(f"{self.address}{path}", headers={"Authorization": f"Bearer {TOKEN}"})
        with urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)

    @contextmanager
    def warehouse(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """The file, which Millrace lets go of when it has nothing to load."""

        def opened() -> duckdb.DuckDBPyConnection | None:
            try:
                return duckdb.connect(str(self._data / "warehouse.duckdb"), read_only=True)
            except duckdb.IOException:
                return None

        connection = until(opened, lambda: "the warehouse stays locked")
        try:
            yield connection
        finally:
            connection.close()

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        finally:
            end_group(self._process)
            self.sink.close()

    def _config(self) -> dict[str, Any]:
        names = [_source_name(number) for number in range(SOURCES)]
        keys = {name: _write_key(name) for name in names} | NAMED
        public = self.oauth_key.as_pem(private=False).decode()
        closed = {
            name: {
                "write_key": _write_key(name),
                "oauth_clients": {name: {"keys": {name: public}}},
                "require_oauth": True,
            }
            for name in OAUTH
        }
        return {
            "sources": {name: {"write_key": key} for name, key in keys.items()} | closed,
            "destinations": {
                "webhook": {"type": "webhook", "settings": {"url": self.sink.url}},
                "warehouse": {"type": "duckdb", "settings": {"path": "warehouse.duckdb"}},
            },
            "outbound": {"allow": ["127.0.0.0/8"]},
            "log": {"partitions": 2},
        }

    def _start(self, folder: Path, config: Path) -> "Popen[bytes]":
        command = [sys.executable, "-m", "millrace", "up", "--port", "0"]
        command += ["--config", str(config), "--data", str(self._data)]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
        variables = clean | {"MILLRACE_API_TOKEN": TOKEN, "PYTHONUNBUFFERED": "1"}
        with (folder / "up.log").open("wb") as output:
            return spawn(command, output=output, cwd=folder, environment=variables)

    def _address(self, output: Path) -> str:
        def said() -> str | None:
            assert self._process.poll() is None, output.read_text()
            lines = output.read_text().splitlines()
            if not any(line.startswith("Stop:") for line in lines):
                return None
            return next(line.split()[1] for line in lines if line.split()[:1] == ["address"])

        return until(said, output.read_text)


def until(condition: Callable[[], T | None], otherwise: Callable[[], str]) -> T:
    """Waits for what must come to pass."""
    end = time.monotonic() + PATIENCE
    while (result := condition()) is None:
        assert time.monotonic() < end, otherwise()
        time.sleep(0.05)
    return result


def _source_name(number: int) -> str:
    return f"s{number:03d}"


def _write_key(source: str) -> str:
    return f"wk_{source}"


def _aware(value: Any) -> Any:
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) else value
