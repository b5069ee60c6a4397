"""How sources share the rate of a destination."""

from collections import Counter, deque

from hypothesis import given
from hypothesis import strategies as st

from pipeline.delivery.lanes import Item, Lanes
from pipeline.delivery.turns import Shares, Turns
from pipeline.store.ledger import Claim

MANY = 1_000


class Sending:
    """Sources whose events wait in lanes of their own, each event a profile's, unless a profile is named."""

    def __init__(self, *, shared: bool = True) -> None:
        self.lanes = Lanes(Shares() if shared else None)
        self.lanes.install(Claim(partition=0, epoch=1, offset=0, marks={}, outstanding=[]))
        self.offset = 0

    def send(self, source: str, count: int, profile: str = "") -> None:
        for _ in range(count):
            lane = self.lanes.partitions[0].lane(profile, self.offset)
            self.lanes.add(Item(lane, self.offset, source, f"{source}{self.offset}"))
            self.offset += 1

    def take(self, most: int, *, several: bool = False) -> Counter[str]:
        taken = self.lanes.take(late=False, most=most, several=several)
        for item in taken:
            self.lanes.give_back(item.lane, [])
        return Counter(item.source for item in taken)


def test_of_two_sources_that_wait_each_has_half_whoever_was_first_and_has_more() -> None:
    sending = Sending()
    sending.send("loud", MANY)
    sending.send("quiet", 50)
    assert sending.take(60) == {"loud": 30, "quiet": 30}
    assert sending.take(60) == {"loud": 40, "quiet": 20}
    assert sending.take(60) == {"loud": 60}


def test_without_a_rate_to_share_events_go_as_they_came() -> None:
    sending = Sending(shared=False)
    sending.send("loud", MANY)
    sending.send("quiet", 50)
    assert sending.take(60) == {"loud": 60}


def test_a_rate_of_one_event_at_a_time_is_shared_too() -> None:
    sending = Sending()
    sending.send("loud", MANY)
    sending.send("quiet", 5)
    assert [next(iter(sending.take(1))) for _ in range(12)] == ["loud", "quiet"] * 5 + ["loud", "loud"]


def test_who_had_nothing_to_send_is_owed_nothing() -> None:
    sending = Sending()
    sending.send("early", MANY)
    sending.take(500)
    sending.send("late", MANY)
    assert sending.take(100) == {"early": 50, "late": 50}


def test_whose_turn_comes_late_makes_nobody_owed_what_went_before() -> None:
    shares = Shares()
    for source in ("early", "slow"):
        shares.begins(source)
    for source in ("early", "early", "slow"):  # the slow one's events were still under way
        shares.took(source, 5)
    shares.begins("late")
    assert {source: shares.had(source) for source in ("early", "slow", "late")} == {"early": 10, "slow": 5, "late": 5}


def test_where_another_waits_half_of_what_may_go_is_a_sources_part_and_the_odd_one() -> None:
    shares = Shares()
    shares.begins("a")
    assert [shares.part("a", room) for room in (1, 2, 5)] == [1, 2, 5]
    shares.begins("b")
    assert [shares.part("a", room) for room in (1, 2, 5)] == [1, 1, 3]


def test_a_profile_with_many_events_does_not_take_the_whole_call_of_an_atomic_destination() -> None:
    sending = Sending()
    sending.send("loud", MANY, profile="somebody")
    sending.send("quiet", 10, profile="another")
    assert sending.take(20, several=True) == {"loud": 10, "quiet": 10}


def test_events_that_were_tried_before_count_as_much_as_new_ones() -> None:
    shares = Shares()
    lanes = Lanes(shares)
    lanes.install(Claim(partition=0, epoch=1, offset=0, marks={}, outstanding=[]))
    for offset, (source, listed) in enumerate([("loud", False), ("loud", True), ("quiet", True), ("loud", False)]):
        item = Item(lanes.partitions[0].lane("", offset), offset, source, str(offset))
        item.listed = listed
        lanes.add(item)
    went, late = [], False
    while lanes.has_fresh or lanes.has_late:
        late = lanes.has_late and (not lanes.has_fresh or lanes.late_first(late))
        went += [item.source for item in lanes.take(late=late, most=1, several=False)]
    assert went == ["loud", "quiet", "loud", "loud"]


def test_the_order_of_a_source_stays() -> None:
    turns = Turns[str](lambda name: name[0], Shares())
    for name in ("a1", "a2", "b1", "a3", "b2"):
        turns.append(name)
    assert (len(turns), list(turns), turns[0]) == (5, ["a1", "a2", "a3", "b1", "b2"], "a1")
    assert [turns.popleft() for _ in range(5)] == ["a1", "a2", "a3", "b1", "b2"]
    turns.append("c1")
    turns.clear()
    assert not turns


@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 30)), max_size=3),  # sent
            st.integers(0, 12),  # room
            st.booleans(),  # what waits is sorted anew
        ),
        min_size=1,
        max_size=40,
    )
)
def test_while_others_wait_no_source_has_more_than_half_beyond_one_call(
    steps: list[tuple[list[tuple[str, int]], int, bool]],
) -> None:
    """Over any stretch in which two sources wait throughout, what they had differs by no more than the largest call."""
    sending, waiting = Sending(), Counter[str]()
    since: dict[frozenset[str], Counter[str]] = {}
    largest = 0
    for sent, room, resorted in steps:
        for source, count in sent:
            sending.send(source, count)
            waiting[source] += count
        if resorted:
            sending.lanes.resort()
        went = sending.take(room)
        assert sum(went.values()) == min(room, sum(waiting.values()))
        largest = max(largest, room)
        waiting -= went
        both = {frozenset((a, b)) for a in waiting for b in waiting if a < b}
        since = {pair: since.get(pair, Counter()) + went for pair in both}
        for pair in both:
            a, b = pair
            assert abs(since[pair][a] - since[pair][b]) <= 2 * largest


def test_a_queue_of_turns_is_used_as_a_deque_is() -> None:
    for queue in (deque[str](), Turns[str](str, Shares())):
        queue.append("x")
        assert (queue[0], bool(queue), list(queue)) == ("x", True, ["x"])
        assert (queue.popleft(), bool(queue)) == ("x", False)
