"""The browser SDK as pages get it. The real package in a real browser: tests/sdks/test_browser.py."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from starlette.applications import Starlette

from collector.browser_sdk import BrowserSdk, browser_sdk_routes, read_browser_sdk
from schemas.errors import ConfigError

ENTRY = b'try{window.analyticsWriteKey="__WRITE_KEY__"}catch(t){}var same="__WRITE_"+"KEY__";'
CHUNK = "queryString.bundle.34b193ada8.js"
SDK = BrowserSdk(ENTRY, {CHUNK: b"part()"})
BUNDLE = "/analytics.js/v1/wk/analytics.min.js"


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


async def ask(path: str, sdk: BrowserSdk | None = SDK, method: str = "GET", **headers: str) -> Answer:
    app = Starlette(routes=browser_sdk_routes(sdk, {"wk": "web", 'a"b</script>': "odd"}))
    sent: list[Any] = []
    raw = [(name.replace("_", "-").lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": raw, "query_string": b""}

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    start, *parts = sent
    names = {name.decode(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], names, b"".join(part["body"] for part in parts))


@pytest.mark.parametrize("name", ["analytics.min.js", "analytics.js", "platform/analytics.min.js"])
async def test_the_bundle_knows_its_write_key_and_where_it_came_from(name: str) -> None:
    answer = await ask(f"/analytics.js/v1/wk/{name}")

    assert (answer.status, answer.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
    prologue, _, entry = answer.body.partition(b"\n")
    assert entry == ENTRY.replace(b"__WRITE_KEY__", b"wk")
    assert b"document.currentScript" in prologue


async def test_a_write_key_cannot_leave_its_string() -> None:
    answer = await ask('/analytics.js/v1/a"b</script>/analytics.min.js')
    assert answer.status == 404  # a slash is no part of a path parameter, so no such source has a bundle
    assert b'="a\\"b</script>"' in SDK.bundle('a"b</script>')


async def test_parts_are_served_for_good_by_their_name_alone() -> None:
    answer = await ask(f"/analytics-next/bundles/{CHUNK}")

    assert (answer.status, answer.body) == (200, b"part()")
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert (await ask("/analytics-next/bundles/..%2fstandalone.js")).status == 404


@pytest.mark.parametrize(
    ("accepted", "squeezed"), [("gzip, br", True), ("br", False), ("gzip;q=0", False), ("gzip;q=0.5", True)]
)
async def test_the_body_is_compressed_for_those_who_take_it(accepted: str, squeezed: bool) -> None:
    answer = await ask(BUNDLE, accept_encoding=accepted)

    assert answer.headers.get("content-encoding") == ("gzip" if squeezed else None)
    assert (gzip.decompress(answer.body) if squeezed else answer.body) == SDK.bundle("wk")
    assert answer.headers["vary"] == "Accept-Encoding"


async def test_a_copy_that_is_still_good_is_not_sent_again() -> None:
    tag = (await ask(BUNDLE)).headers["etag"]

    answer = await ask(BUNDLE, if_none_match=tag)

    assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", tag)


@pytest.mark.parametrize(
    ("path", "sdk", "code"),
    [
        ("/analytics.js/v1/nobody/analytics.min.js", SDK, "unknown_source"),
        (BUNDLE, None, "browser_sdk_missing"),
        ("/analytics-next/bundles/other.js", SDK, "not_found"),
        (f"/analytics-next/bundles/{CHUNK}", None, "not_found"),
    ],
)
async def test_what_is_not_there_is_told_to_any_page(path: str, sdk: BrowserSdk | None, code: str) -> None:
    answer = await ask(path, sdk, origin="https://shop.example.org")

    assert (answer.status, json.loads(answer.body)["code"]) == (404, code)
    assert answer.headers["access-control-allow-origin"] == "https://shop.example.org"


async def test_a_page_may_ask_first() -> None:
    answer = await ask(BUNDLE, method="OPTIONS", origin="https://shop.example.org")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["access-control-allow-methods"] == "GET, POST, OPTIONS"


def test_a_folder_is_read_as_the_package_has_it(tmp_path: Path) -> None:
    for name in ("standalone.js", CHUNK, f"{CHUNK}.map", "index.js"):
        (tmp_path / name).write_bytes(ENTRY)
    assert read_browser_sdk(tmp_path) == BrowserSdk(ENTRY, {CHUNK: ENTRY})


def test_no_folder_is_no_fault(tmp_path: Path) -> None:
    assert read_browser_sdk(tmp_path / "browser-sdk") is None


@pytest.mark.parametrize("files", [{}, {"standalone.js": ENTRY}, {"standalone.js": b"other", CHUNK: b""}])
def test_a_folder_of_something_else_is_told_with_the_remedy(tmp_path: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match="dist/umd of the npm package @segment/analytics-next"):
        read_browser_sdk(tmp_path)
