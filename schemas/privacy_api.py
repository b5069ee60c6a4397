"""The shapes of what is asked and answered about deleting and suppressing people. Times are ISO 8601 in UTC; ids are `type:value`."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from pydantic import Field

from schemas.api import Shape

Kind = Literal[
    "SUPPRESS_ONLY",
    "UNSUPPRESS",
    "DELETE_ONLY",
    "DELETE_INTERNAL",
    "SUPPRESS_WITH_DELETE",
    "SUPPRESS_WITH_DELETE_INTERNAL",
]
Status = Literal["INITIALIZED", "INVALID", "NOT_SUPPORTED", "RUNNING", "PARTIAL_SUCCESS", "FAILED", "FINISHED"]
KINDS: Sequence[str] = get_args(Kind)


class RegulationWanted(Shape):
    """Whom to delete or to suppress, or to let pass again."""

    regulationType: Kind
    subjectType: str = Field(
        "EXTERNAL_ID", description="USER_ID, or any other id type in capitals; EXTERNAL_ID: subjects are type:value."
    )
    subjectIds: Sequence[str] = Field(description="At most 5,000.")


class RegulationMade(Shape):
    """A request that was taken. Ask for its status under this id."""

    regulateId: str
    overallStatus: Status


class RegulationMadeAnswer(Shape):
    """A request that was taken."""

    data: RegulationMade


class DestinationStatus(Shape):
    """What became of a request at one destination."""

    name: str
    id: str
    status: Status
    errString: str
    finishedAt: str | None


class StreamStatus(Shape):
    """All destinations of the installation."""

    id: str
    destinationStatus: Sequence[DestinationStatus]


class RegulationView(Shape):
    """How far a request is, and what was erased where. `subjects` are hashed ids."""

    id: str
    workspaceId: str
    regulationType: str
    overallStatus: Status
    createdAt: str
    finishedAt: str | None
    streamStatus: Sequence[StreamStatus]
    phase: str | None = Field(description="What is being done: people, log, settle, told, ended.")
    subjects: Sequence[str]
    receipt: Mapping[str, Any]


class RegulationAnswer(Shape):
    """One request."""

    data: RegulationView


class RegulationsPage(Shape):
    """Requests, the latest first."""

    data: Sequence[RegulationView]
    next: str = Field(description="Ask with it for the page behind this one; empty on the last.")


class Suppression(Shape):
    """An id with which no event passes. `id` is null where only its hash is kept, since the person was deleted."""

    hash: str
    id: str | None
    since: str


class SuppressionsPage(Shape):
    """Suppressed ids by hash."""

    data: Sequence[Suppression]
    next: str = Field(description="Ask with it for the page behind this one; empty on the last.")


class ExternalIdGone(Shape):
    """An identifier to delete."""

    type: str
    id: str


class DeleteExternalIds(Shape):
    """The one identifier to delete."""

    delete_external_ids: Sequence[ExternalIdGone]


class ExternalIdDeleted(Shape):
    """The profile that the identifier was taken from."""

    profile: str
    deleted_at: str


class ExternalIdDeletedAnswer(Shape):
    """An identifier was deleted."""

    data: ExternalIdDeleted
