"""The functions of an installation: where their files are, and how each kind is run."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from destinations.contract import DELIVERED, Deliver, Filtered, Outcome, RawEvent, Rejected, Retry
from pipeline.functions.logs import LogFile
from pipeline.functions.runner import Runner, running, spec_of
from pipeline.functions.shape import changed, seen
from pipeline.functions.wire import Answer, Kind
from schemas.config import FunctionConfig
from schemas.events import Resolved
from schemas.exact_json import json_dumps, json_loads
from schemas.functions import FunctionCode

Insert = Callable[[Sequence[Resolved]], Awaitable[Sequence[Resolved | Outcome]]]
"""Puts events through a function: what stands in the place of each, or what becomes of it instead."""

_OWN_TIME: Final = 1.0  # seconds after which events of a slow function come back
_WORDS: Final = 300  # characters of a reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Functions:
    """`folder` holds the files, `logs` gets what they print (None: nobody reads it), `allow` is `outbound.allow`; None: no
    network."""

    folder: Path
    logs: Path | None = None
    allow: Sequence[str] | None = ()

    @asynccontextmanager
    async def opened(self, config: FunctionConfig, role: str) -> AsyncIterator[Runner]:
        """A function that is ready. Unavailable: its file cannot be loaded; ConfigError: there is none."""
        spec = spec_of(config, self.folder, role, self.allow)
        if self.logs is None:
            async with running(spec, lambda words: None) as runner:
                yield runner
            return
        with LogFile(self.logs / f"{config.name}.log") as words:
            async with running(spec, words.write) as runner:
                yield runner

    @asynccontextmanager
    async def inserted(self, config: FunctionConfig) -> AsyncIterator[Insert]:
        """A destination's insert."""
        async with self.opened(config, "insert") as runner:

            async def insert(events: Sequence[Resolved]) -> Sequence[Resolved | Outcome]:
                sent = [seen(one) for one in events]
                answers = await runner.run(sent)
                return [
                    stands_for(one, was, answer, runner.locked_for)
                    for one, was, answer in zip(events, sent, answers, strict=True)
                ]

            yield insert

    @asynccontextmanager
    async def delivering(self, config: FunctionConfig) -> AsyncIterator[Deliver]:
        """A whole destination."""
        async with self.opened(config, "destination") as runner:

            async def deliver(events: Sequence[RawEvent]) -> Sequence[Outcome]:
                answers = await runner.run([json_dumps(one) for one in events])
                return [outcome(one, runner.locked_for) for one in answers]

            yield deliver


def stands_for(event: Resolved, sent: bytes, answer: Answer, locked_for: float) -> Resolved | Outcome:
    """What an insert made of an event."""
    if answer.kind is not Kind.EVENT:
        return outcome(answer, locked_for)
    if answer.data == sent:
        return event
    try:
        return replace(event, event=changed(event.event, json_loads(answer.data)), context=None)
    except ValueError as error:
        return Rejected(f"{FunctionCode.ANSWER}: {error}")


def outcome(answer: Answer, locked_for: float) -> Outcome:
    """What an answer means to the delivery of its event."""
    words = answer.data.decode(errors="replace")
    match answer.kind:
        case Kind.DONE:
            return DELIVERED
        case Kind.DROPPED:
            return Filtered(_reason(FunctionCode.DROPPED))
        case Kind.UNSUPPORTED:
            return Filtered(_reason(FunctionCode.UNSUPPORTED))
        case Kind.RETRY:
            reason, after = json_loads(answer.data)
            return Retry(_reason(FunctionCode.RETRY, reason), after)
        case Kind.TIMEOUT:
            return Retry(_reason(FunctionCode.TIMEOUT))
        case Kind.LATE:
            return Retry(_reason(FunctionCode.TIMEOUT), after=0.0)
        case Kind.LOCKED_OUT:
            return Retry(_reason(FunctionCode.LOCKED_OUT), after=max(locked_for, _OWN_TIME))
        case Kind.INVALID:
            return Rejected(_reason(FunctionCode.INVALID, words))
        case Kind.RAISED:
            return Rejected(_reason(FunctionCode.RAISED, words))
        case Kind.MEMORY:
            return Rejected(_reason(FunctionCode.MEMORY))
        case Kind.CRASHED:
            return Rejected(_reason(FunctionCode.CRASHED))
        case Kind.ANSWER | Kind.EVENT | Kind.SEVERAL:
            return Rejected(_reason(FunctionCode.ANSWER, words if answer.kind is Kind.ANSWER else "events"))


def _reason(code: FunctionCode, words: str = "") -> str:
    return f"{code}: {words}"[:_WORDS] if words else str(code)
