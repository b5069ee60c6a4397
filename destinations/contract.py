"""What a destination is: data and functions. It sees payloads, never the log, the store or an offset.

The engine owns everything else: subscription, filters, batching, concurrency, retries, order per profile, dead letters,
the ledger. Nothing to inherit, nothing to register: a module in `destinations/` with a `definition` is found.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from schemas.changes import ProfileChange
from schemas.config import FunctionConfig, SyncMode
from schemas.errors import Unavailable

if TYPE_CHECKING:  # listing destinations must not pay for an HTTP client
    from destinations.http.client import Client


@dataclass(frozen=True, slots=True)
class Delivered:
    """The service has it."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Comes back later: after `after` seconds when the service said so, else by the engine's schedule.
    `reason` is short and groups errors: `http 503`, `timeout`."""

    reason: str
    after: float | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """No retry can help: goes to the dead letters with `reason`."""

    reason: str


@dataclass(frozen=True, slots=True)
class Filtered:
    """Not meant for the service after all, as it turned out on the way: counted as filtered. `reason` is a code."""

    reason: str


Outcome = Delivered | Retry | Rejected | Filtered
DELIVERED: Final = Delivered()
UNTRIED: Final = Retry("interrupted", after=0.0)
"""This very object: nothing was tried, for want of time. The event goes again as if nothing had been; those that follow it in the call
are UNTRIED too."""


class Settings(BaseModel):
    """Base of a destination's settings. Unknown keys are faults; secrets are `SecretStr` and print as stars."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def faults(self, sources: Collection[str]) -> Sequence[tuple[str, str]]:
        """What cannot stand beside these sources: names of settings, each with the fault and its remedy."""
        return ()


MESSAGE_ID: Final = "message_id"


class Payload(BaseModel):
    """Base of a mapped payload; each field is `mapped(...)`. `message_id` is filled by the engine whatever a mapping says: it is
    another for each mapping that makes a payload of one event for one action."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    message_id: str = Field(json_schema_extra={"mapped": {"@path": "$.messageId"}}, description="Idempotency key.")


class Synced(Payload):
    """Base of a payload whose action knows modes of keeping the service's records in step. `sync_mode` is the mapping's, filled by the
    engine: None where the action has none."""

    sync_mode: SyncMode | None = Field(description="How records are kept in step.")


class Member(Synced):
    """Base of a payload about somebody in an audience. `member` is filled by the engine; an event that does not tell is rejected as
    INVALID_AUDIENCE_MEMBERSHIP."""

    member: bool = Field(description="Whether they are in the audience from now on.")


def filled_fields(payload: type[Payload]) -> frozenset[str]:
    """Names of the fields that the engine fills, whatever a mapping says."""
    bases = (Member, Synced, Payload)
    return frozenset(next(base for base in bases if issubclass(payload, base)).model_fields)


Directives = dict[str, Any]
"""How a payload is made of an event, in the directive language: `pipeline/language/README.md`."""


def mapped(default_mapping: str | Directives, description: str, default: Any = ...) -> Any:
    """A payload field with its default mapping: directives, or only a dotted path into the event."""
    directives: Any = {"@path": f"$.{default_mapping}"} if isinstance(default_mapping, str) else default_mapping
    return Field(default, description=description, json_schema_extra={"mapped": directives})


RawEvent = Mapping[str, Any]
"""A whole event as `schemas.events.materialize` makes it, for destinations that take events as they are."""


class EncodedEvent(NamedTuple):
    """The same as JSON, for actions that only send it on."""

    message_id: str
    json: bytes


Deliver = Callable[[Sequence[RawEvent]], Awaitable[Sequence[Outcome]]]


def no_functions(config: FunctionConfig) -> AbstractAsyncContextManager[Deliver]:
    """Where there are none."""
    raise Unavailable(f"function {config.name} cannot run here")


@dataclass(frozen=True, slots=True)
class Env:
    """All of the world that a destination may touch, so that a test can replace it whole.

    `http` is one client session for this destination; `now` is Unix time in seconds; `folder` is the data folder,
    against which relative paths of settings are resolved. `functions` runs a function of the customer's: one outcome per event."""

    http: "Client"
    now: Callable[[], float]
    folder: str
    functions: Callable[[FunctionConfig], AbstractAsyncContextManager[Deliver]] = no_functions


