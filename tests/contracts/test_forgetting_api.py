"""Deleting and suppressing over HTTP, as the reference has it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.store.database import Database
from tests.contracts.profile_world import BASE, World, identified
from tests.contracts.profile_world import world as opened
from tests.stores import prepare


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    database = Database(f"sqlite:///{tmp_path}/millrace.sqlite", threads=2)
    prepare(database)
    async with opened(tmp_path, database) as made:
        yield made
    database.close()


async def post(world: World, **body: Any) -> Any:
    return await world.post("/api/regulations", body)


async def test_a_regulation_is_taken_and_its_status_asked_for(world: World) -> None:
    made = await post(world, regulationType="DELETE_ONLY", subjectType="USER_ID", subjectIds=["u1", "u2"])
    assert made.status == 200
    name = made.body["data"]["regulateId"]
    assert made.body == {"data": {"regulateId": name, "overallStatus": "INITIALIZED"}}

    found = (await world.get(f"/api/regulations/{name}")).body["data"]
    assert {one: found[one] for one in ("id", "regulationType", "overallStatus", "finishedAt", "phase")} == {
        "id": name,
        "regulationType": "DELETE_ONLY",
        "overallStatus": "INITIALIZED",
        "finishedAt": None,
        "phase": "people",
    }
    assert [len(one) for one in found["subjects"]] == [32, 32]
    page = (await world.get("/api/regulations")).body
    assert ([one["id"] for one in page["data"]], page["next"]) == ([name], "")


async def test_suppression_holds_at_once_and_is_listed_until_it_is_lifted(world: World) -> None:
    made = await post(world, regulationType="SUPPRESS_ONLY", subjectType="EMAIL", subjectIds=[" Ada@Shop.test"])
    assert made.body["data"]["overallStatus"] == "FINISHED"
    asked = (await world.get("/api/suppressions", id="email:ada@shop.test")).body
    assert [one["id"] for one in asked["data"]] == ["email:ada@shop.test"]
    assert (await world.get("/api/suppressions")).body["data"] == asked["data"]

    await post(world, regulationType="UNSUPPRESS", subjectIds=["email:ada@shop.test"])
    assert (await world.get("/api/suppressions")).body == {"data": [], "next": ""}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "regulationType must be one of"),
        ({"regulationType": ["DELETE_ONLY"], "subjectIds": ["user_id:u1"]}, "regulationType must be one of"),
        ({"regulationType": "DELETE_ONLY"}, "subjectIds must be a list"),
        ({"regulationType": "DELETE_ONLY", "subjectIds": []}, "subjectIds must be a list"),
        ({"regulationType": "DELETE_ONLY", "subjectIds": [7]}, "subjectIds must be a list"),
        ({"regulationType": "DELETE_ONLY", "subjectIds": ["u1"]}, "no id type"),
        ({"regulationType": "DELETE_ONLY", "subjectIds": ["user_id: "]}, "is empty"),
        ({"regulationType": "DELETE_ONLY", "subjectIds": ["user_id:a\0b"]}, "NUL"),
        ({"regulationType": "DELETE_ONLY", "subjectIds": ["group_id:acme"]}, "names an account"),
        ({"regulationType": "DELETE_ONLY", "subjectType": "OBJECT_ID", "subjectIds": ["x"]}, "subjectType must be"),
        ({"regulationType": "DELETE_ONLY", "subjectIds": ["user_id:u"], "other": 1}, "has no 'other'"),
        ({"regulationType": "DELETE_ONLY", "subjectIds": ["user_id:u"] * 5_001}, "5,000 ids"),
    ],
)
async def test_what_cannot_be_taken_is_refused_with_a_remedy(world: World, body: dict[str, Any], said: str) -> None:
    answer = await world.post("/api/regulations", body)
    assert (answer.status, answer.body["error"]["code"]) == (400, "validation_error")
    assert said in answer.body["error"]["message"]


async def test_an_unknown_regulation_is_a_404(world: World) -> None:
    assert (await world.get("/api/regulations/reg_none")).status == 404


# ── A single identifier ───────────────────────────────────────────────────────────────────────────────────────────

PATH = f"{BASE}/user_id:u1/external_ids/delete"


def phone(value: str = "e1@x.test", kind: str = "email") -> dict[str, Any]:
    return {"delete_external_ids": [{"type": kind, "id": value}]}


async def test_an_identifier_is_deleted_by_the_path_of_the_reference(world: World) -> None:
    await world.happen(identified("m1", user="u1", email="e1@x.test"))
    profile = (await world.get(f"{BASE}/user_id:u1/external_ids")).body["data"]
    assert len(profile) == 2

    done = await world.post(PATH, phone("E1@x.test"))
    assert done.status == 200
    assert (await world.get(f"{BASE}/email:e1@x.test/traits")).status == 404
    assert (await world.get(f"{BASE}/user_id:u1/traits")).body["traits"] == {"email": "e1@x.test"}


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (PATH, {}, (400, "bad_request")),
        (PATH, {"delete_external_ids": []}, (400, "bad_request")),
        (PATH, {"delete_external_ids": [phone(), phone()]}, (400, "bad_request")),
        (PATH, {"delete_external_ids": ["email:e1@x.test"]}, (400, "bad_request")),
        (PATH, phone("u1", "user_id"), (400, "bad_request")),
        (PATH, phone("a\0b"), (400, "bad_request")),
        (PATH, phone("acme", "group_id"), (400, "unsupported_eid_type")),
        (PATH, phone("x", "shoe_size"), (400, "unsupported_eid_type")),
        (PATH, phone("other@x.test"), (404, "eid_not_found")),
        (f"{BASE}/user_id:nobody/external_ids/delete", phone(), (404, "not_found")),
        (f"{BASE}/email:e1@x.test/external_ids/delete", phone(), (400, "bad_request")),
    ],
)
async def test_the_codes_are_those_of_the_reference(
    world: World, path: str, body: dict[str, Any], said: tuple[int, str]
) -> None:
    await world.happen(identified("m1", user="u1", email="e1@x.test"))
    answer = await world.post(path, body)
    assert (answer.status, answer.body["error"]["code"]) == said
    assert (await world.get(f"{BASE}/email:e1@x.test/traits")).status == 200


async def test_deleting_an_identifier_needs_a_scope_of_its_own(world: World) -> None:
    made = await world.post("/api/tokens", {"name": "reader"})
    assert (await world.post(PATH, phone(), token=made.body["token"])).status == 403
    assert (await world.post(PATH, phone(), token="wrong")).status == 401
    assert (await world.get(PATH)).status == 405
    assert (await world.post(f"{BASE}/user_id:u1/external_ids/other", phone())).status == 404
