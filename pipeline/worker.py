"""The pipeline's process: events in, one transaction per poll, resolved events out."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import structlog

from pipeline.emission import emit
from pipeline.enrich import Enrichment
from pipeline.functions.runner import Runner
from pipeline.functions.source import Ran, through
from pipeline.log import Batch, Log
from pipeline.parse import Work, parse
from pipeline.running import ahead, one_behind, steadily, until
from pipeline.store.database import Database
from pipeline.store.intake import Emission, applied_positions, apply, positions
from pipeline.store.rules import in_force
from pipeline.store.transformed import any_left, apply_transformed
from pipeline.telling import append_changes
from schemas.errors import PartitionLost, Unavailable
from schemas.identity import IdentityConfig
from schemas.topics import EVENTS

GROUP = "pipeline"
T = TypeVar("T")

log = structlog.get_logger()


async def run_worker(
    events: Log,
    database: Database,
    *,
    stop: asyncio.Event,
    identity: IdentityConfig | None = None,
    enrichment: Enrichment | None = None,
    functions: Mapping[str, Runner] | None = None,
    max_records: int = 4_000,
) -> None:
    """Works until `stop` is set, then finishes the poll in hand. Without `enrichment`, events go on as they came; `identity` is
    the configuration of which a new version begins when it is not the latest; `functions` are those of sources, by name.

    Order of promises: the transaction, then `profile-changes` and `resolved`, then the commit. Whatever dies in between, the next member
    begins where emission was last known to be complete and emits again what may be missing. One poll is emitted while the
    next is read and applied. Where the database is a server of its own, one more is read meanwhile; SQLite runs on our
    processor, and would wait for the interpreter between its statements."""
    config = identity or IdentityConfig()
    enrichment = enrichment or Enrichment()
    emitted: dict[int, int] = {}

    async def start(assigned: Sequence[int]) -> Mapping[int, int]:
        known = await steadily(lambda: database.read(positions), stop, "reading positions")
        emitted.update({partition: known.get(partition, 0) for partition in assigned})
        return {partition: emitted[partition] for partition in assigned}

    async with events.subscribe(EVENTS, group=GROUP, start=start, max_records=max_records) as subscription:
        with suppress(Unavailable):  # asked to stop during an outage: the next start goes on from here
            rules = await steadily(
                lambda: database.run(lambda connection: in_force(connection, config)),
                stop,
                "reading the identity rules",
            )
            left = await steadily(lambda: database.read(any_left), stop, "reading what functions made")
            runners = functions or {}

            def parsed(batches: Sequence[Batch]) -> Work:
                enrichment.refresh()
                return parse(batches, enrichment, rules)

            async def transformed(batches: Sequence[Batch]) -> tuple[Work, Ran | None]:
                if not runners and not left:
                    return await asyncio.to_thread(parsed, batches), None
                ran = await through(runners, batches)
                await steadily(lambda: _give_back(events, database, ran), stop, "adding what functions split off")
                work = await asyncio.to_thread(parsed, ran.batches)
                return replace(work, refusals=[*work.refusals, *ran.refusals]), ran

            polls = _polls(until(stop, aiter(subscription)), transformed)
            async with one_behind() as begin:
                async for batches, (work, ran) in ahead(polls) if database.postgres else polls:

                    async def applied(work: Work = work, ran: Ran | None = ran) -> list[Emission]:
                        if ran is None:
                            return await database.run(lambda connection: apply(connection, work, emitted, rules))
                        return await database.run(
                            lambda connection: apply_transformed(connection, work, ran, emitted, rules, parsed)
                        )

                    emissions = await steadily(applied, stop, "applying events")

                    async def told(
                        batches: Sequence[Batch] = batches, work: Work = work, emissions: list[Emission] = emissions
                    ) -> None:
                        changes = [change for one in emissions if one.changes for change in one.changes]
                        await steadily(lambda: append_changes(events, changes), stop, "emitting changes of profiles")
                        await emit(events, emissions, stop)
                        emitted.update(work.ends)
                        with suppress(PartitionLost):
                            await subscription.commit(batches)

                    await begin(told)


async def _polls(
    polls: AsyncIterator[Sequence[Batch]], work: Callable[[Sequence[Batch]], Awaitable[T]]
) -> AsyncIterator[tuple[Sequence[Batch], T]]:
    async for batches in polls:
        yield batches, await work(batches)


async def _give_back(events: Log, database: Database, ran: Ran) -> None:
    """Appends what splits added. Those of records that are applied were appended before."""
    if ran.added:
        applied = await database.read(applied_positions)
        fresh = [record for origin, record in ran.added if origin.offset >= applied.get(origin.partition, 0)]
        await events.append(EVENTS, fresh)
