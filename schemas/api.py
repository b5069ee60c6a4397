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


# ── The tracking API ──────────────────────────────────────────────────────────────────────────────────────────────


class Success(Shape):
    """The log has what was sent."""

    success: Literal[True]


class IngestError(Shape):
    """Why nothing of a request was kept: `message` and `error` are the same, for the sake of all SDKs."""

    success: Literal[False]
    code: str
    message: str
    error: str


class State(Shape):
    """Whether the process lives, or takes requests."""

    status: Literal["alive", "ready"]


# ── Profiles ──────────────────────────────────────────────────────────────────────────────────────────────────────


class ExternalIdView(Shape):
    """An identifier of a profile."""

    type: str
    id: str
    created_at: str


class ProfileView(Shape):
    """A person."""

    id: str = Field(description="Canonical profile id; ids in `merged` lead here too.")
    collection: Literal["users", "accounts"]
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
    """Traits in alphabetical order; with `verbose`, each as a `TraitView`."""

    traits: Mapping[str, Any]
    cursor: Cursor


class TraitView(Shape):
    """A trait with the event that wrote it."""

    value: Any
    source_id: str | None
    updated_at: str
    message_id: str
    class_: Literal["custom", "computed_trait", "audience", "sql_trait", "journey", "prediction"] = Field(alias="class")


class ExternalIdItem(Shape):
    """An identifier, as the profile API lists it. The last two come with `verbose`."""

    source_id: str | None
    collection: Literal["users", "accounts"]
    id: str
    type: str
    created_at: str
    encoding: Literal["none"]
    first_message_id: str | None
    mapped_by_merge: str | None = Field(None, description="The merge that brought it to this profile.")
    config_version: int | None = Field(None, description="Version of the identity rules that mapped it.")


class ExternalIdsPage(Shape):
    """External ids in the order they were added."""

    data: Sequence[ExternalIdItem]
    cursor: Cursor


class IdItem(Shape):
    """An identifier in short."""

    collection: Literal["users", "accounts"]
    type: str
    id: str
    encoding: Literal["none"]
    created_at: str | None = None
    source_id: str | None = Field(None, description="The source that first sent it.")


class ProfileEvent(Shape):
    """An event of a profile. Pages and screens are named Page Viewed and Screen Viewed."""

    type: str
    event: str | None
    message_id: str
    source_id: str
    timestamp: str
    properties: Mapping[str, Any]
    context: Mapping[str, Any]
    traits: Mapping[str, Any] | None = Field(None, description="Of identify and group.")
    external_ids: Sequence[IdItem]
    related: Mapping[str, str]


class EventsCursor(Cursor):
    """`clamped`: retention has removed events after `start`."""

    clamped: bool


class EventsPage(Shape):
    """Events in the order in which they happened."""

    data: Sequence[ProfileEvent]
    cursor: EventsCursor


class ProfileMetadata(Shape):
    """The life of a profile: after a merge, the beginning of the earliest and the end of the latest."""

    created_at: str
    updated_at: str
    expires_at: str | None
    first_message_id: str | None
    first_source_id: str | None
    last_message_id: str | None
    last_source_id: str | None
    events: int | None = Field(None, description="How many it has; not told by `metadata` itself.")


class MetadataAnswer(Shape):
    """The life of a profile."""

    metadata: ProfileMetadata


class LinkItem(Shape):
    """An account of a user, or a user of an account, with at most 25 of its ids."""

    to_collection: Literal["users", "accounts"]
    id: str
    external_ids: Sequence[IdItem]
    linked_at: str
    last_seen_at: str


class PreferenceView(Shape):
    """A preference with the event that stated it, when `verbose` is asked for."""

    value: bool | Literal["conflict"]
    source_id: str
    updated_at: str
    message_id: str


class Consent(Shape):
    """What was last said of each category. A category that is not there was never collected: that is no consent."""

    categories: Mapping[str, bool | Literal["conflict"] | PreferenceView] = Field(
        description="true, false, or conflict: profiles that merged had said different things, and nobody has said anything since."
    )


class ConsentAnswer(Shape):
    """The consent of a profile."""

    consent: Consent


class LinksPage(Shape):
    """What a profile is linked with."""

    data: Sequence[LinkItem]
    cursor: Cursor


class MergeTrigger(Shape):
    """The event that caused a merge."""

    message_id: str
    source_id: str
    type: str


