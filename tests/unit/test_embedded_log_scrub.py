"""Erasing records from the files of the embedded log."""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from zlib import crc32

import pytest

from pipeline.log import Record, open_log
from pipeline.log.contract import Erasable, Log, Retention
from pipeline.log.embedded import scrub
from pipeline.log.embedded.journal import Journal

TOPIC = "events"
SECRET = b"mia@shop.test"
Changes = Mapping[int, tuple[bytes, bytes]]


def opened(folder: Path):
    return open_log(f"embedded://{folder}", partitions=3)


def naming(secret: bytes) -> Callable[[Sequence[tuple[int, Record]]], Changes]:
    """Erases what holds `secret`; keys go, too."""
    return lambda records: {
        number: (b"", b"gone") for number, (_, one) in enumerate(records) if secret in one.value or secret in one.key
    }


async def everything(log: Log) -> dict[int, list[Record]]:
    found: dict[int, list[Record]] = {}
    for partition in range(log.partitions(TOPIC)):
        offset = 0
        while (batch := await log.read(TOPIC, partition, offset)) is not None:
            found.setdefault(partition, []).extend(batch.records)
            offset = batch.next_offset
    return found


async def scrubbed(log: Log, secret: bytes = SECRET) -> int:
    assert isinstance(log, Erasable)
    at, erased, end = 0, 0, False
    while not end:
        at, _, more, end = await log.scrub(TOPIC, at, naming(secret), most=10_000)
        erased += more
    return erased


def bytes_on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def records(chance: random.Random, count: int) -> list[Record]:
    return [
        Record(
            b"k%d" % chance.randrange(9),
            (SECRET if chance.random() < 0.2 else b"other person!") + chance.randbytes(chance.randrange(200)),
            1_000 + number,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("seed", range(3))
async def test_what_is_erased_is_in_no_file_and_nothing_else_changes(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    async with opened(tmp_path) as log:
        for _ in range(20):
            await log.append(TOPIC, records(chance, chance.randrange(1, 40)))
        before = await everything(log)
        erased = await scrubbed(log)
        after = await everything(log)
        await log.append(TOPIC, [Record(b"k1", b"later", 5)])

    gone = [(p, one) for p, some in before.items() for one in some if SECRET in one.value]
    assert erased == len(gone) > 20
    assert after == {
        p: [one._replace(key=b"", value=b"gone") if SECRET in one.value else one for one in some]
        for p, some in before.items()
    }
    assert SECRET not in bytes_on_disk(tmp_path)
    (tmp_path / TOPIC / "state").unlink()  # as after a restart of the machine: the files alone say what is there
    async with opened(tmp_path) as log:
        assert sum(map(len, (await everything(log)).values())) == sum(map(len, before.values())) + 1
        await log.append(TOPIC, [Record(b"k1", b"after the restart", 6)])


async def test_a_second_look_erases_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await log.append(TOPIC, records(random.Random(1), 50))
        assert await scrubbed(log) > 0
        assert await scrubbed(log) == 0


@pytest.mark.parametrize("torn", ["nothing", "half", "all"])
async def test_an_overwrite_that_was_torn_is_completed_by_whoever_reads_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: str
) -> None:
    async with opened(tmp_path) as log:
        await log.append(TOPIC, [Record(b"k", SECRET + bytes(100), 1), Record(b"k", b"other", 2)])
        put = scrub._put

        def killed(path: Path, at: int, made: bytes) -> None:
            size = {"nothing": 0, "half": len(made) // 2 + 30, "all": len(made)}[torn]
            put(path, at, made[:size])
            raise KeyboardInterrupt

        journal = Journal(tmp_path / TOPIC, partitions=3, retention=Retention())
        at = journal.first().tail.at
        with monkeypatch.context() as patched:
            patched.setattr(scrub, "_put", killed)
            with pytest.raises(KeyboardInterrupt):
                journal.overwrite(at, {0: (b"", b"gone")})
        journal.close()
        if torn == "nothing":  # the frame is whole, so nobody notices before the next that opens it or erases
            assert await scrubbed(log) == 1
        [partition] = (await everything(log)).values()

    assert [one.value for one in partition] == [b"gone", b"other"]
    assert SECRET not in bytes_on_disk(tmp_path)


@pytest.mark.parametrize("seed", range(20))
def test_four_bytes_bring_a_checksum_to_where_it_was(seed: int) -> None:
    chance = random.Random(seed)
    before, wanted = chance.getrandbits(32), chance.getrandbits(32)
    assert crc32(scrub.patch(before, wanted), before) == wanted


async def test_what_takes_more_room_than_what_it_replaces_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await log.append(TOPIC, [Record(b"k", SECRET, 1)])
        before = await everything(log)
        journal = Journal(tmp_path / TOPIC, partitions=3, retention=Retention())
        with pytest.raises(ValueError, match="too many"):
            journal.overwrite(journal.first().tail.at, {0: (b"k", SECRET + bytes(20))})
        journal.close()
        assert await everything(log) == before
