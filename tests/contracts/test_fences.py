"""What an event's ids were of before: noted with the event, the same after a crash, gone once it is emitted."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import Connection, select

from pipeline.corrections import event_of
from pipeline.identity import DEFAULT, Rules
from pipeline.log import Batch, Record
from pipeline.parse import Work, parse
from pipeline.store import ledger, partings, schema, splits
from pipeline.store.database import Database
from pipeline.store.intake import Emission, apply
from pipeline.store.ledger import Progress, Row, Standing
from schemas.changes import Cause, ProfileChange
from schemas.events import Event, ExternalId, Fence, Origin, encode_event, encode_resolved
from schemas.identity import IdentityConfig, IdTypeConfig
from tests.stores import prepare


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    postgres = request.param == "postgres"
    url = request.getfixturevalue("postgres_url") if postgres else f"sqlite:///{tmp_path}/millrace.sqlite"
    opened = Database(url, threads=2)
    prepare(opened)
    yield opened
    opened.close()


def event(number: int, anonymous: str | None, user: str | None = None, kind: str = "track", **more: Any) -> Record:
    body = {"type": kind, "messageId": f"m{number}", "event": "Clicked", **more}
    one = Event(
        "web", kind, f"m{number}", anonymous, user, number, None, number, "client", None, None, orjson.dumps(body)
    )
    return Record(one.key, encode_event(one), 0, number)


def poll(*records: Record, rules: Rules = DEFAULT) -> Work:
    return parse([Batch("events", 0, records, records[-1].offset + 1)], rules=rules)


def applied(database: Database, work: Work, emitted: int = 0, rules: Rules = DEFAULT) -> list[Emission]:
    return database.run_sync(lambda connection: apply(connection, work, {0: emitted}, rules))


def kept(database: Database) -> list[tuple[int, int, str]]:
    table = schema.fences
    rows = database.read_sync(lambda connection: connection.execute(select(table).order_by(table.c.offset)).all())
    return [(row.partition, row.offset, row.profile) for row in rows]


# A phone that is known as u1's, a laptop that is not yet; then u1 logs in on the laptop.
PHONE, LAPTOP = event(0, "phone", "u1"), event(1, "laptop")
LOGIN = event(2, "laptop", "u1", "identify")


def test_the_event_that_merges_leaves_the_absorbed_profile(database: Database) -> None:
    phone, laptop, login = applied(database, poll(PHONE, LAPTOP, LOGIN))
    assert (login.profile, login.left) == (phone.profile, [laptop.profile])
    assert (phone.left, laptop.left) == ((), ())


def test_the_first_event_of_each_other_device_of_the_absorbed_profile_leaves_it_too(database: Database) -> None:
    """Another member of the pipeline may emit it, and has the earlier ones of that device to emit before."""
    traits = {"email": "kim@example.com"}
    laptop, tablet = (event(at, one, None, "identify", traits=traits) for at, one in ((1, "laptop"), (2, "tablet")))
    login, first, second = event(3, "laptop", "u1"), event(4, "tablet"), event(5, "tablet")
    _, absorbed, _, *rest = applied(database, poll(PHONE, laptop, tablet, login, first, second))
    assert [one.left for one in rest] == [[absorbed.profile], [absorbed.profile], ()]


def test_the_first_event_of_a_server_leaves_what_a_device_merged(database: Database) -> None:
    """The device has named its user before; but the server's events are in a partition of their own."""
    laptop, server = applied(database, poll(event(0, "laptop"), event(1, None, "u1")))
    login, more, *rest = applied(
        database,
        poll(
            event(2, "laptop", "u1", "identify"), event(3, "laptop", "u1"), event(4, None, "u1"), event(5, None, "u1")
        ),
    )
    assert login.profile == laptop.profile
    assert (login.left, more.left) == ([server.profile], ())
    assert [(one.profile, one.left) for one in rest] == [(laptop.profile, [server.profile]), (laptop.profile, ())]


def test_an_id_in_another_spelling_is_the_same(database: Database) -> None:
    laptop, server = applied(database, poll(event(0, "laptop"), event(1, None, " u1")))
    *_, next_of_server = applied(database, poll(event(2, "laptop", "u1", "identify"), event(3, None, " u1")))
    assert (next_of_server.profile, next_of_server.left) == (laptop.profile, [server.profile])


def test_the_first_event_of_a_device_whose_id_is_blocked_leaves_what_its_user_was(database: Database) -> None:
    """There is no id of its own to tell the first by."""
    before, placeholder = applied(database, poll(event(0, "laptop"), event(1, "null", "u1")))
    linking = event(2, "laptop", None, "identify", traits={"email": "kim@example.com"})
    login = event(3, "null", "u1", "identify", traits={"email": "kim@example.com"})
    _, merging, more, server = applied(database, poll(linking, login, event(4, "null", "u1"), event(5, None, "u1")))
    assert merging.profile == before.profile
    assert [one.left for one in (merging, more, server)] == [[placeholder.profile], (), [placeholder.profile]]


