"""What a route takes and answers, declared once beside it, and the OpenAPI 3.1 document that is made of all declarations."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from schemas.api import Error

JsonSchema = Mapping[str, Any]
TEXT: Final[JsonSchema] = {"type": "string"}
FLAG: Final[JsonSchema] = {"type": "string", "enum": ["true", "false"]}
ERRORS: Final[Mapping[int, str]] = {
    400: "Something in the request is wrong; the message says what.",
    401: "The token is missing or not known.",
    403: "The token's scopes do not reach so far.",
    404: "There is no such thing.",
    405: "Another method is to be used here.",
    409: "Things are no longer as the request assumes.",
    410: "It was there, and was deleted.",
    413: "The body is too large.",
    429: "Over the rate; Retry-After says when to come again.",
    500: "A fault of ours; the log has the details.",
    503: "Not now; Retry-After says when to come again.",
    504: "What was waited for has not come in time.",
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A value in the query, or in the path. Those in the path are required."""

    name: str
    description: str
    schema: JsonSchema
    where: Literal["query", "path", "header"] = "query"


@dataclass(frozen=True, slots=True)
class Media:
    """An answer or a body that is no model of ours."""

    type: str
    schema: JsonSchema


Content = type[BaseModel] | Media


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path. `path` has its parameters in braces. `secured` names the credential, None for open ones;
    `errors` are the statuses beside `answer`, each with the shape `error`."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    summary: str
    tag: str
    answer: Content
    parameters: Sequence[Parameter] = ()
    body: Content | None = None
    errors: Sequence[int] = ()
    error: type[BaseModel] = Error
    secured: Literal["apiToken", "writeKey"] | None = "apiToken"


def whole(least: int, most: int, default: int) -> JsonSchema:
    """The schema of a number in a query."""
    return {"type": "integer", "minimum": least, "maximum": most, "default": default}


def document(operations: Iterable[Operation], version: str) -> dict[str, Any]:
    """The OpenAPI document. Shapes stand under `components`, each once."""
    every = list(operations)
    models = {
        (one, mode)
        for operation in every
        for one, mode in (
            (operation.answer, "serialization"),
            (operation.body, "validation"),
            (operation.error, "serialization"),
        )
        if isinstance(one, type)
    }
    ordered: list[Any] = sorted(models, key=lambda pair: (pair[0].__name__, pair[1]))
    references, definitions = models_json_schema(ordered, ref_template="#/components/schemas/{model}")
    paths: dict[str, dict[str, Any]] = {}
    for operation in every:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, references)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Millrace",
            "version": version,
            "description": "The tracking API takes events; the profile API answers about people; the management API, below "
            "/api, shows and mends what happens between them.",
        },
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": {
                "apiToken": {
                    "type": "http",
                    "scheme": "basic",
                    "description": "A token as user name, with an empty password; or as Bearer.",
                },
                "writeKey": {
                    "type": "http",
                    "scheme": "basic",
                    "description": "The write key of a source as user name, with an empty password. It may stand in the body "
                    "instead, as writeKey.",
                },
            },
        },
    }


def _operation(one: Operation, references: Mapping[Any, Any]) -> dict[str, Any]:
    def content(what: Content, mode: str) -> dict[str, Any]:
        if isinstance(what, Media):
            return {what.type: {"schema": dict(what.schema)}}
        return {"application/json": {"schema": references[what, mode]}}

    answers: dict[str, Any] = {"200": {"description": "Done.", "content": content(one.answer, "serialization")}}
    for status in one.errors:
        answers[str(status)] = {"description": ERRORS[status], "content": content(one.error, "serialization")}
    made: dict[str, Any] = {
        "summary": one.summary,
        "tags": [one.tag],
        "operationId": _identifier(one),
        "responses": answers,
        "security": [] if one.secured is None else [{one.secured: []}],
    }
    if one.parameters:
        made["parameters"] = [
            {
                "name": parameter.name,
                "in": parameter.where,
                "description": parameter.description,
                "required": parameter.where == "path",
                "schema": dict(parameter.schema),
            }
            for parameter in one.parameters
        ]
    if one.body is not None:
        made["requestBody"] = {"required": True, "content": content(one.body, "validation")}
    return made


def _identifier(one: Operation) -> str:
    words = [word.strip("{}") for word in one.path.replace(".", "_").split("/") if word]
    return "_".join((one.method.lower(), *words))
