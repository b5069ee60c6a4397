"""Taking profiles apart beside the pipeline, on SQLite and on PostgreSQL."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from pipeline.identity import Rules
from pipeline.log import Batch, Record, open_log
from pipeline.parse import parse
from pipeline.split import Correction
from pipeline.store import books, schema, splits
from pipeline.store.database import Database
from pipeline.store.intake import Emission, apply
from pipeline.store.verify import verify
from pipeline.telling import keep_telling, tell
from schemas.errors import Refused
from schemas.events import ExternalId, decode_event, decode_resolved, encode_resolved, materialize
from schemas.exact_json import json_dumps, json_loads
from schemas.identity import IdentityConfig, IdTypeConfig
from schemas.topics import EVENTS
from tests.contracts.test_intake import batch, database, event, person, put  # noqa: F401 - the fixture is used by name

TABLES = ("profiles", "nodes", "edges", "merges", "links", "violations")


def rows(database: Database) -> dict[str, list[Any]]:  # noqa: F811
    """Every row of the identity tables but the splits'."""
    return database.read_sync(
        lambda c: {name: sorted(map(repr, c.execute(text(f"SELECT * FROM {name}")))) for name in TABLES}
    )


def one(database: Database, sql: str) -> Any:  # noqa: F811
    return database.read_sync(lambda c: c.execute(text(sql)).scalar())


