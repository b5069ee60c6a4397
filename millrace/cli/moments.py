"""`--since`: a time span back from now, or a time."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

import click

_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Moment(click.ParamType[datetime]):
    """`15m`, `1h`, `1d`, `2w`, or an ISO 8601 date or time, in UTC unless it says otherwise."""

    name = "when"

    def convert(self, value: object, parameter: click.Parameter | None, context: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        text = str(value)
        if span := _SPAN.fullmatch(text):
            return datetime.now(UTC) - timedelta(**{_UNITS[span[2]]: float(span[1])})
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            self.fail(f"{text!r} is neither a span such as 15m, 1h or 2d nor a time such as 2026-01-31T12:00Z")
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
