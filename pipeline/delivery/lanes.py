"""Events on their way to one destination, in one lane per profile: a lane has one attempt at a time, in order.

Lanes know what is waiting, ready, in flight; they know nothing of time-outs, services or tables. Only offsets rest here for
long: an event's bytes leave memory once the ledger lists it.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from enum import Enum
from heapq import heappop, heappush
from itertools import islice
from typing import Final

from destinations.contract import EncodedEvent
from pipeline.delivery.done import NOTHING, Done, decode_done
from pipeline.delivery.fence import Awaited, Fences
from pipeline.delivery.turns import Shares, Turns
from pipeline.store.ledger import Claim, Listed
from schemas.events import Fence, Origin, Resolved, decode_resolved


class State(Enum):
    """Where an event stands. The values of those that the ledger lists are its words."""

    FRESH = "held"  # not attempted yet: listed only when it has to wait
    RETRY = "retry"
    DELIVERED = "delivered"
    DEAD = "dead"
    FILTERED = "filtered"  # by what the event became on its way

    @property
    def settled(self) -> bool:
        return self in SETTLED


SETTLED: Final = (State.DELIVERED, State.DEAD, State.FILTERED)
# Bound once: to look a member up in an Enum takes longer than the rest of a loop over events.
FRESH: Final = State.FRESH
DELIVERED: Final = State.DELIVERED
FILTERED: Final = State.FILTERED


class Item:
    """An event at a destination. `value` is there while it is fresh or in flight, and with it either what it says, `resolved`, or the
    `payload` that was made of that at once.

    What few events ever come to have is the class's until it is set: an object is made for each event."""

    value: bytes | None = None
    resolved: Resolved | None = None
    payload: EncodedEvent | None = None
    origin: Origin | None = None
    received_at = 0  # microseconds
    fences: Sequence[Fence] = ()  # those that may stand yet
    state = State.FRESH
    reason = ""
    attempts = 0
    done: Done = NOTHING  # of its mappings, when it triggers several
    faults = 0  # attempts alone in a chunk that ended in an unknown exception
    most = 1 << 30  # the largest chunk it may be in: falls when a chunk broke
    first_at = 0.0  # Unix seconds; 0 before it was attempted or listed
    next_at = 0.0
    ended_at = 0.0
    listed = False  # the ledger has a row of it
    flying = False

    def __init__(self, lane: "Lane", offset: int, source: str, message_id: str) -> None:
        self.lane = lane
        self.offset = offset
        self.source = source
        self.message_id = message_id

    def let_go(self) -> None:
        """Its bytes leave memory."""
        self.value = self.resolved = self.payload = None

    @property
    def event(self) -> Resolved | None:
        """What it says, read again where only the payload was kept; None when its bytes are gone. ValueError when they are no event."""
        if self.resolved is None and self.value is not None:
            return decode_resolved(self.value)
        return self.resolved

    @property
    def passed_over(self) -> bool:
        """It is not meant for the destination, but had to wait for fences, and what follows it with it."""
        return self.state is FRESH and self.reason != ""

    @property
    def attempted(self) -> bool:
        """An attempt at it has ended, or is under way."""
        return self.flying or self.attempts > 0 or self.state is not FRESH


class Lane:
    """A profile's events, in order. `due` is when its head may go, None while it may go or is in flight. Most are made for one event,
    and gone with it."""

    busy = False
    queued = False  # in a queue of lanes that are ready, or held by a fence
    awaits: Awaited | None = None  # what the fence is about
    due: float | None = None
    asked = False  # the service said when

    def __init__(self, partition: "Partition", profile: str, key: str | int) -> None:
        self.partition = partition
        self.profile = profile
        self.key = key
        self.queue: list[Item] = []  # mostly short; a deque begins with room for 64


class Partition:
    """A partition of `resolved` that is ours."""

    __slots__ = (
        "confirmed",
        "epoch",
        "lanes",
        "live",
        "marks",
        "number",
        "offset",
        "outstanding",
        "read",
        "seen",
        "writes",
    )

    def __init__(self, claim: Claim) -> None:
        self.number = claim.partition
        self.epoch = claim.epoch
        self.offset = claim.offset  # as written
        self.marks: dict[int, int] = dict(claim.marks)  # as written
        self.seen: dict[int, int] = dict(claim.marks)  # as read
        self.lanes: dict[str | int, Lane] = {}
        self.read = claim.offset  # as read: what is before it is in the lanes, or over
        self.outstanding = 0  # events that the ledger lists as held or waiting for a retry
        self.writes = claim.writes  # to the ledger, made so far
        self.live = True
        self.confirmed = False  # the subscription has named it as ours

    def lane(self, profile: str, offset: int) -> Lane:
        """The lane of an event; one without a profile has a lane of its own."""
        key = profile or offset
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane(self, profile, key)
        return lane


