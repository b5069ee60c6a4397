"""What the ledger promises, and the engine on it, on SQLite and on PostgreSQL."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection, select

from pipeline.store import ledger, schema
from pipeline.store.database import Database
from pipeline.store.ledger import Change, Counts, Listed, Progress, Range, Row
from tests.properties import test_delivery_books as books
from tests.stores import prepare


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/millrace.sqlite"
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database(url)
    prepare(opened)
    yield opened
    opened.close()


def row(offset: int, state: str = "retry", *, message_id: str = "m", reason: str = "http 503") -> Row:
    return Row(offset, state, "web", "ann", message_id, 1, reason, 1_000, 2_000, b"bytes")


def progress(
    offset: int,
    *,
    epoch: int = 1,
    writes: int = 0,
    marks: Mapping[int, int] | None = None,
    span: Range | None = None,
    counts: Mapping[str, Counts] | None = None,
    rows: Sequence[Row] = (),
    changes: Sequence[Change] = (),
) -> Progress:
    return Progress(
        partition=0,
        epoch=epoch,
        writes=writes,
        offset=offset,
        marks=marks or {},
        range=span,
        counts=counts or {},
        rows=rows,
        changes=changes,
    )


def record(database: Database, *parts: Progress, at: int = 10) -> frozenset[int]:
    return database.run_sync(lambda connection: ledger.record(connection, "crm", at, parts))


def claim(database: Database) -> ledger.Claim:
    return database.run_sync(lambda connection: ledger.claim(connection, "crm", [0], 1))[0]


def counts(database: Database) -> list[tuple[object, ...]]:
    return database.read_sync(lambda c: [tuple(one) for one in c.execute(select(schema.destination_counts))])


def test_a_partition_never_read_begins_at_the_start(database: Database) -> None:
    assert claim(database) == ledger.Claim(partition=0, epoch=1, offset=0, marks={}, outstanding=[])


def test_the_next_owner_finds_position_marks_and_what_is_outstanding(database: Database) -> None:
    claim(database)
    rows = [row(3), row(4, "held"), row(5, "dead")]
    record(database, progress(9, marks={2: 7}, rows=rows))
    found = claim(database)
    assert (found.epoch, found.offset, found.marks) == (2, 9, {2: 7})
    assert found.outstanding == [
        Listed(3, "retry", "web", "ann", "m", 1, "http 503", 1_000, 2_000),
        Listed(4, "held", "web", "ann", "m", 1, "http 503", 1_000, 2_000),
    ]


def test_an_earlier_owner_writes_nothing(database: Database) -> None:
    claim(database)
    record(database, progress(5, rows=[row(3)]))
    claim(database)
    late = progress(
        9,
        epoch=1,
        counts={"web": Counts(1, 0, 0)},
        rows=[row(6)],
        changes=[Change(3, "delivered", 2, "", 5)],
        span=Range(5, 9, {}),
    )
    assert record(database, late) == {0}
    found = claim(database)
    assert (found.offset, [one.offset for one in found.outstanding], counts(database)) == (5, [3], [])


def test_a_lost_partition_does_not_take_the_others_with_it(database: Database) -> None:
    database.run_sync(lambda connection: ledger.claim(connection, "crm", [0, 1], 1))
    claim(database)
    other = replace(progress(4, counts={"web": Counts(4, 0, 0)}), partition=1)
    assert record(database, progress(9), other) == {0}
    assert counts(database) == [("crm", 1, "web", 4, 0, 0, 0, 0)]


def test_counters_add_up(database: Database) -> None:
    claim(database)
    record(database, progress(5, counts={"web": Counts(1, 2, 3), "app": Counts(1, 0, 0)}))
    record(database, progress(9, writes=1, counts={"web": Counts(10, 0, 0)}))
    assert sorted(counts(database)) == [
        ("crm", 0, "app", 1, 0, 0, 0, 0),
        ("crm", 0, "web", 11, 2, 3, 0, 0),
    ]


def test_a_write_whose_answer_was_lost_may_be_repeated(database: Database) -> None:
    claim(database)
    once = progress(5, counts={"web": Counts(5, 0, 0)}, rows=[row(3)])
    assert [record(database, once), record(database, once)] == [frozenset(), frozenset()]
    assert counts(database) == [("crm", 0, "web", 5, 0, 0, 0, 0)]
    claim(database)
    assert record(database, once) == {0}, "but not once another owner is there"


def test_a_delivered_exception_loses_its_bytes_and_a_dead_one_keeps_them(database: Database) -> None:
    claim(database)
    record(database, progress(9, rows=[row(3), row(4), row(5)]))
    changes = [Change(3, "delivered", 2, "", 50), Change(4, "dead", 3, "http 422", 60), Change(5, "retry", 2, "x", 70)]
    record(database, progress(9, writes=1, changes=changes))
    places = [(0, 3), (0, 4), (0, 5), (0, 6)]
    values = database.read_sync(lambda connection: ledger.values(connection, "crm", places))
    assert values == {(0, 4): b"bytes", (0, 5): b"bytes"}
    assert claim(database).outstanding == [Listed(5, "retry", "web", "ann", "m", 2, "x", 1_000, 70)]


def test_any_text_can_be_stored(database: Database) -> None:
    claim(database)
    record(database, progress(9, rows=[row(3, message_id="a\x00b", reason="é\x00" + "x" * 5_000)]))
    (found,) = claim(database).outstanding
    assert (found.message_id, found.reason) == ("a\ufffdb", "é\ufffd" + "x" * 998)


def test_purging_forgets_paths_and_keeps_the_books(database: Database) -> None:
    claim(database)
    record(database, progress(5, span=Range(0, 5, {}), counts={"web": Counts(2, 0, 0)}, rows=[row(3), row(4)]), at=10)
    changes = [Change(3, "delivered", 2, "", 20)]
    record(database, progress(9, writes=1, span=Range(5, 9, {}), changes=changes), at=40)
    assert database.run_sync(lambda connection: ledger.purge(connection, 30)) == 2

    def left(connection: Connection) -> tuple[list[int], list[int]]:
        batches, listed = schema.destination_batches, schema.exceptions
        return (
            list(connection.scalars(select(batches.c.next_offset))),
            list(connection.scalars(select(listed.c.offset))),
        )

    assert (database.read_sync(left), counts(database)) == (([9], [4]), [("crm", 0, "web", 2, 0, 0, 0, 0)])


def test_the_latest_state_of_a_destination_is_kept(database: Database) -> None:
    for state, reason, at in (("paused", "http 401", 5), ("delivering", "", 9)):
        database.run_sync(partial(ledger.note_state, destination="crm", state=state, reason=reason, at=at))
    found = database.read_sync(lambda c: [tuple(one) for one in c.execute(select(schema.destination_state))])
    assert found == [("crm", "delivering", 9, "")]


@pytest.mark.parametrize(("atomic", "max_batch"), [(False, 3), (True, 100)])
async def test_the_books_balance_through_faults_crashes_and_repeats(
    url: str, tmp_path: Path, atomic: bool, max_batch: int
) -> None:
    plan = [
        *(books.Emit(number % 5, "web", "track", ("retry",) * (number % 3)) for number in range(12)),
        books.Crash(3, durable=False),
        books.Poison(),
        *(books.Emit(number % 5, "app", "page" if number % 4 == 0 else "track", ()) for number in range(8)),
        books.Repeat(9),
        books.Emit(1, "web", "track", ("raise",) * 5),
        books.Emit(1, "web", "track", ("credentials", "rejected")),
        books.Crash(2, durable=True),
        books.Lose(1),
        books.Repeat(3),
        books.Stop(),
    ]
    await books.live(plan, tmp_path, atomic=atomic, max_batch=max_batch, url=url)
