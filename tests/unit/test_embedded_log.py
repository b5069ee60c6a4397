"""What only the embedded log promises: it survives torn writes, kills, full disks and several processes at once."""

import asyncio
import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest
from structlog.testing import capture_logs

from pipeline.log.contract import MAX_RECORD_BYTES, Record, Retention, drafts_of
from pipeline.log.embedded import EmbeddedLog, open_embedded
from pipeline.log.embedded.frame import POSITION_MASK, encode_frame, frame_at, is_intact, packed, segment_of
from pipeline.log.embedded.groups import assignment
from pipeline.log.embedded.journal import PIECE, SIZEABLE, ZERO_AHEAD, Journal
from pipeline.log.embedded.reader import Cursor, Finder, read_forward
from pipeline.log.embedded.writer import MAX_IN_FLIGHT
from schemas.errors import ConfigError, Unavailable
from schemas.topics import EVENTS

KEPT = Retention()
SMALL_SEGMENTS = Retention(bytes=1 << 20)  # of 128 KiB


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "log"


def record(value: bytes, timestamp: int = 1) -> Record:
    return Record(b"k", value, timestamp)


@contextmanager
def journal(folder: Path, *, partitions: int = 1, retention: Retention = KEPT) -> Iterator[Journal]:
    opened = Journal(folder, partitions=partitions, retention=retention)
    try:
        yield opened
    finally:
        opened.close()


def commit(opened: Journal, *values: bytes) -> None:
    opened.commit([packed([drafts_of([record(value) for value in values]).rows])])


def values(opened: Journal) -> list[bytes]:
    return [one.value for one in read_forward(opened, 0, 0, opened.first().tail.at, 1 << 30, 1 << 30)]


async def all_values(log: EmbeddedLog, partition: int = 0) -> list[bytes]:
    found: list[bytes] = []
    offset = 0
    while batch := await log.read(EVENTS, partition, offset):
        assert [one.offset for one in batch.records] == list(range(offset, batch.next_offset))
        found += [one.value for one in batch.records]
        offset = batch.next_offset
    return found


# ── Torn writes ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def torn(tmp_path: Path) -> tuple[Path, int, int]:
    """A journal with three commits, the file as a machine leaves it that loses power; where the last commit is in it."""
    folder = tmp_path / "whole"
    with journal(folder, retention=SMALL_SEGMENTS) as opened:
        commit(opened, b"one", b"two")
        commit(opened, b"three")
        start = opened.end & POSITION_MASK
        commit(opened, b"four", b"five")
        end = opened.end & POSITION_MASK
    return folder, start, end


def copied(folder: Path, name: str) -> Path:
    """Its state belongs to the original; the copy has to make do with the segments, as after a restart of the machine."""
    target = folder.parent / name
    shutil.copytree(folder, target)
    return target


def damage(folder: Path, at: int, new: bytes) -> None:
    with next(folder.glob("*.segment")).open("r+b") as file:
        file.seek(at)
        file.write(new)


def test_a_last_write_torn_at_any_byte_leaves_what_came_before_and_appends_go_on(
    torn: tuple[Path, int, int],
) -> None:
    whole, start, end = torn
    for at in range(start, end - 8):  # the last bytes are padding, zero whether written or not
        folder = copied(whole, "torn")
        damage(folder, at, bytes(end - at))
        with journal(folder, retention=SMALL_SEGMENTS) as opened:
            lost = values(opened) == [b"one", b"two", b"three"]
            commit(opened, b"six")
            assert lost, f"torn at {at}"
            assert values(opened) == [b"one", b"two", b"three", b"six"], f"torn at {at}"
        with journal(folder, retention=SMALL_SEGMENTS) as opened:
            assert values(opened) == [b"one", b"two", b"three", b"six"], f"torn at {at}, opened again"
        shutil.rmtree(folder)


def test_a_last_write_with_any_byte_wrong_is_left_out(torn: tuple[Path, int, int]) -> None:
    whole, start, end = torn
    raw = next(whole.glob("*.segment")).read_bytes()
    for at in range(start, end):
        folder = copied(whole, "wrong")
        damage(folder, at, bytes((raw[at] ^ 0x5A,)))
        with journal(folder, retention=SMALL_SEGMENTS) as opened:
            commit(opened, b"six")
            assert values(opened) == [b"one", b"two", b"three", b"six"], f"wrong at {at}"
        shutil.rmtree(folder)