class Lanes:
    """All lanes of a destination in this process. `shares`: its sources have equal parts of what goes."""

    def __init__(self, shares: Shares | None = None) -> None:
        self.partitions: dict[int, Partition] = {}
        self.fences = Fences(self.partitions)
        self._shares = shares
        self._fresh = _queue(shares)  # ready; the head is new
        self._late = _queue(shares)  # ready; the head is listed
        self._waiting: list[tuple[float, int, Lane]] = []  # by due; entries whose lane is no longer due then are void
        self._tick = 0

    # ── Partitions ────────────────────────────────────────────────────────────────────────────────────────────────

    def install(self, claim: Claim) -> None:
        """Takes over a partition with what is outstanding in it."""
        partition = self.partitions[claim.partition] = Partition(claim)
        for listed in claim.outstanding:
            lane = partition.lane(listed.profile, listed.offset)
            item = _restored(lane, listed)
            item.fences = claim.fences.get(listed.offset, ())
            lane.queue.append(item)
        partition.outstanding = len(claim.outstanding)
        for lane in partition.lanes.values():
            head = lane.queue[0]
            if head.state is State.RETRY:
                self.wait(lane, head.next_at, asked=False)
            else:
                self._ready(lane)
        self.release(self.fences.read_on((claim.partition,)))

    def drop(self, number: int) -> None:
        """Forgets a partition that is another's now."""
        partition = self.partitions.pop(number, None)
        if partition is not None:
            partition.live = False
            self.fences.drop(number)

    @property
    def outstanding(self) -> int:
        """Events that the ledger lists as held or waiting for a retry."""
        return sum(one.outstanding for one in self.partitions.values())

    # ── In ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, *items: Item) -> None:
        """Puts new events behind those of their profiles, in order."""
        for item in items:
            lane = item.lane
            lane.queue.append(item)
            if not lane.queued and not lane.busy and lane.due is None:
                self._ready(lane)

    def put_back(self, number: int, rows: Iterable[Listed]) -> None:
        """Takes up listed events of a partition that were dead, each before the later ones of its profile that are still
        here. They go at once, whatever their profile waits for."""
        partition = self.partitions[number]
        lanes: dict[Lane, list[Item]] = {}
        for listed in rows:
            lane = partition.lane(listed.profile, listed.offset)
            lanes.setdefault(lane, []).append(_restored(lane, listed))
        for lane, items in lanes.items():
            partition.outstanding += len(items)
            lane.queue = sorted((*items, *lane.queue), key=_offset)
            lane.due = None
            if lane.awaits is not None:
                self.fences.forget(lane)
                lane.queued = False
            if not lane.queued and not lane.busy:
                self._ready(lane)
        self.resort()

    def give_back(self, lane: Lane, items: Sequence[Item]) -> None:
        """Ends a lane's attempt: `items` are those taken that are not settled, in order."""
        lane.busy = False
        if items and lane.queue and lane.queue[0].offset < items[-1].offset:  # some were put back meanwhile
            lane.queue = sorted((*items, *lane.queue), key=_offset)
        elif items:
            lane.queue[:0] = items
        if not lane.queue:
            lane.partition.lanes.pop(lane.key, None)
        elif lane.due is None:
            self._ready(lane)

    def release(self, lanes: Iterable[Lane]) -> None:
        """Looks again at lanes that were held by fences."""
        for lane in lanes:
            self._ready(lane)

    def wait(self, lane: Lane, due: float, *, asked: bool) -> None:
        """Lets a lane wait until `due`. `asked`: because the service said so."""
        lane.due = due
        lane.asked = asked
        self._tick += 1
        heappush(self._waiting, (due, self._tick, lane))

    # ── Out ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def wake(self, now: float) -> None:
        """Makes ready what is due."""
        while self._waiting and (self._void(self._waiting[0]) or self._waiting[0][0] <= now):
            entry = heappop(self._waiting)
            if not self._void(entry):
                entry[2].due = None
                self._ready(entry[2])

    def wake_all(self, now: float) -> None:
        """Makes due what waits for our own schedule only: the service is back."""
        for lane in [entry[2] for entry in self._waiting if not self._void(entry) and not entry[2].asked]:
            self.wait(lane, now, asked=False)

    def wake_next(self) -> None:
        """Makes ready the lane that would be due first, for a probe."""
        self.wake(-1.0)
        if self._waiting:
            self.wake(self._waiting[0][0])

    @property
    def next_due(self) -> float | None:
        """When the next waiting lane is due."""
        self.wake(-1.0)
        return self._waiting[0][0] if self._waiting else None

    @property
    def stuck(self) -> bool:
        """Whatever is here waits for fences: only what is read next may let it go."""
        return bool(self.fences) and not self.has_fresh and not self.has_late and self.next_due is None

    @property
    def has_fresh(self) -> bool:
        """A lane with a new event at its head is ready."""
        return _live_head(self._fresh)

    @property
    def has_late(self) -> bool:
        """A lane with a listed event at its head is ready."""
        return _live_head(self._late)

    def late_first(self, late_last: bool) -> bool:
        """Whether a listed event goes next, where there are both: in turn, unless another source's is due."""
        if self._shares is None:
            return not late_last
        fresh, late = (self._shares.had(queue[0].queue[0].source) for queue in (self._fresh, self._late))
        return late < fresh or (late == fresh and not late_last)

    def take(self, *, late: bool, most: int, several: bool) -> list[Item]:
        """Takes a chunk of at most `most` events from lanes that are ready; their lanes are in flight from then on.
        `several`: more than one event of a profile may go together."""
        queue = self._late if late else self._fresh
        chunk: list[Item] = []
        while len(chunk) < most and queue:
            lane = queue[0]
            if not lane.partition.live:
                queue.popleft()
                continue
            most = min(most, lane.queue[0].most)
            if len(chunk) >= most:
                break
            queue.popleft()
            lane.queued = False
            lane.busy = True
            room = most - len(chunk) if several else 1
            chunk += _heads(lane, room) if self._shares is None else _shared(lane, room, self._shares)
        return chunk

    # ── Inside ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _ready(self, lane: Lane) -> None:
        lane.queued = True
        head = lane.queue[0]
        if head.fences and self.fences.holds(lane):
            return
        (self._late if head.listed else self._fresh).append(lane)

    def resort(self) -> None:
        """To be called when ready lanes may have had their heads listed: they are no longer new."""
        ready = [lane for lane in self._fresh if lane.partition.live]
        self._fresh.clear()
        for lane in ready:
            self._ready(lane)

    def _void(self, entry: tuple[float, int, Lane]) -> bool:
        due, _, lane = entry
        return lane.due != due or not lane.partition.live or not lane.queue


