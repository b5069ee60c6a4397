"""Consent of profiles, on SQLite and on PostgreSQL: what was last said on any device, and what becomes of it when profiles merge."""

import random
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from pipeline.store import forget, splits
from pipeline.store.database import Database
from pipeline.store.verify import verify
from schemas.api import BatchAnswer, ConsentAnswer, ProfilesPage
from schemas.events import Event, ExternalId
from tests.contracts.profile_world import BASE, World, happened, world
from tests.contracts.test_intake import database  # noqa: F401 - the fixture is used by name
from tests.contracts.test_profile_api_many import names


@pytest.fixture
async def people(database: Database, tmp_path: Path) -> AsyncIterator[World]:  # noqa: F811
    async with world(tmp_path, database) as made:
        yield made


def said(message: str, preferences: Any = None, **given: Any) -> Event:
    context: dict[str, Any] = (
        {} if preferences is None else {"context": {"consent": {"categoryPreferences": preferences}}}
    )
    return happened(message, **given, **context)


async def consent(people: World, address: str) -> Any:
    reply = await people.get(f"{BASE}/{address}/consent")
    assert reply.status == 200, reply.body
    return ConsentAnswer.model_validate(reply.body).json_object()["consent"]["categories"]


async def test_the_latest_word_on_any_device_counts_however_late_an_event_comes(people: World) -> None:
    await people.happen(
        said("m1", {"ads": True, "stats": True}, user="u1", anonymous="a1", at=10),
        said("m2", {"ads": False}, user="u1", anonymous="a2", at=20),
        said("m3", {"ads": True, "stats": False}, user="u1", anonymous="a1", at=5),
        said("m4", user="u1", at=30),
    )
    assert await consent(people, "user_id:u1") == {"ads": False, "stats": True}


async def test_no_preferences_refuse_all_there_are_and_no_object_says_nothing(people: World) -> None:
    await people.happen(said("m1", {"ads": True, "stats": True}, user="u1"), said("m2", user="u1", at=1))
    assert await consent(people, "user_id:u1") == {"ads": True, "stats": True}
    await people.happen(said("m3", {}, user="u1", at=2))
    assert await consent(people, "user_id:u1") == {"ads": False, "stats": False}
    await people.happen(said("m4", {"stats": True}, user="u1", at=3))
    assert await consent(people, "user_id:u1") == {"ads": False, "stats": True}


async def test_whoever_never_said_anything_has_no_preferences(people: World) -> None:
    await people.happen(said("m1", user="u1"))
    assert await consent(people, "user_id:u1") == {}
    assert (await people.get(f"{BASE}/user_id:nobody/consent")).status == 404


async def differing(people: World) -> None:
    """Two profiles that agree on nothing but stats, and become one."""
    await people.happen(said("m1", {"ads": True, "stats": True, "mail": True, "none": False}, user="u1"))
    await people.happen(said("m2", {"ads": False, "stats": True}, anonymous="a2", at=1))
    await people.happen(said("m3", user="u1", anonymous="a2", at=2))


async def test_profiles_that_merge_and_differ_are_in_conflict_and_what_was_never_collected_was_refused(
    people: World,
) -> None:
    await differing(people)
    assert await consent(people, "user_id:u1") == {"ads": "conflict", "mail": "conflict", "none": False, "stats": True}


async def test_the_next_word_ends_a_conflict_and_an_older_one_does_not(people: World) -> None:
    await differing(people)
    await people.happen(said("m4", {"ads": False, "mail": True}, user="u1", at=-5))
    assert (await consent(people, "user_id:u1"))["ads"] == "conflict"
    await people.happen(said("m5", {"ads": True}, anonymous="a2", at=9))
    assert await consent(people, "user_id:u1") == {"ads": True, "mail": "conflict", "none": False, "stats": True}


async def test_a_conflict_meets_the_next_profile_as_one(people: World) -> None:
    await differing(people)
    await people.happen(said("m6", {"ads": False, "mail": True, "stats": True}, anonymous="a3", at=20))
    await people.happen(said("m7", user="u1", anonymous="a3", at=21))
    assert await consent(people, "user_id:u1") == {"ads": "conflict", "mail": "conflict", "none": False, "stats": True}


