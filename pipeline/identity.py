"""Who an event belongs to. Pure: what the graph knows + the event's identifiers + the rules -> a decision with reasons.

The steps are those of the identity specification: drop blocked values, sort by priority, then demote the lowest
identifier for as long as the profile that would result breaks a limit it did not break before.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import re2

from pipeline.profile import Profile
from schemas.events import ExternalId
from schemas.identity import BUILT_IN, LEGACY, WINDOWS, Collection, IdentityConfig, IdTypeConfig

MAX_ID_BYTES: Final = 500

OVER_LIMIT: Final = "Identifier value limit exceeded"
OVER_TIME_LIMIT: Final = "Identifier value time limit exceeded"
BLOCKED: Final = "ID value blocked"
MERGE_LIMIT: Final = "Profile merge limit exceeded"
MAPPING_LIMIT: Final = "Identifier mapping limit exceeded"
NO_IDS: Final = "No matching identifiers on event"
KEPT_APART: Final = "Identifiers kept apart"
NOT_A_VALUE: Final = "Identifier value is not text or a whole number"
TOO_LONG: Final = f"Identifier value over {MAX_ID_BYTES} bytes"
HAS_NUL: Final = "Identifier value holds a NUL character"
MALFORMED: Final = "External id malformed"
UNKNOWN_TYPE: Final = "Identifier type not configured"

_NEVER_IDS: Final = frozenset({"-1", "null", "anonymous"})  # and zeroes and dashes: the suggested values


@dataclass(frozen=True, slots=True)
class IdType:
    """A type of identifier, compiled. `window` is in microseconds, 0 for ever; `keys` are the names of traits that hold it, in
    either spelling."""

    name: str
    collection: Collection
    enabled: bool
    rank: int
    limit: int
    window: int
    case_sensitive: bool
    keys: Sequence[str]
    suggested: bool
    values: frozenset[str]
    patterns: Sequence[Any]
    latest_owner: bool

    def normalize(self, value: str) -> str:
        """The form in which values are compared: trimmed, and in lower case where case does not matter."""
        value = value.strip()
        return value if self.case_sensitive else value.lower()

    def blocks(self, value: str) -> bool:
        """Whether a value names nobody. In time linear in its length."""
        if self.suggested and not value.strip("0-"):
            return True
        if self.values and value.casefold() in self.values:
            return True
        return bool(self.patterns) and any(pattern.search(value) is not None for pattern in self.patterns)


class Rules:
    """The identity configuration, compiled. `version` is recorded with every decision made under it."""

    def __init__(self, config: IdentityConfig | None = None, version: int = 1) -> None:
        self.config = config or IdentityConfig()
        self.version = version
        names = sorted(self.config.known(), key=self._order)
        self.types: Mapping[str, IdType] = {name: self._compiled(name, rank) for rank, name in enumerate(names)}
        self.windowed = frozenset(name for name, one in self.types.items() if one.window)
        self.moving = frozenset(name for name, one in self.types.items() if one.latest_owner)
        self._others: dict[str, IdType] = {}

    def type(self, name: str) -> IdType:
        """A type; of one that is not configured any more, what holds for any new one."""
        return self.types.get(name) or self._others.setdefault(name, self._compiled(name, len(self.types)))

    def arrange(self, ids: Iterable[ExternalId]) -> tuple[list[ExternalId], list["Demoted"]]:
        """Steps 4 and 5: what is not blocked, the most trusted first, ids of one type as they came; and what is blocked."""
        kept, refused = [], []
        for one in ids:
            if self.type(one.type).blocks(one.value):
                refused.append(Demoted(one, BLOCKED))
            else:
                kept.append(one)
        return sorted(kept, key=lambda one: self.rank(one.type)), refused

    def rank(self, kind: str) -> tuple[int, str]:
        """Sort key of types: the most trusted first."""
        return (self.type(kind).rank, kind)

    def normalize(self, kind: str, value: str) -> str:
        """The form in which an identifier is compared."""
        return self.type(kind).normalize(value)

    def _order(self, name: str) -> tuple[bool, int, str]:
        priority, given = self.config.priority, self.config.types.get(name)
        moves = given is not None and given.latest_owner
        return (moves, priority.index(name) if name in priority else len(priority), name)

    def _compiled(self, name: str, rank: int) -> IdType:
        given = self.config.types.get(name, IdTypeConfig())
        blocked = given.blocked
        values = {one.strip().casefold() for one in blocked.values} | (_NEVER_IDS if blocked.suggested else set())
        return IdType(
            name=name,
            collection=given.collection or BUILT_IN.get(name) or LEGACY.get(name) or "users",
            enabled=given.enabled,
            rank=rank,
            limit=given.limit or (1 if name == "user_id" else 5),
            window=WINDOWS[given.window],
            case_sensitive=name != "email" if given.case_sensitive is None else given.case_sensitive,
            keys=tuple(dict.fromkeys(spelling for key in given.traits for spelling in spellings(key))),
            suggested=blocked.suggested,
            values=frozenset(values),
            patterns=tuple(re2.compile(one) for one in blocked.patterns),
            latest_owner=given.latest_owner,
        )


def spellings(key: str) -> Sequence[str]:
    """A trait's name as it is written, and in snake_case and camelCase: app_id, appId."""
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in key).lstrip("_")
    first, *rest = snake.split("_")
    return key, snake, first + "".join(one[:1].upper() + one[1:] for one in rest)


