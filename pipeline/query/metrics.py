"""/metrics: the books, the lag of every group and the age of what waits, in the Prometheus text format."""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from pipeline.log import Log
from pipeline.query import delivery_metrics
from pipeline.store import books, observations
from pipeline.store.books import Books
from pipeline.store.database import Database
from schemas.topics import EVENTS, RESOLVED

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
Bounds = Mapping[int, tuple[int, int]]


async def exposition(log: Log, database: Database, more: Iterable[Metric]) -> bytes:
    """The text. Unavailable when the database or the log cannot be asked."""
    snapshot = await database.read(books.read)
    seen = await database.read(observations.totals)
    families = [
        *more,
        *_families(snapshot, await log.bounds(EVENTS), await log.bounds(RESOLVED)),
        *delivery_metrics.families(seen),
    ]
    registry = CollectorRegistry()
    registry.register(_Fixed(families))
    return generate_latest(registry)


class _Fixed(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def _families(snapshot: Books, events: Bounds, resolved: Bounds) -> Iterator[Metric]:
    intake = CounterMetricFamily(
        "millrace_pipeline_events",
        "Events the pipeline took from the log, by source and result.",
        labels=["source", "result"],
    )
    for source, counts in sorted(snapshot.intake.items()):
        for result in ("accepted", "duplicates", "refused"):
            intake.add_metric([source, result], getattr(counts, result))
    yield intake
    settled = CounterMetricFamily(
        "millrace_destination_events",
        "Events that are settled at a destination, by source and outcome.",
        labels=["destination", "source", "outcome"],
    )
    for (name, source), done in sorted(snapshot.settled.items()):
        for outcome, count in (
            ("delivered", done.delivered),
            ("filtered", done.filtered),
            ("dead", done.died),
            ("redriven", done.redriven),
            ("purged", done.purged),
        ):
            settled.add_metric([name, source, outcome], count)
    yield settled
    outstanding = GaugeMetricFamily(
        "millrace_destination_outstanding_events",
        "Events held back or waiting for a retry.",
        labels=["destination", "source"],
    )
    for (name, source), count in sorted(snapshot.outstanding.items()):
        outstanding.add_metric([name, source], count)
    yield outstanding
    oldest = GaugeMetricFamily(
        "millrace_destination_oldest_outstanding_seconds",
        "Age of the oldest event held back or waiting for a retry.",
        labels=["destination"],
    )
    for name, at in sorted(snapshot.oldest.items()):
        oldest.add_metric([name], max(0.0, time.time() - at / 1e6))
    yield oldest
    lag = GaugeMetricFamily("millrace_lag_records", "Records of the log that a group has not read.", labels=["group"])
    lag.add_metric(["pipeline"], sum(max(0, end - snapshot.applied.get(p, 0)) for p, (_, end) in events.items()))
    for name in sorted({name for name, _ in snapshot.positions}):
        read = {p: offset for (one, p), (offset, _) in snapshot.positions.items() if one == name}
        lag.add_metric([f"destination.{name}"], sum(max(0, end - read.get(p, 0)) for p, (_, end) in resolved.items()))
    yield lag