def test_a_segment_cut_off_at_any_byte_of_the_last_write_leaves_what_came_before(torn: tuple[Path, int, int]) -> None:
    whole, start, end = torn
    for at in range(start, end):
        folder = copied(whole, "cut")
        os.truncate(next(folder.glob("*.segment")), at)
        with journal(folder, retention=SMALL_SEGMENTS) as opened:
            commit(opened, b"six")
            assert values(opened) == [b"one", b"two", b"three", b"six"], f"cut at {at}"
        shutil.rmtree(folder)


def test_a_whole_copy_of_the_folder_has_everything(torn: tuple[Path, int, int]) -> None:
    with journal(copied(torn[0], "copy")) as opened:
        assert values(opened) == [b"one", b"two", b"three", b"four", b"five"]


def test_a_torn_header_of_a_new_segment_leaves_the_segment_before(folder: Path) -> None:
    with journal(folder) as opened:
        commit(opened, b"one")
    restarted = copied(folder, "restarted")
    (restarted / "0000000002.segment").write_bytes(b"MRLOG\0\0\1 and no more")
    with journal(restarted) as opened:
        commit(opened, b"two")
        assert values(opened) == [b"one", b"two"]


def test_bytes_that_a_killed_writer_did_not_publish_are_overwritten(folder: Path) -> None:
    with journal(folder) as opened:
        commit(opened, b"one")
        tail = opened.tail()
        buffers, _ = encode_frame(
            packed([drafts_of([record(b"never acknowledged, and longer than the next one")]).rows]), tail, 1
        )
        damage(folder, tail.at & POSITION_MASK, b"".join(buffers))
        assert values(opened) == [b"one"]
        commit(opened, b"two")
        assert values(opened) == [b"one", b"two"]
    with journal(copied(folder, "restarted")) as opened:
        assert values(opened) == [b"one", b"two"]