DEFAULT: Final = Rules()


def normalize(kind: str, value: str) -> str:
    """The form in which an identifier is compared, as the built-in types have it."""
    return DEFAULT.normalize(kind, value)


@dataclass(frozen=True, slots=True)
class Demoted:
    """An identifier that this event does not promote, and the rule that says so."""

    id: ExternalId
    violation: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Which identifiers are promoted, the most trusted first; which known profiles they reach (none: create one; several:
    merge them); what was refused; and which of the promoted ones leave another profile."""

    ids: Sequence[ExternalId]
    profiles: Sequence[Profile]
    demoted: Sequence[Demoted]
    moved: Sequence[ExternalId] = ()


def _nowhere(_: ExternalId) -> Sequence[str]:
    return ()


def decide(
    ids: Sequence[ExternalId],
    profile_of: Callable[[ExternalId], Profile | None],
    at: int,
    rules: Rules,
    apart_of: Callable[[ExternalId], Sequence[str]] = _nowhere,
) -> Decision:
    """Steps 5 to 12 of the algorithm, for ids that are arranged already, at least one. `profile_of` gives an identifier's
    canonical profile, `apart_of` the splits that hold it, `at` is the event's time. Ids that belong to their latest owner
    take no part: they go where the others lead."""
    followers = [one for one in ids if one.type in rules.moving] if rules.moving else ()
    if not followers:
        return _of_trusted(ids, profile_of, at, rules)
    trusted = [one for one in ids if one.type not in rules.moving]
    if not trusted:  # then whoever has the first of them that anybody has
        trusted = [next((one for one in followers if profile_of(one) is not None), followers[0])]
    decision = _of_trusted(trusted, profile_of, at, rules)
    return _followed(decision, [one for one in followers if one not in trusted], profile_of, apart_of, at, rules)


def _of_trusted(
    ids: Sequence[ExternalId], profile_of: Callable[[ExternalId], Profile | None], at: int, rules: Rules
) -> Decision:
    kept = [(one, profile_of(one)) for one in ids]
    refused: _Refused = []
    while len(kept) > 1 and (broken := _broken(kept, at, rules)) is not None:
        refused.append((*kept.pop(), _violation(broken, rules)))
    if refused and rules.config.minimal_demotion:
        kept, refused = _spared(kept, refused, at, rules)
    return _within(kept, [Demoted(one, violation) for one, _, violation in refused], rules)


_Reached = list[tuple[ExternalId, Profile | None]]
_Refused = list[tuple[ExternalId, Profile | None, str]]
_APART: Final = ""  # in place of a type: what is broken is a split


def _profiles(kept: _Reached) -> list[Profile]:
    return list({profile.id: profile for _, profile in kept if profile is not None}.values())


def _broken(kept: _Reached, at: int, rules: Rules) -> str | None:
    """The most trusted type whose limit the resulting profile breaks, by more than any of its parts already does."""
    profiles = _profiles(kept)
    fresh = [one.type for one, profile in kept if profile is None]
    if len(profiles) == 1 and not fresh:
        return None
    if len(profiles) > 1 and _conflicts(profiles):
        return _APART
    kinds = {kind for profile in profiles for kind in profile.ids} if len(profiles) > 1 else set()
    broken = []
    for kind in kinds.union(fresh):
        limit = rules.type(kind)
        parts = [_count(profile, limit, at) for profile in profiles]
        total = fresh.count(kind) + sum(parts)
        if total > limit.limit and total > max(parts, default=0):
            broken.append((limit.rank, kind))
    return min(broken)[1] if broken else None


def _count(profile: Profile, kind: IdType, at: int) -> int:
    """How many values the limit counts. Those added after a late event's own time count too."""
    if not kind.window:
        return profile.ids.get(kind.name, 0)
    times = profile.added.get(kind.name, ())
    return len(times) - bisect_right(times, at - kind.window)


