"""Reads many profiles: lists, search, export, and who belongs to which account. Every list goes on from a key, so that a page
costs what it holds."""

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from sqlalchemy import Connection, text

from pipeline.store import bulk
from pipeline.store.profiles import HEAD, Head, heads

_CANONICAL: Final = "merged_into IS NULL AND collection = :collection"
_BY_ID: Final = text(
    f"SELECT {HEAD} FROM profiles WHERE {_CANONICAL} AND id > :after AND created_at <= :until ORDER BY id LIMIT :most"
)
_BY_ACTIVITY: Final = text(
    f"""SELECT {HEAD} FROM profiles
    WHERE {_CANONICAL} AND last_seen <= :at AND (last_seen, id) < (:at, :id)
    ORDER BY last_seen DESC, id DESC LIMIT :most"""
)
_KEYS: Final = {
    "sqlite": text(
        "SELECT key FROM nodes WHERE key >= :first AND key > :after AND key < :last ORDER BY key LIMIT :most"
    ),
    "postgresql": text(
        """SELECT key FROM nodes
        WHERE key ~>=~ :first AND key ~>~ :after AND key ~<~ :last ORDER BY key USING ~<~ LIMIT :most"""
    ),
}
_STRETCH: Final = text("SELECT id FROM profiles WHERE id > :after ORDER BY id LIMIT 1 OFFSET :skipped")
_COUNT: Final = text("SELECT count(*) FROM profiles WHERE merged_into IS NULL")
_MOVED: Final = text(
    """SELECT id FROM (
      SELECT survivor AS id FROM merges WHERE seq > :since UNION SELECT profile FROM splits WHERE at > :since
      UNION SELECT other FROM splits WHERE at > :since
    ) AS moved WHERE id > :after ORDER BY id LIMIT :most"""
)


def by_id(connection: Connection, collection: str, after: str, until: int, most: int) -> list[Head]:
    """Canonical profiles with a greater id than `after`, created at `until` (µs) at the latest."""
    rows = connection.execute(_BY_ID, {"collection": collection, "after": after, "until": until, "most": most})
    return [Head(*row) for row in rows]


def by_activity(connection: Connection, collection: str, before: tuple[int, str], most: int) -> list[Head]:
    """Canonical profiles, the latest seen first, beginning after (last_seen, id)."""
    at, one = before
    return [
        Head(*row)
        for row in connection.execute(_BY_ACTIVITY, {"collection": collection, "at": at, "id": one, "most": most})
    ]


def count(connection: Connection) -> int:
    """How many canonical profiles there are."""
    return int(connection.execute(_COUNT).scalar_one())


def moved(connection: Connection, since: int, after: str, most: int) -> tuple[list[Head], str | None]:
    """Canonical profiles that gained or lost ids by a merge or a split since `since` (µs), and where to go on; None at the
    end."""
    rows = [one for (one,) in connection.execute(_MOVED, {"since": since, "after": after, "most": most})]
    found = {head.id: head for head in heads(connection, rows).values()}
    return list(found.values()), rows[-1] if len(rows) == most else None


def keys_with(connection: Connection, prefix: str, after: str, most: int) -> list[str]:
    """External ids that begin so and stand behind `after`, in the order of their bytes."""
    asked = {"first": prefix, "last": prefix + "\U0010ffff", "after": after, "most": most}
    return [key for (key,) in connection.execute(_KEYS[connection.dialect.name], asked)]


def stretch(
    connection: Connection, collection: str, after: str, until: int, needles: Sequence[str], most: int
) -> tuple[list[Head], str | None]:
    """Of the next `most` profiles by id, those that `by_id` would give and whose traits hold every needle, as text; and where
    to go on, None at the end. However few they are, it looks at no more than `most`."""
    end = connection.execute(_STRETCH, {"after": after, "skipped": most - 1}).scalar()
    holds = "position({} in traits) > 0" if connection.dialect.name == "postgresql" else "instr(traits, {}) > 0"
    names = [f"needle{number}" for number in range(len(needles))]
    conditions = [_CANONICAL, "id > :after", "created_at <= :until", *(holds.format(f":{name}") for name in names)]
    if end is not None:
        conditions.append("id <= :end")
    rows = connection.execute(
        text(f"SELECT {HEAD} FROM profiles WHERE {' AND '.join(conditions)} ORDER BY id"),
        {"collection": collection, "after": after, "until": until, **dict(zip(names, needles, strict=True))}
        | ({} if end is None else {"end": end}),
    )
    return [Head(*row) for row in rows], end


# ── Users and accounts ────────────────────────────────────────────────────────────────────────────────────────────

_LINKS_OF_USER: Final = "SELECT node, account, first_at, last_at FROM links WHERE node {}"
_LINKS_OF_ACCOUNT: Final = text(
    """SELECT node, account, first_at, last_at FROM links
    WHERE account = :account AND node > :after ORDER BY node LIMIT :most"""
)


class Link(NamedTuple):
    """A user's external id and an account's, seen on one event. Times are microseconds."""

    node: str
    account: str
    first_at: int
    last_at: int


def links_of_users(connection: Connection, nodes: Collection[str]) -> list[Link]:
    """The links that these ids of users have."""
    return [Link(*row) for row in bulk.select(connection, _LINKS_OF_USER, sorted(nodes))]


def links_of_account(connection: Connection, account: str, after: str, most: int) -> list[Link]:
    """The links of an account's id to ids of users greater than `after`, in their order."""
    rows = connection.execute(_LINKS_OF_ACCOUNT, {"account": account, "after": after, "most": most})
    return [Link(*row) for row in rows]
