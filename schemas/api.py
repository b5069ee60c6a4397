"""The shapes of what the API answers. Times are ISO 8601 in UTC; the OpenAPI document is made from these."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Shape(BaseModel):
    """Base of every answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def json_object(self) -> dict[str, Any]:
        """As it goes over the wire."""
        return self.model_dump(by_alias=True)


class ErrorDetail(Shape):
    """What went wrong, for programs and for people."""

    code: str
    message: str


class Error(Shape):
    """Every answer that is not a success."""

    error: ErrorDetail


# ── Profiles ──────────────────────────────────────────────────────────────────────────────────────────────────────


class ExternalIdView(Shape):
    """An identifier of a profile."""

    type: str
    id: str
    created_at: str


class ProfileView(Shape):
    """A person."""

    id: str = Field(description="Canonical profile id; ids in `merged` lead here too.")
    external_ids: Sequence[ExternalIdView]
    traits: Mapping[str, Any]
    events: int
    first_seen: str
    last_seen: str
    created_at: str
    merged: Sequence[str]


class Cursor(Shape):
    """Where a list goes on. `next` is empty on the last page."""

    url: str
    has_more: bool
    next: str
    limit: int


class TraitsPage(Shape):
    """Traits in alphabetical order; with `verbose`, each value with its time and messageId."""

    traits: Mapping[str, Any]
    cursor: Cursor


class ExternalIdItem(Shape):
    """An identifier, as the profile API lists it."""

    collection: Literal["users"] = "users"
    type: str
    id: str
    created_at: str
    encoding: Literal["none"] = "none"


class ExternalIdsPage(Shape):
    """External ids in the order they were added."""

    data: Sequence[ExternalIdItem]
    cursor: Cursor


# ── The path of an event ──────────────────────────────────────────────────────────────────────────────────────────


class PathStep(Shape):
    """Where an event stands at a destination. `after_ms` counts from when the collector received it."""

    outcome: Literal["pending", "held", "retry", "delivered", "filtered", "dead", "settled"]
    reason: str | None
    after_ms: int | None
    attempts: int


class PathProfile(Shape):
    """The profile an event belongs to; without a usable identifier there is none."""

    id: str | None
    after_ms: int | None


class EventPath(Shape):
    """Accepted or refused, its profile, each destination."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    message_id: str
    type: str
    event: str | None = Field(description="Name of the event, page or screen.")
    user_id: str | None
    anonymous_id: str | None
    source: str
    received_at: str
    refused: str | None = Field(description="Reason code, when the event went no further.")
    remedy: str | None = Field(None, description="What a person can do about it.")
    body: str | None = Field(None, description="What was refused, as it came.")
    profile: PathProfile | None
    destinations: Mapping[str, PathStep]
    complete: bool = Field(description="Nothing about it can change any more.")


class EventPaths(Shape):
    """Every way that a messageId took: one per source, and each refusal."""

    events: Sequence[EventPath]


# ── Refusals and usage ────────────────────────────────────────────────────────────────────────────────────────────


class RefusalView(Shape):
    """An event that went no further."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    source: str
    message_id: str
    code: str
    remedy: str | None = Field(description="What a person can do about it.")
    received_at: str
    body: str = Field(description="What was refused, as it came; cut off where it is long.")


class RefusalsPage(Shape):
    """Refused events, the latest first."""

    data: Sequence[RefusalView]
    cursor: Cursor


class UsageView(Shape):
    """What a source used in a month: accepted events, each once, the bytes of their bodies, and how many users they name."""

    month: str
    source: str
    events: int
    bytes: int
    users: int = Field(
        description="Estimated, with a standard error of 1.6 %: userIds, and anonymousIds of events without one."
    )


class UsagePage(Shape):
    """Usage by month, the latest first, and source."""

    usage: Sequence[UsageView]


# ── The balance ───────────────────────────────────────────────────────────────────────────────────────────────────


class SourceBalance(Shape):
    """What came from a source. `waiting` has not been processed; None: too much of it to count."""

    accepted: int
    duplicates: int
    refused: int
    unresolved: int
    waiting: int | None


class DestinationBalance(Shape):
    """accepted = delivered + filtered + dead + pending + off. None: the backlog is too long to count."""

    accepted: int
    delivered: int
    filtered: int
    dead: int
    pending: int | None
    off: int | None


class Balance(Shape):
    """The books. `off` is the sum of all that does not add up: 0 when they are right."""

    sources: Mapping[str, SourceBalance]
    destinations: Mapping[str, Mapping[str, DestinationBalance]]
    off: int | None
