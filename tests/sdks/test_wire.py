"""What SDKs that cannot run here put on the wire, byte for byte, as data in `wire/`, and what becomes of it.

An event must arrive as it was sent, but for what `events` says of it: `age` (seconds between its time and its receipt, or
`timestamp`, its time), `sentAt`, and under `differs` what is added, changed or, with null, gone. `refused` is the reason
code of one that must not arrive.
"""

import gzip
import json
import socket
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from http.client import HTTPResponse
from pathlib import Path
from string import Template
from typing import Any, Final, NamedTuple

import pytest
import yaml

from tests.sdks.calls import moment, said
from tests.sdks.running import PATIENCE, Event, Source

pytestmark = pytest.mark.sdks

WIRE: Final = sorted(Path(__file__).with_name("wire").glob("*.yaml"))
_NEVER_PASSED_ON: Final = ("writeKey", "_metadata", "timestamp", "sentAt", "messageId")


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


@pytest.mark.parametrize("file", WIRE, ids=[file.stem for file in WIRE])
def test_recorded_traffic_has_its_documented_outcome(file: Path, source: Source) -> None:
    requests = filled(yaml.safe_load(file.read_text())["requests"], source)
    sent: list[tuple[Event, Mapping[str, Any]]] = []
    with Line(source) as line:
        for request in requests:
            check_answer(request, line.exchange(request), source)
            sent += zip(items_of(request), request.get("events", ()), strict=False)

    good = [(item, outcome) for item, outcome in sent if "refused" not in outcome]
    bad = [(item, outcome) for item, outcome in sent if "refused" in outcome]
    books = source.settled(len(good), len(bad))
    assert books["duplicates"] == sum(request.get("duplicates", 0) for request in requests)
    check_events(source.calls_seen(len(good), len(bad)), good)
    for item, outcome in bad:
        (event,) = source.running.ask(f"/api/events/{item['messageId']}")["events"]
        assert event["refused"] == outcome["refused"]


# ── The data ──────────────────────────────────────────────────────────────────────────────────────────────────────


def filled(requests: Sequence[dict[str, Any]], source: Source) -> list[dict[str, Any]]:
    """The requests with the test's own source and people in them."""
    basic = {"BASIC": f"{source.write_key}:", "BASIC_WITHOUT_COLON": source.write_key}
    values = {"WRITE_KEY": source.write_key, "PERSON": source.name, "HOST": source.running.host}
    values |= {name: b64encode(text.encode()).decode() for name, text in basic.items()}

    def fill(value: Any, pixel: str = "") -> Any:
        if isinstance(value, str):
            return Template(value).substitute(values, PIXEL=pixel)
        if isinstance(value, dict):
            return {key: fill(one, pixel) for key, one in value.items()}
        return [fill(one, pixel) for one in value] if isinstance(value, list) else value

    return [
        fill(request, b64encode(fill(request["pixel"]).strip().encode()).decode() if "pixel" in request else "")
        for request in requests
    ]


def items_of(request: Mapping[str, Any]) -> list[Event]:
    """The events of a request as they were sent; a pixel's are all in `differs`."""
    if "body" not in request:
        return [{} for _ in request.get("events", ())]
    if request.get("status", 200) != 200:
        return []
    body = json.loads(request["body"].removeprefix("\ufeff"))
    items: list[Event] = body.get("batch", [body])
    return items


