"""What becomes of a request, whatever face it came in by: accepted, appended together with its neighbours, answered.

Requests that arrive while the log is busy share the next append, so that one wake-up answers all of them.
"""

import asyncio
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import structlog

from collector.accept import Accepted, Singles, accept, accept_singles, none_of, single
from collector.body import BODY_LIMIT, decompress, too_large
from collector.exchanges import INTERNAL_ERROR, Exchange, Exchanges
from collector.headers import Authorization, KeepIp, kept_ip
from collector.ids import MessageIds
from collector.item import EVENT_LIMIT
from collector.routes import Route
from collector.sources import Gates, Policy
from pipeline.log.contract import NO_DRAFTS, Drafts, Log
from schemas.errors import Refused, Unavailable
from schemas.topics import EVENTS

log = structlog.get_logger()

WIRE_LIMIT: Final = BODY_LIMIT + 4096  # what cannot be compressed grows a little when it is
OVERHEAD: Final = 2048  # bytes that a request holds besides body and records, or the record of a call besides the body
TOGETHER: Final = 64  # calls that are looked at at once
SAME_TIME: Final = 5_000  # microseconds from the first of them to the last; all get the first one's time of receipt
GROUP_BYTES: Final = 2 << 20  # of one append, about
SIZEABLE: Final = 256 << 10  # bytes that are worth an append although another one is under way
MAX_APPENDS: Final = 2  # at once: the log has the next one when it is done with the first
GATHER_SECONDS: Final = 0.001  # for as many requests as last time; a timer of the loop takes up to twice that
SLOW_RETRY: Final = 5.0
_SLOW: Final = "the event log is slow; send again"


def utc_micros() -> int:
    return time.time_ns() // 1000


Arrived = tuple[Exchange, Route, str | None, bytes, bytes, str | None]
"""A request with its whole body: the path's route, the source that a header named, the body as it came, its Content-Encoding, and the
caller's address as far as it is kept."""


class _Group:
    """Requests that share an append: usual calls, of which there is nothing to say but their bodies' bytes by source, and others."""

    __slots__ = ("bytes", "entries", "late", "records", "since", "singles")

    def __init__(self, since: float) -> None:
        self.since = since
        self.singles: list[Exchange] = []
        self.bytes: defaultdict[str, int] = defaultdict(int)
        self.entries: list[tuple[Exchange, Accepted, int]] = []
        self.records = Drafts([], 0)
        self.late = False

    def __len__(self) -> int:
        return len(self.singles) + len(self.entries)

    def handed_over(self) -> Drafts:
        """The records. They are the log's from here on: nobody else keeps what it has copied."""
        records, self.records = self.records, NO_DRAFTS
        return records

    def exchanges(self) -> Iterator[Exchange]:
        yield from self.singles
        for exchange, _, _ in self.entries:
            yield exchange


