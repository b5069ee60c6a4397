"""The warehouse in a DuckDB file, seen as whoever queries it sees it."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import duckdb
import pytest

import destinations.warehouse.duckdb.destination as module
from destinations.contract import DELIVERED, Env, Outcome, Rejected, Retry
from destinations.warehouse.duckdb.destination import Warehouse, check, connect, load_events
from destinations.warehouse.duckdb.file import open_file, refusal_of
from destinations.warehouse.duckdb.settings import DuckDBSettings
from schemas.errors import Unavailable

NOW = 1767225600.0  # 2026-01-01T00:00:00Z
Rows = list[tuple[Any, ...]]


@asynccontextmanager
async def warehouse(folder: Path, **settings: Any) -> AsyncIterator[Warehouse]:
    env = Env(http=cast(Any, None), now=lambda: NOW, folder=str(folder))
    async with connect(DuckDBSettings.model_validate(settings), env) as opened:
        yield opened


async def load(folder: Path, *batches: Sequence[dict[str, Any]], **settings: Any) -> list[Outcome]:
    """The outcomes of all batches; the file is closed afterwards."""
    async with warehouse(folder, **settings) as opened:
        return [outcome for batch in batches for outcome in await load_events(opened, batch)]


def query(folder: Path, sql: str) -> Rows:
    with duckdb.connect(str(folder / "warehouse.duckdb"), read_only=True) as con:
        return con.execute(sql).fetchall()


def columns(folder: Path, table: str) -> dict[str, str]:
    return {row[0]: row[1] for row in query(folder, f"DESCRIBE {table}")}


def at(seconds: int) -> str:
    return f"2026-01-01T00:{seconds // 60:02}:{seconds % 60:02}.000Z"


def call(kind: str, message_id: str, seconds: int = 0, **fields: Any) -> dict[str, Any]:
    times = {"timestamp": at(seconds), "receivedAt": at(seconds), "originalTimestamp": at(seconds)}
    return {"type": kind, "messageId": message_id, "source": "shop", "profileId": "p1"} | times | fields


def track(message_id: str, event: str = "Seat Booked", **properties: Any) -> dict[str, Any]:
    return call("track", message_id, event=event, properties=properties)


def identify(message_id: str, seconds: int, user: str | None = "u1", **traits: Any) -> dict[str, Any]:
    return call("identify", message_id, seconds, userId=user, traits=traits)


# ── Tables and columns ────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_track_is_in_tracks_and_in_its_events_table(tmp_path: Path) -> None:
    event = track("m1", seatNo=12, price=9.5, vip=True, extras=["meal"], booked="2026-01-01T02:00:00+02:00")
    assert await load(tmp_path, [event | {"context": {"app": {"version": "2.1"}}}]) == [DELIVERED]
    assert query(tmp_path, "SELECT id, event, event_text, context_app_version, profile_id FROM shop.tracks") == [
        ("m1", "seat_booked", "Seat Booked", "2.1", "p1")
    ]
    assert columns(tmp_path, "shop.seat_booked") == {
        **dict.fromkeys(("id", "anonymous_id", "user_id", "profile_id", "event", "event_text"), "VARCHAR"),
        **dict.fromkeys(("received_at", "sent_at", "original_timestamp", "timestamp", "uuid_ts"), "TIMESTAMP"),
        "context_app_version": "VARCHAR",
        "seat_no": "BIGINT",
        "price": "DOUBLE",
        "vip": "BOOLEAN",
        "extras": "VARCHAR",
        "booked": "TIMESTAMP",
    }
    assert query(tmp_path, "SELECT seat_no, price, vip, extras, booked::VARCHAR, uuid_ts::VARCHAR FROM shop.seat_booked") == [
        (12, 9.5, True, '["meal"]', "2026-01-01 00:00:00", "2026-01-01 00:00:00")
    ]  # fmt: skip


async def test_each_source_has_a_schema_of_its_own(tmp_path: Path) -> None:
    events = [track("m1") | {"source": source} for source in ("shop", "my-app", "my_app", "main")]
    assert await load(tmp_path, events, events) == [DELIVERED] * 8
    found = query(
        tmp_path, "SELECT schema_name, comment FROM duckdb_tables() WHERE table_name = '_loaded' ORDER BY ALL"
    )
    assert [(schema[:7], comment) for schema, comment in found] == [
        ("my_app", "my-app"),
        ("my_app_", "my_app"),
        ("shop", "shop"),
        ("source_", "main"),
    ]
    assert all(query(tmp_path, f"SELECT count(*) FROM {schema}.tracks") == [(1,)] for schema, _ in found)


async def test_5_then_a_fraction_then_a_word_widens_and_loses_nothing(tmp_path: Path) -> None:
    await load(tmp_path, [track("m1", x=5)], [track("m2", x=5.5)])
    assert columns(tmp_path, "shop.seat_booked")["x"] == "DOUBLE"
    await load(tmp_path, [track("m3", x="n/a")])
    assert columns(tmp_path, "shop.seat_booked")["x"] == "VARCHAR"
    assert query(tmp_path, "SELECT x FROM shop.seat_booked ORDER BY id") == [("5",), ("5.5",), ("n/a",)]


async def test_a_fraction_does_not_cost_large_integers_their_digits(tmp_path: Path) -> None:
    await load(tmp_path, [track("m1", x=2**53 + 1)], [track("m2", x=0.5)])
    assert query(tmp_path, "SELECT x FROM shop.seat_booked ORDER BY id") == [(str(2**53 + 1),), ("0.5",)]


async def test_a_column_comes_with_its_first_value(tmp_path: Path) -> None:
    await load(tmp_path, [track(f"n{number}", x=None) for number in range(1_000)])
    assert "x" not in columns(tmp_path, "shop.seat_booked")
    await load(tmp_path, [track("m1", x=None), track("m2", x="x")])
    assert query(tmp_path, "SELECT count(*), count(x) FROM shop.seat_booked") == [(1_002, 1)]


async def test_a_time_that_is_none_is_kept_as_text(tmp_path: Path) -> None:
    await load(tmp_path, [track("m1", x="2026-01-01T00:00:00+02:00")], [track("m2", x="2025-13-40T00:00:00Z")])
    assert query(tmp_path, "SELECT x FROM shop.seat_booked ORDER BY id") == [
        ("2025-12-31T22:00:00.000000Z",),
        ("2025-13-40T00:00:00Z",),
    ]


async def test_a_clients_timestamp_in_any_form_is_a_time_or_is_kept(tmp_path: Path) -> None:
    given = ["2026-01-01T02:00:00.5+02:00", "2026-01-01", "yesterday", 5, None]
    await load(tmp_path, [track(f"m{n}") | {"originalTimestamp": one} for n, one in enumerate(given)])
    assert query(tmp_path, "SELECT original_timestamp::VARCHAR, _overflow FROM shop.tracks ORDER BY id") == [
        ("2026-01-01 00:00:00.5", None),
        ("2026-01-01 00:00:00", None),
        (None, '{"original_timestamp":"yesterday"}'),
        (None, '{"original_timestamp":5}'),
        (None, None),
    ]


async def test_an_event_called_users_leaves_users_alone(tmp_path: Path) -> None:
    await load(tmp_path, [identify("m1", 1, plan="pro"), track("m2", "Users", plan="none")])
    assert query(tmp_path, "SELECT id, plan FROM shop.users") == [("u1", "pro")]
    assert query(tmp_path, "SELECT plan FROM shop.event_users") == [("none",)]


async def test_names_that_sql_reserves_or_that_are_taken_are_usable(tmp_path: Path) -> None:
    await load(tmp_path, [track("m1", "Select", order=1, userId="x", **{'we"ird': 2, "购买": 3})])
    assert query(tmp_path, 'SELECT "order", _user_id, we_ird, col_cc6f86bd FROM shop."select"') == [(1, "x", 2, 3)]
    comments = query(tmp_path, "SELECT comment FROM duckdb_columns() WHERE comment IS NOT NULL ORDER BY ALL")
    assert comments == [("properties.userId",), ("properties.购买",)]


async def test_an_event_named_with_an_emoji_has_a_table_and_keeps_its_name(tmp_path: Path) -> None:
    await load(tmp_path, [track("m1", "🛒")])
    ((table,),) = query(tmp_path, "SELECT event FROM shop.tracks")
    assert query(tmp_path, f"SELECT event_text FROM shop.{table}") == [("🛒",)]
    assert query(tmp_path, f"SELECT comment FROM duckdb_tables() WHERE table_name = '{table}'") == [("🛒",)]


async def test_columns_without_room_go_to_the_overflow(tmp_path: Path) -> None:
    assert await load(tmp_path, [track("m1", a=1, b=2), track("m2", c=[3], a=4)], max_columns=2) == [DELIVERED] * 2
    assert query(tmp_path, "SELECT a, b, _overflow FROM shop.seat_booked ORDER BY id") == [
        (1, 2, None),
        (4, None, '{"c":[3]}'),
    ]


async def test_the_overflow_takes_no_room_of_others(tmp_path: Path) -> None:
    stray = track("m1", a=1) | {"originalTimestamp": "noon"}
    assert await load(tmp_path, [stray], [track("m2", b=2)], max_columns=2) == [DELIVERED] * 2
    assert query(tmp_path, "SELECT a, b, _overflow FROM shop.seat_booked ORDER BY id") == [
        (1, None, '{"original_timestamp":"noon"}'),
        (None, 2, None),
    ]


async def test_event_names_without_room_stay_in_tracks_with_their_properties(tmp_path: Path) -> None:
    events = [track("m1", "One", x=1), track("m2", "Two", x=2), track("m3", "Three", x=3), track("m4", "One", x=4)]
    assert await load(tmp_path, events, max_tables=2) == [DELIVERED] * 4
    assert query(tmp_path, "SELECT event_text, _overflow FROM shop.tracks ORDER BY id") == [
        ("One", None),
        ("Two", None),
        ("Three", '{"properties":{"x":3}}'),
        ("One", None),
    ]
    assert query(tmp_path, "SELECT x FROM shop.one ORDER BY id") == [(1,), (4,)]


# ── Users and accounts ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("apart", [True, False])
async def test_a_late_identify_fills_and_does_not_regress(tmp_path: Path, apart: bool) -> None:
    events = [identify("m1", 100, plan="pro"), identify("m2", 50, plan="free", city="Oulu")]
    await load(tmp_path, *([[one] for one in events] if apart else [events]))
    assert query(tmp_path, "SELECT id, plan, city, received_at::VARCHAR FROM shop.users") == [
        ("u1", "pro", "Oulu", "2026-01-01 00:01:40")
    ]
    assert query(tmp_path, "SELECT count(*) FROM shop.identifies") == [(2,)]


async def test_an_explicit_null_clears_a_trait_and_an_absent_one_keeps_it(tmp_path: Path) -> None:
    await load(tmp_path, [identify("m1", 1, plan="pro", city="Oulu")], [identify("m2", 2, plan=None)])
    assert query(tmp_path, "SELECT plan, city FROM shop.users") == [(None, "Oulu")]
    await load(tmp_path, [identify("m3", 1, plan="late")])
    assert query(tmp_path, "SELECT plan, city FROM shop.users") == [(None, "Oulu")]


async def test_an_anonymous_identify_makes_no_user(tmp_path: Path) -> None:
    await load(tmp_path, [identify("m1", 1, None, plan="pro"), identify("m2", 2, "u2", plan="free")])
    assert query(tmp_path, "SELECT id, plan FROM shop.users") == [("u2", "free")]
    assert query(tmp_path, "SELECT count(*) FROM shop.identifies") == [(2,)]


async def test_users_have_no_columns_of_single_events(tmp_path: Path) -> None:
    await load(tmp_path, [identify("m1", 1, plan="pro") | {"context": {"ip": "1.2.3.4"}, "anonymousId": "a1"}])
    assert set(columns(tmp_path, "shop.users")) == {
        *("id", "profile_id", "received_at", "uuid_ts", "_key", "_clock", "context_ip", "plan")
    }


async def test_a_trait_of_users_widens_with_what_is_there(tmp_path: Path) -> None:
    await load(tmp_path, [identify("m1", 1, "u1", age=30), identify("m2", 1, "u2", age=31)])
    await load(tmp_path, [identify("m3", 2, "u1", age="unknown")])
    assert query(tmp_path, "SELECT id, age FROM shop.users ORDER BY id") == [("u1", "unknown"), ("u2", "31")]


async def test_accounts_hold_the_latest_traits_of_each_group(tmp_path: Path) -> None:
    first = call("group", "m1", 2, groupId="g1", userId="u1", traits={"plan": "pro"})
    late = call("group", "m2", 1, groupId="g1", userId="u2", traits={"plan": "free", "seats": 5})
    await load(tmp_path, [first], [late])
    assert query(tmp_path, "SELECT id, plan, seats FROM shop.accounts") == [("g1", "pro", 5)]


async def test_one_users_change_leaves_the_others_alone(tmp_path: Path) -> None:
    await load(tmp_path, [identify(f"m{n}", 1, f"u{n}", plan=n) for n in range(300)])
    await load(tmp_path, [identify("late", 2, "u7", plan=-1)])
    assert query(tmp_path, "SELECT count(*), count(DISTINCT id), sum(plan) FROM shop.users") == [
        (300, 300, sum(range(300)) - 7 - 1)
    ]


# ── Once, whatever happens ────────────────────────────────────────────────────────────────────────────────────────


async def test_ten_copies_in_three_batches_are_one_row(tmp_path: Path) -> None:
    copies = [track("m1") | {"receivedAt": f"2026-01-0{day}T00:00:00.000Z"} for day in (1, 3, 5)]
    assert await load(tmp_path, [copies[0]] * 4, [copies[1]] * 3) == [DELIVERED] * 7
    assert await load(tmp_path, [copies[2]] * 3) == [DELIVERED] * 3
    assert query(tmp_path, "SELECT count(*) FROM shop.tracks") == [(1,)]
    assert query(tmp_path, "SELECT count(*) FROM shop.seat_booked") == [(1,)]


async def test_of_copies_in_one_batch_the_first_counts(tmp_path: Path) -> None:
    await load(tmp_path, [track("m1", seat=1), track("m1", seat=2), track("m1", seat=3)])
    assert query(tmp_path, "SELECT seat FROM shop.seat_booked") == [(1,)]


async def test_sources_do_not_share_message_ids(tmp_path: Path) -> None:
    await load(tmp_path, [track("m1"), track("m1") | {"source": "app"}])
    assert query(tmp_path, "SELECT (SELECT count(*) FROM shop.tracks), (SELECT count(*) FROM app.tracks)") == [(1, 1)]


async def test_a_crash_before_the_commit_leaves_nothing_and_a_rerun_everything(tmp_path: Path) -> None:
    """Dies with every row inserted and every column altered; the commit is all that is missing."""
    await load(tmp_path, [track("m0", x=1)])
    program = f"""
        import os
        from destinations.contract import Env
        from destinations.warehouse.duckdb.destination import Warehouse
        from destinations.warehouse.duckdb.load import Load
        from destinations.warehouse.duckdb.settings import DuckDBSettings
        events = {[track("m1", x="wide"), identify("m2", 1, plan="pro")]!r}
        env = Env(http=None, now=lambda: 0.0, folder={str(tmp_path)!r})
        warehouse = Warehouse(DuckDBSettings(), env, None)
        Load._note = lambda *args: os.kill(os.getpid(), {signal.SIGKILL.value})
        warehouse.load(events)
    """
    died = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert columns(tmp_path, "shop.seat_booked")["x"] == "BIGINT"
    assert query(tmp_path, "SELECT id FROM shop.tracks") == [("m0",)]
    await load(tmp_path, [track("m1", x="wide"), identify("m2", 1, plan="pro")])
    assert query(tmp_path, "SELECT id, x FROM shop.seat_booked ORDER BY id") == [("m0", "1"), ("m1", "wide")]
    assert query(tmp_path, "SELECT id FROM shop.users") == [("u1",)]


async def test_a_load_that_failed_leaves_the_next_one_a_clean_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the transaction made of the schema is forgotten with it."""

    def broken(*_: Any) -> None:
        raise RuntimeError("broken")

    async with warehouse(tmp_path) as opened:
        with monkeypatch.context() as patch:
            patch.setattr("destinations.warehouse.duckdb.load.Load._note", broken)
            with pytest.raises(RuntimeError, match="broken"):
                await load_events(opened, [track("m1", x=1)])
        assert await load_events(opened, [track("m1", x=1)]) == [DELIVERED]
    assert query(tmp_path, "SELECT x FROM shop.seat_booked") == [(1,)]


