"""What can be seen of deliveries, from attempts to what people are told, on SQLite and on PostgreSQL."""

import asyncio
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from destinations.contract import DELIVERED, Filtered, Outcome, Rejected, Retry
from destinations.exchanges import Exchange
from pipeline.alerts.states import Alert
from pipeline.delivery.attempt import Attempt
from pipeline.delivery.decide import decode
from pipeline.delivery.lanes import Item, Lane, Partition
from pipeline.delivery.limits import Destination
from pipeline.delivery.observing import CAUSES, Observer
from pipeline.query import alerts as told
from pipeline.query.destinations import statuses
from pipeline.query.metrics import exposition
from pipeline.store import alerts, ledger, observations
from pipeline.store.database import Database
from pipeline.store.ledger import Claim, Progress, Row
from schemas.errors import Refused
from schemas.events import Origin, Resolved
from tests.stores import prepare
from tests.unit.delivery_world import DeliveryWorld, MemoryLog, by_id, resolved

ACCEPTED = 1_700_000_000_000_000  # of every event, microseconds
WHEN = 1_700_000_000.0


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/millrace.sqlite"
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database(url)
    prepare(opened)
    yield opened
    opened.close()


class Clock:
    def __init__(self) -> None:
        self.seconds = WHEN

    def __call__(self) -> float:
        return self.seconds


def observer(tmp_path: Path, clock: Clock) -> Observer:
    world = DeliveryWorld(tmp_path)
    found: Destination = world.add()
    world.close()
    return Observer(found, clock)


def item(message_id: str, **body: Any) -> Item:
    made = Item(Lane(Partition(Claim(0, 0, 0, {}, ())), "ann", 0), 0, "web", message_id)
    event = decode(resolved(message_id, "ann", Origin(0, 0), **body))
    assert isinstance(event, Resolved)
    made.resolved, made.received_at = event, event.event.received_at
    return made


def status(database: Database, since: float = WHEN - 3600) -> dict[str, Any]:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(since))
    page = asyncio.run(_statuses(database, at))
    (one,) = page["destinations"]
    return dict(one)


async def _statuses(database: Database, since: str) -> dict[str, Any]:
    return (await statuses(MemoryLog(), database, ["crm"], {"since": since})).json_object()


def write(database: Database, *observers: Observer) -> None:
    async def all_of_them() -> None:
        for one in observers:
            await one.write(database)

    asyncio.run(all_of_them())


def test_a_destination_nobody_heard_of_is_new(database: Database) -> None:
    assert status(database) == {
        "name": "crm",
        "state": "new",
        "state_since": None,
        "reason": "",
        "attempts": 0,
        "delivered": 0,
        "retried": 0,
        "rejected": 0,
        "success_rate": None,
        "latency": {"p50": None, "p95": None, "p99": None},
        "waiting": {},
        "oldest_at": None,
        "lag": 0,
        "errors": [],
    }


def test_attempts_are_counted_by_outcome_and_what_was_not_tried_is_not(database: Database, tmp_path: Path) -> None:
    clock = Clock()
    seen = observer(tmp_path, clock)
    clock.seconds += 2
    outcomes: list[Outcome | None] = [
        DELIVERED,
        DELIVERED,
        Retry("http 503"),
        Rejected("http 422"),
        Filtered("dropped"),
        None,
    ]
    seen.note(Attempt([item(f"m{n}") for n in range(6)], outcomes), ())
    write(database, seen)
    found = status(database)
    counts = {name: found[name] for name in ("attempts", "delivered", "retried", "rejected", "success_rate")}
    assert counts == {"attempts": 4, "delivered": 2, "retried": 1, "rejected": 1, "success_rate": 0.5}
    assert found["latency"]["p50"] == pytest.approx(2.0, rel=0.1)


