"""`identity simulate`: runs the simulation with a progress bar, and tells what came of it."""

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.text import Text

    from millrace.settings import Settings
    from pipeline.simulate import Simulation
    from pipeline.store.comparison import Group
    from pipeline.store.database import Database
    from schemas.identity import IdentityConfig

_KINDS: Final = {
    "split": "become several",
    "merged": "are several joined",
    "regrouped": "exchange, gain or lose ids",
    "renamed": "keep their ids under another profile id",
}


def run(
    settings: "Settings", database: "Database", other: "IdentityConfig", since: datetime | None, examples: int
) -> "Simulation":
    """Simulates over the log of this installation; scratch stores are in the data folder while it runs."""
    from millrace import logs, wiring
    from millrace.cli.preflight import EventsBar
    from pipeline.identity import Rules
    from pipeline.scratch import FOLDER
    from pipeline.simulate import simulate

    async def work() -> "Simulation":
        async with wiring.open_log(settings) as log:
            with EventsBar(quiet=False) as bar:
                return await simulate(
                    log,
                    database,
                    Rules(settings.config.identity),
                    Rules(other),
                    since=0 if since is None else int(since.timestamp() * 1000),
                    folder=settings.environment.data / FOLDER / "simulate",
                    examples=examples,
                    advance=bar.advance,
                )

    logs.configure("simulate")
    return asyncio.run(work())


def report(simulation: "Simulation", present: "IdentityConfig", other: "IdentityConfig") -> dict[str, Any]:
    """The result as plain data, with what differs between the two configurations."""
    found = simulation.comparison
    return {
        "differs": found.differs,
        "events": simulation.events,
        "rules": _changed(_whole(present, other), _whole(other, present)),
        "profiles": {"present": found.present, "other": found.other, "same": found.same}
        | {kind: getattr(found, kind) for kind in _KINDS},
        "ids": {"gained": found.gained, "lost": found.lost},
        "events_without_profile": {"present": found.unresolved[0], "other": found.unresolved[1]},
        "ids_refused": {rule: {"present": was, "other": now} for rule, (was, now) in found.refused.items()},
        "examples": {
            kind: [
                {"present": [_group(one) for one in each.present], "other": [_group(one) for one in each.other]}
                for each in examples
            ]
            for kind, examples in found.examples.items()
        },
    }


def _group(group: "Group") -> dict[str, Any]:
    return {"profile": group.profile, "ids": list(group.ids), "size": group.size}


def _whole(one: "IdentityConfig", beside: "IdentityConfig") -> dict[str, Any]:
    """The configuration, with every type that the one beside it names."""
    from schemas.identity import IdTypeConfig

    whole = one.model_dump(mode="json")
    return whole | {"types": {name: IdTypeConfig().model_dump(mode="json") for name in beside.types} | whole["types"]}


def _changed(present: Any, other: Any, path: str = "") -> dict[str, Any]:
    """What the other configuration says differently, by dotted path."""
    if isinstance(present, dict) and isinstance(other, dict):
        found: dict[str, Any] = {}
        for name in sorted({*present, *other}):
            found |= _changed(present.get(name), other.get(name), f"{path}.{name}".lstrip("."))
        return found
    return {} if present == other else {path: {"present": present, "other": other}}


def report_text(found: dict[str, Any]) -> "Text":
    """For people."""
    from rich.text import Text

    profiles = found["profiles"]
    lines = [
        f"{found['events']:,} events, {profiles['present']:,} profiles now, {profiles['other']:,} under the other rules"
    ]
    lines += [
        f"  {path}: {_said(one['present'])} -> {_said(one['other'])}" for path, one in sorted(found["rules"].items())
    ] or ["  the rules are the same"]
    lines += [f"stay as they are: {profiles['same']:,}"]
    lines += [f"{words}: {profiles[kind]:,}" for kind, words in _KINDS.items() if profiles[kind]]
    lines += [f"ids {kind}: {count:,}" for kind, count in found["ids"].items() if count]
    alone = found["events_without_profile"]
    if alone["present"] != alone["other"]:
        lines += [f"events without a profile: {alone['present']:,} -> {alone['other']:,}"]
    for rule, one in found["ids_refused"].items():
        if one["present"] != one["other"]:
            lines += [f"ids refused, {rule}: {one['present']:,} -> {one['other']:,}"]
    for kind, examples in found["examples"].items():
        for each in examples:
            lines += ["", f"for example, {kind}:"]
            lines += [f"  now    {_shown(one)}" for one in each["present"]]
            lines += [f"  other  {_shown(one)}" for one in each["other"]]
    lines += ["", "differences" if found["differs"] else "the same profiles"]
    return Text("\n".join(lines))


def _said(value: Any) -> str:
    return "left out" if value is None else str(value)


def _shown(group: dict[str, Any]) -> str:
    more = group["size"] - len(group["ids"])
    return f"{group['profile']}  {' '.join(group['ids'])}" + (f" and {more:,} more" if more else "")
