"""Other rules of identity on recorded events: what they would change, counted, with examples; nothing is changed by asking."""

import asyncio
import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, func, select

from pipeline.identity import Rules
from pipeline.log import Record, open_log
from pipeline.profile import message_key, profile_id
from pipeline.recorded import Recording
from pipeline.scratch import FOLDER
from pipeline.simulate import simulate as run_simulation
from pipeline.store import bulk, schema
from pipeline.store.database import Database
from schemas.events import Event, Origin, encode_event, encode_resolved
from schemas.identity import IdentityConfig, IdTypeConfig
from schemas.topics import INTERNAL_SOURCE, RESOLVED, partition_of
from tests.command_line import Said, millrace
from tests.stores import prepare

PRESENT = "sources: {web: {write_key: wk}}\n"


def call(message: str, *, at: int = 1, user: str | None = None, device: str | None = None, **traits: Any) -> Event:
    body = json.dumps({"type": "identify", "messageId": message, "traits": traits}).encode()
    return Event("web", "identify", message, device, user, at, None, at, "server", None, None, body)


def record(event: Event, number: int, at: int, partition: int = 0, origin: int | None = None) -> Record:
    key = next(key for n in count() if partition_of(key := b"%d" % n, 3) == partition)
    return Record(
        key, encode_resolved("p", Origin(partition if origin is None else origin, number), (), encode_event(event)), at
    )


async def fill(folder: Path, records: Sequence[Record], partitions: int) -> None:
    async with open_log(f"embedded://{folder}/data/log", partitions=partitions) as log:
        for one in records:
            await log.append(RESOLVED, [one])


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Two users of one device, each with an address; a third alone; the last event was emitted twice."""
    events = [
        call("m1", user="u1", device="d"),
        call("m2", user="u2", email="two@shop.test"),
        call("m3", user="u1", email="one@shop.test"),
        call("m4", device="d", email="two@shop.test"),
        call("m5", user="u3"),
        call("m5", user="u3"),
    ]
    records = [record(one, min(number, 4), 1_700_000_000_000 + number) for number, one in enumerate(events)]
    asyncio.run(fill(tmp_path, records, 1))
    (tmp_path / "millrace.yaml").write_text(PRESENT)
    made = in_use(tmp_path)
    made.close()
    return tmp_path


def in_use(folder: Path) -> Database:
    """The store of the installation."""
    made = Database(f"sqlite:///{folder}/data/millrace.sqlite")
    prepare(made)
    return made


def simulate(folder: Path, identity: str, *options: str) -> Said:
    (folder / "new.yaml").write_text(PRESENT + identity)
    return millrace(folder, "identity", "simulate", "--rules", "new.yaml", *options)


def profile_of(message: str) -> str:
    return profile_id(message_key("web", message), 1)


def test_the_same_rules_make_the_same_profiles(shop: Path) -> None:
    said = simulate(shop, "")
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines() == [
        "5 events, 3 profiles now, 3 under the other rules",
        "  the rules are the same",
        "stay as they are: 3",
        "",
        "the same profiles",
    ]


def test_profiles_that_would_merge_are_counted_and_shown(shop: Path) -> None:
    said = simulate(shop, "identity: {types: {user_id: {limit: 2}}}", "--json")
    report = json.loads(said.out)
    first, second = profile_of("m1"), profile_of("m2")
    assert (said.code, report["differs"], report["events"]) == (1, True, 5)
    assert report["rules"] == {"types.user_id.limit": {"present": None, "other": 2}}
    assert report["profiles"] == {
        "present": 3, "other": 2, "same": 1, "split": 0, "merged": 1, "regrouped": 0, "renamed": 0,
    }  # fmt: skip
    (example,) = report["examples"]["merged"]
    assert [(one["profile"], one["size"]) for one in example["present"]] == [(first, 3), (second, 2)]
    assert [(one["profile"], one["size"]) for one in example["other"]] == [(first, 5)]


def test_profiles_that_would_split_are_counted_and_shown(shop: Path) -> None:
    (shop / "millrace.yaml").write_text(PRESENT + "identity: {types: {user_id: {limit: 2}}}")
    said = simulate(shop, "", "--json")
    report = json.loads(said.out)
    assert report["profiles"] == {
        "present": 2, "other": 3, "same": 1, "split": 1, "merged": 0, "regrouped": 0, "renamed": 0,
    }  # fmt: skip
    (example,) = report["examples"]["split"]
    assert [one["size"] for one in example["present"]] == [5]
    assert [(one["profile"], one["size"]) for one in example["other"]] == [
        (profile_of("m1"), 3),
        (profile_of("m2"), 2),
    ]


def test_profiles_that_would_lose_an_id_are_counted_and_shown(shop: Path) -> None:
    said = simulate(shop, "identity: {types: {email: {blocked: {values: [one@shop.test]}}}}", "--json")
    report = json.loads(said.out)
    assert (said.code, report["ids"]) == (1, {"gained": 0, "lost": 1})
    assert report["profiles"]["regrouped"] == 1
    assert report["ids_refused"]["ID value blocked"] == {"present": 0, "other": 1}


def test_asking_changes_nothing_and_leaves_nothing(shop: Path) -> None:
    def rows(connection: Connection) -> int:
        tables = schema.metadata.sorted_tables
        return sum(connection.execute(select(func.count()).select_from(one)).scalar_one() for one in tables)

    simulate(shop, "identity: {types: {user_id: {limit: 2}}}")

    left = [path for path in (shop / "data" / FOLDER).rglob("*") if path.is_file()]
    assert [(path.name, path.stat().st_size) for path in left] == [("lock", 0)]
    database = in_use(shop)
    assert database.read_sync(rows) == 0
    database.close()


def test_who_was_deleted_is_not_shown_though_the_log_still_has_them(shop: Path) -> None:
    """As Kafka has, until its retention removes them."""
    database = in_use(shop)
    places = [(0, offset, "p", "reg", 1, 1) for offset in (1, 3)]
    database.run_sync(lambda connection: bulk.insert(connection, schema.erased, places))
    database.close()
    said = simulate(shop, "identity: {types: {user_id: {limit: 2}}}", "--json")
    assert json.loads(said.out)["events"] == 3
    assert "two@shop.test" not in said.out


def test_what_was_told_to_destinations_is_no_evidence(tmp_path: Path) -> None:
    """A correction names the ids of a profile; they are not seen on one event."""
    told = call("split:1", user="u1", email="b@shop.test")._replace(source=INTERNAL_SOURCE)
    calls = [call("m1", user="u1"), call("m2", device="d", email="b@shop.test"), told]
    asyncio.run(fill(tmp_path, [record(one, n, 1_700_000_000_000 + n) for n, one in enumerate(calls)], 1))
    (tmp_path / "millrace.yaml").write_text(PRESENT)
    report = json.loads(simulate(tmp_path, "", "--json").out)
    assert (report["events"], report["profiles"]["present"]) == (2, 2)


def test_only_events_since_then_count(shop: Path) -> None:
    said = simulate(shop, "", "--json", "--since", "2040-01-01")
    assert (said.code, json.loads(said.out)["events"]) == (0, 0)


def test_rules_that_are_none_are_misuse(shop: Path) -> None:
    said = simulate(shop, "identity: {types: {user_id: {limit: no}}}")
    assert said.code == 2
    assert "new.yaml:2 identity.types.user_id.limit" in said.err


async def test_partitions_are_taken_in_the_order_of_time_however_little_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever device comes first takes the only place that the limit leaves; one partition holds most."""
    monkeypatch.setattr("pipeline.recorded._READ", 3)
    calls = [call(f"m{number:02d}", user="u", device=f"d{number:02d}") for number in range(60)]
    places = [number % 3 if number % 10 == 9 else 0 for number in range(60)]
    records = [
        record(one, number, 1_700_000_000_000 + number, partition=place)
        for number, (one, place) in enumerate(zip(calls, places, strict=True))
    ]
    await fill(tmp_path, records, 3)
    other = Rules(IdentityConfig(types={"anonymous_id": IdTypeConfig(limit=40)}))
    database = in_use(tmp_path)
    done = list[int]()
    async with open_log(f"embedded://{tmp_path}/data/log", partitions=3) as log:
        made = await run_simulation(
            log,
            database,
            Rules(),
            other,
            since=0,
            folder=tmp_path / "scratch",
            examples=1,
            advance=lambda now, total: done.append(now),
        )
    database.close()
    (example,) = made.comparison.examples["regrouped"]
    assert list(example.present[0].ids) == [*(f"anonymous_id:d{number:02d}" for number in range(5)), "user_id:u"]
    assert example.other[0].size == 41
    assert set(example.other[0].ids) <= {f"anonymous_id:d{number:02d}" for number in range(40)}
    assert (done[-1], done) == (60, sorted(done))


