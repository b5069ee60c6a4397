"""Payloads from events: each field's default mapping, compiled once per payload type."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final

from pydantic import ValidationError

from destinations.contract import Payload, RawEvent

PAYLOAD_VALIDATION_FAILED: Final = "PAYLOAD_VALIDATION_FAILED"
_MISSING: Final = object()


@cache
def mapping(payload: type[Payload]) -> Callable[[RawEvent], Payload]:
    """Makes a payload of an event; what the event lacks is left to the field's default. ValueError names the fields that
    are wrong, without their values."""
    fields = _paths(payload)

    def build(event: RawEvent) -> Payload:
        found = {name: value for name, path in fields if (value := _walk(event, path)) is not _MISSING}
        try:
            return payload.model_validate(found)
        except ValidationError as error:
            wrong = sorted({".".join(map(str, one["loc"])) for one in error.errors()})
            raise ValueError(f"{PAYLOAD_VALIDATION_FAILED}: {', '.join(wrong)}") from error

    return build


def _paths(payload: type[Payload]) -> Sequence[tuple[str, Sequence[str]]]:
    found = []
    for name, field in payload.model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and isinstance(extra.get("mapped"), str):
            found.append((name, str(extra["mapped"]).split(".")))
    return found


def _walk(event: RawEvent, path: Sequence[str]) -> Any:
    value: Any = event
    for step in path:
        if not isinstance(value, dict) or step not in value:
            return _MISSING
        value = value[step]
    return value
