"""Which payloads may go together in one call: how many, how large, and how alike. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from pydantic import BaseModel

from destinations.contract import Action, EncodedEvent, RawEvent
from pipeline.language.filters import steps_of
from schemas.config import DestinationLimits, MappingConfig
from schemas.exact_json import json_dumps, json_loads

PAYLOAD_VALIDATION_FAILED: Final = "PAYLOAD_VALIDATION_FAILED"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) and one.strip(".") for one in value)


SWITCHES: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "enable_batching": (lambda value: isinstance(value, bool), "must be true or false"),
    "batch_size": (_is_count, "must be a number or left out"),
    "batch_bytes": (_is_count, "must be a number or left out"),
    "batch_keys": (_is_names, "must be a list of fields or left out"),
}
"""What a mapping of the reference says of batches among its fields: whether it may, and what to say when not. Zero, and an empty
list, are as if they were left out."""


@dataclass(frozen=True, slots=True)
class Batching:
    """Bounds of one call: `most` payloads, of `max_bytes` together as JSON (None: nobody counts; a larger payload goes alone), all
    equal at `keys`, which are the steps of paths."""

    most: int
    max_bytes: int | None = None
    keys: Sequence[Sequence[str]] = ()

    @property
    def counts_only(self) -> bool:
        """What payloads hold does not matter to which go together."""
        return self.max_bytes is None and not self.keys

    def size(self, payload: Any) -> int:
        """Bytes that a payload counts for, the comma included; 0 where nobody counts. ValueError when it cannot be JSON."""
        if self.max_bytes is None:
            return 0
        return len(payload.json if isinstance(payload, EncodedEvent) else _json(payload)) + 1

    def kind(self, payload: Any) -> bytes:
        """The same for payloads that may go together. ValueError as above."""
        return _json([_at(payload, steps) for steps in self.keys]) if self.keys else b""


def batching(action: Action[Any, Any], mapping: MappingConfig | None, limits: DestinationLimits | None) -> Batching:
    """What a mapping says, else the destination's limits; never more at once than the action takes."""
    said: Mapping[str, Any] = {} if mapping is None else switches(action, mapping)
    size = said.get("batch_size") or (mapping and mapping.batch_size) or (limits and limits.batch_size)
    most = 1 if said.get("enable_batching") is False else size or action.max_batch
    bytes_ = said.get("batch_bytes") or (mapping and mapping.batch_bytes) or (limits and limits.batch_bytes) or None
    keys: Sequence[str] = said.get("batch_keys") or (mapping.batch_keys if mapping else ())
    bounds = [one for one in (action.max_bytes, bytes_) if one is not None]
    return Batching(min(action.max_batch, most), min(bounds, default=None), [steps_of(key) for key in keys])


def switches(action: Action[Any, Any], mapping: MappingConfig) -> Mapping[str, Any]:
    """What a mapping of the reference says of batches among its fields, where the payload has no field of that name."""
    if mapping.mapping is None or action.payload is None:
        return {}
    fields = action.payload.model_fields
    return {name: mapping.mapping[name] for name in SWITCHES if name in mapping.mapping and name not in fields}


_encoded: Final = partial(tuple.__new__, EncodedEvent)  # a third of the cost of calling the class


def encoded(event: RawEvent) -> EncodedEvent:
    """A whole event as JSON. ValueError as above."""
    try:
        return _encoded((event["messageId"], json_dumps(event)))
    except (TypeError, ValueError) as error:
        raise _no_json() from error


def _at(value: Any, steps: Sequence[str]) -> Any:
    """What stands at a path of a payload, as JSON; None where there is nothing."""
    if isinstance(value, EncodedEvent):
        value = json_loads(value.json)
    for step in steps:
        if isinstance(value, BaseModel):
            value = getattr(value, step, None)
        elif isinstance(value, Mapping):
            value = value.get(step)
        else:
            return None
    return _plain(value)


def _json(value: Any) -> bytes:
    try:
        return json_dumps(_plain(value), sort_keys=True)
    except (TypeError, ValueError) as error:  # half of a surrogate pair, mostly
        raise _no_json() from error


def _no_json() -> ValueError:
    return ValueError(f"{PAYLOAD_VALIDATION_FAILED}: no JSON")


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value
