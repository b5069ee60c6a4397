"""The Python SDKs, unmodified, against a running Millrace."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sdks import drive
from tests.sdks.calls import calls, check_events, check_rows, event_of, now
from tests.sdks.running import Running, Source

pytestmark = pytest.mark.sdks


@pytest.mark.parametrize("packages", ["python", "python-older"])
@pytest.mark.parametrize(
    "options",
    [{"gzip": False}, {"gzip": True}, {"gzip": True, "sync_mode": True}, {"upload_size": 2, "thread": 1}],
    ids=["plain", "gzip", "gzip, each on its own", "twos"],
)
def test_segment_arrives_as_called(
    python_packages: Callable[[str], Path], source: Source, packages: str, options: dict[str, object]
) -> None:
    path = python_packages(packages)
    made, called = calls(source.name), now()

    drive.python(path, "segment.analytics", source, made, options)

    library = {"name": "analytics-python", "version": drive.python_version(path, "segment-analytics-python")}
    seen = source.calls_seen(len(made))
    check_events(seen, [event_of(call, library) for call in made], source, called)
    check_rows(source, made, library, seen)
    assert source.traits(made[0]["userId"]) == made[0]["traits"]


def test_segment_gets_a_token_and_arrives_where_no_write_key_does(
    python_packages: Callable[[str], Path], running: Running
) -> None:
    """Without a client the SDK is told that it is refused, and gives up at once."""
    path, source = python_packages("python"), running.oauth()
    made, called = calls(source.name), now()
    proof = {
        "oauth_client_id": source.name,
        "oauth_key_id": source.name,
        "oauth_client_key": running.oauth_key.as_pem(private=True).decode(),
        "oauth_auth_server": running.address,
    }

    with pytest.raises(AssertionError, match="oauth_required"):
        drive.python(path, "segment.analytics", source, made[:1], {"max_retries": 3})
    with pytest.raises(AssertionError, match="invalid_client"):
        drive.python(path, "segment.analytics", source, made[:1], {**proof, "oauth_key_id": "unknown"})
    drive.python(path, "segment.analytics", source, made, proof)

    library = {"name": "analytics-python", "version": drive.python_version(path, "segment-analytics-python")}
    check_events(source.calls_seen(len(made)), [event_of(call, library) for call in made], source, called)
