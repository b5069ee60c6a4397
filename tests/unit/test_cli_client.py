"""The command line's HTTP client: every answer becomes a value or an error that says what to do; sending goes on through
outages."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from millrace.client import Client, NotFound
from millrace.sender import Request, send_all
from schemas.errors import ConfigError, Refused, Unavailable

Answer = tuple[int, bytes]


class Server:
    """Answers with what it is told to, one answer after another, and notes what it was asked."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.asked: list[tuple[str, str, bytes, str | None]] = []
        world = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                world.asked.append((self.command, self.path, body, self.headers["authorization"]))
                status, text = world.answers.pop(0)
                if status == 0:  # hangs up without a word
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = answer

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    client = Client(server.address, "key")
    yield client
    client.close()


def test_an_answer_is_its_json(server: Server, client: Client) -> None:
    server.answers = [(200, b'{"a":1}'), (200, b'{"success":true}')]

    assert client.get("/api/x") == {"a": 1}
    assert client.post("/v1/track", {"b": "ü"}) == {"success": True}

    assert server.asked == [
        ("GET", "/api/x", b"", "Basic a2V5Og=="),
        ("POST", "/v1/track", b'{"b":"\\u00fc"}', "Basic a2V5Og=="),
    ]


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (
            (404, b'{"error":{"code":"not_found","message":"Profile was not found."}}'),
            NotFound,
            "Profile was not found.",
        ),
        ((401, b'{"error":{"code":"x","message":"No."}}'), ConfigError, r"refused \(No.\); give the data folder"),
        ((503, b"busy"), Unavailable, r"answers 503 \(busy\); try again"),
        ((429, b""), Unavailable, r"answers 429 \(no explanation\)"),
        ((400, b'{"success":false,"error":"not JSON","code":"c","message":"m"}'), Refused, r"answers 400 \(not JSON\)"),
        ((0, b""), Unavailable, "does not answer"),
    ],
)
def test_other_answers_are_errors_that_say_what_to_do(
    server: Server, client: Client, answer: Answer, error: type[Exception], said: str
) -> None:
    server.answers = [answer]
    with pytest.raises(error, match=said):
        client.get("/")


def test_a_connection_that_was_closed_in_between_is_opened_again(server: Server, client: Client) -> None:
    server.answers = [(200, b"1"), (0, b""), (200, b"2")]
    assert client.get("/") == 1
    assert client.get("/") == 2


def test_lines_come_one_by_one_and_the_end_of_the_stream_is_unavailable(server: Server, client: Client) -> None:
    server.answers = [(200, b'{"a":1}\n\n{"a":2}\n')]
    did: list[object] = []

    with pytest.raises(Unavailable, match="ended the stream"):
        did.extend(client.lines("/api/tail", connected=lambda: did.append("connected")))

    assert did == ["connected", b'{"a":1}\n', b'{"a":2}\n']


def test_a_strange_address_is_said() -> None:
    with pytest.raises(ConfigError, match="not an address; write http://host:port"):
        Client("localhost:8080", "key").get("/")


def test_the_key_is_not_in_the_repr() -> None:
    assert "s3cr3t" not in repr(Client("http://x", "s3cr3t"))


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(round(seconds, 3))


CALLS = [
    Request("/v1/track", {"event": "a"}, [{"type": "track", "userId": "u1"}]),
    Request("/v1/batch", {"batch": [{}, {}]}, [{"type": "page"}, {"type": "track"}]),
]


def send(
    client: Client, clock: Clock, *, rate: float | None = None, sent: Callable[[int], None] = lambda _: None
) -> object:
    summary = send_all(client, CALLS, rate=rate, sent=sent, patience=1.0, clock=clock, sleep=clock.sleep)
    return summary.as_dict()


def test_what_is_not_acknowledged_is_sent_again(server: Server, client: Client) -> None:
    server.answers = [(503, b""), (0, b""), (200, b"{}"), (200, b"{}")]
    clock, sent = Clock(), list[int]()

    assert send(client, clock, sent=sent.append) == {
        "events": 3,
        "requests": 2,
        "seconds": 0.1,
        "types": {"page": 1, "track": 2},
        "user_id": "u1",
    }
    assert [path for _, path, _, _ in server.asked] == ["/v1/track"] * 3 + ["/v1/batch"]
    assert sent == [1, 2]
    assert clock.slept == [0.1]


def test_patience_ends(server: Server, client: Client) -> None:
    server.answers = [(503, b"down")] * 10
    clock = Clock()
    with pytest.raises(Unavailable, match="down"):
        send(client, clock)
    assert clock.slept == [0.1, 0.2, 0.4]


def test_a_rate_is_kept(server: Server, client: Client) -> None:
    server.answers = [(200, b"{}")] * 2
    clock = Clock()
    send(client, clock, rate=10)
    assert clock.slept == [0.0, 0.1]
