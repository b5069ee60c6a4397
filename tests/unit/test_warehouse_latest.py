"""The latest state: per column the newest clock wins, whatever comes when."""

from destinations.warehouse.latest import Change, decode_clocks, encode_clocks, fold

OLD, NEW = (50, 60, "m2"), (100, 101, "m1")


def test_a_late_event_fills_what_is_missing_and_undoes_nothing() -> None:
    rows = [("u1", NEW, ("plan",)), ("u1", OLD, ("plan", "city"))]
    assert fold(rows, {}) == [Change("u1", {"plan": 0, "city": 1}, {"plan": NEW, "city": OLD})]
    assert fold(rows[1:], {"u1": {"plan": NEW}}) == [Change("u1", {"city": 0}, {"plan": NEW, "city": OLD})]


def test_an_event_that_changes_nothing_is_no_change() -> None:
    assert fold([("u1", OLD, ("plan",))], {"u1": {"plan": NEW}}) == []
    assert fold([("u1", NEW, ("plan",))], {"u1": {"plan": NEW}}) == []


def test_of_one_instant_the_later_received_then_the_larger_id_wins() -> None:
    rows = [("u1", (1, 2, "b"), ("x",)), ("u1", (1, 2, "a"), ("x",)), ("u1", (1, 3, "a"), ("x",))]
    assert fold(rows[:2], {})[0].rows == {"x": 0}
    assert fold(rows, {})[0].rows == {"x": 2}


def test_clocks_read_back() -> None:
    clocks = {"plan": NEW, "city": OLD, "name": NEW}
    assert decode_clocks(encode_clocks(clocks)) == clocks
    assert encode_clocks(clocks) == '[[100,101,"m1","name","plan"],[50,60,"m2","city"]]'