def test_a_device_that_has_another_owner_leaves_the_one_before(database: Database) -> None:
    rules = Rules(IdentityConfig(types={"anonymous_id": IdTypeConfig(latest_owner=True)}))
    records = [event(0, "tablet", "u1"), event(1, "tablet", "u2"), event(2, "tablet", "u2")]
    first, *rest = applied(database, poll(*records, rules=rules), rules=rules)
    assert [(one.profile != first.profile, one.left) for one in rest] == [(True, [first.profile]), (True, ())]


def test_a_device_that_changes_hands_leaves_what_its_events_stand_under(database: Database) -> None:
    """Its owner was absorbed since it came last."""
    rules = Rules(IdentityConfig(types={"anonymous_id": IdTypeConfig(latest_owner=True)}))
    traits = {"email": "kim@example.com"}
    _, tablet, _, other = applied(
        database,
        poll(
            event(0, None, None, "identify", traits=traits),
            event(1, "tablet", "u1"),
            event(2, None, "u1", "identify", traits=traits),
            event(3, "tablet", "u2"),
            rules=rules,
        ),
        rules=rules,
    )
    assert tablet.profile in other.left


def test_what_is_applied_again_leaves_what_it_left_then(database: Database) -> None:
    first = applied(database, poll(PHONE, LAPTOP, LOGIN))
    again = applied(database, poll(LAPTOP, LOGIN, event(3, "laptop", "u1")))
    assert [one.left for one in again] == [(), first[-1].left, ()]


def test_what_is_emitted_is_forgotten_when_more_is_kept(database: Database) -> None:
    applied(database, poll(PHONE, LAPTOP, LOGIN))
    assert [offset for _, offset, _ in kept(database)] == [2]
    applied(database, poll(event(3, "tv")), emitted=3)
    assert [offset for _, offset, _ in kept(database)] == [2]
    applied(database, poll(event(4, "tv", "u1")), emitted=4)
    assert [offset for _, offset, _ in kept(database)] == [4]


# ── In the ledger ─────────────────────────────────────────────────────────────────────────────────────────────────


def listed(offset: int, state: str, profile: str, fences: list[Fence] | None = None) -> Row:
    one = Event("web", "track", f"m{offset}", profile, None, 1, None, 1, "client", None, None, b"{}")
    value = encode_resolved(profile, Origin(0, offset), (), encode_event(one), fences=fences or ())
    return Row(offset, state, "web", profile, f"m{offset}", 0, "", 1, 1, value)


def write(database: Database, partition: int, offset: int, *rows: Row) -> None:
    def written(connection: Connection) -> frozenset[int]:
        (owned,) = ledger.claim(connection, "crm", [partition], 1).values()
        progress = Progress(partition, owned.epoch, offset, {}, None, {}, rows, [], owned.writes)
        return ledger.record(connection, "crm", 1, [progress])

    assert database.run_sync(written) == frozenset()


def test_who_takes_a_partition_over_gets_the_fences_of_what_is_held(database: Database) -> None:
    """What was tried has its fences behind it."""
    fence = [Fence("bob", 1, 7)]
    write(database, 0, 3, listed(0, "held", "ann", fence), listed(1, "retry", "eve", fence), listed(2, "held", "dan"))
    (owned,) = database.run_sync(lambda connection: ledger.claim(connection, "crm", [0], 1)).values()
    assert owned.fences == {0: tuple(fence)}


def test_the_ledger_tells_how_far_a_destination_is_and_what_of_whom_is_outstanding(database: Database) -> None:
    write(database, 0, 9, listed(4, "held", "bob"), listed(2, "retry", "bob"), listed(1, "dead", "bob"))
    write(database, 1, 5, listed(3, "dead", "eve"))
    standing = database.read_sync(lambda connection: ledger.standing(connection, "crm", [(0, "bob"), (1, "eve")]))
    assert standing == Standing({0: 9, 1: 5}, {(0, "bob"): 2})


# ── Across a split ────────────────────────────────────────────────────────────────────────────────────────────────


def taken_apart(database: Database) -> tuple[str, str]:
    """A laptop that was taken out of the phone's profile again, and the two profiles."""
    emissions = applied(database, poll(PHONE, LAPTOP, LOGIN))
    split = database.run_sync(lambda connection: splits.unmerge_ids(connection, A_PHONE, A_LAPTOP, DEFAULT).split)
    assert split.profile == emissions[0].profile
    return split.profile, split.other