class MergeItem(Shape):
    """A profile that became part of another."""

    merge_id: str
    survivor: str
    absorbed: str
    at: str
    trigger: MergeTrigger
    external_ids_moved: Sequence[str]
    config_version: int
    reversible: bool
    undone_by: str | None


class MergesPage(Shape):
    """The merges that made a profile, in order."""

    data: Sequence[MergeItem]
    cursor: Cursor


class ProfileItem(Shape):
    """A profile among many, with the fields that were asked for."""

    id: str
    external_ids: Sequence[IdItem] | None = None
    traits: Mapping[str, Any] | None = None
    metadata: ProfileMetadata | None = None
    merged: Sequence[str] | None = None
    consent: Consent | None = None


class ProfilesPage(Shape):
    """Profiles of a list or a search. A page may hold fewer than asked for; `has_more` says whether there is more."""

    data: Sequence[ProfileItem]
    cursor: Cursor


class ExportLine(ProfileItem):
    """A line of an export, and the `cursor` to go on behind it. The last line of an id holds."""

    collection: Literal["users", "accounts"]
    cursor: str


class LookUp(Shape):
    """A look-up whose id stands in the body. The parameters of the resource may stand beside it."""

    model_config = ConfigDict(extra="allow")

    id: str
    resource: Literal["traits", "external_ids", "events", "metadata", "links", "merges", "consent"] = "traits"


class Batch(Shape):
    """Up to 100 look-ups."""

    ids: Sequence[str] = Field(min_length=1, max_length=100)
    fields: Sequence[str] | None = Field(
        None, description="external_ids, traits, metadata, merged, consent, or traits.NAME."
    )
    after: str | None = Field(None, description="messageId of an event that is waited for.")


class BatchItem(Shape):
    """One look-up of a batch: its profile, or what is wrong with it."""

    id: Any
    status: int
    profile: ProfileItem | None = None
    error: ErrorDetail | None = None


class BatchAnswer(Shape):
    """The look-ups of a batch, in its order."""

    data: Sequence[BatchItem]


class SearchBody(Shape):
    """A search: a tree of conditions, whose leaves name a `trait`, an `id` or a category of `consent` with `op` and `value`, in groups
    of `and`, `or` and `not`."""

    where: Mapping[str, Any]
    fields: Sequence[str] | None = Field(
        None, description="external_ids, traits, metadata, merged, consent, or traits.NAME."
    )
    limit: int = Field(50, ge=1, le=1_000)
    next: str | None = Field(None, description="The cursor of the page before.")
    after: str | None = Field(None, description="messageId of an event that is waited for.")


# ── Tokens, and who read whom ─────────────────────────────────────────────────────────────────────────────────────


class TokenWanted(Shape):
    """A token to be made."""

    name: str = Field(description="What it is for: the program, the environment.")
    scopes: Sequence[Literal["profiles:read", "profiles:search", "profiles:delete_identifier"]] = ("profiles:read",)
    traits: Sequence[str] | None = Field(None, description="The only traits that it sees; all of them by default.")
    requests_per_second: int = Field(1_000, ge=1, le=1_000_000, description="Of one process.")


class TokenView(Shape):
    """A token, without its secret."""

    id: str
    name: str
    scopes: Sequence[str]
    traits: Sequence[str] | None
    requests_per_second: int
    created_at: str
    revoked_at: str | None


class TokenMade(TokenView):
    """A token, the only time that its secret is told."""

    token: str


class TokensPage(Shape):
    """All tokens there ever were, in the order they were made."""

    data: Sequence[TokenView]


class ProfileRead(Shape):
    """How often a token read a resource of a profile within an hour. `profile` is * where all were read."""

    profile: str
    token: str
    name: str | None
    resource: str
    count: int
    first_at: str
    last_at: str


class ProfileReads(Shape):
    """Who read a profile, the latest first."""

    data: Sequence[ProfileRead]


# ── The path of an event ──────────────────────────────────────────────────────────────────────────────────────────


