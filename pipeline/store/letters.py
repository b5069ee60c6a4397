"""Dead letters in the ledger: found by cause, put back to be tried again, or given up.

A letter is a row of `exceptions` whose state is `dead`. Its destination is a name in the ledger: a destination's, or a
replay's. What a person does with letters moves the rows and the counters that they are in at once, so the books balance at
every moment. The engine never touches a dead row, so no owner of a partition is in the way.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, func, literal_column, select, tuple_, update

from pipeline.store import replays, schema

_ROWS: Final = 500  # changed by one statement
_table: Final = schema.exceptions
_DEAD: Final[ColumnElement[bool]] = literal_column("exceptions.state = 'dead'")  # no parameter: the index says the same


class Chosen(NamedTuple):
    """Which letters. None: whatever it is. Times are microseconds, of when an event died; `until` is excluded."""

    destination: str | None = None
    cause: str | None = None
    since: int | None = None
    until: int | None = None


class Group(NamedTuple):
    """Letters of one destination and cause, with the latest as the sample."""

    destination: str
    cause: str
    letters: int
    first_at: int
    last_at: int
    message_id: str
    reason: str


class Letter(NamedTuple):
    """One letter, without its bytes. `first_at`: when it was first tried, or put back."""

    destination: str
    partition: int
    offset: int
    source: str
    profile: str
    message_id: str
    attempts: int
    reason: str
    cause: str
    first_at: int
    died_at: int


class Place(NamedTuple):
    """Where an event stands in `resolved`."""

    partition: int
    offset: int


def _conditions(chosen: Chosen) -> list[ColumnElement[bool]]:
    found = [_DEAD]
    if chosen.destination is not None:
        found.append(_table.c.destination == chosen.destination)
    if chosen.cause is not None:
        found.append(_table.c.cause == chosen.cause)
    if chosen.since is not None:
        found.append(_table.c.next_at >= chosen.since)
    if chosen.until is not None:
        found.append(_table.c.next_at < chosen.until)
    return found


def groups(connection: Connection, chosen: Chosen, after: tuple[str, str] | None, most: int) -> list[Group]:
    """Letters by destination and cause, at most so many groups, beginning behind one. Counted in an index."""
    key = (_table.c.destination, _table.c.cause)
    statement = (
        select(*key, func.count(), func.min(_table.c.next_at), func.max(_table.c.next_at))
        .where(*_conditions(chosen))
        .group_by(*key)
        .order_by(*key)
        .limit(most)
    )
    if after is not None:
        statement = statement.where(tuple_(*key) > tuple_(*after))
    return [
        Group(name, cause, number, first, last, *_sample(connection, name, cause, last))
        for name, cause, number, first, last in connection.execute(statement)
    ]


def _sample(connection: Connection, destination: str, cause: str, last: int) -> tuple[str, str]:
    found = connection.execute(
        select(_table.c.message_id, _table.c.reason)
        .where(*_conditions(Chosen(destination, cause)), _table.c.next_at == last)
        .limit(1)
    ).one()
    return found.message_id, found.reason


_LETTER: Final = (
    _table.c.destination, _table.c.partition, _table.c.offset, _table.c.source, _table.c.profile, _table.c.message_id,
    _table.c.attempts, _table.c.reason, _table.c.cause, _table.c.first_at, _table.c.next_at,
)  # fmt: skip


def of_message(connection: Connection, message_id: str, most: int) -> list[tuple[Letter, bytes | None]]:
    """What is dead of an event, at each destination, with the record's bytes."""
    statement = select(*_LETTER, _table.c.value).where(_DEAD, _table.c.message_id == message_id)
    rows = connection.execute(statement.order_by(_table.c.destination).limit(most))
    return [(Letter(*row[:-1]), None if row.value is None else bytes(row.value)) for row in rows]


class Sample(NamedTuple):
    """An exchange that ended in a cause, as people may see it: JSON. `answer` is empty when there was none."""

    at: int
    message_id: str
    request: str
    answer: str


def sample_of(connection: Connection, destination: str, cause: str) -> Sample | None:
    """The latest exchange of a destination that ended in this cause."""
    table = schema.destination_samples
    row = connection.execute(
        select(table.c.at, table.c.message_id, table.c.request, table.c.answer)
        .where(table.c.destination == destination, table.c.code == cause)
        .order_by(table.c.at.desc())
        .limit(1)
    ).first()
    return None if row is None else Sample(*row)


def walk(
    connection: Connection, destination: str, chosen: Chosen, after: Place | None, *, most: int, looked: int
) -> tuple[list[Letter], Place | None]:
    """A destination's letters that are chosen, in the order of their places behind `after`: at most `most`, among at most
    `looked` looked at. Returns where to go on; None at the end."""
    place = (_table.c.partition, _table.c.offset)
    statement = select(*_LETTER).where(_DEAD, _table.c.destination == destination)
    if after is not None:
        statement = statement.where(tuple_(*place) > tuple_(*after))
    found: list[Letter] = []
    seen, last = 0, after
    for row in connection.execute(statement.order_by(*place).limit(looked)):
        letter = Letter(*row)
        seen, last = seen + 1, Place(letter.partition, letter.offset)
        if _is_chosen(letter, chosen):
            found.append(letter)
            if len(found) == most:
                return found, last
    return found, last if seen == looked else None


def _is_chosen(letter: Letter, chosen: Chosen) -> bool:
    return (
        (chosen.cause is None or letter.cause == chosen.cause)
        and (chosen.since is None or letter.died_at >= chosen.since)
        and (chosen.until is None or letter.died_at < chosen.until)
    )


def put_back(connection: Connection, destination: str, places: Sequence[Place], at: int) -> int:
    """Makes letters pending again, at their place. Whoever owns the partition takes them up. Returns how many there were.

    The time that an event may be tried for begins anew. A replay that has ended goes on for them."""
    count = _end(connection, destination, places, "redriven", {"state": "again", "first_at": at, "next_at": at})
    if count:
        replays.reopen(connection, destination)
    return count


def give_up(connection: Connection, destination: str, places: Sequence[Place], at: int) -> int:
    """Purges letters: their bytes go, what they died of stays for their path. Returns how many there were."""
    return _end(connection, destination, places, "purged", {"state": "purged", "next_at": at, "value": None})


def _end(
    connection: Connection, destination: str, places: Sequence[Place], book: str, values: dict[str, object]
) -> int:
    by_partition: dict[int, list[int]] = {}
    for partition, offset in places:
        by_partition.setdefault(partition, []).append(offset)
    total = 0
    for partition, offsets in sorted(by_partition.items()):
        moved: Counter[str] = Counter()
        for start in range(0, len(offsets), _ROWS):
            rows: Sequence[Row[tuple[str]]] = connection.execute(
                update(_table)
                .where(
                    _DEAD,
                    _table.c.destination == destination,
                    _table.c.partition == partition,
                    _table.c.offset.in_(offsets[start : start + _ROWS]),
                )
                .values(values)
                .returning(_table.c.source)
            ).all()
            moved.update(row.source for row in rows)
        _count(connection, destination, partition, book, moved)
        total += moved.total()
    return total


def _count(connection: Connection, destination: str, partition: int, book: str, moved: Counter[str]) -> None:
    counts = schema.destination_counts
    for source, number in sorted(moved.items()):
        connection.execute(
            update(counts)
            .where(counts.c.destination == destination, counts.c.partition == partition, counts.c.source == source)
            .values({book: counts.c[book] + number})
        )
