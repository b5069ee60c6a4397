"""What people differed on when they merged, once other rules were applied: what the log still tells counts, the rest stays."""

from pipeline.graph import Merge
from pipeline.outcome import Outcome, still_disputed
from pipeline.profile import Profile, message_key
from pipeline.split import Family

ADS = (5, 5, "old", "web")
"""The stamp of an answer."""


def merge(survivor: str, absorbed: str, message: str) -> Merge:
    return Merge(survivor, absorbed, 9, "web", message, "identify", 1)


def family(pointers: dict[str, str | None], *merges: Merge) -> Family:
    profiles = {name: Profile(name, 0, into) for name, into in pointers.items()}
    return Family(profiles=profiles, merges={one.id: one for one in merges})


WAS = merge("P1", "P2", "m1")
BEFORE = family({"P1": None, "P2": "P1"}, WAS)


def left(after: Family, *resolved: str) -> dict[str, dict[str, tuple[int, int, str, str]]]:
    keys = {message_key("web", one) for one in resolved}
    found = still_disputed(BEFORE, Outcome(after, {}, []), {WAS.id: {"ads": ADS}}, keys)
    return {name: dict(categories) for name, categories in found.items()}


def test_a_merge_that_holds_keeps_what_the_log_does_not_tell() -> None:
    assert left(family({"P1": None, "P2": "P1"}, WAS)) == {WAS.id: {"ads": ADS}}


def test_an_answer_that_was_resolved_again_tells_for_itself() -> None:
    assert left(family({"P1": None, "P2": "P1"}, WAS), "old") == {}


def test_the_merge_in_its_place_takes_it() -> None:
    instead = merge("P0", "P2", "m2")
    assert left(family({"P0": None, "P1": "P0", "P2": "P0"}, instead)) == {instead.id: {"ads": ADS}}


def test_profiles_that_are_apart_do_not_differ_any_more() -> None:
    assert left(family({"P0": None, "P1": None, "P2": "P0"}, merge("P0", "P2", "m2"))) == {}
    assert left(family({"P1": None, "P2": None})) == {}
