"""What a definition says of itself, as JSON values: settings, actions with the fields that can be mapped, presets, limits."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from destinations.contract import Action, Definition, filled_fields
from schemas.config import RETRY_HOURS


def described(one: Definition[Any, Any]) -> dict[str, Any]:
    """Everything that a person who configures it needs to know."""
    return {
        "name": one.name,
        "description": one.description,
        "warehouse": one.warehouse,
        "forgets_people": one.forget is not None,
        "settings": [_field(name, info, about) for name, info, about in _fields(one.settings)],
        "limits": {
            "events_per_second": one.limits.events_per_second,
            "retry_hours": one.limits.retry_hours or RETRY_HOURS,
        },
        "actions": [_action(action) for action in one.actions],
        "presets": [
            {
                "name": preset.name,
                "action": preset.action,
                "trigger": preset.trigger,
                "mapping": preset.mapping,
                "on": preset.on,
            }
            for preset in one.presets
        ],
    }


def _action(action: Action[Any, Any]) -> dict[str, Any]:
    return {
        "name": action.name,
        "types": list(action.types),
        "takes": "whole events" if action.payload is None else "mapped payloads",
        "max_batch": action.max_batch,
        "max_bytes": action.max_bytes,
        "concurrency": action.concurrency,
        "several_of_one_profile": action.atomic,
        "sync_modes": list(action.sync_modes),
        "fields": [
            {**_field(name, info, about), "mapped": _mapped(info)}
            for name, info, about in ([] if action.payload is None else _fields(action.payload))
            if action.payload is not None and name not in filled_fields(action.payload)
        ],
    }


def _fields(model: type[BaseModel]) -> list[tuple[str, FieldInfo, Mapping[str, Any]]]:
    schema = model.model_json_schema()
    return [(name, info, schema["properties"][name]) for name, info in model.model_fields.items()]


def _field(name: str, info: FieldInfo, schema: Mapping[str, Any]) -> dict[str, Any]:
    default = None if info.is_required() else info.get_default(call_default_factory=True, validated_data={})
    bounds = {
        key: one[key]
        for one in _variants(schema)
        for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "maxLength", "enum")
        if key in one
    }
    return {
        "name": name,
        "type": " or ".join(dict.fromkeys(_type(one) for one in _variants(schema) if one.get("type") != "null")),
        "required": info.is_required(),
        "default": default if default is None or isinstance(default, str | int | float | list | dict) else str(default),
        "secret": is_secret(schema),
        "bounds": bounds,
        "description": info.description or "",
    }


def is_secret(schema: Mapping[str, Any]) -> bool:
    """Whether a setting, or what it holds, is never shown."""
    inner = [schema, *_variants(schema), *(one["additionalProperties"] for one in _variants(schema) if _open(one))]
    return any(one.get("format") == "password" for one in inner)


def _open(schema: Mapping[str, Any]) -> bool:
    return isinstance(schema.get("additionalProperties"), dict)


def _variants(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(schema.get("anyOf", (schema,)))


def _type(schema: Mapping[str, Any]) -> str:
    kind = str(schema.get("format") or schema.get("type") or ("object" if "$ref" in schema else "any"))
    return {"password": "string", "uri": "url"}.get(kind, kind)


def _mapped(info: FieldInfo) -> Any:
    extra = info.json_schema_extra
    return extra.get("mapped") if isinstance(extra, dict) else None
