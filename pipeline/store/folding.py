"""Joins old commit rows of destinations, so that a trickle of events does not keep a row for each."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any, Final, NamedTuple

import orjson
from sqlalchemy import Connection, text

from pipeline.store import bulk, schema

_ROWS: Final = text("""
    SELECT destination, partition, next_offset, first_offset, at, filtered FROM destination_batches
    WHERE at >= :since AND at < :before ORDER BY destination, partition, next_offset
""")
_DELETE: Final = text("""
    DELETE FROM destination_batches
    WHERE destination = :destination AND partition = :partition AND next_offset = :next_offset
""")


class Commit(NamedTuple):
    """A row of `destination_batches`, in the table's order."""

    destination: str
    partition: int
    next_offset: int
    first_offset: int
    at: int
    filtered: str


def fold(connection: Connection, *, since: int, before: int, span: int) -> int:
    """Joins neighbouring commits of a partition that fall into the same `span` of time (all microseconds); the joined row
    has the time of the last. Returns the rows saved."""
    rows = [Commit(*row) for row in connection.execute(_ROWS, {"since": since, "before": before})]
    gone = 0
    for run in _runs(rows, span):
        if len(run) > 1:
            connection.execute(_DELETE, [_key(one) for one in run[:-1]])
            bulk.upsert(connection, schema.destination_batches, [join(run)])
            gone += len(run) - 1
    return gone


def join(run: Sequence[Commit]) -> Commit:
    """One commit for several neighbours: nothing of what was filtered, or why, is lost."""
    filtered: dict[str, list[list[int]]] = {}
    for one in run:
        for reason, spans in orjson.loads(one.filtered).items():
            known = filtered.setdefault(reason, [])
            for first, count in spans:
                if known and sum(known[-1]) == first:
                    known[-1][1] += count
                else:
                    known.append([first, count])
    return run[-1]._replace(first_offset=run[0].first_offset, filtered=orjson.dumps(filtered).decode())


def _runs(rows: Sequence[Commit], span: int) -> Iterator[Sequence[Commit]]:
    """Neighbours of one partition and one span of time, each row in one run."""
    number = 0
    numbers = [0]
    for before, after in pairwise(rows):
        together = before[:2] == after[:2] and before.next_offset == after.first_offset
        number += not (together and before.at // span == after.at // span)
        numbers.append(number)
    for _, run in groupby(zip(numbers, rows, strict=False), key=lambda pair: pair[0]):
        yield [row for _, row in run]


def _key(one: Commit) -> Mapping[str, Any]:
    return {"destination": one.destination, "partition": one.partition, "next_offset": one.next_offset}
