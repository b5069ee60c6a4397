"""Customer.io's data pipeline SDKs, unmodified, against a running Millrace."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.sdks import drive
from tests.sdks.calls import calls, check_events, check_rows, event_of, now
from tests.sdks.running import Running, Source
from tests.sdks.test_node import as_segment_sends

pytestmark = pytest.mark.sdks

NODE_VERSION = "1.0.0-beta.22"  # what the package writes into its events, whatever its own version


@pytest.mark.parametrize("options", [{}, {"maxEventsInBatch": 1}], ids=["batch", "singles"])
def test_node_arrives_as_called(node_modules: Path, source: Source, options: Mapping[str, Any]) -> None:
    made, called = calls(source.name), now()

    drive.node(node_modules, "@customerio/cdp-analytics-node", source, made, options)

    library = {"name": "@customerio/cdp-analytics-node", "version": NODE_VERSION}
    seen = source.calls_seen(len(made))
    check_events(seen, [as_segment_sends(call, library) for call in made], source, called)
    check_rows(source, made, library, seen)
    assert source.traits(made[0]["userId"]) == made[0]["traits"]


@pytest.mark.parametrize("options", [{}, {"gzip": True}], ids=["plain", "gzip"])
def test_python_arrives_as_called(
    python_packages: Callable[[str], Path], source: Source, options: Mapping[str, Any]
) -> None:
    check_python(python_packages("python"), source, options)


def test_a_regional_key_comes_as_bearer_and_names_its_source(
    python_packages: Callable[[str], Path], running: Running
) -> None:
    """A key that begins with pk_us_ is sent as Bearer and nowhere else."""
    check_python(python_packages("python"), running.named("customerio"), {})


def check_python(path: Path, source: Source, options: Mapping[str, Any]) -> None:
    made, called = calls(source.name), now()

    drive.python(path, "customerio.analytics", source, made, options)

    library = {"name": "analytics-python", "version": drive.python_version(path, "customerio-cdp-analytics")}
    seen = source.calls_seen(len(made))
    check_events(seen, [event_of(call, library) for call in made], source, called)
    check_rows(source, made, library, seen)
    assert source.traits(made[0]["userId"]) == made[0]["traits"]
