"""What the server can tell of an event's sender: browser, system, device and bot from the user agent, place from the IP.

Done once, where the pipeline reads an event, and stored beside it in `resolved`: every destination and every replay of it sees
the same, whatever the databases say by then. The body stays as it came; what the client sent always wins.
"""

from typing import Any, Final

import msgspec

from pipeline.enrich.geo import Geo
from pipeline.enrich.user_agent import UserAgents
from schemas.events import Event

__all__ = ["Enrichment", "Geo", "UserAgents"]


class _Context(msgspec.Struct, gc=False, rename="camel"):
    user_agent: Any = None
    user_agent_data: msgspec.Raw = msgspec.Raw()
    user_agent_of_mail: Any = msgspec.field(default=None, name="user_agent")  # as the e-mail events spell it
    ip: Any = None


class _Body(msgspec.Struct, gc=False):
    context: _Context | None = None


# Cheaper than to look for the name in the bytes first, and an escaped name is found too.
_decode: Final = msgspec.json.Decoder(_Body).decode
_NOTHING: Final = _Context()


class Enrichment:
    """Without `user_agents` or without `geo`, that part is left out. For one thread at a time."""

    def __init__(self, user_agents: UserAgents | None = None, geo: Geo | None = None) -> None:
        self._user_agents = user_agents
        self._geo = geo

    def refresh(self) -> None:
        """Once per poll: takes up a database that was replaced."""
        if self._geo is not None:
            self._geo.refresh()

    def __call__(self, event: Event) -> bytes | None:
        """A JSON object: what its names hold belongs into the event's `context` where the client said nothing of it.
        None when there is nothing to tell."""
        geo = self._geo
        if self._user_agents is None and geo is None:
            return None
        said = _said(event.body)
        found = None
        user_agent = said.user_agent_of_mail if said.user_agent is None else said.user_agent
        if self._user_agents is not None and type(user_agent) is str:
            found = self._user_agents.describe(user_agent, bytes(said.user_agent_data))
        if geo is None:
            return found and b"{%b}" % found
        # An address that the client gave stands for the sender, even one that says nothing ("0.0.0.0").
        ip = event.ip if said.ip is None else said.ip
        place = geo.describe(ip) if type(ip) is str else None
        if found and place:
            return b"{%b,%b}" % (found, place)
        known = found or place
        return known and b"{%b}" % known


def _said(body: bytes) -> _Context:
    try:
        return _decode(body).context or _NOTHING
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # others decide what becomes of such a body
        return _NOTHING
