"""Requests that a service did not take, with what it said: noted while somebody listens, so that people can be shown one.

Whoever starts an attempt listens; what speaks HTTP notes. A request that was taken costs nothing.
"""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

MOST: Final = 8  # of one attempt
_heard: ContextVar["list[Exchange] | None"] = ContextVar("exchanges", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A request as it went out and the answer, nothing struck out yet. `status` None: there was no answer. `reason` is that of
    the outcome."""

    reason: str
    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes
    status: int | None = None
    answer_headers: Mapping[str, str]
    answer: bytes = b""


def listening() -> list[Exchange]:
    """What tasks that are started from here on will note, until this is called again."""
    exchanges: list[Exchange] = []
    _heard.set(exchanges)
    return exchanges


def note(exchange: Exchange) -> None:
    """Tells whoever listens, of the first few."""
    exchanges = _heard.get()
    if exchanges is not None and len(exchanges) < MOST:
        exchanges.append(exchange)
