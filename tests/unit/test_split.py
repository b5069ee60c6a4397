"""How profiles are taken apart, case by case. Notation as in the identity cases: u user_id, e email, a anonymous_id."""

import pytest

from pipeline.split import Split
from schemas.errors import Refused
from schemas.events import ExternalId
from tests.properties.test_split_laws import World

TYPES = {"u": "user_id", "e": "email", "a": "anonymous_id"}


def ids(event: str) -> list[ExternalId]:
    return [ExternalId(TYPES[one[0]], one) for one in event.split("+")]


def key(one: str) -> str:
    return str(*ids(one))


def played(history: str) -> World:
    world = World()
    for event in history.split("; "):
        world.event(ids(event))
    return world


def people(world: World) -> list[str]:
    """Their ids, sorted."""
    return sorted(" ".join(sorted(key.partition(":")[2] for key in keys)) for keys in world.together())


def merge_of(world: World, absorbed: str) -> str:
    """The merge by which the profile that `absorbed` founded became part of another."""
    home = world.graph.nodes[key(absorbed)].home
    return next(name for name, one in world.merges().items() if one.absorbed == home)


def cut_links(split: Split) -> list[str]:
    return [" ".join(one.partition(":")[2] for one in row[:2]) for row in split.detail["edges"]]


def test_case_43_a_merge_undone_and_the_same_event_again():
    world = played("u1+a1; a2; u1+a2")
    world.unmerge(merge_of(world, "a2"))
    assert people(world) == ["a1 u1", "a2"]
    world.event(ids("u1+a2"))
    assert people(world) == ["a1 u1", "a2"]


def test_an_id_tied_to_both_sides_stays_with_the_earlier_link():
    earlier = played("u1+a1; a2; u1+e1; e1+a2; u1+a2")
    earlier.cut(key("u1"), key("a2"))
    assert people(earlier) == ["a1 e1 u1", "a2"]
    later = played("u1+a1; a2; e1+a2; u1+e1; u1+a2")
    later.cut(key("u1"), key("a2"))
    assert people(later) == ["a1 u1", "a2 e1"]


def test_of_one_event_the_most_trusted_link_comes_first():
    world = played("e1; a1; u1+e1+a1")
    split = world.cut(key("e1"), key("a1"))
    assert (people(world), cut_links(split)) == (["a1", "e1 u1"], ["a1 u1"])


def test_what_came_after_a_merge_goes_with_its_own_evidence():
    world = played("u1; a2; u1+a2; u1+e1; a3+a2; u1+a4; a4+a5")
    world.unmerge(merge_of(world, "a2"))
    assert people(world) == ["a2 a3", "a4 a5 e1 u1"]


def test_a_profile_absorbed_later_through_the_other_side_goes_with_it():
    """u1 took in a2, then a3 because of a2: without u1 and a2 being one, a3 belongs to a2 alone."""
    world = played("u1; a3; a2; u1+a2; a3+a2")
    split = world.unmerge(merge_of(world, "a2"))
    assert people(world) == ["a2 a3", "u1"]
    world.check()
    [merge] = world.merges().values()
    own = {one: world.graph.nodes[key(one)].home for one in ("a2", "a3")}
    assert (merge.survivor, merge.absorbed, merge.message_id) == (own["a3"], own["a2"], "m5")
    assert split.other == own["a3"]


def test_merges_of_merges_come_apart_where_they_were_joined():
    world = played("u1; u2; e1; e2; u1+e1; u2+e2; u1+u2")
    before = world.state()
    inner = world.unmerge(merge_of(world, "e2"))
    assert people(world) == ["e1 u1 u2", "e2"]
    world.remerge(inner.id)
    assert world.state() == before
    world.unmerge(merge_of(world, "u2"))
    assert people(world) == ["e1 u1", "e2 u2"]


def test_a_merge_that_came_after_the_one_undone_holds():
    world = played("u1; a2; a3; u1+a2; u1+a3")
    world.unmerge(merge_of(world, "a2"))
    assert people(world) == ["a2", "a3 u1"]
    assert [one.absorbed for one in world.merges().values()] == [world.graph.nodes[key("a3")].home]


def test_splits_within_splits():
    world = played("u1+a1; a2+e2; u1+a2")
    outer = world.unmerge(merge_of(world, "a2"))
    inner = world.cut(key("a2"), key("e2"))
    assert people(world) == ["a1 u1", "a2", "e2"]
    world.check()
    world.remerge(inner.id)
    world.remerge(outer.id)
    assert people(world) == ["a1 a2 e2 u1"]
    world.check()


