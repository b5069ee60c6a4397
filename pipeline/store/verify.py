"""Whether what identity stores agrees with itself: every cached profile with the combination of its nodes, pointers, links and
merges with each other. Goes through the store in pieces, each in a snapshot of its own, so that it can run at any time, beside
the pipeline, in bounded memory."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, func, select, text

from pipeline.identity import Rules
from pipeline.profile import Node, Profile, combined
from pipeline.store import bulk, schema
from pipeline.store.consent import disputed
from pipeline.store.database import Database
from pipeline.store.graph import load, read_profiles, save
from pipeline.store.windows import lacks

PIECE: Final = 1_000  # profiles at a time; what they hold is read with them
NODES: Final = 5_000  # ids or links at a time

_FAMILIES: Final = """
    WITH RECURSIVE family(root, id) AS (
      SELECT id, id FROM profiles WHERE id {}
      UNION ALL SELECT family.root, profiles.id FROM profiles JOIN family ON profiles.merged_into = family.id
    )
    SELECT root, id FROM family
"""
_ANCESTORS: Final = """
    WITH RECURSIVE up(id) AS (
      SELECT merged_into FROM profiles WHERE id {} UNION SELECT profiles.merged_into FROM profiles JOIN up ON profiles.id = up.id
    )
    SELECT up.id, profiles.id, profiles.merged_into FROM up LEFT JOIN profiles ON profiles.id = up.id WHERE up.id IS NOT NULL
"""
_NODES: Final = "SELECT key, profile FROM nodes WHERE profile {}"
_EDGES: Final = "SELECT a, b FROM edges WHERE a {}"
_MERGES: Final = "SELECT absorbed, survivor FROM merges WHERE undone_by IS NULL AND absorbed {}"
_LOST_NODES: Final = text(
    """
    SELECT page.key, page.profile, profiles.id FROM (
      SELECT key, profile FROM nodes WHERE key > :after ORDER BY key LIMIT :most
    ) page LEFT JOIN profiles ON profiles.id = page.profile ORDER BY page.key
    """
)
_LOST_EDGES: Final = text(
    """
    SELECT page.a, page.b, nodes.profile FROM (
      SELECT a, b FROM edges WHERE (a, b) > (:a, :b) ORDER BY a, b LIMIT :most
    ) page LEFT JOIN nodes ON nodes.key = page.a ORDER BY page.a, page.b
    """
)
_LOST_LINKS: Final = text(
    """
    SELECT page.node, page.account, u.profile, g.profile FROM (
      SELECT node, account FROM links WHERE (node, account) > (:a, :b) ORDER BY node, account LIMIT :most
    ) page LEFT JOIN nodes u ON u.key = page.node LEFT JOIN nodes g ON g.key = page.account ORDER BY page.node, page.account
    """
)


class Difference(NamedTuple):
    """Something that does not agree. `repairable` is what recombining a profile mends."""

    subject: str
    says: str
    repairable: bool = False


class Piece(NamedTuple):
    """What one snapshot showed: how many rows were looked at, and what does not agree."""

    rows: int
    differences: Sequence[Difference]


def total(connection: Connection) -> int:
    """How many rows there are to look at."""
    tables = (schema.profiles, schema.nodes, schema.edges, schema.links)
    return sum(connection.execute(select(func.count()).select_from(table)).scalar_one() for table in tables)


def verify(database: Database, rules: Rules) -> Iterator[Piece]:
    """Goes through the whole store. Blocks; a failure of the database raises as `Database.read` does."""
    for page in (_profiles_page, _nodes_page, _edges_page, _links_page):
        after: Any = None
        while True:
            piece, after = database.read_sync(lambda connection: page(connection, after, rules))  # noqa: B023 - called at once
            yield piece
            if after is None:
                break


def repair(connection: Connection, profile: str, rules: Rules) -> bool:
    """Recombines a canonical profile from its nodes; whether that changed its row. It is locked meanwhile as the pipeline does."""
    keys: Collection[str] = ()
    while True:
        now = {key for key, _ in _members(connection, [profile])[1]}
        if now == keys:
            break
        keys = now
        load(connection, keys)
        read_profiles(connection, [profile], lock=True)
    family = _members(connection, [profile])[0]
    graph = load(connection, keys, lock=False)
    before = read_profiles(connection, [profile]).get(profile)
    if before is None or before.merged_into is not None:
        return False
    held = disputed(connection, [profile]).get(profile, {})
    made = _made(before, graph.nodes.values(), len(family) - 1, held, rules)
    graph.profiles[profile], graph.changed_profiles = made, {profile}
    save(connection, graph)
    return made != before


# ── Profiles ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _profiles_page(connection: Connection, after: str | None, rules: Rules) -> tuple[Piece, str | None]:
    table = schema.profiles.c
    ids = list(
        connection.execute(select(table.id).where(table.id > (after or "")).order_by(table.id).limit(PIECE)).scalars()
    )
    profiles = read_profiles(connection, ids)
    roots = {name: one for name, one in profiles.items() if one.merged_into is None}
    absorbed = {name: one.merged_into for name, one in profiles.items() if one.merged_into is not None}
    found = [*_pointers(connection, absorbed), *_families(connection, roots, rules)]
    return Piece(len(ids), found), ids[-1] if len(ids) == PIECE else None


def _pointers(connection: Connection, absorbed: Mapping[str, str]) -> Iterator[Difference]:
    """Absorbed profiles lead to one that was not, and by one merge."""
    into: dict[str, str | None] = dict(absorbed)
    missing = set()
    for wanted, known, above in bulk.select(connection, _ANCESTORS, sorted(absorbed)):
        into[wanted] = above
        if known is None:
            missing.add(wanted)
    ends: dict[str, str | None] = {}
    for start in absorbed:
        path, at = dict.fromkeys([start]), start
        while at not in ends and (above := into[at]) is not None and above not in path:
            path[above] = None
            at = above
        end = ends[at] if at in ends else (at if into[at] is None else None)
        ends.update(dict.fromkeys(path, end))
    for start in sorted(absorbed):
        if ends[start] is None:
            yield Difference(start, "leads round in a circle of merges")
        elif ends[start] in missing:
            yield Difference(start, f"leads to {ends[start]}, which is not there")
    merges = Counter(one for one, _ in bulk.select(connection, _MERGES, sorted(absorbed)))
    for start in sorted(absorbed):
        if merges[start] != 1:
            yield Difference(start, f"was absorbed, and {merges[start]} merges say so instead of one")


def _families(connection: Connection, roots: Mapping[str, Profile], rules: Rules) -> Iterator[Difference]:
    """Canonical profiles are what their nodes make them, and hold together."""
    family, members = _members(connection, sorted(roots))
    root_of = {key: family[profile] for key, profile in members}
    graph = load(connection, root_of, lock=False)
    nodes: defaultdict[str, list[Node]] = defaultdict(list)
    for key, root in root_of.items():
        nodes[root].append(graph.nodes[key])
    sizes = Counter(family.values())
    held = disputed(connection, sorted(roots))
    for name, one in sorted(roots.items()):
        yield from _profile(name, one, _made(one, nodes[name], sizes[name] - 1, held.get(name, {}), rules), rules)
    for key, root in sorted(root_of.items()):
        home = graph.nodes[key].home
        if home is not None and family.get(home) != root:
            yield Difference(key, f"was first mapped to {home}, which is not part of {root}")
    for a, b in bulk.select(connection, _EDGES, sorted(root_of)):
        if root_of.get(b) != root_of[a]:
            yield Difference(f"{a} and {b}", f"are linked, and {b} is not an id of {root_of[a]}")
    for absorbed, survivor in bulk.select(connection, _MERGES, sorted(family)):
        if family.get(survivor) != family[absorbed]:
            yield Difference(absorbed, f"merged into {survivor}, which is not part of {family[absorbed]}")


def _members(connection: Connection, roots: Sequence[str]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The canonical profile of every profile under `roots`, and their nodes with the profile each stands with."""
    family = {one: root for root, one in bulk.select(connection, _FAMILIES, roots)}
    return family, [(key, profile) for key, profile in bulk.select(connection, _NODES, sorted(family))]