C = TypeVar("C")
P = TypeVar("P")
S = TypeVar("S", bound=Settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Action(Generic[C, P]):
    """One thing a destination can do with events.

    `deliver` answers one outcome per payload: same length, same order. It may raise CredentialsRejected (the
    destination pauses); any other exception counts as Retry for the whole batch. It is cancelled on shutdown after a
    grace period; what it had not answered is delivered again."""

    name: str  # verb and noun: upsert_contact, send_events
    payload: type[P] | None  # a Payload; None: the whole event as RawEvent
    types: Sequence[str]  # call types it takes; others are filtered as UNSUPPORTED_EVENT_TYPE
    max_batch: int
    deliver: Callable[[C, Sequence[P]], Awaitable[Sequence[Outcome]]]
    subscribe: str = "all"  # the trigger of a mapping that states none, in the filter language
    atomic: bool = False
    """A batch succeeds or fails as one, or repeats are harmless: it may then hold several events of one profile, in
    order. Otherwise the engine puts at most one event per profile into a batch."""
    concurrency: int = 8  # batches in flight at once; never two that hold one profile
    sync_modes: Sequence[SyncMode] = ()
    """How a mapping may keep the service's records in step, the first being what holds where it does not say. Its payload is a
    Synced."""
    encoded: bool = False
    """Whole events come as EncodedEvent: they are encoded while they are at hand, and need not be kept as objects."""
    max_bytes: int | None = None
    """Of a batch, as JSON of its payloads; a larger payload goes alone. None: the action minds that itself, or nobody has to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultLimits:
    """How much of a service is used where a configuration does not say. How many events go together, and how many batches at
    once, its actions say."""

    events_per_second: float | None = None  # of all processes together; None: as many as it takes
    retry_hours: float | None = None  # how long an event that fails is tried again; None: as the engine has it


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A mapping that a destination ships. A configuration turns it on by `presets`; those that are `on` hold where it has neither
    that nor `mappings`."""

    name: str  # in the configuration, and in dead letters
    action: str
    trigger: str  # in the filter language
    mapping: Directives | None = None  # by field; None: each field's default
    on: bool = True


Hear = Callable[[C, Sequence[ProfileChange]], Awaitable[Delivered | Retry]]
"""Takes in changes of profiles, all or none. It is asked again until it has them, and told some again after a crash: `id` tells a
repeat. Changes of one profile come in the order of the log, those of different ones in any; `seq` is the true order."""


@dataclass(frozen=True, slots=True)
class Row:
    """What an event becomes where it is not a request: a row of a table, the hand-over to a function."""

    table: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody to be forgotten. `ids` are (type, value); `profiles` every profile id that they had, and `formerly` such as some of
    their events were delivered with before a profile was taken apart: those have an owner still. `regulation` is the request, the same
    in each repetition; `deleted_at` is ISO 8601."""

    regulation: str
    ids: Sequence[tuple[str, str]]
    profiles: Sequence[str]
    formerly: Sequence[str]
    deleted_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition(Generic[S, C]):
    """A destination. `connect` opens what it needs for its life; `check` probes credentials and reachability without a
    side effect and raises CredentialsRejected or Unavailable."""

    name: str  # a noun: the service, lower snake case
    description: str
    settings: type[S]
    connect: Callable[[S, Env], AbstractAsyncContextManager[C]]
    check: Callable[[C], Awaitable[None]]
    actions: Sequence[Action[C, Any]]
    limits: DefaultLimits = DefaultLimits()
    presets: Sequence[Preset] = ()
    """Without any that is on, and without mappings in the configuration, each event goes to the first action that takes its type."""
    preview: Callable[[S, Sequence[Any]], Sequence[Row]] | None = None
    """The rows that payloads become, for destinations that are no services: what `preflight` compares. Pure."""
    forget: Callable[[C, Sequence[Person]], Awaitable[Sequence[Outcome]]] | None = None
    """Deletes what the service has of these people: one outcome for each, Filtered when it was not told
    how. Asked at least once, and again after Retry. None: it cannot, and receipts say so."""
    hear: "Callable[[S], Hear[C] | None] | None" = None
    """What takes in the changes of who is who, for destinations that keep profiles; None for settings that want none."""
    exclusive: bool = False  # takes one process at a time, as a file does
    warehouse: bool = False  # of an event's `integrations` object it obeys `Warehouses`, not `All`
