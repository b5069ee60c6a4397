"""Why a profile is what it is: its ids, the evidence between them, the merges, the splits and what was refused, each with the
event that did it. One snapshot; costs what the profile holds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Table

from pipeline.store import bulk, schema
from pipeline.store.profiles import heads
from schemas.exact_json import json_loads

Row = Mapping[str, Any]

_FAMILY: Final = """
    WITH RECURSIVE family(id) AS (
      SELECT id FROM profiles WHERE id {}
      UNION SELECT profiles.id FROM profiles JOIN family ON profiles.merged_into = family.id
    )
    SELECT id FROM family
"""


@dataclass(frozen=True, slots=True)
class Explained:
    """Rows of the identity tables by column, in serial order. `profiles` are the canonical one, `profile`, and all that merged
    into it; `merges` and `splits` also those that do not hold any more; `moves` are of ids that left or joined as those of their latest owner; `refused` what a rule kept out of this profile, and what it
    kept these ids from."""

    profile: str
    profiles: Sequence[Row]
    ids: Sequence[Row]
    links: Sequence[Row]
    accounts: Sequence[Row]
    merges: Sequence[Row]
    moves: Sequence[Row]
    splits: Sequence[Row]
    refused: Sequence[Row]
    rules: Sequence[Row]


def explain(connection: Connection, address: str) -> Explained | None:
    """Of the profile at an external id in its normal form, or at a profile id. None when there is none."""
    head = heads(connection, [address]).get(address)
    if head is None:
        return None
    family = sorted(one for (one,) in bulk.select(connection, _FAMILY, [head.id]))

    def read(table: Table, column: str, values: Sequence[str]) -> list[dict[str, Any]]:
        return rows(connection, table, column, values)

    ids = sorted(read(schema.nodes, "profile", family), key=_in_order("seq", "key"))
    for one in ids:
        one["apart"] = json_loads(one["apart"]) if one["apart"] else []
    keys = [one["key"] for one in ids]
    held = set(keys)
    links = [one for one in read(schema.edges, "a", keys) if one["b"] in held]
    merges = _unique("id", read(schema.merges, "survivor", family), read(schema.merges, "absorbed", family))
    splits = _unique("id", read(schema.splits, "profile", family), read(schema.splits, "other", family))
    moves = _unique("id", *(read(schema.moves, column, family) for column in ("left_profile", "joined")))
    refused = [
        *read(schema.violations, "profile", family),
        *(one for one in read(schema.violations, "key", keys) if one["profile"] not in family),
    ]
    found = sorted(refused, key=_in_order("first_at", "key", "violation", "profile"))
    versions = sorted({one["rules"] for part in (ids, links, merges, moves, found) for one in part})
    return Explained(
        profile=head.id,
        profiles=sorted(read(schema.profiles, "id", family), key=_in_order("seq", "created_at", "id")),
        ids=ids,
        links=sorted(links, key=_in_order("seq", "a", "b")),
        accounts=sorted(read(schema.links, "node", keys), key=_in_order("first_at", "node", "account")),
        merges=sorted(merges, key=_in_order("seq", "id")),
        moves=sorted(moves, key=_in_order("seq", "id")),
        splits=sorted(splits, key=_in_order("at", "id")),
        refused=found,
        rules=rows(connection, schema.identity_rules, "version", versions, kind="int4"),
    )


def rows(
    connection: Connection, table: Table, column: str, values: Sequence[Any], *, kind: str = "text"
) -> list[dict[str, Any]]:
    """Rows of a table with a column among values."""
    names = [one.name for one in table.columns]
    columns = ", ".join(f'"{name}"' for name in names)
    found = bulk.select(connection, f'SELECT {columns} FROM {table.name} WHERE "{column}" {{}}', values, kind=kind)
    return [dict(zip(names, row, strict=True)) for row in found]


def _unique(key: str, *parts: Sequence[Row]) -> list[Row]:
    return list({one[key]: one for part in parts for one in part}.values())


def _in_order(*names: str) -> Callable[[Row], tuple[Any, ...]]:
    return lambda row: tuple(row[name] for name in names)