A_PHONE, A_LAPTOP = ExternalId("anonymous_id", "phone"), ExternalId("anonymous_id", "laptop")


def test_after_a_split_the_first_event_waits_for_what_the_whole_had(database: Database) -> None:
    whole, other = taken_apart(database)
    phone, first, second = applied(database, poll(event(3, "phone"), event(4, "laptop"), event(5, "laptop")))
    assert [(one.profile, one.left) for one in (phone, first, second)] == [(whole, ()), (other, [whole]), (other, ())]


def test_what_waits_after_a_split_waits_for_the_same_after_a_crash(database: Database) -> None:
    whole, _ = taken_apart(database)
    applied(database, poll(event(3, "laptop")))
    (again,) = applied(database, poll(event(3, "laptop")))
    assert again.left == [whole]


def test_each_partition_of_events_waits_once_since_another_member_may_emit_it(database: Database) -> None:
    def of(partition: int, *records: Record) -> Work:
        return parse([Batch("events", partition, records, records[-1].offset + 1)])

    applied(database, of(1, event(10, "tablet")))
    whole, _ = taken_apart(database)
    (there,) = applied(database, of(1, event(11, "laptop")))
    here, later = applied(database, poll(event(3, "laptop"), event(4, "laptop")))
    (last,) = applied(database, poll(event(5, "laptop")))
    assert [one.left for one in (there, here, later, last)] == [[whole], [whole], (), ()]


def test_what_destinations_are_told_of_a_split_waits_too_and_stands_for_nobody_else(database: Database) -> None:
    whole, other = taken_apart(database)
    (told,) = database.read_sync(splits.pending)
    ours = next(event_of(one, 6) for one in told.corrections if one.profile == other)
    correction = Record(ours.key, encode_event(ours), 0, 3)
    assert [one.left for one in applied(database, poll(correction, event(4, "laptop")))] == [[whole], [whole]]


def test_a_profile_that_is_whole_again_waits_for_what_its_part_had(database: Database) -> None:
    whole, other = taken_apart(database)
    applied(database, poll(event(3, "laptop")))
    (told,) = database.read_sync(splits.pending)
    database.run_sync(lambda connection: splits.remerge(connection, told.name, DEFAULT))
    first, second = applied(database, poll(event(4, "laptop"), event(5, "laptop")))
    assert [(one.profile, one.left) for one in (first, second)] == [(whole, [other]), (whole, ())]


def test_a_part_that_merges_before_it_sent_anything_waits_for_the_whole_as_well(database: Database) -> None:
    whole, other = taken_apart(database)
    tv, joined = applied(database, poll(event(3, "tv", "u2"), event(4, "laptop", "u2", "identify")))
    assert joined.profile in (tv.profile, other)
    assert whole in joined.left


def parted(profile: str, other: str, collection: str = "users") -> ProfileChange:
    cause = Cause("web", "m3", "identify", 3, 3)
    return ProfileChange("c1", "unmerged", profile, 3, cause, collection, other, ids=[A_LAPTOP])


def test_a_part_that_merges_into_the_whole_does_not_wait_for_itself(database: Database) -> None:
    whole, part = (one.profile for one in applied(database, poll(PHONE, LAPTOP)))
    database.run_sync(lambda connection: partings.note(connection, [parted(part, whole)], 3))
    (joined,) = applied(database, poll(LOGIN))
    assert (joined.profile, joined.left) == (whole, [part])


def test_a_part_of_a_part_waits_for_the_whole_as_well(database: Database) -> None:
    """Nothing came from the part before it was taken apart itself."""
    whole, part = (one.profile for one in applied(database, poll(PHONE, LAPTOP)))
    for profile, other in ((part, whole), ("use_tv", part)):
        database.run_sync(partial(partings.note, changes=[parted(profile, other)], at=3))
    rows = database.read_sync(lambda connection: connection.execute(select(schema.partings)).all())
    assert {(row.profile, row.left_profile) for row in rows} == {(part, whole), ("use_tv", part), ("use_tv", whole)}


def test_nobody_waits_for_an_account_that_was_taken_apart(database: Database) -> None:
    applied(database, poll(PHONE))
    database.run_sync(lambda connection: partings.note(connection, [parted("acc_1", "acc_2", "accounts")], 3))
    assert database.read_sync(lambda connection: connection.execute(select(schema.partings)).all()) == []


def test_what_nobody_waits_for_any_more_is_forgotten(database: Database) -> None:
    taken_apart(database)
    late = partings.KEPT + 2 * 10**18
    database.run_sync(lambda connection: partings.note(connection, [], late))
    assert database.read_sync(lambda connection: connection.execute(select(schema.partings)).all()) == []
