"""Laws of taking profiles apart, over random histories of events, merges, splits and their lifting."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pipeline.graph import Graph, Merge
from pipeline.identity import Rules
from pipeline.profile import combined, message_key
from pipeline.split import Change, Family, Split, cut, lift, undo
from schemas.errors import Refused
from schemas.events import Event, ExternalId
from schemas.identity import IdentityConfig, IdTypeConfig

TYPES = ("user_id", "email", "anonymous_id")
UNLIMITED = Rules(IdentityConfig(types={name: IdTypeConfig(limit=1_000) for name in TYPES}))

ids = st.builds(ExternalId, st.sampled_from(TYPES), st.sampled_from("123"))
traits = st.dictionaries(st.sampled_from(["name", "plan"]), st.sampled_from([None, "x", "y", 1]), max_size=2)
events = st.tuples(st.lists(ids, min_size=1, max_size=3, unique=True), traits, st.integers(1, 9))
histories = st.lists(events, min_size=1, max_size=10)


def rank(kind: str) -> int:
    """How much a type is trusted."""
    return int(UNLIMITED.type(kind).rank)


@dataclass
class World:
    """A store in memory: the graph, which split undid which merge, and the splits that hold."""

    graph: Graph = field(default_factory=Graph)
    undone: dict[str, str | None] = field(default_factory=dict)
    splits: dict[str, Split] = field(default_factory=dict)
    clock: Iterator[int] = field(default_factory=lambda: count(1))

    def event(self, found: Sequence[ExternalId], written: dict[str, Any] | None = None, at: int = 5) -> None:
        number = next(self.clock)
        event = Event(
            "s", "identify", f"m{number}", None, None, at, None, number * 1_000_000, "server", None, None, b"{}"
        )
        arranged, _ = UNLIMITED.arrange(found)
        self.graph.apply(event, message_key("s", event.message_id), arranged, written, UNLIMITED)

    def unmerge(self, merge: str) -> Split:
        return self._apart(undo(self.family({self.merges()[merge].survivor}), merge, self.now(), rank))

    def cut(self, a: str, b: str) -> Split:
        return self._apart(cut(self.family({self.root(a)}), a, b, self.now(), rank))

    def remerge(self, name: str) -> None:
        split = self.splits[name]
        roots = {
            self.root(key)
            for key, node in self.graph.nodes.items()
            if any(token.startswith(f"{name}:") for token in node.apart)
        }
        _, change = lift(split, self.family(roots), self.now(), rank)
        self._write(change)
        del self.splits[name]

    def merges(self) -> dict[str, Merge]:
        return {one.id: one for one in self.graph.merges if self.undone.get(one.id) is None}

    def root(self, key: str) -> str:
        profile = self.graph.nodes[key].profile
        assert profile is not None
        return self.survivor(profile)

    def survivor(self, profile: str) -> str:
        """As the graph has it, without following the chain for good."""
        while (into := self.graph.profiles[profile].merged_into) is not None:
            profile = into
        return profile

    def together(self) -> set[frozenset[str]]:
        """The ids of each person."""
        people: dict[str, set[str]] = {}
        for key in self.graph.nodes:
            people.setdefault(self.root(key), set()).add(key)
        return {frozenset(one) for one in people.values()}

    def family(self, profiles: set[str]) -> Family:
        roots = {self.survivor(one) for one in profiles}
        members = {name: one for name, one in self.graph.profiles.items() if self.survivor(name) in roots}
        nodes = {key: one for key, one in self.graph.nodes.items() if one.profile in members}
        edges = {pair: one for pair, one in self.graph.edges.items() if pair[0] in nodes}
        merges = {name: one for name, one in self.merges().items() if one.absorbed in members}
        undone = {
            one.id: (one, split)
            for one in self.graph.merges
            if one.absorbed in members and (split := self.undone.get(one.id)) is not None
        }
        return Family(deepcopy(nodes), deepcopy(members), deepcopy(edges), merges, undone)

    def now(self) -> int:
        return next(self.clock)

    def _apart(self, made: tuple[Split, Change]) -> Split:
        split, change = made
        self._write(change)
        self.splits[split.id] = split
        return split

    def _write(self, change: Change) -> None:
        self.graph.seq = self.now()
        self.graph.nodes |= change.nodes
        self.graph.profiles |= change.profiles
        self.graph.edges = {pair: one for pair, one in self.graph.edges.items() if pair not in change.cut}
        self.graph.edges |= change.restored
        for name, (survivor, undone_by) in change.merges.items():
            self.undone[name] = undone_by
            self.graph.merges = [
                replace(one, survivor=survivor) if one.id == name else one for one in self.graph.merges
            ]
        self.graph.merges = [one for one in [*self.graph.merges, *change.added] if one.id not in change.removed]
        assert len({one.id for one in self.graph.merges}) == len(self.graph.merges)

    def state(self) -> Any:
        """Every row but the splits'."""
        graph = self.graph
        undone = {name: split for name, split in self.undone.items() if split is not None}
        return deepcopy((graph.nodes, graph.profiles, graph.edges, {one.id: one for one in graph.merges}, undone))

    def check(self) -> None:
        """What must hold at any time."""
        merges = {one.absorbed: one for one in self.merges().values()}
        assert len(merges) == len(self.merges())
        for name, profile in self.graph.profiles.items():
            root = self.survivor(name)
            assert (profile.merged_into is None) == (name not in merges)
            if profile.merged_into is not None:
                assert self.survivor(merges[name].survivor) == root
                continue
            members = [one for key, one in self.graph.nodes.items() if self.root(key) == name]
            assert members
            assert combined(profile, members) == profile
            assert profile.merges == sum(self.survivor(one) == name for one in self.graph.profiles) - 1
            held = [token.split(":")[0] for token in profile.apart]
            assert len(held) == len(set(held))
            assert connected({one.key for one in members}, list(self.graph.edges))
        for node in self.graph.nodes.values():
            assert node.home is not None
            assert self.survivor(node.home) == self.root(node.key)
        for split in self.splits.values():
            for side in ("a", "b"):
                assert any(f"{split.id}:{side}" in one.apart for one in self.graph.nodes.values())


