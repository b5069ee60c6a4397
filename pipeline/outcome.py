"""What becomes of people whose events other rules have resolved: pure. How they are, how they would be had the rules been in force
from the start, and their events -> what changes.

Events that the log still holds were resolved again, and count where they went. Of older ones the ids keep what they contributed,
and an id that is none any more leaves it to the one that it was seen with most."""

from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from pipeline.changes import MOST, collection_of
from pipeline.graph import Merge
from pipeline.profile import (
    USERS,
    Node,
    Stamp,
    base62,
    combined,
    emptied,
    message_key,
    stamp_of,
    take_newer,
    values,
)
from pipeline.split import Correction, Family, Rank, correction
from schemas.changes import Cause, ProfileChange, Removed, identifier_hash
from schemas.events import ExternalId
from schemas.topics import INTERNAL_SOURCE

APPLY: Final = "apply"
"""The type of what these changes came from."""


class Seen(NamedTuple):
    """An event of these people: its deduplication key, when it happened (µs), the id it hangs on (empty: none), and the one that it
    would hang on (empty: none; None: it is older than the log)."""

    key: bytes
    at: int
    node: str
    now: str | None


class Known(NamedTuple):
    """A canonical profile that came of it, with what is still to be told of it."""

    id: str
    profile: str
    corrections: Sequence[Correction]
    changes: Sequence[ProfileChange]


@dataclass(slots=True)
class Outcome:
    """How these people are from now on. `moved` says of events, by key, which id they hang on now, and `gone` which ids are nobody's."""

    family: Family
    moved: dict[bytes, str]
    gone: list[str]
    known: list[Known] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Terms:
    """What the rules say here: how trusted a type is, which types' limits have windows, how an id is written, and their version."""

    rank: Rank
    windowed: Container[str]
    normal: Callable[[str], str]
    version: int


def settle(before: Family, after: Family, events: Iterable[Seen], terms: Terms, at: int) -> Outcome:
    """`before` are whole profiles as they are, `after` as the rules make them of what the log holds and of older evidence, without the
    state that older events left. `at` is the time of the change (µs)."""
    heirs = _Heirs(before, after, terms.normal)
    moved = _older(before, after, events, heirs)
    _count_evidence(before, after)
    name = _name(before, after, at)
    _lead_on(before, after, heirs, name, at, terms.version)
    _combine(after, terms.windowed)
    gone = sorted(before.nodes.keys() - after.nodes.keys())
    return Outcome(after, moved, gone, _known(before, after, name, at, terms.rank))


def _name(before: Family, after: Family, at: int) -> str:
    everybody = "\0".join(sorted({*before.profiles, *after.profiles}))
    return base62(message_key(everybody, str(at)), 22)


class _Heirs:
    """Who takes what an id has: itself, how the rules write it, or the one that it was seen with most."""

    def __init__(self, before: Family, after: Family, normal: Callable[[str], str]) -> None:
        self._after, self._normal = after, normal
        self._found: dict[str, str] = {}
        self._met: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
        for (a, b), edge in before.edges.items():
            self._met[a].append((-edge.count, b))
            self._met[b].append((-edge.count, a))

    def of(self, key: str) -> str:
        """Empty when there is nobody."""
        heir = self._found.get(key)
        if heir is None:
            heir = self._found[key] = self._look(key)
        return heir

    def _look(self, key: str) -> str:
        there = self._after.nodes
        for one in (key, self._normal(key)):
            if one in there:
                return one
        return next((one for _, one in sorted(self._met[key]) if one in there), "")


def _older(before: Family, after: Family, events: Iterable[Seen], heirs: _Heirs) -> dict[bytes, str]:
    """Adds what events from before the log contributed. Answers which events hang on another id now."""
    moved: dict[bytes, str] = {}
    resolved: set[bytes] = set()
    for event in events:
        now = event.now
        if now is None:
            now = heirs.of(event.node)
            if now:
                _seen(after.nodes[now], before.nodes[event.node], event.at)
        else:
            resolved.add(event.key)
        if now != event.node:
            moved[event.key] = now
    for key, node in before.nodes.items():
        heir = heirs.of(key)
        if not heir:
            continue
        for mine, theirs in ((node.traits, after.nodes[heir].traits), (node.consent, after.nodes[heir].consent)):
            kept = {
                name: write
                for name, write in mine.items()
                if message_key(stamp_of(write)[3], stamp_of(write)[2]) not in resolved
            }
            take_newer(theirs, kept)
    return moved