async def test_an_event_that_cannot_be_rows_is_rejected_alone(tmp_path: Path) -> None:
    bad = track("m2") | {"receivedAt": "not a time"}
    nameless = call("track", "m4")
    batch = [track("m1"), bad, track("m3"), nameless, track("m5")]
    expected = [DELIVERED, Rejected("cannot be a row: ValueError"), DELIVERED]
    assert await load(tmp_path, batch) == [*expected, Rejected("track without an event name"), DELIVERED]
    assert query(tmp_path, "SELECT id FROM shop.tracks ORDER BY id") == [("m1",), ("m3",), ("m5",)]


# ── The file and the others ───────────────────────────────────────────────────────────────────────────────────────

HOLDER = "import duckdb, sys; con = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"


async def test_a_file_that_another_program_holds_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "warehouse.duckdb"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        async with warehouse(tmp_path) as opened:
            locked = Retry("warehouse file is locked by another program", 2.0)
            assert await load_events(opened, [track("m1"), track("m2")]) == [locked, locked]
            with pytest.raises(Unavailable, match="locked by another program"):
                await check(opened)
            holder.communicate()
            assert await load_events(opened, [track("m1"), track("m2")]) == [DELIVERED, DELIVERED]


async def test_the_file_is_closed_when_there_is_no_more_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE", 0.0)
    async with warehouse(tmp_path) as opened:
        await load_events(opened, [track("m1")])
        async with asyncio.timeout(10):
            while opened.file is not None:
                await asyncio.get_running_loop().run_in_executor(opened.thread, lambda: None)
        assert query(tmp_path, "SELECT count(*) FROM shop.tracks") == [(1,)]
        assert await load_events(opened, [track("m2")]) == [DELIVERED]