def connected(keys: set[str], pairs: list[tuple[str, str]]) -> bool:
    reached = {min(keys)}
    while more := {one for pair in pairs for one in pair if set(pair) & reached and set(pair) <= keys} - reached:
        reached |= more
    return reached == keys


def played(history: Sequence[Any]) -> World:
    world = World()
    for found, written, at in history:
        world.event(found, written, at)
    return world


@given(histories)
def test_a_merge_undone_restores_both_profiles_but_for_the_event_that_caused_it(history):
    world = World()
    for found, written, at in history:
        before = {name: one for name, one in world.state()[1].items() if one.merged_into is None}
        world.event(found, written, at)
        new = [one for one in world.merges().values() if one.absorbed in before]
        if len(new) == 1:
            [merge] = new
            event_went_to = world.root(str(UNLIMITED.arrange(found)[0][0])), merge.absorbed
            world.unmerge(merge.id)
            world.check()
            took = world.root(str(UNLIMITED.arrange(found)[0][0]))
            assert took in event_went_to
            for one in {merge.survivor, merge.absorbed} - {took}:
                assert replace(world.graph.profiles[one], apart=before[one].apart) == before[one]
            assert world.graph.profiles[took].events == before[took].events + 1
            return


@given(histories, st.data())
def test_lifting_an_undone_merge_is_the_identity(history, data):
    world = played(history)
    if merges := sorted(world.merges()):
        before = world.state()
        split = world.unmerge(data.draw(st.sampled_from(merges)))
        world.check()
        world.remerge(split.id)
        assert world.state() == before


