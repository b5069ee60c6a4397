"""The part of the identity graph that a batch touches, in memory: events are applied to it one after the other, then the
store writes back what changed. Pure: no clock, no database."""

from collections.abc import Collection as Container
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from pipeline.identity import NO_IDS, Demoted, Rules, decide
from pipeline.profile import (
    ACCOUNTS,
    USERS,
    Node,
    Profile,
    Stamp,
    absorb,
    add_id,
    base62,
    dispute,
    disputes,
    drop_id,
    inherit,
    message_key,
    profile_id,
    seen,
    write_consent,
    write_traits,
)
from schemas.events import Event, ExternalId
from schemas.identity import Collection

K = TypeVar("K")


@dataclass(slots=True)
class Edge:
    """Evidence: two ids seen on one event. The first event stays on record; `count` adds to what is stored."""

    first_at: int
    last_at: int
    source: str
    message_id: str
    type: str
    rules: int
    seq: int
    count: int = 1


@dataclass(slots=True)
class Sighting:
    """An id that was refused, or a user's node seen with an account. As of an edge, `count` adds to what is stored."""

    first_at: int
    last_at: int
    source: str
    message_id: str
    type: str
    rules: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class Merge:
    """`absorbed` became part of `survivor` because of one event."""

    survivor: str
    absorbed: str
    at: int
    source: str
    message_id: str
    type: str
    rules: int
    seq: int = 0

    @property
    def id(self) -> str:
        """The same in every replay: made from the profile absorbed and the event that did it."""
        return "mrg_" + base62(message_key(f"{self.absorbed}\0{self.source}", self.message_id), 22)


@dataclass(frozen=True, slots=True)
class Move:
    """An id left a profile for that of another person's event. The `was_` fields tell of its mapping until then: the profile, the time and
    place in the serial order, and the event that made it. What hung on the id stayed, with `heir`."""

    key: str
    left: str
    joined: str
    at: int
    source: str
    message_id: str
    type: str
    rules: int
    seq: int
    was_home: str
    was_added_at: int
    was_seq: int
    was_source: str
    was_message_id: str
    heir: str = ""
    events: int = 0  # that hung on it

    @property
    def id(self) -> str:
        """The same in every replay: made from the id and the event that moved it."""
        return "mov_" + base62(message_key(f"{self.key}\0{self.source}", self.message_id), 22)


class Outcome(NamedTuple):
    """Where an event went: the person's profile and node, both empty when no identifier was left. `ids` are those that it
    promotes, those of an account too."""

    profile: str
    node: str
    ids: Sequence[ExternalId]
    demoted: Sequence[Demoted]
    account: str = ""


@dataclass(slots=True)
class News:
    """What an event changed of who is who: ids that left, profiles created, ids mapped, merges in order."""

    founded: list[str] = field(default_factory=list)
    mapped: list[Node] = field(default_factory=list)
    merged: list[Merge] = field(default_factory=list)
    moved: list[Move] = field(default_factory=list)


class _Cause(NamedTuple):
    """An event as the reason of what it changes. `at` is its time, never after its receipt."""

    event: Event
    key: bytes  # of deduplication
    at: int
    rules: Rules


