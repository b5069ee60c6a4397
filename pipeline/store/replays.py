"""Replays: what is to be sent again, how far that is, and what the ledger says was sent before.

A replay is to the ledger what a destination is, under a name of its own, so positions, exceptions, counters and fencing are
the same. What was delivered before is asked of the destination's own rows and of all its earlier replays.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson
from sqlalchemy import Connection, delete, func, insert, select, update

from pipeline.store import paths, schema
from pipeline.store.ledger import OUTSTANDING

GOING: Final = ("running", "cancelling")
CANCELLED: Final = "REPLAY_CANCELLED"

_table: Final = schema.replays
_MARK: Final = ":replay-"
_OTHERS: Final = 10_000  # replays of one destination that are looked into


class Wanted(NamedTuple):
    """What a replay is to send. Times are microseconds, of when the pipeline was done with an event. Empty: all."""

    destination: str
    since: int
    until: int
    sources: Sequence[str]
    filter: str
    rate: float  # events a second
    again: bool


@dataclass(frozen=True, slots=True)
class Replay:
    """A replay as it stands. `ranges` are offsets [first, end) per partition of `resolved`."""

    id: int
    wanted: Wanted
    state: str  # running, cancelling, done, cancelled
    created_at: int
    ended_at: int | None
    ranges: Mapping[int, tuple[int, int]]
    note: str

    @property
    def name(self) -> str:
        """Its name in the ledger."""
        return f"{self.wanted.destination}{_MARK}{self.id}"


def destination_of(name: str) -> str:
    """The destination that a name in the ledger is about."""
    return name.partition(":")[0]


# ── Their lives ───────────────────────────────────────────────────────────────────────────────────────────────────


def create(connection: Connection, wanted: Wanted, ranges: Mapping[int, tuple[int, int]], at: int) -> Replay:
    """Begins a replay: from now on whoever delivers takes it up."""
    number = (connection.execute(select(func.max(_table.c.id))).scalar() or 0) + 1
    replay = Replay(number, wanted, "running", at, None, ranges, "")
    connection.execute(
        insert(_table).values(
            id=number,
            destination=wanted.destination,
            state=replay.state,
            created_at=at,
            since=wanted.since,
            until=wanted.until,
            sources=orjson.dumps(list(wanted.sources)).decode(),
            filter=wanted.filter,
            rate=wanted.rate,
            again=wanted.again,
            ranges=orjson.dumps(dict(ranges), option=orjson.OPT_NON_STR_KEYS).decode(),
            note="",
        )
    )
    positions = schema.destination_positions
    for partition, (first, _) in ranges.items():
        connection.execute(
            insert(positions).values(
                destination=replay.name, partition=partition, epoch=0, offset=first, marks="{}", updated_at=at
            )
        )
    return replay


def find(connection: Connection, number: int) -> Replay | None:
    """One replay."""
    row = connection.execute(select(_table).where(_table.c.id == number)).first()
    return None if row is None else _replay(row)


def latest(
    connection: Connection, *, destination: str | None = None, before: int | None = None, most: int = 100
) -> list[Replay]:
    """Replays, the latest first."""
    statement = select(_table).order_by(_table.c.id.desc()).limit(most)
    if destination is not None:
        statement = statement.where(_table.c.destination == destination)
    if before is not None:
        statement = statement.where(_table.c.id < before)
    return [_replay(row) for row in connection.execute(statement)]


def going(connection: Connection) -> list[Replay]:
    """Those that are not at their end."""
    return [_replay(row) for row in connection.execute(select(_table).where(_table.c.state.in_(GOING)))]


def note(connection: Connection, number: int, words: str) -> None:
    """Says why it stands still; empty: it does not."""
    connection.execute(update(_table).where(_table.c.id == number).values(note=words[:1_000]))


def cancel(connection: Connection, number: int) -> Replay | None:
    """Asks for its end. Whoever delivers it stops, and settles what waits for another try."""
    connection.execute(
        update(_table).where(_table.c.id == number, _table.c.state == "running").values(state="cancelling")
    )
    return find(connection, number)


def reopen(connection: Connection, name: str) -> None:
    """A replay, by its name in the ledger, has something to deliver again. Other names are none of ours."""
    _, mark, number = name.partition(_MARK)
    if mark:
        connection.execute(
            update(_table)
            .where(_table.c.id == int(number), _table.c.state.in_(("done", "cancelled")))
            .values(state="running", ended_at=None)
        )


def finish(connection: Connection, replay: Replay, at: int) -> bool:
    """Ends a replay that has read everything; False while something of it is outstanding, or when it is to be cancelled.

    The row is locked first: dead letters that are put back meanwhile come before or after."""
    state = connection.execute(select(_table.c.state).where(_table.c.id == replay.id).with_for_update()).scalar()
    if state != "running" or _outstanding(connection, replay.name):
        return False
    _ended(connection, replay, "done", at)
    return True


def finish_cancelled(connection: Connection, replay: Replay, at: int) -> None:
    """Ends a replay that nobody works on any more: what waits for another try counts as filtered from now on. Its epochs are
    raised, so that a former owner writes nothing."""
    positions, listed = schema.destination_positions, schema.exceptions
    connection.execute(
        update(positions).where(positions.c.destination == replay.name).values(epoch=positions.c.epoch + 1)
    )
    waiting = (listed.c.destination == replay.name, listed.c.state.in_(OUTSTANDING))
    rows = connection.execute(
        select(listed.c.partition, listed.c.source, func.count())
        .where(*waiting)
        .group_by(listed.c.partition, listed.c.source)
    ).all()
    for partition, source, number in rows:
        _filtered(connection, replay.name, partition, source, number)
    connection.execute(
        update(listed).where(*waiting).values(state="filtered", reason=CANCELLED, next_at=at, value=None)
    )
    done = progress(connection, replay)
    read = _positions(connection, replay)
    _ended(connection, replay, "cancelled", at, f"cancelled after {done.read:,} of {done.records:,} records")
    # Dead letters of it may be put back: it then goes on for them, and not further.
    ranges = {
        number: [first, max(first, min(read.get(number, first), end))] for number, (first, end) in replay.ranges.items()
    }
    connection.execute(
        update(_table)
        .where(_table.c.id == replay.id)
        .values(ranges=orjson.dumps(ranges, option=orjson.OPT_NON_STR_KEYS).decode())
    )


def _filtered(connection: Connection, name: str, partition: int, source: str, number: int) -> None:
    counts = schema.destination_counts
    key = (counts.c.destination == name, counts.c.partition == partition, counts.c.source == source)
    done = connection.execute(update(counts).where(*key).values(filtered=counts.c.filtered + number))
    if not done.rowcount:
        connection.execute(
            insert(counts).values(
                destination=name, partition=partition, source=source, delivered=0, filtered=number, dead=0
            )
        )


def _ended(connection: Connection, replay: Replay, state: str, at: int, words: str = "") -> None:
    connection.execute(update(_table).where(_table.c.id == replay.id).values(state=state, ended_at=at, note=words))
    states = schema.destination_state
    connection.execute(delete(states).where(states.c.destination == replay.name))


def _outstanding(connection: Connection, name: str) -> bool:
    listed = schema.exceptions
    statement = select(listed.c.offset).where(listed.c.destination == name, listed.c.state.in_(OUTSTANDING)).limit(1)
    return connection.execute(statement).first() is not None


def _replay(row: Any) -> Replay:
    wanted = Wanted(
        row.destination, row.since, row.until, orjson.loads(row.sources), row.filter, row.rate, bool(row.again)
    )
    ranges = {int(number): (first, end) for number, (first, end) in orjson.loads(row.ranges).items()}
    return Replay(row.id, wanted, row.state, row.created_at, row.ended_at, ranges, row.note)


# ── How far they are ──────────────────────────────────────────────────────────────────────────────────────────────


class Progress(NamedTuple):
    """How far a replay is: records of the log read and in all, and what became of events."""

    read: int
    records: int
    delivered: int
    filtered: int
    dead: int
    purged: int
    pending: int
    reasons: Mapping[str, int]  # why events were filtered, as far as details are kept


def progress(connection: Connection, replay: Replay) -> Progress:
    """How far it is."""
    counts, batches = schema.destination_counts, schema.destination_batches
    read = _positions(connection, replay)
    names = ("delivered", "filtered", "dead", "redriven", "purged")
    delivered, filtered, died, redriven, purged = (
        int(one or 0)
        for one in connection.execute(
            select(*(func.sum(counts.c[name]) for name in names)).where(counts.c.destination == replay.name)
        ).one()
    )
    listed = schema.exceptions
    pending = connection.execute(
        select(func.count()).where(listed.c.destination == replay.name, listed.c.state.in_(OUTSTANDING))
    ).scalar()
    reasons: dict[str, int] = {}
    for (runs,) in connection.execute(select(batches.c.filtered).where(batches.c.destination == replay.name)):
        for reason, spans in orjson.loads(runs).items():
            reasons[reason] = reasons.get(reason, 0) + sum(count for _, count in spans)
    return Progress(
        read=sum(max(0, min(read.get(p, first), end) - first) for p, (first, end) in replay.ranges.items()),
        records=sum(end - first for first, end in replay.ranges.values()),
        delivered=delivered,
        filtered=filtered,
        dead=died - redriven - purged,
        purged=purged,
        pending=int(pending or 0),
        reasons=reasons,
    )


def _positions(connection: Connection, replay: Replay) -> dict[int, int]:
    positions = schema.destination_positions
    rows = connection.execute(
        select(positions.c.partition, positions.c.offset).where(positions.c.destination == replay.name)
    )
    return {row.partition: row.offset for row in rows}


def state_of(connection: Connection, replay: Replay) -> tuple[str, str]:
    """How its deliveries fare, as of a destination: the state and the reason."""
    states = schema.destination_state
    row = connection.execute(select(states).where(states.c.destination == replay.name)).first()
    return ("delivering", "") if row is None else (row.state, row.reason)


# ── What was sent before ──────────────────────────────────────────────────────────────────────────────────────────


class History:
    """What the ledger says of offsets [first, end) of a partition, at a replay's destination and in its other replays."""

    def __init__(self, connection: Connection, replay: Replay, partition: int, first: int, end: int) -> None:
        others = latest(connection, destination=replay.wanted.destination, most=_OTHERS)
        spans = {one.name: one.ranges[partition] for one in others if one.id != replay.id and partition in one.ranges}
        self._begins = {name: span[0] for name, span in spans.items() if span[0] < end and first < span[1]}
        self._names = (replay.wanted.destination, *self._begins)
        positions = schema.destination_positions
        rows = connection.execute(
            select(positions.c.destination, positions.c.offset).where(
                positions.c.destination.in_(self._names), positions.c.partition == partition
            )
        )
        self._positions = {row.destination: row.offset for row in rows}
        self._listed = paths.exceptions_between(connection, self._names, partition, first, end)
        self._batches: dict[str, list[paths.Batch]] = {}
        for one in paths.batches_between(connection, self._names, partition, first, end):
            self._batches.setdefault(one.destination, []).append(one)

    def outcomes(self, offset: int) -> Iterator[paths.Outcome]:
        """Where the event at `offset` stands: at the destination, then in each replay that has come past it."""
        for name in self._names:
            position = self._positions.get(name)
            begin = self._begins.get(name)
            if begin is None or (position is not None and begin <= offset < position):
                yield paths.outcome(offset, position, self._listed.get((name, offset)), self._batch(name, offset))

    def _batch(self, name: str, offset: int) -> paths.Batch | None:
        batches = self._batches.get(name, ())
        at = bisect_right(batches, offset, key=lambda one: one.first) - 1
        return batches[at] if at >= 0 and offset < batches[at].next else None