def _seen(node: Node, was: Node, at: int) -> None:
    """Counts an event of which no more is known than when it was."""
    node.events += 1
    node.first_seen = min(node.first_seen, at)
    if at >= node.last_seen:
        last = (was.last_message, was.last_source) if at == was.last_seen else ("", "")
        node.last_seen, (node.last_message, node.last_source) = at, last


def _count_evidence(before: Family, after: Family) -> None:
    """Of evidence that was there the whole count stays."""
    for pair, edge in after.edges.items():
        known = before.edges.get(pair)
        if known is not None:
            edge.count = max(edge.count, known.count)
            edge.first_at, edge.last_at = min(edge.first_at, known.first_at), max(edge.last_at, known.last_at)


def _lead_on(before: Family, after: Family, heirs: _Heirs, name: str, at: int, version: int) -> None:
    """A profile id that the rules do not make leads to who has its ids now. One whose ids are all nobody's stays, empty."""
    own: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for key, node in before.nodes.items():
        heir = heirs.of(key)
        if heir:
            now = after.root_of(heir)
            own[before.root_of(key)][now] += 1
            if node.home is not None:
                own[node.home][now] += 1
    for one, profile in sorted(before.profiles.items()):
        if one in after.profiles:
            continue
        counted = own.get(one) or own.get(before.root(one))
        if counted:
            into = min(counted, key=lambda now: (-counted[now], now))
            after.profiles[one] = emptied(replace(profile, merged_into=into))
            merge = Merge(into, one, at, INTERNAL_SOURCE, name, APPLY, version, at)
            after.merges[merge.id] = merge
        else:
            after.profiles[one] = emptied(profile)
    for merge_id, merge in before.merges.items():
        left = after.profiles.get(merge.absorbed)
        if left is not None and left.merged_into is not None and not _has_merge(after, merge.absorbed):
            after.merges[merge_id] = merge


def _has_merge(family: Family, absorbed: str) -> bool:
    return any(one.absorbed == absorbed for one in family.merges.values())


def _combine(family: Family, windowed: Container[str]) -> None:
    members: defaultdict[str, list[Node]] = defaultdict(list)
    for key, node in family.nodes.items():
        members[family.root_of(key)].append(node)
    sizes = Counter(family.root(one) for one in family.profiles)
    for one, profile in family.profiles.items():
        if profile.merged_into is None:
            made = replace(profile, merges=sizes[one] - 1)
            family.profiles[one] = combined(made, members[one], windowed)


Disputes = Mapping[str, Mapping[str, Stamp]]
"""By merge and category: see `pipeline.profile.disputes`."""


def still_disputed(before: Family, outcome: Outcome, held: Disputes, resolved: Container[bytes]) -> Disputes:
    """Of what profiles differed on when they merged, that of which the log does not tell any more: it stays with the merge, or goes to
    the one that is in its place. `resolved` are the events, by key, that tell for themselves."""
    after = outcome.family
    instead = {merge.absorbed: name for name, merge in sorted(after.merges.items())}
    left: defaultdict[str, dict[str, Stamp]] = defaultdict(dict)
    for name, categories in sorted(held.items()):
        merge = before.merges[name]
        place = name if name in after.merges else instead.get(merge.absorbed, "")
        if place and after.root(merge.survivor) == after.root(merge.absorbed):
            for category, stamp in categories.items():
                if message_key(stamp[3], stamp[2]) not in resolved:
                    left[place][category] = max(stamp, left[place].get(category, stamp))
    return left


# ── What others are told ──────────────────────────────────────────────────────────────────────────────────────────


