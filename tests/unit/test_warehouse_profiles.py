"""Who is who in a DuckDB file, seen as whoever queries it sees it."""

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from destinations.contract import DELIVERED, Delivered, Person, Retry
from destinations.warehouse.duckdb.destination import hear
from destinations.warehouse.duckdb.settings import DuckDBSettings
from millrace.config.load import load_text
from schemas.changes import Cause, ProfileChange, Removed, identifier_hash
from schemas.errors import ConfigError
from schemas.events import ExternalId
from tests.unit.test_warehouse_duckdb import Rows, call, load, query, warehouse

DAY = 1_767_225_600_000_000  # the NOW of these tests in microseconds


def cause(message: str, second: int, kind: str = "track", name: str | None = None) -> Cause:
    return Cause("shop", message, kind, DAY + second * 1_000_000, DAY + second * 1_000_000, name)


def change(kind: str, second: int, profile: str, *ids: str, message: str = "", **fields: Any) -> ProfileChange:
    message = message or f"E{second}"
    return ProfileChange(
        f"{kind}:{message}:{profile}",
        kind,
        profile,
        DAY + second,
        fields.pop("cause", cause(message, second)),
        ids=[ExternalId(*one.split(":", 1)) for one in ids],
        **fields,
    )


def created(second: int, profile: str, *ids: str, **fields: Any) -> ProfileChange:
    return change("created", second, profile, *ids, profiles=[profile], **fields)


def merged(second: int, survivor: str, absorbed: str) -> ProfileChange:
    return change("merged", second, survivor, other=absorbed, profiles=[absorbed])


async def told(folder: Path, *batches: Sequence[ProfileChange], profiles: Any = True) -> list[Delivered | Retry]:
    function = hear(DuckDBSettings(profiles=profiles))
    assert function is not None
    async with warehouse(folder, profiles=profiles) as opened:
        return [await function(opened, batch) for batch in batches]


def identify(message: str, second: int, profile: str, **traits: Any) -> dict[str, Any]:
    return call("identify", message, second, profileId=profile, userId="u1", traits=traits)


EXAMPLE = [
    created(1, "P1", "anonymous_id:a1", cause=cause("E1", 1, "page", "Home")),
    change("ids_added", 2, "P1", "email:e1"),
    created(3, "P2", "anonymous_id:a2"),
    merged(4, "P1", "P2"),
]


async def test_the_worked_example_of_the_reference(tmp_path: Path) -> None:
    await load(tmp_path, [identify("E2", 2, "P1", email="e1")], [identify("E4", 4, "P1", email="e1")], profiles=True)
    assert await told(tmp_path, EXAMPLE) == [DELIVERED]
    columns = "segment_id, canonical_segment_id, triggering_event_type, triggering_event_id, triggering_event_name"
    assert query(tmp_path, f"SELECT {columns} FROM profiles.id_graph_updates ORDER BY seq") == [
        ("P1", "P1", "page", "E1", "Home"),
        ("P2", "P2", "track", "E3", None),
        ("P2", "P1", "track", "E4", None),
    ]
    columns = "segment_id, external_id_type, external_id_value, triggering_event_id, triggering_event_source_slug"
    assert query(tmp_path, f"SELECT {columns} FROM profiles.external_id_mapping_updates ORDER BY seq") == [
        ("P1", "anonymous_id", "a1", "E1", "shop"),
        ("P1", "email", "e1", "E2", "shop"),
        ("P2", "anonymous_id", "a2", "E3", "shop"),
    ]
    hashes = query(
        tmp_path, "SELECT external_id_hash FROM profiles.external_id_mapping_updates WHERE segment_id = 'P2'"
    )
    assert hashes == [(identifier_hash(ExternalId("anonymous_id", "a2")),)]
    assert query(tmp_path, "SELECT segment_id, canonical_segment_id FROM profiles.id_graph ORDER BY 1") == [
        ("P1", "P1"),
        ("P2", "P1"),
    ]
    assert query(tmp_path, "SELECT canonical_segment_id, segment_id FROM profiles.profile_merges ORDER BY 2") == [
        ("P1", "P1"),
        ("P1", "P2"),
    ]
    assert query(
        tmp_path, "SELECT canonical_segment_id, type, value FROM profiles.user_identifiers ORDER BY type, value"
    ) == [("P1", "anonymous_id", "a1"), ("P1", "anonymous_id", "a2"), ("P1", "email", "e1")]
    assert query(tmp_path, "SELECT canonical_segment_id, name, value FROM profiles.user_traits") == [
        ("P1", "email", "e1")
    ]
    updates = "SELECT segment_id, email, triggering_event_id, __removed FROM profiles.profile_traits_updates"
    assert query(tmp_path, updates) == [("P1", "e1", "E2", None)]


STATES = (
    "SELECT segment_id, canonical_segment_id FROM profiles.id_graph ORDER BY 1",
    "SELECT canonical_segment_id, segment_id FROM profiles.profile_merges ORDER BY 2",
    "SELECT canonical_segment_id, type, value FROM profiles.user_identifiers ORDER BY 2, 3",
    "SELECT canonical_segment_id, name, value FROM profiles.user_traits ORDER BY 2",
)


