"""The JSON Schema of `millrace.yaml`, for editors: the models, the settings of each destination type, and `${VAR}`."""

from typing import Any, Final

from millrace.config.load import SettingsModels
from schemas.config import Config

_VARIABLE: Final = {"type": "string", "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}"}
_NOT_TEXT: Final = ("integer", "number", "boolean")


def config_schema(models: SettingsModels | None = None) -> dict[str, Any]:
    """The schema; `models` are the settings of the destination types, by default of all that there are."""
    if models is None:
        from millrace.settings import settings_models

        models = settings_models()
    schema = Config.model_json_schema()
    definitions: dict[str, Any] = schema["$defs"]
    destination = definitions["DestinationConfig"]
    destination["properties"]["type"]["enum"] = sorted(models)
    destination["allOf"] = []
    for name, model in sorted(models.items()):
        settings = model.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
        for inner, one in settings.pop("$defs", {}).items():
            definitions[f"{name}.{inner}"] = one
        definitions[f"{name}.settings"] = settings
        given: dict[str, Any] = {"properties": {"settings": {"$ref": f"#/$defs/{name}.settings"}}}
        if settings.get("required"):
            given["required"] = ["settings"]
        destination["allOf"].append(
            {"if": {"properties": {"type": {"const": name}}, "required": ["type"]}, "then": given}
        )
    whole: dict[str, Any] = _or_variable(schema)
    whole["$defs"]["Variable"] = _VARIABLE | {"description": "An environment variable: ${VAR} or ${VAR:-default}."}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole, "title": "millrace.yaml"}


def _or_variable(node: Any) -> Any:
    """Wherever something other than free text is asked for, `${VAR}` will do as well. Names of keys stay as they are."""
    if isinstance(node, list):
        return [_or_variable(one) for one in node]
    if not isinstance(node, dict):
        return node
    inner = {
        key: value if key in ("propertyNames", "if", "default") else _or_variable(value) for key, value in node.items()
    }
    if isinstance(inner.get("type"), str) and (
        inner["type"] in _NOT_TEXT or {"enum", "const", "pattern", "format"} & inner.keys()
    ):
        kept = {key: inner.pop(key) for key in ("title", "description", "default") if key in inner}
        return {"anyOf": [inner, {"$ref": "#/$defs/Variable"}], **kept}
    return inner
