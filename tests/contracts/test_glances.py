"""Look-ups on PostgreSQL from the event loop: the same answers as on any other connection, whatever becomes of the server's."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from socket import socketpair
from typing import Any

import pytest
from sqlalchemy import text

from pipeline.query.profile_api.look_up import LookUps
from pipeline.store import glances, profiles
from pipeline.store.database import Database
from pipeline.store.glances import Asking, Glances, Question
from pipeline.store.migrate import migrate
from schemas.errors import Unavailable
from tests.contracts.test_intake import batch, event, put

pytestmark = pytest.mark.postgres
_ENDED = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'millrace' AND state = 'idle'"
_BROKEN_OFF = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"
)
_OURS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'millrace' AND query LIKE '%$1::json%' AND pid <> pg_backend_pid()"


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    made = Database(postgres_url, threads=2)
    migrate(made)
    yield made
    made.close()


@pytest.fixture
async def looking(database: Database) -> AsyncIterator[Glances]:
    made = Glances(database)
    yield made
    await made.close()


def echo(value: str) -> Asking[list[tuple[Any, ...]]]:
    rows = yield Question("SELECT 'ä'::text, 7::bigint, NULL::text WHERE 'x'::text {}", [value])
    return rows


async def test_people_are_found_by_every_id_and_by_profiles_that_were_absorbed(
    database: Database, looking: Glances
) -> None:
    put(database, batch(event("m1", user="u1"), event("m2", anonymous="a2"), event("m3", user="u1", anonymous="a2")))
    everybody = database.read_sync(lambda c: c.execute(text("SELECT id FROM profiles")).scalars().all())
    wanted = ["user_id:u1", "anonymous_id:a2", "user_id:nobody", "use_nobody", *everybody]

    found = await looking.answer(lambda: profiles.asking_for_heads(wanted))

    assert found == database.read_sync(lambda c: profiles.heads(c, wanted))
    assert set(found) == {"user_id:u1", "anonymous_id:a2", *everybody}
    assert len(everybody) == 2


async def test_values_come_as_the_driver_gives_them(looking: Glances) -> None:
    assert await looking.answer(lambda: echo("x")) == [("ä", 7, None)]
    assert await looking.answer(lambda: echo("'; DROP TABLE nodes; --")) == []


async def test_a_question_that_fills_the_connection_is_answered(looking: Glances) -> None:
    values = [f"{number:06d}" * 100 for number in range(10_000)]

    def sizes() -> Asking[Any]:
        rows = yield Question(
            "SELECT count(*), sum(length(v)) FROM (VALUES ('a'), ('b')) AS t(v) WHERE NOT v {}", values
        )
        return rows[0]

    assert await asyncio.wait_for(looking.answer(sizes), 30) == (2, 2)


async def test_a_connection_that_the_server_ended_is_replaced(database: Database, looking: Glances) -> None:
    assert await looking.answer(lambda: echo("x"))
    database.run_sync(lambda c: c.execute(text(_ENDED)).all())
    assert await looking.answer(lambda: echo("x")) == [("ä", 7, None)]


async def test_the_socket_of_a_connection_that_ended_while_nobody_used_it_is_free_for_others(
    database: Database, looking: Glances, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, heard = asyncio.Event(), asyncio.Event()
    readable = glances._Line._readable

    def noted(line: Any) -> None:
        readable(line)
        ended.set()

    monkeypatch.setattr(glances._Line, "_readable", noted)
    await looking.answer(lambda: echo("x"))
    ended.clear()
    database.run_sync(lambda c: c.execute(text(_ENDED)).all())
    await asyncio.wait_for(ended.wait(), 10)
    for _ in range(100):  # what the server said last comes before its end
        await asyncio.sleep(0)
    one, other = socketpair()  # the system gives the number that is free
    with one, other:
        for end in (one, other):
            asyncio.get_running_loop().add_reader(end, heard.set)
            (other if end is one else one).send(b"x")
            await asyncio.wait_for(heard.wait(), 10)
            asyncio.get_running_loop().remove_reader(end)
            heard.clear()


async def test_what_the_server_refuses_is_an_error_and_the_next_question_is_not(looking: Glances) -> None:
    def wrong() -> Asking[None]:
        yield Question("SELECT nothing FROM nowhere WHERE 'x' {}", ["x"])

    with pytest.raises(Exception, match="nowhere"):
        await looking.answer(wrong)
    assert await looking.answer(lambda: echo("x"))


async def test_a_server_that_is_not_there_is_an_outage(tmp_path: Path) -> None:
    database = Database(f"postgresql://nobody@/nothing?host={tmp_path}")
    with pytest.raises(Unavailable, match="cannot be reached"):
        await Glances(database).answer(lambda: echo("x"))
    database.close()


async def test_an_answer_that_the_server_breaks_off_is_an_outage(database: Database, looking: Glances) -> None:
    def slow() -> Asking[Any]:
        rows = yield Question("SELECT pg_sleep(20)::text WHERE 'x'::text {}", ["x"])
        return rows

    asked = asyncio.ensure_future(looking.answer(slow))
    while not await database.run(lambda c: c.execute(text(_BROKEN_OFF)).all()):
        assert not asked.done()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(asked, 10)
    assert await looking.answer(lambda: echo("x")) == [("ä", 7, None)]


async def test_whoever_gives_up_leaves_no_answer_to_the_next(looking: Glances) -> None:
    def slow() -> Asking[Any]:
        rows = yield Question("SELECT pg_sleep(5)::text WHERE 'x'::text {}", ["x"])
        return rows

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(looking.answer(slow), 0.05)
    assert await looking.answer(lambda: echo("x")) == [("ä", 7, None)]


async def test_many_askers_share_two_connections(database: Database) -> None:
    put(database, batch(*(event(f"m{number}", user=f"u{number}") for number in range(40))))
    look_ups = LookUps(database)
    for _ in range(3):
        found = await asyncio.gather(*(look_ups.one(f"user_id:u{number}") for number in range(40)))
        assert len({head.id for head in found}) == 40
    assert 1 <= database.read_sync(lambda c: c.execute(text(_OURS)).scalar_one()) <= 2
    await look_ups.close()
