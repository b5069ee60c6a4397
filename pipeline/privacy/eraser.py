"""Carries requests to delete out, step by step. Each step is written down when it is done, so that whoever comes next goes on there.

people    one person after the other out of the tables, each in one transaction; long histories before it, in small ones
log       their records are overwritten where they stand; on Kafka they age out
settle    what was read before and is still on its way is waited for; destinations are told from now on
done      nothing personal is left of the request itself
"""

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
from sqlalchemy import Connection

from pipeline.log import Log, Record
from pipeline.log.contract import Erasable
from pipeline.privacy.function_logs import blacken
from pipeline.privacy.hunt import Hunt, Hunted
from pipeline.privacy.placeholder import erased_event
from pipeline.running import steadily
from pipeline.scratch import FOLDER, erase
from pipeline.store import accepted, erasing, erasures, forget, leases, scratches
from pipeline.store.database import Database
from pipeline.store.erasures import Regulation
from pipeline.store.rules import latest
from pipeline.store.scratches import Scratch
from pipeline.telling import tell
from schemas.errors import Unavailable
from schemas.events import ExternalId, Origin, decode_resolved, iso
from schemas.topics import DEAD_LETTERS, EVENTS, PROFILE_CHANGES, RESOLVED, partition_of

T = TypeVar("T")
log = structlog.get_logger()

