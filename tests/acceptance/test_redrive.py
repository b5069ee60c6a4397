"""Dead letters and recorded events, sent again by real processes, one of which is killed in the middle."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from millrace import data_folder
from tests.acceptance.conftest import Machine, until

CONFIG = """
sources:
  web: {{write_key: wk_web}}
outbound: {{allow: [127.0.0.0/8]}}
destinations:
  crm:
    type: webhook
    filter: {{types: [track]{events}}}
    settings: {{url: "http://127.0.0.1:{port}/hook", secret: "canary-secret", batch_size: 1}}
"""
EACH = 40


class Service:
    """Notes the messageIds that it takes; refuses events of some names."""

    def __init__(self) -> None:
        self.refuses: dict[str, int] = {}
        self.taken: Counter[str] = Counter()
        self.lock = Lock()

    def take(self, body: bytes) -> int:
        found = json.loads(body)
        events: list[Any] = found if isinstance(found, list) else found.get("batch", [found])
        status = next((self.refuses[one["event"]] for one in events if one["event"] in self.refuses), 200)
        if status == 200:
            with self.lock:
                self.taken.update(one["messageId"] for one in events)
        return status

    def count(self, name: str) -> int:
        with self.lock:
            return sum(number for message_id, number in self.taken.items() if message_id.startswith(name))


@contextmanager
def serving(service: Service) -> Iterator[int]:
    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            status = service.take(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def configure(folder: Path, port: int, *events: str) -> None:
    wanted = f", events: [{', '.join(events)}]" if events else ""
    (folder / "millrace.yaml").write_text(CONFIG.format(port=port, events=wanted))


def send(machine: Machine, *names: str) -> None:
    address = data_folder.recall(machine.folder / "data", data_folder.ADDRESS)
    batch = [
        {"type": "track", "event": name, "userId": f"u{number % 7}", "messageId": f"{name}-{number}"}
        for number in range(EACH)
        for name in names
    ]
    (machine.folder / "batch.json").write_text(json.dumps({"batch": batch}))
    said = machine.paste(f"curl -sS {address}/v1/batch -u wk_web: -H 'Content-Type: application/json' -d @batch.json")
    assert "success" in said.out, said


def book(machine: Machine) -> dict[str, int]:
    found: dict[str, int] = machine.ask("/api/balance")["destinations"].get("crm", {}).get("web", {})
    return found


def balances(machine: Machine) -> bool:
    return machine.millrace("balance", "--check").code == 0


def test_letters_are_put_back_by_cause_and_history_is_replayed_through_a_kill(machine: Machine) -> None:
    service = Service()
    service.refuses = {"Bad": 422, "Worse": 400}
    with serving(service) as port:
        configure(machine.folder, port, "Good", "Bad", "Worse")
        up = machine.up()
        send(machine, "Good", "Bad", "Worse", "Other")
        until(lambda: (book(machine).get("dead"), book(machine).get("filtered")) == (2 * EACH, EACH))

        groups = machine.json("dead-letters", "list", "--destination", "crm")
        assert [(one["cause"], one["count"]) for one in groups] == [("http 400", EACH), ("http 422", EACH)]
        assert balances(machine)
        (shown,) = machine.json("dead-letters", "show", "Bad-3")
        assert (shown["event"]["event"], shown["attempts"], len(shown["sends"]["requests"])) == ("Bad", 1, 1)
        assert "canary-secret" not in json.dumps(shown)

        service.refuses = {}
        which = ("--destination", "crm", "--cause", "http 422")
        assert machine.json("dead-letters", "retry", *which, "--dry-run")["count"] == EACH
        assert machine.json("dead-letters", "retry", *which) == {"count": EACH}
        until(lambda: service.count("Bad") == EACH)
        assert machine.json("dead-letters", "purge", "--destination", "crm", "--cause", "http 400") == {"count": EACH}
        until(lambda: book(machine)["delivered"] == 2 * EACH)
        assert (book(machine)["purged"], book(machine)["dead"], balances(machine)) == (EACH, 0, True)
        up.stop()

        configure(machine.folder, port)
        up = machine.up()
        asked = ("replay", "--destination", "crm", "--since", "1h")
        would = machine.json(*asked, "--dry-run")
        assert would["would_send"] == EACH
        begun = machine.json(*asked, "--rate", "10/s", "--detach")
        until(lambda: machine.ask(f"/api/replays/{begun['id']}")["delivered"] >= 6)
        up.role("deliver").kill()
        before = service.count("Other")
        delivered = machine.ask(f"/api/replays/{begun['id']}")["delivered"]
        assert machine.millrace("replay", "watch", str(begun["id"])).code == 0
        done = machine.ask(f"/api/replays/{begun['id']}")
        assert (done["state"], done["delivered"], done["pending"]) == ("done", EACH, 0)
        assert service.count("Other") - before == EACH - delivered  # what the ledger had is not sent again
        assert {name for name, number in service.taken.items() if number > 1 and not name.startswith("Other")} == set()

        again = machine.json(*asked)
        assert (again["delivered"], again["state"]) == (0, "done")
        assert [one["id"] for one in machine.json("replay", "list")] == [again["id"], begun["id"]]
        assert service.count("") == 3 * EACH + (before - delivered)
        assert balances(machine)
        assert up.stop() == 0
