"""The pipeline's process: events in, one transaction per poll, resolved events out."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress

import structlog

from pipeline.enrich import Enrichment
from pipeline.identity import Rules
from pipeline.log import Batch, Log, Record
from pipeline.parse import Work, parse
from pipeline.running import ahead, one_behind, steadily, until
from pipeline.store.database import Database
from pipeline.store.intake import Emission, apply, positions
from pipeline.store.rules import in_force
from schemas.errors import PartitionLost, Unavailable
from schemas.events import encode_resolved
from schemas.identity import IdentityConfig
from schemas.topics import EVENTS, RESOLVED

GROUP = "pipeline"

log = structlog.get_logger()


async def run_worker(
    events: Log,
    database: Database,
    *,
    stop: asyncio.Event,
    identity: IdentityConfig | None = None,
    enrichment: Enrichment | None = None,
    max_records: int = 4_000,
) -> None:
    """Works until `stop` is set, then finishes the poll in hand. Without `enrichment`, events go on as they came; `identity` is
    the configuration of which a new version begins when it is not the latest.

    Order of promises: the transaction, then `resolved`, then the commit. Whatever dies in between, the next member
    begins where emission was last known to be complete and emits again what may be missing. One poll is emitted while the
    next is read and applied. Where the database is a server of its own, one more is read meanwhile; SQLite runs on our
    processor, and each of its rows would wait for its turn."""
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
            polls = _polls(until(stop, aiter(subscription)), enrichment, rules)
            async with one_behind() as begin:
                async for batches, work in ahead(polls) if database.postgres else polls:

                    async def applied(work: Work = work) -> list[Emission]:
                        return await database.run(lambda connection: apply(connection, work, emitted, rules))

                    emissions = await steadily(applied, stop, "applying events")

                    async def emit(
                        batches: Sequence[Batch] = batches, work: Work = work, emissions: list[Emission] = emissions
                    ) -> None:
                        records = _records(emissions)
                        await steadily(lambda: events.append(RESOLVED, records), stop, "emitting resolved events")
                        emitted.update(work.ends)
                        with suppress(PartitionLost):
                            await subscription.commit(batches)

                    await begin(emit)


async def _polls(
    polls: AsyncIterator[Sequence[Batch]], enrichment: Enrichment, rules: Rules
) -> AsyncIterator[tuple[Sequence[Batch], Work]]:
    async for batches in polls:
        yield batches, await asyncio.to_thread(_parsed, batches, enrichment, rules)


def _parsed(batches: Sequence[Batch], enrichment: Enrichment, rules: Rules) -> Work:
    enrichment.refresh()
    return parse(batches, enrichment, rules)


def _records(emissions: Sequence[Emission]) -> list[Record]:
    """Keyed by profile, so that a person's events stay in order. Stamped with the present, not the event's time: the path
    of an event is found by when it was processed."""
    now = time.time_ns() // 1_000_000
    return [
        Record(
            one.profile.encode() or one.fallback_key,
            encode_resolved(one.profile, one.origin, one.ids, one.value, one.context),
            now,
        )
        for one in emissions
    ]
