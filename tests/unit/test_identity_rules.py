"""Rules that the hard cases leave out: what splits keep apart, and the options."""

from collections.abc import Mapping, Sequence

import pytest

from pipeline.identity import Rules, decide
from pipeline.profile import Profile
from schemas.events import ExternalId
from schemas.identity import IdentityConfig, IdTypeConfig

U1, U2 = ExternalId("user_id", "u1"), ExternalId("user_id", "u2")
E2, A9 = ExternalId("email", "e2"), ExternalId("anonymous_id", "a9")


def person(name: str, apart: Sequence[str] = (), **ids: int) -> Profile:
    return Profile(name, 1, ids=ids, apart=list(apart))


def decided(
    ids: Sequence[ExternalId], owners: Mapping[ExternalId, Profile], **options: bool
) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """Ids promoted, profiles reached, and what was refused why."""
    decision = decide(ids, owners.get, 1, Rules(IdentityConfig(**options)))
    return (
        [one.value for one in decision.ids],
        [one.id for one in decision.profiles],
        [(one.id.value, one.violation) for one in decision.demoted],
    )


def test_both_sides_of_a_split_never_meet_again():
    p1, p2, p3 = person("P1", ["s1:a"], user_id=1), person("P2", ["s1:b"], anonymous_id=1), person("P3", email=1)

    assert decided([U1, E2, A9], {U1: p1, A9: p2, E2: p3}) == (
        ["u1", "e2"],
        ["P1", "P3"],
        [("a9", "Identifiers kept apart")],
    )


@pytest.mark.parametrize("other", [["s1:a"], ["s2:b"], []])
def test_sides_of_different_splits_and_one_side_of_one_split_may_meet(other: list[str]):
    p1, p2 = person("P1", ["s1:a"], user_id=1), person("P2", other, anonymous_id=1)
    assert decided([U1, A9], {U1: p1, A9: p2}) == (["u1", "a9"], ["P1", "P2"], [])


def test_minimal_demotion_spares_the_innocent():
    """Case 25: a9 has no part in the two users' conflict."""
    owners = {U1: person("P1", user_id=1), E2: person("P2", user_id=1, email=1), A9: person("P3", anonymous_id=1)}
    limit = "Identifier value limit exceeded"

    assert decided([U1, E2, A9], owners) == (["u1"], ["P1"], [("a9", limit), ("e2", limit)])
    assert decided([U1, E2, A9], owners, minimal_demotion=True) == (["u1", "a9"], ["P1", "P3"], [("e2", limit)])


def test_minimal_demotion_goes_from_the_least_trusted_where_no_single_id_helps():
    """e2 and a9 reach the same other person: one alone changes nothing."""
    p1, p2 = person("P1", user_id=1), person("P2", user_id=1, email=1, anonymous_id=1)
    limit = "Identifier value limit exceeded"

    assert decided([U1, E2, A9], {U1: p1, E2: p2, A9: p2}, minimal_demotion=True) == (
        ["u1"],
        ["P1"],
        [("a9", limit), ("e2", limit)],
    )


def test_minimal_demotion_spares_who_has_no_part_in_a_split():
    p1, p2, p3 = person("P1", ["s1:a"], user_id=1), person("P2", ["s1:b"], email=1), person("P3", anonymous_id=1)

    assert decided([U1, E2, A9], {U1: p1, E2: p2, A9: p3}, minimal_demotion=True) == (
        ["u1", "a9"],
        ["P1", "P3"],
        [("e2", "Identifiers kept apart")],
    )


def test_an_alias_joins_two_users_where_the_limit_has_room():
    owners = {U1: person("P1", user_id=1)}
    config = IdentityConfig(types={"user_id": IdTypeConfig(limit=2)}, alias_identifies=True)
    decision = decide([U2, U1], owners.get, 1, Rules(config))
    assert ([one.value for one in decision.ids], [one.id for one in decision.profiles]) == (["u2", "u1"], ["P1"])
