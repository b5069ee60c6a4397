"""Functions tried on events: which there are, who uses them, and what one makes of each event. Nothing else runs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from destinations.contract import Delivered, Filtered, Outcome, Rejected
from millrace.settings import Settings, functions_folder
from pipeline.functions.installed import outcome
from pipeline.functions.runner import Runner, Spec, running, spec_of
from pipeline.functions.shape import changed, seen
from pipeline.functions.wire import Answer, Kind
from schemas.config import FunctionConfig
from schemas.errors import Unavailable
from schemas.events import Event, Origin, Resolved, materialize
from schemas.exact_json import json_dumps, json_loads
from schemas.functions import FunctionCode

Role = Literal["source", "insert", "destination"]
Result = Literal["same", "changed", "split", "handled", "dropped", "retry", "refused", "failed"]
PIECE: Final = 100  # events tried at once
_FAULTS: Final = frozenset(
    {
        FunctionCode.RAISED,
        FunctionCode.ANSWER,
        FunctionCode.TIMEOUT,
        FunctionCode.MEMORY,
        FunctionCode.CRASHED,
        FunctionCode.LOCKED_OUT,
    }
)


@dataclass(frozen=True, slots=True)
class Use:
    """Where a configuration names a function."""

    key: str
    role: Role
    config: FunctionConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A function: `problem` says why it cannot be loaded."""

    name: str
    handlers: Sequence[str]
    used_by: Sequence[str]
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What became of an event. `after` are the events that stand in its place; `reason` says why there are none."""

    result: Result
    message_id: str
    type: str
    before: dict[str, Any]
    after: Sequence[dict[str, Any]]
    reason: str = ""

    def told(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "messageId": self.message_id,
            "type": self.type,
            "result": self.result,
            "reason": self.reason,
            "before": self.before,
            "after": list(self.after),
        }


def uses(settings: Settings) -> Iterator[Use]:
    """Every place where the configuration names a function."""
    for name, source in settings.sources.items():
        if source.function is not None:
            yield Use(f"sources.{name}", "source", source.function)
    for name, destination in settings.destinations.items():
        if destination.function is not None:
            yield Use(f"destinations.{name}", "insert", destination.function)
    for name, own in settings.destination_settings.items():
        if isinstance(own, FunctionConfig):
            yield Use(f"destinations.{name}", "destination", own)


async def listed(settings: Settings) -> list[Listed]:
    """Every file of the functions' folder, each loaded once, without a network."""
    folder = functions_folder(settings.environment, settings.config)
    used = list(uses(settings))
    found = []
    for file in sorted(folder.glob("*.py")):
        by = [use for use in used if use.config.name == file.stem]
        config = by[0].config if by else FunctionConfig.model_construct(name=file.stem)
        handlers, problem = await _loaded(spec_of(config, folder, by[0].role if by else "insert", None))
        keys = [f"{use.key} ({use.role})" for use in by]
        found.append(Listed(name=file.stem, handlers=sorted(handlers), used_by=keys, problem=problem))
    return found


async def _loaded(spec: Spec) -> tuple[frozenset[str], str | None]:
    runner = Runner(spec, lambda words: None)
    try:
        return await runner.open(), None
    except Unavailable as error:
        return frozenset(), str(error)
    finally:
        await runner.close()


def spec_for(file: Path, role: Role | None, settings: Settings, allow: Sequence[str] | None) -> Spec:
    """How a file is tried: as the configuration uses it, else as an insert with the defaults. ConfigError when it cannot be read."""
    file = file.absolute()
    config, plays = FunctionConfig.model_construct(name=file.stem), role or "insert"
    if functions_folder(settings.environment, settings.config) == file.parent:
        by = [one for one in uses(settings) if one.config.name == file.stem and role in (None, one.role)]
        if by:
            config, plays = by[0].config, by[0].role
    return spec_of(config, file.parent, plays, allow)


def as_recorded(number: int, event: dict[str, Any], now: int) -> Resolved:
    """An event from a file as the log would hold it; `now` in microseconds is when it came. ValueError when it cannot be one."""
    user, anonymous = event.get("userId"), event.get("anonymousId")
    made = Event(
        source="test",
        type=str(event.get("type")),
        message_id=str(event.get("messageId") or f"event-{number}"),
        anonymous_id=anonymous if isinstance(anonymous, str) else None,
        user_id=user if isinstance(user, str) else None,
        timestamp=now,
        sent_at=None,
        received_at=now,
        channel="client",
        ip=None,
        refused=None,
        body=json_dumps(event),
    )
    return Resolved("", Origin(0, number), (), made)


async def tried(
    spec: Spec, events: Sequence[Resolved], said: Callable[[bytes], None], heard: Callable[[Trial], None]
) -> None:
    """Tells `heard` what the function makes of each event, in order; `said` of what it prints. Unavailable: it cannot be loaded."""
    async with running(spec, said) as runner:
        for start in range(0, len(events), PIECE):
            piece = events[start : start + PIECE]
            sent = [seen(one) for one in piece]
            for one, was, answer in zip(piece, sent, await runner.run(sent), strict=True):
                heard(_trial(one, was, answer))


def _trial(resolved: Resolved, sent: bytes, answer: Answer) -> Trial:
    event, before = resolved.event, json_loads(sent)

    def trial(result: Result, after: Sequence[dict[str, Any]] = (), reason: str = "") -> Trial:
        return Trial(
            result=result, message_id=event.message_id, type=event.type, before=before, after=after, reason=reason
        )

    if answer.kind is Kind.EVENT and answer.data == sent:
        return trial("same", [before])
    if answer.kind in (Kind.EVENT, Kind.SEVERAL):
        made = json_loads(answer.data)
        try:
            events = [changed(event, one) for one in (made if answer.kind is Kind.SEVERAL else [made])]
        except ValueError as error:
            return trial("failed", reason=f"{FunctionCode.ANSWER}: {error}")
        after = [materialize(replace(resolved, event=one, context=None)) for one in events]
        if len(after) == 1:
            return trial("same" if after[0] == before else "changed", after)
        return trial("split", after)
    means = outcome(answer, 0.0)
    return trial(_result(means), reason="" if isinstance(means, Delivered) else means.reason)


def _result(means: Outcome) -> Result:
    if isinstance(means, Delivered):
        return "handled"
    if means.reason.partition(":")[0] in _FAULTS:
        return "failed"
    if isinstance(means, Filtered):
        return "dropped"
    return "refused" if isinstance(means, Rejected) else "retry"
