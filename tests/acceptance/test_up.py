"""What a person can do with `millrace up`, done with the real processes."""

import json
import signal
import socket
from pathlib import Path

import psutil

from tests.acceptance.conftest import PATIENCE, Machine, Up, until


def paste_curl(machine: Machine, up: Up) -> None:
    assert json.loads(machine.paste(up.line("curl ")).out) == {"success": True}


def delivered(machine: Machine, name: str = "warehouse") -> int:
    rows = machine.ask("/api/balance")["destinations"].get(name, {})
    return sum(row["delivered"] for row in rows.values())


def test_an_event_goes_the_whole_way(machine: Machine) -> None:
    up = machine.up()
    with machine.tail() as paths:
        paste_curl(machine, up)
        watched = next(path for path in paths if path["complete"])

    assert (watched["type"], watched["event"], watched["userId"]) == ("track", "Signed Up", "u1")
    assert watched["refused"] is None
    assert watched["destinations"]["warehouse"]["outcome"] == "delivered"

    profile = machine.json("profile", "user_id:u1")
    assert profile["id"] == watched["profile"]["id"]
    assert [(one["type"], one["id"]) for one in profile["external_ids"]] == [("user_id", "u1")]
    assert machine.paste(up.line("profile user_id:u1")).out.startswith(f"profile {profile['id']}\nid user_id:u1\n")

    (path,) = machine.json("event", watched["messageId"])
    assert path["destinations"]["warehouse"]["outcome"] == "delivered"

    warehouse = machine.paste(up.line("-c "))
    assert "Signed Up" in warehouse.out, warehouse

    balance = machine.millrace("balance", "--check")
    assert balance.code == 0, balance
    assert "the books balance" in balance.out


def test_stopping_leaves_nothing_behind_and_a_restart_keeps_everything(machine: Machine) -> None:
    first = machine.up()
    paste_curl(machine, first)
    until(lambda: delivered(machine) == 1)
    before = machine.json("profile", "user_id:u1")
    family = first.family()
    assert len(family) == 4

    assert first.stop() == 0

    assert [one for one in family if one.is_running()] == []
    assert machine.millrace("balance").err.startswith("millrace: http://127.0.0.1:")

    second = machine.up()
    assert second.fact("write key") == first.fact("write key")
    assert machine.json("profile", "user_id:u1") == before
    assert delivered(machine) == 1
    assert machine.millrace("balance", "--check").code == 0
    assert second.stop(signal.SIGINT) == 0


def test_a_role_that_is_killed_comes_back_and_nothing_is_lost(machine: Machine) -> None:
    up = machine.up()
    for count, name in enumerate(("collect", "process", "deliver"), start=1):
        victim = up.role(name)
        victim.kill()
        paste_curl(machine, up)  # the port stays open: a killed collector makes us wait, not fail
        until(lambda count=count: delivered(machine) == count)  # type: ignore[misc]  # bound in the turn
        until(lambda name=name: up.role(name).is_running())  # type: ignore[misc]  # bound in the turn
    assert machine.json("profile", "user_id:u1")["events"] == 3
    assert machine.millrace("balance", "--check").code == 0
    assert up.log.read_text().count('"event": "role died"') == 3


def test_roles_do_not_outlive_a_killed_supervisor(machine: Machine) -> None:
    up = machine.up()
    family = up.family()

    up.process.kill()
    up.process.wait()

    _, alive = psutil.wait_procs(family, timeout=PATIENCE)
    assert alive == []
    again = machine.up()
    paste_curl(machine, again)


def test_a_demo_stream_is_sent_counted_once_and_balances(machine: Machine) -> None:
    machine.up()

    first = machine.json("send", "--count", "400", "--seed", "5")
    again = machine.json("send", "--count", "400", "--seed", "5")

    assert first["events"] == again["events"] == 400
    until(lambda: delivered(machine) == 400)
    until(lambda: machine.ask("/api/balance")["sources"]["default"]["duplicates"] == 400)
    assert machine.millrace("balance", "--check").code == 0
    assert machine.json("profile", f"user_id:{first['user_id']}")["traits"]["email"].endswith("@example.com")


def test_a_refused_event_has_a_reason_while_its_batch_goes_on(machine: Machine) -> None:
    up = machine.up()
    batch = {"batch": [{"type": "track", "userId": "u1"}, {"type": "track", "userId": "u1", "event": "Good"}]}
    url, key = up.fact("address"), up.fact("write key")
    with machine.tail("--refused") as paths:
        said = machine.paste(f"curl -sS {url}/v1/batch -u '{key}:' -d '{json.dumps(batch)}'")
        refused = next(paths)
    assert json.loads(said.out) == {"success": True}
    assert refused["refused"] == "event_not_defined"
    until(lambda: delivered(machine) == 1)
    assert machine.ask("/api/balance")["sources"]["default"]["refused"] == 1


def test_everything_also_runs_in_one_process(machine: Machine) -> None:
    up = machine.up("--single-process")
    assert len(up.family()) == 1
    paste_curl(machine, up)
    until(lambda: delivered(machine) == 1)
    assert up.stop() == 0


def test_roles_that_share_their_work_run_as_often_as_asked(machine: Machine) -> None:
    up = machine.up("--processors", "2", "--deliverers", "2")
    _, *children = up.family()
    assert sorted(one.cmdline()[4] for one in children) == ["collect", "deliver", "deliver", "process", "process"]

    machine.json("send", "--count", "400", "--seed", "5")

    until(lambda: delivered(machine) == 400)
    assert machine.millrace("balance", "--check").code == 0
    assert up.stop() == 0
    assert [one for one in children if one.is_running()] == []


def test_one_process_cannot_be_several(machine: Machine) -> None:
    said = machine.millrace("up", "--single-process", "--processors", "2")
    assert said.code == 2
    assert "--single-process leaves no room for --processors and --deliverers; leave them or it out" in said.err


def test_a_second_up_on_one_folder_is_told(machine: Machine) -> None:
    up = machine.up()
    said = machine.millrace("up", "--port", "0")
    assert said.code == 1
    assert f"in use by another `millrace up` (process {up.process.pid}); stop that one first" in said.err


def test_a_taken_port_is_told_before_anything_starts(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = machine.millrace("up", "--port", str(port))
    assert (said.code, said.out) == (1, "")
    assert said.err == (
        f"millrace: 127.0.0.1:{port}: the port is taken by another program; stop that one, "
        "or choose another with --port or MILLRACE_PORT\n"
    )


def test_a_bad_configuration_starts_nothing(machine: Machine) -> None:
    Path(machine.folder / "millrace.yaml").write_text("destinations: {crm: {type: webhok}}\nsources: [web]\n")
    said = machine.millrace("up")
    assert (said.code, said.out) == (1, "")
    assert "millrace.yaml:1 destinations.crm.type: unknown destination type; did you mean webhook?" in said.err
    assert "millrace.yaml:2 sources: must be a mapping" in said.err
    assert not (machine.folder / "data").exists()


def test_a_data_folder_of_a_newer_version_is_left_alone(machine: Machine) -> None:
    data = machine.folder / "data"
    data.mkdir()
    (data / "VERSION").write_text("2\n")
    said = machine.millrace("up")
    assert (said.code, said.out) == (1, "")
    assert "newer Millrace" in said.err
    assert [one.name for one in data.iterdir()] == ["VERSION"]