class PathStep(Shape):
    """Where an event stands at a destination. `after_ms` counts from when the collector received it."""

    outcome: Literal["pending", "held", "retry", "delivered", "filtered", "dead", "purged", "settled"]
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
    """accepted = delivered + filtered + dead + purged + pending + missed + off. What the log's retention had removed before the destination
    was there is not in `accepted`; of one that is configured no more, neither is what it took since. Once that is configured again, what it
    took meanwhile is `missed`. `purged` are dead letters that a person gave up, or whose person was deleted. None: the backlog is too long
    to count."""

    accepted: int
    delivered: int
    filtered: int
    dead: int
    purged: int
    pending: int | None
    missed: int
    off: int | None


class ReplayBalance(Shape):
    """What became of the recorded events that a replay has read: each is in one of these. None of them is in the book of its
    destination. `filtered` are those that were not to be sent, such as delivered ones; `pending` wait for another try."""

    delivered: int
    filtered: int
    dead: int
    purged: int
    pending: int


class Balance(Shape):
    """The books. `off` is the sum of all that does not add up: 0 when they are right."""

    sources: Mapping[str, SourceBalance]
    destinations: Mapping[str, Mapping[str, DestinationBalance]]
    replays: Mapping[str, ReplayBalance] = Field(description="What replays did, by their names in the ledger.")
    off: int | None


# ── Dead letters and replays ──────────────────────────────────────────────────────────────────────────────────────


class DeadLetterGroup(Shape):
    """Dead letters of one destination that died of the same cause; the latest is the sample."""

    destination: str = Field(description="Of a replay's letters: its name in the ledger, `destination:replay-id`.")
    cause: str
    count: int
    first_at: str
    last_at: str
    message_id: str
    reason: str
    remedy: str


class DeadLettersPage(Shape):
    """One page, by destination and cause."""

    data: Sequence[DeadLetterGroup]
    cursor: Cursor


class DeadLetter(Shape):
    """An event that a destination will never take, unless it is put back."""

    destination: str
    source: str
    message_id: str
    profile: str | None
    cause: str
    reason: str
    remedy: str
    attempts: int
    first_at: str = Field(description="When it was first tried, or put back the last time.")
    died_at: str
    partition: int
    offset: int


class DeadLetterList(Shape):
    """Some of a destination's letters, in the order in which they would be tried again."""

    data: Sequence[DeadLetter]
    cursor: Cursor


class ExchangeSample(Shape):
    """What was sent to a service and what it said, with nothing secret or personal in it."""

    at: str
    message_id: str
    request: Any
    answer: Any


class DeadLetterView(DeadLetter):
    """A letter with its event. `event` is what the destination would be shown, None when the record cannot be read;
    `record` are the original bytes in base64, None when they are gone."""

    event: Mapping[str, Any] | None
    record: str | None
    sample: ExchangeSample | None = Field(description="The latest exchange with the service that ended in this cause.")


class DeadLetterViews(Shape):
    """What is dead of an event, at each destination."""

    letters: Sequence[DeadLetterView]


class LettersChosen(Shape):
    """Which letters: those of one destination, with this cause, that died in this time (ISO 8601). `next` goes on where the
    answer before ended."""

    destination: str = Field(min_length=1)
    cause: str | None = None
    since: str | None = None
    until: str | None = None
    next: str = ""


class LettersMoved(Shape):
    """How many letters were put back or purged. `next` is where to go on, empty at the end."""

    count: int
    next: str


class ReplayWanted(Shape):
    """What is to be sent again: what was recorded in this time (ISO 8601), of these sources, that matches a filter."""

    destination: str = Field(min_length=1)
    since: str
    until: str | None = Field(None, description="Until now, when left out.")
    sources: Sequence[str] = ()
    filter: str = Field("", max_length=5_120, description="In the filter language.")
    rate: float = Field(500.0, gt=0, le=1_000_000, description="Events a second.")
    again: bool = Field(False, description="Also what the destination has had already.")


class ReplayView(Shape):
    """A replay as it stands. `read` of `records` of the log are done; what is not delivered of them is in `not_sent`, by reason."""

    id: int
    destination: str
    state: Literal["running", "cancelling", "done", "cancelled"]
    created_at: str
    ended_at: str | None
    since: str
    until: str
    sources: Sequence[str]
    filter: str
    rate: float
    again: bool
    note: str = Field(description="Why it stands still, or how it ended.")
    read: int
    records: int
    delivered: int
    dead: int
    purged: int
    pending: int
    not_sent: Mapping[str, int]


class ReplaysPage(Shape):
    """One page, the latest first."""

    data: Sequence[ReplayView]
    cursor: Cursor