class Intake(Exchanges):
    """Belongs to the event loop that it is used in."""

    def __init__(
        self,
        *,
        log: Log,
        sources: Mapping[str, str],
        clock: Callable[[], int],
        new_id: Callable[[], str] | None,
        append_timeout: float,
        max_in_flight_bytes: int,
        policies: Mapping[str, Policy],
        bearer: Callable[[bytes], str] | None,
        keep_ip: KeepIp = "all",
    ) -> None:
        super().__init__(clock=clock, max_in_flight_bytes=max_in_flight_bytes)
        self.sources = sources
        self._log = log
        self._gates = Gates(policies)
        self._gated = bool(self._gates)
        self._auth = Authorization(sources, bearer, self._gates.token_only)
        self._keep_ip: KeepIp = keep_ip
        self._new_id = new_id or MessageIds()
        self._append_timeout = append_timeout
        self._gathering: deque[_Group] = deque()
        self._appending: dict[_Group, None] = {}  # in the order they began
        self._tasks: set[asyncio.Task[None]] = set()
        self._usual = 1  # requests of the append before
        self._calls: list[Arrived] = []  # not looked at yet
        self._received_at = 0  # when the first of them arrived
        self._looking = False  # whether more have arrived
        self._found = False
        self._waiting: asyncio.TimerHandle | None = None  # for the usual number
        self._late = 0
        self._watchdog: asyncio.TimerHandle | None = None

    # ── A request arrives ─────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, exchange: Exchange, authorization: bytes | None, expected: int) -> str | None:
        """Before the body: who sends, and whether there is room for the `expected` bytes. Returns the source that the
        header named. Raises Refused and Unavailable."""
        source = self._auth.source(authorization)
        if source is not None:
            exchange.source = source
            if self._gated:
                self._gates.enter(source, exchange.origin)
        if expected > WIRE_LIMIT:
            raise too_large()
        if self._late:
            raise Unavailable(_SLOW, after=SLOW_RETRY)
        self.charge(exchange, expected + OVERHEAD)
        return source

    def take(
        self, exchange: Exchange, route: Route, source: str | None, wire: bytes, encoding: bytes, ip: str | None
    ) -> None:
        """Takes a whole body. Whatever happens, the exchange is answered, once the log has the events, and released."""
        now = self._clock()
        one = (exchange, route, source, wire, encoding, ip if self._keep_ip == "all" else kept_ip(ip, self._keep_ip))
        if route.type is not None and not encoding and len(wire) <= EVENT_LIMIT:
            if len(self._calls) >= TOGETHER or now - self._received_at > SAME_TIME:
                self._accept_calls()
            if not self._calls:
                self._received_at = now
            self._calls.append(one)
        else:
            self._accept_calls()
            self._accept_one(one, now)
        self._found = True
        if self._waiting is not None:
            if self._gathered() >= self._usual:
                self._look_again()
        elif not self._looking and (not self._appending or self._is_sizeable()):
            self._look_again()

    def _accept_calls(self) -> None:
        """Those that have arrived since the last time, in their order."""
        if not self._calls:
            return
        calls, self._calls = self._calls, []
        received_at = self._received_at
        try:
            taken = accept_singles(
                [(wire, route, source, ip) for _, route, source, wire, _, ip in calls],
                sources=self.sources,
                received_at=received_at,
                new_id=self._new_id,
                disabled=self._gates.disabled,
            )
        except Exception:
            log.exception("requests failed together, each is tried alone", requests=len(calls))
            taken = none_of(calls)
        if not taken.left and not self._gated:
            self._gather_singles(calls, taken)
            return
        left, usual = set(taken.left), zip(taken.sources, taken.rows, strict=True)
        for number, one in enumerate(calls):
            if number in left:
                self._accept_one(one, received_at)
            else:
                self._take(one, single(*next(usual)))

    def _accept_one(self, one: Arrived, received_at: int) -> None:
        exchange, route, source, wire, encoding, ip = one
        try:
            accepted = accept(
                decompress(wire, encoding) if encoding or len(wire) > BODY_LIMIT else wire,
                route,
                source=source,
                sources=self.sources,
                received_at=received_at,
                ip=ip,
                new_id=self._new_id,
                disabled=self._gates.disabled,
            )
        except Refused as refused:
            self.refuse(exchange, refused)
        except Exception:
            self._fail(exchange)
        else:
            self._take(one, accepted)

    def _take(self, one: Arrived, accepted: Accepted) -> None:
        exchange, _, named, wire, _, _ = one
        exchange.source = accepted.source
        try:
            if self._gated:
                self._admit(exchange, accepted, by_header=named is not None)
            if accepted.records.rows:
                self._gather(exchange, accepted, len(wire))
            else:
                self._finish(exchange, accepted, len(wire))
                self.release(exchange)
        except Refused as refused:
            self.refuse(exchange, refused)
        except Unavailable as unavailable:
            self.put_off(exchange, unavailable)

    def _admit(self, exchange: Exchange, accepted: Accepted, *, by_header: bool) -> None:
        """What `begin` could not know: the sources that the body names, and how many events it has for each."""
        counts = Counter(accepted.accepted)
        for (source, _), number in accepted.refused.items():
            counts[source] += number
        if not by_header:
            for source in counts:
                self._gates.enter_by_key(source, exchange.origin)
        for source, number in counts.items():
            self._gates.pass_events(source, number)

    # ── The log ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _gather(self, exchange: Exchange, accepted: Accepted, size: int) -> None:
        self.charge(exchange, accepted.records.size)
        group = self._group()
        group.entries.append((exchange, accepted, size))
        group.records += accepted.records
        accepted.records = NO_DRAFTS

    def _gather_singles(self, run: Sequence[Arrived], taken: Singles) -> None:
        """Their records are charged already: `OVERHEAD` has what they hold besides the bodies."""
        group = self._group()
        group.records += Drafts(taken.rows, taken.size)
        for (exchange, _, _, wire, _, _), source in zip(run, taken.sources, strict=True):
            exchange.source = source
            group.singles.append(exchange)
            group.bytes[source] += len(wire)

    def _group(self) -> _Group:
        """The one that is to be appended last."""
        if not self._gathering or self._gathering[-1].records.size > GROUP_BYTES:
            loop = asyncio.get_running_loop()
            self._gathering.append(_Group(loop.time()))
            if self._watchdog is None:
                self._watch(loop)
        return self._gathering[-1]

    def _gathered(self) -> int:
        """How many requests the next append would have."""
        return len(self._calls) + (len(self._gathering[0]) if self._gathering else 0)

    def _is_sizeable(self) -> bool:
        return bool(self._gathering) and self._gathering[0].records.size >= SIZEABLE

    def _look_again(self) -> None:
        """Before an append: a turn of the loop reads what has arrived by now."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        self._looking, self._found = True, False
        loop = asyncio.get_running_loop()
        loop.call_soon(self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Appends once no more arrive and there are as many as last time, which a busy server waits for a moment. So a quiet one
        goes on at once, and a busy one makes few and large appends: a commit costs the same for one event and for a hundred."""
        self._looking = False
        if self._is_sizeable():
            self._flush(loop)
        elif self._found:
            self._look_again()
        elif self._gathered() < self._usual:
            self._waiting = loop.call_later(GATHER_SECONDS, self._flush, loop)
        else:
            self._flush(loop)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        """Appends what was gathered. While an append is under way a few requests wait for more to come, which they do not
        pay for: the log would make them wait too."""
        self._waiting = None
        self._accept_calls()
        while self._gathering and len(self._appending) < MAX_APPENDS:
            if self._appending and self._gathering[0].records.size < SIZEABLE:
                break
            group = self._gathering.popleft()
            self._usual = len(group)
            self._appending[group] = None
            task = loop.create_task(self._append(group))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _append(self, group: _Group) -> None:
        try:
            await self._log.append(EVENTS, group.handed_over())
        except Unavailable as unavailable:
            for exchange in group.exchanges():
                self._answer_unavailable(exchange, unavailable)
        except Exception:
            log.exception("append broke", requests=len(group))
            for exchange in group.exchanges():
                self._answer(exchange, 500, INTERNAL_ERROR)
        else:
            self._finish_singles(group.singles, group.bytes, late=group.late)
            for exchange, accepted, size in group.entries:
                self._finish(exchange, accepted, size)
        finally:
            for exchange in group.exchanges():
                self.release(exchange)
            del self._appending[group]
            self._late -= group.late
            if self._gathered() and not self._looking and self._waiting is None:
                self._look_again()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Looks now and then for groups that have waited too long: far cheaper than a timer for each request. Clients are
        put off then; the append goes on and its bytes stay charged until it ends, so that no memory is lost sight of."""
        self._accept_calls()
        begun = loop.time() - self._append_timeout
        for group in (*self._appending, *self._gathering):
            if group.since > begun:
                break
            if not group.late:
                group.late = True
                self._late += 1
                for exchange in group.exchanges():
                    self._answer_unavailable(exchange, Unavailable(_SLOW, after=SLOW_RETRY))
        busy = self._appending or self._gathering
        pause = min(1.0, self._append_timeout / 4)
        self._watchdog = loop.call_later(pause, self._watch, loop) if busy else None
