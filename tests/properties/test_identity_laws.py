"""Laws of profiles and identity, over random histories."""

from itertools import permutations
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.graph import Graph
from pipeline.identity import Rules
from pipeline.profile import combined, message_key, values, write_traits
from schemas.events import Event, ExternalId
from schemas.identity import IdentityConfig, IdTypeConfig

UNLIMITED = Rules(
    IdentityConfig(types={name: IdTypeConfig(limit=1_000_000) for name in ("user_id", "email", "anonymous_id")})
)

ids = st.builds(ExternalId, st.sampled_from(["user_id", "email", "anonymous_id"]), st.sampled_from("123"))
traits = st.dictionaries(st.sampled_from(["name", "plan"]), st.sampled_from([None, "x", "y", 1]), max_size=2)
histories = st.lists(
    st.tuples(st.lists(ids, min_size=1, max_size=3, unique=True), traits, st.integers(1, 5)), min_size=1, max_size=8
)


def play(history: list[tuple[int, tuple[list[ExternalId], dict[str, Any], int]]], rules: Rules) -> Graph:
    """Applies numbered events in the order given; the number names the message."""
    graph = Graph()
    for number, (found, written, at) in history:
        event = Event("s", "identify", f"m{number}", None, None, at, None, 10, "server", None, None, b"{}")
        graph.apply(event, message_key("s", event.message_id), rules.arrange(found)[0], written, rules)
    return graph


def people(graph: Graph) -> set[tuple[frozenset[str], int, int, int, str]]:
    """What can be told of each person, whatever the profile is called."""
    members: dict[str, set[str]] = {}
    for node in graph.nodes.values():
        assert node.profile is not None
        members.setdefault(graph.canonical(node.profile), set()).add(node.key)
    return {
        (frozenset(keys), one.events, one.first_seen, one.last_seen, repr(values(one.traits)))
        for keys, one in ((keys, graph.profiles[name]) for name, keys in members.items())
    }


@given(histories.filter(lambda history: len(history) <= 4))
def test_without_limits_every_order_of_the_same_events_gives_the_same_people(history):
    outcomes = [people(play(list(order), UNLIMITED)) for order in permutations(enumerate(history))]
    assert all(outcome == outcomes[0] for outcome in outcomes)


@given(histories)
def test_the_same_log_gives_the_same_graph(history):
    assert play(list(enumerate(history)), Rules()) == play(list(enumerate(history)), Rules())


MOVING = Rules(
    IdentityConfig(
        types={"anonymous_id": IdTypeConfig(latest_owner=True, limit=1_000_000), "email": IdTypeConfig(limit=1_000_000)}
    )
)


A, E = ("anonymous_id", "1"), ("email", "1")


@given(histories, st.sampled_from([Rules(), UNLIMITED, MOVING]))
@example([([ExternalId("user_id", one), ExternalId("anonymous_id", "1")], {}, 1) for one in "1123"], MOVING)
@example([([ExternalId(*one) for one in names], {}, 1) for names in ([A], [E], [A], [E], [A, E])], UNLIMITED)
def test_events_that_share_their_ids_come_to_what_each_comes_to_with_its_own(history, rules):
    """Merges and moves in between included."""
    shared: dict[tuple[ExternalId, ...], list[ExternalId]] = {}
    made = []
    for share in (True, False):
        graph = Graph()
        for number, (found, written, at) in enumerate([*history, *history, *reversed(history)]):
            event = Event("s", "track", f"m{number}", None, None, at, None, 10, "server", None, None, b"{}")
            given_ids = rules.arrange(found)[0]
            given_ids = shared.setdefault(tuple(given_ids), given_ids) if share else given_ids
            graph.apply(event, message_key("s", event.message_id), given_ids, written, rules)
        made.append(graph)
    assert made[0] == made[1]


@given(histories)
def test_a_profile_is_the_combination_of_its_nodes(history):
    graph = play(list(enumerate(history)), Rules())
    for profile in graph.profiles.values():
        if profile.merged_into is not None:
            continue
        members = [
            node for node in graph.nodes.values() if node.profile and graph.canonical(node.profile) == profile.id
        ]
        assert combined(profile, members) == profile


@given(histories)
def test_no_profile_exceeds_a_limit(history):
    graph = play(list(enumerate(history)), Rules())
    for profile in graph.profiles.values():
        assert all(count <= Rules().type(kind).limit for kind, count in profile.ids.items())


@given(
    st.lists(
        st.tuples(traits, st.integers(1, 3), st.integers(1, 3), st.sampled_from("abc"), st.sampled_from("st")),
        max_size=6,
    )
)
def test_writes_of_traits_commute_and_repeat_harmlessly(writes):
    writes = list({tuple(stamp): written for written, *stamp in writes}.items())
    forward: Any = {}
    backward: Any = {}
    for stamp, written in writes:
        write_traits(forward, written, stamp)
    for stamp, written in [*reversed(writes), *writes]:
        write_traits(backward, written, stamp)
    assert forward == backward
