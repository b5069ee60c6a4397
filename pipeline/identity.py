"""Who an event belongs to. Pure: what the graph knows + the event's identifiers + the rules -> a decision with reasons.

The steps are those of the identity specification: extract, drop blocked values, sort by priority, then demote the lowest
identifier for as long as the profile that would result breaks a limit it did not break before.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from schemas.events import ExternalId

MAX_ID_BYTES: Final = 500


@dataclass(frozen=True, slots=True)
class Rules:
    """The identity configuration. `version` is recorded with every decision made under it."""

    version: int = 1
    limits: Mapping[str, int] = field(default_factory=lambda: {"user_id": 1})
    default_limit: int = 5
    priority: Sequence[str] = ("user_id", "email")  # other types follow in alphabetical order
    blocked: re.Pattern[str] = re.compile(r"[0-]*|-1|null|anonymous", re.IGNORECASE)

    def limit(self, kind: str) -> int:
        """How many values of an identifier type one profile may hold."""
        return self.limits.get(kind, self.default_limit)

    def rank(self, kind: str) -> tuple[int, str]:
        """Sort key: the most trusted type first."""
        return (self.priority.index(kind) if kind in self.priority else len(self.priority), kind)


@dataclass(frozen=True, slots=True)
class Demoted:
    """An identifier that this event does not promote, and the rule that says so."""

    id: ExternalId
    violation: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Which identifiers are promoted, which known profiles they reach (none: create one), and what was refused."""

    ids: Sequence[ExternalId]
    profiles: Sequence[str]
    demoted: Sequence[Demoted]


def extract(user_id: str | None, anonymous_id: str | None, body: Mapping[str, Any] | None) -> list[ExternalId]:
    """The identifiers on an event, trimmed and without blanks and repeats: userId, traits.email, context.traits.email,
    properties.email, anonymousId. `body` is None when it cannot hold an email."""
    found: dict[ExternalId, None] = {}
    if user_id is not None:
        _add(found, "user_id", user_id)
    if body is not None:
        context = body.get("context")
        for holder in (
            body.get("traits"),
            context.get("traits") if isinstance(context, dict) else None,
            body.get("properties"),
        ):
            if isinstance(holder, dict):
                _add(found, "email", holder.get("email"))
    if anonymous_id is not None:
        _add(found, "anonymous_id", anonymous_id)
    return list(found)


def normalize(kind: str, value: str) -> str:
    """The form in which an identifier is compared: trimmed, e-mail addresses in lower case."""
    value = value.strip()
    return value.lower() if kind == "email" else value


def _add(found: dict[ExternalId, None], kind: str, value: Any) -> None:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str):
        value = normalize(kind, value)
        if value and len(value.encode(errors="replace")) <= MAX_ID_BYTES:
            found[ExternalId(kind, value)] = None


def decide(
    ids: Sequence[ExternalId],
    profile_of: Callable[[ExternalId], str | None],
    counts_of: Callable[[str], Mapping[str, int]],
    rules: Rules,
) -> Decision:
    """Steps 4 to 9 of the algorithm. `profile_of` gives an identifier's canonical profile, `counts_of` how many identifiers
    of each type a profile holds. No identifier left: `ids` is empty and the event stays unresolved."""
    demoted = [Demoted(one, "ID value blocked") for one in ids if rules.blocked.fullmatch(one.value)]
    kept = sorted((one for one in ids if not rules.blocked.fullmatch(one.value)), key=lambda one: rules.rank(one.type))
    while True:
        reached = {one: profile_of(one) for one in kept}
        profiles = list(dict.fromkeys(profile for profile in reached.values() if profile is not None))
        if len(kept) <= 1 or not _violates(reached, [counts_of(one) for one in profiles], rules):
            return Decision(kept, profiles, demoted)
        demoted.append(Demoted(kept.pop(), "Identifier value limit exceeded"))


def _violates(reached: Mapping[ExternalId, str | None], counts: Sequence[Mapping[str, int]], rules: Rules) -> bool:
    """Whether the profile that would result breaks a limit, and by more than any of its parts already does."""
    added = Counter(one.type for one, profile in reached.items() if profile is None)
    if len(counts) == 1 and not added:
        return False
    for kind in {kind for part in counts for kind in part} | added.keys():
        total = added[kind] + sum(part.get(kind, 0) for part in counts)
        if total > rules.limit(kind) and total > max((part.get(kind, 0) for part in counts), default=0):
            return True
    return False
