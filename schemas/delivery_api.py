"""What the API tells of deliveries and alerts. Times are ISO 8601 in UTC."""

from collections.abc import Mapping, Sequence

from pydantic import Field

from schemas.api import Shape


class Latency(Shape):
    """Seconds from acceptance to delivery, each right to within a tenth. None: nothing was delivered."""

    p50: float | None
    p95: float | None
    p99: float | None


class DeliveryError(Shape):
    """Attempts that failed of the same cause, with the latest example that was kept of it."""

    code: str = Field(description="Such as `http 422`.")
    message: str = Field(description="What the service or the destination says, without what varies; may be empty.")
    count: int
    remedy: str
    at: str | None = Field(description="When the example was made.")
    message_id: str | None
    request: str | None = Field(description="JSON; values have only their form, secrets are stars.")
    answer: str | None = Field(description="JSON; what was in the request is struck out. None: there was no answer.")


class DestinationStatus(Shape):
    """One destination: how it stands now, and its attempts in a span of time. An event that is tried twice is two attempts."""

    name: str
    state: str = Field(description="delivering, unreachable, paused, full, failed; new: nothing was heard of it yet.")
    state_since: str | None
    reason: str
    attempts: int
    delivered: int
    retried: int
    rejected: int
    success_rate: float | None = Field(description="Delivered of all attempts; None without attempts.")
    latency: Latency
    waiting: Mapping[str, int] = Field(
        description="Events in the retry queue: `retry` wait for another try, `held` behind one, `again` were put back."
    )
    oldest_at: str | None = Field(description="When the oldest of them was tried first.")
    lag: int = Field(
        description="Records of the log that it has not read: of all sources, also what is not for it, and repeats."
    )
    errors: Sequence[DeliveryError] = Field(description="The most frequent first.")


class DestinationStatuses(Shape):
    """All destinations, attempts from `since` on."""

    since: str
    destinations: Sequence[DestinationStatus]


class AlertView(Shape):
    """Something that is wrong, or was until just now."""

    alert: str
    state: str = Field(
        description="pending: not yet for long enough; firing; calming: right again, not yet for long enough; both with `again` when it had been over within the hour."
    )
    since: str = Field(description="When it began to fire; of a pending one, when it was first seen.")
    text: str
    remedy: str
    told: Sequence[str] = Field(description="Channels that have heard of it.")


class AlertsPage(Shape):
    """Every alert that is not right."""

    alerts: Sequence[AlertView]
