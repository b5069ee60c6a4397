"""Everything that has to hold once it is quiet, compared in one go. Every field is empty when all is well."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import duckdb
import orjson
from sqlalchemy import select

from pipeline.log import open_log
from pipeline.profile import message_key, values
from pipeline.store import schema
from pipeline.store.database import Database
from schemas.events import decode_resolved
from schemas.topics import RESOLVED
from tests.crash.shop import EVENT_TABLES, TABLES, Message, Profile, expected_profiles

SOURCE: Final = "shop"
SHOWN: Final = 8  # faults of a kind that are spelled out

Faults = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Faults by kind."""

    clients: Faults = ()  # answers that no outage explains
    processes: Faults = ()  # tracebacks, and roles that did not stop when asked
    warehouse: Faults = ()  # missing, doubled, never sent
    profiles: Faults = ()
    webhook: Faults = ()  # never seen, out of order
    balance: Faults = ()

    def __str__(self) -> str:
        lines = []
        for one in fields(self):
            faults: Faults = getattr(self, one.name)
            lines.append(f"{one.name}: {len(faults) or 'no'} faults")
            lines += [f"    {fault}" for fault in faults[:SHOWN]]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Sent:
    """What the clients know."""

    messages: Mapping[str, Message]
    answered: Collection[str]


def applied_messages(database: Database, sent: Sent) -> list[Message]:
    """What the pipeline has accepted: all that was answered, if nothing was lost, and some of the rest."""
    keys = database.read_sync(
        lambda connection: set(map(bytes, connection.execute(select(schema.events.c.key)).scalars()))
    )
    return [one for one in sent.messages.values() if message_key(SOURCE, one.id) in keys]


# ── Warehouse ─────────────────────────────────────────────────────────────────────────────────────────────────────


def loaded(file: Path) -> dict[str, list[str]]:
    """The ids in each table of the warehouse, and the rows of `users`."""
    with duckdb.connect(str(file), read_only=True) as connection:
        tables = [*TABLES.values(), *EVENT_TABLES.values(), "users"]
        return {
            table: [one for (one,) in connection.execute(f"SELECT id FROM {SOURCE}.{table}").fetchall()]
            for table in tables
        }


def warehouse_faults(rows: Mapping[str, Sequence[str]], sent: Sent) -> Faults:
    """Every answered message once in the table of its kind, a track also once in that of its event; what nobody answered
    for at most once; nothing else."""
    faults: list[str] = []
    for kind, table in TABLES.items():
        of_kind = {one.id for one in sent.messages.values() if one.kind == kind}
        faults += _counted(table, rows[table], of_kind, of_kind & set(sent.answered))
    for event, table in EVENT_TABLES.items():
        of_event = {one.id for one in sent.messages.values() if one.event == event}
        faults += _counted(table, rows[table], of_event, of_event & set(rows["tracks"]))
    users = {_user(one) for one in sent.messages.values() if one.kind == "identify" and one.id in sent.answered}
    faults += _counted("users", rows["users"], users, users)
    return tuple(faults)


def _user(message: Message) -> str:
    return message.ids[0].removeprefix("user_id:")


def _counted(where: str, found: Iterable[str], allowed: set[str], wanted: set[str]) -> Iterator[str]:
    counts = Counter(found)
    yield from (f"{where}: {one} is missing" for one in sorted(wanted - counts.keys()))
    yield from (f"{where}: {one} is there {count} times" for one, count in sorted(counts.items()) if count > 1)
    yield from (f"{where}: {one} was never sent" for one in sorted(counts.keys() - allowed))


# ── Profiles ──────────────────────────────────────────────────────────────────────────────────────────────────────


def profile_faults(database: Database, applied: Iterable[Message]) -> Faults:
    """The profiles are those that the applied messages, each once, must give."""
    expected = expected_profiles(applied)
    actual = database.read_sync(lambda connection: list(_profiles(connection)))
    by_ids = {one.ids: one for one in actual}
    faults = [f"two profiles hold {ids}" for ids, count in Counter(one.ids for one in actual).items() if count > 1]
    faults += [
        f"{ids} is {by_ids.get(ids)}, should be {expected.get(ids)}"
        for ids in sorted(expected.keys() | by_ids.keys())
        if expected.get(ids) != by_ids.get(ids)
    ]
    contributed = database.read_sync(
        lambda connection: sum(connection.execute(select(schema.nodes.c.events)).scalars())
    )
    total = sum(one.events for one in actual)
    if contributed != total:
        faults.append(f"nodes hold {contributed} events, profiles {total}")
    return tuple(faults)


