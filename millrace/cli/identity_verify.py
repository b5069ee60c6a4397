"""`identity verify`: goes through the store with a progress bar, and repairs on request."""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.store.database import Database


def run(database: "Database", *, repair: bool, most: int) -> dict[str, Any]:
    """What was found: rows looked at, how many differences, how many of them repaired, and the first `most` of them."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from pipeline.store.rules import latest
    from pipeline.store.verify import repair as recombine
    from pipeline.store.verify import total, verify

    rules = database.read_sync(latest)
    rows = found = repaired = 0
    shown: list[dict[str, Any]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        task = progress.add_task("rows", total=database.read_sync(total))
        for piece in verify(database, rules):
            rows += piece.rows
            progress.advance(task, piece.rows)
            for one in piece.differences:
                found += 1
                name = one.subject
                mended = (
                    repair and one.repairable and database.run_sync(lambda c: recombine(c, name, rules))  # noqa: B023 - called at once
                )
                repaired += mended
                if len(shown) < most:
                    shown.append({"subject": name, "says": one.says, "repaired": mended})
    return {"rows": rows, "found": found, "repaired": repaired, "differences": shown}
