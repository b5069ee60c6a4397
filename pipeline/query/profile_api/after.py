"""Read your write: waits until an event that was just accepted has been applied.

The collector answered when the event was in the log, so it stands before the log's end as it is now: once the pipeline has come that
far, the event was applied, refused, or never there."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from pipeline.log import Log
from pipeline.profile import message_key
from pipeline.store import accepted, paths
from pipeline.store.database import Database
from pipeline.store.intake import applied_positions
from schemas.errors import Refused
from schemas.topics import EVENTS

PATIENCE: Final = 10.0  # seconds
_PAUSES: Final = (0.002, 0.05)  # seconds between two looks: the first, growing to the last


@dataclass(slots=True)
class _Wait:
    """Somebody's message, the end of the log when they asked, and the answer: whether it was applied."""

    message_id: str
    ends: Mapping[int, int]
    answer: "asyncio.Future[bool]"


class Applied:
    """Waits for all requests of a process with one question to the database at a time."""

    def __init__(self, log: Log, database: Database) -> None:
        self._log, self._database = log, database
        self._waits: list[_Wait] = []
        self._watch: asyncio.Task[None] | None = None

    async def wait(self, message_id: str, patience: float = PATIENCE) -> None:
        """Returns once an event with this messageId has been applied, or had been before. Refused when none was accepted (400) and
        when it takes longer than `patience` seconds (504)."""
        if not message_id or "\0" in message_id or len(message_id) > 1_000:
            raise Refused("validation_error", "after must be the messageId of an event.")
        ends = {partition: end for partition, (_, end) in (await self._log.bounds(EVENTS)).items()}
        wait = _Wait(message_id, ends, asyncio.get_running_loop().create_future())
        self._waits.append(wait)
        if self._watch is None:
            self._watch = asyncio.ensure_future(self._look())
        try:
            async with asyncio.timeout(patience):
                applied = await wait.answer
        except TimeoutError as error:
            raise Refused(
                "not_applied", f"The event was not applied within {patience:g} seconds; ask again.", status=504
            ) from error
        finally:
            if wait in self._waits:
                self._waits.remove(wait)
        if not applied:
            problem = "No event with that messageId was accepted; `millrace event` says whether it was refused."
            raise Refused("validation_error", f"after: {problem}")

    async def _look(self) -> None:
        pause, began = _PAUSES[0], time.monotonic()
        try:
            while self._waits:
                waiting = list(self._waits)
                await self._answer(waiting)
                if any(one.answer.done() for one in waiting):
                    pause, began = _PAUSES[0], time.monotonic()
                await asyncio.sleep(pause)
                pause = min(_PAUSES[1], max(pause, (time.monotonic() - began) / 4))
        finally:
            self._watch = None

    async def _answer(self, waiting: Sequence[_Wait]) -> None:
        messages = sorted({one.message_id for one in waiting})
        try:
            applied, positions = await self._database.read(lambda connection: _look_at(connection, messages))
        except Exception as error:
            for one in waiting:
                if not one.answer.done():
                    one.answer.set_exception(error)
            self._waits = [one for one in self._waits if one not in waiting]
            return
        for one in waiting:
            passed = all(positions.get(partition, 0) >= end for partition, end in one.ends.items())
            if (one.message_id in applied or passed) and not one.answer.done():
                one.answer.set_result(one.message_id in applied)
        self._waits = [one for one in self._waits if not one.answer.done()]


def _look_at(connection: Connection, messages: Sequence[str]) -> tuple[set[str], dict[int, int]]:
    """Which of these messages were applied, whatever source sent them, and how far the pipeline has come: one snapshot."""
    keys = {message_key(source, one): one for source in paths.known_sources(connection) for one in messages}
    return {keys[key] for key in accepted.find(connection, keys)}, applied_positions(connection)