def test_processes_and_minutes_add_up_and_writing_again_changes_nothing(database: Database, tmp_path: Path) -> None:
    clock = Clock()
    one, other = observer(tmp_path, clock), observer(tmp_path, clock)
    for seconds in (1, 1, 90):
        clock.seconds += seconds
        for seen in (one, other):
            seen.note(Attempt([item("m")], [DELIVERED]), ())
        write(database, one, other, one)
    found = status(database)
    assert (found["attempts"], found["latency"]["p50"], found["latency"]["p99"]) == (
        6,
        pytest.approx(2.0, rel=0.1),
        pytest.approx(92.0, rel=0.1),
    )
    assert status(database, WHEN + 60)["attempts"] == 2
    text = asyncio.run(_metrics(database))
    assert 'millrace_destination_attempts_total{destination="crm",result="delivered"} 6.0' in text
    assert 'millrace_destination_latency_seconds_bucket{destination="crm",le="+Inf"} 6.0' in text
    assert 'millrace_destination_latency_seconds_bucket{destination="crm",le="4.096"} 4.0' in text


async def _metrics(database: Database) -> str:
    return (await exposition(MemoryLog(), database, ())).decode()


def test_errors_are_grouped_by_cause_with_an_example_and_what_to_do(database: Database, tmp_path: Path) -> None:
    seen = observer(tmp_path, Clock())
    for number, mail in enumerate(("ann@shop.test", "bob@shop.test")):
        exchange = Exchange(
            reason="http 422",
            method="POST",
            url="https://crm.test/v1/contacts/ann@shop.test?key=abcdef",
            headers={"Content-Type": "application/json", "Authorization": "Bearer abc"},
            body=json.dumps({"email": mail, "city": "Bern", "age": 41}).encode(),
            status=422,
            answer_headers={"Content-Type": "application/json", "Set-Cookie": "session=1"},
            answer=json.dumps({"message": f"no contact {mail} lives in Bern", "id": "17", "age": 41}).encode(),
        )
        seen.note(Attempt([item(f"m{number}")], [Rejected("http 422")]), [exchange])
    write(database, seen)
    (error,) = status(database)["errors"]
    request, answer = json.loads(error.pop("request")), json.loads(error.pop("answer"))
    assert error == {
        "code": "http 422",
        "message": "no contact … lives in …",
        "count": 2,
        "remedy": "The service refuses a value of the event; correct the mapping or the service's schema, then retry.",
        "at": "2023-11-14T22:13:20.000Z",
        "message_id": "m0",
    }
    assert request == {
        "request": "POST https://crm.test/v1/contacts/xxx@xxxx.xxxx?key=xxxxxx",
        "headers": {"Content-Type": "application/json", "Authorization": "**********"},
        "body": {"email": "xxx@xxxx.xxxx", "city": "Xxxx", "age": 99},
    }
    assert answer == {
        "status": 422,
        "headers": {"Content-Type": "application/json", "Set-Cookie": "**********"},
        "body": {"message": "no contact ********** lives in **********", "id": "17", "age": 41},
    }


def test_an_error_without_a_request_shows_the_event(database: Database, tmp_path: Path) -> None:
    seen = observer(tmp_path, Clock())
    seen.note(Attempt([item("m1", properties={"name": "Ann"})], [Rejected("cannot be a row: field 'name'")]), ())
    write(database, seen)
    (error,) = status(database)["errors"]
    assert (error["code"], error["message"], error["answer"]) == ("cannot be a row", "field …", None)
    event = json.loads(error["request"])["event"]
    assert (event["messageId"], event["event"], event["properties"]) == ("m1", "Clicked", {"name": "Xxx"})


def test_rejected_credentials_are_an_error_of_one_attempt(database: Database, tmp_path: Path) -> None:
    seen = observer(tmp_path, Clock())
    seen.note(Attempt([item("m1"), item("m2")], [None, None], credentials="http 401"), ())
    write(database, seen)
    found = status(database)
    assert (found["retried"], [(one["code"], one["count"]) for one in found["errors"]]) == (1, [("http 401", 1)])


