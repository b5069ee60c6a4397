"""The catalogue of destinations in `README.md`, rendered from their definitions so that it cannot drift.

`python -m destinations.catalogue` rewrites it; a test fails while it is stale.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic.fields import FieldInfo

from destinations.contract import Action, DefaultLimits, Definition, Payload, filled_fields
from destinations.described import is_secret
from destinations.registry import definitions
from schemas.config import RETRY_HOURS

README: Final = Path(__file__).with_name("README.md")
BEGIN: Final = "<!-- catalogue: made by `python -m destinations.catalogue` -->\n"
END: Final = "<!-- end of catalogue -->\n"


def render(known: Mapping[str, Definition[Any, Any]]) -> str:
    """The catalogue as Markdown: for each destination its settings and actions."""
    return "\n".join("\n".join(_section(one)) for one in known.values()) + "\n"


def replaced(text: str, catalogue: str) -> str:
    """`text` with everything between the marks replaced. ValueError without both marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the catalogue's marks are missing")
    return f"{before}{begin}\n{catalogue}\n{end}{after}"


def _section(one: Definition[Any, Any]) -> Iterator[str]:
    yield from (f"### `{one.name}`", "", one.description, "")
    yield from ("| setting | default | |", "|---|---|---|")
    schema = one.settings.model_json_schema()["properties"]
    for name, info in one.settings.model_fields.items():
        secret = "Secret." if is_secret(schema[name]) else ""
        words = " ".join(filter(None, (info.description, _bounds(schema[name]), secret)))
        yield f"| `{name}` | {_default(info)} | {words} |"
    yield from ("", _limits(one.limits))
    yield from ("", "| action | takes | most in a batch | at once | |", "|---|---|---|---|---|")
    for action in one.actions:
        yield f"| `{action.name}` | {', '.join(action.types)} | {action.max_batch:,} | {action.concurrency} | {_unit(action)} |"
    yield ""
    for action in one.actions:
        if action.payload is not None:
            yield from _fields(action.name, action.payload)
    if one.presets:
        yield from ("| preset | action | trigger | on by default |", "|---|---|---|---|")
        for preset in one.presets:
            yield f"| {preset.name} | `{preset.action}` | `{preset.trigger}` | {'yes' if preset.on else 'no'} |"
        yield ""


def _limits(limits: DefaultLimits) -> str:
    rate = (
        "As many events as it takes"
        if limits.events_per_second is None
        else f"{limits.events_per_second:g} events per second"
    )
    return f"{rate}, tried again for {limits.retry_hours or RETRY_HOURS:g} hours, unless `limits` says otherwise."


def _fields(name: str, payload: type[Payload]) -> Iterator[str]:
    yield from (f"| field of `{name}` | type | default mapping | |", "|---|---|---|---|")
    schema = payload.model_json_schema()["properties"]
    for field, info in payload.model_fields.items():
        if field in filled_fields(payload):
            continue
        extra = info.json_schema_extra
        mapped = extra.get("mapped") if isinstance(extra, dict) else None
        needed = "required" if info.is_required() else "optional"
        yield f"| `{field}` | {_type(schema[field])}, {needed} | `{json.dumps(mapped)}` | {info.description} |"
    yield ""


def _type(schema: Mapping[str, Any]) -> str:
    kinds = [one.get("type", "any") for one in schema.get("anyOf", (schema,))]
    return " or ".join(kind for kind in kinds if kind != "null")


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    default = info.get_default(call_default_factory=True, validated_data={})
    return "–" if default in (None, (), {}) else f"`{default}`"


def _bounds(schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    if low is None and high is None:
        return ""
    above = "above " if "exclusiveMinimum" in schema else "from "
    parts = ([f"{above}{low:,}"] if low is not None else []) + ([f"to {high:,}"] if high is not None else [])
    return f"({' '.join(parts)})"


def _unit(action: Action[Any, Any]) -> str:
    whole = "whole events" if action.payload is None else "mapped payloads"
    parts = [whole, "several of one profile together" if action.atomic else "one per profile"]
    parts += [] if action.max_bytes is None else [f"at most {action.max_bytes:,} bytes"]
    parts += [f"modes {', '.join(action.sync_modes)}"] if action.sync_modes else []
    return "; ".join(parts)


def main() -> None:
    """Rewrites the catalogue in place."""
    README.write_text(replaced(README.read_text(), render(definitions())))


if __name__ == "__main__":
    main()
