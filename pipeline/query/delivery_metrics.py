"""What was seen of deliveries, in Prometheus's shape: counters and histograms that only grow."""

from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

from pipeline.latency import BOUNDS, PER_DOUBLING
from pipeline.store.observations import Minute

_SHOWN: Final = range(0, len(BOUNDS) - 8 * PER_DOUBLING, 2 * PER_DOUBLING)
"""Bounds that are exposed: a millisecond to three hours, each four times the one before."""


def families(totals: Mapping[str, Minute]) -> Iterator[Metric]:
    """Attempts by result, and how long deliveries took from acceptance."""
    attempts = CounterMetricFamily(
        "millrace_destination_attempts",
        "Attempts at events by what came of them; an event that is tried twice counts twice.",
        labels=["destination", "result"],
    )
    latency = HistogramMetricFamily(
        "millrace_destination_latency_seconds",
        "Time from the acceptance of an event to its delivery.",
        labels=["destination"],
    )
    for name, seen in totals.items():
        for result in ("delivered", "retried", "rejected"):
            attempts.add_metric([name, result], getattr(seen, result))
        latency.add_metric([name], _buckets(seen.latency), sum_value=None)
    yield attempts
    yield latency


def _buckets(counts: Mapping[int, int]) -> list[tuple[str, float]]:
    shown = [
        (repr(BOUNDS[bound] / 1e6), float(sum(count for index, count in counts.items() if index <= bound)))
        for bound in _SHOWN
    ]
    return [*shown, ("+Inf", float(sum(counts.values())))]