def test_a_large_frame_grows_its_segment_by_itself_and_a_small_one_makes_room_for_many(folder: Path) -> None:
    large, small = os.urandom(SIZEABLE + PIECE // 2), b"small"
    ends, sizes = [], []
    with journal(folder) as opened:
        for value in (large, small, large):
            commit(opened, value)
            ends.append(opened.end & POSITION_MASK)
            sizes.append(opened.path(1).stat().st_size)
    assert sizes == [ends[0], ends[0] + ZERO_AHEAD, ends[0] + ZERO_AHEAD]
    with journal(folder) as opened:
        assert values(opened) == [large, small, large]


def test_a_frame_left_over_behind_the_last_one_is_not_taken_for_the_next(folder: Path) -> None:
    """Two frames that were never acknowledged; the first is overwritten by one of the same length, the second is whole."""
    with journal(folder) as opened:
        tail = opened.tail()
        first, after_first = encode_frame(packed([drafts_of([record(b"lost 1")]).rows]), tail, 1)
        second, _ = encode_frame(packed([drafts_of([record(b"lost 2")]).rows]), after_first, 1)
        damage(folder, tail.at & POSITION_MASK, b"".join((*first, *second)))
        commit(opened, b"kept 1")
        assert opened.end == after_first.at
    with journal(copied(folder, "restarted")) as opened:
        commit(opened, b"kept 2")
        assert values(opened) == [b"kept 1", b"kept 2"]


def test_a_frame_is_one_only_in_the_place_that_it_was_written_for(folder: Path) -> None:
    with journal(folder) as opened:
        tail = opened.tail()
    whole = b"".join(encode_frame(packed([drafts_of([record(b"one")]).rows]), tail, 1)[0])
    found = frame_at(whole, 0, tail.at)
    assert found is not None
    assert is_intact(found, whole, 0)
    assert not is_intact(found, whole[:-1], 0)
    assert [frame_at(whole, 0, at) for at in (tail.at - 8, tail.at + found.length)] == [None, None]


def test_a_frame_that_was_whole_when_the_machine_died_is_taken(folder: Path) -> None:
    with journal(folder) as opened:
        commit(opened, b"one")
        tail = opened.tail()
        buffers, _ = encode_frame(packed([drafts_of([record(b"two")]).rows]), tail, 1)
    restarted = copied(folder, "restarted")
    damage(restarted, tail.at & POSITION_MASK, b"".join(buffers))
    with journal(restarted) as opened:
        assert values(opened) == [b"one", b"two"]


def test_a_state_torn_by_a_kill_is_made_good_by_the_next_writer(folder: Path) -> None:
    """The writer died after it had written its slot and before it moved the word that readers poll."""
    with journal(folder) as opened:
        commit(opened, b"one")
        before = (folder / "state").read_bytes()[64:72]
        commit(opened, b"two")
    with (folder / "state").open("r+b") as file:
        file.seek(64)
        file.write(before)
    with journal(folder) as opened:
        assert values(opened) == [b"one"]
        commit(opened, b"three")
        assert values(opened) == [b"one", b"two", b"three"]


def test_a_damaged_record_is_an_error_that_names_the_file_and_never_wrong_data(folder: Path) -> None:
    with journal(folder) as opened:
        commit(opened, b"one")
        at = opened.end & POSITION_MASK
        commit(opened, b"two")
        damage(folder, at + 60, b"\xff")
        with pytest.raises(Unavailable, match=rf"0000000001\.segment: damaged at byte {at}: .*restore"):
            values(opened)


# ── Kills ─────────────────────────────────────────────────────────────────────────────────────────────────────────

APPENDER = """
import asyncio, sys
from pathlib import Path
from pipeline.log.contract import Record, Retention
from pipeline.log.embedded import open_embedded

async def one(log, key, first, count):
    for n in range(first, first + count):
        await log.append("events", [Record(key.encode(), b"%s %d" % (key.encode(), n), 1)])
        sys.stdout.write(f"{key} {n}\\n")
        sys.stdout.flush()

async def main(folder, key, first, count):
    async with open_embedded(Path(folder), partitions=1, retention=Retention(bytes=4 << 20)) as log:
        print("open", flush=True)
        await asyncio.gather(*(one(log, f"{key}{k}", first, count) for k in range(8)))

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
"""


def start_appender(folder: Path, key: str, first: int, count: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", APPENDER, str(folder), key, str(first), str(count)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert started.stdout is not None
    assert started.stdout.readline() == b"open\n"
    return started


async def test_whatever_a_killed_process_had_acknowledged_is_there_once_and_in_order(folder: Path) -> None:
    acknowledged: list[bytes] = []
    for life in range(6):
        process = start_appender(folder, "k", life * 1_000_000, 1_000_000)
        assert process.stdout is not None
        acknowledged += [process.stdout.readline().strip() for _ in range(random.randrange(1, 300))]
        process.send_signal(signal.SIGKILL)
        acknowledged += [
            line.strip() for line in process.stdout.read().splitlines(keepends=True) if line.endswith(b"\n")
        ]
        process.wait()
        process.stdout.close()

    async with open_embedded(folder, partitions=1, retention=KEPT) as log:
        found = await all_values(log)
    async with open_embedded(copied(folder, "restarted"), partitions=1, retention=KEPT) as log:
        assert (await all_values(log))[: len(found)] == found

    assert len(found) == len(set(found))
    assert set(acknowledged) <= set(found)
    assert_in_order(found)


def assert_in_order(found: Sequence[bytes]) -> None:
    last: dict[bytes, int] = {}
    for value in found:
        key, n = value.split()
        assert int(n) > last.get(key, -1)
        last[key] = int(n)


def test_writers_that_take_turns_follow_each_other_from_segment_to_segment(folder: Path) -> None:
    with journal(folder, retention=SMALL_SEGMENTS) as one, journal(folder, retention=SMALL_SEGMENTS) as other:
        written = [b"%06d" % number + bytes(30_000) for number in range(30)]
        for number, value in enumerate(written):
            commit((one, other)[number // 3 % 2], value)
        assert segment_of(one.end) > 5
        assert values(one) == values(other) == written


async def test_two_processes_append_to_one_topic_at_once(folder: Path) -> None:
    both = [start_appender(folder, key, 0, 100) for key in "ab"]
    async with open_embedded(folder, partitions=1, retention=KEPT) as log:
        async with log.subscribe(EVENTS, group="g") as subscription, asyncio.timeout(60):
            seen: list[bytes] = []
            async for batches in subscription:
                seen += [one.value for batch in batches for one in batch.records]
                if len(seen) == 1_600:
                    break
        for process in both:
            process.communicate()
        found = await all_values(log)

    assert [process.returncode for process in both] == [0, 0]
    assert seen == found
    assert sorted(found) == sorted(
        b"%s%d %d" % (key, k, n) for key in (b"a", b"b") for k in range(8) for n in range(100)
    )
    assert_in_order(found)


MEMBER = """
import asyncio, sys
from pathlib import Path
from pipeline.log.contract import Retention
from pipeline.log.embedded import open_embedded

async def main():
    async with open_embedded(Path(sys.argv[1]), partitions=4, retention=Retention()) as log:
        async with log.subscribe("events", group="g") as subscription:
            async for _ in subscription:
                print(sorted(subscription.assigned), file=sys.stderr, flush=True)

asyncio.run(main())
"""


async def test_the_partitions_of_a_killed_member_are_taken_over(folder: Path) -> None:
    async with open_embedded(folder, partitions=4, retention=KEPT) as log:
        await log.append(EVENTS, [Record(b"%d" % n, b"v", 1) for n in range(100)])
        command = [sys.executable, "-c", MEMBER, str(folder)]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        assert process.stderr is not None
        assert await asyncio.to_thread(process.stderr.readline) == b"[0, 1, 2, 3]\n"
        async with log.subscribe(EVENTS, group="g") as subscription, asyncio.timeout(30):
            batches = aiter(subscription)
            await anext(batches)
            shared = subscription.assigned
            process.kill()
            process.wait()
            while len(subscription.assigned) < 4:
                await anext(batches)
        process.stderr.close()

    assert len(shared) == 2


# ── A disk that does not play along ───────────────────────────────────────────────────────────────────────────────


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """What a full disk looks like: the kernel takes a part of a write and refuses the rest."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_full_disk_refuses_appends_says_what_to_do_and_takes_them_again_when_there_is_space(
    folder: Path,
) -> None:
    async with open_embedded(folder, partitions=1, retention=KEPT) as log:
        await log.append(EVENTS, [record(b"one")])
        with no_file_larger_than(5 << 20):
            for _ in range(2):
                with pytest.raises(Unavailable, match=r"no space left for the log .* make room"):
                    await log.append(EVENTS, [record(bytes(1_000_000)) for _ in range(8)])
            await log.append(EVENTS, [record(b"two, small enough")])
        await log.append(EVENTS, [record(b"three")])
        assert await all_values(log) == [b"one", b"two, small enough", b"three"]


@pytest.mark.parametrize("size", [10, 90_000], ids=["its header", "its records"])
async def test_a_disk_too_full_for_a_new_segment_loses_nothing_and_says_so_once(folder: Path, size: int) -> None:
    async with open_embedded(folder, partitions=1, retention=SMALL_SEGMENTS) as log:
        await log.append(EVENTS, [record(b"one" + bytes(100_000))])
        with capture_logs() as lines, no_file_larger_than(size):
            for _ in range(3):
                with pytest.raises(Unavailable):
                    await log.append(EVENTS, [record(b"two" + bytes(100_000))])
        assert [line["event"] for line in lines] == ["log appends failing"]
        await log.append(EVENTS, [record(b"three")])
        assert [value[:5] for value in await all_values(log)] == [b"one\0\0", b"three"]
    async with open_embedded(copied(folder, "restarted"), partitions=1, retention=KEPT) as log:
        assert [value[:5] for value in await all_values(log)] == [b"one\0\0", b"three"]


async def test_after_a_failed_sync_nothing_is_acknowledged_and_the_next_append_goes_to_a_new_segment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system may have thrown the pages away and says so once only: the same place must not be trusted again."""

    def fails(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    async with open_embedded(folder, partitions=1, retention=KEPT) as log:
        await log.append(EVENTS, [record(b"one")])
        with monkeypatch.context() as broken:
            broken.setattr(os, "fdatasync", fails)
            with pytest.raises(Unavailable, match=r"Input/output error.* check the disk"):
                await log.append(EVENTS, [record(b"two")])
        await log.append(EVENTS, [record(b"three")])

        assert await all_values(log) == [b"one", b"three"]
        assert sorted(path.name for path in (folder / EVENTS).glob("*.segment")) == [
            "0000000001.segment",
            "0000000002.segment",
        ]


# ── Opening ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_folder_of_a_newer_version_is_refused_and_left_alone(folder: Path) -> None:
    async with open_embedded(folder, partitions=1, retention=KEPT):
        pass
    meta = folder / EVENTS / "meta.json"
    meta.write_bytes(orjson.dumps({"format": 2, "partitions": 1}))
    with pytest.raises(ConfigError, match=r"meta\.json: the log has format 2.*start the newer version"):
        async with open_embedded(folder, partitions=1, retention=KEPT):
            pass
    assert orjson.loads(meta.read_bytes()) == {"format": 2, "partitions": 1}


async def test_a_description_that_is_none_is_refused(folder: Path) -> None:
    (folder / EVENTS).mkdir(parents=True)
    (folder / EVENTS / "meta.json").write_bytes(b"{}")
    with pytest.raises(ConfigError, match=r"meta\.json: not the description of a log topic"):
        async with open_embedded(folder, partitions=1, retention=KEPT):
            pass


async def test_a_folder_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    folder = tmp_path / "file" / "log"
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"log folder .*: Not a directory: make it a folder"):
        async with open_embedded(folder, partitions=1, retention=KEPT):
            pass


async def test_processes_that_make_the_folder_at_once_agree(folder: Path) -> None:
    everyone = [asyncio.to_thread(start_appender, folder, "k", 0, 1) for _ in range(4)]
    processes = await asyncio.gather(*everyone)
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0] * 4
    async with open_embedded(folder, partitions=3, retention=KEPT) as log:
        assert await log.bounds(EVENTS) == {0: (0, 32)}


async def test_a_closed_log_takes_no_appends(folder: Path) -> None:
    async with open_embedded(folder, partitions=1, retention=KEPT) as log:
        pass
    with pytest.raises(Unavailable, match="closed"):
        await log.append(EVENTS, [record(b"late")])


async def test_an_unknown_topic_is_the_callers_mistake(folder: Path) -> None:
    async with open_embedded(folder, partitions=1, retention=KEPT) as log:
        with pytest.raises(ValueError, match="unknown topic 'event'; there are events, resolved"):
            await log.append("event", [record(b"v")])


# ── Segments, offsets and times ───────────────────────────────────────────────────────────────────────────────────


def test_every_offset_and_time_is_found_across_segments(folder: Path) -> None:
    chance = random.Random(7)
    stamps: list[list[int]] = [[], [], []]
    with journal(folder, partitions=3, retention=SMALL_SEGMENTS) as opened:
        finder = Finder(opened)
        for n in range(40):
            groups = [
                [record(bytes(3_000), n + chance.randrange(3)) for _ in range(chance.randrange(4))] for _ in stamps
            ]
            for kept, group in zip(stamps, groups, strict=True):
                kept += [one.timestamp for one in group]
            if any(groups):
                opened.commit([packed([drafts_of(group).rows for group in groups])])
        assert segment_of(opened.end) > 3
        for partition, kept in enumerate(stamps):
            for offset in range(len(kept)):
                found = read_forward(opened, partition, offset, finder.place_of(partition, offset), 1, 1)
                assert [(one.offset, one.timestamp) for one in found] == [(offset, kept[offset])]
            for timestamp in range(45):
                expected = next((i for i, stamp in enumerate(kept) if stamp >= timestamp), len(kept))
                assert finder.first_since(partition, timestamp) == expected


def test_a_record_from_the_future_does_not_hide_the_times_after_it_was_removed(folder: Path) -> None:
    with journal(folder, retention=SMALL_SEGMENTS) as opened:
        for timestamp in (1_000_000, *range(20)):
            opened.commit([packed([drafts_of([record(bytes(100_000), timestamp)]).rows])])
        earliest = opened.first().tail.next_offsets[0]
        assert earliest > 5
        assert Finder(opened).first_since(0, 18) == 19


def test_segments_past_their_age_go_even_when_nobody_appends(folder: Path) -> None:
    with journal(folder, retention=Retention(seconds=3_600)) as opened:
        commit(opened, b"old")
        assert opened.expire(time.time() + 3_000) == 0
        assert opened.expire(time.time() + 4_000) == 1
        assert values(opened) == []
        commit(opened, b"new")
        assert [one.offset for one in read_forward(opened, 0, 0, opened.first().tail.at, 9, 9)] == [1]


def test_a_cursor_whose_segment_was_removed_finishes_that_segment_or_says_that_it_is_gone(folder: Path) -> None:
    with journal(folder, retention=SMALL_SEGMENTS) as opened:
        commit(opened, bytes(1_000))
        cursor = Cursor(opened, opened.first().tail.at)
        assert cursor.next() is not None
        for _ in range(30):
            commit(opened, bytes(100_000))
        finder = Finder(opened)
        cursor.close()
        found = read_forward(opened, 0, 0, finder.place_of(0, 0), 1, 1)
        assert found[0].offset == opened.first().tail.next_offsets[0] > 0


async def test_a_subscription_overtaken_by_retention_goes_on_at_the_earliest(folder: Path) -> None:
    async with open_embedded(folder, partitions=1, retention=SMALL_SEGMENTS) as log:
        await log.append(EVENTS, [record(b"first")])
        async with log.subscribe(EVENTS, group="g", max_records=1) as subscription, asyncio.timeout(30):
            batches = aiter(subscription)
            await anext(batches)
            for _ in range(40):
                await log.append(EVENTS, [record(bytes(100_000))])
            seen = [(await anext(batches))[0].records[0].offset]
            while seen[-1] < 40:
                seen.append((await anext(batches))[0].records[0].offset)
        earliest = (await log.bounds(EVENTS))[0][0]

    assert seen[-(41 - earliest) :] == list(range(earliest, 41))
    assert seen == sorted(set(seen))


async def test_a_position_beyond_the_log_begins_at_the_earliest(folder: Path) -> None:
    """The log was removed and the database kept: skipping until the old position would lose events."""

    async def start(partitions: Sequence[int]) -> dict[int, int]:
        return {0: 1_000}

    async with open_embedded(folder, partitions=1, retention=KEPT) as log:
        await log.append(EVENTS, [record(b"one")])
        async with log.subscribe(EVENTS, group="g", start=start) as subscription:
            batches = await anext(aiter(subscription))
    assert [one.value for one in batches[0].records] == [b"one"]


async def test_an_append_larger_than_everything_allowed_in_flight_goes_alone(folder: Path) -> None:
    value = bytes(1 << 19)
    count = 2 * MAX_IN_FLIGHT // len(value)
    async with open_embedded(folder, partitions=1, retention=KEPT) as log:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(2):
                tasks.create_task(log.append(EVENTS, [record(value)] * count))
        assert await log.bounds(EVENTS) == {0: (0, 2 * count)}


async def test_an_append_that_was_cancelled_while_it_waited_holds_nobody_up(folder: Path) -> None:
    value = bytes(MAX_RECORD_BYTES - 64)
    async with open_embedded(folder, partitions=1, retention=KEPT) as log:
        appends = [asyncio.create_task(log.append(EVENTS, [record(value)])) for _ in range(100)]
        await asyncio.sleep(0)
        for append in appends[::2]:
            append.cancel()
        await asyncio.gather(*appends, return_exceptions=True)
        async with asyncio.timeout(30):
            await log.append(EVENTS, [record(value)] * 40)
        done = sum(1 for append in appends if not append.cancelled())
        assert done >= 50


# ── Groups ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("members", "partitions"), [(1, 8), (3, 8), (8, 8), (9, 8), (5, 1)])
def test_every_partition_has_one_owner_and_shares_differ_by_at_most_one(members: int, partitions: int) -> None:
    names = [f"member-{n}" for n in range(members)]
    shares = [assignment(names, name, partitions) for name in names]
    assert sorted(partition for share in shares for partition in share) == list(range(partitions))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


async def test_a_group_may_have_any_name(folder: Path) -> None:
    names = ["destination:acme/eu", "..", "größe", "a b"]
    async with open_embedded(folder, partitions=1, retention=KEPT) as log:
        await log.append(EVENTS, [record(b"v")])
        for name in names:
            async with log.subscribe(EVENTS, group=name) as subscription:
                await subscription.commit(await anext(aiter(subscription)))
        assert [await log.committed(EVENTS, name) for name in names] == [{0: 1}] * 4
    assert len(list((folder / EVENTS / "groups").iterdir())) == 4


async def test_a_committed_offset_that_a_power_failure_spoilt_counts_as_none(folder: Path) -> None:
    async with open_embedded(folder, partitions=1, retention=KEPT) as log:
        await log.append(EVENTS, [record(b"v")])
        async with log.subscribe(EVENTS, group="g") as subscription:
            await subscription.commit(await anext(aiter(subscription)))
        (folder / EVENTS / "groups" / "g" / "0.offset").write_bytes(b"\xff" * 16)
        assert await log.committed(EVENTS, "g") == {}
