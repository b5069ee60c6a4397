"""Destinations of one process share what they read."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from destinations.contract import DELIVERED, Outcome, RawEvent
from pipeline.delivery import decide
from pipeline.delivery.shared import Latest, Readers
from pipeline.log import Record
from schemas.events import Resolved, decode_resolved
from tests.unit.delivery_world import DeliveryWorld


def records(*values: bytes, start: int = 0) -> list[Record]:
    return [Record(b"", value, 0, offset) for offset, value in enumerate(values, start)]


@pytest.fixture
def readers() -> Iterator[Readers]:
    """Two of them."""
    readers = Readers()
    with readers.reading(), readers.reading():
        yield readers


def noting(made: list[bytes]) -> Callable[[bytes], bytes]:
    def make(value: bytes) -> bytes:
        made.append(value)
        return value.upper()

    return make


def test_what_one_has_made_serves_the_others(readers: Readers) -> None:
    made: list[bytes] = []
    latest = Latest(noting(made), readers=readers)
    assert [latest.of(0, records(b"a", b"b")) for _ in range(2)] == [[b"A", b"B"]] * 2
    assert latest.of(1, records(b"c", b"d")) == [b"C", b"D"]
    assert made == [b"a", b"b", b"c", b"d"]


def test_a_place_that_holds_something_else_by_now_is_read_again(readers: Readers) -> None:
    """Another log, or a record that was erased where it stands."""
    latest = Latest(bytes.upper, readers=readers)
    assert [latest.of(1, records(one)) for one in (b"a", b"b", b"a")] == [[b"A"], [b"B"], [b"A"]]


def test_what_is_kept_is_bounded_by_bytes_and_the_oldest_goes_first(readers: Readers) -> None:
    made: list[bytes] = []
    latest = Latest(noting(made), most=10, readers=readers)
    a, b, c = (records(one * 4, start=place) for place, one in ((0, b"a"), (100, b"b"), (200, b"c")))
    for one in (a, b, c, c, b, a):
        latest.of(0, one)
    assert made == [b"aaaa", b"bbbb", b"cccc", b"aaaa"]


def test_what_is_larger_than_the_bound_is_made_and_not_kept(readers: Readers) -> None:
    made: list[bytes] = []
    latest = Latest(noting(made), most=10, readers=readers)
    assert [latest.of(0, records(b"x" * 11)) for _ in range(2)] == [[b"X" * 11]] * 2
    assert made == [b"x" * 11] * 2


def test_one_that_reads_alone_keeps_nothing() -> None:
    made: list[bytes] = []
    readers = Readers()
    latest = Latest(noting(made), readers=readers)
    with readers.reading():
        with readers.reading():
            latest.of(0, records(b"a"))
        for _ in range(2):
            latest.of(0, records(b"a"))
    assert made == [b"a", b"a", b"a"]


def test_what_cannot_be_made_is_tried_again(readers: Readers) -> None:
    latest = Latest(int, readers=readers)
    for _ in range(2):
        with pytest.raises(ValueError, match="invalid literal"):
            latest.of(0, records(b"x"))
    assert latest.of(0, records(b"7")) == [7]


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


async def test_a_destination_that_takes_one_process_is_left_to_the_first(tmp_path: Path) -> None:
    for first, expected in ((False, {"crm": 1}), (True, {"crm": 1, "warehouse": 1})):
        folder = tmp_path / str(first)
        folder.mkdir()
        world = DeliveryWorld(folder, first=first)
        world.add()
        file = world.add(name="warehouse")
        world.destinations[1] = replace(file, definition=replace(file.definition, exclusive=True))
        await world.emit("a")
        world.start()
        await world.until(partial(_read, world, expected))
        await world.finish()
        assert {one.name: len(await world.positions(one.name)) for one in world.destinations} == {
            "crm": 1,
            "warehouse": int(first),
        }
        world.close()


async def _read(world: DeliveryWorld, expected: dict[str, int]) -> bool:
    return {name: (await world.positions(name)).get(0) for name in expected} == expected