def run(database: Database, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: F811
    return database.run_sync(lambda c: work(c, *args, Rules(), **kwargs))


def second_device(database: Database) -> str:  # noqa: F811
    """Case 2: u1 on a second device, whose profile is merged; the id of the merge."""
    put(
        database,
        batch(
            event("m1", user="u1", anonymous="a1", traits={"plan": "pro"}),
            event("m2", anonymous="a2", traits={"city": "Rome"}),
        ),
    )
    put(database, batch(event("m3", user="u1", anonymous="a2"), first=2))
    merge = one(database, "SELECT id FROM merges")
    assert isinstance(merge, str)
    return merge


APART = [
    {"ids": ["anonymous_id:a1", "user_id:u1"], "traits": {"plan": "pro"}, "events": 2},
    {"ids": ["anonymous_id:a2"], "traits": {"city": "Rome"}, "events": 1},
]


def test_an_undone_merge_gives_each_what_it_would_have_had(database):  # noqa: F811
    merge = second_device(database)
    done = run(database, splits.unmerge, merge)

    assert [person(database, "user_id:u1"), person(database, "anonymous_id:a2")] == APART
    assert person(database, f"profile_id:{done.split.other}") == APART[1]
    assert person(database, f"profile_id:{done.split.profile}") == APART[0]
    assert one(database, "SELECT undone_by FROM merges") == done.split.id


def test_the_same_evidence_does_not_glue_them_again(database):  # noqa: F811
    run(database, splits.unmerge, second_device(database))
    put(database, batch(event("m3", user="u1", anonymous="a2"), first=3))  # dropped: accepted before
    put(database, batch(event("again", user="u1", anonymous="a2"), first=4))

    assert person(database, "user_id:u1") == APART[0] | {"events": 3}
    assert person(database, "anonymous_id:a2") == APART[1]
    assert one(database, "SELECT violation FROM violations") == "Identifiers kept apart"


def test_an_undone_merge_restores_the_row_of_the_absorbed_profile_byte_for_byte(database):  # noqa: F811
    def row(profile: str) -> tuple[Any, ...]:
        names = ", ".join(one.name for one in schema.profiles.columns if one.name != "apart")
        return tuple(
            database.read_sync(lambda c: c.execute(text(f"SELECT {names} FROM profiles WHERE id = '{profile}'")).one())
        )

    traits = {"b": 1, "a": {"z": 1, "y": [2]}, "c": None}
    put(
        database,
        batch(
            event("m1", user="u1"),
            event("m2", anonymous="a2", traits={"zip": "1"}),
            event("m3", anonymous="a2", traits=traits),
        ),
    )
    absorbed = one(database, "SELECT profile FROM nodes WHERE key = 'anonymous_id:a2'")
    before = row(absorbed)
    put(database, batch(event("m4", user="u1", anonymous="a2"), first=3))
    assert row(absorbed) != before
    run(database, splits.unmerge, one(database, "SELECT id FROM merges"))
    assert row(absorbed) == before


def test_limits_with_a_window_count_on_after_a_split(database):  # noqa: F811
    rules = Rules(IdentityConfig(types={"anonymous_id": IdTypeConfig(limit=2, window="weekly")}))
    work = parse(
        [
            batch(
                event("m1", user="u1", anonymous="a1"),
                event("m2", anonymous="a2"),
                event("m3", user="u1", anonymous="a2"),
            )
        ],
        rules=rules,
    )
    database.run_sync(lambda c: apply(c, work, {}, rules))
    merge = one(database, "SELECT id FROM merges")
    before = rows(database)
    done = database.run_sync(lambda c: splits.unmerge(c, merge, rules))
    added = {
        name: one(database, f"SELECT added FROM profiles WHERE id = '{name}'")
        for name in (done.split.profile, done.split.other)
    }
    assert added == dict.fromkeys(added, '{"anonymous_id":[100000000]}')
    assert [found for piece in verify(database, rules) for found in piece.differences] == []
    database.run_sync(lambda c: splits.remerge(c, done.split.id, rules))
    assert rows(database) == before


def test_lifting_restores_every_row(database):  # noqa: F811
    merge = second_device(database)
    before = rows(database)
    split = run(database, splits.unmerge, merge).split.id
    assert rows(database) != before
    run(database, splits.remerge, split)

    assert rows(database) == before


def test_a_cut_inside_a_profile_that_never_merged(database):  # noqa: F811
    put(database, batch(event("m1", user="u1", anonymous="a1"), event("m2", anonymous="a1", traits={"plan": "pro"})))
    split = run(database, splits.unmerge_ids, ExternalId("user_id", "u1"), ExternalId("anonymous_id", "a1")).split
    alone = (
        {"ids": ["user_id:u1"], "traits": {}, "events": 1},
        {"ids": ["anonymous_id:a1"], "traits": {"plan": "pro"}, "events": 1},
    )
    assert (person(database, f"profile_id:{split.profile}"), person(database, f"profile_id:{split.other}")) == alone

    run(database, splits.remerge, split.id)
    together = {"ids": ["anonymous_id:a1", "user_id:u1"], "traits": {"plan": "pro"}, "events": 2}
    assert person(database, f"profile_id:{split.profile}") == person(database, f"profile_id:{split.other}") == together


def test_a_dry_run_says_the_same_and_changes_nothing(database):  # noqa: F811
    merge = second_device(database)
    before = rows(database)
    planned = run(database, splits.unmerge, merge, dry_run=True)

    assert (rows(database), one(database, "SELECT count(*) FROM splits")) == (before, 0)
    done = run(database, splits.unmerge, merge)
    assert (planned.split.profile, planned.split.other) == (done.split.profile, done.split.other)
    assert planned.change.cut == done.change.cut


def test_what_cannot_be_done_says_why(database):  # noqa: F811
    merge = second_device(database)
    u1, a2 = ExternalId("user_id", "u1"), ExternalId("anonymous_id", "a2")

    def refused(work: Callable[..., Any], *args: Any) -> str:
        with pytest.raises(Refused) as caught:
            run(database, work, *args)
        return caught.value.code

    assert refused(splits.unmerge, "mrg_none") == "not_found"
    assert refused(splits.unmerge_ids, u1, ExternalId("email", "nobody@x.test")) == "not_found"
    assert refused(splits.unmerge_ids, u1, u1) == "validation_error"
    split = run(database, splits.unmerge, merge).split.id
    assert refused(splits.unmerge, merge) == "already_undone"
    assert refused(splits.unmerge_ids, u1, a2) == "not_together"
    assert refused(splits.remerge, "spl_none") == "not_found"
    run(database, splits.remerge, split)
    assert refused(splits.remerge, split) == "already_lifted"


def test_account_links_follow_the_id_that_was_linked(database):  # noqa: F811
    merge = second_device(database)
    put(database, batch(event("m4", anonymous="a2", groupId="g7")._replace(type="group"), first=3))
    run(database, splits.unmerge, merge)
    assert one(database, "SELECT node FROM links") == "anonymous_id:a2"
    other = one(database, "SELECT profile FROM nodes WHERE key = 'anonymous_id:a2'")
    assert other != one(database, "SELECT profile FROM nodes WHERE key = 'user_id:u1'")


def test_a_split_beside_the_pipeline_loses_neither(database):  # noqa: F811
    """Whatever order the transactions come in: every event is counted once, and in the end they are apart."""
    merge = second_device(database)

    def stream() -> None:
        for number in range(20):
            put(database, batch(event(f"s{number}", user="u1", anonymous="a2"), first=3 + number))

    thread = threading.Thread(target=stream)
    thread.start()
    run(database, splits.unmerge, merge)
    thread.join()
    u1, a2 = person(database, "user_id:u1"), person(database, "anonymous_id:a2")
    assert u1 is not None
    assert a2 is not None
    assert (u1["ids"], a2["ids"]) == (APART[0]["ids"], APART[1]["ids"])
    assert (u1["events"], a2["events"]) == (22, 1)


# ── Destinations are told ─────────────────────────────────────────────────────────────────────────────────────────


async def told(database: Database, tmp_path: Path, start: int) -> list[dict[str, Any]]:  # noqa: F811
    """Lets what is pending be told through a log, and the pipeline take it up; what destinations see."""
    async with open_log(f"embedded://{tmp_path}/log", partitions=1) as log:
        await tell(log, database)
        found = await log.read(EVENTS, 0, 0)
        records = [] if found is None else list(found.records)
    emissions = emitted(database, records, start)
    return [seen(one) for one in emissions]


def emitted(database: Database, records: list[Record], start: int) -> list[Emission]:  # noqa: F811
    moved = [Record(one.key, one.value, 0, start + number) for number, one in enumerate(records)]
    work = parse([Batch(EVENTS, 0, moved, start + len(moved))])
    return database.run_sync(lambda c: apply(c, work, {}, Rules()))


def seen(one: Emission) -> dict[str, Any]:
    whole = materialize(decode_resolved(encode_resolved(one.profile, one.origin, one.ids, one.value, one.context)))
    wanted = ("type", "source", "profileId", "userId", "anonymousId", "traits", "externalIds")
    return {name: whole[name] for name in wanted if name in whole}


async def test_destinations_get_a_corrected_identify_of_both_profiles(database, tmp_path):  # noqa: F811
    merge = second_device(database)
    done = await database.run(lambda c: splits.unmerge(c, merge, Rules()))
    put(database, batch(event("m4", user="u1", at=200, traits={"plan": "max"}), first=3))
    before = rows(database)

    assert await told(database, tmp_path, 4) == [
        {
            "type": "identify",
            "source": "millrace",
            "profileId": done.split.profile,
            "userId": "u1",
            "anonymousId": "a1",
            "traits": {"city": None, "plan": "max"},
            "externalIds": [{"type": "user_id", "id": "u1"}, {"type": "anonymous_id", "id": "a1"}],
        },
        {
            "type": "identify",
            "source": "millrace",
            "profileId": done.split.other,
            "anonymousId": "a2",
            "traits": {"plan": None, "city": "Rome"},
            "externalIds": [{"type": "anonymous_id", "id": "a2"}],
        },
    ]
    assert rows(database) == before
    assert database.read_sync(books.read).intake["millrace"] == books.Intake(2, 0, 0, 0)


async def test_what_was_not_told_before_a_crash_is_told_by_the_next_and_once(database, tmp_path):  # noqa: F811
    merge = second_device(database)
    await database.run(lambda c: splits.unmerge(c, merge, Rules()))
    stop = asyncio.Event()
    async with open_log(f"embedded://{tmp_path}/log", partitions=1) as log:
        left = await database.read(splits.pending)
        assert await tell(log, database) == 2
        [untold] = left
        assert await database.read(splits.pending) == []
        await database.run(lambda c: put_back(c, untold.corrections))  # as a crash before the note leaves it
        telling = asyncio.create_task(keep_telling(log, database, stop))
        while await database.read(splits.pending):
            await asyncio.sleep(0)
        stop.set()
        await telling
        found = await log.read(EVENTS, 0, 0)
    assert found is not None
    assert [decode_event(one.value).message_id.split(":")[1:] for one in found.records] == 2 * [
        ["unmerge", "a"],
        ["unmerge", "b"],
    ]
    assert len(emitted(database, list(found.records), 3)) == 2


def put_back(connection: Any, corrections: Sequence[Correction]) -> None:
    detail = json_loads(connection.execute(text("SELECT detail FROM splits")).scalar())
    detail["pending"] = [list(one) for one in corrections]
    connection.execute(text("UPDATE splits SET detail = :detail"), {"detail": json_dumps(detail).decode()})


async def test_both_ids_are_told_of_the_whole_profile_once_it_is_one_again(database, tmp_path):  # noqa: F811
    merge = second_device(database)
    split = (await database.run(lambda c: splits.unmerge(c, merge, Rules()))).split
    await told(database, tmp_path, 3)
    await database.run(lambda c: splits.remerge(c, split.id, Rules()))
    async with open_log(f"embedded://{tmp_path}/log", partitions=1) as log:
        assert await tell(log, database) == 2
        found = await log.read(EVENTS, 0, 2)
    assert found is not None
    whole = {
        "type": "identify",
        "source": "millrace",
        "profileId": split.profile,
        "userId": "u1",
        "traits": {"city": "Rome", "plan": "pro"},
    }
    assert [
        (one["anonymousId"], {name: one[name] for name in whole})
        for one in map(seen, emitted(database, list(found.records), 5))
    ] == [
        ("a1", whole),
        ("a2", whole),
    ]


def test_nobody_else_can_forge_one(database):  # noqa: F811
    marker = {"split": "spl_x", "reason": "unmerge", "profile": "p", "ids": ["user_id:u1"], "gone": []}
    [emission] = put(
        database, batch(event("m1", user="u1", traits={"plan": "pro"}, context={"millrace": {"correction": marker}}))
    )
    assert (
        emission.value
        == batch(event("m1", user="u1", traits={"plan": "pro"}, context={"millrace": {"correction": marker}}))
        .records[0]
        .value
    )
    assert person(database, "user_id:u1") == {"ids": ["user_id:u1"], "traits": {"plan": "pro"}, "events": 1}
