"""Old commits are joined, and nothing that they said is lost."""

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from pipeline.store import schema
from pipeline.store.bulk import insert
from pipeline.store.database import Database
from pipeline.store.folding import Commit, fold, join
from pipeline.store.paths import batches_since
from tests.stores import prepare

MINUTE = 60_000_000


def commit(first: int, end: int, at: int, partition: int = 0, **filtered: Any) -> Commit:
    return Commit("crm", partition, end, first, at, orjson.dumps(filtered).decode())


def test_neighbours_of_one_minute_become_one(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/m.sqlite")
    prepare(database)
    rows = [
        commit(0, 3, 5),
        commit(3, 7, 6, RULES=[[3, 2]]),
        commit(9, 10, 7),  # not a neighbour: 7 and 8 are missing
        commit(10, 12, MINUTE + 1),  # another minute
        commit(12, 13, 2 * MINUTE + 1),
        commit(13, 14, 2 * MINUTE + 2),  # too young
        commit(14, 15, 2, partition=1),
    ]
    database.run_sync(lambda c: insert(c, schema.destination_batches, rows))

    saved = database.run_sync(lambda c: fold(c, since=0, before=2 * MINUTE, span=MINUTE))

    left = database.read_sync(lambda c: batches_since(c, 0))
    assert saved == 1
    assert sorted((one.partition, one.first, one.next, one.at, dict(one.filtered)) for one in left) == [
        (0, 0, 7, 6, {"RULES": [[3, 2]]}),
        (0, 9, 10, 7, {}),
        (0, 10, 12, MINUTE + 1, {}),
        (0, 12, 13, 2 * MINUTE + 1, {}),
        (0, 13, 14, 2 * MINUTE + 2, {}),
        (1, 14, 15, 2, {}),
    ]
    database.close()


@given(st.lists(st.lists(st.sampled_from([None, "RULES", "CONSENT"]), min_size=1, max_size=4), min_size=1, max_size=5))
def test_every_event_keeps_its_reason(commits):
    """Each inner list is a commit: the reason that each of its events was filtered for."""
    run, offset = [], 0
    for reasons in commits:
        spans: dict[str, Any] = {}
        for number, reason in enumerate(reasons):
            if reason is not None:
                spans.setdefault(reason, []).append([offset + number, 1])
        run.append(commit(offset, offset + len(reasons), 1, **spans))
        offset += len(reasons)

    joined = join(run)

    told: dict[int, str] = {}
    for reason, spans_of in orjson.loads(joined.filtered).items():
        for first, count in spans_of:
            told |= dict.fromkeys(range(first, first + count), reason)
    assert [told.get(number) for number in range(offset)] == [reason for reasons in commits for reason in reasons]
    assert (joined.first_offset, joined.next_offset) == (0, offset)
