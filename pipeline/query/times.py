"""Times in queries."""

from collections.abc import Mapping
from datetime import UTC, datetime

from schemas.errors import Refused


def micros_of(query: Mapping[str, str], name: str) -> int | None:
    """The ISO 8601 time called `name` in microseconds since 1970, in UTC unless it says otherwise; None when it is left out.
    Refused when it is no time."""
    text = query.get(name)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise Refused("validation_error", f"{name} must be an ISO 8601 time, such as 2026-11-21T09:00:00Z.") from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1_000_000)
