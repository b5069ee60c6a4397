"""Group commit: appends of many tasks, gathered while the last commit runs, made durable by one fdatasync.

Those of one turn of the loop become a frame, so that nothing but writing is left to the thread, one per topic, started by the
first append. Bytes in flight are bounded: an append waits its turn when too many are.
"""

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import structlog
from isal.isal_zlib import crc32

from pipeline.log.contract import Draft, Record, drafts_of
from pipeline.log.embedded.frame import Packed, packed
from pipeline.log.embedded.journal import Journal
from schemas.errors import Unavailable

log = structlog.get_logger()

MAX_IN_FLIGHT: Final = 16 << 20  # bytes of a topic that wait to be durable; one larger append goes alone
MAX_COMMIT: Final = 8 << 20
MAX_FRAME: Final = 1 << 20
RECORD_OVERHEAD: Final = 128  # what a record costs in memory besides its bytes


class _Append(NamedTuple):
    rows: Sequence[Draft]
    size: int
    done: asyncio.Future[None]


class _Turn(NamedTuple):
    """What one turn of the loop appended. The records themselves are gone: freed here and now their memory serves the next ones, while another
    core would have to fetch each to free it."""

    frames: Sequence[Packed]
    size: int
    done: Sequence[asyncio.Future[None]]


class Writer:
    """Appends to one journal. All methods belong to the event loop that it was made in."""

    def __init__(self, journal: Journal, published: Callable[[], None]) -> None:
        """`published` is called in the loop after each commit."""
        self._journal = journal
        self._published = published
        self._loop = asyncio.get_running_loop()
        self._appended: list[_Append] = []  # in this turn of the loop
        self._queue: queue.SimpleQueue[_Turn | None] = queue.SimpleQueue()
        self._in_flight = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._idle = asyncio.Event()
        self._idle.set()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._failing = False

    async def append(self, records: Sequence[Record]) -> None:
        """Returns when the records are durable."""
        drafts = drafts_of(records)
        if not drafts.rows:
            return
        size = drafts.size + RECORD_OVERHEAD * len(drafts.rows)
        await self._admit(size)
        if not self._appended:
            self._loop.call_soon(self._hand_over)
        done: asyncio.Future[None] = self._loop.create_future()
        self._appended.append(_Append(drafts.rows, size, done))
        del records, drafts
        await done

    async def close(self) -> None:
        """Waits for what is in flight. Later appends raise Unavailable."""
        self._closed = True
        await self._idle.wait()
        if self._thread is not None:
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)

    def _hand_over(self) -> None:
        appends, self._appended = self._appended, []
        size = sum([append.size for append in appends])
        done = [append.done for append in appends]
        try:
            frames = list(frames_of(appends, self._journal.partitions))
        except Exception as error:
            self._resolve(done, size, error)
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"log-{self._journal.folder.name}", daemon=True)
            self._thread.start()
        self._queue.put(_Turn(frames, size, done))

    async def _admit(self, size: int) -> None:
        if self._closed:
            raise Unavailable("the log is closed")
        if self._waiting or not self._fits(size):
            turn: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append((size, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # its turn came in the same moment
                    self._release(size)
                raise
        else:
            self._enter(size)

    def _fits(self, size: int) -> bool:
        return self._in_flight == 0 or self._in_flight + size <= MAX_IN_FLIGHT

    def _enter(self, size: int) -> None:
        self._in_flight += size
        self._idle.clear()

    def _release(self, size: int) -> None:
        self._in_flight -= size
        while self._waiting and (self._waiting[0][1].done() or self._fits(self._waiting[0][0])):
            waiting, turn = self._waiting.popleft()
            if not turn.done():
                self._enter(waiting)
                turn.set_result(None)
        if self._in_flight == 0:
            self._idle.set()

    # ── The thread ────────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            turns = self._gather(first)
            error: Exception | None = None
            try:
                self._journal.commit([frame for turn in turns for frame in turn.frames])
            except Exception as raised:
                error = raised
            done, size = [one for turn in turns for one in turn.done], sum([turn.size for turn in turns])
            self._loop.call_soon_threadsafe(self._resolve, done, size, error)
            del first, turns, done, error  # no bytes are kept while there is nothing to do

    def _gather(self, first: _Turn) -> Sequence[_Turn]:
        turns, size = [first], first.size
        while size < MAX_COMMIT and not self._queue.empty():
            following = self._queue.get()
            if following is None:
                self._queue.put(None)
                break
            turns.append(following)
            size += following.size
        return turns

    def _report(self, error: Exception | None) -> None:
        """One line when appends begin to fail, one when they succeed again; every unforeseen error with its trace."""
        if error is not None and not isinstance(error, Unavailable):
            log.error("log append broke", topic=self._journal.folder.name, exc_info=error)
        elif error is not None and not self._failing:
            log.error("log appends failing", topic=self._journal.folder.name, error=str(error))
        elif error is None and self._failing:
            log.info("log appends succeed again", topic=self._journal.folder.name)
        self._failing = error is not None

    def _resolve(self, appends: Sequence[asyncio.Future[None]], size: int, error: Exception | None) -> None:
        for done in appends:
            if done.done():
                continue
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)
        self._published()
        self._release(size)
        self._report(error)  # last: where the disk is full, writing a log line may fail as well


def frames_of(appends: Sequence[_Append], partitions: int) -> Iterator[Packed]:
    """Frames of about MAX_FRAME bytes, in order."""
    groups: list[list[Draft]] = [[] for _ in range(partitions)]
    size = 0
    for append in appends:
        if size and size + append.size > MAX_FRAME:
            yield packed(groups)
            groups, size = [[] for _ in range(partitions)], 0
        if append.size <= MAX_FRAME:
            for row in append.rows:
                groups[crc32(row[0]) % partitions].append(row)
            size += append.size
            continue
        for row in append.rows:
            groups[crc32(row[0]) % partitions].append(row)
            size += len(row[0]) + len(row[1]) + len(row[2]) + RECORD_OVERHEAD
            if size >= MAX_FRAME:
                yield packed(groups)
                groups, size = [[] for _ in range(partitions)], 0
    if size:
        yield packed(groups)