def _conflicts(profiles: Sequence[Profile], more: Iterable[str] = ()) -> int:
    """How many splits have both of their sides among these profiles and in `more`."""
    tokens = {token for profile in profiles for token in profile.apart}.union(more)
    splits = [token.rpartition(":")[0] for token in tokens]
    return len(splits) - len(set(splits))


def _spared(kept: _Reached, refused: _Refused, at: int, rules: Rules) -> tuple[_Reached, _Refused]:
    """Takes back, the most trusted first, what was demoted and has no part in what is broken."""
    guilty: _Refused = []
    for one, profile, violation in reversed(refused):
        more = [*kept, (one, profile)]
        if _broken(more, at, rules) is None:
            kept = more
        else:
            guilty.append((one, profile, violation))
    return kept, guilty[::-1]


def _violation(broken: str, rules: Rules) -> str:
    if broken == _APART:
        return KEPT_APART
    return OVER_TIME_LIMIT if rules.type(broken).window else OVER_LIMIT


def _within(kept: _Reached, demoted: list[Demoted], rules: Rules) -> Decision:
    """Steps 10 and 12: no merge beyond the limits of a profile, and no mapping."""
    profiles, most = _profiles(kept), rules.config.ids_per_profile
    total = sum(sum(profile.ids.values()) for profile in profiles)
    if len(profiles) > 1 and (_merges(profiles) > rules.config.merges_per_profile or total > most):
        target = profiles[0]  # of the most trusted identifier that has one
        demoted += [Demoted(one, MERGE_LIMIT) for one, profile in kept if profile is not None and profile is not target]
        kept = [(one, profile) for one, profile in kept if profile is None or profile is target]
        profiles, total = [target], sum(target.ids.values())
    ids = []
    for one, profile in kept:
        if profile is None and total >= most:
            demoted.append(Demoted(one, MAPPING_LIMIT))
            continue
        total += profile is None
        ids.append(one)
    return Decision(ids, profiles, demoted)


def _merges(profiles: Sequence[Profile]) -> int:
    """How many merges would make up the profile that these become."""
    return sum(profile.merges for profile in profiles) + len(profiles) - 1


# ── Ids of their latest owner ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Person:
    """What an event comes to so far: its profiles, and how many ids of each type are new to them."""

    profiles: list[Profile]
    fresh: Counter[str]

    def violation(
        self, kind: IdType, profile: Profile | None, apart: Sequence[str], at: int, rules: Rules
    ) -> str | None:
        """Why an id of a type may not follow; `profile` is one that it brings along. None when it may."""
        if _conflicts(self.profiles, apart):
            return KEPT_APART
        merged = [] if profile is None else [*self.profiles, profile]
        if len(merged) > 1 and _merges(merged) > rules.config.merges_per_profile:
            return MERGE_LIMIT
        brought = 1 if profile is None else _count(profile, kind, at)
        if (
            brought
            and self.fresh[kind.name] + brought + sum(_count(one, kind, at) for one in self.profiles) > kind.limit
        ):
            return _violation(kind.name, rules)
        total = sum(self.fresh.values()) + sum(sum(one.ids.values()) for one in self.profiles)
        return MAPPING_LIMIT if total >= rules.config.ids_per_profile else None


def _followed(
    decision: Decision,
    followers: Iterable[ExternalId],
    profile_of: Callable[[ExternalId], Profile | None],
    apart_of: Callable[[ExternalId], Sequence[str]],
    at: int,
    rules: Rules,
) -> Decision:
    """The same with ids that follow the others: each is theirs already, is new, leaves a profile that has other ids, or brings one
    along that has none. What a limit or a split forbids is refused, and stays where it is."""
    ids, demoted, moved = list(decision.ids), list(decision.demoted), list[ExternalId]()
    person = _Person(list(decision.profiles), Counter(one.type for one in ids if profile_of(one) is None))
    for one in followers:
        owner = profile_of(one)
        if owner is None or all(owner is not each for each in person.profiles):
            whole = owner if owner is not None and sum(owner.ids.values()) == 1 else None
            if (why := person.violation(rules.type(one.type), whole, apart_of(one), at, rules)) is not None:
                demoted.append(Demoted(one, why))
                continue
            if whole is not None:
                person.profiles.append(whole)
            else:
                person.fresh[one.type] += 1
                if owner is not None:
                    moved.append(one)
        ids.append(one)
    return Decision(ids, person.profiles, demoted, moved)
