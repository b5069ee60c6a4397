"""Many profiles in one answer: lists, searches, and what is linked. Every page costs a bounded amount of work, and goes on where that
ended: it may hold fewer than asked for, and `has_more` says whether there is more."""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Final

from sqlalchemy import Connection

from pipeline import conditions
from pipeline.conditions import Condition, Leaf, Person
from pipeline.profile import values
from pipeline.query.pages import limit_of, opened, sealed, unreadable
from pipeline.query.profile_api.address import Normalize
from pipeline.query.profile_api.views import Query, cursor, fields_of, link_item, one_of, profile_item
from pipeline.store import people, profiles
from pipeline.store.consent import preferences_of
from pipeline.store.database import Database
from pipeline.store.people import Link
from pipeline.store.profiles import Found, Head, Id
from schemas.errors import Refused
from schemas.exact_json import json_dumps

CHUNK: Final = 500  # profiles looked at in one transaction
SECONDS: Final = 1.0  # for one page of a search
AT_ONCE: Final = 2  # searches in one process; others wait for them
_LATEST: Final = 1 << 61
_IDS_SHOWN: Final = 25  # of each profile that is linked

Answer = tuple[dict[str, Any], Sequence[str]]
"""What is answered, and the ids of the profiles that it tells of."""


async def items(
    database: Database, found: Sequence[Found], fields: frozenset[str], allowed: frozenset[str] | None
) -> list[dict[str, Any]]:
    """Profiles with the fields that were asked for."""
    ids = [one.id for one in found]
    said = (
        await database.read(lambda connection: preferences_of(connection, ids)) if ids and "consent" in fields else {}
    )
    return [profile_item(one, fields, allowed, said.get(one.id)) for one in found]


async def listed(database: Database, collection: str, query: Query, url: str, allowed: frozenset[str] | None) -> Answer:
    """Canonical profiles, `limit` (1 to 100, default 20) at a time: the latest active first, or with `sort=id` all of them in a
    fixed order. Whoever becomes active meanwhile moves to the front, behind us: nobody is told twice."""
    limit = limit_of(query, default=20, most=100)
    fields = fields_of([one for one in query.get("fields", "").split(",") if one] or None)
    by_id = one_of(query, "sort", ("updated_at", "id")) == "id"
    kind = "profiles by id" if by_id else "profiles by activity"
    behind = opened(query, kind, str) if by_id else opened(query, kind, int, str)
    if behind is not None and behind[0] != collection:
        raise unreadable()

    def read(connection: Connection) -> tuple[list[Found], bool]:
        if by_id:
            rows = people.by_id(connection, collection, behind[1][0] if behind else "", _LATEST, limit + 1)
        else:
            before = (behind[1][0], behind[1][1]) if behind else (_LATEST, "")
            rows = people.by_activity(connection, collection, before, limit + 1)
        return profiles.whole(connection, rows[:limit]), len(rows) > limit

    page, more = await database.read(read)
    last = page[-1].head if more else None
    following = None
    if last is not None:
        key = (last.id,) if by_id else (last.last_seen, last.id)
        following = sealed(kind, collection, *key)
    data = await items(database, page, fields, allowed)
    return {"data": data, "cursor": cursor(url, limit, following)}, [one.id for one in page]


# ── Search ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Search:
    """What is searched for. `as_of` (µs) is when it began: who came later is not found. `behind` is the key of the last
    candidate that was looked at."""

    where: Condition
    fields: frozenset[str]
    limit: int
    owner: str
    as_of: int
    behind: str

    def asks(self, what: str) -> bool:
        """Whether it is about traits, ids or consent."""
        return any(one.what == what for one in conditions.leaves(self.where))

    def seal(self, behind: str) -> str:
        """The cursor of the next page."""
        return sealed("search", self.owner, self.as_of, behind)


