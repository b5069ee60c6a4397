"""The collector's own counters in the form that /metrics shows."""

from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from collector.app import Collector


def ingest_metrics(collector: Collector) -> Iterable[Metric]:
    """What this process has counted since it started."""
    counts = collector.counts
    requests = CounterMetricFamily(
        "millrace_collector_requests", "Requests answered, by source and status.", labels=("source", "status")
    )
    for (source, status), number in sorted(counts.requests.items()):
        requests.add_metric((source, str(status)), number)
    accepted = CounterMetricFamily(
        "millrace_collector_events", "Events in the log that proceed, by source.", labels=("source",)
    )
    for source, number in sorted(counts.accepted.items()):
        accepted.add_metric((source,), number)
    refused = CounterMetricFamily(
        "millrace_collector_refused_events",
        "Events in the log that do not, by source and reason.",
        labels=("source", "reason"),
    )
    for (source, reason), number in sorted(counts.refused.items()):
        refused.add_metric((source, reason), number)
    turned_away = CounterMetricFamily(
        "millrace_collector_refused_requests",
        "Requests of which nothing was kept, for the client's faults, by source and reason.",
        labels=("source", "reason"),
    )
    for (source, reason), number in sorted(counts.turned_away.items()):
        turned_away.add_metric((source, reason), number)
    received = CounterMetricFamily(
        "millrace_collector_received_bytes", "Request bodies as they came over the wire, by source.", labels=("source",)
    )
    for source, number in sorted(counts.bytes.items()):
        received.add_metric((source,), number)
    disconnected = CounterMetricFamily(
        "millrace_collector_disconnects",
        "Requests whose client left before the body was complete.",
        counts.disconnected,
    )
    in_flight = GaugeMetricFamily(
        "millrace_collector_in_flight_bytes", "Bytes received and not yet answered for.", collector.in_flight_bytes
    )
    return (requests, accepted, refused, turned_away, received, disconnected, in_flight)
