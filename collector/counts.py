"""What the collector counted since it started, for /metrics."""

from collections import defaultdict
from dataclasses import dataclass, field


def _zeroes() -> defaultdict[str, int]:
    return defaultdict(int)


def _pairs() -> "defaultdict[tuple[str, str], int]":
    return defaultdict(int)


def _statuses() -> "defaultdict[tuple[str, int], int]":
    return defaultdict(int)


@dataclass(slots=True)
class Counts:
    """Plain numbers that only grow. The source is empty where it was not known."""

    requests: defaultdict[tuple[str, int], int] = field(default_factory=_statuses)
    """Answered requests by source and status."""
    accepted: defaultdict[str, int] = field(default_factory=_zeroes)
    """Events in the log that proceed, by source."""
    refused: defaultdict[tuple[str, str], int] = field(default_factory=_pairs)
    """Events in the log that do not, by source and reason."""
    turned_away: defaultdict[tuple[str, str], int] = field(default_factory=_pairs)
    """Requests of which nothing was kept, by source and reason: the client's faults only."""
    bytes: defaultdict[str, int] = field(default_factory=_zeroes)
    """Bytes of request bodies as they came over the wire, by source."""
    disconnected: int = 0
    """Requests whose client went away before the body was complete."""