def _known(before: Family, after: Family, name: str, at: int, rank: Rank) -> list[Known]:
    changes = _changes(before, after, name, at)
    roots = sorted(one for one, profile in after.profiles.items() if profile.merged_into is None)
    told: dict[str, list[ProfileChange]] = {one: [] for one in roots}
    for change in changes:
        told[change.profile if change.profile in told else roots[0]].append(change)
    made = []
    for number, one in enumerate(roots):
        tale = f"rsl_{name}_{number}"
        correction = _correction(before, after, one, tale, rank)
        if told[one] or correction:
            made.append(Known(tale, one, correction, told[one]))
    return made


def _correction(before: Family, after: Family, profile: str, name: str, rank: Rank) -> list[Correction]:
    """For destinations: who somebody is from now on, if they are not as they were."""
    now = after.profiles[profile]
    members = [node for key, node in after.nodes.items() if after.root_of(key) == profile]
    if now.collection != USERS or not members:
        return []
    was = {before.root_of(node.key) for node in members if node.key in before.nodes}
    ids = {key for key in before.nodes if before.root_of(key) in was}
    same_ids = was == {profile} and ids == {node.key for node in members}
    if same_ids and values(before.profiles[profile].traits) == values(now.traits):
        return []
    names = {trait for one in was for trait in before.profiles[one].traits}
    return [correction(f"{name}:{APPLY}:0", now, members, rank, names)]


def _changes(before: Family, after: Family, name: str, at: int) -> list[ProfileChange]:
    """Every id and profile that belongs to another canonical profile than before, by where it is now and where it was."""
    ids: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    profiles: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for key in sorted({*before.nodes, *after.nodes}):
        then = before.root_of(key) if key in before.nodes else ""
        now = after.root_of(key) if key in after.nodes else ""
        if now != then:
            ids[now, then].append(key)
    for one in sorted(after.profiles):
        then = before.root(one) if one in before.profiles else ""
        if (now := after.root(one)) != then:
            profiles[now, then or _came_of(before, after, one, now)].append(one)
    cause = Cause(INTERNAL_SOURCE, name, APPLY, at, at)
    made = []
    for now, then in dict.fromkeys([*profiles, *ids]):
        some, keys = profiles[now, then], ids[now, then]
        for start in range(0, max(len(some), len(keys)), MOST):
            part, number = keys[start : start + MOST], start // MOST
            named = [] if not now else [ExternalId(*key.split(":", 1)) for key in part]
            kind = _kind(now, then, some)
            made.append(
                ProfileChange(
                    id=f"{kind}:{name}:{now}:{then}:{number}",
                    kind=kind,
                    profile=now or then,
                    seq=at,
                    cause=cause,
                    collection=collection_of(now or then),
                    other=then if now and then else None,
                    profiles=some[start : start + MOST],
                    ids=named,
                    removed=[] if now else [_removed(key) for key in part],
                )
            )
    return made


def _kind(now: str, then: str, profiles: Sequence[str]) -> str:
    if not now:
        return "id_removed"
    if not then:
        return "created" if now in profiles else "ids_added"
    return "unmerged"


def _came_of(before: Family, after: Family, profile: str, now: str) -> str:
    """Where a profile that is new comes from: who had most of the ids of the one that it belongs to."""
    had = Counter(before.root_of(key) for key in after.nodes if after.root_of(key) == now and key in before.nodes)
    return min(had, key=lambda one: (-had[one], one)) if had else ""


def _removed(key: str) -> Removed:
    one = ExternalId(*key.split(":", 1))
    return Removed(one.type, identifier_hash(one))


def same_people(before: Family, after: Family) -> Mapping[str, int]:
    """For the report: how many profiles came apart, were joined, and how many ids were gained and lost."""
    becomes: defaultdict[str, set[str]] = defaultdict(set)
    comes_of: defaultdict[str, set[str]] = defaultdict(set)
    for key in before.nodes.keys() & after.nodes.keys():
        becomes[before.root_of(key)].add(after.root_of(key))
        comes_of[after.root_of(key)].add(before.root_of(key))
    return {
        "split": sum(len(one) > 1 for one in becomes.values()),
        "merged": sum(len(one) > 1 for one in comes_of.values()),
        "gained": len(after.nodes.keys() - before.nodes.keys()),
        "lost": len(before.nodes.keys() - after.nodes.keys()),
    }
