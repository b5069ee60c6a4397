"""What can be done with dead letters, on SQLite and on PostgreSQL: found by cause, put back, given up; the books hold."""

import base64
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from destinations.contract import DELIVERED, Outcome, RawEvent, Rejected, Retry
from pipeline.query import letters as api
from pipeline.store import books, bulk, ledger, letters, schema
from pipeline.store.books import Settled
from pipeline.store.letters import Chosen, Place
from pipeline.store.paths import exceptions_at, outcome
from schemas.api import ExchangeSample
from schemas.errors import Refused
from tests.unit.delivery_world import QUICK, DeliveryWorld, Tried, by_id

LIMITS = replace(QUICK, look=0.005)
LATE = 4_000_000_000_000_000


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[DeliveryWorld]:
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else ""
    one = DeliveryWorld(tmp_path, url=url, limits=LIMITS)
    yield one
    if one.task is not None and not one.task.done():
        await one.crash()
    one.close()


class Service:
    """Refuses what it is told to, until it is mended."""

    def __init__(self, **refused: Outcome) -> None:
        self.refused = refused

    async def __call__(self, batch: Sequence[RawEvent]) -> Sequence[Outcome]:
        return [self.refused.get(one["messageId"], DELIVERED) for one in batch]


async def settled(world: DeliveryWorld) -> tuple[Settled, int]:
    """The book of crm, and what is outstanding."""
    snapshot = await world.database.read(books.read)
    return snapshot.settled["crm", "web"], snapshot.outstanding.get(("crm", "web"), 0)


async def refused(world: DeliveryWorld, **reasons: Outcome) -> Service:
    """A world in which crm refused m1, m2, … of as many profiles, as told; the engine has stopped."""
    service = Service(**reasons)
    world.add(service)
    for name in reasons:
        await world.emit(name, f"profile of {name}")
    await world.run_until_idle()
    world.did.clear()
    return service


async def move(world: DeliveryWorld, act: str, **body: Any) -> int:
    """Moves letters page by page, as the command does."""
    count, following = 0, ""
    while True:
        asked = {"destination": "crm", "next": following} | body
        if act == "retry":
            answer = await api.retry(world.database, ["crm"], asked)
        else:
            answer = await api.purge(world.database, asked)
        count, following = count + answer.count, answer.next
        if not following:
            return count


async def test_letters_are_counted_by_destination_and_cause_with_the_latest_as_sample(world: DeliveryWorld) -> None:
    await refused(world, m1=Rejected("http 422"), m2=Rejected("FUNCTION_RAISED: x"), m3=Rejected("FUNCTION_RAISED: y"))
    found = await world.database.read(partial(letters.groups, chosen=Chosen(), after=None, most=10))
    assert [(one.destination, one.cause, one.letters) for one in found] == [
        ("crm", "FUNCTION_RAISED", 2),
        ("crm", "http 422", 1),
    ]
    assert (found[1].message_id, found[1].reason, found[1].first_at) == ("m1", "http 422", found[1].last_at)
    later = Chosen(since=max(one.last_at for one in found) + 1)
    assert await world.database.read(partial(letters.groups, chosen=later, after=None, most=10)) == []


async def test_letters_that_are_put_back_are_delivered_without_a_restart(world: DeliveryWorld) -> None:
    service = await refused(world, m1=Rejected("http 422"), m2=Rejected("http 400"), m3=Rejected("http 422"))
    world.start()
    await world.until_idle()
    service.refused = {}
    assert await move(world, "retry", cause="http 422") == 2
    assert await settled(world) == (Settled(died=3, redriven=2), 2)
    await world.until(lambda: has_delivered(world, 2))
    await world.finish()
    assert world.tried() == [("m1", "m3")]
    assert await settled(world) == (Settled(delivered=2, died=3, redriven=2), 0)
    assert (await settled(world))[0].dead == 1


async def has_delivered(world: DeliveryWorld, count: int) -> bool:
    return (await world.book()).delivered == count


