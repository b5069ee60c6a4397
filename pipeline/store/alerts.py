"""What the watch remembers: counters over time, where each alert stands, and who watches."""

from collections.abc import Iterable, Mapping
from typing import Final

import orjson
from sqlalchemy import Connection, delete, select, text

from pipeline.alerts.conditions import DAY, HOUR, Samples
from pipeline.alerts.states import Alert
from pipeline.store import bulk, schema

KEPT: Final = 2 * DAY + 2 * HOUR  # of samples; of those older than two hours one an hour
_THIN: Final = text("""
    DELETE FROM alert_samples WHERE at < :before AND EXISTS (
      SELECT 1 FROM alert_samples AS later
      WHERE later.name = alert_samples.name AND later.at > alert_samples.at AND later.at / :span = alert_samples.at / :span
    )
""")


def sample(connection: Connection, counters: Mapping[str, int], now: int) -> Samples:
    """Notes the counters and returns all that is remembered of them. Memory is bounded: minutes for two hours, then hours
    for two days."""
    table = schema.alert_samples
    bulk.upsert(connection, table, [(name, now, value) for name, value in sorted(counters.items())])
    connection.execute(_THIN, {"before": now - 2 * HOUR, "span": HOUR})
    connection.execute(delete(table).where(table.c.at < now - KEPT))
    found: dict[str, list[tuple[int, int]]] = {}
    for name, at, value in connection.execute(
        select(table.c.name, table.c.at, table.c.value).order_by(table.c.name, table.c.at)
    ):
        found.setdefault(name, []).append((at, value))
    return {name: samples for name, samples in found.items() if name in counters}


def alerts(connection: Connection) -> dict[str, Alert]:
    """Every alert that is not right, or that somebody has yet to hear the end of."""
    return {
        row.name: Alert(
            name=row.name,
            state=row.state,
            since=row.since,
            fired=row.fired,
            text=row.text,
            remedy=row.remedy,
            told=orjson.loads(row.told),
        )
        for row in connection.execute(select(schema.alerts).order_by(schema.alerts.c.name))
    }


def keep(connection: Connection, now: Iterable[Alert]) -> None:
    """Writes all there are; what is no longer among them is forgotten."""
    connection.execute(delete(schema.alerts))
    bulk.insert(
        connection,
        schema.alerts,
        [
            (one.name, one.state, one.since, one.fired, one.text, one.remedy, orjson.dumps(dict(one.told)).decode())
            for one in now
        ],
    )
