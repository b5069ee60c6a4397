"""The profile API, on SQLite and on PostgreSQL: many profiles in one answer."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from pipeline.query.profile_api import export, many
from pipeline.store.database import Database
from schemas import api as shapes
from tests.contracts.profile_world import ACCOUNTS, BASE, World, happened, identified, world
from tests.contracts.test_intake import database  # noqa: F401 - the fixture is used by name
from tests.stores import prepare


@pytest.fixture
async def people(database: Database, tmp_path: Path) -> AsyncIterator[World]:  # noqa: F811
    async with world(tmp_path, database) as made:
        yield made


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    """For what the database has no part in: SQLite is enough."""
    opened = Database(f"sqlite:///{tmp_path}/millrace.sqlite", threads=2)
    prepare(opened)
    try:
        async with world(tmp_path, opened) as made:
            yield made
    finally:
        opened.close()


async def names(people: World, where: Any, base: str = BASE, **body: Any) -> list[str]:
    """The user_ids (of accounts, group_ids) that a search finds, over all its pages."""
    found: list[str] = []
    while True:
        reply = await people.post(f"{base}/search", {"where": where, **body})
        assert reply.status == 200, reply.body
        kind = "user_id" if base == BASE else "group_id"
        for one in reply.body["data"]:
            found += [each["id"] for each in one["external_ids"] if each["type"] == kind] or ["nobody"]
        if not reply.body["cursor"]["has_more"]:
            return found
        body["next"] = reply.body["cursor"]["next"]


SHOP = (
    identified("m1", user="u1", email="mia@shop.test", plan="pro", orders=3, address={"city": "Turku"}, tags=["a"]),
    identified("m2", user="u2", at=1, email="Mia.K@x.test", plan="free", orders=12, since="2026-09-01T00:00:00Z"),
    identified("m3", user="u3", at=2, email="zoe@x.test", plan="pro", vip=True, note='say "pro"'),
    happened("m4", user="u4", at=3),
)


FOUND: list[tuple[Any, list[str]]] = [
    ({"id": "email", "op": "starts_with", "value": "MIA"}, ["u1", "u2"]),
    ({"id": "email", "op": "equals", "value": " Zoe@X.test"}, ["u3"]),
    ({"id": "user_id", "op": "one_of", "value": ["u4", "u1", "u9"]}, ["u1", "u4"]),
    ({"id": "email", "op": "not_exists"}, ["u4"]),
    ({"trait": "plan", "op": "equals", "value": "pro"}, ["u1", "u3"]),
    ({"trait": "plan", "op": "not_equals", "value": "pro"}, ["u2", "u4"]),
    ({"trait": "orders", "op": "greater_than", "value": 3}, ["u2"]),
    ({"trait": "orders", "op": "equals", "value": 3.0}, ["u1"]),
    ({"trait": "address.city", "op": "starts_with", "value": "Tu"}, ["u1"]),
    ({"trait": "tags", "op": "contains", "value": "a"}, ["u1"]),
    ({"trait": "vip", "op": "equals", "value": True}, ["u3"]),
    ({"trait": "since", "op": "before_date", "value": "2026-09-02T00:00:00Z"}, ["u2"]),
    ({"not": {"trait": "plan", "op": "exists"}}, ["u4"]),
    ({"or": [{"trait": "vip", "op": "exists"}, {"id": "user_id", "op": "equals", "value": "u4"}]}, ["u3", "u4"]),
    (
        {
            "and": [
                {"id": "email", "op": "starts_with", "value": "mia"},
                {"trait": "plan", "op": "equals", "value": "pro"},
            ]
        },
        ["u1"],
    ),
]


async def test_people_are_found_by_ids_and_traits(people):
    await people.happen(*SHOP)
    assert [(where, sorted(await names(people, where))) for where, _ in FOUND] == FOUND
    assert [(where, sorted(await names(people, where, limit=1))) for where, _ in FOUND] == FOUND


SENSELESS: list[Any] = [
    None,
    [],
    {},
    {"and": []},
    {"trait": "plan"},
    {"trait": "plan", "op": "equals"},
    {"trait": "plan", "op": "less_than", "value": "3"},
    {"trait": "since", "op": "after_date", "value": "2026-09-01"},
    {"id": "email", "op": "greater_than", "value": 3},
    {"id": "email", "op": "equals", "value": "a\0"},
    {"trait": "plan", "op": "exists", "colour": "red"},
    {"or": [{"trait": "plan", "op": "exists"}] * 101},
]


async def test_a_condition_that_makes_no_sense_is_explained(here):
    for where in SENSELESS:
        reply = await here.post(f"{BASE}/search", {"where": where})
        assert (where, reply.status, reply.body["error"]["code"]) == (where, 400, "validation_error")
        assert reply.body["error"]["message"].startswith("where")


async def test_a_search_tells_what_is_asked_for_and_no_more(here):
    await here.happen(*SHOP)
    where = {"trait": "plan", "op": "equals", "value": "free"}
    reply = await here.post(f"{BASE}/search", {"where": where, "fields": ["traits.orders", "metadata"]})
    [one] = reply.body["data"]
    assert (set(one), one["traits"], one["metadata"]["events"]) == ({"id", "traits", "metadata"}, {"orders": 12}, 1)
    shapes.ProfilesPage.model_validate(reply.body)
    wrong: list[dict[str, Any]] = [{"fields": one} for one in (["wish"], "traits", [1], ["traits.x"] * 301)]
    wrong += [{"limit": one} for one in (0, 1_001, "many")]
    for body in wrong:
        assert (await here.post(f"{BASE}/search", {"where": where, **body})).status == 400


async def test_a_person_with_several_matching_ids_is_found_once(people):
    await people.happen(
        identified("m1", user="u1", email="mia1@x.test"),
        identified("m2", user="u1", at=1, email="mia3@x.test"),
        identified("m3", user="u2", at=2, email="mia2@x.test"),
    )
    where = {"id": "email", "op": "starts_with", "value": "mia"}
    assert await names(people, where, limit=1) == ["u1", "u2"]


async def test_a_search_over_many_pages_sees_those_who_were_there_when_it_began(people, monkeypatch):
    monkeypatch.setattr(many, "CHUNK", 3)
    await people.happen(*[identified(f"m{n}", user=f"u{n}", at=n, plan="pro") for n in range(10)])
    where = {"trait": "plan", "op": "equals", "value": "pro"}
    first = (await people.post(f"{BASE}/search", {"where": where, "limit": 4})).body
    later = identified("late", user="late", plan="pro")
    await people.happen(later._replace(received_at=later.received_at + 10**15))
    rest = await names(people, where, limit=4, next=first["cursor"]["next"])
    seen = [one["external_ids"][0]["id"] for one in first["data"]] + rest
    assert sorted(seen) == [f"u{n}" for n in range(10)]
    other = await people.post(f"{BASE}/search", {"where": {"not": where}, "next": first["cursor"]["next"]})
    assert (other.status, other.body["error"]["code"]) == (400, "invalid_request_error")


async def test_a_search_that_takes_long_answers_with_what_it_has(here, monkeypatch):
    monkeypatch.setattr(many, "CHUNK", 2)
    monkeypatch.setattr(many, "SECONDS", 0.0)
    await here.happen(*[identified(f"m{n}", user=f"u{n}", at=n, plan="pro" if n == 5 else "free") for n in range(6)])
    where = {"trait": "plan", "op": "equals", "value": "pro"}
    first = (await here.post(f"{BASE}/search", {"where": where})).body
    assert first["cursor"]["has_more"]
    monkeypatch.setattr(many, "SECONDS", 1.0)
    assert await names(here, where) == ["u5"]


async def test_accounts_are_searched_by_themselves(people):
    await people.happen(happened("m1", user="u1", kind="group", groupId="g7", traits={"plan": "pro"}), *SHOP)
    where = {"trait": "plan", "op": "equals", "value": "pro"}
    assert await names(people, where, ACCOUNTS) == ["g7"]
    assert "g7" not in await names(people, where)


# ── Lists ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_profiles_are_listed_the_latest_active_first_or_in_a_fixed_order(people):
    await people.happen(*[happened(f"m{n}", user=f"u{n}", at=n) for n in range(5)], happened("m5", user="u1", at=9))
    await people.happen(
        happened("m6", user="u1", anonymous="a1", at=4), happened("m7", user="g", at=-5, kind="group", groupId="g")
    )

    async def listed(**query: Any) -> list[str]:
        found, following = [], None
        while True:
            reply = await people.get(BASE, limit=2, next_=following, **query)
            shapes.ProfilesPage.model_validate(reply.body)
            found += [
                next(x["id"] for x in one["external_ids"] if x["type"] == "user_id") for one in reply.body["data"]
            ]
            following = reply.body["cursor"]["next"]
            if not following:
                return found

    assert await listed() == await listed(sort="updated_at") == ["u1", "u4", "u3", "u2", "u0", "g"]
    assert sorted(await listed(sort="id")) == ["g", "u0", "u1", "u2", "u3", "u4"]
    assert (await people.get(BASE, sort="name")).status == 400
    accounts = (await people.get(ACCOUNTS)).body["data"]
    assert [one["external_ids"][0]["id"] for one in accounts] == ["g"]


# ── Batches and look-ups ──────────────────────────────────────────────────────────────────────────────────────────


async def test_each_look_up_of_a_batch_has_its_own_status(people):
    await people.happen(*SHOP)
    asked = ["email:MIA@shop.test", "user_id:nobody", "user_id:", 7, "user_id:u1"]
    reply = await people.post(f"{BASE}/batch", {"ids": asked, "fields": ["traits.plan"]})
    [first, nobody, wrong, number, again] = reply.body["data"]
    profile = first["profile"]["id"]
    assert first == {"id": asked[0], "status": 200, "profile": {"id": profile, "traits": {"plan": "pro"}}}
    assert nobody == {
        "id": asked[1],
        "status": 404,
        "error": {"code": "not_found", "message": "Profile was not found."},
    }
    assert [(one["id"], one["status"], one["error"]["code"]) for one in (wrong, number)] == [
        ("user_id:", 400, "invalid_request_error"),
        (7, 400, "invalid_request_error"),
    ]
    assert again["profile"] == first["profile"]
    shapes.BatchAnswer.model_validate(reply.body)
    whole = await people.post(f"{BASE}/batch", {"ids": [f"user_id:u{n}" for n in range(100)]})
    assert [one["status"] for one in whole.body["data"]] == [404] + [200] * 4 + [404] * 95
    refused: list[Any] = [{"ids": []}, {"ids": ["x"] * 101}, {}, {"ids": "user_id:u1"}]
    for body in refused:
        assert (await people.post(f"{BASE}/batch", body)).body["error"]["code"] == "validation_error"


async def test_a_look_up_may_keep_its_id_out_of_the_address(here):
    await here.happen(*SHOP)
    query = {"verbose": "true", "limit": 2, "include": "plan,orders,vip"}
    there = await here.get(f"{BASE}/email:mia@shop.test/traits", **query)
    body = {"id": "email:mia@shop.test", "verbose": True, "limit": 2, "include": ["plan", "orders", "vip"]}
    assert (await here.post(f"{BASE}/lookup", body)).body == there.body
    metadata = await here.post(f"{BASE}/lookup", {"id": "user_id:u1", "resource": "metadata", "after": "m1"})
    assert metadata.body == (await here.get(f"{BASE}/user_id:u1/metadata")).body
    refused: list[Any] = [{}, {"id": 7}, {"id": "user_id:u1", "resource": "wish"}, b"[", b"[]", b"\xff"]
    for wrong in refused:
        reply = await here.post(f"{BASE}/lookup", wrong)
        assert (reply.status, reply.body["error"]["code"]) == (400, "invalid_request_error")
    large = await here.post(f"{BASE}/lookup", b" " * (1 << 20) + b"{}")
    assert (large.status, large.body["error"]["code"]) == (413, "invalid_request_error")


# ── Export ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def exported(people: World, **query: Any) -> tuple[str, list[dict[str, Any]]]:
    reply = await people.get("/api/profiles/export", **query)
    assert reply.status == 200, reply.body
    *lines, end = [orjson.loads(line) for line in str(reply.body if isinstance(reply.body, str) else "").splitlines()]
    assert end == {"complete": True}
    for line in lines:
        shapes.ExportLine.model_validate(line)
    return reply.headers["millrace-export-as-of"], lines


async def test_an_export_holds_everybody_once_and_goes_on_where_it_ended(people, monkeypatch):
    monkeypatch.setattr(export, "CHUNK", 2)
    await people.happen(*SHOP, happened("m5", user="u5", at=5, kind="group", groupId="g7"))
    as_of, lines = await exported(people)
    told = [(one["collection"], x["id"]) for one in lines for x in one["external_ids"] if x["type"] != "email"]
    assert sorted(told) == [("accounts", "g7"), *(("users", f"u{n}") for n in range(1, 6))]
    assert len({one["id"] for one in lines}) == len(lines) == 6
    for number, line in enumerate(lines):
        assert await exported(people, as_of=as_of, after=line["cursor"]) == (as_of, lines[number + 1 :])
    for query in ({"after": "users:x"}, {"as_of": "x"}, {"as_of": "1", "after": "wish:x"}):
        assert (await people.get("/api/profiles/export", **query)).status == 400


async def test_who_merges_while_an_export_runs_is_told_again_at_its_end(people):
    await people.happen(happened("m1", user="u1"), happened("m2", anonymous="a2", at=1))
    as_of, before = await exported(people)
    await people.happen(happened("m3", user="u1", anonymous="a2", at=2))
    _, after = await exported(people, as_of=as_of, after=before[-1]["cursor"])
    [again] = after
    assert sorted(one["id"] for one in again["external_ids"]) == ["a2", "u1"]
    assert again["id"] in {one["id"] for one in before}
    whole = {one["id"]: one for one in [*before, *after]}
    assert sum(again["id"] == one for one in whole) == 1


async def test_look_ups_do_not_wait_for_searches(here, monkeypatch):
    await here.happen(*SHOP)
    monkeypatch.setattr(here.api._searches, "_turns", asyncio.Semaphore(0))
    searching = asyncio.create_task(here.post(f"{BASE}/search", {"where": {"trait": "plan", "op": "exists"}}))
    assert (await here.get(f"{BASE}/user_id:u1/traits")).status == 200
    assert not searching.done()
    searching.cancel()
