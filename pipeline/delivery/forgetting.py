"""Tells a destination which people it has to forget, once everything of theirs that was on its way is through. At least once,
with retries; a destination that does not know how is never asked."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog
from sqlalchemy import Connection

from destinations.contract import Delivered, Filtered, Outcome, Person, Rejected, Retry
from pipeline.delivery.limits import Destination, Limits, World
from pipeline.delivery.poll import micros
from pipeline.delivery.retry import delay
from pipeline.store import erasing, erasures, forget
from pipeline.store.database import Database
from pipeline.store.erasures import Telling
from schemas.errors import CredentialsRejected, Unavailable
from schemas.events import iso

log = structlog.get_logger()

LOOK: Final = 1.0  # seconds between two looks


async def keep_forgetting(
    destination: Destination, client: Any, database: Database, *, stop: asyncio.Event, limits: Limits, world: World
) -> None:
    """Tells the destination whenever there is somebody to forget, until it is cancelled."""
    if destination.definition.forget is None:
        return
    while not stop.is_set():
        try:
            await forget_now(destination, client, database, limits=limits, world=world)
        except Unavailable as error:
            log.warning("nobody forgotten for now", destination=destination.name, error=str(error))
        except Exception as error:  # a fault of ours: deliveries go on
            log.exception(
                "forgetting broke; it is tried again", destination=destination.name, error=type(error).__name__
            )
        await world.sleep(LOOK)


async def forget_now(destination: Destination, client: Any, database: Database, *, limits: Limits, world: World) -> int:
    """Tells what is due; how many requests that were."""
    now = micros(world.now())
    due = await database.read(lambda connection: _due(connection, destination.name, now))
    if not due:
        return 0
    outcomes = await _told(destination, client, [person for _, person in due], limits.attempt)
    after = [
        _after(telling, outcome, now, delay(telling.attempts + 1, _asked(outcome), world.chance(), limits))
        for (telling, _), outcome in zip(due, outcomes, strict=True)
    ]

    def note(connection: Connection) -> None:
        for one in after:
            erasures.told(connection, one)

    await database.run(note)
    for one in after:
        if one.status == "RUNNING":
            log.warning("destination has not forgotten yet", destination=destination.name, error=one.error)
    return len(after)


def _due(connection: Connection, destination: str, now: int) -> list[tuple[Telling, Person]]:
    """Whom the destination is to forget, with nothing of theirs on its way to it any more."""
    found = []
    position: dict[int, int] | None = None
    for one in erasures.tellings(connection, destination=destination):
        if one.next_at > now or one.barrier is None:
            continue
        if position is None:
            position = erasing.position_of(connection, destination)
        if any(position.get(partition, 0) < end for partition, end in one.barrier.items() if end):
            continue
        regulation = erasures.find(connection, one.regulation)
        if regulation is None or regulation.work is None:
            continue
        work = regulation.work
        if forget.outstanding(connection, work["profiles"]).get(destination):
            continue
        person = Person(
            regulation=one.regulation,
            ids=[(kind, value) for kind, _, value in (key.partition(":") for key in sorted(work["ids"]))],
            profiles=work["profiles"],
            formerly=work["formerly"],
            deleted_at=iso(max(work["ids"].values(), default=regulation.created_at)),
        )
        found.append((one, person))
    return found


async def _told(destination: Destination, client: Any, people: Sequence[Person], timeout: float) -> Sequence[Outcome]:
    action = destination.definition.forget
    assert action is not None, "whoever cannot is not asked"
    try:
        async with asyncio.timeout(timeout):
            outcomes = await action(client, people)
    except CredentialsRejected as error:
        return [Retry(str(error))] * len(people)
    except TimeoutError:
        return [Retry("timeout")] * len(people)
    except Exception as error:  # whatever a destination raises concerns it alone
        log.exception("destination raised while forgetting", destination=destination.name, error=type(error).__name__)
        return [Retry(type(error).__name__)] * len(people)
    if len(outcomes) != len(people):
        return [Retry(f"{len(outcomes)} outcomes for {len(people)} people")] * len(people)
    return outcomes


def _asked(outcome: Outcome) -> float | None:
    return outcome.after if isinstance(outcome, Retry) else None


def _after(one: Telling, outcome: Outcome, now: int, wait: float) -> Telling:
    attempts = one.attempts + 1
    if isinstance(outcome, Delivered):
        return one._replace(status="FINISHED", attempts=attempts, error="", finished_at=now)
    reason = outcome.reason
    if isinstance(outcome, Rejected | Filtered):
        status = "FAILED" if isinstance(outcome, Rejected) else "NOT_SUPPORTED"
        return one._replace(status=status, attempts=attempts, error=reason, finished_at=now)
    return one._replace(status="RUNNING", attempts=attempts, error=reason, next_at=now + round(wait * 1e6))


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs `work` while the block runs. It has to see to its own errors."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
