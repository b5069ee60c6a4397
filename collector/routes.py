"""The paths that take events, and what each implies.

Long names have the semantics of a server (no address of its own to add), short ones those of a person's device.
"""

from collections.abc import Iterator, Mapping
from typing import Final, Literal, NamedTuple

from schemas.events import TYPES

Channel = Literal["client", "server"]


class Route(NamedTuple):
    """`type` is implied by the path; None where a batch names it per event."""

    type: str | None
    channel: Channel


def _names() -> Iterator[tuple[str, Route]]:
    for kind in TYPES:
        yield kind, Route(kind, "server")
        yield kind[0], Route(kind, "client")
    yield "batch", Route(None, "server")
    yield "import", Route(None, "server")
    yield "b", Route(None, "client")


def _paths(name: str) -> Iterator[str]:
    # Without /v1 for hosts configured without it, twice for those whose SDK adds it once more; never a redirect.
    for prefix in ("/v1/", "/", "/v1/v1/"):
        yield f"{prefix}{name}"
        yield f"{prefix}{name}/"


ROUTES: Final[Mapping[str, Route]] = {path: route for name, route in _names() for path in _paths(name)}