@dataclass(slots=True)
class Graph:
    """Nodes and profiles by key, as read; what `apply` changed is in the `changed` sets, and in what is new: edges, merges,
    violations by (profile, refused id, rule), links by (user's node, account's node)."""

    nodes: dict[str, Node] = field(default_factory=dict)
    profiles: dict[str, Profile] = field(default_factory=dict)
    edges: dict[tuple[str, str], Edge] = field(default_factory=dict)
    merges: list[Merge] = field(default_factory=list)
    violations: dict[tuple[str, str, str], Sighting] = field(default_factory=dict)
    links: dict[tuple[str, str], Sighting] = field(default_factory=dict)
    disputes: dict[str, dict[str, Stamp]] = field(default_factory=dict)
    """Categories of consent on which profiles differed, by the merge that brought them together."""
    changed_nodes: set[str] = field(default_factory=set)
    changed_profiles: set[str] = field(default_factory=set)
    seq: int = 0
    """Of the event applied last: one more with each, so that what changed is in serial order. The store sets it, once its
    locks are held, to the time in microseconds."""
    news: News | None = None
    """Of the event applied last; most have none."""
    left: list[str] | None = None
    """The profiles that ids of the event applied last were of until then, absorbed ones too; None: all were of the same."""
    moves: list[Move] = field(default_factory=list)
    evidence: dict[str, dict[tuple[str, str], Edge]] = field(default_factory=dict)
    """What is stored of ids that may move, by id: its edges, and in `memberships` its links by account. `cut` and `unlinked` are
    those of them that moves took away."""
    memberships: dict[str, dict[str, Sighting]] = field(default_factory=dict)
    cut: set[tuple[str, str]] = field(default_factory=set)
    unlinked: set[tuple[str, str]] = field(default_factory=set)
    met: dict[str, set[str]] = field(default_factory=dict)
    """The ids that an id which may move was seen with on events applied here."""
    _found: dict[int, tuple[Sequence[Node], Profile, Sequence[ExternalId]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """What `_all_of_one` found, by the sequence's identity, which is kept so that no other can have it."""

    def canonical(self, profile: str) -> str:
        """The survivor of a profile, itself when it was never absorbed. A chain of merges is followed once: who stands on it leads
        straight there from then on (how they merged is told by the merges)."""
        survivor = profile
        while (into := self.profiles[survivor].merged_into) is not None:
            survivor = into
        while (into := self.profiles[profile].merged_into) is not None and into != survivor:
            self.profiles[profile].merged_into = survivor
            self.changed_profiles.add(profile)
            profile = into
        return survivor

    def profile_of(self, one: ExternalId) -> str | None:
        """The canonical profile of an identifier, None when it has none yet."""
        profile = self._reached(one)
        return None if profile is None else profile.id

    def apply(
        self,
        event: Event,
        key: bytes,
        ids: Sequence[ExternalId],
        traits: Mapping[str, Any] | None,
        rules: Rules,
        accounts: Sequence[ExternalId] = (),
        refused: Sequence[Demoted] = (),
        consent: Mapping[str, bool] | None = None,
    ) -> Outcome:
        """Resolves one event and folds it in. `ids` name the person, the most trusted first and none blocked, `accounts` the
        account; `key` is its deduplication key, `traits` what it writes: a group to the account, any other to the person.
        `refused` are identifiers that were none to begin with, for the record; `consent` what the person prefers."""
        self.seq += 1
        self.news = self.left = None
        if ids and not accounts and not refused and (known := self._all_of_one(ids, event, rules)) is not None:
            nodes, profile = known
            at = event.timestamp if event.timestamp < event.received_at else event.received_at  # faster than min()
            self._fold(nodes, profile, event, at, None if event.type == "group" else traits, rules)
            if consent is not None:
                _prefer(nodes[0], profile, consent, event, at)
            return _outcome((profile.id, nodes[0].key, ids, (), ""))
        cause = _Cause(event, key, min(event.timestamp, event.received_at), rules)
        of_group = event.type == "group"
        account = self._resolve(ACCOUNTS, accounts, traits if of_group else None, cause) if accounts else _NOBODY
        person = self._resolve(USERS, ids, None if of_group else traits, cause, consent) if ids else _NOBODY
        if of_group and person.node and account.node:
            self._sight(self.links, (person.node, account.node), cause)
        demoted = [*refused, *person.demoted, *account.demoted]
        if demoted or not ids:
            self._violations(person.profile, demoted, cause)
        promoted = [*person.ids, *account.ids] if account.ids else person.ids
        return Outcome(person.profile, person.node, promoted, demoted, account.profile)

    def _all_of_one(
        self, ids: Sequence[ExternalId], event: Event, rules: Rules
    ) -> tuple[Sequence[Node], Profile] | None:
        """Most events say nothing new: their ids are known, and of one profile. No rule can be broken by those: this is what `_resolve`
        comes to for them. Events of one visitor share their ids, and what was found for these holds until the profile is
        absorbed or an id moves."""
        known = self._found.get(id(ids))
        if known is not None and known[1].merged_into is None and not self.moves:
            return known[0], known[1]
        nodes, profiles = self.nodes, self.profiles
        found: list[Node] = []
        owner: Profile | None = None
        for kind, value in ids:
            node = nodes.get(f"{kind}:{value}")
            if node is None or node.profile is None:
                return None
            profile = profiles[node.profile]
            if profile.merged_into is not None:
                profile = profiles[self.canonical(profile.id)]
            if owner is None:
                owner = profile
            elif owner is not profile:
                return None
            found.append(node)
        if owner is None:
            return None
        for node in found:
            if node.profile != owner.id or node.former is not None:
                self._follow(found, owner, event, rules)
                break
        self._found[id(ids)] = found, owner, ids
        return found, owner

    def _fold(
        self,
        nodes: Sequence[Node],
        profile: Profile,
        event: Event,
        at: int,
        traits: Mapping[str, Any] | None,
        rules: Rules,
    ) -> None:
        """Lets the first node and the profile have an event, and links the nodes."""
        first, source, message_id = nodes[0], event.source, event.message_id
        seen(first, at, source, message_id)
        seen(profile, at, source, message_id)
        if traits:
            stamp = (at, event.received_at, message_id, source)
            write_traits(first.traits, traits, stamp)
            write_traits(profile.traits, traits, stamp)
        self.changed_nodes.add(first.key)
        self.changed_profiles.add(profile.id)
        if len(nodes) > 1:
            for other in nodes[1:]:
                self._edge(first.key, other.key, event, at, rules.version)
            if rules.moving:
                for other in nodes[1:]:
                    self._meet((first.key, other.key), rules)

    def _resolve(
        self,
        collection: Collection,
        ids: Sequence[ExternalId],
        traits: Mapping[str, Any] | None,
        cause: _Cause,
        consent: Mapping[str, bool] | None = None,
    ) -> Outcome:
        """Resolves one event among users or among accounts."""
        decision = decide(ids, self._reached, cause.at, cause.rules, self._apart)
        seq = self.seq
        if decision.moved:
            self.seq += 1  # what it leaves comes before what it joins
        profile = self._survivor(decision.profiles, collection, cause)
        for one in decision.moved:
            self._move(str(one), profile, seq, cause)
        nodes = [self._node(one, profile, cause) for one in decision.ids]
        self._follow(nodes, profile, cause.event, cause.rules)
        self._fold(nodes, profile, cause.event, cause.at, traits, cause.rules)
        if consent is not None:
            _prefer(nodes[0], profile, consent, cause.event, cause.at)
        return Outcome(profile.id, nodes[0].key, decision.ids, decision.demoted)

    def _reached(self, one: ExternalId) -> Profile | None:
        node = self.nodes.get(f"{one.type}:{one.value}")
        if node is None or node.profile is None:
            return None
        profile = self.profiles[node.profile]
        return profile if profile.merged_into is None else self.profiles[self.canonical(profile.id)]

    def _apart(self, one: ExternalId) -> Sequence[str]:
        node = self.nodes.get(f"{one.type}:{one.value}")
        return () if node is None else node.apart

    def _survivor(self, reached: Sequence[Profile], collection: Collection, cause: _Cause) -> Profile:
        """The one profile that the reached ones become: the earliest, smallest id first; a new one when none was."""
        event = cause.event
        if not reached:
            new = Profile(
                founded_by(event, cause.key, collection),
                event.received_at,
                collection=collection,
                seq=self.seq,
                source=event.source,
                message_id=event.message_id,
            )
            self.profiles[new.id] = new
            self._news().founded.append(new.id)
            return new
        if len(reached) == 1:
            return reached[0]
        first, *others = sorted(reached, key=lambda one: (one.created_at, one.id))
        for other in others:
            if collection == USERS:
                self._leave(other.id)
            held = disputes(first, other)
            absorb(first, other)
            dispute(first, held)
            self.changed_profiles.add(other.id)
            merge = Merge(
                first.id,
                other.id,
                event.received_at,
                event.source,
                event.message_id,
                event.type,
                cause.rules.version,
                self.seq,
            )
            self.merges.append(merge)
            if held:
                self.disputes[merge.id] = held
            self._news().merged.append(merge)
        return first

    def _leave(self, profile: str) -> None:
        if self.left is None:
            self.left = []
        if profile not in self.left:
            self.left.append(profile)

    def _news(self) -> News:
        if self.news is None:
            self.news = News()
        return self.news

    def _node(self, one: ExternalId, profile: Profile, cause: _Cause) -> Node:
        key = f"{one.type}:{one.value}"
        node = self.nodes.get(key)
        if node is None:
            node = self.nodes[key] = Node(key)
        if node.profile is None:
            event = cause.event
            node.profile = profile.id
            node.added_at, node.seq, node.home = cause.at, self.seq, profile.id
            node.source, node.message_id, node.rules = event.source, event.message_id, cause.rules.version
            self._news().mapped.append(node)
            add_id(profile, one.type, cause.at, windowed=one.type in cause.rules.windowed)
            self.changed_nodes.add(key)
        return node

    def _follow(self, nodes: Sequence[Node], profile: Profile, event: Event, rules: Rules) -> None:
        """Lets the ids of an event point at the profile that they are of by now; the event leaves those that they pointed at.

        An id by which other events are partitioned keeps the name of what it pointed at: the next of those may be emitted by another member
        of the pipeline, which has the earlier ones to emit first, so that one has to leave it as well."""
        own = _partitioned_by(event, rules)
        for node in nodes:
            is_own, before = node.key == own, node.profile
            if before == profile.id and not (is_own and node.former):
                continue
            if profile.collection == USERS:
                for one in (before, node.former if is_own else None):
                    if one is not None and one != profile.id:
                        self._leave(one)
                node.former = None if is_own else _kept(node)
            node.profile = profile.id
            self.changed_nodes.add(node.key)

    def _edge(self, a: str, b: str, event: Event, at: int, rules: int) -> None:
        pair = (a, b) if a < b else (b, a)
        edge = self.edges.get(pair)
        if edge is None:
            self.edges[pair] = Edge(at, at, event.source, event.message_id, event.type, rules, self.seq)
        else:
            _once_more(edge, at)

    # ── Ids of their latest owner ─────────────────────────────────────────────────────────────────────────────────

    def _meet(self, pair: tuple[str, str], rules: Rules) -> None:
        for key, other in (pair, pair[::-1]):
            if key.partition(":")[0] in rules.moving:
                self.met.setdefault(key, set()).add(other)

    def _move(self, key: str, joined: Profile, seq: int, cause: _Cause) -> None:
        """Takes an id out of its profile, which stays what it was: what hangs on the id goes to the most trusted one that it was seen
        with."""
        gone, event = self.nodes[key], cause.event
        assert gone.profile is not None, "what moves is mapped"
        left = self.profiles[self.canonical(gone.profile)]
        edges = self._taken(key)
        heir = self._heir(key, left, edges, cause.rules)
        inherit(heir, gone)
        for other, edge in edges.items():
            if other != heir.key:
                self._hand_over((heir.key, other) if heir.key < other else (other, heir.key), edge, cause.rules)
        self._hand_over_links(key, heir.key)
        drop_id(left, key.partition(":")[0], gone.added_at)
        self.nodes[key] = Node(key, former=_kept(gone))
        self.changed_nodes.update((key, heir.key))
        self.changed_profiles.add(left.id)
        move = Move(
            key=key,
            left=left.id,
            joined=joined.id,
            at=event.received_at,
            source=event.source,
            message_id=event.message_id,
            type=event.type,
            rules=cause.rules.version,
            seq=seq,
            was_home=gone.home or left.id,
            was_added_at=gone.added_at or 0,
            was_seq=gone.seq,
            was_source=gone.source,
            was_message_id=gone.message_id,
            heir=heir.key,
            events=gone.events,
        )
        self.moves.append(move)
        self._news().moved.append(move)

    def _taken(self, key: str) -> dict[str, Edge]:
        """The edges of an id by the other end, which are gone from then on."""
        taken: dict[str, Edge] = {}
        for pair, edge in self.evidence.pop(key, {}).items():
            other = pair[1] if pair[0] == key else pair[0]
            self.evidence.get(other, {}).pop(pair, None)
            self.cut.add(pair)
            taken[other] = edge
        for other in self.met.pop(key, ()):
            edge_here = self.edges.pop((key, other) if key < other else (other, key), None)
            if edge_here is not None:
                taken[other] = edge_here if other not in taken else _joined(taken[other], edge_here)
        return taken

    def _heir(self, key: str, left: Profile, edges: Container[str], rules: Rules) -> Node:
        def trust(node: Node) -> tuple[tuple[int, str], int, str]:
            return rules.rank(node.key.partition(":")[0]), node.seq, node.key

        seen_with = [self.nodes[other] for other in edges]
        if not seen_with:  # an id that a split left without evidence
            own = (node for node in self.nodes.values() if node.profile is not None and node.key != key)
            seen_with = [node for node in own if node.profile and self.canonical(node.profile) == left.id]
        return min(seen_with, key=trust)

    def _hand_over(self, pair: tuple[str, str], edge: Edge, rules: Rules) -> None:
        known = self.edges.get(pair)
        self.edges[pair] = edge if known is None else _joined(known, edge)
        self._meet(pair, rules)

    def _hand_over_links(self, key: str, heir: str) -> None:
        taken = self.memberships.pop(key, {})
        self.unlinked.update((key, account) for account in taken)
        for node, account in [pair for pair in self.links if pair[0] == key]:
            here = self.links.pop((node, account))
            taken[account] = here if account not in taken else _joined(taken[account], here)
        for account, sighting in taken.items():
            known = self.links.get((heir, account))
            self.links[heir, account] = sighting if known is None else _joined(known, sighting)

    def _violations(self, profile: str, demoted: Sequence[Demoted], cause: _Cause) -> None:
        for one, violation in {(str(refused.id), refused.violation) for refused in demoted}:
            self._sight(self.violations, (profile, one, violation), cause)
        if not profile:
            self._sight(self.violations, ("", "", NO_IDS), cause)

    def _sight(self, sightings: dict[K, Sighting], key: K, cause: _Cause) -> None:
        known = sightings.get(key)
        if known is None:
            event, at = cause.event, cause.at
            sightings[key] = Sighting(at, at, event.source, event.message_id, event.type, cause.rules.version)
        else:
            _once_more(known, cause.at)


_PARTITIONING: Final = ("anonymous_id:", "user_id:")


def _kept(node: Node) -> str | None:
    """What the next event that an id partitions leaves, once the id points elsewhere."""
    return (node.former or node.profile) if node.key.startswith(_PARTITIONING) else None


def _partitioned_by(event: Event, rules: Rules) -> str:
    """The id that `Event.key` is, as a node's key; no node's where it is of a type that is off."""
    kind, value = ("anonymous_id", event.anonymous_id) if event.anonymous_id else ("user_id", event.user_id or "")
    return f"{kind}:{rules.types[kind].normalize(value)}" if kind in rules.types else ""


def founded_by(event: Event, key: bytes, collection: Collection) -> str:
    """The id of the profile that an event creates, when it creates one; `key` is the event's of deduplication."""
    key = key if collection == USERS else message_key(ACCOUNTS, key.hex())
    return profile_id(key, event.received_at, collection)


_NOBODY = Outcome("", "", (), ())
_outcome = partial(tuple.__new__, Outcome)  # a third of the cost of calling the class


S = TypeVar("S", Edge, Sighting)


def _joined(first: S, second: S) -> S:
    """One for two; the event of the first stays on record."""
    earliest, latest = min(first.first_at, second.first_at), max(first.last_at, second.last_at)
    return replace(first, count=first.count + second.count, first_at=earliest, last_at=latest)


def _prefer(node: Node, profile: Profile, consent: Mapping[str, bool], event: Event, at: int) -> None:
    """Lets a node and its profile have what an event says of consent."""
    stamp = (at, event.received_at, event.message_id, event.source)
    write_consent(node.consent, consent, stamp)
    write_consent(profile.consent, consent, stamp)


def _once_more(known: Edge | Sighting, at: int) -> None:
    known.count += 1
    if at < known.first_at:
        known.first_at = at
    if at > known.last_at:
        known.last_at = at