async def test_whoever_refused_all_differs_from_whoever_agreed_to_something(people: World) -> None:
    await people.happen(said("m1", {"ads": True}, user="u1"))
    await people.happen(said("m2", {}, anonymous="a2", at=1))
    await people.happen(said("m3", user="u1", anonymous="a2", at=2))
    assert await consent(people, "user_id:u1") == {"ads": "conflict"}


AGREED: list[tuple[Any, list[str]]] = [
    ({"consent": "ads", "op": "equals", "value": True}, ["u2"]),
    ({"consent": "ads", "op": "equals", "value": False}, ["u3"]),
    ({"consent": "ads", "op": "equals", "value": "conflict"}, ["u1"]),
    ({"consent": "ads", "op": "one_of", "value": [True, "conflict"]}, ["u1", "u2"]),
    ({"consent": "ads", "op": "not_equals", "value": True}, ["u1", "u3", "u4"]),
    ({"consent": "stats", "op": "exists"}, ["u1"]),
    ({"consent": "stats", "op": "not_exists"}, ["u2", "u3", "u4"]),
    ({"not": {"consent": "ads", "op": "exists"}}, ["u4"]),
    (
        {
            "and": [
                {"consent": "ads", "op": "exists"},
                {"id": "user_id", "op": "one_of", "value": ["u3", "u4"]},
            ]
        },
        ["u3"],
    ),
    (
        {"or": [{"consent": "ads", "op": "equals", "value": True}, {"trait": "plan", "op": "equals", "value": "pro"}]},
        ["u2", "u4"],
    ),
]


async def test_people_are_found_by_what_they_prefer(people: World) -> None:
    await differing(people)
    await people.happen(
        said("s2", {"ads": True}, user="u2", at=3),
        said("s3", {"ads": False}, user="u3", at=4),
        said("s4", user="u4", at=5, kind="identify", traits={"plan": "pro"}),
    )

    assert [(where, sorted(await names(people, where))) for where, _ in AGREED] == AGREED
    assert [(where, sorted(await names(people, where, limit=1))) for where, _ in AGREED] == AGREED


@pytest.mark.parametrize("fields", [["consent"], ["external_ids", "consent", "metadata"]])
async def test_lists_searches_and_batches_tell_it_where_it_is_asked_for(people: World, fields: list[str]) -> None:
    await differing(people)
    await people.happen(said("m4", user="u4", at=5))
    both = {"or": [{"id": "user_id", "op": "equals", "value": one} for one in ("u1", "u4")]}

    listed = await people.get(BASE, fields=",".join(fields), sort="id")
    searched = await people.post(f"{BASE}/search", {"where": both, "fields": fields})
    batch = await people.post(f"{BASE}/batch", {"ids": ["user_id:u1", "user_id:u4"], "fields": fields})

    of_each = [one["profile"] for one in batch.body["data"]]
    assert [one["consent"] for one in of_each] == [
        {"categories": await consent(people, "user_id:u1")},
        {"categories": {}},
    ]
    in_order = sorted(of_each, key=lambda one: str(one["id"]))
    assert (listed.body["data"], searched.body["data"]) == (in_order, in_order)
    assert all(one.keys() == {"id", *fields} for one in in_order)
    for reply, shape in ((listed, ProfilesPage), (searched, ProfilesPage), (batch, BatchAnswer)):
        shape.model_validate(reply.body)


@pytest.mark.parametrize(
    "leaf",
    [
        {"consent": "ads", "op": "equals", "value": "yes"},
        {"consent": "ads", "op": "one_of", "value": [True, "no"]},
        {"consent": "ads", "op": "contains", "value": True},
        {"consent": "ads", "op": "greater_than", "value": 1},
    ],
)
async def test_what_nobody_can_prefer_is_no_condition(people: World, leaf: Any) -> None:
    reply = await people.post(f"{BASE}/search", {"where": leaf})
    assert reply.status == 400
    assert reply.body["error"] == {
        "code": "validation_error",
        "message": "where compares consent: use equals, not_equals or one_of with true, false or 'conflict', "
        "or exists or not_exists.",
    }


