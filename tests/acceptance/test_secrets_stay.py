"""A secret planted in every place that takes one, failures of every kind, and nothing that tells it."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from millrace import data_folder
from millrace.client import Client
from millrace.secret_store import SecretStore
from tests.acceptance.conftest import Machine, until

CANARY = "canary7f3a"
CONFIG = """
sources:
  web: {{write_key: wk_web}}
outbound: {{allow: [127.0.0.0/8]}}
destinations:
  stored: {{type: webhook, settings: {{url: "http://127.0.0.1:{port}/500", secret: "${{secret:hook}}", timeout: 1}}}}
  refused: {{type: webhook, settings: {{url: "http://127.0.0.1:{port}/401", headers: {{Authorization: "${{VARIABLE}}"}}}}}}
  rejected: {{type: webhook, settings: {{url: "http://127.0.0.1:{port}/400", headers: {{X-Key: "${{file:key.txt}}"}}}}}}
  nowhere: {{type: webhook, settings: {{url: "http://127.0.0.1:1/{canary}-path", secret: "{canary}-plain"}}}}
alerts:
  channels:
    hook: {{type: webhook, url: "http://127.0.0.1:{port}/403/{canary}", secret: "{canary}-channel"}}
    team: {{type: slack, url: "http://127.0.0.1:{port}/404/{canary}"}}
    mail: {{type: email, host: 127.0.0.1, port: 1, user: robot, password: "{canary}-mail", sender: a@b.example, to: [c@d.example]}}
"""


class Answer(BaseHTTPRequestHandler):
    """Answers with the status that the path begins with, and repeats what it was sent, as careless services do."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        said = f"{self.headers}".encode() + body[:100]
        self.send_response(int(self.path.split("/")[1]))
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_HEAD = do_POST

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Says nothing."""


@contextmanager
def service() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def test_no_secret_reaches_an_output_a_log_or_a_file(machine: Machine) -> None:
    machine.variables |= {"VARIABLE": f"{CANARY}-variable", "MILLRACE_API_TOKEN": f"{CANARY}-token"}
    (machine.folder / "key.txt").write_text(f"{CANARY}-file\n")
    SecretStore(machine.folder / "data", None).set("hook", f"{CANARY}-sealed")
    with service() as port:
        (machine.folder / "millrace.yaml").write_text(CONFIG.format(port=port, canary=CANARY))
        said = [machine.millrace(*command.split()) for command in ("check", "check --connect", "alerts test")]
        up = machine.up()
        event = '{"type":"track","event":"E","userId":"u1","messageId":"m1"}'
        address = data_folder.recall(machine.folder / "data", data_folder.ADDRESS)
        said.append(machine.paste(f"curl -sS {address}/v1/track -u wk_web: -d '{event}'"))
        until(lambda: _dead(machine))
        said += [
            machine.millrace(*command.split())
            for command in ("balance", "event m1", "profile user_id:u1", "alerts", "destinations list")
        ]
        said.append(machine.paste(f"curl -sS {address}/metrics -H 'Authorization: Bearer {CANARY}-token'"))
        up.stop()
    assert [one for one in said if CANARY in one.out + one.err] == []
    assert CANARY not in "\n".join(up.banner)
    planted = {"millrace.yaml", "key.txt"}
    telling = [
        str(file.relative_to(machine.folder))
        for file in machine.folder.rglob("*")
        if file.is_file() and file.name not in planted and CANARY.encode() in file.read_bytes()
    ]
    assert telling == []


def _dead(machine: Machine) -> bool:
    client = Client(data_folder.recall(machine.folder / "data", data_folder.ADDRESS) or "", f"{CANARY}-token")
    try:
        rows = client.get("/api/balance")["destinations"].get("rejected", {})
    finally:
        client.close()
    return any(row["dead"] for row in rows.values())
