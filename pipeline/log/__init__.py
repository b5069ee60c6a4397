"""The event log: one interface, two implementations (`embedded`, `kafka`), one contract suite over both."""

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.log.contract import Batch, Log, Record, Retention, Start, Subscription
from schemas.errors import ConfigError

__all__ = ["Batch", "Log", "Record", "Retention", "Start", "Subscription", "open_log"]


def open_log(url: str, *, partitions: int = 8, retention: Retention | None = None) -> AbstractAsyncContextManager[Log]:
    """The log behind a URL: `embedded:///path/to/folder` or `kafka://host:port[,host:port]`.

    Creates what is missing (folder, topics). `partitions` counts for topics that do not exist yet."""
    retention = retention or Retention()
    scheme = urlsplit(url).scheme
    if scheme == "embedded":
        from pipeline.log.embedded import open_embedded

        return open_embedded(Path(url.removeprefix("embedded://")), partitions=partitions, retention=retention)
    if scheme == "kafka":
        from pipeline.log.kafka import open_kafka

        return open_kafka(url.removeprefix("kafka://"), partitions=partitions, retention=retention)
    raise ConfigError(f"log {url!r}: unknown scheme {scheme!r}; use embedded:///folder or kafka://host:port")