def _profiles(connection: Any) -> Iterator[Profile]:
    table, nodes = schema.profiles.c, schema.nodes.c
    rows = {row.id: row for row in connection.execute(select(table.id, table.merged_into, table.events, table.traits))}
    ids: dict[str, list[str]] = {}
    for key, profile in connection.execute(select(nodes.key, nodes.profile)):
        while rows[profile].merged_into is not None:
            profile = rows[profile].merged_into
        ids.setdefault(profile, []).append(key)
    for name, row in rows.items():
        if row.merged_into is None:
            yield Profile(tuple(sorted(ids.get(name, ()))), row.events, values(orjson.loads(row.traits)))


# ── Webhook ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Sighting:
    """The first time the receiver saw a message."""

    id: str
    profile: str
    device: str


def first_sightings(file: Path) -> list[Sighting]:
    """In the order in which the receiver saw them."""
    seen: dict[str, Sighting] = {}
    with file.open("rb") as lines:
        for line in lines:
            for event in orjson.loads(line):
                one = Sighting(event["messageId"], event["profileId"], event.get("anonymousId") or event["userId"])
                seen.setdefault(one.id, one)
    return list(seen.values())


def webhook_faults(sightings: Sequence[Sighting], resolved: Mapping[str, Sequence[str]], sent: Sent) -> Faults:
    """Every answered message was seen; each profile's in the order in which the pipeline resolved them, and each device's in the order
    in which they were sent, whatever profiles it belonged to on the way."""
    seen = {one.id for one in sightings}
    faults = [f"{one} was never seen" for one in sorted(set(sent.answered) - seen)]
    faults += [f"{one} was never sent" for one in sorted(seen - sent.messages.keys())]
    by_profile: dict[str, list[str]] = {}
    by_device: dict[str, list[tuple[Message, str]]] = {}
    for one in sightings:
        by_profile.setdefault(one.profile, []).append(one.id)
        message = sent.messages.get(one.id)
        if message is not None and message.ordered and one.id in sent.answered:
            by_device.setdefault(one.device, []).append((message, one.profile))
    for device, messages in by_device.items():
        for (before, then), (after, now) in pairwise(messages):
            if before.number > after.number:
                faults.append(
                    f"{device}: {after.id} ({after.number}, {now}) after {before.id} ({before.number}, {then})"
                )
    for profile, ids in by_profile.items():
        order = list(resolved.get(profile, ()))
        if ids != order:
            at = next(
                (i for i, (a, b) in enumerate(zip(ids, order, strict=False)) if a != b), min(len(ids), len(order))
            )
            faults.append(f"{profile}: seen {ids[at : at + 3]} where {order[at : at + 3]} were resolved")
    return tuple(faults)


async def resolved_order(url: str) -> dict[str, list[str]]:
    """Message ids by profile, in the order of the log `resolved`, repeats left out."""
    order: dict[str, dict[str, None]] = {}
    async with open_log(url) as log:
        for partition, (start, end) in (await log.bounds(RESOLVED)).items():
            offset = start
            while offset < end and (batch := await log.read(RESOLVED, partition, offset)) is not None:
                for record in batch.records:
                    one = decode_resolved(record.value)
                    order.setdefault(one.profile_id, {}).setdefault(one.event.message_id)
                offset = batch.next_offset
    return {profile: list(ids) for profile, ids in order.items()}


# ── Balance ───────────────────────────────────────────────────────────────────────────────────────────────────────


def on_the_way(books: Any | None) -> float:
    """How much of what was accepted has not arrived yet; infinite while nobody can tell."""
    if books is None or not books["sources"]:
        return math.inf
    waiting = [one["waiting"] for one in books["sources"].values()]
    pending = [row["pending"] for rows in books["destinations"].values() for row in rows.values()]
    left = (*waiting, *pending)
    return math.inf if None in left else sum(left)


def balance_faults(books: Any, messages: int) -> Faults:
    """So many messages were accepted, each destination got them all, and nothing is off."""
    faults = []
    if books["off"] != 0:
        faults.append(f"off by {books['off']}")
    if books["sources"][SOURCE]["accepted"] != messages:
        faults.append(f"{books['sources'][SOURCE]['accepted']} accepted, should be {messages}")
    whole = {
        "accepted": messages,
        "delivered": messages,
        "filtered": 0,
        "dead": 0,
        "purged": 0,
        "pending": 0,
        "missed": 0,
        "off": 0,
    }
    for name, rows in books["destinations"].items():
        if rows.get(SOURCE) != whole:
            faults.append(f"{name}: {rows.get(SOURCE)}, should be {whole}")
    return tuple(faults)
