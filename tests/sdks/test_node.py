"""The Node.js SDKs, unmodified, against a running Millrace."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.sdks import drive
from tests.sdks.calls import Call, calls, check_events, check_rows, event_of, now
from tests.sdks.running import Event, Running, Source

pytestmark = pytest.mark.sdks

SEGMENT = ["@segment/analytics-node", "analytics-node-3.0"]


def segment_library(modules: Path, sdk: str) -> dict[str, str]:
    return {"name": "@segment/analytics-node", "version": drive.version(modules, sdk)}


def as_segment_sends(call: Call, library: Mapping[str, str]) -> Event:
    """The JavaScript libraries copy a page's category into its properties."""
    event = event_of(call, library)
    if call["type"] == "page":
        event["properties"] = {**call["properties"], "category": call["category"]}
    return event


@pytest.mark.parametrize("sdk", SEGMENT)
@pytest.mark.parametrize("options", [{}, {"flushAt": 1}, {"flushAt": 3}], ids=["batch", "singles", "threes"])
def test_analytics_node_arrives_as_called(
    node_modules: Path, source: Source, sdk: str, options: Mapping[str, Any]
) -> None:
    made, called = calls(source.name), now()

    drive.node(node_modules, sdk, source, made, options)

    library = segment_library(node_modules, sdk)
    seen = source.calls_seen(len(made))
    check_events(seen, [as_segment_sends(call, library) for call in made], source, called)
    check_rows(source, made, library, seen)
    assert source.traits(made[0]["userId"]) == made[0]["traits"]


@pytest.mark.parametrize("sdk", SEGMENT)
def test_analytics_node_gets_a_token_and_arrives_where_no_write_key_does(
    node_modules: Path, running: Running, sdk: str
) -> None:
    """Without a client the SDK is told that it is refused."""
    source = running.oauth()
    made, called = calls(source.name), now()
    proof = {
        "clientId": source.name,
        "keyId": source.name,
        "clientKey": running.oauth_key.as_pem(private=True).decode(),
        "authServer": running.address,
    }

    with pytest.raises(AssertionError, match="400"):
        drive.node(node_modules, sdk, source, made[:1], {"flushAt": 1})
    drive.node(node_modules, sdk, source, made, {"oauthSettings": proof})

    library = segment_library(node_modules, sdk)
    seen = source.calls_seen(len(made))
    check_events(seen, [as_segment_sends(call, library) for call in made], source, called)