@given(histories, st.data())
def test_lifting_a_cut_restores_the_profile_and_the_new_id_leads_to_it(history, data):
    world = played(history)
    pair = pair_of_one_profile(world, data.draw)
    if pair is not None:
        before = world.state()
        split = world.cut(*pair)
        world.check()
        world.remerge(split.id)
        world.check()
        after = world.state()
        if split.detail["made"]:
            assert world.survivor(split.other) == split.profile
            assert {**after[1], split.profile: replace(after[1][split.profile], merges=0)} == {
                **before[1],
                split.profile: replace(before[1][split.profile], merges=0),
                split.other: after[1][split.other],
            }
        else:
            assert after == before


@given(histories, histories, st.data())
def test_the_same_evidence_does_not_glue_what_was_taken_apart(history, more, data):
    world = played(history)
    pair = pair_of_one_profile(world, data.draw)
    if pair is not None:
        world.cut(*pair)
        apart = world.together()
        for found, written, at in history:
            world.event(found, written, at)
        world.check()
        assert world.together() == apart
        for found, written, at in more:
            world.event(found, written, at)
        world.check()
        assert world.root(pair[0]) != world.root(pair[1])


@given(histories, st.data())
def test_taking_apart_equals_the_same_history_with_the_evidence_refused_from_the_start(history, data):
    world = played(history)
    merges, pair = sorted(world.merges()), pair_of_one_profile(world, data.draw)
    if merges and data.draw(st.booleans()):
        split = world.unmerge(data.draw(st.sampled_from(merges)))
    elif pair is not None:
        split = world.cut(*pair)
    else:
        return
    links = {frozenset(row[:2]) for row in split.detail["edges"]}
    refused = World()
    for found, written, at in history:
        first, *others = UNLIMITED.arrange(found)[0]
        refused.event([first, *(one for one in others if frozenset((str(first), str(one))) not in links)], written, at)
    assert people(world) == people(refused)


def people(world: World) -> set[Any]:
    """What can be told of each person; ids that no event is about are left out, since whoever refuses them never maps them."""
    own = {key for key, one in world.graph.nodes.items() if one.events}
    told = set()
    for keys in world.together():
        if not keys & own:
            continue
        profile = world.graph.profiles[world.root(min(keys))]
        seen = profile.events, profile.first_seen, profile.last_seen, profile.last_message
        told.add((frozenset(keys & own), *seen, repr(sorted(profile.traits.items()))))
    return told


@given(st.data())
def test_every_row_holds_after_any_sequence_of_events_splits_and_lifts(data):
    world = World()
    for _ in range(data.draw(st.integers(1, 14))):
        step = data.draw(st.sampled_from(["event", "event", "event", "unmerge", "cut", "remerge"]))
        if step == "event":
            world.event(*data.draw(events))
        elif step == "unmerge" and world.merges():
            world.unmerge(data.draw(st.sampled_from(sorted(world.merges()))))
        elif step == "cut" and (pair := pair_of_one_profile(world, data.draw)) is not None:
            world.cut(*pair)
        elif step == "remerge" and world.splits:
            with suppress(Refused):  # another split stands in between
                world.remerge(data.draw(st.sampled_from(sorted(world.splits))))
        world.check()


@given(st.data())
def test_splits_lifted_in_reverse_order_restore_everybody(data):
    world = played(data.draw(histories))
    before = world.together()
    made = []
    for _ in range(data.draw(st.integers(1, 3))):
        pair, merges = pair_of_one_profile(world, data.draw), sorted(world.merges())
        if merges and data.draw(st.booleans()):
            made.append(world.unmerge(data.draw(st.sampled_from(merges))).id)
        elif pair is not None:
            made.append(world.cut(*pair).id)
    for split in reversed(made):
        world.remerge(split)
        world.check()
    assert world.together() == before


def pair_of_one_profile(world: World, draw: Callable[..., Any]) -> tuple[str, str] | None:
    together = sorted(sorted(keys) for keys in world.together() if len(keys) > 1)
    if not together:
        return None
    keys = draw(st.sampled_from(together))
    a, b = draw(st.lists(st.sampled_from(keys), min_size=2, max_size=2, unique=True))
    return a, b