async def test_undoing_the_merge_gives_both_their_own_words_back_and_lifting_that_the_conflict(people: World) -> None:
    await differing(people)
    merge = people.database.read_sync(lambda c: c.execute(text("SELECT id FROM merges")).scalar_one())
    done = people.database.run_sync(lambda c: splits.unmerge(c, merge, people.rules))
    assert await consent(people, "user_id:u1") == {"ads": True, "mail": True, "none": False, "stats": True}
    assert await consent(people, "anonymous_id:a2") == {"ads": False, "stats": True}
    people.database.run_sync(lambda c: splits.remerge(c, done.split.id, people.rules))
    assert (await consent(people, "user_id:u1"))["ads"] == "conflict"


async def test_lifting_a_split_whose_sides_went_on_merges_them_as_they_are_now(people: World) -> None:
    email: dict[str, Any] = {"traits": {"email": "e@x.test"}, "kind": "identify"}
    await people.happen(said("m0", anonymous="a0"))
    await people.happen(said("m1", {"ads": True}, user="u1"))
    await people.happen(said("m2", {"ads": True}, anonymous="a2", at=1))
    await people.happen(said("m3", user="u1", anonymous="a2", at=2))
    merge = people.database.read_sync(lambda c: c.execute(text("SELECT id FROM merges")).scalar_one())
    split = people.database.run_sync(lambda c: splits.unmerge(c, merge, people.rules)).split.id
    await people.happen(said("m4", {"ads": False}, anonymous="a2", at=4, **email))
    await people.happen(said("m5", anonymous="a0", at=5, **email))
    assert await consent(people, "anonymous_id:a0") == {"ads": False}
    people.database.run_sync(lambda c: splits.remerge(c, split, people.rules))
    assert await consent(people, "user_id:u1") == {"ads": "conflict"}


async def test_each_preference_tells_its_event_when_asked(people: World) -> None:
    await people.happen(said("m1", {"ads": True}, user="u1"))
    reply = await people.get(f"{BASE}/user_id:u1/consent", verbose="true")
    assert ConsentAnswer.model_validate(reply.body).json_object() == reply.body
    assert reply.body["consent"]["categories"]["ads"] == {
        "value": True,
        "source_id": "web",
        "updated_at": "2026-09-21T13:46:40.000Z",
        "message_id": "m1",
    }


async def test_nothing_of_it_is_left_of_a_deleted_person(people: World) -> None:
    await differing(people)
    people.database.run_sync(lambda c: forget.person(c, ExternalId("user_id", "u1"), "reg"))
    count = text(
        "SELECT (SELECT count(*) FROM nodes) + (SELECT count(*) FROM profiles) + (SELECT count(*) FROM disputes)"
    )
    assert people.database.read_sync(lambda c: c.execute(count).scalar_one()) == 0


async def test_the_row_of_a_profile_is_what_its_ids_make_it_whatever_was_split_and_lifted(people: World) -> None:
    chance = random.Random(3)
    undone: list[str] = []
    for turn in range(25):
        who = chance.randrange(3)
        await people.happen(
            *(
                said(
                    f"m{turn}-{n}",
                    chance.choice([None, {}, {"ads": chance.random() < 0.5}, {"mail": chance.random() < 0.5}]),
                    user=f"u{who}" if chance.random() < 0.5 else None,
                    anonymous=f"a{who}-{chance.randrange(3)}",
                    at=chance.randrange(1_000),
                )
                for n in range(4)
            )
        )
        found = people.database.read_sync(
            lambda c: c.execute(text("SELECT id FROM merges WHERE undone_by IS NULL ORDER BY id")).scalars().all()
        )
        if found and turn % 3 == 0:
            undone.append(
                people.database.run_sync(
                    partial(splits.unmerge, merge=chance.choice(found), rules=people.rules)
                ).split.id
            )
        elif undone and turn % 4 == 1:
            people.database.run_sync(partial(splits.remerge, split=undone.pop(), rules=people.rules))
    assert [one for piece in verify(people.database, people.rules) for one in piece.differences] == []