TOPICS: Final = (EVENTS, RESOLVED, DEAD_LETTERS, PROFILE_CHANGES)
LEASE: Final = "eraser"
_MICROS: Final = 1_000_000
_STRAYS: Final = 1_000
_REFUSALS: Final = 1_000
_SOME: Final = 250  # events, or rows at destinations, that one transaction takes out: some 50 ms of SQLite's writer
_IDS: Final = 100
_OLD: Final = 5_000
_TIDY: Final = 600.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds. `grace` is how long what is on its way may take before it is fenced; `deadline` how long destinations are tried;
    `retention` of the log, after which it has nothing left that was there when a person was deleted."""

    look: float = 1.0
    grace: float = 60.0
    deadline: float = 30 * 86_400.0
    retention: float = 30 * 86_400.0


@dataclass(slots=True)
class Work:
    """How far a request is. Holds ids in clear: it goes when the request ends."""

    subjects: list[str]
    phase: str = "people"
    next: int = 0
    ids: dict[str, int] = field(default_factory=dict)  # of the people erased, with the time up to which their events go
    profiles: list[str] = field(default_factory=list)
    formerly: list[str] = field(default_factory=list)
    latest: int = 0  # µs; of the events that went ahead of their person
    places: dict[str, int] = field(default_factory=dict)  # on the log, by topic
    refusal: list[int] = field(default_factory=lambda: [-1, -1])
    barrier: dict[str, int] | None = None
    settling: int = 0  # µs; since when
    fenced: bool = False

    def hunted(self, origins: set[Origin]) -> Hunted:
        return Hunted(dict(self.ids), set(self.profiles), origins)

    def json_object(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


async def keep_erasing(
    events: Log,
    database: Database,
    stop: asyncio.Event,
    *,
    data: Path | None = None,
    limits: Limits | None = None,
    owner: str = "",
) -> None:
    """Carries out what is asked for until `stop` is set. One process at a time does it. `data` is this process's data folder: what
    functions have printed there is gone through, and scratch stores that nobody works in."""
    limits = limits or Limits()
    eraser = Eraser(events, database, data, limits)
    owner = owner or f"{id(eraser):x}.{time.time_ns():x}"
    span = round(max(30.0, limits.grace) * _MICROS)
    try:
        while not stop.is_set():
            held = await steadily(
                lambda: database.run(lambda c: leases.lease(c, LEASE, owner, _now(), span)), stop, "asking to erase"
            )
            if held:
                await _turn(eraser, stop)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), limits.look)
        await database.run(lambda c: leases.release(c, LEASE, owner))
    except Unavailable:
        return  # asked to stop during an outage; it goes on where it was


async def _turn(eraser: "Eraser", stop: asyncio.Event) -> None:
    """A fault of ours holds up what it concerns until it is mended, and nothing is taken for done."""
    try:
        await steadily(eraser.turn, stop, "erasing")
    except Unavailable:
        raise
    except Exception as error:
        log.exception("erasing broke; it is tried again", error=type(error).__name__)


class Eraser:
    """See the module."""

    def __init__(self, events: Log, database: Database, data: Path | None, limits: Limits) -> None:
        self._events = events
        self._database = database
        self._data = data
        self._limits = limits
        self._tidied = 0.0

    async def turn(self) -> None:
        """All that can be done now. May be called again after it failed, at any point."""
        for one in await self._database.read(erasures.under_way):
            await self._advance(one)
        await self._strays()
        now = time.time()
        if now - self._tidied > _TIDY:
            self._tidied = now
            await self.tidy()

    async def tidy(self) -> None:
        """Removes what came in late, and what retention has made needless."""
        before = _now() - round(self._limits.retention * _MICROS)

        while await self._database.run(lambda c: erasures.forget_old(c, before, _OLD)) == _OLD:
            pass

        def tidy(connection: Connection) -> int:
            return forget.forget_samples(connection) if erasures.known_key(connection) is not None else 0

        if await self._database.run(tidy):
            await asyncio.to_thread(self._database.overwrite_deleted)
        await self._scratched(Counter())  # single ids were deleted, or a machine is back

    async def _advance(self, one: Regulation) -> None:
        work, receipt = Work(**(one.work or {"subjects": []})), Counter(one.receipt.get("erased", {}))
        if one.status == "INITIALIZED":
            log.info("deletion begins", regulation=one.id, ids=len(work.subjects))
        while work.phase == "people":
            await self._person(one, work, receipt)
        if work.phase == "log":
            await self._database.run(scratches.disturb)
            await tell(self._events, self._database)
            await self._refusals(one, work, receipt)
            await self._scan(one, work, receipt)
            work.phase, work.settling = "settle", _now()
            await self._save(one, work, receipt)
        if work.phase == "settle":
            await self._settle(one, work, receipt)
        if work.phase == "told":
            await self._wait_for_destinations(one, work, receipt)
        if work.phase == "ended":
            await self._finish(one, receipt)

    async def _save(self, one: Regulation, work: Work, receipt: Mapping[str, int]) -> None:
        await self._database.run(lambda c: _save(c, one, work, receipt))

    # ── Out of the tables ─────────────────────────────────────────────────────────────────────────────────────────

    async def _person(self, one: Regulation, work: Work, receipt: Counter[str]) -> None:
        if work.next >= len(work.subjects):
            work.phase = "log"
            await self._save(one, work, receipt)
            return
        subject = ExternalId(*work.subjects[work.next].split(":", 1))
        await self._thin(one, work, receipt, subject)

        def delete(connection: Connection) -> tuple[Work, Counter[str]]:
            gone = forget.person(connection, subject, one.id, work.latest)
            after = Work(**work.json_object())
            after.next += 1
            after.latest = 0
            after.ids = {**work.ids, **dict.fromkeys(gone.ids, gone.at)}
            after.profiles = sorted({*work.profiles, *gone.profiles})
            after.formerly = sorted({*work.formerly, *gone.formerly})
            counted = receipt + gone.rows
            counted["people"] += bool(gone.profiles)
            counted["ids"] += len(gone.ids)
            counted["events_of_others"] += gone.left
            _save(connection, one, after, counted)
            return after, counted

        after, counted = await self._database.run(delete)
        _become(work, after, receipt, counted)

    async def _thin(self, one: Regulation, work: Work, receipt: Counter[str], subject: ExternalId) -> None:
        """Takes what would make the transaction long out before it. The pipeline goes on in between, and events that come
        meanwhile are left for the end."""
        whole = await self._database.read(lambda c: forget.extent(c, subject))
        if whole.events > _SOME:
            for start in range(0, len(whole.ids), _IDS):
                await self._thin_events(one, work, receipt, subject, whole, whole.ids[start : start + _IDS])
        if whole.listed > _SOME:
            await self._sweep_some(one, work, receipt, whole.profiles)

    async def _thin_events(
        self,
        one: Regulation,
        work: Work,
        receipt: Counter[str],
        subject: ExternalId,
        whole: forget.Extent,
        ids: Sequence[str],
    ) -> None:
        def some(connection: Connection) -> tuple[forget.Ahead, Work, Counter[str]]:
            ahead = forget.some_events(connection, subject, ids, whole.profiles, one.id, _SOME)
            after = Work(**work.json_object())
            after.formerly = sorted({*work.formerly, *ahead.formerly})
            after.latest = max(work.latest, ahead.latest)
            counted = Counter(receipt)
            counted.update(ahead.rows)
            if ahead.rows["events"]:
                _save(connection, one, after, counted)
            return ahead, after, counted

        while True:
            ahead, after, counted = await self._database.run(some)
            _become(work, after, receipt, counted)
            if ahead.rows["events"] < _SOME:
                return

    async def _sweep_some(self, one: Regulation, work: Work, receipt: Counter[str], profiles: Collection[str]) -> None:
        def some(connection: Connection) -> tuple[int, Counter[str]]:
            done = forget.sweep_some(connection, profiles, _SOME)
            counted = Counter(receipt)
            counted.update(done)
            if +done:
                _save(connection, one, work, counted)
            return done.total(), counted

        while True:
            taken, counted = await self._database.run(some)
            _become(work, work, receipt, counted)
            if taken < _SOME:
                return

    async def _refusals(self, one: Regulation, work: Work, receipt: Counter[str]) -> None:
        """Refused events are nobody's, so all of them are looked through."""
        hunt = await self._hunt(work, set())
        while True:
            place = Origin(*work.refusal)
            some = await self._database.read(partial(forget.refusals_after, place=place, most=_REFUSALS))
            if not some:
                return
            theirs = await asyncio.to_thread(lambda: [origin for origin, body in some if hunt.names(body)])  # noqa: B023 - awaited within the turn
            receipt["refusals"] += len(theirs)
            work.refusal = list(some[-1][0])

            def note(connection: Connection, theirs: Sequence[Origin] = theirs) -> None:
                forget.forget_refusals(connection, theirs, one.id, _now())
                _save(connection, one, work, receipt)

            await self._database.run(note)

    async def _hunt(self, work: Work, origins: set[Origin]) -> Hunt:
        rules = await self._database.read(latest)

        def kept(keys: Any) -> Any:
            return self._database.read_sync(lambda c: accepted.find(c, keys)).keys()

        return Hunt(work.hunted(origins), rules, kept)

    # ── Off the log ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _scan(self, one: Regulation, work: Work, receipt: Counter[str]) -> None:
        """Goes through what came since the last time."""
        if not isinstance(self._events, Erasable):
            return
        hunt = await self._hunt(work, await self._database.read(lambda c: erasing.origins(c, [one.id])))
        for topic in TOPICS:
            end = False
            while not end:
                at, _, erased, end = await self._events.scrub(topic, work.places.get(topic, 0), hunt.judges[topic])
                receipt[f"log_{topic}"] += erased
                if work.places.get(topic) != at:
                    work.places[topic] = at
                    await self._save(one, work, receipt)

    async def _strays(self) -> None:
        """Erases the records of what was refused because its person is gone."""
        if not isinstance(self._events, Erasable):
            return
        while some := await self._database.read(lambda c: erasing.strays(c, _STRAYS)):
            wanted = set(some)

            def judge(
                records: Sequence[tuple[int, Record]], wanted: set[Origin] = wanted
            ) -> dict[int, tuple[bytes, bytes]]:
                made = {
                    number: erased_event(record.value)
                    for number, (partition, record) in enumerate(records)
                    if Origin(partition, record.offset) in wanted
                }
                return {number: (b"", value) for number, value in made.items() if value != records[number][1].value}

            firsts: dict[int, int] = {}
            for origin in some:
                firsts.setdefault(origin.partition, origin.offset)
            at = min([await self._events.place_of(EVENTS, *first) for first in firsts.items()])
            end = False
            while not end:
                at, _, _, end = await self._events.scrub(EVENTS, at, judge)
            await self._database.run(lambda c: erasing.note_seen(c, some))

    # ── What was on its way ───────────────────────────────────────────────────────────────────────────────────────

    async def _settle(self, one: Regulation, work: Work, receipt: Counter[str]) -> None:
        """Whoever read records before they were erased may still write or deliver them. Once every destination is behind them,
        a last look finds what was written meanwhile."""
        overdue = _now() - work.settling > self._limits.grace * _MICROS
        if work.barrier is None:
            if not await self._all_emitted(one):
                return
            await self._scan(one, work, receipt)
            ends = {str(p): end for p, (_, end) in (await self._events.bounds(RESOLVED)).items()}
            work.barrier = ends
            barrier = {int(p): end for p, end in ends.items()}

            def found(connection: Connection) -> None:
                erasures.set_barrier(connection, one.id, barrier)
                _save(connection, one, work, receipt)

            await self._database.run(found)
        barrier = {int(p): end for p, end in work.barrier.items()}
        behind = await self._database.read(lambda c: erasing.behind(c, barrier))
        await self._sweep(one, work, receipt)
        held = await self._scratched(receipt)
        if (behind or held) and not overdue:
            return
        if behind and not work.fenced:
            work.fenced = True

            def fence(connection: Connection) -> None:
                erasing.fence(connection, behind, barrier)
                _save(connection, one, work, receipt)

            await self._database.run(fence)
        if not overdue and await self._database.read(lambda c: bool(forget.outstanding(c, work.profiles))):
            return
        await self._scan(one, work, receipt)
        work.phase = "told"
        await self._save(one, work, receipt)

    async def _sweep(self, one: Regulation, work: Work, receipt: Counter[str]) -> None:
        await self._sweep_some(one, work, receipt, work.profiles)

        def sweep(connection: Connection) -> None:
            origins = erasing.origins(connection, [one.id]) if work.formerly else set()
            more = forget.sweep(connection, (), work.formerly, origins) if origins else Counter[str]()
            more["samples"] += forget.forget_samples(connection)
            if +more:
                receipt.update(more)
                _save(connection, one, work, receipt)

        await self._database.run(sweep)

    async def _scratched(self, receipt: Counter[str]) -> list[Scratch]:
        """Scratch stores that may hold somebody who was deleted. Who works in one finds out and drops it; one that nobody works in is
        emptied here, if it is on this machine."""
        if self._data is None:
            return await self._database.read(scratches.stale)
        done, left = await asyncio.to_thread(erase, self._database, self._data / FOLDER)
        receipt["scratch_stores"] += done
        return left

    async def _all_emitted(self, one: Regulation) -> bool:
        """Whether every event of theirs that was accepted stands on `resolved`. Those of the last poll are looked for."""
        unseen, since = await self._database.read(lambda c: (erasing.unseen(c, one.id), erasing.since(c)))
        if not unseen:
            return True
        partitions = self._events.partitions(RESOLVED)
        found: set[Origin] = set()
        for partition in sorted({partition_of(profile.encode(), partitions) for profile in unseen.values()}):
            offset = await self._events.offset_at(RESOLVED, partition, since // 1_000 - 60_000)
            while (batch := await self._events.read(RESOLVED, partition, offset)) is not None:
                found |= {origin for record in batch.records if (origin := _origin(record)) in unseen}
                offset = batch.next_offset
        await self._database.run(lambda c: erasing.note_seen(c, found))
        return len(found) == len(unseen)

    # ── The end ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _wait_for_destinations(self, one: Regulation, work: Work, receipt: Counter[str]) -> None:
        told = await self._database.read(lambda c: erasures.tellings(c, regulation=one.id))
        late = _now() - one.created_at > self._limits.deadline * _MICROS
        if not late and any(each.status in ("INITIALIZED", "RUNNING") for each in told):
            return
        if self._data is not None:
            values = [key.partition(":")[2] for key in work.ids]
            receipt["function_logs"] = await asyncio.to_thread(blacken, self._data / "function-logs", values)
        for name, value in Work([], "ended").json_object().items():  # from here on nobody knows who it was
            setattr(work, name, value)

        def end(connection: Connection) -> None:
            erasures.give_up(connection, one.id, "not told within the deadline", _now())
            erasures.hide(connection, [bytes.fromhex(each) for each in one.marks])
            _save(connection, one, work, receipt)

        await self._database.run(end)

    async def _finish(self, one: Regulation, receipt: Counter[str]) -> None:
        if not await asyncio.to_thread(self._database.overwrite_deleted):
            return  # somebody reads; the next turn tries again
        told = await self._database.read(lambda c: erasures.tellings(c, regulation=one.id))
        at, status = _now(), _overall([each.status for each in told])
        result = self._receipt(receipt, await self._scratched(receipt), at)
        await self._database.run(lambda c: erasures.finish(c, one.id, status, result, at))
        log.info("deletion done", regulation=one.id, status=status, people=receipt["people"], events=receipt["events"])

    def _receipt(self, counted: Mapping[str, int], left: Sequence[Scratch], at: int) -> dict[str, Any]:
        retained = iso(at + round(self._limits.retention * _MICROS))
        erasable = isinstance(self._events, Erasable)
        return {
            "erased": dict(sorted(counted.items())),
            "log": "overwritten in place" if erasable else "Kafka removes the records by its retention",
            "log_gone_by": None if erasable else retained,
            "database": "rows deleted; PostgreSQL reuses their space by vacuum, its write-ahead log and backups age out"
            if self._database.postgres
            else "rows overwritten with zeros, write-ahead log emptied",
            "scratch_stores_left": [
                f"{one.host}:{one.path} may hold them until `millrace {one.work}` is run there again or the folder is removed"
                for one in left
            ],
            "tombstones": "hashed ids and the ids of profiles stay, so that nothing from before comes back",
        }


def _become(work: Work, after: Work, receipt: Counter[str], counted: Counter[str]) -> None:
    """What was written holds from now on."""
    for name in Work.__dataclass_fields__:
        setattr(work, name, getattr(after, name))
    receipt.clear()
    receipt.update(counted)


def _save(connection: Connection, one: Regulation, work: Work, receipt: Mapping[str, int]) -> None:
    erasures.advance(connection, one.id, "RUNNING", work.json_object(), {"erased": dict(receipt)})


def _overall(statuses: Sequence[str]) -> str:
    if "FAILED" in statuses:
        return "FAILED"
    return "PARTIAL_SUCCESS" if "NOT_SUPPORTED" in statuses else "FINISHED"


def _origin(record: Record) -> Origin | None:
    try:
        return decode_resolved(record.value).origin
    except ValueError:
        return None


def _now() -> int:
    return time.time_ns() // 1_000
