"""Destinations of one process share what they read."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

from destinations.contract import DELIVERED, Outcome, RawEvent
from pipeline.delivery import decide
from pipeline.delivery.shared import Latest
from schemas.events import Resolved, decode_resolved
from tests.unit.delivery_world import DeliveryWorld


def test_what_one_has_made_serves_the_others() -> None:
    made: list[str] = []

    def make(source: str) -> str:
        made.append(source)
        return source.upper()

    latest: Latest[int, str, str] = Latest(make)
    assert [latest.get(place, text, 1) for place, text in [(1, "a"), (2, "b"), (1, "a"), (2, "b")]] == ["A", "B"] * 2
    assert made == ["a", "b"]


def test_a_place_that_holds_something_else_by_now_is_read_again() -> None:
    """Another log, or a record that was erased where it stands."""
    latest: Latest[int, str, str] = Latest(str.upper)
    assert [latest.get(1, text, 1) for text in ("a", "b", "a")] == ["A", "B", "A"]


def test_what_is_kept_is_bounded_by_bytes_and_the_oldest_goes_first() -> None:
    made: list[bytes] = []

    def make(source: bytes) -> int:
        made.append(source)
        return len(source)

    latest: Latest[int, bytes, int] = Latest(make, most=10)
    sources: Sequence[bytes] = [b"a" * 4, b"b" * 4, b"c" * 4]
    for place in (0, 1, 2, 2, 1, 0):
        latest.get(place, sources[place], 4)
    assert made == [sources[0], sources[1], sources[2], sources[0]]


def test_what_is_larger_than_the_bound_is_made_and_not_kept() -> None:
    latest: Latest[int, bytes, int] = Latest(len, most=10)
    assert [latest.get(1, b"x" * 11, 11) for _ in range(2)] == [11, 11]


def test_what_cannot_be_made_is_tried_again() -> None:
    latest: Latest[int, str, int] = Latest(int)
    for _ in range(2):
        with pytest.raises(ValueError, match="invalid literal"):
            latest.get(1, "x", 1)
    assert latest.get(1, "7", 1) == 7


async def test_an_event_that_five_destinations_read_is_decoded_once_and_all_get_the_same_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decodings: list[str] = []
    got: dict[str, list[RawEvent]] = defaultdict(list)

    def counted(value: bytes) -> Resolved:
        found = decode_resolved(value)
        decodings.append(found.event.message_id)
        return found

    async def take(batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        for one in batch:
            got[one["messageId"]].append(one)
        return [DELIVERED] * len(batch)

    monkeypatch.setattr(decide, "decode_resolved", counted)
    ids = [f"shared-{number}" for number in range(20)]
    world = DeliveryWorld(tmp_path)
    for number in range(5):
        world.add(take, name=f"crm{number}")
    for one in ids:
        await world.emit(one)
    await world.run_until_idle()
    world.close()
    assert decodings == ids
    assert {name: (len(each), len({id(one) for one in each})) for name, each in got.items()} == dict.fromkeys(
        ids, (5, 1)
    )
