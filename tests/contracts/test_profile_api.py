"""The profile API, on SQLite and on PostgreSQL: one profile by any of its ids."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.query.profile_api import events, look_up
from pipeline.query.profile_api.tokens import Quota, Rates
from pipeline.store import reads
from pipeline.store.database import Database
from schemas import api as shapes
from tests.contracts.profile_world import ACCOUNTS, BASE, World, happened, identified, settled, world
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


async def every(people: World, path: str, **query: Any) -> list[Any]:
    """The items of all pages: of `data`, or pairs of `traits`."""
    found: list[Any] = []
    following: str | None = None
    while True:
        reply = await people.get(path, next_=following, **query)
        assert reply.status == 200, reply.body
        found += reply.body["data"] if "data" in reply.body else reply.body["traits"].items()
        following = reply.body["cursor"]["next"]
        assert reply.body["cursor"]["has_more"] == bool(following)
        if not following:
            return found


# ── Addressing ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_every_id_of_a_person_and_of_those_merged_into_it_gives_the_same_bytes(people):
    await people.happen(identified("m1", user="u1", anonymous="a1", plan="pro"))
    await people.happen(identified("m2", anonymous="a2", at=1, city="Turku"))
    absorbed = (await people.get(f"{BASE}/anonymous_id:a2/merges")).body["cursor"]["url"].split("/")[-2]
    await people.happen(happened("m3", user="u1", anonymous="a2", at=2))
    [merge] = (await people.get(f"{BASE}/user_id:u1/merges")).body["data"]

    assert merge["absorbed"] == absorbed
    answers = [
        await people.get(f"{prefix}/{one}/traits")
        for prefix in (BASE, BASE.replace("spaces", "namespaces"))
        for one in ("user_id:u1", "anonymous_id:a1", "anonymous_id:a2", absorbed, f"profile_id:{merge['survivor']}")
    ]
    assert [one.status for one in answers] == [200] * 10
    assert all(one.body == answers[0].body for one in answers)
    assert answers[0].body == {
        "traits": {"city": "Turku", "plan": "pro"},
        "cursor": {"url": f"{BASE}/{merge['survivor']}/traits", "has_more": False, "next": "", "limit": 20},
    }


async def test_a_value_is_encoded_and_compared_as_at_ingest(people):
    await people.happen(
        identified("m1", user="a/b:c+d é", email=" Mia@Shop.test "), happened("m2", user="plain-id_1.x~", at=1)
    )

    async def status(named: str) -> int:
        reply = await people.get(f"{BASE}/{named}/metadata")
        return int(reply.status)

    found = [
        "user_id:a%2Fb%3Ac%2Bd%20%C3%A9",
        "user_id:a%2Fb:c%2Bd+%C3%A9",
        "email:MIA%40shop.TEST",
        "email:mia@shop.test",
    ]
    assert [await status(one) for one in [*found, "user_id:plain-id_1.x~"]] == [200] * 5
    # An encoded plus is a plus, a bare one a space; upper case is another user_id.
    assert [await status(one) for one in ("user_id:a%2Fb:c+d+%C3%A9", "user_id:PLAIN-id_1.x~")] == [404, 404]
    for wrong in (
        "user_id:%zz",
        "user_id:%ff",
        'user_id:"x"',
        "user_id:",
        ":x",
        "user_id:a%00b",
        "user_id:" + "x" * 3_000,
    ):
        reply = await people.get(f"{BASE}/{wrong}/traits")
        assert (wrong, reply.status, reply.body["error"]["code"]) == (wrong, 400, "invalid_request_error")


WRONG = [
    ("GET", f"{BASE}/user_id:nobody/traits", 404, "not_found"),
    ("GET", f"{BASE}/use_nobody/traits", 404, "not_found"),
    ("GET", f"{ACCOUNTS}/user_id:u1/traits", 404, "not_found"),
    ("GET", f"{BASE}/user_id:u1/nothing", 404, "not_found"),
    ("GET", f"{BASE}/user_id:u1", 404, "not_found"),
    ("GET", f"{BASE}/user_id:u1/traits/more", 404, "not_found"),
    ("GET", "/v1/spaces/default/nothing", 404, "not_found"),
    ("POST", f"{BASE}/user_id:u1/traits", 405, "invalid_request_error"),
    ("OPTIONS", f"{BASE}/user_id:u1/traits", 405, "invalid_request_error"),
    ("GET", f"{BASE}/search", 405, "invalid_request_error"),
    ("GET", BASE.replace("users", "robots%20"), 400, "validation_error"),
    ("GET", f"{BASE.replace('default', 'other')}/user_id:u1/traits", 401, "authentication_error"),
    ("GET", f"{BASE}/user_id:u1/traits?limit=0", 400, "validation_error"),
    ("GET", f"{BASE}/user_id:u1/traits?limit=201", 400, "validation_error"),
    ("GET", f"{BASE}/user_id:u1/traits?verbose=maybe", 400, "validation_error"),
    ("GET", f"{BASE}/user_id:u1/traits?class=wish", 400, "validation_error"),
    ("GET", f"{BASE}/user_id:u1/traits?next=%F0", 400, "invalid_request_error"),
    ("GET", f"{BASE}/user_id:u1/traits?next=WyJ0cmFpdHMiXQ", 400, "invalid_request_error"),
    ("GET", f"{BASE}/user_id:u1/external_ids?limit=101", 400, "validation_error"),
    ("GET", f"{BASE}/user_id:u1/events?start=yesterday", 400, "validation_error"),
    ("GET", f"{BASE}/user_id:u1/events?start=2026-02-01&end=2026-01-01", 400, "validation_error"),
    ("GET", f"{BASE}/user_id:u1/events?type=wish", 400, "validation_error"),
    ("GET", f"{BASE}/user_id:u1/traits?after=m%00", 400, "validation_error"),
]


async def test_what_is_wrong_has_a_code_and_never_a_500(here):
    await here.happen(happened("m1", user="u1"))
    for method, path, status, code in WRONG:
        reply = await here.get(path, method=method)
        assert (path, reply.status, reply.body["error"]["code"]) == (path, status, code)
        assert set(reply.body) == {"error"}
        assert set(reply.body["error"]) == {"code", "message"}
        assert reply.headers["request-id"]
        assert not any(name.startswith("access-control") for name in reply.headers)


async def test_unknown_parameters_and_empty_filters_change_nothing(here):
    await here.happen(identified("m1", user="u1", plan="pro"))
    plain = await here.get(f"{BASE}/user_id:u1/traits")
    assert (await here.get(f"{BASE}/user_id:u1/traits", include="", colour="red", class_="")).body == plain.body


# ── Traits ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_traits_tell_where_they_come_from(people):
    await people.happen(identified("m1", user="u1", at=1, plan="pro", gone="x", tags=["a", {"b": 1}], empty=""))
    await people.happen(identified("m2", user="u1", at=2, gone=None)._replace(source="app"))

    reply = await people.get(f"{BASE}/user_id:u1/traits", verbose="true")
    told = {"source_id": "web", "updated_at": "2026-09-21T13:46:41.000Z", "message_id": "m1", "class": "custom"}
    assert reply.body["traits"] == {
        "empty": {"value": "", **told},
        "plan": {"value": "pro", **told},
        "tags": {"value": ["a", {"b": 1}], **told},
    }
    for one in reply.body["traits"].values():
        shapes.TraitView.model_validate(one)
    shapes.TraitsPage.model_validate(reply.body)

    async def names(**query: str) -> list[str]:
        return list((await people.get(f"{BASE}/user_id:u1/traits", **query)).body["traits"])

    assert await names(include="plan,gone,none") == ["plan"]
    assert await names(class_="custom") == ["empty", "plan", "tags"]
    assert await names(class_="audience") == await names(class_="computed_trait", include="plan") == []


async def test_paging_gives_each_trait_once_in_order_while_traits_are_written(here):
    names = [f"trait {n:04d}" for n in range(1_005)]
    for start in range(0, 1_005, 201):
        traits = dict.fromkeys(names[start : start + 201], 1)
        await here.happen(happened(f"m{start}", user="u1", kind="identify", traits=traits))
    seen: list[str] = []
    following = None
    while following != "":
        page = (await here.get(f"{BASE}/user_id:u1/traits", limit=200, next_=following)).body
        seen += page["traits"]
        following = page["cursor"]["next"]
        late = {f"a{len(seen)}": 1, f"z{len(seen)}": 1}
        await here.happen(happened(f"late {len(seen)}", user="u1", at=9, kind="identify", traits=late))
    assert [one for one in seen if one in set(names)] == names
    assert seen == sorted(set(seen))


async def test_a_cursor_belongs_to_its_list_and_outlives_a_merge(here):
    await here.happen(identified("m1", user="u1", a=1, b=2), identified("m2", anonymous="a2", at=1, c=3, d=4))
    cursor = (await here.get(f"{BASE}/anonymous_id:a2/traits", limit=1)).body["cursor"]["next"]

    for path in (f"{BASE}/user_id:u1/traits", f"{BASE}/anonymous_id:a2/external_ids"):
        reply = await here.get(path, next_=cursor)
        assert (reply.status, reply.body["error"]["code"]) == (400, "invalid_request_error")
    await here.happen(happened("m3", user="u1", anonymous="a2", at=2))
    assert (await here.get(f"{BASE}/user_id:u1/traits", next_=cursor)).body["traits"] == {"d": 4}


# ── External ids, metadata, merges ────────────────────────────────────────────────────────────────────────────────


async def test_ids_tell_which_event_and_which_merge_brought_them(people):
    await people.happen(happened("m1", user="u1", anonymous="a1"), happened("m2", anonymous="a2", at=1))
    await people.happen(happened("m3", user="u1", anonymous="a2", at=2, source="app"))
    ids = await every(people, f"{BASE}/user_id:u1/external_ids", limit=1, verbose="true")
    [merge] = await every(people, f"{BASE}/user_id:u1/merges", limit=1)

    told = {"source_id": "web", "collection": "users", "encoding": "none", "config_version": merge["config_version"]}
    first = {"created_at": "2026-09-21T13:46:40.000Z", "first_message_id": "m1", "mapped_by_merge": None, **told}
    second = {
        "created_at": "2026-09-21T13:46:41.000Z",
        "first_message_id": "m2",
        "mapped_by_merge": merge["merge_id"],
        **told,
    }
    assert ids == [
        {"type": "anonymous_id", "id": "a1", **first},
        {"type": "user_id", "id": "u1", **first},
        {"type": "anonymous_id", "id": "a2", **second},
    ]
    assert {name: merge[name] for name in ("trigger", "external_ids_moved", "reversible", "undone_by")} == {
        "trigger": {"message_id": "m3", "source_id": "app", "type": "track"},
        "external_ids_moved": ["anonymous_id:a2"],
        "reversible": True,
        "undone_by": None,
    }
    shapes.MergeItem.model_validate(merge)
    plain = await people.get(f"{BASE}/user_id:u1/external_ids", include="user_id")
    assert [set(one) for one in plain.body["data"]] == [set(ids[1]) - {"mapped_by_merge", "config_version"}]
    shapes.ExternalIdsPage.model_validate(plain.body)


async def test_the_life_of_a_merged_profile_is_that_of_all_its_parts(people):
    await people.happen(happened("m1", user="u1", at=10), happened("m2", anonymous="a2", at=20, source="app"))
    await people.happen(happened("m3", user="u1", anonymous="a2", at=15, source="app"))
    reply = await people.get(f"{BASE}/anonymous_id:a2/metadata")
    assert reply.body == {
        "metadata": {
            "created_at": "2026-09-21T14:46:50.000Z",
            "updated_at": "2026-09-21T13:47:00.000Z",
            "expires_at": None,
            "first_message_id": "m1",
            "first_source_id": "web",
            "last_message_id": "m2",
            "last_source_id": "app",
        }
    }
    shapes.MetadataAnswer.model_validate(reply.body)


# ── Events ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_events_come_in_the_references_shape(here):
    await here.happen(
        happened(
            "m1", user="u1", anonymous="a1", event="Seat Booked", properties={"seat": "12C"}, context={"locale": "fi"}
        ),
        happened("m2", user="u1", at=1, kind="page", name="Home", properties={"url": "/"}),
    )
    reply = await here.get(f"{BASE}/user_id:u1/events")
    profile = reply.body["cursor"]["url"].split("/")[-2]
    user = {"collection": "users", "type": "user_id", "id": "u1", "encoding": "none"}
    shared = {"source_id": "web", "related": {"users": profile}}
    assert reply.body == {
        "data": [
            {
                "type": "page",
                "event": "Page Viewed",
                "message_id": "m2",
                "timestamp": "2026-09-21T13:46:41.000Z",
                "properties": {"url": "/", "page_name": "Home", "name": "Home"},
                "context": {},
                "external_ids": [user],
                **shared,
            },
            {
                "type": "track",
                "event": "Seat Booked",
                "message_id": "m1",
                "timestamp": "2026-09-21T13:46:40.000Z",
                "properties": {"seat": "12C"},
                "context": {"locale": "fi"},
                "external_ids": [user, user | {"type": "anonymous_id", "id": "a1"}],
                **shared,
            },
        ],
        "cursor": {"url": f"{BASE}/{profile}/events", "has_more": False, "next": "", "limit": 20, "clamped": False},
    }
    shapes.EventsPage.model_validate(reply.body)


async def test_events_are_chosen_by_time_type_and_name(people):
    await people.happen(
        happened("m0", user="u1", at=0, event="A"),
        happened("m1", user="u1", at=10, event="B, or C"),
        happened("m2", user="u1", at=20, event="D"),
        identified("m3", user="u1", at=30, plan="pro"),
        happened("m4", user="u1", at=40, kind="screen", name="Home"),
    )

    async def found(**query: Any) -> list[str]:
        return [one["message_id"] for one in await every(people, f"{BASE}/user_id:u1/events", limit=2, **query)]

    assert await found() == ["m4", "m2", "m1", "m0"]
    assert await found(sort="asc") == ["m0", "m1", "m2", "m4"]
    assert await found(type="all") == ["m4", "m3", "m2", "m1", "m0"]
    assert await found(type="identify,screen") == ["m4", "m3"]
    assert await found(start="2026-09-21T13:46:50Z", end="2026-09-21T15:47:00+02:00") == ["m1"]
    assert await found(start="2026-09-21", end="2026-09-22", sort="asc") == ["m0", "m1", "m2", "m4"]
    assert await found(include="B%2C or C,Screen Viewed") == ["m4", "m1"]
    assert await found(exclude="A,D") == ["m4", "m1"]


@pytest.mark.parametrize("sort", ["asc", "desc"])
async def test_paging_through_events_while_profiles_merge_gives_each_once(people, sort):
    mine = [happened(f"u{n}", user="u1", at=10 * n) for n in range(6)]
    other = [happened(f"a{n}", anonymous="a2", at=10 * n + 5) for n in range(6)]
    await people.happen(*mine, *other)
    first = (await people.get(f"{BASE}/user_id:u1/events", limit=3, sort=sort)).body
    await people.happen(happened("merge", user="u1", anonymous="a2", at=-1), happened("late", user="u1", at=-2))
    rest = await every(people, f"{BASE}/user_id:u1/events?sort={sort}&limit=2&next={first['cursor']['next']}")

    seen = [one["message_id"] for one in [*first["data"], *rest]]
    times = [one["timestamp"] for one in [*first["data"], *rest]]
    assert len(seen) == len(set(seen))
    assert times == sorted(times, reverse=sort == "desc")
    behind = times[2]
    missing = {one.message_id for one in [*mine, *other]} - set(seen)
    assert missing == {f"a{n}" for n in (range(2) if sort == "asc" else range(3, 6))}, behind


async def test_events_of_one_instant_are_each_told_once(people):
    await people.happen(*[happened(f"m{n}", user="u1") for n in range(7)])
    seen = [one["message_id"] for one in await every(people, f"{BASE}/user_id:u1/events", limit=2)]
    assert sorted(seen) == [f"m{n}" for n in range(7)]


async def test_a_rare_event_is_found_over_several_short_pages(here, monkeypatch):
    monkeypatch.setattr(events, "SEARCHED", 40)
    await here.happen(happened("rare", user="u1", at=-1, event="Rare"))
    await here.happen(*[happened(f"m{n}", user="u1", at=n, event="Common") for n in range(100)])
    first = (await here.get(f"{BASE}/user_id:u1/events", include="Rare")).body
    assert (first["data"], first["cursor"]["has_more"]) == ([], True)
    assert [one["message_id"] for one in await every(here, f"{BASE}/user_id:u1/events", include="Rare")] == ["rare"]


async def test_what_retention_has_removed_is_left_out_and_said(here, monkeypatch):
    await here.happen(*[happened(f"m{n}", user="u1", at=n) for n in range(4)])
    whole = here.log.bounds

    async def cut(topic: str) -> Any:
        return {partition: (2, end) if end else (0, 0) for partition, (_, end) in (await whole(topic)).items()}

    monkeypatch.setattr(here.log, "bounds", cut)
    reply = await here.get(f"{BASE}/user_id:u1/events", start="2026-01-01")
    assert [one["message_id"] for one in reply.body["data"]] == ["m3", "m2"]
    assert reply.body["cursor"]["clamped"] is True
    assert (await here.get(f"{BASE}/user_id:u1/events", start="2027-01-01")).body["cursor"]["clamped"] is False


# ── Accounts ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_accounts_have_profiles_and_links_to_their_users(people):
    await people.happen(
        happened("m1", user="u1", anonymous="a1"),
        happened("m2", user="u1", at=1, kind="group", groupId="g7", traits={"plan": "ent"}),
        happened("m3", user="u2", at=2, kind="group", groupId="g7"),
        happened("m4", user="u1", at=3, kind="group", groupId="g8"),
        happened("m5", user="u1", anonymous="a1", at=4, kind="group", groupId="g7"),
    )
    assert (await people.get(f"{ACCOUNTS}/group_id:g7/traits")).body["traits"] == {"plan": "ent"}
    assert (await people.get(f"{BASE}/group_id:g7/traits")).status == 404
    assert (await people.get(f"{BASE}/user_id:u2/external_ids", include="group_id")).body["data"] == []

    accounts = await every(people, f"{BASE}/anonymous_id:a1/links", limit=1)
    assert [
        (one["to_collection"], one["external_ids"][0]["id"], one["linked_at"], one["last_seen_at"]) for one in accounts
    ] == [
        ("accounts", "g7", "2026-09-21T13:46:41.000Z", "2026-09-21T13:46:44.000Z"),
        ("accounts", "g8", "2026-09-21T13:46:43.000Z", "2026-09-21T13:46:43.000Z"),
    ]
    [linked] = accounts[0]["external_ids"]
    assert linked | {"created_at": ""} == {
        "id": "g7",
        "type": "group_id",
        "source_id": "web",
        "collection": "accounts",
        "created_at": "",
        "encoding": "none",
    }
    users = await every(people, f"{ACCOUNTS}/group_id:g7/links", limit=1)
    assert sorted(tuple(sorted(one["id"] for one in user["external_ids"])) for user in users) == [("a1", "u1"), ("u2",)]
    shapes.LinksPage.model_validate((await people.get(f"{ACCOUNTS}/group_id:g7/links")).body)


async def test_a_link_follows_the_profile_through_a_login(people):
    await people.happen(happened("m1", anonymous="a5", kind="group", groupId="g7"))
    await people.happen(happened("m2", user="u5", anonymous="a5", at=1))
    [account] = (await people.get(f"{BASE}/user_id:u5/links")).body["data"]
    assert [one["id"] for one in account["external_ids"]] == ["g7"]
    [user] = (await people.get(f"{ACCOUNTS}/group_id:g7/links")).body["data"]
    assert [one["id"] for one in user["external_ids"]] == ["a5", "u5"]


# ── Read your write ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_look_up_waits_for_an_event_that_was_just_accepted(people):
    await people.happen(identified("m1", user="u1", plan="free"))
    await people.arrive(identified("m2", user="u1", at=1, plan="pro"))
    waiting = asyncio.create_task(people.get(f"{BASE}/user_id:u1/traits", after="m2"))
    other = asyncio.create_task(people.get(f"{BASE}/user_id:u1/traits", after="m2"))
    await settled(waiting, other)
    assert not waiting.done()
    assert (await people.get(f"{BASE}/user_id:u1/traits", after="m1")).body["traits"] == {"plan": "free"}
    await people.process()
    assert (await waiting).body["traits"] == (await other).body["traits"] == {"plan": "pro"}


async def test_waiting_ends_when_the_event_was_never_there_or_takes_too_long(here, monkeypatch):
    await here.happen(identified("m1", user="u1", plan="free"))
    reply = await here.get(f"{BASE}/user_id:u1/traits", after="never sent")
    assert (reply.status, reply.body["error"]["code"]) == (400, "validation_error")

    await here.arrive(identified("m2", user="u1", at=1))
    monkeypatch.setattr(here.api._applied.wait.__func__, "__defaults__", (0.05,))
    reply = await here.get(f"{BASE}/user_id:u1/traits", after="m2")
    assert (reply.status, reply.body["error"]["code"], reply.headers["retry-after"]) == (504, "not_applied", "1")


# ── Tokens ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def token(people: World, **wanted: Any) -> str:
    made = await people.post("/api/tokens", {"name": "test", **wanted})
    assert made.status == 200, made.body
    return str(made.body["token"])


async def test_a_token_is_shown_once_and_ends_when_it_is_revoked(people):
    await people.happen(identified("m1", user="u1", plan="pro"))
    made = (await people.post("/api/tokens", {"name": "crm", "scopes": ["profiles:read"]})).body
    secret = made.pop("token")
    assert (await people.get("/api/tokens")).body == {"data": [made]}
    rows = await people.database.read(lambda c: c.exec_driver_sql("SELECT * FROM tokens").all())
    assert secret not in str(rows)

    assert (await people.get(f"{BASE}/user_id:u1/traits", token=secret)).status == 200
    assert (await people.get("/api/balance", token=secret)).status == 401
    ended = await people.get(f"/api/tokens/{made['id']}", method="DELETE")
    assert (ended.status, ended.body["revoked_at"] is not None) == (200, True)
    for wrong in (secret, "mrp_wrong", ""):
        reply = await people.get(f"{BASE}/user_id:u1/traits", token=wrong)
        assert (reply.status, reply.body["error"]["code"]) == (401, "authentication_error")
        assert reply.headers["www-authenticate"] == 'Basic realm="millrace"'
    assert (await people.get("/api/tokens/tok_none", method="DELETE")).status == 404


async def test_a_token_does_what_its_scopes_say(here):
    await here.happen(identified("m1", user="u1", plan="pro"))
    reader, searcher = await token(here), await token(here, scopes=["profiles:search"])
    where = {"where": {"trait": "plan", "op": "exists"}}

    async def statuses(secret: str) -> list[int]:
        return [
            (await here.get(f"{BASE}/user_id:u1/traits", token=secret)).status,
            (await here.post(f"{BASE}/lookup", {"id": "user_id:u1"}, token=secret)).status,
            (await here.post(f"{BASE}/batch", {"ids": ["user_id:u1"]}, token=secret)).status,
            (await here.get(BASE, token=secret)).status,
            (await here.post(f"{BASE}/search", where, token=secret)).status,
        ]

    assert await statuses(reader) == [200, 200, 200, 403, 403]
    assert await statuses(searcher) == [403, 403, 403, 200, 200]
    for wrong in (
        {"name": ""},
        {"name": "x", "scopes": ["all"]},
        {"name": "x", "requests_per_second": 0},
        {"nam": "x"},
    ):
        assert (await here.post("/api/tokens", wrong)).status == 400


async def test_a_token_never_shows_a_trait_that_it_may_not_read(here):
    both: dict[str, Any] = {"name": "secret", "note": "secret too"}
    await here.happen(identified("m1", user="u1", a=1, b=2, **both))
    await here.happen(happened("m2", user="u1", at=1, event="E", context={"traits": both, "locale": "fi"}))
    scopes = ["profiles:read", "profiles:search"]
    secret = await token(here, traits=["a", "b"], scopes=scopes)
    profile = (await here.get(f"{BASE}/user_id:u1/metadata")).body

    told = [
        await here.get(f"{BASE}/user_id:u1/traits", token=secret),
        await here.get(f"{BASE}/user_id:u1/traits", token=secret, verbose="true", limit=1),
        await here.get(f"{BASE}/user_id:u1/traits", token=secret, include="name,note"),
        await here.get(f"{BASE}/user_id:u1/events", token=secret, type="all"),
        await here.post(f"{BASE}/batch", {"ids": ["user_id:u1"], "fields": ["traits", "traits.name"]}, token=secret),
        await here.get(BASE, token=secret, fields="traits"),
        await here.post(
            f"{BASE}/search", {"where": {"trait": "a", "op": "exists"}, "fields": ["traits"]}, token=secret
        ),
    ]
    assert [one.status for one in told] == [200] * 7
    assert told[0].body["traits"] == {"a": 1, "b": 2}
    assert "secret" not in str([one.body for one in told])
    hidden = await here.post(f"{BASE}/search", {"where": {"trait": "name", "op": "exists"}}, token=secret)
    assert (hidden.status, hidden.body["error"]["code"]) == (403, "forbidden")
    assert profile


async def test_requests_over_the_rate_are_put_off_and_others_are_not(here):
    await here.happen(happened("m1", user="u1"))
    now = 100.0
    here.api._rates = Rates(lambda: now)
    secret, other = await token(here, requests_per_second=100), await token(here)
    replies = [await here.get(f"{BASE}/user_id:u1/metadata", token=secret) for _ in range(101)]

    assert [one.status for one in replies] == [200] * 100 + [429]
    assert replies[-1].body["error"]["code"] == "rate_limit_error"
    limits = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "retry-after")
    assert [replies[-1].headers.get(name) for name in limits] == ["100", "0", "1", "1"]
    assert [replies[0].headers.get(name) for name in limits] == ["100", "99", "1", None]
    assert (await here.get(f"{BASE}/user_id:u1/metadata", token=other)).status == 200
    strangers = [(await here.get(f"{BASE}/user_id:u1/metadata", token="guess")).status for _ in range(201)]
    assert strangers == [401] * 200 + [429]
    now = 101.0
    assert (await here.get(f"{BASE}/user_id:u1/metadata", token=secret)).status == 200
    assert len({one.headers["request-id"] for one in replies}) == 101


def test_a_quota_says_when_it_begins_anew() -> None:
    rates = Rates(lambda: 7.25)
    assert [rates.take("t", 1), rates.take("t", 1)] == [Quota(1, 0, 1), Quota(1, -1, 1)]


# ── Who read whom ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_every_read_of_a_profile_is_on_record(people):
    await people.happen(happened("m1", user="u1"), happened("m2", user="u2"))
    secret = await token(people, scopes=["profiles:read", "profiles:search"])
    for _ in range(3):
        await people.get(f"{BASE}/user_id:u1/traits", token=secret)
    await people.post(f"{BASE}/batch", {"ids": ["user_id:u1", "user_id:u2"]}, token=secret)
    await people.get(BASE, token=secret)
    await people.get("/api/profiles/user_id:u1")
    await people.get("/api/profiles/export")
    found = (await people.get("/api/profiles/user_id:u1/reads")).body["data"]
    who = {(one["name"], one["resource"], one["profile"] == "*", one["count"]) for one in found}
    assert who == {
        ("test", "traits", False, 3),
        ("test", "batch", False, 1),
        ("test", "list", False, 1),
        ("the API token", "profile", False, 1),
        ("the API token", "export", True, 1),
    }


async def test_reads_wait_for_the_record_and_stop_when_too_many_do(here, monkeypatch):
    from pipeline.query.profile_api import audit
    from schemas.errors import Unavailable

    await here.happen(happened("m1", user="u1"), happened("m2", user="u2"))
    record = reads.record

    def fails(*_: Any) -> None:
        raise Unavailable("the disk is full")

    monkeypatch.setattr(reads, "record", fails)
    monkeypatch.setattr(audit, "MOST", 1)
    assert (await here.get(f"{BASE}/user_id:u1/traits")).status == 200
    with pytest.raises(Unavailable):
        await here.api.audit.flush()
    refused = await here.get(f"{BASE}/user_id:u2/traits")
    assert (refused.status, refused.headers["retry-after"]) == (503, "5")
    monkeypatch.setattr(reads, "record", record)
    await here.api.audit.flush()
    assert (await here.get(f"{BASE}/user_id:u2/traits")).status == 200


# ── Trouble ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_without_a_database_the_answer_is_to_come_back(tmp_path):
    from tests.contracts.profile_world import world as made

    gone = Database(f"sqlite:///{tmp_path}/none/x.sqlite")
    try:
        async with made(tmp_path, gone) as people:
            for secret in ("operator", "mrp_other"):
                reply = await people.get(f"{BASE}/user_id:u1/traits", token=secret)
                assert (reply.status, reply.body["error"]["code"]) == (503, "unavailable")
                assert int(reply.headers["retry-after"]) >= 1
    finally:
        gone.close()


async def test_many_look_ups_at_once_are_found_together(people, monkeypatch):
    await people.happen(*[happened(f"m{n}", user=f"u{n}") for n in range(30)])
    monkeypatch.setattr(look_up, "FEW", 0)
    asked = [people.get(f"{BASE}/user_id:u{n}/metadata") for n in range(40)]
    replies = await asyncio.gather(*asked)
    assert [one.status for one in replies] == [200] * 30 + [404] * 10
    assert [one.body["metadata"]["first_message_id"] for one in replies[:30]] == [f"m{n}" for n in range(30)]