async def test_a_letter_that_is_put_back_goes_before_later_events_of_its_profile_that_wait(
    world: DeliveryWorld,
) -> None:
    again = Retry("http 503")
    world.add(by_id({"m1": [Rejected("http 422")], "m2": [again] * 3}))
    world.limits = replace(LIMITS, backoff=60.0, longest_backoff=60.0)
    await world.emit("m1")
    await world.emit("m2")
    world.start()

    async def waits() -> bool:
        return [one.state for one in await world.listed()] == ["dead", "retry"]

    await world.until(waits)
    await world.finish()
    world.did.clear()
    world.start()
    assert await move(world, "retry") == 1
    await world.until(lambda: has_delivered(world, 1))
    await world.finish()
    assert next(one.ids for one in world.did if isinstance(one, Tried)) == ("m1",)


async def test_what_dies_again_is_a_letter_again(world: DeliveryWorld) -> None:
    await refused(world, m1=Rejected("http 422"))
    assert await move(world, "retry") == 1
    await world.run_until_idle()
    assert world.tried() == [("m1",)]
    assert await settled(world) == (Settled(died=2, redriven=1), 0)
    assert [one.attempts for one in await world.listed()] == [2]


async def test_letters_that_are_purged_are_a_line_of_the_book_and_lose_their_bytes(world: DeliveryWorld) -> None:
    await refused(world, m1=Rejected("http 422"), m2=Rejected("http 400"))
    assert await move(world, "purge", cause="http 422") == 1
    assert await move(world, "retry", cause="http 422") == 0
    assert await settled(world) == (Settled(died=2, purged=1), 0)
    rows = {row.message_id: (row.state, row.value is None) for row in await world.rows(schema.exceptions)}
    assert rows == {"m1": ("purged", True), "m2": ("dead", False)}
    listed = await world.database.read(lambda c: exceptions_at(c, 0, [0]))
    told = outcome(0, 2, listed["crm", 0], None)
    assert (told.outcome, told.reason) == ("purged", "http 422")


async def test_many_letters_are_taken_up_a_few_at_a_time(world: DeliveryWorld) -> None:
    names = [f"m{number:02}" for number in range(30)]
    service = await refused(world, **{name: Rejected("http 422") for name in names})
    service.refused = {}
    await move(world, "retry")
    world.limits = replace(LIMITS, outstanding=7)
    most = 0

    async def done() -> bool:
        nonlocal most
        most = max(most, sum(one.state == "retry" for one in await world.listed()))
        return (await world.book()).delivered == 30

    world.start()
    await world.until(done)
    await world.finish()
    assert 1 <= most <= 7
    assert sorted(name for ids in world.tried() for name in ids) == names


async def test_a_former_owner_takes_nothing_up(world: DeliveryWorld) -> None:
    await refused(world, m1=Rejected("http 422"))
    await move(world, "retry")
    claims = await world.database.run(lambda c: ledger.claim(c, "crm", [0], 1))
    epoch = claims[0].epoch
    wanted = await world.database.run(lambda c: ledger.to_take_up(c, "crm", [0, 1], 10))
    late = await world.database.run(lambda c: ledger.take_up(c, "crm", {0: epoch - 1}, wanted))
    taken = await world.database.run(lambda c: ledger.take_up(c, "crm", {0: epoch}, wanted))
    assert (wanted, late, [one.offset for one in taken[0]]) == ({0: [0]}, {}, [0])


async def test_letters_are_taken_up_though_the_answer_to_that_was_lost(world: DeliveryWorld) -> None:
    await refused(world, m1=Rejected("http 422"), m2=Rejected("http 422"))
    await move(world, "retry")
    (claim,) = (await world.database.run(lambda c: ledger.claim(c, "crm", [0], 1))).values()
    wanted = await world.database.run(lambda c: ledger.to_take_up(c, "crm", [0], 10))
    taken = [await world.database.run(lambda c: ledger.take_up(c, "crm", {0: claim.epoch}, wanted)) for _ in range(2)]
    assert taken[0] == taken[1]
    assert [one.message_id for one in taken[0][0]] == ["m1", "m2"]


