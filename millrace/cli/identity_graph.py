"""The identity graph of a person as a picture: SVG drawn here, and DOT for Graphviz.

One column per profile there was, in the order they came; in it the ids that it brought, from the top in the order they came.
Links run between ids, so that those which cross from column to column are the evidence by which profiles became one.
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

_PILL, _ROW, _WIDTH, _GAP, _HEAD, _PAD, _MARGIN = 40, 58, 300, 190, 74, 16, 32


@dataclass(frozen=True, slots=True)
class Column:
    """A profile with its ids. `left` and `top` are of its box, in pixels."""

    profile: Document
    ids: Sequence[Document]
    left: int
    top: int
    height: int


# ── SVG ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def svg(found: Document) -> str:
    """The picture, complete in itself."""
    ids, links = shown(found)
    columns = _columns(found, ids)
    places = {
        one["id"]: (column, column.top + _HEAD + row * _ROW + _PILL // 2)
        for column in columns
        for row, one in enumerate(column.ids)
    }
    refused = found["refused"][:MOST_REFUSED]
    bottom = max(column.top + column.height for column in columns)
    width = max(columns[-1].left + _WIDTH + _MARGIN, 760)
    notes = list(_notes(found, ids, links, refused))
    height = bottom + 30 + 24 * len(notes) + (30 + 26 * len(refused) if refused else 0) + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="13">',
        f"<title>Identity of {escape(found['profile'])}</title>",
        f'<rect width="{width}" height="{height}" fill="{_PAPER}"/>',
        *_heading(found),
        *(line for column in columns for line in _box(column, found)),
        *(line for one in links for line in _curve(one, places)),
        *(line for column in columns for row, one in enumerate(column.ids) for line in _pill(one, column, row)),
        *_footer(found, refused, notes, bottom + 30),
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


def _columns(found: Document, ids: Sequence[Document]) -> list[Column]:
    known = {one["id"]: one for one in found["profiles"]}
    held: dict[str, list[Document]] = {one: [] for one in known}
    for one in ids:
        held[one["first_profile"] if one["first_profile"] in known else found["profile"]].append(one)
    columns, left = [], _MARGIN
    for name, profile in known.items():
        if held[name] or name == found["profile"]:
            columns.append(Column(profile, held[name], left, 110, _HEAD + _ROW * max(1, len(held[name])) + _PAD - 18))
            left += _WIDTH + _GAP
    return columns


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


def _box(column: Column, found: Document) -> Iterator[str]:
    profile = column.profile
    canonical = profile["id"] == found["profile"]
    stroke = "#1b7f4b" if canonical else _LINE
    yield (
        f'<rect x="{column.left}" y="{column.top}" width="{_WIDTH}" height="{column.height}" rx="12" fill="#f7f9fb" '
        f'stroke="{stroke}" stroke-width="{2 if canonical else 1.2}"/>'
    )
    merge = next((one for one in found["merges"] if one["absorbed"] == profile["id"] and not one["undone_by"]), None)
    first = "This profile" if canonical else "Was a profile of its own"
    yield _text(column.left + _PAD, column.top + 25, first, weight=600)
    yield _text(column.left + _PAD, column.top + 43, f"since {_when(profile['created_at'])}", colour=_DIM, size=12)
    if merge is not None:
        why = f"merged {_when(merge['at'])} by {merge['cause']['type']} {_cut(merge['cause']['message_id'], 14)}"
        yield _text(
            column.left + _PAD, column.top + 60, why, colour=_RED, size=12, title=f"{merge['id']}: {profile['id']}"
        )


def _pill(one: Document, column: Column, row: int) -> Iterator[str]:
    ink, fill = _COLOURS.get(one["type"], _OTHER)
    x, y = column.left + _PAD, column.top + _HEAD + row * _ROW
    dash = f' stroke-dasharray="5 3" data-apart="{escape(" ".join(one["apart"]))}"' if one["apart"] else ""
    yield (
        f'<rect x="{x}" y="{y}" width="{_WIDTH - 2 * _PAD}" height="{_PILL}" rx="9" fill="{fill}" '
        f'stroke="{_RED if one["apart"] else ink}" stroke-width="1.2"{dash}/>'
    )
    yield _text(x + 12, y + 17, _cut(one["value"], 34), colour=ink, weight=600, title=one["id"])
    about = f"{one['type']} · {_when(one['added_at'])[:10]} · {_plural(one['events'], 'event')}"
    yield _text(
        x + 12,
        y + 33,
        _cut(about, 44),
        colour=_DIM,
        size=11,
        title=f"by {one['cause']['message_id']} ({one['cause']['source_id']})",
    )


def _curve(link: Document, places: Mapping[str, tuple[Column, int]]) -> Iterator[str]:
    (one, y1), (two, y2) = sorted((places[link["a"]], places[link["b"]]), key=lambda place: (place[0].left, place[1]))
    cause = link["cause"]
    said = f"{link['a']} and {link['b']}: {cause['type']} {cause['message_id']} ({cause['source_id']}), {link['count']} times"
    width = 1.2 + min(2.6, 0.5 * len(str(link["count"])))
    if one is two:
        x = one.left + _PAD
        bend = 8 + min(26, abs(y2 - y1) // 12)
        path, colour = f"M{x},{y1} C{x - bend},{y1} {x - bend},{y2} {x},{y2}", "#8b97a6"
        yield _path(path, colour, width, said)
        return
    start, end = one.left + _WIDTH - _PAD, two.left + _PAD
    middle = one.left + _WIDTH + _GAP // 2
    yield _path(f"M{start},{y1} C{middle},{y1} {middle},{y2} {end},{y2}", _RED, width + 0.4, said)
    if two.left - one.left == _WIDTH + _GAP:
        label = f"{_cut(cause['type'] + ' ' + cause['message_id'], 22)}"
        yield _text(middle, (y1 + y2) // 2 - 7, label, colour=_RED, size=11, anchor="middle", halo=True)
        often = f"{_when(link['first_at'])[:10]}, " + ("once" if link["count"] == 1 else f"{link['count']:,} times")
        yield _text(middle, (y1 + y2) // 2 + 14, often, colour=_DIM, size=11, anchor="middle", halo=True)


def _notes(
    found: Document, ids: Sequence[Document], links: Sequence[Document], refused: Sequence[Document]
) -> Iterator[str]:
    for one in found["splits"]:
        why = f"undid {one['merge']}" if one["merge"] else f"parted {' and '.join(one['cut'])}"
        lifted = f", lifted {_when(one['lifted_at'])}" if one["lifted_at"] else ""
        yield f"Taken apart {_when(one['at'])} ({one['id']}): {why}{lifted}"
    for one in found["accounts"][:5]:
        yield f"Account {one['account']}, through {one['id']}"
    if len(ids) < len(found["ids"]) or len(links) < len(found["links"]):
        yield f"Shown are {len(ids):,} of {len(found['ids']):,} ids and {len(links):,} of {len(found['links']):,} links"


def _footer(found: Document, refused: Sequence[Document], notes: Sequence[str], top: int) -> Iterator[str]:
    y = top
    for note in notes:
        yield _text(_MARGIN, y, note, colour=_DIM)
        y += 24
    if refused:
        yield _text(_MARGIN, y + 6, f"Refused ({len(found['refused']):,})", weight=600, colour=_RED)
        y += 30
    for one in refused:
        said = f"{_cut(one['id'] or 'an event without ids', 44)} · {one['violation']} · {_plural(one['count'], 'time')}"
        yield _text(_MARGIN, y, f"{said}, first on {one['cause']['type']} {one['cause']['message_id']}")
        y += 26


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
    halo: bool = False,
) -> str:
    behind = f' stroke="{_PAPER}" stroke-width="4" paint-order="stroke"' if halo else ""
    about = f"<title>{escape(title)}</title>" if title else ""
    return (
        f'<text x="{x}" y="{y}" fill="{colour}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}"{behind}>'
        f"{about}{escape(_legal(text))}</text>"
    )


def _path(path: str, colour: str, width: float, title: str) -> str:
    return (
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width:.1f}" opacity="0.85">'
        f"<title>{escape(_legal(title))}</title></path>"
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
    for number, one in enumerate(found["refused"]):
        lines.append(
            f'  refused_{number} [label={_quoted(one["id"], one["violation"])}, color="{_RED}", style="rounded,dashed"];'
        )
    lines.append("}")
    return "\n".join(lines)


def _quoted(*lines: str) -> str:
    """A DOT string; each part is a line of it."""
    return '"' + "\\n".join(one.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") for one in lines) + '"'