def states(folder: Path) -> list[Rows]:
    return [query(folder, one) for one in STATES]


async def test_the_order_in_which_changes_and_events_come_does_not_matter_for_what_holds(tmp_path: Path) -> None:
    first, second = identify("T1", 2, "P1", plan="free", city="Rome"), identify("T2", 3, "P2", plan="pro")
    found = []
    parts: tuple[list[Any], ...] = (EXAMPLE[:2], EXAMPLE[2:3], EXAMPLE[3:], [first], [second])
    for number, order in enumerate(permutations(parts)):
        if number % 29:
            continue  # a sample: each opens a file
        folder = tmp_path / str(number)
        async with warehouse(folder, profiles=True) as opened:
            for batch in order:
                if isinstance(batch[0], ProfileChange):
                    assert opened.hear(batch, "profiles") == DELIVERED
                else:
                    assert opened.load(batch) == [DELIVERED]
        found.append(states(folder))
    assert all(one == found[0] for one in found)
    assert found[0][3] == [("P1", "city", "Rome"), ("P1", "plan", "pro")]


async def test_a_repeat_adds_nothing(tmp_path: Path) -> None:
    await told(tmp_path, EXAMPLE[:2], EXAMPLE, EXAMPLE[2:])
    assert query(tmp_path, "SELECT count(*) FROM profiles.id_graph_updates") == [(3,)]
    assert query(tmp_path, "SELECT count(*) FROM profiles.external_id_mapping_updates") == [(3,)]


async def test_only_identifies_that_change_a_trait_have_a_row_and_each_in_order(tmp_path: Path) -> None:
    await load(
        tmp_path,
        [
            identify("T1", 10, "P1", plan="free", age=3),
            identify("T2", 11, "P1", plan="free"),
            identify("T3", 5, "P1", plan="old", city="Rome"),  # late: only the city is news
            identify("T4", 12, "P1", plan=None, age="four"),
        ],
        profiles=True,
    )
    columns = "triggering_event_id, plan, city, age, __removed"
    assert query(tmp_path, f"SELECT {columns} FROM profiles.profile_traits_updates ORDER BY seq") == [
        ("T1", "free", None, "3", None),
        ("T3", None, "Rome", None, None),
        ("T4", None, None, "four", '["plan"]'),
    ]
    assert states(tmp_path)[3] == [("P1", "age", "four"), ("P1", "city", "Rome")]


async def test_what_is_told_after_a_split_is_no_newer_than_what_it_takes_the_place_of(tmp_path: Path) -> None:
    told_of = identify("spl_1:unmerge:a", 50, "P1", plan=None, city="Rome", n=1) | {"source": "millrace"}
    late = identify("T3", 20, "P1", plan="late", city="Oslo", n=0)
    await load(tmp_path, [identify("T1", 10, "P1", plan="pro", city="Rome", n=2)], [told_of], profiles=True)
    assert states(tmp_path)[3] == [("P1", "city", "Rome"), ("P1", "n", "1")]
    await load(tmp_path, [late], [identify("T0", 5, "P1", city="Bern", n=9)], profiles=True)
    assert states(tmp_path)[3] == [("P1", "city", "Oslo"), ("P1", "n", "0"), ("P1", "plan", "late")]
    rows = "SELECT triggering_event_id, plan, city, n, __removed FROM profiles.profile_traits_updates ORDER BY seq"
    assert query(tmp_path, rows)[1:] == [
        ("spl_1:unmerge:a", None, None, 1, '["plan"]'),
        ("T3", "late", "Oslo", 0, None),
    ]


async def test_a_merge_that_combines_traits_has_a_row_of_what_the_survivor_gained(tmp_path: Path) -> None:
    events = [identify("T1", 1, "P1", plan="free", city="Rome"), identify("T2", 3, "P2", plan="pro", city="Rome", n=1)]
    await load(tmp_path, events, profiles=True)
    await told(tmp_path, EXAMPLE)
    columns = "segment_id, triggering_event_id, plan, city, n"
    assert query(tmp_path, f"SELECT {columns} FROM profiles.profile_traits_updates ORDER BY seq") == [
        ("P1", "T1", "free", "Rome", None),
        ("P2", "T2", "pro", "Rome", 1),
        ("P1", "E4", "pro", None, 1),
    ]


async def test_an_undone_merge_leads_each_id_back(tmp_path: Path) -> None:
    apart = change(
        "unmerged", 6, "P2", "anonymous_id:a2", profiles=["P2"], other="P1", cause=cause("spl_1", 6, "unmerge")
    )
    await told(tmp_path, EXAMPLE, [apart])
    assert query(tmp_path, "SELECT segment_id, canonical_segment_id FROM profiles.id_graph ORDER BY 1") == [
        ("P1", "P1"),
        ("P2", "P2"),
    ]
    last = "SELECT triggering_event_type FROM profiles.id_graph_updates ORDER BY seq DESC LIMIT 1"
    assert query(tmp_path, last) == [("unmerge",)]
    assert ("P2", "anonymous_id", "a2") in states(tmp_path)[2]