async def test_the_file_stays_open_where_there_was_more_work_since(tmp_path: Path) -> None:
    async with warehouse(tmp_path) as opened:
        opened.load([track("m1")])
        before = opened.loads
        opened.load([track("m2")])
        opened.close_after(before)
        assert opened.file is not None
        opened.close_after(opened.loads)
        assert opened.file is None


async def test_the_file_is_let_go_now_and_then_under_constant_work(tmp_path: Path) -> None:
    now = NOW
    env = Env(http=cast(Any, None), now=lambda: now, folder=str(tmp_path))
    async with connect(DuckDBSettings(), env) as opened:
        held = []
        for number, later in enumerate((0, 2, 4, 5, 6, 6, 3)):
            now = NOW + later
            opened.load([track(f"m{number}")])
            held.append(opened.file is not None)
    assert held == [True, True, True, False, True, True, False], "a clock that is set back lets go, too"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"this is no database" * 1_000, "warehouse file is not a sound DuckDB database; restore it or move it away"),
        (None, "warehouse file cannot be opened"),
    ],
)
async def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "warehouse.duckdb"
    path.mkdir() if content is None else path.write_bytes(content)
    (outcome,) = await load(tmp_path, [track("m1")])
    assert isinstance(outcome, Retry)
    assert outcome.reason == reason
    async with warehouse(tmp_path) as opened:
        with pytest.raises(Unavailable, match=reason):
            await check(opened)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ('IO Error: Could not set lock on file "x": Conflicting lock is held', "locked by another program"),
        ("IO Error: Trying to read a database file with version number 99", "another version of DuckDB"),
        ("IO Error: Could not write file: No space left on device", "the disk of the warehouse file is full"),
        ('IO Error: Cannot open file "x": Permission denied', "permission denied"),
    ],
)
def test_what_the_system_says_becomes_a_reason_without_paths(words: str, reason: str) -> None:
    assert reason in str(refusal_of(duckdb.IOException(words)))


