"""The tracking API's routes as the OpenAPI document has them. Aliases of a path are not listed: they are what its section says."""

from collections.abc import Sequence
from typing import Final

from collector.routes import ROUTES
from schemas.api import IngestError, Success
from schemas.openapi import TEXT, Content, Media, Operation, Parameter

_EVENT: Final = Media(
    "application/json",
    {
        "type": "object",
        "description": "One call, as the SDKs send it.",
        "properties": {
            "userId": {"type": "string"},
            "anonymousId": {"type": "string"},
            "messageId": {"type": "string"},
            "timestamp": {"type": "string"},
            "event": {"type": "string"},
            "properties": {"type": "object"},
            "traits": {"type": "object"},
            "context": {"type": "object"},
            "integrations": {"type": "object"},
        },
    },
)
_BATCH: Final = Media(
    "application/json",
    {
        "type": "object",
        "description": "Many calls, each with its type.",
        "properties": {"batch": {"type": "array", "items": {"type": "object"}, "maxItems": 2_500}},
        "required": ["batch"],
    },
)
_ERRORS: Final = (400, 401, 405, 413, 429, 500, 503)
_WRITE_KEY: Final = Parameter("write_key", "The write key of a source.", TEXT, "path")


def _ingest(path: str, summary: str, body: Content) -> Operation:
    return Operation(
        method="POST",
        path=path,
        summary=summary,
        tag="tracking",
        answer=Success,
        body=body,
        errors=_ERRORS,
        error=IngestError,
        secured="writeKey",
    )


def _open(path: str, summary: str, answer: Media, *parameters: Parameter) -> Operation:
    return Operation(
        method="GET",
        path=path,
        summary=summary,
        tag="tracking",
        answer=answer,
        parameters=parameters,
        errors=(404, 500),
        error=IngestError,
        secured=None,
    )


OPERATIONS: Final[Sequence[Operation]] = (
    *(
        _ingest(
            path,
            f"Take {'many calls' if route.type is None else f'one {route.type} call'}, as from a {route.channel}",
            _BATCH if route.type is None else _EVENT,
        )
        for path, route in ROUTES.items()
        if path.startswith("/v1/") and not path.startswith("/v1/v1/") and not path.endswith("/")
    ),
    _open(
        "/v1/projects/{write_key}/settings",
        "What an SDK has to know",
        Media("application/json", {"type": "object"}),
        _WRITE_KEY,
    ),
    _open(
        "/v1/pixel/{type}",
        "Take one call as the address of an image",
        Media("image/gif", {"type": "string", "format": "binary"}),
        Parameter("type", "The call, such as track.", TEXT, "path"),
        Parameter("data", "The call as JSON in base64.", TEXT),
    ),
)
