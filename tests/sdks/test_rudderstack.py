"""RudderStack's server SDKs, unmodified, against a running Millrace.

They speak the same protocol with two habits of their own: an identify has its traits in `context.traits`, by Python only
there, and Node.js calls the time of an event `originalTimestamp`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.sdks import drive
from tests.sdks.calls import Call, calls, check_events, check_rows, event_of, now
from tests.sdks.running import Event, Row, Source

pytestmark = pytest.mark.sdks


def as_rudderstack_sends(call: Call, library: Mapping[str, str], integrations: Mapping[str, Any] | None) -> Event:
    event = event_of(call, library, integrations) | {"channel": "server"}
    if integrations is None and "integrations" not in call:
        del event["integrations"]
    if call["type"] == "identify":
        event["context"]["traits"] = call["traits"]
    return event


def context_traits(call: Call) -> Row:
    """The columns of the traits that an identify has in its context too."""
    traits = call["traits"]
    return {
        "context_traits_email": traits["email"],
        "context_traits_name": traits["name"],
        "context_traits_age": traits["age"],
        "context_traits_address_city": traits["address"]["city"],
    }


@pytest.mark.parametrize("options", [{}, {"gzip": False, "flushAt": 1}], ids=["gzip", "plain, first flush alone"])
def test_node_arrives_as_called(node_modules: Path, source: Source, options: Mapping[str, Any]) -> None:
    sdk = "@rudderstack/rudder-sdk-node"
    made, called = calls(source.name), now()

    drive.node(node_modules, sdk, source, made, options)

    library = {"name": "analytics-node", "version": drive.version(node_modules, sdk)}
    seen = source.calls_seen(len(made))
    check_events(seen, [as_rudderstack_sends(call, library, None) for call in made], source, called)
    check_rows(source, made, library, seen, {"identify": context_traits(made[0])})
    assert source.traits(made[0]["userId"]) == made[0]["traits"]


@pytest.mark.parametrize("options", [{}, {"gzip": False}], ids=["gzip", "plain"])
def test_python_arrives_as_called(
    python_packages: Callable[[str], Path], source: Source, options: Mapping[str, Any]
) -> None:
    path = python_packages("python")
    made, called = calls(source.name), now()

    drive.python(path, "rudderstack.analytics", source, made, options)

    library = {"name": "analytics-python", "version": drive.python_version(path, "rudder-sdk-python")}
    seen = source.calls_seen(len(made))
    check_events(seen, [as_rudderstack_sends(call, library, {"All": True}) for call in made], source, called)
    check_rows(source, made, library, seen, {"identify": context_traits(made[0])})
    assert source.traits(made[0]["userId"]) == made[0]["traits"]
