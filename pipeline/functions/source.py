"""Functions of sources: each event of theirs is changed, dropped or split before identity and everything else.

What a split adds goes back to `events` like any other event, with a messageId of its own and past the function: order,
deduplication and the books hold for it. What is refused keeps its bytes. When in doubt an event is refused, never let through
as it came: it may be the function's task to take something out of it.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from destinations.contract import Retry
from pipeline.functions.installed import outcome
from pipeline.functions.runner import Runner
from pipeline.functions.shape import changed, seen
from pipeline.functions.wire import Answer, Kind
from pipeline.log import Batch, Record
from pipeline.parse import Refusal
from schemas.events import Event, Origin, Resolved, decode_event, encode_event, source_of
from schemas.exact_json import json_loads
from schemas.functions import FunctionCode

CHANNEL: Final = "function"
"""Of events that a split added. No client can claim it: the collector sets the channel."""

_TRIES: Final = 3
_LONGEST_PAUSE: Final = 1.0  # seconds between two; the other sources wait as well


@dataclass(slots=True)
class Ran:
    """A poll after its functions. `originals` are the values of all records that went through one, `made` those that were changed;
    `batches` is what is left to parse, `added` what splits give back to `events`, `starts` the first offset of each partition."""

    batches: Sequence[Batch]
    starts: dict[int, int] = field(default_factory=dict)
    originals: dict[Origin, bytes] = field(default_factory=dict)
    made: dict[Origin, bytes] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    added: list[tuple[Origin, Record]] = field(default_factory=list)


async def through(runners: Mapping[str, Runner], batches: Sequence[Batch]) -> Ran:
    """Puts the events of sources with a function through it, all sources side by side."""
    ran = Ran(batches, {batch.partition: batch.records[0].offset for batch in batches})
    wanted: dict[str, list[tuple[Origin, Event]]] = {}
    for batch in batches:
        for record in batch.records:
            event = _event(runners, record)
            if event is not None:
                origin = Origin(batch.partition, record.offset)
                ran.originals[origin] = record.value
                wanted.setdefault(event.source, []).append((origin, event))
    if wanted:
        await asyncio.gather(*(_source(runners[source], events, ran) for source, events in wanted.items()))
        ran.batches = [_left(batch, ran) for batch in batches]
        ran.added.sort(key=lambda pair: pair[0])
    return ran


def _event(runners: Mapping[str, Runner], record: Record) -> Event | None:
    """The record's event, if a function is to have it."""
    try:
        if source_of(record.value) not in runners:
            return None
        event = decode_event(record.value)
    except ValueError:
        return None  # parsing makes a refusal of it
    return event if event.refused is None and event.channel != CHANNEL else None


async def _source(runner: Runner, events: Sequence[tuple[Origin, Event]], ran: Ran) -> None:
    sent: list[bytes] = []
    going: list[tuple[Origin, Event]] = []
    for origin, event in events:
        try:
            sent.append(seen(Resolved("", origin, (), event)))
        except ValueError:
            continue  # parsing makes a refusal of it
        going.append((origin, event))
    answers = await _answered(runner, sent)
    for (origin, event), was, answer in zip(going, sent, answers, strict=True):
        _take(ran, origin, event, was, answer)


async def _answered(runner: Runner, sent: Sequence[bytes]) -> list[Answer]:
    """What the function answers, asked again where it wants to be, and where those before an event took the time: each round
    gets at least one of these further."""
    answers = await runner.run(sent)
    tries = 1
    while again := [at for at, one in enumerate(answers) if one.kind is Kind.LATE or _wanted(one, tries)]:
        waits = [json_loads(answers[at].data)[1] or 0.0 for at in again if answers[at].kind is Kind.RETRY]
        if waits:
            tries += 1
            await asyncio.sleep(min(_LONGEST_PAUSE, max(0.0, waits[0])))
        for at, one in zip(again, await runner.run([sent[at] for at in again]), strict=True):
            answers[at] = one
    return answers


def _wanted(answer: Answer, tries: int) -> bool:
    return answer.kind is Kind.RETRY and tries < _TRIES


def _take(ran: Ran, origin: Origin, event: Event, sent: bytes, answer: Answer) -> None:
    if answer.kind is Kind.EVENT and answer.data == sent:
        return
    if answer.kind not in (Kind.EVENT, Kind.SEVERAL):
        _refuse(ran, origin, event, _code(answer))
        return
    try:
        made = json_loads(answer.data)
        first, *more = [changed(event, one) for one in (made if answer.kind is Kind.SEVERAL else [made])]
        added = [_added(one, number) for number, one in enumerate(more, 2)]
    except ValueError as error:
        _refuse(ran, origin, event, f"{FunctionCode.ANSWER}: {error}")
        return
    ran.made[origin] = encode_event(first)
    ran.added += [(origin, one) for one in added]


def _code(answer: Answer) -> str:
    means = outcome(answer, 0.0)
    if isinstance(means, Retry) and answer.kind is Kind.RETRY:
        return str(FunctionCode.RETRIES_SPENT)
    return str(getattr(means, "reason", FunctionCode.ANSWER))


def _refuse(ran: Ran, origin: Origin, event: Event, code: str) -> None:
    ran.refusals.append(Refusal(origin, event.source, event.message_id, code, event.received_at, event.body))


def _added(event: Event, number: int) -> Record:
    own = event._replace(message_id=f"{event.message_id}/{number}", channel=CHANNEL)
    return Record(own.key, encode_event(own), own.received_at // 1000)


def _left(batch: Batch, ran: Ran) -> Batch:
    """The batch without what was refused, and with what was made."""
    refused = {one.origin for one in ran.refusals}
    return replace(batch, records=list(_kept(batch, refused, ran.made)))


def _kept(batch: Batch, refused: set[Origin], made: Mapping[Origin, bytes]) -> Iterable[Record]:
    for record in batch.records:
        origin = Origin(batch.partition, record.offset)
        if origin not in refused:
            value = made.get(origin)
            yield record if value is None else record._replace(value=value)
