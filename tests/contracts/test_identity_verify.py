"""What `verify` finds in a store, on SQLite and on PostgreSQL: nothing after any work of ours, and everything that is broken."""

import random
import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, text

from pipeline.identity import Rules
from pipeline.store import splits
from pipeline.store import verify as verifying
from pipeline.store.database import Database
from pipeline.store.verify import repair, total, verify
from schemas.errors import Refused
from schemas.events import ExternalId
from tests.contracts.test_intake import batch, database, event, put  # noqa: F401 - the fixture is used by name


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "PIECE", 3)
    monkeypatch.setattr(verifying, "NODES", 4)


def differences(database: Database) -> Iterator[tuple[str, str]]:  # noqa: F811
    for piece in verify(database, Rules()):
        for one in piece.differences:
            yield one.subject, one.says


def busy(database: Database, seed: int, first: int = 0) -> None:  # noqa: F811
    """People with several devices, logins, accounts, and now and then a merge undone or two ids taken apart."""
    chance = random.Random(seed)
    for number in range(12):
        events = []
        for _ in range(6):
            person = chance.randrange(6)
            user = f"u{person}" if chance.random() < 0.5 else None
            events.append(
                event(
                    f"{seed}-{chance.getrandbits(60)}",
                    user=user,
                    anonymous=f"a{person}-{chance.randrange(3)}"
                    if chance.random() < 0.8
                    else f"a{chance.randrange(6)}-0",
                    at=chance.randrange(100, 900),
                    traits={"plan": chance.choice("abc"), "email": f"{person}@x.test"},
                )
            )
        put(database, batch(*events, partition=seed, first=first + number * 6))
        disturb(database, chance)


OVERTAKEN = {"kept_apart", "not_together", "nothing_to_split", "already_undone", "already_lifted"}
"""What may be said when somebody else was faster, or another split stands in between."""


def disturb(database: Database, chance: random.Random) -> None:  # noqa: F811
    """Undoes or lifts something."""

    def act(connection: Connection) -> None:
        step = chance.randrange(3)
        if step == 0:
            rows = connection.execute(text("SELECT id FROM merges WHERE undone_by IS NULL ORDER BY id")).scalars().all()
            if rows:
                splits.unmerge(connection, chance.choice(rows), Rules())
            return
        if step == 1:
            rows = connection.execute(text("SELECT a, b FROM edges ORDER BY a, b")).all()
            if rows:
                a, b = (ExternalId(*one.split(":", 1)) for one in chance.choice(rows))
                splits.unmerge_ids(connection, a, b, Rules())
            return
        rows = connection.execute(text("SELECT id FROM splits WHERE lifted_at IS NULL ORDER BY id")).scalars().all()
        if rows:
            splits.remerge(connection, chance.choice(rows), Rules())

    try:
        database.run_sync(act)
    except Refused as refused:
        if refused.code not in OVERTAKEN:
            raise


def test_a_store_agrees_with_itself_whatever_was_done_to_it(database):  # noqa: F811
    busy(database, 1)
    assert database.read_sync(total) > 30
    assert list(differences(database)) == []


def test_it_can_be_asked_at_any_time_beside_the_pipeline(database):  # noqa: F811
    threads = [threading.Thread(target=busy, args=(database, seed)) for seed in (2, 3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert list(differences(database)) == []
    for thread in threads:
        thread.join()
    assert list(differences(database)) == []


BROKEN = {
    "a counter": (
        "UPDATE profiles SET events = events + 1 WHERE merged_into IS NULL",
        "events is 3, its ids make it 2",
    ),
    "a trait": ("UPDATE profiles SET traits = '{}' WHERE merged_into IS NULL", "traits is {}, its ids make it"),
    "ids": ("UPDATE profiles SET ids = '{}' WHERE merged_into IS NULL", "ids is {}, its ids make it"),
    "a pointer to nowhere": (
        "UPDATE profiles SET merged_into = 'use_none' WHERE merged_into IS NOT NULL",
        "which is not there",
    ),
    "a circle": ("UPDATE profiles SET merged_into = id", "leads round in a circle of merges"),
    "a lost merge": ("DELETE FROM merges", "0 merges say so instead of one"),
    "an id of nobody": ("UPDATE nodes SET profile = 'use_none' WHERE key = 'anonymous_id:a2'", "which is not there"),
    "a home elsewhere": ("UPDATE nodes SET home = 'use_none'", "which is not part of"),
    "a link to a stranger": ("UPDATE nodes SET profile = NULL WHERE key = 'user_id:u1'", "is not an id of"),
    "a link of nobody": ("DELETE FROM nodes WHERE key = 'anonymous_id:a2'", "is nobody's id"),
    "an account of nobody": (
        "INSERT INTO links VALUES ('user_id:u1', 'group_id:g', 1, 1, 1, 's', 'm')",
        "group_id:g is nobody's id",
    ),
    "both sides": ("""UPDATE nodes SET apart = '["spl_x:a","spl_x:b"]'""", "holds both sides of spl_x"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_broken_is_found(database, broken):  # noqa: F811
    put(database, batch(event("m1", user="u1", traits={"plan": "pro"}), event("m2", anonymous="a2")))
    put(database, batch(event("m3", user="u1", anonymous="a2"), first=2))
    database.run_sync(
        lambda c: c.execute(text("UPDATE nodes SET events = 1, last_message = '' WHERE key = 'user_id:u1'"))
    )
    database.run_sync(
        lambda c: c.execute(text("UPDATE profiles SET events = 2, last_message = '' WHERE merged_into IS NULL"))
    )
    sql, says = BROKEN[broken]
    database.run_sync(lambda c: c.execute(text(sql)))
    assert any(says in found for _, found in differences(database)), list(differences(database))


def test_repair_recombines_what_the_cache_says_wrongly(database):  # noqa: F811
    busy(database, 4)
    before = database.read_sync(lambda c: sorted(map(repr, c.execute(text("SELECT * FROM profiles")))))
    database.run_sync(
        lambda c: c.execute(
            text("UPDATE profiles SET events = 0, traits = '{}', apart = NULL, merges = 7 WHERE merged_into IS NULL")
        )
    )
    wrong = [one for piece in verify(database, Rules()) for one in piece.differences]
    assert all(one.repairable for one in wrong)
    assert all(database.run_sync(lambda c, name=one.subject: repair(c, name, Rules())) for one in wrong)
    assert database.read_sync(lambda c: sorted(map(repr, c.execute(text("SELECT * FROM profiles"))))) == before
    assert not database.run_sync(lambda c: repair(c, wrong[0].subject, Rules()))