def _offset(item: Item) -> int:
    return item.offset


def _queue(shares: Shares | None) -> deque[Lane] | Turns[Lane]:
    return deque() if shares is None else Turns(lambda lane: lane.queue[0].source, shares)


def _live_head(queue: deque[Lane] | Turns[Lane]) -> bool:
    while queue and not queue[0].partition.live:
        queue.popleft()
    return bool(queue)


def _heads(lane: Lane, most: int) -> list[Item]:
    """The first events of a lane, each within the chunk size that all of them allow."""
    queue = lane.queue
    if len(queue) == 1:
        lane.queue = []
        return queue
    most = min(most, queue[0].most)
    count = 1
    for item in islice(queue, 1, most):
        if item.fences or item.most <= count:
            break
        count += 1
    taken = queue[:count]
    del queue[:count]
    return taken


def _shared(lane: Lane, room: int, shares: Shares) -> list[Item]:
    """`_heads` of one source, which has had them then."""
    source = lane.queue[0].source
    taken = _heads(lane, shares.part(source, room))
    for item in taken:
        shares.took(item.source, 1)
    return taken


def _restored(lane: Lane, listed: Listed) -> Item:
    item = Item(lane, listed.offset, listed.source, listed.message_id)
    item.state = State(listed.state)
    item.reason = listed.reason
    item.attempts = listed.attempts
    item.done = decode_done(listed.done)
    item.first_at = listed.first_at / 1e6
    item.next_at = listed.next_at / 1e6
    item.listed = True
    return item
