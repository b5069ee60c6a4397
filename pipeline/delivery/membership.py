"""Whether an event puts somebody into an audience or takes them out: the reference's table, row by row. Pure."""

from collections.abc import Mapping
from typing import Any, Final

from destinations.contract import RawEvent
from schemas.config import SyncMode

INVALID_AUDIENCE_MEMBERSHIP: Final = "INVALID_AUDIENCE_MEMBERSHIP"

_COMPUTED: Final = frozenset(("audience", "journey_step"))
_VALUES: Final[Mapping[str, str]] = {"identify": "traits", "track": "properties"}
"""Where an event of an audience or a journey says True or False, under the audience's key."""

_SYNCED: Final[Mapping[tuple[SyncMode, str], bool]] = {
    ("add", "new"): True,
    ("update", "updated"): True,
    ("upsert", "new"): True,
    ("upsert", "updated"): True,
    ("mirror", "new"): True,
    ("mirror", "updated"): True,
    ("delete", "deleted"): False,
    ("mirror", "deleted"): False,
}
"""What a row of a warehouse becomes: by the mapping's mode and the track event that tells of it."""


def membership(event: RawEvent, mode: SyncMode | None) -> bool | None:
    """True: in; False: out; None: the event does not tell."""
    personas = _object(_object(event, "context"), "personas")
    if personas.get("computation_class") in _COMPUTED:
        values = _object(event, _VALUES.get(event["type"], ""))
        value = values.get(str(personas.get("computation_key")))
        return value if isinstance(value, bool) else None
    if mode is None or event["type"] != "track":
        return None
    name = event.get("event")
    return _SYNCED.get((mode, name)) if isinstance(name, str) else None


def _object(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name)
    return found if isinstance(found, dict) else {}