def test_an_outer_split_lifted_first_joins_only_what_it_held_apart():
    world = played("u1+a1; a2+e2; u1+a2")
    outer = world.unmerge(merge_of(world, "a2"))
    inner = world.cut(key("a2"), key("e2"))
    world.remerge(outer.id)
    assert people(world) == ["a1 a2 u1", "e2"]
    world.check()
    world.remerge(inner.id)
    assert people(world) == ["a1 a2 e2 u1"]
    world.check()


def test_a_split_is_not_lifted_through_another():
    """Both ends of the outer split's links lie on the two sides of the inner one."""
    world = played("u1; a2; a3; a2+a3; u1+a2; u1+a3")
    outer = world.cut(key("u1"), key("a2"))
    assert people(world) == ["a2 a3", "u1"]
    inner = world.cut(key("a2"), key("a3"))
    with pytest.raises(Refused, match=f"lift it first: millrace identity remerge {inner.id}"):
        world.remerge(outer.id)
    world.remerge(inner.id)
    world.remerge(outer.id)
    assert people(world) == ["a2 a3 u1"]


def test_what_joined_a_side_meanwhile_stays_with_it_when_the_split_is_lifted():
    world = played("u1+a1; a2; u1+a2")
    split = world.unmerge(merge_of(world, "a2"))
    for event in ("e7", "a2+e7", "u1+a8", "a0+a2"):
        world.event(ids(event))
    assert people(world) == ["a0 a2 e7", "a1 a8 u1"]
    world.remerge(split.id)
    assert people(world) == ["a0 a1 a2 a8 e7 u1"]
    world.check()


def test_a_side_that_joined_an_earlier_profile_brings_it_along():
    world = played("e7; u1+a1; a2; u1+a2")
    split = world.unmerge(merge_of(world, "a2"))
    world.event(ids("a2+e7"))
    assert people(world) == ["a1 u1", "a2 e7"]
    world.remerge(split.id)
    assert people(world) == ["a1 a2 e7 u1"]
    world.check()
    survivor = world.graph.nodes[key("e7")].home
    assert world.root(key("u1")) == survivor


def test_a_profile_without_an_id_left_cannot_come_out():
    world = played("u1; a2; u1+a2")
    merge = merge_of(world, "a2")
    del world.graph.nodes[key("a2")]
    world.graph.edges.clear()
    with pytest.raises(Refused, match="No id is left"):
        world.unmerge(merge)


def test_a_merge_that_was_undone_holds_again_when_its_cause_is_what_is_left():
    world = played("e0; u1; a2; u1+a2")
    merge = merge_of(world, "a2")
    first = world.unmerge(merge)
    world.event(ids("a2+e0"))
    world.remerge(first.id)
    assert (people(world), merge in world.merges()) == (["a2 e0 u1"], False)
    before = world.state()
    second = world.cut(key("e0"), key("a2"))
    assert (people(world), merge in world.merges()) == (["a2 u1", "e0"], True)
    world.check()
    world.remerge(second.id)
    assert world.state() == before


@pytest.mark.parametrize("gone", [["a2"], ["u1", "a2"]])
def test_a_split_whose_ids_are_gone_is_lifted_all_the_same(gone: list[str]):
    world = played("u1+a1; a2+e2; u1+a2")
    split = world.unmerge(merge_of(world, "a2"))
    for one in gone:
        world.graph.nodes.pop(key(one))
    world.graph.edges = {
        pair: one for pair, one in world.graph.edges.items() if not {key(one) for one in gone} & set(pair)
    }
    world.remerge(split.id)
    assert not any(one.apart for one in world.graph.nodes.values())
    assert set(world.graph.nodes) >= {end for pair in world.graph.edges for end in pair}


def test_an_account_taken_apart_gives_an_account_and_tells_nobody():
    world = played("u1+a1")
    for one in world.graph.profiles.values():
        one.collection = "accounts"
    split = world.cut(key("u1"), key("a1"))
    assert split.other.startswith("acc_")
    assert world.graph.profiles[split.other].collection == "accounts"
    assert split.pending == []


def test_corrections_name_both_profiles_and_what_each_has_lost():
    world = World()
    world.event(ids("u1+a1"), {"plan": "pro"})
    world.event(ids("a2"), {"city": "Rome"})
    world.event(ids("u1+a2"), {"plan": "max"})
    split = world.unmerge(merge_of(world, "a2"))
    told = {one.profile: (one.node, list(one.ids), one.gone) for one in split.pending}
    assert told == {
        split.profile: (key("u1"), [key("u1"), key("a1")], ["city"]),
        split.other: (key("a2"), [key("a2")], ["plan"]),
    }
