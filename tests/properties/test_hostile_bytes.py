"""Whatever a client sends: nothing is raised, what is answered is HTTP, and nothing is left of it. `benchmarks.fuzz` runs it for longer."""

import asyncio
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import Forgetful, Target, mutated, requests
from collector.known_heads import KnownHeads

SOUND = {200, 400, 401, 404, 405}


def statuses(pieces: list[bytes], *before: bytes) -> list[int]:
    """What is answered, once requests `before` have been."""

    async def talk() -> list[int]:
        target = Target(KnownHeads() if before else Forgetful())
        for request in before:
            await target.talk([request])
        return await target.talk(pieces)

    return asyncio.run(talk())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=5))
def test_any_bytes_are_answered_or_waited_for(pieces: list[bytes]) -> None:
    """By chance they are a request."""
    assert set(statuses(pieces)) <= SOUND


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_requests_that_were_cut_and_mixed_are_answered_or_refused(seed: int) -> None:
    assert set(statuses(mutated(random.Random(seed)))) <= SOUND


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_a_server_that_knows_the_heads_answers_as_one_that_sees_them_for_the_first_time(seed: int) -> None:
    """Where one refuses a request by its head and closes the connection, the other may go on, if all of the body is there."""
    pieces = mutated(random.Random(seed))
    expected = statuses(pieces)
    assert statuses(pieces, *requests())[: len(expected)] == expected


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(range(len(requests()))), min_size=1, max_size=6), st.integers(1, 100))
def test_proper_requests_are_all_answered_however_they_are_cut(numbers: list[int], size: int) -> None:
    whole = b"".join(requests()[number] for number in numbers)
    assert statuses([whole[at : at + size] for at in range(0, len(whole), size)]) == [200] * len(numbers)
