"""The part of the identity graph that a batch touches, in memory: events are applied to it one after the other, then the
store writes back what changed. Pure: no clock, no database."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.identity import Demoted, Rules, decide
from pipeline.profile import Node, Profile, Stamp, absorb, base62, message_key, profile_id, seen, write_traits
from schemas.events import Event, ExternalId


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
class Outcome:
    """Where an event went. `profile` and `node` are empty when no identifier was left."""

    profile: str
    node: str
    ids: Sequence[ExternalId]
    demoted: Sequence[Demoted]


@dataclass(slots=True)
class Graph:
    """Nodes and profiles by key, as read; what `apply` changed is in the `changed` sets and the new edges and merges."""

    nodes: dict[str, Node] = field(default_factory=dict)
    profiles: dict[str, Profile] = field(default_factory=dict)
    edges: dict[tuple[str, str], Edge] = field(default_factory=dict)
    merges: list[Merge] = field(default_factory=list)
    changed_nodes: set[str] = field(default_factory=set)
    changed_profiles: set[str] = field(default_factory=set)
    seq: int = 0
    """Of the event applied last: one more with each, so that what changed is in serial order. The store sets it, once its
    locks are held, to the time in microseconds."""

    def canonical(self, profile: str) -> str:
        """The survivor of a profile, itself when it was never absorbed."""
        while (into := self.profiles[profile].merged_into) is not None:
            profile = into
        return profile

    def profile_of(self, one: ExternalId) -> str | None:
        """The canonical profile of an identifier, None when it has none yet."""
        node = self.nodes.get(str(one))
        return None if node is None or node.profile is None else self.canonical(node.profile)

    def apply(
        self, event: Event, key: bytes, ids: Sequence[ExternalId], traits: Mapping[str, Any] | None, rules: Rules
    ) -> Outcome:
        """Resolves one event and folds it in. `key` is its deduplication key, `traits` what it writes to the profile."""
        self.seq += 1
        decision = decide(ids, self.profile_of, lambda profile: self.profiles[profile].ids, rules)
        if not decision.ids:
            return Outcome("", "", (), decision.demoted)
        at = min(event.timestamp, event.received_at)
        profile = self._survivor(decision.profiles, event, key, rules)
        nodes = [self._node(one, profile, event, at, rules) for one in decision.ids]
        stamp: Stamp = (at, event.received_at, event.message_id)
        for state in (nodes[0], profile):
            seen(state, at, event.source, event.message_id)
            if traits:
                write_traits(state.traits, traits, stamp)
        self.changed_nodes.add(nodes[0].key)
        self.changed_profiles.add(profile.id)
        for other in nodes[1:]:
            self._edge(nodes[0].key, other.key, event, at, rules)
        return Outcome(profile.id, nodes[0].key, decision.ids, decision.demoted)

    def _survivor(self, reached: Sequence[str], event: Event, key: bytes, rules: Rules) -> Profile:
        """The one profile that the reached ones become: the earliest, smallest id first; a new one when none was."""
        if not reached:
            new = Profile(
                profile_id(key, event.received_at),
                event.received_at,
                seq=self.seq,
                source=event.source,
                message_id=event.message_id,
            )
            self.profiles[new.id] = new
            return new
        first, *others = sorted((self.profiles[one] for one in reached), key=lambda one: (one.created_at, one.id))
        for other in others:
            absorb(first, other)
            self.changed_profiles.add(other.id)
            self.merges.append(
                Merge(
                    first.id,
                    other.id,
                    event.received_at,
                    event.source,
                    event.message_id,
                    event.type,
                    rules.version,
                    self.seq,
                )
            )
        return first

    def _node(self, one: ExternalId, profile: Profile, event: Event, at: int, rules: Rules) -> Node:
        key = str(one)
        node = self.nodes.get(key)
        if node is None:
            node = self.nodes[key] = Node(key)
        if node.profile is None:
            node.added_at, node.seq, node.home = at, self.seq, profile.id
            node.source, node.message_id, node.rules = event.source, event.message_id, rules.version
            profile.ids[one.type] = profile.ids.get(one.type, 0) + 1
        if node.profile != profile.id:
            node.profile = profile.id
            self.changed_nodes.add(key)
        return node

    def _edge(self, a: str, b: str, event: Event, at: int, rules: Rules) -> None:
        pair = (a, b) if a < b else (b, a)
        edge = self.edges.get(pair)
        if edge is None:
            self.edges[pair] = Edge(at, at, event.source, event.message_id, event.type, rules.version, self.seq)
        else:
            edge.count += 1
            edge.first_at, edge.last_at = min(edge.first_at, at), max(edge.last_at, at)