def asked(body: Mapping[str, Any], collection: str, normalize: Normalize, allowed: frozenset[str] | None) -> Search:
    """What a body asks for. Refused when it cannot be meant, or is about a trait that may not be read."""
    where = _normal(conditions.parse(body.get("where")), normalize)
    hidden = [one.name for one in conditions.leaves(where) if one.what == "trait" and not _may(one.name, allowed)]
    if hidden:
        raise Refused("forbidden", f"The token may not read the trait {hidden[0][:100]!r}.", status=403)
    text = {name: str(body[name]) for name in ("limit", "next") if body.get(name) is not None}
    owner = blake2b(json_dumps([collection, body.get("where")], sort_keys=True), digest_size=8).hexdigest()
    behind = opened(text, "search", int, str)
    if behind is not None and behind[0] != owner:
        raise unreadable()
    as_of, key = behind[1] if behind is not None else (time.time_ns() // 1_000, "")
    return Search(where, fields_of(body.get("fields")), limit_of(text, default=50, most=1_000), owner, as_of, key)


def _may(trait: str, allowed: frozenset[str] | None) -> bool:
    return allowed is None or trait in allowed or trait.partition(".")[0] in allowed


def _normal(condition: Condition, normalize: Normalize) -> Condition:
    """Ids compared in the form in which they are kept."""
    if isinstance(condition, conditions.Group):
        return conditions.Group(condition.kind, [_normal(one, normalize) for one in condition.parts])
    if condition.what != "id" or not isinstance(condition.value, str | list):
        return condition
    value = condition.value
    made = (
        normalize(condition.name, value)
        if isinstance(value, str)
        else [normalize(condition.name, one) if isinstance(one, str) else one for one in value]
    )
    return Leaf(condition.what, condition.name, condition.op, made)


class Searches:
    """Searches of one process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def page(self, search: Search, collection: str, url: str, allowed: frozenset[str] | None) -> Answer:
        """At most `limit` profiles that match. An id in the condition that must hold leads straight to them; else the profiles
        are looked through, `CHUNK` at a time, for `SECONDS`."""
        lead = _lead(search.where)
        found: list[Found] = []
        behind: str | None = search.behind
        deadline = time.monotonic() + SECONDS
        async with self._turns:
            while behind is not None and len(found) < search.limit and time.monotonic() < deadline:
                most = search.limit - len(found)
                chunk, behind = await self._database.read(
                    lambda c: _chunk(c, search, collection, lead, behind or "", most)  # noqa: B023 - awaited within the turn
                )
                found += chunk
        data = await items(self._database, found, search.fields, allowed)
        following = None if behind is None else search.seal(behind)
        return {"data": data, "cursor": cursor(url, search.limit, following)}, [one.id for one in found]


def _lead(where: Condition) -> Leaf | None:
    """The comparison that leads to the profiles by their ids: the one that names them most exactly."""
    leads = [one for one in conditions.required(where) if one.what == "id" and one.op in _LEADS]
    return min(leads, key=lambda one: (_LEADS.index(one.op), -len(str(one.value))), default=None)


_LEADS: Final = ("equals", "one_of", "starts_with")


def _chunk(
    connection: Connection, search: Search, collection: str, lead: Leaf | None, behind: str, most: int
) -> tuple[list[Found], str | None]:
    """Matches among the next candidates, and the last candidate that was looked at; None when there are no more."""
    if lead is None:
        return _through_all(connection, search, collection, behind, most)
    keys = _keys(connection, lead, behind)
    heads = profiles.heads(connection, keys)
    rows = list({head.id: head for head in heads.values() if _is_meant(head, search, collection)}.values())
    wholes = profiles.whole(connection, rows)
    matching = {one.id: one for one in _matching(connection, wholes, search)}
    found: list[Found] = []
    for key in keys:
        one = matching.get(heads[key].id) if key in heads else None
        if one is not None and _first(one, lead) == key:
            found.append(one)
        if len(found) == most:
            return found, key
    return found, keys[-1] if len(keys) == CHUNK else None


def _keys(connection: Connection, lead: Leaf, behind: str) -> list[str]:
    if lead.op == "starts_with":
        return people.keys_with(connection, f"{lead.name}:{lead.value}", behind, CHUNK)
    named = lead.value if lead.op == "one_of" else [lead.value]
    keys = sorted({f"{lead.name}:{one}" for one in named if isinstance(one, str)}, key=str.encode)
    return [key for key in keys if key.encode() > behind.encode()]


def _first(one: Found, lead: Leaf) -> str | None:
    """The id by which a profile is found when several lead to it."""
    now = datetime.now(UTC)
    led = [str(two.external) for two in one.external_ids if lead.holds(Person({}, (two.external,)), now)]
    return min(led, key=str.encode, default=None)


def _through_all(
    connection: Connection, search: Search, collection: str, behind: str, most: int
) -> tuple[list[Found], str | None]:
    needles = conditions.needles(search.where)
    rows, end = people.stretch(connection, collection, behind, search.as_of, needles, CHUNK)
    candidates = profiles.whole(connection, rows) if search.asks("id") else [profiles.bare(head) for head in rows]
    matching = _matching(connection, candidates, search)
    found = matching[:most]
    whole = profiles.whole(connection, [one.head for one in found])
    return whole, found[-1].id if len(matching) > most else end


def _is_meant(head: Head, search: Search, collection: str) -> bool:
    return head.collection == collection and head.created_at <= search.as_of


def _matching(connection: Connection, candidates: Sequence[Found], search: Search) -> list[Found]:
    now = _moment(search)
    consent = preferences_of(connection, [one.id for one in candidates]) if search.asks("consent") else {}

    def person(one: Found) -> Person:
        return Person(values(one.traits), [two.external for two in one.external_ids], consent.get(one.id, {}))

    return [one for one in candidates if search.where.holds(person(one), now)]


def _moment(search: Search) -> datetime:
    """Days are counted from when the search began, on all its pages."""
    return datetime.fromtimestamp(search.as_of / 1_000_000, UTC)


# ── Users and accounts ────────────────────────────────────────────────────────────────────────────────────────────


async def linked(database: Database, head: Head, query: Query, url: str) -> Answer:
    """The accounts of a user, or the users of an account, `limit` (1 to 100, default 20) at a time, each once."""
    limit = limit_of(query, default=20, most=100)
    ids = await database.read(lambda connection: profiles.ids(connection, head.id))
    if head.collection == "users":
        return await database.read(lambda connection: _accounts(connection, head, ids, query, url, limit))
    return await database.read(lambda connection: _users(connection, head, ids, query, url, limit))


def _accounts(connection: Connection, head: Head, ids: Sequence[Id], query: Query, url: str, limit: int) -> Answer:
    behind = opened(query, "accounts", int, str)
    links = people.links_of_users(connection, [one.key for one in ids])
    heads = profiles.heads(connection, {one.account for one in links})
    grouped = _grouped((heads[one.account].id, one) for one in links if one.account in heads)
    order = sorted((min(one.first_at for one in group), account) for account, group in grouped.items())
    if behind is not None:
        order = [one for one in order if one > (behind[1][0], behind[1][1])]
    by_id = {one.id: one for one in heads.values()}
    page = profiles.whole(connection, [by_id[account] for _, account in order[:limit]])
    following = sealed("accounts", head.id, *order[limit - 1]) if len(order) > limit else None
    data = [link_item("accounts", one, grouped[one.id], _IDS_SHOWN) for one in page]
    return {"data": data, "cursor": cursor(url, limit, following)}, [one.id for one in page]


def _users(connection: Connection, head: Head, ids: Sequence[Id], query: Query, url: str, limit: int) -> Answer:
    """In the order of the users' linked ids. A user with several is told at the first of them."""
    accounts = sorted(one.key for one in ids)
    behind = opened(query, "users", str, str)
    account, node = behind[1] if behind is not None else ("", "")
    page: list[tuple[Found, list[Link]]] = []
    for one in (key for key in accounts if key >= account):
        after = node if one == account else ""
        while rows := people.links_of_account(connection, one, after, limit):
            for user, links in _at_their_first(connection, rows, accounts):
                if len(page) == limit:
                    last = min((link.account, link.node) for link in page[-1][1])
                    return _users_page(page, url, limit, sealed("users", head.id, *last))
                page.append((user, links))
            after = rows[-1].node
    return _users_page(page, url, limit, None)


def _users_page(page: Sequence[tuple[Found, list[Link]]], url: str, limit: int, following: str | None) -> Answer:
    data = [link_item("users", user, links, _IDS_SHOWN) for user, links in page]
    return {"data": data, "cursor": cursor(url, limit, following)}, [user.id for user, _ in page]


def _at_their_first(
    connection: Connection, rows: Sequence[Link], accounts: Sequence[str]
) -> list[tuple[Found, list[Link]]]:
    """The users whose first link to these accounts is among the rows, in their order, with all their links to them."""
    heads = profiles.heads(connection, [one.node for one in rows])
    users = profiles.whole(connection, list({head.id: head for head in heads.values()}.values()))
    owner = {str(one.external): user.id for user in users for one in user.external_ids}
    links = [one for one in people.links_of_users(connection, owner) if one.account in accounts]
    grouped = _grouped((owner[one.node], one) for one in links)
    first = {user: min((one.account, one.node) for one in group) for user, group in grouped.items()}
    by_id = {user.id: user for user in users}
    told = [heads[one.node].id for one in rows if one.node in heads]
    places = [(one.account, one.node) for one in rows if one.node in heads]
    return [(by_id[user], grouped[user]) for user, place in zip(told, places, strict=True) if first.get(user) == place]


def _grouped(links: Iterable[tuple[str, Link]]) -> dict[str, list[Link]]:
    grouped: dict[str, list[Link]] = {}
    for owner, one in links:
        grouped.setdefault(owner, []).append(one)
    return grouped