def _profile(name: str, row: Profile, made: Profile, rules: Rules) -> Iterator[Difference]:
    if lacks(row, rules.windowed):
        made.added = row.added  # completed when it is next written
    elif row.added:
        row = replace(row, added={kind: times for kind, times in row.added.items() if kind in rules.windowed})
    if row != made:
        wrong = [
            f"{field} is {_short(getattr(row, field))}, its ids make it {_short(getattr(made, field))}"
            for field in Profile.__dataclass_fields__
            if getattr(row, field) != getattr(made, field)
        ]
        yield Difference(name, "; ".join(wrong), repairable=True)
    if not made.apart:
        return
    splits = Counter(token.rpartition(":")[0] for token in made.apart)
    for split in sorted(one for one, sides in splits.items() if sides > 1):
        yield Difference(name, f"holds both sides of {split}")


def _made(row: Profile, nodes: Collection[Node], merges: int, held: dict[str, Sequence[Any]], rules: Rules) -> Profile:
    """As its ids and its merges make it."""
    made = combined(row, nodes, rules.windowed)
    made.merges, made.disputed = merges, dict(held)
    return made


def _short(value: Any) -> str:
    said = str(value)
    return said if len(said) <= 120 else said[:117] + "…"


# ── Nodes, links ──────────────────────────────────────────────────────────────────────────────────────────────────


def _nodes_page(connection: Connection, after: str | None, _: Rules) -> tuple[Piece, str | None]:
    rows = connection.execute(_LOST_NODES, {"after": after or "", "most": NODES}).all()
    found = [
        Difference(key, f"belongs to {profile}, which is not there")
        for key, profile, known in rows
        if profile is not None and known is None
    ]
    return Piece(len(rows), found), rows[-1][0] if len(rows) == NODES else None


_Pair = tuple[str, str]


def _edges_page(connection: Connection, after: _Pair | None, _: Rules) -> tuple[Piece, _Pair | None]:
    rows = connection.execute(_LOST_EDGES, _after(after)).all()
    found = [
        Difference(f"{a} and {b}", f"are linked, and {a} is nobody's id") for a, b, profile in rows if profile is None
    ]
    return Piece(len(rows), found), _last(rows)


def _links_page(connection: Connection, after: _Pair | None, _: Rules) -> tuple[Piece, _Pair | None]:
    rows = connection.execute(_LOST_LINKS, _after(after)).all()
    found = [
        Difference(f"{node} and {account}", f"are linked, and {lost} is nobody's id")
        for node, account, *profiles in rows
        for lost, profile in zip((node, account), profiles, strict=True)
        if profile is None
    ]
    return Piece(len(rows), found), _last(rows)


def _after(after: _Pair | None) -> dict[str, Any]:
    a, b = after or ("", "")
    return {"a": a, "b": b, "most": NODES}


def _last(rows: Sequence[Any]) -> _Pair | None:
    return (rows[-1][0], rows[-1][1]) if len(rows) == NODES else None