async def test_check_changes_nothing(tmp_path: Path) -> None:
    async with warehouse(tmp_path, path="sub/w.duckdb") as opened:
        await check(opened)
        assert os.listdir(tmp_path) == []
        assert await load_events(opened, [track("m1")]) == [DELIVERED]
        await check(opened)
    assert (tmp_path / "sub" / "w.duckdb").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_check_says_when_the_folder_cannot_be_written(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o500)
    async with warehouse(tmp_path) as opened:
        with pytest.raises(Unavailable, match="cannot be written"):
            await check(opened)


async def test_loading_leaves_the_event_loop_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load waits, in its thread, for something that only the loop can do."""
    import threading

    turned = threading.Event()
    transact = Warehouse._transact

    def waiting(self: Warehouse, work: Any) -> Any:
        assert turned.wait(10)
        return transact(self, work)

    monkeypatch.setattr(Warehouse, "_transact", waiting)
    async with warehouse(tmp_path) as opened, asyncio.TaskGroup() as group:
        loading = group.create_task(load_events(opened, [track("m1")]))
        await asyncio.sleep(0)
        turned.set()
        assert await loading == [DELIVERED]


async def test_a_disk_without_room_delays_and_loses_nothing(tmp_path: Path) -> None:
    """The process may write only so much to one file; when it may write more, everything gets in, once."""
    program = f"""
        import resource
        from destinations.contract import DELIVERED, Env, Retry
        from destinations.warehouse.duckdb.destination import Warehouse
        from destinations.warehouse.duckdb.settings import DuckDBSettings
        event = {track("m", x="y" * 1_000)!r}
        events = [event | dict(messageId=f"m{{number}}", event=f"e{{number % 7}}") for number in range(5_000)]
        env = Env(http=None, now=lambda: 0.0, folder={str(tmp_path)!r})
        warehouse = Warehouse(DuckDBSettings(), env, None)
        assert warehouse.load(events[:1]) == [DELIVERED]
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        print({{outcome.reason for outcome in warehouse.load(events)}})
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert warehouse.load(events) == [DELIVERED] * len(events)
        warehouse.close()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "{'the disk of the warehouse file is full'}" in done.stdout.splitlines()
    assert query(tmp_path, "SELECT count(*), count(DISTINCT id) FROM shop.tracks") == [(5_000, 5_000)]


def test_no_two_processes_of_ours_have_the_file_at_once_even_when_duckdb_lost_its_lock(tmp_path: Path) -> None:
    """It does as soon as anybody in the process closes the file, who may only have looked at its first bytes."""
    path = tmp_path / "warehouse.duckdb"
    ask = (
        "import sys, pathlib\n"
        "from destinations.warehouse.duckdb.file import Refused, open_file\n"
        "try:\n    open_file(pathlib.Path(sys.argv[1]), 256, 0.0).close()\n    print('opened')\n"
        "except Refused as error:\n    print(error)\n"
    )

    def another() -> str:
        return subprocess.run([sys.executable, "-c", ask, str(path)], check=True, capture_output=True, text=True).stdout

    file = open_file(path, 256, 0.0)
    path.read_bytes()
    assert another() == "warehouse file is locked by another program\n"
    file.close()
    assert another() == "opened\n"
