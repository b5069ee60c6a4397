"""How identity looks to a person on a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.text import Text

Document = Mapping[str, Any]
"""An answer of `/api/identity`."""

_STYLES: Final = {"user_id": "bold green", "email": "bold cyan", "anonymous_id": "yellow", "group_id": "bold magenta"}


def explanation_text(found: Document, most: int | None) -> RenderableType:
    """Of a profile: what it is, and what happened to it in order. `most` is how many ids, links and refusals are listed."""
    profiles = {one["id"]: one for one in found["profiles"]}
    head = profiles[found["profile"]]
    lines = [
        Text.assemble("profile ", (found["profile"], "bold")),
        Text(
            f"{_count(found['ids'], 'id')}, {found['events']:,} events; created {_when(head['created_at'])} by {_by(head)}"
        ),
    ]
    lines += (
        [Text(f"together with {', '.join(dict.fromkeys(one['account'] for one in found['accounts']))}")]
        if found["accounts"]
        else []
    )
    lines += _section("Ids, in the order they came", found["ids"], _id, most)
    lines += _section("Seen together on one event", found["links"], _link, most)
    lines += _section("Profiles that became one", found["merges"], _merge, None)
    lines += _section("Gone to their latest owner", found["moves"], _move, most)
    lines += _section("Taken apart", found["splits"], _split, None)
    refused: dict[tuple[str, str], list[Document]] = {}
    for one in found["refused"]:
        refused.setdefault((one["id"], one["violation"]), []).append(one)
    lines += _section("Refused", list(refused.values()), _refusal, most)
    return Group(*lines)


def split_text(done: Document) -> RenderableType:
    """What an unmerge or remerge did, or would do."""
    would = done["dry_run"]
    if done["done"] == "unmerge":
        said = "would be taken apart" if would else f"taken apart: {done['split']}"
    else:
        said = "would be one again" if would else f"one again: {done['split']} is lifted"
    lines = [Text(said, "bold")]
    for name in ("before", "after"):
        lines += [Text(""), Text("as it is" if name == "before" and would else name, "underline")]
        lines += [line for part in done[name] for line in _part(part)]
    lines.append(Text(""))
    for name, verb in (("links_cut", "cut"), ("links_restored", "restored")):
        lines += [Text.assemble(f"link {verb} ", *_ids(" and ", *pair)) for pair in done[name][:20]]
        lines += _more(done[name], 20, "links")
    lines += [Text(f"merge undone {one}") for one in done["merges_undone"]]
    lines += [Text(f"merge restored {one}") for one in done["merges_restored"]]
    told = _plural(len(done["destinations_told"]), "identify", "identifies")
    lines.append(Text(f"destinations {'would be' if would else 'are'} told by {told}"))
    if would:
        lines.append(Text("nothing was changed", "bold"))
    elif done["done"] == "unmerge":
        lines.append(Text(f"to lift it: millrace identity remerge {done['split']}", "dim"))
    return Group(*lines)


def suspects_text(found: Document) -> RenderableType:
    """The worst first, each with what mends it."""
    if not found["suspects"]:
        return Text("nothing looks wrong")
    lines = []
    for one in found["suspects"]:
        style = "bold red" if one["score"] >= 70 else "yellow" if one["score"] >= 40 else ""
        lines.append(Text.assemble((f"{one['score']:>3} ", style), _styled(one["subject"]), f" {one['says']}"))
        lines += [Text(f"    {mend}", "dim") for mend in one["mend"]]
    return Group(*lines)


# ── Lines ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _section(title: str, rows: Sequence[Any], line: Any, most: int | None) -> list[Text]:
    if not rows:
        return []
    lines = [Text(""), Text(f"{title} ({len(rows):,})", "underline")]
    for one in rows[:most]:
        lines += line(one)
    return lines + (_more(rows, most, "of these; --all shows every one") if most is not None else [])


def _id(one: Document) -> Iterator[Text]:
    kept = (
        " · kept apart by " + ", ".join(sorted({token.rpartition(":")[0] for token in one["apart"]}))
        if one["apart"]
        else ""
    )
    seen = _plural(one["events"], "event") + (f", last {_when(one['last_seen'])}" if one["last_seen"] else "")
    yield Text.assemble(
        "  ", _styled(one["id"]), f" since {_when(one['added_at'])}, by {_by(one['cause'])} · {seen}", (kept, "red")
    )


def _link(one: Document) -> Iterator[Text]:
    often = "once" if one["count"] == 1 else f"{one['count']:,} times, last {_when(one['last_at'])}"
    yield Text.assemble(
        "  ", *_ids(" — ", one["a"], one["b"]), f" first {_when(one['first_at'])}, by {_by(one['cause'])} · {often}"
    )


def _merge(one: Document) -> Iterator[Text]:
    undone = f" · undone by {one['undone_by']}" if one["undone_by"] else ""
    yield Text.assemble(
        "  ", (one["id"], "bold"), f" {_when(one['at'])}, because of {_by(one['cause'])}", (undone, "red")
    )
    yield Text(f"    {one['absorbed']} became part of {one['survivor']}", "dim")


def _move(one: Document) -> Iterator[Text]:
    yield Text.assemble("  ", _styled(one["id"]), f" {_when(one['at'])}, because of {_by(one['cause'])}")
    yield Text(
        f"    from {one['left']}, where it was since {_when(one['mapped_at'])} by {one['mapped_by']}, to {one['joined']}",
        "dim",
    )


def _split(one: Document) -> Iterator[Text]:
    why = f"undid {one['merge']}" if one["merge"] else f"parted {' and '.join(one['cut'])}"
    lifted = f" · lifted {_when(one['lifted_at'])}" if one["lifted_at"] else ""
    yield Text.assemble("  ", (one["id"], "bold"), f" {_when(one['at'])}, {why}", (lifted, "green"))
    yield Text(f"    {one['other']} came out of {one['profile']}; {_count(one['links'], 'link')} cut", "dim")


def _refusal(parts: Sequence[Document]) -> Iterator[Text]:
    one, count = parts[0], sum(part["count"] for part in parts)
    often = "once" if count == 1 else f"{count:,} times"
    whom = f" to {_plural(len(parts), 'profile')}" if len(parts) > 1 else ""
    yield Text.assemble(
        "  ",
        _styled(one["id"]) if one["id"] else "an event without ids",
        (f" {one['violation']}", "red"),
        f" · {often}{whom}, first {_when(one['first_at'])}, on {_by(one['cause'])}",
    )


def _part(part: Document) -> Iterator[Text]:
    traits = ", ".join(f"{name}={value!r}" for name, value in part["traits"].items()) or "no traits"
    yield Text.assemble("  ", (part["id"], "bold"), f" {part['events']:,} events")
    yield Text.assemble(
        "    ", *_ids(", ", *part["ids"][:12]), f" and {len(part['ids']) - 12:,} more" if len(part["ids"]) > 12 else ""
    )
    yield Text(f"    {traits if len(traits) <= 300 else traits[:297] + '…'}", "dim")


def _ids(between: str, *ids: str) -> Iterator[Text | str]:
    for number, one in enumerate(ids):
        if number:
            yield between
        yield _styled(one)


def _styled(key: str) -> Text:
    return Text(key, _STYLES.get(key.partition(":")[0], "bold"))


def _by(cause: Document) -> str:
    rules = f", rules {cause['config_version']}" if cause.get("config_version") else ""
    return f"{cause.get('type') or 'event'} {cause['message_id']} ({cause['source_id']}{rules})"


def _when(at: str | None) -> str:
    """To the second: 2026-11-21 09:00:00."""
    return "long ago" if at is None else at[:19].replace("T", " ")


def _more(rows: Sequence[Any], most: int, what: str) -> list[Text]:
    return [Text(f"  … {len(rows) - most:,} more {what}", "dim")] if len(rows) > most else []


def _count(rows: Sequence[Any], noun: str) -> str:
    return _plural(len(rows), noun)


def _plural(number: int, noun: str, many: str = "") -> str:
    return f"{number:,} {noun if number == 1 else many or noun + 's'}"
