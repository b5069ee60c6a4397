"""`millrace identity` as a script sees it: what it asks the server for, what it prints, and its exit codes."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from pipeline.store.database import Database
from tests.command_line import Said, millrace
from tests.contracts.test_intake import batch, event, put
from tests.unit.test_split_drawing import document

DONE = {
    "split": "spl_1",
    "done": "unmerge",
    "dry_run": False,
    "before": [],
    "after": [],
    "links_cut": [],
    "links_restored": [],
    "merges_undone": ["mrg_1"],
    "merges_restored": [],
    "destinations_told": [],
}


class Stub:
    """A server that answers everything alike, and what it was asked."""

    def __init__(self) -> None:
        self.status, self.answer = 200, {}  # type: int, Any
        self.asked: list[tuple[str, str, Any]] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(None)

            def do_POST(self) -> None:
                self.reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def reply(self, body: Any) -> None:
                stub.asked.append((self.command, self.path, body))
                raw = json.dumps(stub.answer).encode()
                self.send_response(stub.status)
                self.send_header("content-length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def stub() -> Iterator[Stub]:
    made = Stub()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def identity(stub: Stub, folder: Path, *arguments: str) -> Said:
    return millrace(folder, "identity", *arguments, "--url", stub.url, MILLRACE_API_TOKEN="t")


def test_a_merge_is_undone_by_its_id(stub: Stub, tmp_path: Path) -> None:
    stub.answer = DONE
    said = identity(stub, tmp_path, "unmerge", "mrg_1")
    assert stub.asked == [("POST", "/api/identity/unmerge", {"merge": "mrg_1", "dry_run": False})]
    assert (said.code, said.err) == (0, "")
    assert "to lift it: millrace identity remerge spl_1" in said.out


def test_two_ids_are_cut_and_json_is_for_machines(stub: Stub, tmp_path: Path) -> None:
    stub.answer = DONE | {"dry_run": True}
    said = identity(stub, tmp_path, "unmerge", "--cut", "user_id:u1", "anonymous_id:a 2", "--dry-run", "--json")
    assert stub.asked == [
        ("POST", "/api/identity/unmerge", {"cut": ["user_id:u1", "anonymous_id:a 2"], "dry_run": True})
    ]
    assert json.loads(said.out) == stub.answer


def test_a_refusal_exits_1_with_the_servers_reason(stub: Stub, tmp_path: Path) -> None:
    stub.status, stub.answer = 409, {"error": {"code": "already_lifted", "message": "spl_1 is lifted already."}}
    said = identity(stub, tmp_path, "remerge", "spl_1")
    assert (said.code, said.out) == (1, "")
    assert "spl_1 is lifted already." in said.err


@pytest.mark.parametrize("wrong", [[], ["mrg_1", "--cut", "user_id:u1", "email:e"], ["--cut", "user_id:u1"]])
def test_misuse_exits_2(tmp_path: Path, wrong: list[str]) -> None:
    assert millrace(tmp_path, "identity", "unmerge", *wrong).code == 2


@pytest.mark.parametrize(("option", "begins"), [("--svg", "<svg "), ("--dot", "graph identity {"), ("--json", "{")])
def test_a_person_is_drawn_in_every_form(stub: Stub, tmp_path: Path, option: str, begins: str) -> None:
    stub.answer = document()
    said = identity(stub, tmp_path, "explain", "email:a+b@x.test", option)
    assert stub.asked == [("GET", "/api/identity/explain?id=email%3Aa%2Bb%40x.test", None)]
    assert said.out.startswith(begins)


def test_nobody_to_explain_exits_1(stub: Stub, tmp_path: Path) -> None:
    stub.status, stub.answer = 404, {"error": {"code": "not_found", "message": "Profile was not found."}}
    said = identity(stub, tmp_path, "explain", "user_id:nobody")
    assert (said.code, said.err.strip()) == (
        1,
        "millrace: no profile has user_id:nobody; look at the ids of an event with `millrace tail`",
    )


def test_verify_exits_1_with_the_differences_and_repairs_on_request(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/millrace.sqlite"
    assert millrace(tmp_path, "identity", "verify", MILLRACE_DATABASE=url) == Said(
        0, "0 rows looked at: everything agrees\n", ""
    )
    database = Database(url)
    put(database, batch(event("m1", user="u1")))
    database.run_sync(lambda c: c.execute(text("UPDATE profiles SET events = 7")))
    [profile] = database.read_sync(lambda c: c.execute(text("SELECT id FROM profiles")).scalars().all())
    database.close()

    said = millrace(tmp_path, "identity", "verify", MILLRACE_DATABASE=url)
    wrong = f"{profile} events is 7, its ids make it 1"
    assert said == Said(
        1,
        f"{wrong}\n2 rows looked at: 1 difference\n",
        "millrace: 1 difference; `--repair` recombines profiles from their ids\n",
    )
    assert millrace(tmp_path, "identity", "verify", "--repair", MILLRACE_DATABASE=url) == Said(
        0, f"{wrong} (repaired)\n2 rows looked at: 1 difference, 1 of them repaired\n", ""
    )
    said = millrace(tmp_path, "identity", "verify", "--json", MILLRACE_DATABASE=url)
    assert (said.code, json.loads(said.out)) == (0, {"rows": 2, "found": 0, "repaired": 0, "differences": []})