# ── The wire ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Line:
    """A keep-alive connection to Millrace, made anew where one was closed; nothing between us and the bytes."""

    def __init__(self, source: Source) -> None:
        self._host = source.running.host
        self._socket: socket.socket | None = None

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def exchange(self, request: Mapping[str, Any]) -> Answer:
        if self._socket is None:
            host, _, port = self._host.partition(":")
            self._socket = socket.create_connection((host, int(port)), PATIENCE)
        for part in self._parts(request):
            self._socket.sendall(part)
        response = HTTPResponse(self._socket, method="GET" if "get" in request else "POST")
        response.begin()
        answer = Answer(
            response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        )
        if response.will_close:
            self._close()
        return answer

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _parts(self, request: Mapping[str, Any]) -> Iterator[bytes]:
        """The head, then the body in one piece or in several chunks."""
        encoding = request.get("encoding", ())
        body = request.get("body", "").encode()
        if "gzip" in encoding:
            body = gzip.compress(body)
        headers = {"Host": self._host, **request["headers"]}
        if "chunked" in encoding:
            headers["Transfer-Encoding"] = "chunked"
        elif "body" in request:
            headers["Content-Length"] = str(len(body))
        line = f"GET {request['get']}" if "get" in request else f"POST {request['post']}"
        head = [f"{line} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        yield "\r\n".join(head).encode()
        if "chunked" not in encoding:
            yield body
            return
        for start in range(0, len(body), 100):
            chunk = body[start : start + 100]
            yield b"%x\r\n%s\r\n" % (len(chunk), chunk)
        yield b"0\r\n\r\n"


# ── The outcome ───────────────────────────────────────────────────────────────────────────────────────────────────


def check_answer(request: Mapping[str, Any], answer: Answer, source: Source) -> None:
    assert answer.status == request.get("status", 200), (request["name"], answer)
    headers = answer.headers
    assert "date" in headers
    assert headers["access-control-allow-origin"]
    for name, value in request.get("answer_headers", {}).items():
        assert headers[name.lower()] == value
    if request.get("image"):
        assert headers["content-type"] == "image/gif"
        assert headers["cache-control"] == "no-store"
        assert answer.body.startswith(b"GIF89a")
        return
    assert headers["content-type"] == "application/json"
    body = json.loads(answer.body)
    if request.get("settings"):
        check_settings(body, source)
    elif answer.status == 200:
        assert body == request.get("answer", {"success": True})
    else:
        assert body["success"] is False
        assert {type(body[name]) for name in ("code", "message", "error")} == {str}


def check_settings(settings: Mapping[str, Any], source: Source) -> None:
    """What every generation of the mobile SDKs needs of them; one null voids the whole for Kotlin."""
    ourselves = settings["integrations"]["Segment.io"]
    assert ourselves["apiKey"] == source.write_key
    assert ourselves["apiHost"] == f"{source.running.host}/v1"
    assert settings["metrics"]["sampleRate"] == 0
    assert None not in list(leaves(settings))


def leaves(node: Any) -> Iterator[Any]:
    if isinstance(node, dict | list):
        for one in node.values() if isinstance(node, dict) else node:
            yield from leaves(one)
    else:
        yield node


def check_events(seen: Sequence[Event], sent: Sequence[tuple[Event, Mapping[str, Any]]]) -> None:
    expected = [as_received(item, outcome.get("differs", {})) for item, outcome in sent]
    assert sorted(map(said, seen), key=by_content) == sorted(expected, key=by_content)
    for item, outcome in sent:
        body = as_received(item, outcome.get("differs", {}))
        (event,) = (
            one for one in seen if said(one) == body and one["messageId"] == item.get("messageId", one["messageId"])
        )
        assert event["originalTimestamp"] == item.get("timestamp")
        assert event.get("sentAt") == outcome.get("sentAt")
        if "timestamp" in outcome:
            assert event["timestamp"] == outcome["timestamp"]
        else:
            age = moment(event["receivedAt"]) - moment(event["timestamp"])
            assert abs(age - timedelta(seconds=outcome["age"])) <= timedelta(milliseconds=1)


def by_content(event: Event) -> str:
    return json.dumps(event, sort_keys=True)


def as_received(item: Event, differs: Mapping[str, Any]) -> Event:
    event = merged({name: value for name, value in item.items() if name not in _NEVER_PASSED_ON}, differs)
    event = {name: value for name, value in event.items() if value is not None}
    return event | {"externalIds": external_ids(event)}


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(under)
    for name, value in over.items():
        known = result.get(name)
        result[name] = merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return result


def external_ids(event: Event) -> list[dict[str, str]]:
    """The most trusted first, then by name."""
    traits, context = event.get("traits") or {}, event.get("context") or {}
    device = context.get("device") or {}
    email = traits.get("email") or (context.get("traits") or {}).get("email")
    others = {"anonymous_id": event.get("anonymousId"), "group_id": event.get("groupId")}
    if "type" in device:
        others[f"{device['type']}.id"] = device.get("id")
    found = {"user_id": event.get("userId"), "email": email, **dict(sorted(others.items()))}
    return [{"type": kind, "id": value} for kind, value in found.items() if value is not None]
