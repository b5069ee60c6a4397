"""The identity graph of a person as a picture: SVG drawn here, and DOT for Graphviz.

A box per profile there was, with the ids that it brought in the order they came: on the left the one that survived, on the right
those that became part of it. Links run between ids, so that those which cross from box to box are the evidence of a merge.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

Document = Mapping[str, Any]
MOST_IDS: Final = 120  # that a picture shows; what lies beyond is said
MOST_LINKS: Final = 400
MOST_REFUSED: Final = 12

_COLOURS: Final = {
    "user_id": ("#1b7f4b", "#e6f5ec"),
    "email": ("#1d5fa8", "#e6f0fb"),
    "anonymous_id": ("#8a6100", "#fdf3d9"),
    "phone": ("#7a3e9d", "#f4e9fb"),
    "group_id": ("#a3265f", "#fbe7f0"),
}
_OTHER: Final = ("#4a5568", "#eef1f5")
_RED: Final = "#b3261e"
_INK, _DIM, _LINE, _PAPER = "#1f2933", "#66717f", "#c3cad3", "#ffffff"

_PILL, _ROW, _WIDTH, _GAP, _HEAD, _PAD, _MARGIN = 40, 52, 320, 250, 74, 16, 32
_TOP, _BETWEEN, _BULGE = 100, 24, 90


@dataclass(frozen=True, slots=True)
class Box:
    """A profile with its ids. `left` and `top` are in pixels."""

    profile: Document
    ids: Sequence[Document]
    left: int
    top: int
    height: int


# ── SVG ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def svg(found: Document) -> str:
    """The picture, complete in itself."""
    ids, links = shown(found)
    boxes = _boxes(found, ids)
    places = {
        one["id"]: (box, box.top + _HEAD + row * _ROW + _PILL // 2) for box in boxes for row, one in enumerate(box.ids)
    }
    refused = _refused(found)
    notes = [*_notes(found, ids, links), *_gone(found)]
    bottom = max(box.top + box.height for box in boxes) + 34
    width = max(boxes[-1].left + _WIDTH + _BULGE, 900)
    height = bottom + 24 * len(notes) + (36 + 24 * min(len(refused), MOST_REFUSED + 1) if refused else 0) + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="13">',
        f"<title>Identity of {escape(found['profile'])}</title>",
        f'<rect width="{width}" height="{height}" fill="{_PAPER}"/>',
        *_heading(found),
        *(line for box in boxes for line in _frame(box, found)),
        *_curves(links, places),
        *(line for box in boxes for row, one in enumerate(box.ids) for line in _pill(one, box, row)),
        *_labels(links, places),
        *_footer(refused, notes, bottom),
        "</svg>",
    ]
    return "\n".join(parts)


def shown(found: Document) -> tuple[list[Document], list[Document]]:
    """The ids and links that fit a picture: ids that tie profiles together first, then in the order they came."""
    if len(found["ids"]) <= MOST_IDS:
        ids = list(found["ids"])
    else:
        home = {one["id"]: one["first_profile"] for one in found["ids"]}
        tying = {key for link in found["links"] if home[link["a"]] != home[link["b"]] for key in (link["a"], link["b"])}
        ranked = sorted(range(len(found["ids"])), key=lambda at: (found["ids"][at]["id"] not in tying, at))
        ids = [found["ids"][at] for at in sorted(ranked[:MOST_IDS])]
    kept = {one["id"] for one in ids}
    return ids, [one for one in found["links"] if one["a"] in kept and one["b"] in kept][:MOST_LINKS]


def _boxes(found: Document, ids: Sequence[Document]) -> list[Box]:
    """The survivor first."""
    known = {one["id"]: one for one in found["profiles"]}
    held: dict[str, list[Document]] = {one: [] for one in known}
    for one in ids:
        held[one["first_profile"] if one["first_profile"] in known else found["profile"]].append(one)
    survivor = found["profile"]
    boxes = [_sized(known[survivor], held[survivor], _MARGIN, _TOP)]
    top = _TOP
    for name, profile in known.items():
        if name != survivor and held[name]:
            boxes.append(_sized(profile, held[name], _MARGIN + _WIDTH + _GAP, top))
            top += boxes[-1].height + _BETWEEN
    return boxes


def _sized(profile: Document, ids: Sequence[Document], left: int, top: int) -> Box:
    return Box(profile, ids, left, top, _HEAD + _ROW * max(1, len(ids)) + _PAD - (_ROW - _PILL))


def _heading(found: Document) -> Iterator[str]:
    made = sum(1 for one in found["merges"] if one["undone_by"] is None) + 1
    said = f"{_plural(len(found['ids']), 'id')}, {found['events']:,} events" + (
        f", once {made} profiles" if made > 1 else ""
    )
    yield _text(_MARGIN, 46, f"Profile {found['profile']}", size=20, weight=600)
    yield _text(_MARGIN, 70, said + _known_types(found), colour=_DIM)


def _known_types(found: Document) -> str:
    kinds = list(dict.fromkeys(one["type"] for one in found["ids"]))
    return f" · {', '.join(kinds[:8])}" + (" and others" if len(kinds) > 8 else "")


def _frame(box: Box, found: Document) -> Iterator[str]:
    profile = box.profile
    survivor = profile["id"] == found["profile"]
    stroke, width = ("#1b7f4b", 2.0) if survivor else (_LINE, 1.2)
    yield (
        f'<rect x="{box.left}" y="{box.top}" width="{_WIDTH}" height="{box.height}" rx="12" fill="#f7f9fb" '
        f'stroke="{stroke}" stroke-width="{width}"/>'
    )
    x = box.left + _PAD
    first = "This profile" if survivor else "Was a profile of its own"
    yield _text(x, box.top + 25, first, weight=600, title=profile["id"])
    yield _text(x, box.top + 43, f"since {_when(profile['created_at'])}", colour=_DIM, size=12)
    merge = next((one for one in found["merges"] if one["absorbed"] == profile["id"] and not one["undone_by"]), None)
    if merge is not None:
        why = f"until {_when(merge['at'])}: {merge['cause']['type']} {merge['cause']['message_id']}"
        yield _text(x, box.top + 60, _cut(why, 46), colour=_RED, size=12, title=f"{merge['id']}: {why}")


def _pill(one: Document, box: Box, row: int) -> Iterator[str]:
    ink, fill = _COLOURS.get(one["type"], _OTHER)
    x, y = box.left + _PAD, box.top + _HEAD + row * _ROW
    dash = ' stroke-dasharray="5 3"' if one["apart"] else ""
    yield (
        f'<rect x="{x}" y="{y}" width="{_WIDTH - 2 * _PAD}" height="{_PILL}" rx="9" fill="{fill}" '
        f'stroke="{_RED if one["apart"] else ink}" stroke-width="1.2"{dash}/>'
    )
    yield _text(x + 12, y + 17, _cut(one["value"], 36), colour=ink, weight=600, title=one["id"])
    apart = " · kept apart" if one["apart"] else ""
    about = f"{one['type']} · {_when(one['added_at'])[:10]} · {_plural(one['events'], 'event')}{apart}"
    cause = f"by {one['cause']['message_id']} ({one['cause']['source_id']})"
    yield _text(x + 12, y + 33, _cut(about, 48), colour=_DIM, size=11, title=cause)


_Place = tuple[Box, int]


def _ends(link: Document, places: Mapping[str, _Place]) -> tuple[_Place, _Place]:
    """The left one first, and of one column the upper one."""
    first, second = sorted((places[link["a"]], places[link["b"]]), key=lambda place: (place[0].left, place[1]))
    return first, second


def _curves(links: Sequence[Document], places: Mapping[str, _Place]) -> Iterator[str]:
    for link in links:
        (one, y1), (two, y2) = _ends(link, places)
        cause = link["cause"]
        title = f"{link['a']} and {link['b']}: {_plural(link['count'], 'time')}, first {cause['type']} {cause['message_id']}"
        width = 1.2 + min(2.4, 0.6 * (len(str(link["count"])) - 1))
        if one is two:
            x, bend = one.left + _PAD, 8 + min(30, (y2 - y1) // 10)
            path, colour = f"M{x},{y1} C{x - bend},{y1} {x - bend},{y2} {x},{y2}", "#8b97a6"
        elif one.left == two.left:
            x, bend = one.left + _WIDTH - _PAD, 30 + min(_BULGE - 20, (y2 - y1) // 8)
            path, colour = f"M{x},{y1} C{x + bend},{y1} {x + bend},{y2} {x},{y2}", _RED
        else:
            x1, x2 = one.left + _WIDTH - _PAD, two.left + _PAD
            path, colour = f"M{x1},{y1} C{x1 + 110},{y1} {x2 - 150},{y2} {x2},{y2}", _RED
        yield (
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width:.1f}" opacity="0.65">'
            f"<title>{escape(_legal(title))}</title></path>"
        )


def _labels(links: Sequence[Document], places: Mapping[str, _Place]) -> Iterator[str]:
    """At the right end of what crosses, one label to an id."""
    arriving: dict[tuple[int, int], list[Document]] = {}
    for link in links:
        (one, _), (two, y2) = _ends(link, places)
        if one.left != two.left:
            arriving.setdefault((two.left, y2), []).append(link)
    for (left, y), found in arriving.items():
        first, more = found[0], f" and {len(found) - 1} more" if len(found) > 1 else ""
        cause, x = first["cause"], left - 10
        yield _text(
            x, y - 7, _cut(f"{cause['type']} {cause['message_id']}{more}", 24), colour=_RED, size=11, anchor="end"
        )
        often = "once" if first["count"] == 1 else f"{first['count']:,} times"
        yield _text(x, y + 15, f"{_when(first['first_at'])[:10]}, {often}", colour=_DIM, size=11, anchor="end")


def _refused(found: Document) -> list[str]:
    """One line for an id and a rule, whichever profiles it was kept out of."""
    lines: dict[tuple[str, str], list[Document]] = {}
    for one in found["refused"]:
        lines.setdefault((one["id"], one["violation"]), []).append(one)
    said = []
    for (key, violation), parts in lines.items():
        times = _plural(sum(one["count"] for one in parts), "time")
        others = len({one["profile"] for one in parts} - {found["profile"], ""})
        whom = f", to {_plural(others, 'other profile')}" if others else ""
        cause = parts[0]["cause"]
        where = _cut(key or "an event without ids", 44)
        said.append(f"{where} · {violation} · {times}{whom}, first on {cause['type']} {cause['message_id']}")
    return said


def _lost(found: Document) -> list[Document]:
    """The ids that went from here to another person."""
    known = {one["id"] for one in found["profiles"]}
    return [one for one in found["moves"] if one["left"] in known and one["joined"] not in known]


def _notes(found: Document, ids: Sequence[Document], links: Sequence[Document]) -> Iterator[str]:
    for one in found["splits"]:
        why = f"undid {one['merge']}" if one["merge"] else f"parted {' and '.join(one['cut'])}"
        lifted = f", lifted {_when(one['lifted_at'])}" if one["lifted_at"] else ""
        yield f"Taken apart {_when(one['at'])} ({one['id']}): {why}{lifted}"
    for one in found["accounts"][:5]:
        yield f"Account {one['account']}, through {one['id']}"
    if len(ids) < len(found["ids"]) or len(links) < len(found["links"]):
        yield f"Shown are {len(ids):,} of {len(found['ids']):,} ids and {len(links):,} of {len(found['links']):,} links"


def _gone(found: Document) -> Iterator[str]:
    lost = _lost(found)
    for one in lost[:MOST_REFUSED]:
        yield f"{_cut(one['id'], 60)} went to {one['joined']} on {_when(one['at'])}, because of {one['cause']['message_id']}"
    if len(lost) > MOST_REFUSED:
        yield f"and {len(lost) - MOST_REFUSED:,} more ids"


def _footer(refused: Sequence[str], notes: Sequence[str], top: int) -> Iterator[str]:
    y = top
    for note in notes:
        yield _text(_MARGIN, y, note, colour=_DIM)
        y += 24
    if refused:
        yield _text(_MARGIN, y + 8, "Refused", weight=600, colour=_RED)
        y += 34
    for said in refused[:MOST_REFUSED]:
        yield _text(_MARGIN, y, said)
        y += 24
    if len(refused) > MOST_REFUSED:
        yield _text(_MARGIN, y, f"and {len(refused) - MOST_REFUSED:,} more", colour=_DIM)


def _text(
    x: int,
    y: int,
    text: str,
    *,
    colour: str = _INK,
    size: int = 13,
    weight: int = 400,
    anchor: str = "start",
    title: str = "",
) -> str:
    about = f"<title>{escape(_legal(title))}</title>" if title else ""
    behind = f' stroke="{_PAPER}" stroke-width="4" paint-order="stroke"' if anchor == "end" else ""
    return (
        f'<text x="{x}" y="{y}" fill="{colour}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}"{behind}>'
        f"{about}{escape(_legal(text))}</text>"
    )


def _legal(text: str) -> str:
    """Without the characters that XML has no way to write."""
    return "".join(one if one >= " " or one in "\t\n\r" else "\ufffd" for one in text)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _when(at: str | None) -> str:
    return "long ago" if at is None else at[:16].replace("T", " ")


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


# ── DOT ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def dot(found: Document) -> str:
    """The whole graph for Graphviz, however large: a cluster per profile, ids, links, merges and what was refused."""
    lines = [
        "graph identity {",
        '  graph [rankdir=LR, fontname="Helvetica"]; node [shape=box, style="rounded,filled", fontname="Helvetica"];',
    ]
    known = {one["id"]: one for one in found["profiles"]}
    merged = {one["absorbed"]: one for one in found["merges"] if one["undone_by"] is None}
    for number, (name, profile) in enumerate(known.items()):
        held = [
            one
            for one in found["ids"]
            if (one["first_profile"] if one["first_profile"] in known else found["profile"]) == name
        ]
        label = [name, f"since {_when(profile['created_at'])}"]
        if name in merged:
            cause = merged[name]["cause"]
            label.append(
                f"merged {_when(merged[name]['at'])} by {cause['type']} {cause['message_id']} ({merged[name]['id']})"
            )
        lines += [f"  subgraph cluster_{number} {{", f"    label={_quoted(*label)};"]
        for one in held:
            ink, fill = _COLOURS.get(one["type"], _OTHER)
            about = f"since {_when(one['added_at'])}, {_plural(one['events'], 'event')}"
            lines.append(
                f'    {_quoted(one["id"])} [label={_quoted(one["id"], about)}, color="{ink}", fillcolor="{fill}"];'
            )
        lines.append("  }")
    for one in found["links"]:
        cause = one["cause"]
        edge = _quoted(
            f"{cause['type']} {cause['message_id']}", f"{_when(one['first_at'])}, {_plural(one['count'], 'time')}"
        )
        lines.append(f"  {_quoted(one['a'])} -- {_quoted(one['b'])} [label={edge}];")
    for number, one in enumerate(_lost(found)):
        about = f"went to {one['joined']} on {_when(one['at'])}"
        lines.append(f'  left_{number} [label={_quoted(one["id"], about)}, color="{_DIM}", style="rounded,dashed"];')
    for number, one in enumerate(found["refused"]):
        lines.append(
            f'  refused_{number} [label={_quoted(one["id"], one["violation"])}, color="{_RED}", style="rounded,dashed"];'
        )
    lines.append("}")
    return "\n".join(lines)


def _quoted(*lines: str) -> str:
    """A DOT string; each part is a line of it."""
    return '"' + "\\n".join(one.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") for one in lines) + '"'
