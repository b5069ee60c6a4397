"""Deleting people from a running Millrace while events come in, through the command line and out of every file."""

import hashlib
import hmac
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from millrace import data_folder
from millrace.client import Client
from tests.acceptance.conftest import Machine, until

CONFIG = """
sources: {{web: {{write_key: wk}}}}
outbound: {{allow: [127.0.0.0/8]}}
destinations:
  warehouse: {{type: duckdb}}
  crm: {{type: webhook, settings: {{url: "http://127.0.0.1:{port}/events", forget_url: "http://127.0.0.1:{port}/forget", secret: s3cret}}}}
"""
PEOPLE = 4
SECRETS = [
    f"{word}-{number}"
    for number in range(PEOPLE)
    for word in ("canary-user", "canary-anon", "canary-mail", "canary-city")
]


class Service(BaseHTTPRequestHandler):
    """Takes everything, and notes notices of deletion with their signature."""

    notices: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/forget":
            self.notices.append((self.headers["Millrace-Signature"], body))
        self.send_response(200)
        self.end_headers()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Says nothing."""


def batch(turn: int, canaries: bool) -> dict[str, Any]:
    """Events of a crowd, and of the people who are to be deleted."""
    events: list[dict[str, Any]] = [
        {
            "type": "track",
            "event": "Looked",
            "userId": f"u{n}",
            "anonymousId": f"a{turn % 7}-{n}",
            "messageId": f"m{turn}-{n}",
        }
        for n in range(20)
    ]
    if canaries:
        n = turn % PEOPLE
        events.append(
            {
                "type": "identify",
                "userId": f"canary-user-{n}",
                "anonymousId": f"canary-anon-{n}-{turn}",
                "messageId": f"canary-message-{turn}",
                "traits": {"email": f"canary-mail-{n}@shop.test", "city": f"canary-city-{n} {'x' * (turn % 900)}"},
            }
        )
    return {"batch": events}


def found_in(folder: Path, values: list[str]) -> list[str]:
    return sorted(
        f"{path.relative_to(folder)}: {value}"
        for path in folder.rglob("*")
        if path.is_file()
        for raw in [path.read_bytes()]
        for value in values
        if value.encode() in raw
    )


def test_people_are_deleted_from_every_file_while_events_come_in(machine: Machine) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (machine.folder / "millrace.yaml").write_text(CONFIG.format(port=server.server_port))
    up = machine.up("--config", "millrace.yaml")
    data = machine.folder / "data"
    address = data_folder.recall(data, data_folder.ADDRESS) or ""
    client, sent = Client(address, "wk"), 0
    for sent in range(80):
        client.post("/v1/batch", batch(sent, canaries=True))
    going, done = threading.Event(), threading.Event()

    def load() -> None:
        own = Client(address, "wk")
        turn = 1_000
        while not done.wait(0.03):  # a shop's pace: all else waits behind what this sends
            own.post("/v1/batch", batch(turn, canaries=False))
            turn += 1
            going.set()

    loading = threading.Thread(target=load)
    loading.start()
    going.wait(30)
    assert found_in(data, SECRETS)

    ids = [f"user_id:canary-user-{n}" for n in range(PEOPLE - 1)] + [f"email:canary-mail-{PEOPLE - 1}@shop.test"]
    receipt = machine.json("privacy", "delete", "--yes", "--wait", *ids)
    assert machine.ask("/api/balance")["off"] == 0
    done.set()
    loading.join()

    assert receipt["overallStatus"] == "FINISHED"
    assert receipt["receipt"]["erased"]["people"] == PEOPLE
    assert receipt["receipt"]["erased"]["events"] == 80
    assert {one["name"]: one["status"] for one in receipt["streamStatus"][0]["destinationStatus"]} == {
        "crm": "FINISHED",
        "warehouse": "FINISHED",
    }
    until(lambda: machine.ask("/api/balance")["destinations"]["crm"]["web"]["pending"] == 0)
    assert machine.ask("/api/balance")["off"] == 0
    assert up.stop() == 0
    assert found_in(data, [*SECRETS, "canary"]) == []
    said = machine.millrace("identity", "verify")
    assert (said.code, said.err) == (0, "")

    [(signature, body)] = Service.notices
    stamp, _, digest = signature.removeprefix("t=").partition(",v1=")
    assert hmac.new(b"s3cret", f"{stamp}.".encode() + body, hashlib.sha256).hexdigest() == digest
    notice = json.loads(body)
    assert {"type": "user_id", "id": "canary-user-0"} in notice["externalIds"]
    assert (notice["type"], notice["regulationId"]) == ("delete", receipt["id"])
    server.shutdown()
    server.server_close()