async def test_an_event_that_is_no_letter_cannot_be_moved(world: DeliveryWorld) -> None:
    await refused(world, m1=Rejected("http 422"))
    await world.database.run(lambda c: letters.put_back(c, "crm", [Place(0, 0), Place(0, 5), Place(3, 1)], 9))
    assert await world.database.run(lambda c: letters.put_back(c, "crm", [Place(0, 0)], 9)) == 0
    assert await world.database.run(lambda c: letters.give_up(c, "crm", [Place(0, 0)], 9)) == 0
    assert await settled(world) == (Settled(died=1, redriven=1), 1)


async def test_nothing_is_put_back_that_nobody_would_deliver(world: DeliveryWorld) -> None:
    await refused(world, m1=Rejected("http 422"))
    with pytest.raises(Refused) as caught:
        await api.retry(world.database, ["other"], {"destination": "crm"})
    assert (caught.value.code, caught.value.status) == ("unknown_destination", 409)
    assert await settled(world) == (Settled(died=1), 0)


async def test_pages_follow_each_other(world: DeliveryWorld) -> None:
    await refused(world, m1=Rejected("a: 1"), m2=Rejected("b"), m3=Rejected("a: 2"), m4=Rejected("c"))
    groups, query = [], {"limit": "2"}
    while True:
        page = await api.groups(world.database, query, "/x")
        groups.append([one.cause for one in page.data])
        if not page.cursor.has_more:
            break
        query["next"] = page.cursor.next
    assert groups == [["a", "b"], ["c"]]
    listed, query = [], {"limit": "1", "cause": "a"}
    while True:
        found = await api.listed(world.database, "crm", query, "/x")
        listed += [one.message_id for one in found.data]
        if not found.cursor.has_more:
            break
        query["next"] = found.cursor.next
    assert listed == ["m1", "m3"]
    with pytest.raises(Refused):
        await api.listed(world.database, "other", query, "/x")


async def test_a_letter_is_shown_with_its_event_and_its_bytes(world: DeliveryWorld) -> None:
    world.add(by_id({"m1": [Rejected("http 422")]}))
    value = await world.emit("m1", "ann", properties={"plan": "pro"})
    await world.run_until_idle()
    (shown,) = (await api.show(world.database, "m1")).letters
    assert (shown.destination, shown.profile, shown.cause, shown.attempts) == ("crm", "ann", "http 422", 1)
    assert shown.event is not None
    assert shown.event["properties"] == {"plan": "pro"}
    assert base64.b64decode(shown.record or "") == value
    assert "mapping or the service's schema" in shown.remedy
    with pytest.raises(Refused):
        await api.show(world.database, "m2")


async def test_a_letter_is_shown_with_the_latest_exchange_that_ended_so(world: DeliveryWorld) -> None:
    await refused(world, m1=Rejected("http 422: no such plan"))
    exchanges = [
        ("http 422", "no such plan", 5, "m0"),
        ("http 422", "too long", LATE, "m1"),
        ("http 400", "", LATE + 1, "m2"),
    ]
    rows = [("crm", *one, '{"body": 1}', "" if one[0] == "http 400" else '{"status": 422}') for one in exchanges]
    await world.database.run(lambda c: bulk.upsert(c, schema.destination_samples, rows))
    (shown,) = (await api.show(world.database, "m1")).letters
    assert shown.sample == ExchangeSample(
        at="2096-10-02T07:06:40.000Z", message_id="m1", request={"body": 1}, answer={"status": 422}
    )


async def test_groups_are_counted_in_the_index_of_the_dead(world: DeliveryWorld) -> None:
    if world.database.postgres:
        pytest.skip("the planner of PostgreSQL goes by how many rows there are")
    await refused(world, m1=Rejected("http 422"))
    statement = (
        "EXPLAIN QUERY PLAN SELECT destination, cause, count(*) FROM exceptions WHERE exceptions.state = 'dead' "
        "GROUP BY destination, cause ORDER BY destination, cause"
    )
    plan = await world.database.read(lambda c: [row.detail for row in c.exec_driver_sql(statement)])
    assert plan == ["SCAN exceptions USING COVERING INDEX exceptions_dead_by_cause"]
