"""The part of the graph that a batch touches: what one event after the other makes of it."""

from typing import Any

import pytest

from pipeline.graph import Graph, Outcome
from pipeline.identity import DEFAULT
from pipeline.profile import Profile, message_key, values
from schemas.events import Event, ExternalId

PHONE, LAPTOP, ANN = (
    ExternalId("anonymous_id", "phone"),
    ExternalId("anonymous_id", "laptop"),
    ExternalId("user_id", "ann"),
)
DAY = 1_800_000_000_000_000


def apply(
    graph: Graph, name: str, *ids: ExternalId, at: int = DAY, received: int = DAY, kind: str = "track", **traits: Any
) -> Outcome:
    event = Event("web", kind, name, None, None, at, None, received, "client", None, None, b"{}")
    return graph.apply(event, message_key("web", name), ids, traits, DEFAULT)


@pytest.mark.parametrize("name", [f"m{number}" for number in range(8)])
def test_the_earlier_profile_survives_also_one_of_the_same_second(name: str) -> None:
    """Its id tells the second only."""
    graph = Graph()
    earlier = apply(graph, name, PHONE, received=DAY)
    apply(graph, f"{name} later", LAPTOP, received=DAY + 1)
    apply(graph, "m", ANN, PHONE, received=DAY + 2)
    assert apply(graph, "n", ANN, LAPTOP, received=DAY + 3).profile == earlier.profile


def test_a_chain_of_merges_is_followed_once() -> None:
    pointers = {"a": "b", "b": "c", "c": "d", "d": None}
    graph = Graph(profiles={name: Profile(name, 0, into) for name, into in pointers.items()})
    assert graph.canonical("a") == "d"
    assert {name: one.merged_into for name, one in graph.profiles.items()} == {"a": "d", "b": "d", "c": "d", "d": None}
    assert graph.changed_profiles == {"a", "b"}


def test_an_event_from_the_future_was_seen_when_it_was_received_also_where_its_ids_are_known() -> None:
    graph = Graph()
    seen = [apply(graph, name, PHONE, at=DAY + 99, received=DAY + received) for received, name in enumerate("mn")]
    profile = graph.profiles[seen[0].profile]
    assert (profile.first_seen, profile.last_seen) == (DAY, DAY + 1)


def test_what_a_group_call_without_a_group_writes_is_nobodys() -> None:
    graph = Graph()
    seen = [apply(graph, name, PHONE, kind="group", plan="x") for name in "mn"]
    assert [values(graph.profiles[one.profile].traits) for one in seen] == [{}, {}]
