"""The identity specification's hard cases over the graph in memory."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.extract import extractor
from pipeline.graph import Graph
from pipeline.profile import message_key, values
from schemas.events import Event
from schemas.reasons import Reason
from tests.identity_cases import CASES, LATEST_OWNER, Case, State, check, events, refused, shown

NAME = "c."


def play(case: Case) -> Graph:
    """The graph after the events of a case, each message once."""
    return resolved(case, events(case, NAME))


def resolved(case: Case, order: Sequence[Event]) -> Graph:
    """The graph after events in any order."""
    graph, seen = Graph(), set()
    for number, event in enumerate(order):
        rules, key = case.rules(number), message_key(event.source, event.message_id)
        found = extractor(rules)(event)
        assert not isinstance(found, Reason)
        if key not in seen:
            seen.add(key)
            graph.apply(event, key, found.ids, found.traits, rules, found.accounts, found.refused)
    return graph


def state(graph: Graph, name: str = NAME) -> State:
    members: dict[str, list[str]] = {}
    for node in graph.nodes.values():
        assert node.profile is not None
        members.setdefault(graph.canonical(node.profile), []).append(shown(node.key, name))
    order = sorted(members, key=lambda one: (graph.profiles[one].created_at, one))
    found = [graph.profiles[one] for one in order]
    people = [(sorted(members[one.id]), one.events, values(one.traits)) for one in found if one.collection == "users"]
    accounts = [(members[one.id], one.events, values(one.traits)) for one in found if one.collection == "accounts"]
    links = frozenset((shown(a, name), shown(b, name)) for a, b in graph.links)
    violations: Counter[tuple[str, str]] = Counter()
    for (_, key, violation), sighting in graph.violations.items():
        violations[key, violation] += sighting.count
    return State(people, accounts, links, refused(violations, name), len(graph.merges))


@pytest.mark.parametrize("number", CASES, ids=lambda number: f"{number} {CASES[number].title}")
def test_hard_case(number: int):
    check(CASES[number], state(play(CASES[number])))


def test_every_hard_case_of_the_specification_is_tested():
    """As data, or by a test of its own that says its number."""
    named = re.compile(r"^(?:async )?def test_(?:hard_)?case_(\d+)_", re.MULTILINE)
    tests = Path(__file__).parents[1]
    own = {int(number) for path in tests.rglob("test_*.py") for number in named.findall(path.read_text())}
    assert CASES.keys() | own == set(range(1, 66))


@pytest.mark.parametrize("title", LATEST_OWNER)
def test_an_id_of_its_latest_owner(title: str):
    check(LATEST_OWNER[title], state(play(LATEST_OWNER[title])))


def test_hard_case_59_a_merged_away_id_leads_to_its_survivor():
    graph = play(CASES[2])
    [first, second] = sorted(graph.profiles.values(), key=lambda one: one.created_at)
    assert (graph.canonical(second.id), graph.profiles[second.id].merged_into) == (first.id, first.id)


@pytest.mark.parametrize("number", CASES, ids=str)
def test_hard_case_65_a_replay_gives_the_same_graph(number: int):
    assert play(CASES[number]) == play(CASES[number])
