"""`identity apply`: goes over the history by the rules in force with a progress bar, and tells what it did."""

import asyncio
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from millrace.settings import Settings
    from pipeline.identity import Rules
    from pipeline.store.database import Database

_SAID = {
    "split": "profiles came apart",
    "merged": "profiles are several joined",
    "gained": "ids are somebody's now",
    "lost": "ids are nobody's any more",
    "events": "events count to another id",
}


def run(settings: "Settings", database: "Database") -> dict[str, Any]:
    """Applies the rules in force to what was recorded; what was done as plain data. Refused when the configuration says others."""
    from millrace import logs, wiring
    from pipeline import telling
    from pipeline.resolve_again import resolve_again
    from pipeline.scratch import FOLDER

    rules = _in_force(settings, database)
    folder = settings.environment.data / FOLDER / "apply"

    async def work() -> dict[str, Any]:
        async with wiring.open_log(settings) as log:
            with _Bar() as bar:
                tally = await resolve_again(log, database, rules, folder, bar.advance)
            await telling.tell(log, database)
        return {"rules": rules.version, **asdict(tally)}

    logs.configure("apply")
    return asyncio.run(work())


def _in_force(settings: "Settings", database: "Database") -> "Rules":
    from pipeline.store.rules import latest, stored_form
    from schemas.errors import Refused

    rules = database.read_sync(latest)
    if stored_form(rules.config) != stored_form(settings.config.identity):
        raise Refused(
            "rules_not_in_force",
            "The configuration's rules of identity are not those that events are resolved by; "
            "restart Millrace with this configuration first.",
            status=409,
        )
    return rules


def report_text(found: dict[str, Any]) -> str:
    """For people."""
    lines = [f"rules version {found['rules']}: {_groups(found['settled'])} of profiles settled"]
    lines += [f"  {words}: {found[name]:,}" for name, words in _SAID.items() if found[name]]
    if found["left"]:
        lines += [
            f"{_groups(found['left'])} were changing all the while, or mixed with people who were deleted; run it again"
        ]
    if not found["settled"] and not found["left"]:
        lines = [f"rules version {found['rules']}: everybody is as they make them"]
    return "\n".join(lines)


def _groups(count: int) -> str:
    return "1 group" if count == 1 else f"{count:,} groups"


class _Bar:
    """A bar on a terminal, nothing elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)
        self._task = self._bar.add_task("events", total=None)

    def advance(self, what: str, done: int, total: int) -> None:
        self._bar.update(self._task, description=what, completed=done, total=total)

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
