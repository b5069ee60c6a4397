"""How a profile is taken apart, and how that is lifted. Pure: the profile's ids, evidence and merges -> what changes.

The evidence is gone through once more in serial order, with the two sides of the split forbidden to meet: a link that would
join them is cut, everything else stays. That is what the same evidence would have made had it been refused from the start.
Each profile id goes with the id that founded it, and state hangs on ids, so that both profiles are recombined from their own.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple

from pipeline.graph import Edge, Merge
from pipeline.profile import USERS, Node, Profile, base62, combined, emptied, message_key, profile_id, values
from schemas.errors import Refused
from schemas.topics import INTERNAL_SOURCE

Side = Literal["a", "b"]
Pair = tuple[str, str]
Rank = Callable[[str], int]
"""Sort key of an identifier type, the most trusted first."""

TOLD_IDS: Final = 1_000
"""Ids that a correction names at most, the most trusted first."""


@dataclass(slots=True)
class Family:
    """Canonical profiles with all that belongs to them: every profile absorbed, every id, the evidence between those, and the
    merges that hold (by id; each absorbed profile has exactly one)."""

    nodes: dict[str, Node] = field(default_factory=dict)
    profiles: dict[str, Profile] = field(default_factory=dict)
    edges: dict[Pair, Edge] = field(default_factory=dict)
    merges: dict[str, Merge] = field(default_factory=dict)
    undone: dict[str, tuple[Merge, str]] = field(default_factory=dict)
    """Merges of these profiles that do not hold any more, with the split that undid each."""

    def root(self, profile: str) -> str:
        """The canonical profile that a profile belongs to."""
        while (into := self.profiles[profile].merged_into) is not None:
            profile = into
        return profile

    def root_of(self, key: str) -> str:
        """The canonical profile of an id."""
        profile = self.nodes[key].profile
        assert profile is not None, "a family holds only ids that are mapped"
        return self.root(profile)


@dataclass(slots=True)
class Change:
    """What a split or its lifting writes: whole nodes and profiles, links that go or come back, and for each merge its
    survivor and the split that undid it."""

    nodes: dict[str, Node] = field(default_factory=dict)
    profiles: dict[str, Profile] = field(default_factory=dict)
    cut: dict[Pair, Edge] = field(default_factory=dict)
    restored: dict[Pair, Edge] = field(default_factory=dict)
    merges: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    added: list[Merge] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


class Correction(NamedTuple):
    """What destinations are to be told of a profile: that `message` is one identify of the id `node`, with the profile's
    present traits, without those named in `gone`, and with `ids` of it."""

    message: str
    profile: str
    node: str
    ids: Sequence[str]
    gone: Sequence[str]


@dataclass(frozen=True, slots=True)
class Split:
    """A profile taken apart: `profile` is on side `profile_side` and keeps its id, `other` came out. `detail` is what lifting
    needs, as JSON. `pending` are the corrections that the log does not have yet."""

    id: str
    at: int
    profile: str
    other: str
    merge: str | None
    detail: Mapping[str, Any]
    pending: Sequence[Correction]


# ── Taking apart ──────────────────────────────────────────────────────────────────────────────────────────────────


def undo(family: Family, merge: str, at: int, rank: Rank, windowed: Container[str] = ()) -> tuple[Split, Change]:
    """Undoes one merge of a family with one canonical profile. Refused when nothing is left of one of the two."""
    undone = family.merges[merge]
    absorbed = _below(family, undone.absorbed, None)
    survivor = _below(family, undone.survivor, undone) - absorbed
    labels: dict[str, Side] = {}
    for key, node in family.nodes.items():
        if node.home in absorbed:
            labels[key] = "b"
        elif node.home in survivor and (node.seq < undone.seq or not undone.seq):
            labels[key] = "a"
    for side, profile in (("a", undone.survivor), ("b", undone.absorbed)):
        if side not in labels.values():
            raise Refused(
                "nothing_to_split",
                f"No id is left of {profile}, so {merge} cannot be undone; cut two ids apart instead.",
            )
    return _split(family, labels, at, rank, windowed, merge=merge, absorbed=absorbed)


def cut(family: Family, a: str, b: str, at: int, rank: Rank, windowed: Container[str] = ()) -> tuple[Split, Change]:
    """Takes two ids of one profile apart, and with each what the evidence ties to it rather than to the other."""
    return _split(family, {a: "a", b: "b"}, at, rank, windowed, ends=(a, b))


def _below(family: Family, top: str, before: Merge | None) -> set[str]:
    """A profile and what merged into it, directly or not; with `before`, only what had done so then."""
    into: defaultdict[str, list[Merge]] = defaultdict(list)
    for merge in family.merges.values():
        if before is None or merge.seq < before.seq:
            into[merge.survivor].append(merge)
    found, stack = {top}, [top]
    while stack:
        for merge in into[stack.pop()]:
            if merge.absorbed not in found:
                found.add(merge.absorbed)
                stack.append(merge.absorbed)
    return found


def _split(
    family: Family,
    labels: Mapping[str, Side],
    at: int,
    rank: Rank,
    windowed: Container[str],
    *,
    merge: str | None = None,
    absorbed: Collection[str] = (),
    ends: Sequence[str] = (),
) -> tuple[Split, Change]:
    root = family.root(next(iter(family.profiles)))
    founders = _founders(family, rank)
    found = _Evidence(family, labels, founders, rank)
    rest = found.side(founders[root], "a") if root in founders else "a"
    side_of = {key: found.side(key, rest) for key in family.nodes}
    profile_side: dict[str, Side] = {
        one: side_of[founders[one]] if one in founders else ("b" if one in absorbed else rest)
        for one in family.profiles
    }
    change = Change(cut=found.cut)
    heads = {
        side: _head(family, side, side_of, profile_side, at, rank, root) for side in (rest, "b" if rest == "a" else "a")
    }
    keeps, gives = heads.values()
    made = gives.id not in family.profiles
    split = "spl_" + base62(message_key(f"{keeps.id}\0{gives.id}", str(at)), 22)
    if made:
        profile_side[gives.id] = "b" if rest == "a" else "a"
    _part_profiles(family, change, profile_side, heads)
    _part_merges(family, change, profile_side, heads, found.causes, split, merge)
    tokens = _tokens(split, side_of, found.cut, ends, heads, founders)
    members: dict[Side, list[Node]] = {"a": [], "b": []}
    for key, node in family.nodes.items():
        side = side_of[key]
        moved = _parted(node, side, profile_side, heads[side].id, tokens.get(key))
        if moved is not node:
            change.nodes[key] = moved
        members[side].append(moved)
    for side, head in heads.items():
        merges = sum(one == side for one in profile_side.values()) - 1
        change.profiles[head.id] = combined(replace(head, merged_into=None, merges=merges), members[side], windowed)
    detail = {
        "cut": list(ends),
        "made": made,
        "ends": {side: sorted(key for key in tokens if side_of[key] == side) for side in ("a", "b")},
        "edges": [_edge_row(pair, edge) for pair, edge in sorted(found.cut.items())],
        "nodes": {
            key: [family.nodes[key].home, family.nodes[key].profile, change.nodes[key].profile]
            for key in sorted(change.nodes)
        },
        "profiles": {
            one: [family.profiles[one].merged_into, heads[profile_side[one]].id]
            for one in sorted(change.profiles)
            if one in family.profiles
        },
        "merges": {one: [*_standing(family, one), *left] for one, left in sorted(change.merges.items())},
        "added": [one.id for one in change.added],
    }
    before = family.profiles[root]
    pending = [
        correction(f"{split}:unmerge:{side}", change.profiles[heads[side].id], members[side], rank, before.traits)
        for side in sorted(heads)
        if before.collection == USERS
    ]
    return Split(split, at, keeps.id, gives.id, merge, detail, pending), change


def _founders(family: Family, rank: Rank) -> dict[str, str]:
    """Of each profile the id that founded it: the first in serial order, the most trusted of one event."""
    founders: dict[str, str] = {}
    order = sorted(family.nodes.values(), key=lambda one: (one.seq, rank(one.key.partition(":")[0]), one.key))
    for node in order:
        if node.home is not None and node.home in family.profiles:
            founders.setdefault(node.home, node.key)
    return founders


class _Evidence:
    """The links gone through in serial order by Kruskal's algorithm, those of one event as it made them. `cut` are the links
    that would have joined the sides; `causes` tells for a profile which link first joined it to an earlier one."""

    def __init__(self, family: Family, labels: Mapping[str, Side], founders: Mapping[str, str], rank: Rank) -> None:
        self._parent = {key: key for key in family.nodes}
        self._label: dict[str, Side] = dict(labels)
        self._earliest = {key: family.profiles[one] for one, key in founders.items()}
        self.cut: dict[Pair, Edge] = {}
        self.causes: dict[str, tuple[str, Edge]] = {}

        def order(one: tuple[Pair, Edge]) -> tuple[int, int, Pair]:
            (a, b), edge = one
            return edge.seq, max(rank(a.partition(":")[0]), rank(b.partition(":")[0])), (a, b)

        for pair, edge in sorted(family.edges.items(), key=order):
            self._join(pair, edge)

    def side(self, key: str, rest: Side) -> Side:
        """The side of an id; `rest` when no link leads it to one."""
        return self._label.get(self._find(key), rest)

    def _find(self, key: str) -> str:
        parent = self._parent
        while parent[key] != key:
            parent[key] = key = parent[parent[key]]
        return key

    def _join(self, pair: Pair, edge: Edge) -> None:
        a, b = map(self._find, pair)
        if a == b:
            return
        labels = {self._label[one] for one in (a, b) if one in self._label}
        if len(labels) == 2:
            self.cut[pair] = edge
            return
        self._parent[b] = a
        for label in labels:
            self._label[a] = label
        profiles = sorted((self._earliest[one] for one in (a, b) if one in self._earliest), key=_age)
        if profiles:
            self._earliest[a] = profiles[0]
        if len(profiles) == 2:
            self.causes[profiles[1].id] = (profiles[0].id, edge)


def _age(profile: Profile) -> tuple[int, str]:
    return profile.created_at, profile.id


def _head(
    family: Family,
    side: Side,
    side_of: Mapping[str, Side],
    profile_side: Mapping[str, Side],
    at: int,
    rank: Rank,
    root: str,
) -> Profile:
    """The profile whose id a side bears: its earliest, else a new one, as young as the id that comes first and younger than
    the one it came out of."""
    own = [one for name, one in family.profiles.items() if profile_side[name] == side]
    if own:
        return min(own, key=_age)
    first = min(
        (family.nodes[key] for key, of in side_of.items() if of == side),
        key=lambda one: (one.seq, rank(one.key.partition(":")[0]), one.key),
    )
    whole = family.profiles[root]
    created = max(first.added_at or at, whole.created_at + 1)
    key = message_key(f"{first.source}\0{first.key}", f"{first.message_id}\0{at}")
    return Profile(
        profile_id(key, created, whole.collection),
        created,
        collection=whole.collection,
        seq=first.seq,
        source=first.source,
        message_id=first.message_id,
    )


def _part_profiles(
    family: Family, change: Change, profile_side: Mapping[str, Side], heads: Mapping[Side, Profile]
) -> None:
    """Absorbed profiles lead to the head of their side; those that still do are left alone."""
    for name, one in family.profiles.items():
        head, into = heads[profile_side[name]].id, one.merged_into
        if name != head and (into is None or profile_side[into] != profile_side[name]):
            change.profiles[name] = replace(one, merged_into=head)


def _part_merges(
    family: Family,
    change: Change,
    profile_side: Mapping[str, Side],
    heads: Mapping[Side, Profile],
    causes: Mapping[str, tuple[str, Edge]],
    split: str,
    undone: str | None,
) -> None:
    """A merge across the sides is undone. An absorbed profile that is none of the heads has merged on its side too: because of
    the link that joined it there."""
    for name, merge in family.merges.items():
        side, head = profile_side[merge.absorbed], heads[profile_side[merge.absorbed]].id
        if merge.absorbed == head:
            change.merges[name] = (merge.survivor, split)
        elif profile_side[merge.survivor] != side or name == undone:
            survivor, edge = causes.get(merge.absorbed, (head, None))
            again = merge if edge is None else _merge_by(survivor, merge.absorbed, edge)
            if again.id == name:
                change.merges[name] = (survivor, None)
                continue
            change.merges[name] = (merge.survivor, split)
            if again.id in family.undone:
                change.merges[again.id] = (survivor, None)  # undone before, and the cause once more
            else:
                change.added.append(again)


def _standing(family: Family, merge: str) -> tuple[str, str | None]:
    """The survivor of a merge, and the split that undid it."""
    if merge in family.merges:
        return family.merges[merge].survivor, None
    one, undone_by = family.undone[merge]
    return one.survivor, undone_by


def _merge_by(survivor: str, absorbed: str, edge: Edge) -> Merge:
    return Merge(survivor, absorbed, edge.first_at, edge.source, edge.message_id, edge.type, edge.rules, edge.seq)


def _tokens(
    split: str,
    side_of: Mapping[str, Side],
    edges: Iterable[Pair],
    ends: Iterable[str],
    heads: Mapping[Side, Profile],
    founders: Mapping[str, str],
) -> dict[str, str]:
    """What keeps the sides apart, on the ids at both ends of what was cut."""
    keys = {key for pair in edges for key in pair} | set(ends)
    for side, head in heads.items():
        if not any(side_of[key] == side for key in keys):
            keys.add(founders.get(head.id) or min(key for key, of in side_of.items() if of == side))
    return {key: f"{split}:{side_of[key]}" for key in keys}


def _parted(node: Node, side: Side, profile_side: Mapping[str, Side], head: str, token: str | None) -> Node:
    """The node on its side; itself when nothing changes."""
    assert node.profile is not None
    profile = node.profile if profile_side[node.profile] == side else head
    home = node.home if node.home is None or profile_side.get(node.home, side) == side else head
    if token is None and (profile, home) == (node.profile, node.home):
        return node
    return replace(node, profile=profile, home=home, apart=sorted({*node.apart, *([token] if token else [])}))


# ── Lifting ───────────────────────────────────────────────────────────────────────────────────────────────────────


def lift(
    split: Split, family: Family, at: int, rank: Rank, windowed: Container[str] = ()
) -> tuple[list[Correction], Change]:
    """Lets the sides be one again. `family` holds every canonical profile that has an id which the split holds apart.

    When each side is still what the split left, all is put back as it was; else the profiles that hold the sides today
    merge, the earliest surviving. Refused when another split stands between them."""
    change = Change(restored=_edges(split, family))
    for key, node in family.nodes.items():
        kept = [token for token in node.apart if token.partition(":")[0] != split.id]
        if kept != node.apart:
            change.nodes[key] = replace(node, apart=kept)
    roots = sorted((one for one in family.profiles.values() if one.merged_into is None), key=_age)
    if not roots:
        return [], Change()  # every id that it held is gone
    _refuse_if_apart(roots, split.id)
    if _intact(split, family):
        _put_back(split, family, change)
        survivor = split.profile
    else:
        survivor = roots[0].id
        _merge(split, roots, change, at)
    members = [change.nodes.get(key, node) for key, node in family.nodes.items()]
    head = replace(family.profiles[survivor], merged_into=None, merges=len(family.profiles) - 1)
    whole = combined(head, members, windowed)
    change.profiles[survivor] = whole
    told = []
    for number, root in enumerate(roots):
        own = [node for node in members if family.root_of(node.key) == root.id]
        if own and whole.collection == USERS:
            one = correction(f"{split.id}:remerge:{number}", whole, members, rank, ())
            told.append(one._replace(node=_trusted(own, rank)[0].key))
    return told, change


def _edges(split: Split, family: Family) -> dict[Pair, Edge]:
    """The links that were cut, between ids that are still there."""
    return {
        (a, b): Edge(first_at, last_at, source, message_id, kind, rules, seq, count)
        for a, b, count, first_at, last_at, source, message_id, kind, rules, seq in split.detail["edges"]
        if a in family.nodes and b in family.nodes
    }


def _refuse_if_apart(roots: Iterable[Profile], lifted: str) -> None:
    sides: defaultdict[str, set[str]] = defaultdict(set)
    for root in roots:
        for token in root.apart:
            other, _, side = token.partition(":")
            sides[other].add(side)
    held = sorted(other for other, found in sides.items() if len(found) == 2 and other != lifted)
    if held:
        raise Refused(
            "kept_apart",
            f"{held[0]} keeps parts of these profiles apart; lift it first: millrace identity remerge {held[0]}",
            status=409,
        )


def _intact(split: Split, family: Family) -> bool:
    """Whether the two profiles are as the split left them: more ids and events are no matter, another shape is."""
    detail = split.detail
    if (
        detail["made"]
        or detail.get("disturbed")
        or any(
            name not in family.profiles or family.profiles[name].merged_into is not None
            for name in (split.profile, split.other)
        )
    ):
        return False
    return (
        all(
            key in family.nodes and family.root_of(key) == family.root(left)
            for key, (_, _, left) in detail["nodes"].items()
        )
        and all(one in family.profiles and family.root(one) == head for one, (_, head) in detail["profiles"].items())
        and all(
            one in family.merges and family.merges[one].survivor == survivor
            for one, (_, _, survivor, undone_by) in detail["merges"].items()
            if undone_by is None
        )
        and all(one in family.merges for one in detail["added"])
    )


def _put_back(split: Split, family: Family, change: Change) -> None:
    detail = split.detail
    for key, (home, profile, _) in detail["nodes"].items():
        change.nodes[key] = replace(change.nodes.get(key, family.nodes[key]), home=home, profile=profile)
    for one, (merged_into, _) in detail["profiles"].items():
        profile = replace(family.profiles[one], merged_into=merged_into)
        change.profiles[one] = profile if merged_into is None else emptied(profile)
    change.merges = {one: (survivor, undone_by) for one, (survivor, undone_by, *_) in detail["merges"].items()}
    change.removed = list(detail["added"])


def _merge(split: Split, roots: Sequence[Profile], change: Change, at: int) -> None:
    first, *others = roots
    for other in others:
        change.profiles[other.id] = emptied(replace(other, merged_into=first.id))
        change.added.append(Merge(first.id, other.id, at, INTERNAL_SOURCE, split.id, "remerge", 0, at))


# ── What destinations are told ────────────────────────────────────────────────────────────────────────────────────


def correction(message: str, profile: Profile, nodes: Iterable[Node], rank: Rank, before: Iterable[str]) -> Correction:
    """Of a profile with these ids; `before` names the traits that destinations may know of it."""
    trusted = [node.key for node in _trusted(nodes, rank)[:TOLD_IDS]]
    has = values(profile.traits)
    return Correction(message, profile.id, trusted[0], trusted, sorted(name for name in before if name not in has))


def _trusted(nodes: Iterable[Node], rank: Rank) -> list[Node]:
    return sorted(nodes, key=lambda one: (rank(one.key.partition(":")[0]), one.seq, one.key))


def _edge_row(pair: Pair, edge: Edge) -> list[Any]:
    return [
        *pair,
        edge.count,
        edge.first_at,
        edge.last_at,
        edge.source,
        edge.message_id,
        edge.type,
        edge.rules,
        edge.seq,
    ]
