"""What every event log promises.

- Records with one key stay in one partition, in the order they were appended.
- `append` returns when every record is durable (fsynced, or acknowledged by all in-sync replicas), else it raises
  `Unavailable`; one that raised may have written a part and may be repeated.
- A subscription is a member of a consumer group: no two live members hold one partition. What was not committed is
  delivered again, to whoever holds the partition then.
- Readers only ever see durable records. Offsets of a partition grow; they may have gaps on Kafka.
- Memory is bounded: appends wait when too much is in flight, and a subscription reads on only when asked.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, overload, runtime_checkable

MAX_RECORD_BYTES = 1_047_552  # key + value; larger ones make `append` raise ValueError. Fits a Kafka topic by default


class Record(NamedTuple):
    """One record. `timestamp` is Unix time in milliseconds; `offset` is -1 until the log has given one."""

    key: bytes
    value: bytes
    timestamp: int
    offset: int = -1


class Piece(Protocol):
    """What has bytes and a length: `bytes`, or a slice of something larger that is not copied before it is written."""

    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...


Draft = tuple[bytes, bytes, Piece, int]
"""A record on its way to the log: its key, the two pieces that its value is made of, its timestamp."""


@dataclass(slots=True)
class Drafts(Sequence[Record]):
    """Records whose values are still in pieces, so that their bytes are copied once, to where the log wants them. To everyone else
    they are records like others. `size` is the bytes of all keys and values."""

    rows: list[Draft]
    size: int

    def __iadd__(self, others: "Drafts") -> "Drafts":
        self.rows += others.rows
        self.size += others.size
        return self

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Record]:
        return (_joined(row) for row in self.rows)

    @overload
    def __getitem__(self, at: int) -> Record: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Record]: ...
    def __getitem__(self, at: int | slice) -> Record | Sequence[Record]:
        return _joined(self.rows[at]) if isinstance(at, int) else [_joined(row) for row in self.rows[at]]


NO_DRAFTS: Final = Drafts([], 0)


def _joined(row: Draft) -> Record:
    key, head, body, timestamp = row
    return Record(key, b"".join((head, body)), timestamp)


def drafts_of(records: Sequence[Record]) -> Drafts:
    """ValueError when one of them is larger than MAX_RECORD_BYTES."""
    if type(records) is Drafts:
        drafts = records
    else:
        rows: list[Draft] = [(key, value, b"", timestamp) for key, value, timestamp, _ in records]
        drafts = Drafts(rows, sum([len(row[0]) + len(row[1]) for row in rows]))
    if drafts.size > MAX_RECORD_BYTES:
        largest = max(len(key) + len(head) + len(body) for key, head, body, _ in drafts.rows)
        if largest > MAX_RECORD_BYTES:
            raise ValueError(f"a record of {largest} bytes is larger than {MAX_RECORD_BYTES}")
    return drafts


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive records of one partition, never empty. `next_offset` is where reading goes on after them."""

    topic: str
    partition: int
    records: Sequence[Record]
    next_offset: int


Start = Callable[[Sequence[int]], Awaitable[Mapping[int, int]]]
"""Called with the partitions just assigned, before any of their records is yielded; returns the offset to begin at for
those whose position the caller keeps itself. Partitions left out begin at the group's committed offset, else at the
earliest record. An offset that retention has removed becomes the earliest that is left."""


class Subscription(Protocol):
    """A member of a consumer group. One task iterates; `commit` may be called from the same task."""

    def __aiter__(self) -> AsyncIterator[Sequence[Batch]]:
        """Yields what is there, one batch per partition that has news, and waits when nothing is.

        One yield holds at most `max_records` records in all. The same record is not yielded twice to one member
        unless its partition was lost and regained in between."""
        ...

    @property
    def assigned(self) -> frozenset[int]:
        """The partitions held now; changes only while the iterator is awaited."""
        ...

    async def commit(self, batches: Sequence[Batch]) -> None:
        """Records that the group is done with these batches. PartitionLost: some are another member's now; those
        still held were committed."""
        ...


class Log(Protocol):
    """An open log. Topics exist with their partitions once the log is open."""

    async def append(self, topic: str, records: Sequence[Record]) -> None:
        """Returns when all records are durable, in order per key. Raises Unavailable; ValueError for a record larger
        than MAX_RECORD_BYTES (then nothing was written)."""
        ...

    def subscribe(
        self, topic: str, *, group: str, start: Start | None = None, max_records: int = 2_000
    ) -> AbstractAsyncContextManager[Subscription]:
        """Joins `group`; leaving the context leaves the group, so that another member takes over at once."""
        ...

    async def read(self, topic: str, partition: int, offset: int, *, max_records: int = 1_000) -> Batch | None:
        """Reads outside any group: the records at `offset` and after, or None when there is nothing (yet). An offset
        that retention has removed reads from the earliest that is left."""
        ...

    async def bounds(self, topic: str) -> Mapping[int, tuple[int, int]]:
        """Earliest offset kept and the offset the next record will get, per partition."""
        ...

    async def offset_at(self, topic: str, partition: int, timestamp: int) -> int:
        """The first offset whose record is stamped `timestamp` (Unix ms) or later; the next offset if none is."""
        ...

    async def committed(self, topic: str, group: str) -> Mapping[int, int]:
        """What the group has committed, per partition that it ever committed. Lag = bounds' next offset - this."""
        ...

    def partitions(self, topic: str) -> int:
        """How many partitions the topic has; never changes while the log is open."""
        ...


class Scrubbed(NamedTuple):
    """What one step of a scrub did. `at` is where the next one goes on; `end`: there was nothing behind it."""

    at: int
    seen: int
    erased: int
    end: bool


@runtime_checkable
class Erasable(Protocol):
    """A log whose records can be erased where they stand. Others forget by retention alone."""

    async def scrub(
        self,
        topic: str,
        at: int,
        judge: Callable[[Sequence[tuple[int, Record]]], Mapping[int, tuple[bytes, bytes]]],
        *,
        most: int = 32 << 20,
    ) -> Scrubbed:
        """Shows `judge` the durable records from the place `at` on (0: the earliest), some at a time, as (partition, record), and overwrites
        those for which it answers, by index, a key and a value, together at least four bytes shorter than what they replace. Offsets
        and all other records stay as they are, and readers see the one or the other. Durable when it returns, after about `most` bytes.
        `judge` is called on a thread of its own. Unavailable: some may be erased, call again."""
        ...

    async def place_of(self, topic: str, partition: int, offset: int) -> int:
        """Where `scrub` would find a record; the earliest place that is left when retention has removed it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Whole segments go once they are older than `seconds`, or while a topic is larger than `bytes`."""

    seconds: float = 30 * 86_400
    bytes: int = 64 << 30
