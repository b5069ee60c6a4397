"""Where profile ids lead, in whatever order changes are heard."""

from itertools import permutations

from destinations.warehouse.pointers import Pointers
from schemas.changes import Cause, ProfileChange


def change(kind: str, seq: int, profile: str, *moved: str) -> ProfileChange:
    return ProfileChange(
        f"{kind}:{seq}", kind, profile, seq, Cause("web", f"m{seq}", "track", seq, seq), profiles=moved
    )


def created(seq: int, profile: str) -> ProfileChange:
    return change("created", seq, profile, profile)


def merged(seq: int, survivor: str, absorbed: str) -> ProfileChange:
    return change("merged", seq, survivor, absorbed)


def heard(*changes: ProfileChange) -> tuple[list[tuple[str, str, str]], dict[str, str]]:
    """The rows, as (segment, canonical, cause), and where each id leads in the end."""
    pointers = Pointers(())
    rows = [row for one in changes for row in pointers.hear(one)]
    return [(row.segment, row.canonical, row.cause.message_id) for row in rows], {
        segment: one.canonical for segment, one in pointers.newest.items()
    }


def test_the_worked_example_of_the_reference() -> None:
    rows, lead = heard(created(1, "p1"), created(3, "p2"), merged(4, "p1", "p2"), merged(5, "p0", "p1"))
    assert rows == [
        ("p1", "p1", "m1"),
        ("p2", "p2", "m3"),
        ("p2", "p1", "m4"),
        ("p1", "p0", "m5"),
        ("p2", "p0", "m5"),
    ]
    assert lead == {"p1": "p0", "p2": "p0"}


def test_a_chain_of_merges_ends_at_the_last_survivor_however_it_is_heard() -> None:
    chain = [merged(seq, f"p{seq + 1}", f"p{seq}") for seq in range(1, 6)]
    for order in permutations(chain):
        rows, lead = heard(*order)
        assert lead == dict.fromkeys(("p1", "p2", "p3", "p4", "p5"), "p6")
        assert {row[:2] for row in rows} >= {(one, "p6") for one in lead}


def test_what_was_undone_leads_to_itself_however_it_is_heard() -> None:
    history = [
        created(1, "p1"),
        created(2, "p2"),
        merged(3, "p1", "p2"),
        change("unmerged", 4, "p2", "p2"),
        merged(5, "p2", "p1"),
    ]
    for order in permutations(history):
        assert heard(*order)[1] == {"p1": "p2", "p2": "p2"}


def test_an_older_change_is_history_and_moves_nothing() -> None:
    rows, lead = heard(merged(5, "p0", "p1"), created(1, "p1"))
    assert rows == [("p1", "p0", "m5"), ("p1", "p1", "m1")]
    assert lead == {"p1": "p0"}
