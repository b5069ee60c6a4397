"""Whatever a client sends: nothing is raised, what is answered is HTTP, and nothing is left of it. `benchmarks.fuzz` runs it for longer."""

import asyncio
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import Target, mutated, requests

SOUND = {200, 400, 401, 404, 405}


def statuses(pieces: list[bytes]) -> list[int]:
    async def talk() -> list[int]:
        return await Target().talk(pieces)

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


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(range(len(requests()))), min_size=1, max_size=6), st.integers(1, 100))
def test_proper_requests_are_all_answered_however_they_are_cut(numbers: list[int], size: int) -> None:
    whole = b"".join(requests()[number] for number in numbers)
    assert statuses([whole[at : at + size] for at in range(0, len(whole), size)]) == [200] * len(numbers)
