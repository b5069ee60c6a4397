"""What the sources used, by month."""

import re
from collections.abc import Mapping
from typing import Final

from pipeline.store import usage
from pipeline.store.database import Database
from schemas.api import UsagePage, UsageView
from schemas.errors import Refused

_MONTH: Final = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])")


async def page(database: Database, query: Mapping[str, str]) -> UsagePage:
    """Of every month, or of one `month` such as 2026-11."""
    month = query.get("month")
    if month is not None and not _MONTH.fullmatch(month):
        raise Refused("validation_error", "month must be a year and a month, such as 2026-11.")
    used = await database.read(lambda connection: usage.read(connection, month))
    return UsagePage(usage=[UsageView(**one._asdict()) for one in used])
