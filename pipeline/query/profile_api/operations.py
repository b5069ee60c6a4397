"""The profile API's routes as the OpenAPI document has them."""

from collections.abc import Sequence
from typing import Final

from schemas.api import (
    Batch,
    BatchAnswer,
    ConsentAnswer,
    EventsPage,
    ExternalIdsPage,
    LinksPage,
    LookUp,
    MergesPage,
    MetadataAnswer,
    ProfilesPage,
    SearchBody,
    Shape,
    TraitsPage,
)
from schemas.openapi import FLAG, TEXT, Media, Operation, Parameter, whole
from schemas.privacy_api import DeleteExternalIds, ExternalIdDeletedAnswer

_BASE: Final = "/v1/spaces/{space}/collections/{collection}/profiles"
_ERRORS: Final = (400, 401, 403, 404, 405, 410, 413, 429, 500, 503, 504)
_SPACE: Final = (
    Parameter("space", "The space: default.", {"type": "string", "enum": ["default"]}, "path"),
    Parameter("collection", "The collection.", {"type": "string", "enum": ["users", "accounts"]}, "path"),
)
_ADDRESS: Final = Parameter(
    "address", "Any external id, as type:value with the value percent-encoded, or a profile id.", TEXT, "path"
)
_AFTER: Final = Parameter("after", "Wait for the event with this messageId to be in the profile.", TEXT)
_NEXT: Final = Parameter("next", "The cursor of the page before.", TEXT)
_INCLUDE: Final = Parameter("include", "Only these, separated by commas.", TEXT)
_VERBOSE: Final = Parameter("verbose", "More of each item.", FLAG)
_ANY: Final = Media("application/json", {"type": "object"})


def _limit(most: int, default: int) -> Parameter:
    return Parameter("limit", "Items of a page.", whole(1, most, default))


def _of_profile(resource: str, summary: str, answer: type[Shape], *parameters: Parameter) -> Operation:
    return Operation(
        method="GET",
        path=f"{_BASE}/{{address}}/{resource}",
        summary=summary,
        tag="profiles",
        answer=answer,
        parameters=(*_SPACE, _ADDRESS, *parameters, _AFTER),
        errors=_ERRORS,
    )


def _post(name: str, summary: str, body: type[Shape], answer: type[Shape] | Media) -> Operation:
    return Operation(
        method="POST",
        path=f"{_BASE}/{name}",
        summary=summary,
        tag="profiles",
        answer=answer,
        parameters=_SPACE,
        body=body,
        errors=_ERRORS,
    )


OPERATIONS: Final[Sequence[Operation]] = (
    _of_profile(
        "traits",
        "The traits of a profile",
        TraitsPage,
        _limit(200, 20),
        _NEXT,
        _INCLUDE,
        _VERBOSE,
        Parameter("class", "Only traits of this class.", TEXT),
    ),
    _of_profile("external_ids", "The ids of a profile", ExternalIdsPage, _limit(100, 25), _NEXT, _INCLUDE, _VERBOSE),
    _of_profile(
        "events",
        "The events of a profile",
        EventsPage,
        _limit(100, 20),
        _NEXT,
        _INCLUDE,
        Parameter("exclude", "All but these, separated by commas.", TEXT),
        Parameter("start", "From this time on, ISO 8601.", TEXT),
        Parameter("end", "Before this time, ISO 8601.", TEXT),
        Parameter("sort", "By time.", {"type": "string", "enum": ["asc", "desc"]}),
        Parameter("type", "Only these types, separated by commas.", TEXT),
    ),
    _of_profile("metadata", "The life of a profile", MetadataAnswer),
    _of_profile("links", "The accounts of a user, or the users of an account", LinksPage, _limit(100, 20), _NEXT),
    _of_profile("consent", "What a person prefers by category of consent", ConsentAnswer, _VERBOSE),
    _of_profile("merges", "The merges that made a profile", MergesPage, _limit(100, 20), _NEXT),
    Operation(
        method="POST",
        path=f"{_BASE}/{{address}}/external_ids/delete",
        summary="Delete one identifier of a person",
        tag="profiles",
        answer=ExternalIdDeletedAnswer,
        parameters=(*_SPACE, _ADDRESS),
        body=DeleteExternalIds,
        errors=_ERRORS,
    ),
    Operation(
        method="GET",
        path=_BASE,
        summary="Profiles, the latest active first",
        tag="profiles",
        answer=ProfilesPage,
        parameters=(
            *_SPACE,
            Parameter("sort", "The order.", {"type": "string", "enum": ["updated_at"]}),
            Parameter("fields", "What to tell of each, separated by commas.", TEXT),
            _limit(100, 20),
            _NEXT,
        ),
        errors=_ERRORS,
    ),
    _post("lookup", "A look-up whose id stands in the body", LookUp, _ANY),
    _post("batch", "Up to 100 look-ups in one call", Batch, BatchAnswer),
    _post("search", "Profiles by conditions on ids and traits", SearchBody, ProfilesPage),
)
