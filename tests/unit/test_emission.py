"""How resolved events get onto the log: what an event's person left stands there before it, and the event says until where."""

import asyncio
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from pipeline.emission import emit, fences, rounds
from pipeline.log import Record
from pipeline.store.intake import Emission
from schemas.errors import Unavailable
from schemas.events import RESOLVED_HEADER, Event, ExternalId, Fence, Origin, decode_resolved, encode_event
from schemas.topics import RESOLVED, partition_of
from tests.unit.delivery_world import Appended, MemoryLog

EVENT = Event("web", "track", "m", "a", None, 1, None, 1, "client", None, None, b"{}")
VALUE = encode_event(EVENT)
PARTITIONS = 4


def emission(number: int, profile: str, *left: str) -> Emission:
    return Emission(Origin(0, number), profile, (ExternalId("user_id", "u"),), b"", VALUE, left=left)


def place(key: bytes) -> int:
    return partition_of(key, PARTITIONS)


def cut(emissions: Sequence[Emission]) -> list[list[int]]:
    return [[one.origin.offset for one in part] for part in rounds(emissions, place)]


class Log(MemoryLog):
    """Puts records where their keys belong."""

    def __init__(self, fails: int = 0) -> None:
        super().__init__(PARTITIONS)
        self.fails = fails

    async def append(self, topic: str, records: Sequence[Record]) -> None:
        for record in records:
            await self.put(topic, place(record.key), record)
        self.did.append(Appended(topic, len(records)))
        if self.fails:
            self.fails -= 1
            raise Unavailable("as told", after=0.001)


# ann and bob stand in different partitions, and kim in bob's
assert [place(one) for one in (b"ann", b"bob", b"kim")] == [3, 0, 0]


def test_events_without_merges_are_one_append_in_their_order():
    emissions = [emission(0, "ann"), emission(1, "bob"), emission(2, "ann")]
    assert rounds(emissions, place) == (emissions,)


def test_an_event_is_not_appended_together_with_one_of_a_profile_that_it_left():
    assert cut([emission(0, "bob"), emission(1, "ann", "bob"), emission(2, "kim")]) == [[0, 2], [1]]


def test_what_follows_in_a_partition_is_not_appended_before():
    assert cut([emission(0, "bob"), emission(1, "ann", "bob"), emission(2, "ann"), emission(3, "kim")]) == [
        [0, 3],
        [1, 2],
    ]


def test_what_was_left_in_an_earlier_poll_needs_no_append_of_its_own():
    assert cut([emission(0, "ann", "bob"), emission(1, "ann")]) == [[0, 1]]


def test_merges_in_a_row_are_appended_in_a_row():
    chain = [emission(0, "kim"), emission(1, "bob", "kim"), emission(2, "ann", "bob", "kim")]
    assert cut(chain) == [[0], [1], [2]]


profiles = st.sampled_from(["ann", "bob", "kim", "eve", "mia"])


@given(st.lists(st.tuples(profiles, st.lists(profiles, max_size=2, unique=True)), max_size=20))
def test_whatever_merges_each_event_comes_after_what_it_left_and_each_partition_is_in_order(
    plan: list[tuple[str, list[str]]],
) -> None:
    emissions = [
        emission(number, profile, *(one for one in left if one != profile))
        for number, (profile, left) in enumerate(plan)
    ]
    made = rounds(emissions, place)
    appended = {one.origin.offset: number for number, part in enumerate(made) for one in part}
    for one in emissions:
        earlier = emissions[: one.origin.offset]
        assert all(appended[x.origin.offset] < appended[one.origin.offset] for x in earlier if x.profile in one.left)
    for number in range(PARTITIONS):
        order = [one.origin.offset for part in made for one in part if place(one.key) == number]
        assert order == sorted(order)
    assert sorted(appended) == list(range(len(emissions)))


async def test_an_event_says_where_what_it_left_ends():
    log = Log()
    await emit(log, [emission(0, "bob"), emission(1, "ann")], asyncio.Event())
    await emit(log, [emission(2, "kim"), emission(3, "bob"), emission(4, "ann", "bob")], asyncio.Event())
    (_, last) = log.topics[RESOLVED][3]
    assert decode_resolved(last.value).fences == (Fence("bob", 0, 3),)
    assert [one.count for one in log.did] == [2, 2, 1]


async def test_a_record_without_a_fence_is_as_it_always_was():
    log = Log()
    await emit(log, [emission(0, "bob")], asyncio.Event())
    assert log.topics[RESOLVED][0][0].value.startswith(RESOLVED_HEADER)


async def test_an_append_that_may_have_been_made_is_made_again_before_what_follows_it():
    log = Log(fails=1)
    await emit(log, [emission(0, "bob"), emission(1, "ann", "bob")], asyncio.Event())
    (last,) = log.topics[RESOLVED][3]
    assert decode_resolved(last.value).fences == (Fence("bob", 0, 2),)


def test_an_empty_partition_is_not_pointed_at():
    assert fences(["bob"], {0: (5, 5)}, place) == []
