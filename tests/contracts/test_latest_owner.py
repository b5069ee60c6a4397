"""Ids that belong to their latest owner through the pipeline's transaction, on SQLite and on PostgreSQL: however events are cut into
polls, by two writers at once, and what is told, explained and forgotten of a move."""

import random
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, text

from pipeline.identity import KEPT_APART, Rules
from pipeline.parse import parse
from pipeline.store import forget, schema, splits
from pipeline.store.database import Database
from pipeline.store.explain import explain
from pipeline.store.intake import apply
from pipeline.store.verify import verify
from schemas.changes import ProfileChange, Removed, identifier_hash
from schemas.events import Event, ExternalId
from schemas.identity import IdentityConfig, IdTypeConfig
from tests.contracts.test_identity_cases import Store, at_once, dump, orders, people, store  # noqa: F401 - the fixture is used by name
from tests.contracts.test_intake import batch, database, event  # noqa: F401 - the fixture is used by name
from tests.identity_cases import LATEST_OWNER, Case, check, events

TITLES = sorted(LATEST_OWNER)
NAMES = {title: f"l{number}." for number, title in enumerate(TITLES)}


@pytest.mark.parametrize("title", TITLES)
def test_an_id_of_its_latest_owner_one_event_after_the_other(store: Store, title: str):  # noqa: F811
    check(LATEST_OWNER[title], store.play(LATEST_OWNER[title], f"s{NAMES[title]}", polls=True))


def test_ids_of_their_latest_owners_in_one_poll(store: Store):  # noqa: F811
    for title, case in LATEST_OWNER.items():
        check(case, store.play(case, f"p{NAMES[title]}", polls=False))


def test_ids_of_their_latest_owners_by_two_writers_come_to_what_some_order_of_the_events_gives(store: Store):  # noqa: F811
    for title, case in LATEST_OWNER.items():
        for turn in range(3):
            name = f"t{turn}{NAMES[title]}"
            found = events(case, name)
            at_once(store, [found[0::2], found[1::2]], case.rules(0))
            assert people(store.state(name)) in orders(case, name), title
    assert differences(store, case.rules(0)) == []


def differences(store: Store, rules: Rules) -> list[Any]:  # noqa: F811
    return [one for piece in verify(store.database, rules) for one in piece.differences]


def history(seed: int) -> Case:
    """People who log in and out on a few devices, whose tokens go from one to the other."""
    chance = random.Random(seed)
    said = []
    for _ in range(40):
        ids = [f"u{chance.randrange(3)}"] if chance.random() < 0.5 else []
        ids += [f"a{chance.randrange(4)}"] if chance.random() < 0.4 else []
        ids += [f"k{chance.randrange(3)}"] if chance.random() < 0.8 or not ids else []
        ids += [f"f{chance.randrange(2)}"] if chance.random() < 0.2 else []
        trait = f" plan={chance.randrange(9)}" if chance.random() < 0.4 else ""
        group = chance.random() < 0.1
        said.append(f"{'group ' if group else ''}{'+'.join(ids)}{' g1' if group else ''}{trait}")
    some = {"ios.push_token": IdTypeConfig(latest_owner=True), "ios.idfa": IdTypeConfig(latest_owner=True, limit=1)}
    if seed % 2:
        some["ios.push_token"] = IdTypeConfig(latest_owner=True, limit=2, window="weekly")
    return Case("", "; ".join(said), [], config=IdentityConfig(types=some))


@pytest.mark.parametrize("seed", range(12))
def test_however_events_are_cut_into_polls_the_tables_are_the_same(store: Store, tmp_path, seed: int):  # noqa: F811
    case, name = history(seed), f"h{seed}."
    single = Store(f"sqlite:///{tmp_path}/single.sqlite")
    single.play(case, name, polls=True)
    found, partition, chance, start = events(case, name), store.partition(), random.Random(seed), 0
    while start < len(found):
        end = start + chance.randrange(1, 15)
        store.put(partition, start, found[start:end], case.rules(0))
        start = end
    assert tables(store, name) == tables(single, name)
    assert differences(single, case.rules(0)) == []
    single.database.close()


def tables(store: Store, name: str) -> dict[str, Any]:  # noqa: F811
    """All rows of identity of a run, and which node each of its events hangs on."""

    def read(connection: Connection) -> dict[str, Any]:
        columns = ", ".join(f'"{one.name}"' for one in schema.moves.columns if one.name not in ("seq", "was_seq"))
        moved = connection.execute(text(f"SELECT {columns} FROM moves WHERE key LIKE :name"), {"name": f"%:{name}%"})
        hung = text("SELECT node, key FROM events WHERE node LIKE :name")
        rows = connection.execute(hung, {"name": f"%:{name}%"})
        return {
            "moves": sorted(tuple(one) for one in moved),
            "events": sorted((row.node, bytes(row.key).hex()) for row in rows),
        }

    return dump(store.database, name) | store.database.read_sync(read)