def test_causes_without_number_are_told_together(database: Database, tmp_path: Path) -> None:
    seen = observer(tmp_path, Clock())
    words = [f"{chr(97 + number // 26)}{chr(97 + number % 26)}" for number in range(CAUSES + 30)]
    for one in words:
        seen.note(Attempt([item("m")], [Rejected(f"code {one}")]), ())
    write(database, seen)
    errors = status(database)["errors"]
    assert (len(errors), errors[0]["code"], errors[0]["count"]) == (CAUSES + 1, "other errors", 30)


def test_what_waits_is_counted_by_state_with_its_oldest(database: Database) -> None:
    def fill(connection: Any) -> None:
        ledger.claim(connection, "crm", [0], 1)
        rows = [
            Row(at, state, "web", "ann", f"m{at}", 1, "http 503", ACCEPTED + at, ACCEPTED, b"")
            for at, state in enumerate(("retry", "held", "held", "dead"))
        ]
        ledger.record(connection, "crm", 1, [Progress(0, 1, 9, {}, None, {}, rows, ())])
        ledger.note_state(connection, "crm", "unreachable", "", ACCEPTED)

    database.run_sync(fill)
    found = status(database)
    assert (found["state"], found["waiting"], found["oldest_at"]) == (
        "unreachable",
        {"held": 2, "retry": 1},
        "2023-11-14T22:13:20.000Z",
    )


def test_old_minutes_and_examples_go_and_totals_stay(database: Database, tmp_path: Path) -> None:
    seen = observer(tmp_path, Clock())
    seen.note(Attempt([item("m1"), item("m2")], [DELIVERED, Rejected("http 400")]), ())
    write(database, seen)
    database.run_sync(partial(observations.purge, before=ACCEPTED + 60_000_000))
    found = status(database)
    assert (found["attempts"], found["errors"]) == (0, [])
    assert 'result="delivered"} 1.0' in asyncio.run(_metrics(database))


def test_a_destination_of_another_name_is_refused(database: Database) -> None:
    with pytest.raises(Refused, match="No destination is called 'erp'; configured: crm"):
        asyncio.run(statuses(MemoryLog(), database, ["crm"], {}, "erp"))


def test_alerts_are_told_while_they_are_not_right(database: Database) -> None:
    known = [
        Alert(name="a", state="firing", since=ACCEPTED + 1, fired=ACCEPTED, text="t", remedy="r",
              told={"ops": f"firing {ACCEPTED} 0", "mail": ""}),
        Alert(name="b", state="ok", told={"ops": "firing 1 0"}),
        Alert(name="c", state="pending", since=ACCEPTED, text="u", remedy="s"),
    ]  # fmt: skip
    database.run_sync(lambda connection: alerts.keep(connection, known))
    at = "2023-11-14T22:13:20.000Z"
    assert asyncio.run(told.page(database)).json_object() == {
        "alerts": [
            {"alert": "a", "state": "firing", "since": at, "text": "t", "remedy": "r", "told": ["ops"]},
            {"alert": "c", "state": "pending", "since": at, "text": "u", "remedy": "s", "told": []},
        ]
    }


async def test_the_engine_tells_of_what_it_tried(tmp_path: Path) -> None:
    world = DeliveryWorld(tmp_path)
    world.add(by_id({"m1": [Retry("http 503"), Rejected("http 422")]}))
    for number in range(3):
        await world.emit(f"m{number}", profile=f"p{number}")
    await world.run_until_idle()
    seen = (await world.database.read(partial(observations.read, destinations=["crm"], since=0)))["crm"]
    assert (seen.minute.delivered, seen.minute.retried, seen.minute.rejected) == (2, 1, 1)
    assert {cause.code for cause in seen.samples} == {"http 503", "http 422"}
    world.close()


async def test_the_lag_is_in_records_of_the_log_whoever_they_are_for(database: Database, tmp_path: Path) -> None:
    world = DeliveryWorld(tmp_path)
    for number in range(5):
        await world.emit(f"m{number}", source="another")
    world.close()
    found = (await statuses(world.log, database, ["crm"], {})).json_object()
    assert [one["lag"] for one in found["destinations"]] == [5]
