"""Fails on demand in every way the contract names. For tests of the engine; harmless and useless elsewhere.

What it does with a call comes from `plan`, one step per call of `deliver`; afterwards from the events themselves
(`properties.hostile`, a step or its `do` alone) and from `profiles`. It notes every event it was handed, in order.
"""

import asyncio
import os
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping, MutableSequence, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, Field

from destinations.contract import DELIVERED, Action, Definition, Env, Outcome, RawEvent, Rejected, Retry, Settings
from schemas.errors import CredentialsRejected, Unavailable
from schemas.events import TYPES

Deed = Literal["delivered", "retry", "rejected", "credentials", "raise", "hang", "slow", "wrong length"]


class Step(BaseModel):
    """One thing to do. In an event, `retry` and `rejected` concern that event; the other deeds the whole call."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    do: Deed = Field("delivered", description="What happens.")
    reason: str = Field("hostile", description="Reason of a retry or a rejection.")
    after: float | None = Field(None, ge=0, description="Seconds that a retry asks for.")
    seconds: float = Field(0.1, ge=0, description="How long `slow` takes before all is delivered.")
    times: int = Field(
        1, ge=1, description="In a plan: for so many calls. In an event: for the first so many attempts at it."
    )


class HostileSettings(Settings):
    """How to misbehave."""

    plan: tuple[Step, ...] = Field((), description="What each call of deliver does, in order; then the events decide.")
    profiles: dict[str, int] = Field(
        default_factory=dict,
        description="Profile, user or anonymous id to the number of attempts at its events that end in a retry.",
    )
    after: float | None = Field(None, ge=0, description="Seconds that the retries of `profiles` ask for.")
    record: str | None = Field(
        None, description="File to which a JSON line per event is appended; relative to the data folder."
    )
    connect: Literal["works", "credentials", "unavailable", "raise"] = Field(
        "works", description="How connecting ends."
    )
    check: Literal["works", "credentials", "unavailable", "raise"] = Field("works", description="How a check ends.")


class Call(NamedTuple):
    """What one call of `deliver` was handed, and what it did. An answer is `delivered`, `retry`, `rejected`, or the
    deed that left the whole call without an answer."""

    message_ids: tuple[str, ...]
    profile_ids: tuple[str | None, ...]
    answers: tuple[str, ...]


@dataclass(slots=True)
class Hostile:
    """An open connection. `calls` grows with each call of `deliver`."""

    settings: HostileSettings
    env: Env
    calls: MutableSequence[Call]
    plan: list[Step]
    attempts: Counter[str] = field(default_factory=Counter)  # by message id
    failures: Counter[str] = field(default_factory=Counter)  # by key of `profiles`


async def send_events(hostile: Hostile, batch: Sequence[RawEvent]) -> Sequence[Outcome]:
    """Does what the plan, else the events, say."""
    if hostile.plan:
        step = hostile.plan.pop(0)
        steps = [step] * len(batch)
    else:
        steps = [_step_of(hostile, event) for event in batch]
        step = next((one for one in steps if one.do not in ("delivered", "retry", "rejected")), Step())
    unanswered = step.do in ("credentials", "raise", "hang", "wrong length")
    _note(hostile, batch, [step.do] * len(batch) if unanswered else [_ANSWER.get(one.do, one.do) for one in steps])
    match step.do:
        case "credentials":
            raise CredentialsRejected(step.reason)
        case "raise":
            raise RuntimeError(step.reason)
        case "hang":
            await asyncio.get_running_loop().create_future()
        case "slow":
            await asyncio.sleep(step.seconds)
        case "wrong length":
            return [DELIVERED] * (len(batch) + 1)
        case _:
            pass
    return [_outcome(one) for one in steps]


_ANSWER: Final = {"slow": "delivered"}


def _outcome(step: Step) -> Outcome:
    if step.do == "retry":
        return Retry(step.reason, step.after)
    return Rejected(step.reason) if step.do == "rejected" else DELIVERED


def _step_of(hostile: Hostile, event: RawEvent) -> Step:
    """What an event asks for at this attempt."""
    for key in (event.get("profileId"), event.get("userId"), event.get("anonymousId")):
        if isinstance(key, str) and hostile.failures[key] < hostile.settings.profiles.get(key, 0):
            hostile.failures[key] += 1
            return Step(do="retry", reason="hostile profile", after=hostile.settings.after)
    properties = event.get("properties")
    wish = properties.get("hostile") if isinstance(properties, Mapping) else None
    if wish is None:
        return Step()
    step = Step.model_validate({"do": wish} if isinstance(wish, str) else wish)
    hostile.attempts[event["messageId"]] += 1
    forever = isinstance(wish, str)
    return step if forever or hostile.attempts[event["messageId"]] <= step.times else Step()


def _note(hostile: Hostile, batch: Sequence[RawEvent], answers: Sequence[str]) -> None:
    call = Call(
        tuple(event["messageId"] for event in batch), tuple(event.get("profileId") for event in batch), tuple(answers)
    )
    hostile.calls.append(call)
    if hostile.settings.record is not None:
        _append(Path(hostile.env.folder) / hostile.settings.record, call, hostile.env.now())


def _append(path: Path, call: Call, now: float) -> None:
    """One write of whole lines in append mode, so that several processes can share the file."""
    lines = b"".join(
        orjson.dumps(
            {"messageId": message, "profileId": profile, "answer": answer, "at": now},
            option=orjson.OPT_APPEND_NEWLINE,
        )
        for message, profile, answer in zip(*call, strict=True)
    )
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, lines)
    finally:
        os.close(handle)


def _end(how: str) -> None:
    if how == "credentials":
        raise CredentialsRejected("hostile")
    if how == "unavailable":
        raise Unavailable("hostile")
    if how == "raise":
        raise RuntimeError("hostile")


async def check(hostile: Hostile) -> None:
    """Ends as the settings say."""
    _end(hostile.settings.check)


def hostile_destination(
    calls: MutableSequence[Call], *, max_batch: int = 100, atomic: bool = False, concurrency: int = 8
) -> Definition[HostileSettings, Hostile]:
    """A hostile destination that notes its calls in `calls`, over all of its connections."""

    @asynccontextmanager
    async def connect(settings: HostileSettings, env: Env) -> AsyncIterator[Hostile]:
        _end(settings.connect)
        plan = [step for step in settings.plan for _ in range(step.times)]
        yield Hostile(settings, env, calls, plan)

    return Definition(
        name="hostile",
        description="Fails on demand in every way there is. For tests.",
        settings=HostileSettings,
        connect=connect,
        check=check,
        actions=(
            Action(
                name="send_events",
                payload=None,
                types=TYPES,
                max_batch=max_batch,
                deliver=send_events,
                atomic=atomic,
                concurrency=concurrency,
            ),
        ),
    )


def _connect(settings: HostileSettings, env: Env) -> AbstractAsyncContextManager[Hostile]:
    """The registered destination remembers its last calls only: a process may live long."""
    return hostile_destination(deque(maxlen=1_000)).connect(settings, env)


definition: Final = replace(hostile_destination([]), connect=_connect)
