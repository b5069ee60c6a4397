"""The shapes of what `/api/identity` answers. Times are ISO 8601 in UTC; ids are `type:value`."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from schemas.api import Shape


class Cause(Shape):
    """The event that did something, and the version of the identity configuration it was done under."""

    message_id: str
    type: str | None = None
    source_id: str
    config_version: int


class ExplainedProfile(Shape):
    """One that was created, with the event that created it."""

    id: str
    created_at: str
    message_id: str
    source_id: str
    merged_into: str | None


class ExplainedId(Shape):
    """An external id: when and by which event it was mapped, to which profile first, and what hangs on it."""

    id: str
    type: str
    value: str
    added_at: str | None
    cause: Cause
    first_profile: str | None
    events: int
    first_seen: str | None
    last_seen: str | None
    apart: Sequence[str] = Field(description="Splits that hold this id, as split:side.")


class ExplainedLink(Shape):
    """Two ids that came on one event, the first such event, and how often they did."""

    a: str
    b: str
    count: int
    first_at: str
    last_at: str
    cause: Cause


class ExplainedAccount(Shape):
    """An account that a group call named together with this person."""

    id: str
    account: str
    count: int
    first_at: str
    last_at: str
    message_id: str
    source_id: str


class ExplainedMerge(Shape):
    """A profile that became part of another."""

    id: str
    survivor: str
    absorbed: str
    at: str
    cause: Cause
    undone_by: str | None


class ExplainedMove(Shape):
    """An id that left a profile for that of its latest owner, and the event that had mapped it to the former."""

    id: str
    left: str
    joined: str
    at: str
    cause: Cause
    mapped_at: str
    mapped_by: str = Field(description="messageId of that event.")


class ExplainedSplit(Shape):
    """A profile taken apart: by undoing a merge, or by naming two ids."""

    id: str
    at: str
    profile: str
    other: str
    merge: str | None
    cut: Sequence[str]
    links: Sequence[Sequence[str]] = Field(description="Links that were cut, as pairs of ids.")
    lifted_at: str | None


class ExplainedRefusal(Shape):
    """An id that a rule kept out of a profile."""

    id: str
    profile: str
    violation: str
    count: int
    first_at: str
    last_at: str
    cause: Cause


class ExplainedRules(Shape):
    """A version of the identity configuration that something above was decided under."""

    version: int
    at: str
    rules: Mapping[str, Any]


class Explanation(Shape):
    """Why a profile is what it is, in serial order."""

    profile: str
    collection: Literal["users", "accounts"]
    events: int
    profiles: Sequence[ExplainedProfile]
    ids: Sequence[ExplainedId]
    links: Sequence[ExplainedLink]
    accounts: Sequence[ExplainedAccount]
    merges: Sequence[ExplainedMerge]
    moves: Sequence[ExplainedMove] = Field(description="Of ids whose type has latest_owner.")
    splits: Sequence[ExplainedSplit]
    refused: Sequence[ExplainedRefusal]
    rules: Sequence[ExplainedRules]


class Part(Shape):
    """A profile as a split or its lifting leaves it. `moved` are ids that were another profile's before."""

    id: str
    ids: Sequence[str]
    events: int
    traits: Mapping[str, Any]


class SplitDone(Shape):
    """What an unmerge or a remerge did, or would do."""

    split: str
    done: Literal["unmerge", "remerge"]
    dry_run: bool
    before: Sequence[Part]
    after: Sequence[Part]
    links_cut: Sequence[Sequence[str]]
    links_restored: Sequence[Sequence[str]]
    merges_undone: Sequence[str]
    merges_restored: Sequence[str]
    destinations_told: Sequence[str] = Field(description="messageIds of the corrected identifies.")


class SuspectView(Shape):
    """An id or a profile that looks wrong; `mend` are commands and settings."""

    kind: str
    subject: str
    score: int = Field(ge=0, le=100)
    says: str
    counts: Mapping[str, int]
    mend: Sequence[str]


class Suspects(Shape):
    """What looks wrong, the worst first."""

    suspects: Sequence[SuspectView]


class UnmergeBody(Shape):
    """What to take apart: a merge, or two ids. One of them is given."""

    merge: str | None = Field(None, description="Id of a merge.")
    cut: Sequence[str] | None = Field(None, description="Two ids as type:value.", min_length=2, max_length=2)
    dry_run: bool = Field(False, description="Only say what would happen.")


class UnmergeProfileBody(Shape):
    """Which merge of a profile to undo."""

    merge_id: str
    dry_run: bool = Field(False, description="Only say what would happen.")


class RemergeBody(Shape):
    """Which split to lift."""

    split: str
    dry_run: bool = Field(False, description="Only say what would happen.")
