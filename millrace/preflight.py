"""A new configuration against the present one, over recorded events: who is compared, and how it is told."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from destinations.contract import Row
from millrace.settings import Settings, functions_folder
from millrace.wiring import mounted, open_log
from pipeline.delivery import redaction
from pipeline.delivery.limits import Destination
from pipeline.delivery.preflight import Difference, Effect, Made, Pair, Tally, compare, rehearsal
from pipeline.functions.installed import Functions
from pipeline.functions.runner import code_of
from schemas.config import FunctionConfig
from schemas.events import decode_resolved
from schemas.exact_json import json_loads


def pairs(before: Settings, after: Settings, only: Sequence[str]) -> tuple[list[Pair], list[str]]:
    """What is to be compared, and the names of those that are the same in both, functions included."""
    was = {one.name: one for one in mounted(before)}
    would = {one.name: one for one in mounted(after)}
    changed, same = [], []
    for name in dict.fromkeys((*was, *would)):
        if only and name not in only:
            continue
        here, there = was.get(name), would.get(name)
        if here == there and _codes(before, here) == _codes(after, there):
            same.append(name)
            continue
        changed.append(
            Pair(
                name=name,
                before=here,
                after=there,
                functions_before=_functions(before),
                functions_after=_functions(after),
            )
        )
    return changed, same


def rewritten(pair: Pair, before: Settings, after: Settings) -> bool:
    """Whether the code of a destination that is all code differs: what it does is not run, so it counts as a difference."""
    return (
        isinstance(getattr(pair.before, "settings", None), FunctionConfig)
        and isinstance(getattr(pair.after, "settings", None), FunctionConfig)
        and _codes(before, pair.before)[1:] != _codes(after, pair.after)[1:]
    )


async def run(
    settings: Settings,
    since: datetime,
    wanted: Sequence[Pair],
    differs: Callable[[Difference], None],
    advance: Callable[[int, int], None],
) -> Mapping[str, Tally]:
    """Compares over the log of the present installation."""
    async with open_log(settings) as log:
        return await compare(log, int(since.timestamp() * 1000), wanted, differs=differs, advance=advance)


async def rehearsed(settings: Settings, name: str, record: bytes) -> dict[str, Any]:
    """What a destination would send of a record of `resolved` now: `requests`, secrets struck out, or the `reason` why there is none."""
    destination = next((one for one in mounted(settings) if one.name == name), None)
    if destination is None:
        return {"requests": [], "reason": f"no destination is called {name} in this configuration"}
    try:
        decoded = decode_resolved(record)
    except ValueError as error:
        return {"requests": [], "reason": str(error)}
    async with rehearsal(destination, _functions(settings)) as make:
        made = await make(decoded)
    side = _side(made, secrets_of(settings))
    return {"requests": side["sends"], "reason": side["reason"]}


def _functions(settings: Settings) -> Functions:
    return Functions(folder=functions_folder(settings.environment, settings.config), allow=None)


def _codes(settings: Settings, destination: Destination | None) -> list[str]:
    """The code of its insert, and of itself when it is a function."""
    if destination is None:
        return []
    folder = functions_folder(settings.environment, settings.config)
    used = (destination.function, destination.settings)
    return [code_of(folder, one.name) if isinstance(one, FunctionConfig) else "" for one in used]


# ── For people and programs ───────────────────────────────────────────────────────────────────────────────────────


def told(one: Difference, secrets: Sequence[str]) -> dict[str, Any]:
    """A difference as a JSON object, secrets struck out."""
    return {
        "destination": one.destination,
        "change": one.change,
        "messageId": one.message_id,
        "type": one.type,
        "before": _side(one.before, secrets),
        "after": _side(one.after, secrets),
    }


def _side(made: Made, secrets: Sequence[str]) -> dict[str, Any]:
    if not made.effects:
        return {"sends": [], "reason": redaction.struck(made.reason, secrets)}
    return {"sends": [redaction.struck(_effect(one), secrets) for one in made.effects], "reason": None}


def _effect(effect: Effect) -> dict[str, Any]:
    if isinstance(effect, Row):
        return {"table": effect.table, "row": dict(effect.values)}
    return {
        "request": f"{effect.method} {effect.url}",
        "headers": dict(effect.headers),
        "body": _body(effect.body),
    }


def _body(raw: bytes) -> Any:
    try:
        return json_loads(raw)
    except ValueError:
        return raw.decode(errors="replace")


def secrets_of(*all_settings: Settings) -> list[str]:
    """Every secret in the settings of destinations, the longest first."""
    return redaction.secrets_of(*(one for settings in all_settings for one in settings.destination_settings.values()))
