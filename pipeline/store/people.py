"""Reads many profiles: lists, search, export, and who belongs to which account. Every list goes on from a key, so that a page
costs what it holds."""

from collections.abc import Collection
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
    "sqlite": text("SELECT key, profile FROM nodes WHERE key >= :first AND key < :last ORDER BY key LIMIT :most"),
    "postgresql": text(
        "SELECT key, profile FROM nodes WHERE key ~>=~ :first AND key ~<~ :last ORDER BY key USING ~<~ LIMIT :most"
    ),
}
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


class Key(NamedTuple):
    """An external id and the profile that it led to when it was last written; None when to none."""

    key: str
    profile: str | None


def keys_between(connection: Connection, first: str, last: str, most: int) -> list[Key]:
    """External ids from `first` up to `last`, without it, in the order of their bytes."""
    rows = connection.execute(_KEYS[connection.dialect.name], {"first": first, "last": last, "most": most})
    return [Key(*row) for row in rows]


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


def prefix_range(prefix: str) -> tuple[str, str]:
    """Between which keys those with a prefix stand. Pure."""
    return prefix, prefix + "\U0010ffff"
