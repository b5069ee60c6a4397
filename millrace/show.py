"""How the paths of events look to a person."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from millrace.plain_text import plain_line

Path = Mapping[str, Any]
"""One event as `/api/tail` and `/api/events` describe it."""

SHOWN: Final = 12  # events under way that a terminal shows at once
_COLOURS: Final = {
    "delivered": "green",
    "filtered": "dim",
    "pending": "cyan",
    "retry": "yellow",
    "held": "yellow",
    "dead": "red",
}


def follow(paths: Iterable[Path]) -> None:
    """Prints paths as they grow. On a terminal those under way stay at the bottom until they are complete; elsewhere each
    growth is a line."""
    if sys.stdout.isatty():
        _follow_live(paths)
    else:
        for path in paths:
            sys.stdout.write(path_text(path) + "\n")
            sys.stdout.flush()


def path_text(path: Path) -> str:
    """`12:00:01.123 track "Order Completed" user u1 · web · accepted → profile p (4 ms) → crm delivered (160 ms)`"""
    return "".join(text for text, _ in path_parts(path))


def path_parts(path: Path) -> Iterator[tuple[str, str]]:
    """The same in pieces, each with a colour."""
    return ((plain_line(text), colour) for text, colour in _parts(path))


def _parts(path: Path) -> Iterator[tuple[str, str]]:
    if "passed_over" in path:
        yield f"… {path['passed_over']:,} more events: too fast to show, the balance counts them", "dim"
        return
    yield f"{path['receivedAt'][11:23]} ", "dim"
    yield f"{path.get('type') or 'event'} ", "bold"
    if path.get("event"):
        yield f"{json.dumps(path['event'], ensure_ascii=False)} ", "bold"
    yield f"{_who(path)} · {path['source']} · {path['messageId']} · ", "dim"
    if path["refused"] is not None:
        yield f"refused: {path['refused']}", "red"
        if path.get("remedy"):
            yield f" · {path['remedy']}", ""
        return
    yield "accepted", "green"
    if path["profile"] is not None:
        yield " → ", "dim"
        yield f"profile {path['profile']['id'] or 'none'}{_after(path['profile'])}", "green"
    for name, one in path["destinations"].items():
        yield " → ", "dim"
        yield f"{name} {outcome_text(one)}", _COLOURS.get(one["outcome"], "")


def outcome_text(one: Mapping[str, Any]) -> str:
    """`delivered (160 ms)`, `retry: http 503 (2 attempts)`"""
    reason = f": {one['reason']}" if one.get("reason") else ""
    tries = f" ({one['attempts']} attempts)" if (one.get("attempts") or 0) > 1 else ""
    return f"{one['outcome']}{reason}{tries}{_after(one)}"


def event_lines(path: Path) -> Iterator[str]:
    """One fact per line."""
    return map(plain_line, _facts(path))


def _facts(path: Path) -> Iterator[str]:
    yield f"event {path['messageId']}"
    name = f" {json.dumps(path['event'], ensure_ascii=False)}" if path.get("event") else ""
    yield f"{path.get('type') or 'event'}{name} of {_who(path)} from source {path['source']}"
    if path["refused"] is not None:
        yield f"refused {path['receivedAt']}: {path['refused']}"
        if path.get("remedy"):
            yield f"remedy {path['remedy']}"
        return
    yield f"accepted {path['receivedAt']}"
    profile = path["profile"]
    yield "profile pending" if profile is None else f"profile {profile['id'] or 'none'}{_after(profile)}"
    for destination, one in path["destinations"].items():
        yield f"destination {destination} {outcome_text(one)}"


def _who(path: Path) -> str:
    if path.get("userId"):
        return f"user {path['userId']}"
    return f"anonymous {path['anonymousId']}" if path.get("anonymousId") else "nobody"


def _after(one: Mapping[str, Any]) -> str:
    return "" if one.get("after_ms") is None else f" ({one['after_ms']} ms)"


def _follow_live(paths: Iterable[Path]) -> None:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    def rendered(path: Path) -> Text:
        return Text.assemble(*path_parts(path), overflow="fold")

    under_way: dict[str, Path] = {}
    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for path in paths:
            key = f"{path.get('source')}/{path.get('messageId')}"
            if path.get("complete", True):
                under_way.pop(key, None)
                console.print(rendered(path))
            else:
                under_way[key] = path
            while len(under_way) > 10 * SHOWN:  # long on their way: from now on only their end is worth a line
                console.print(rendered(under_way.pop(next(iter(under_way)))))
            live.update(Group(*(rendered(one) for one in list(under_way.values())[-SHOWN:])), refresh=True)
