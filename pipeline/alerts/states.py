"""From what is wrong to who is told what, without flapping: an alert fires once, resolves once, and is repeated rarely. Pure.

An alert is `ok`, `pending` (wrong, not yet for long enough), `firing`, or `calming` (right again, not yet for long enough). One that fires
again within an hour is `firing again`, and then takes an hour of calm: what comes and goes is told twice at most, and then that it is over.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from pipeline.alerts.conditions import DAY, HOUR, Condition
from schemas.notices import Notice

REPEAT: Final = DAY
AGAIN: Final = HOUR  # between two beginnings that are one trouble, and the calm that ends it
State = Literal["ok", "pending", "firing", "calming", "firing again", "calming again"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Where one alert stands. `fired` is when its present or last firing began, `since` when its state did; `told` is what each
    channel heard last: the id of a notice. Times are microseconds."""

    name: str
    state: State = "ok"
    since: int = 0
    fired: int = 0
    text: str = ""
    remedy: str = ""
    told: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_on(self) -> bool:
        """People know of it, and not that it is over."""
        return self.state not in ("ok", "pending")


def advance(known: Mapping[str, Alert], seen: Iterable[Condition], now: int) -> dict[str, Alert]:
    """The alerts after one more look. What no rule looks at any more (a destination that was removed) is right again."""
    found = {one.alert: one for one in seen}
    after = {}
    for name in sorted(known.keys() | found.keys()):
        alert = known.get(name) or Alert(name=name)
        condition = found.get(name) or Condition(name, False, alert.text, alert.remedy)
        after[name] = alert if condition.wrong is None else _moved(alert, condition, now)
    return {name: alert for name, alert in after.items() if is_open(alert, now)}


def is_open(alert: Alert, now: int) -> bool:
    """Whether it is to be remembered: not right, or somebody heard of the trouble and not yet that it is over, or it may come back."""
    deaf = any(one.startswith("firing ") for one in alert.told.values())
    return alert.state != "ok" or deaf or _was_on(alert, now)


def _was_on(alert: Alert, now: int) -> bool:
    return bool(alert.fired) and now - alert.fired < AGAIN


def _moved(alert: Alert, condition: Condition, now: int) -> Alert:
    if condition.wrong:
        told = replace(alert, text=condition.text, remedy=condition.remedy)
        if alert.state == "ok":
            told = replace(told, state="pending", since=now)
        if alert.state == "calming":
            return replace(told, state="firing", since=alert.fired)
        if alert.state == "calming again":
            return replace(told, state="firing again", since=alert.fired)
        if told.state == "pending" and now - told.since >= condition.hold:
            return replace(told, state="firing again" if _was_on(alert, now) else "firing", since=now, fired=now)
        return told
    if alert.state == "firing":
        alert = replace(alert, state="calming", since=now)
    if alert.state == "firing again":
        alert = replace(alert, state="calming again", since=now)
    calm = max(condition.calm, AGAIN) if alert.state == "calming again" else condition.calm
    if alert.state == "pending" or (alert.is_on and now - alert.since >= calm):
        return replace(alert, state="ok", since=now)
    return alert


def due(alert: Alert, channels: Iterable[str], now: int) -> dict[str, Notice]:
    """What each channel has to hear. A channel that never heard of the trouble is not told that it is over."""
    return {
        name: notice
        for name in channels
        if (notice := _notice(alert, alert.told.get(name, ""), now)) is not None and alert.told.get(name) != notice.id
    }


def _notice(alert: Alert, heard: str, now: int) -> Notice | None:
    if alert.is_on:
        wrong = alert.state in ("firing", "firing again")
        times = (now - alert.fired) // REPEAT if wrong else 0
        if not wrong and heard.startswith(f"firing {alert.fired} "):
            return None
        return _make(alert, "firing", f"firing {alert.fired} {times}", now)
    if alert.state == "ok" and heard.startswith("firing "):
        return _make(alert, "resolved", f"resolved {alert.fired}", now)
    return None


def _make(alert: Alert, state: Literal["firing", "resolved"], told: str, now: int) -> Notice:
    return Notice(
        id=told, alert=alert.name, state=state, text=alert.text, remedy=alert.remedy, since=alert.fired, at=now
    )