# ── What is told, explained, forgotten ────────────────────────────────────────────────────────────────────────────

RULES = Rules(IdentityConfig(types={"ios.push_token": IdTypeConfig(latest_owner=True)}))
TOKEN = ExternalId("ios.push_token", "k1")


def with_token(message: str, **given: Any) -> Event:
    return event(message, context={"device": {"type": "ios", "token": "k1"}}, **given)


def put(database, *found: Event, first: int = 0) -> list[ProfileChange]:  # noqa: F811
    """Applies events as one poll; what `profile-changes` is told."""
    work = parse([batch(*found, first=first)], rules=RULES)
    emissions = database.run_sync(lambda c: apply(c, work, {}, RULES))
    return [change for one in emissions for change in one.changes]


FIRST = (with_token("m1", user="u1", anonymous="a1"), with_token("m2"))
SECOND = (with_token("m3", user="u2"),)


def test_the_old_profile_is_told_of_what_left_it_before_the_new_one_hears_of_what_joined(database):  # noqa: F811
    [old] = put(database, *FIRST)
    left, created = put(database, *SECOND, first=2)
    assert (left.kind, left.profile, left.other) == ("id_removed", old.profile, created.profile)
    assert left.removed == [Removed("ios.push_token", identifier_hash(TOKEN))]
    assert left.cause == created.cause
    assert (created.kind, created.ids) == ("created", [ExternalId("user_id", "u2"), TOKEN])
    assert left.seq < created.seq


@pytest.mark.parametrize("polls", [1, 3])
def test_after_a_crash_the_same_is_told_again(database, polls: int):  # noqa: F811
    found = [*FIRST, *SECOND, with_token("m4", user="u1"), with_token("m5", user="u3"), with_token("m6", user="u2")]
    size = len(found) // polls
    told = [
        one for start in range(0, len(found), size) for one in put(database, *found[start : start + size], first=start)
    ]
    assert put(database, *found) == told
    assert [one.kind for one in told].count("id_removed") == 4


def test_explain_tells_of_the_move_at_both_profiles(database):  # noqa: F811
    put(database, *FIRST)
    put(database, *SECOND, first=2)
    old, new = (database.read_sync(partial(explain, address=one)) for one in ("user_id:u1", "user_id:u2"))
    assert [one["key"] for one in old.ids] == ["anonymous_id:a1", "user_id:u1"]
    assert [(one["key"], one["message_id"], one["home"]) for one in new.ids if one["key"] == str(TOKEN)] == [
        (str(TOKEN), "m3", new.profile)
    ]
    assert old.moves == new.moves
    assert [(one["left_profile"], one["joined"], one["message_id"], one["was_message_id"]) for one in old.moves] == [
        (old.profile, new.profile, "m3", "m1")
    ]


def test_what_a_person_took_apart_no_move_brings_together(database):  # noqa: F811
    put(database, *FIRST)
    database.run_sync(lambda c: splits.unmerge_ids(c, ExternalId("user_id", "u1"), TOKEN, RULES))
    put(database, with_token("m3", anonymous="a9"), with_token("m4", user="u1"), first=2)
    owner = database.read_sync(partial(explain, address=str(TOKEN)))
    assert sorted(one["key"] for one in owner.ids) == ["anonymous_id:a9", str(TOKEN)]
    assert [
        (one["key"], one["violation"]) for one in database.read_sync(partial(explain, address="user_id:u1")).refused
    ] == [(str(TOKEN), KEPT_APART)]


def test_deleting_the_old_owner_leaves_the_token_to_the_new_one_and_the_other_way_round(database):  # noqa: F811
    put(database, *FIRST)
    put(database, *SECOND, first=2)
    gone = database.run_sync(lambda c: forget.person(c, ExternalId("user_id", "u1"), "reg_1"))
    assert (gone.ids, gone.rows["events"]) == (["anonymous_id:a1", "user_id:u1"], 2)
    assert rows(database, "nodes") == [(str(TOKEN),), ("user_id:u2",)]
    assert rows(database, "moves") == []
    gone = database.run_sync(lambda c: forget.person(c, TOKEN, "reg_2"))
    assert (gone.ids, gone.rows["events"]) == ([str(TOKEN), "user_id:u2"], 1)
    assert rows(database, "nodes") == []


def rows(database: Database, table: str) -> list[Any]:  # noqa: F811
    column = {"nodes": "key", "moves": "id"}[table]
    found = text(f"SELECT {column} FROM {table} ORDER BY 1")
    return database.read_sync(lambda c: [tuple(row) for row in c.execute(found)])
