"""Records on their way to the log, before any log has them."""

import pytest

from pipeline.log.contract import MAX_RECORD_BYTES, Drafts, Record, drafts_of


def test_records_in_pieces_are_records_to_whoever_looks_at_them() -> None:
    drafts = Drafts([(b"k", b"head ", memoryview(b"a body")[2:], 7), (b"l", b"whole", b"", 8)], 17)
    assert list(drafts) == [Record(b"k", b"head body", 7), Record(b"l", b"whole", 8)]
    assert (len(drafts), drafts[0], drafts[1:]) == (2, Record(b"k", b"head body", 7), [Record(b"l", b"whole", 8)])


def test_records_become_drafts_and_drafts_stay_what_they_are() -> None:
    drafts = drafts_of([Record(b"k", b"value", 7), Record(b"", b"", 8, offset=3)])
    assert drafts == Drafts([(b"k", b"value", b"", 7), (b"", b"", b"", 8)], 6)
    assert drafts_of(drafts) is drafts


def test_the_drafts_of_one_append_take_in_those_of_another() -> None:
    drafts = Drafts([], 0)
    drafts += Drafts([(b"k", b"a", b"b", 1)], 3)
    drafts += Drafts([(b"l", b"c", b"", 2)], 2)
    assert drafts == Drafts([(b"k", b"a", b"b", 1), (b"l", b"c", b"", 2)], 5)


@pytest.mark.parametrize(("sizes", "refused"), [((MAX_RECORD_BYTES - 1,) * 3, False), ((1, MAX_RECORD_BYTES), True)])
def test_one_record_is_limited_in_size_and_many_are_not(sizes: tuple[int, ...], refused: bool) -> None:
    records = [Record(b"k", bytes(size), 1) for size in sizes]
    if not refused:
        assert len(drafts_of(records)) == len(records)
        return
    with pytest.raises(ValueError, match=f"a record of {MAX_RECORD_BYTES + 1} bytes is larger than {MAX_RECORD_BYTES}"):
        drafts_of(records)
