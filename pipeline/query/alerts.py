"""Where each alert stands, for people and programs."""

from pipeline.alerts.states import Alert
from pipeline.store import alerts as store
from pipeline.store.database import Database
from schemas.delivery_api import AlertsPage, AlertView
from schemas.events import iso


async def page(database: Database) -> AlertsPage:
    """Every alert that is not right. One that is over and that a channel has yet to hear the end of is none."""
    known = await database.read(store.alerts)
    return AlertsPage(alerts=[view(one) for one in known.values() if one.state != "ok"])


def view(alert: Alert) -> AlertView:
    """One alert as it is told."""
    return AlertView(
        alert=alert.name,
        state=alert.state,
        since=iso(alert.since if alert.state == "pending" else alert.fired),
        text=alert.text,
        remedy=alert.remedy,
        told=sorted(name for name, heard in alert.told.items() if heard.startswith(f"firing {alert.fired} ")),
    )
