"""What a configuration would send of recorded events, against what another would: nothing leaves this process.

Each event goes alone through the same decision, function, mapping and `deliver` as in earnest; only where the destination's
requests end is different, and the clock, which stands at the event's time of receipt.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from destinations.contract import DELIVERED, Action, Delivered, Env, Outcome, Row
from pipeline.delivery.attempt import attempt
from pipeline.delivery.decide import Unreadable, decode, rules
from pipeline.delivery.insert import shaping
from pipeline.delivery.lanes import Item, Lane, Partition
from pipeline.delivery.limits import Destination
from pipeline.delivery.mapping import routing
from pipeline.delivery.recording import Recorder, Request
from pipeline.functions.installed import Functions, Insert
from pipeline.language.rules import compile_rules
from pipeline.log import Log
from pipeline.store.ledger import Claim
from schemas.events import Resolved
from schemas.topics import RESOLVED

Effect = Request | Row
Change = Literal["added", "removed", "changed"]
_TIMEOUT: Final = 30.0  # seconds for one event


@dataclass(frozen=True, slots=True)
class Made:
    """What a destination makes of an event: requests and rows, or the reason why there are none."""

    effects: tuple[Effect, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """An event that would not go as it does."""

    destination: str
    change: Change
    message_id: str
    type: str
    before: Made
    after: Made


@dataclass(slots=True)
class Tally:
    """One destination's comparison. Reasons are counted where nothing is sent."""

    events: int = 0
    same: int = 0
    changes: Counter[Change] = field(default_factory=Counter)
    before: Counter[str] = field(default_factory=Counter)
    after: Counter[str] = field(default_factory=Counter)


Make = Callable[[Resolved], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A destination as it is and as it would be; None: not there."""

    name: str
    before: Destination | None
    after: Destination | None
    functions_before: Functions
    functions_after: Functions


async def compare(
    log: Log,
    since: int,
    pairs: Sequence[Pair],
    *,
    differs: Callable[[Difference], None],
    advance: Callable[[int, int], None],
) -> Mapping[str, Tally]:
    """Goes through what `resolved` holds from `since` (Unix ms) until now. `differs` hears of each difference as it is found, in
    the order of the log per partition; `advance` of records done and of all."""
    tallies = {pair.name: Tally() for pair in pairs}
    async with AsyncExitStack() as stack:
        makes = [
            (
                pair.name,
                await stack.enter_async_context(rehearsal(pair.before, pair.functions_before)),
                await stack.enter_async_context(rehearsal(pair.after, pair.functions_after)),
            )
            for pair in pairs
        ]
        async for resolved in recorded(log, since, advance):
            for name, before, after in makes:
                was, would = await before(resolved), await after(resolved)
                found = _judge(tallies[name], was, would)
                if found is not None:
                    event = resolved.event
                    differs(Difference(name, found, event.message_id, event.type, was, would))
    return tallies


def _judge(tally: Tally, was: Made, would: Made) -> Change | None:
    tally.events += 1
    if not was.effects:
        tally.before[was.reason] += 1
    if not would.effects:
        tally.after[would.reason] += 1
    if was.effects == would.effects:
        tally.same += 1
        return None
    change: Change = "changed" if was.effects and would.effects else "removed" if was.effects else "added"
    tally.changes[change] += 1
    return change


async def recorded(log: Log, since: int, advance: Callable[[int, int], None]) -> AsyncIterator[Resolved]:
    """Each event of `resolved` from `since` (Unix ms) until now, once: what was emitted again after a crash is passed over, as destinations do."""
    ends = {number: end for number, (_, end) in (await log.bounds(RESOLVED)).items()}
    starts = {number: await log.offset_at(RESOLVED, number, since) for number in ends}
    total = sum(max(0, end - starts[number]) for number, end in ends.items())
    done = 0
    for number, end in ends.items():
        offset, marks = starts[number], dict[int, int]()
        while offset < end and (batch := await log.read(RESOLVED, number, offset)) is not None:
            for record in batch.records:
                if record.offset >= end:
                    break
                decoded = decode(record.value)
                if isinstance(decoded, Unreadable):
                    continue  # a dead letter under any configuration
                origin = decoded.origin
                if origin.offset > marks.get(origin.partition, -1):
                    marks[origin.partition] = origin.offset
                    yield decoded
            done += min(batch.next_offset, end) - offset
            offset = batch.next_offset
            advance(done, total)


# ── One side ──────────────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def rehearsal(destination: Destination | None, functions: Functions) -> AsyncIterator[Make]:
    """Makes of an event what the destination would."""
    if destination is None:
        yield _absent
        return
    noted: list[Row] = []
    clock, recorder = _Clock(), Recorder()
    async with AsyncExitStack() as stack:
        definition = destination.definition
        client: Any = None
        if definition.preview is None:
            http = await stack.enter_async_context(recorder.session())
            env = Env(http=http, now=clock, folder="", functions=functions.delivering)
            client = await stack.enter_async_context(definition.connect(destination.settings, env))
        else:
            actions = [_noting(one, definition.preview, destination, noted) for one in definition.actions]
            destination = replace(destination, definition=replace(definition, actions=actions))
        insert: Insert | None = None
        if destination.function is not None:
            insert = await stack.enter_async_context(functions.inserted(destination.function))
        insert = shaping(compile_rules(None, destination.filters).shape, insert)
        yield _Side(destination, client, insert, recorder, noted, clock)


async def _absent(_: Resolved) -> Made:
    return Made(reason="not configured")


class _Clock:
    """Stands still, so that what depends on the time is the same on both sides."""

    def __init__(self) -> None:
        self.micros = 0

    def __call__(self) -> float:
        return self.micros / 1e6


def _noting(action: Action[Any, Any], preview: Any, destination: Destination, noted: list[Row]) -> Action[Any, Any]:
    async def note(_: Any, batch: Sequence[Any]) -> Sequence[Outcome]:
        noted.extend(preview(destination.settings, batch))
        return [DELIVERED] * len(batch)

    return replace(action, deliver=note)


class _Side:
    """A destination on one side of the comparison."""

    def __init__(
        self,
        destination: Destination,
        client: Any,
        insert: Insert | None,
        recorder: Recorder,
        noted: list[Row],
        clock: _Clock,
    ) -> None:
        self._routing, self._client, self._insert = routing(destination), client, insert
        self._recorder, self._noted, self._clock = recorder, noted, clock
        self._decide = rules(destination)
        self._lane = Lane(Partition(Claim(0, 0, 0, {}, ())), "", 0)

    async def __call__(self, resolved: Resolved) -> Made:
        self._clock.micros = resolved.event.received_at
        try:
            reason = self._decide(resolved)
        except ValueError as error:
            return Made(reason=str(error))
        if reason is not None:
            return Made(reason=reason)
        item = Item(self._lane, 0, resolved.event.source, resolved.event.message_id)
        item.resolved = resolved
        self._recorder.taken()  # what connecting asked for is no event's
        made = await attempt(self._routing, self._client, [item], _TIMEOUT, self._insert)
        effects: tuple[Effect, ...] = (*self._recorder.taken(), *self._noted)
        self._noted.clear()
        return Made(effects) if effects else Made(reason=made.credentials or _reason(made.outcomes[0]))


def _reason(outcome: Outcome | None) -> str:
    if outcome is None or isinstance(outcome, Delivered):
        return "nothing to send"
    return outcome.reason