async def test_events_of_one_instant_are_taken_as_they_were_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One poll is emitted at one instant, to several partitions."""
    monkeypatch.setattr("pipeline.recorded._READ", 3)
    calls = [call(f"m{number:02d}", user="u", device=f"d{number:02d}") for number in range(30)]
    records = [record(one, number, 1_700_000_000_000, number % 3, 0) for number, one in enumerate(calls)]
    await fill(tmp_path, records, 3)
    async with open_log(f"embedded://{tmp_path}/data/log", partitions=3) as log:
        taken = [one.event.message_id async for some in Recording(log).events(lambda *_: None) for one in some]
    assert taken == [one.message_id for one in calls]


async def test_a_clock_that_went_back_loses_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.recorded._READ", 3)
    monkeypatch.setattr("pipeline.recorded._MOST", 5)
    calls = [call(f"m{number:02d}", user="u") for number in range(40)]
    records = [record(one, number, 1_700_000_000_000 - number, number % 2) for number, one in enumerate(calls)]
    await fill(tmp_path, records, 2)
    async with open_log(f"embedded://{tmp_path}/data/log", partitions=2) as log:
        recording = Recording(log)
        taken = [one.event.message_id async for some in recording.events(lambda *_: None) for one in some]
        again = Recording(log, places=recording.places)
        rest = [some async for some in again.events(lambda *_: None)]
    assert sorted(taken) == [one.message_id for one in calls]
    assert rest == []