async def test_a_removed_id_is_gone_until_it_is_seen_again(tmp_path: Path) -> None:
    email = ExternalId("email", "e1")
    gone = change("id_removed", 7, "P1", removed=[Removed("email", identifier_hash(email))])
    await told(tmp_path, EXAMPLE, [gone])
    assert [row[1] for row in states(tmp_path)[2]] == ["anonymous_id", "anonymous_id"]
    operations = "SELECT __operation, external_id_value FROM profiles.external_id_mapping_updates"
    assert query(tmp_path, f"{operations} WHERE external_id_type = 'email' ORDER BY seq") == [
        ("CREATED", "e1"),
        ("REMOVED", None),
    ]
    await told(tmp_path, [change("ids_added", 8, "P3", "email:e1")])
    assert ("P3", "email", "e1") in states(tmp_path)[2]


async def test_nothing_is_left_of_a_deleted_profile_and_of_those_it_absorbed(tmp_path: Path) -> None:
    await load(tmp_path, [identify("T1", 1, "P2", plan="free"), identify("T2", 1, "P9", plan="x")], profiles=True)
    await told(tmp_path, [*EXAMPLE, created(5, "P9", "user_id:u9")], [change("deleted", 9, "P1")])
    assert states(tmp_path) == [
        [("P9", "P9")],
        [("P9", "P9")],
        [("P9", "user_id", "u9")],
        [("P9", "plan", "x")],
    ]
    for table in ("id_graph_updates", "external_id_mapping_updates", "profile_traits_updates", "_traits", "_profiles"):
        assert query(tmp_path, f"SELECT DISTINCT segment_id FROM profiles.{table}") == [("P9",)]


async def test_forgetting_a_person_leaves_the_views_of_the_others(tmp_path: Path) -> None:
    await told(tmp_path, [*EXAMPLE, created(5, "P9", "user_id:u9")])
    async with warehouse(tmp_path, profiles=True) as opened:
        person = Person(
            regulation="r1",
            ids=[("email", "e1")],
            profiles=["P1", "P2"],
            formerly=[],
            deleted_at="2026-01-01T00:00:00.000Z",
        )
        assert opened.forget([person]) == [DELIVERED]
    assert states(tmp_path)[:3] == [[("P9", "P9")], [("P9", "P9")], [("P9", "user_id", "u9")]]
    await told(tmp_path, [created(6, "P8", "user_id:u8")])
    assert states(tmp_path)[1] == [("P8", "P8"), ("P9", "P9")]


async def test_a_schema_that_is_a_sources_is_refused_and_the_changes_wait(tmp_path: Path) -> None:
    await load(tmp_path, [call("track", "m1", event="Seen", properties={}, source="profiles")])
    [outcome] = await told(tmp_path, EXAMPLE)
    assert outcome == Retry("schema profiles is a source's; name another under settings.profiles", 60.0)
    assert await told(tmp_path, EXAMPLE, profiles="people") == [DELIVERED]
    assert query(tmp_path, "SELECT count(*) FROM people.profile_merges") == [(2,)]


async def test_a_source_that_comes_later_does_not_get_into_the_schema_of_profiles(tmp_path: Path) -> None:
    await told(tmp_path, EXAMPLE)
    await load(tmp_path, [call("track", "m1", event="Seen", properties={}, source="profiles")], profiles=True)
    assert query(tmp_path, "SELECT count(*) FROM information_schema.tables WHERE table_name = 'tracks'") == [(1,)]
    assert query(
        tmp_path, "SELECT count(*) FROM duckdb_tables() WHERE schema_name = 'profiles' AND table_name = 'tracks'"
    ) == [(0,)]


@pytest.mark.parametrize(("source", "wanted"), [("profiles", "true"), ("our-people", "our_people")])
def test_a_configuration_with_a_source_of_that_schema_is_refused(source: str, wanted: str) -> None:
    text = f"sources: {{{source}: {{write_key: a-key-of-it}}}}\ndestinations: {{w: {{type: duckdb, settings: {{profiles: %s}}}}}}"
    with pytest.raises(ConfigError) as caught:
        load_text(text % wanted, "millrace.yaml", {}, lambda: {"duckdb": DuckDBSettings})
    assert list(caught.value.faults) == [
        f"millrace.yaml:2 destinations.w.settings.profiles: is the schema of source {source} too; name another"
    ]
    assert load_text(text % "people", "millrace.yaml", {}, lambda: {"duckdb": DuckDBSettings}).settings


def test_nothing_is_heard_where_no_tables_are_wanted() -> None:
    assert hear(DuckDBSettings()) is None


async def test_accounts_are_no_part_of_it(tmp_path: Path) -> None:
    await told(tmp_path, [created(1, "acc_1", "group_id:g1", collection="accounts")])
    assert states(tmp_path) == [[], [], [], []]
