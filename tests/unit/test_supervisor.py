"""Roles start together, come back when they die, stop in order, and never outlive their supervisor."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from millrace.roles import processes_for
from millrace.supervisor import pause_before_restart

ROLE = """
import os, signal, socket, sys, time
name, diary = sys.argv[1], sys.argv[2]
behaviour = sys.argv[3]
tie = socket.socket(fileno=int(sys.argv[-1]))

def note(what):
    fd = os.open(diary, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{name} {what} {os.getpid()}\\n".encode())
    os.close(fd)

def leave(number, frame):
    note("asked")
    if behaviour == "stubborn":
        return
    note("ended")
    os._exit(0)

signal.signal(signal.SIGTERM, leave)
if behaviour == "broken":
    note("broken")
    sys.exit(7)
if behaviour == "slow":
    note("begun")
    signal.pause()
note("ready")
tie.sendall(b"ready\\n")
while tie.recv(64):
    pass
note("orphaned")
"""

SUPERVISOR = """
import asyncio, sys
from millrace.supervisor import Role, StartFailed, supervise
script, diary, deadline = sys.argv[1], sys.argv[2], float(sys.argv[3])
def note(line):
    with open(diary, "a") as file:
        file.write(line + chr(10))
roles = [Role(name=name, command=[sys.executable, script, name, diary, how], beside=name.endswith("-2"))
         for name, _, how in (one.partition("=") for one in sys.argv[4:])]
try:
    asyncio.run(supervise(roles, ready=lambda: note("all ready"), before_stop=lambda: note("before stop"), deadline=deadline))
except StartFailed as error:
    note(f"failed: {error}")
"""


class World:
    """A supervisor in a process of its own, and the diary that everybody writes."""

    def __init__(self, folder: Path, *roles: str, deadline: float = 20.0) -> None:
        self.diary = folder / "diary"
        self.diary.touch()
        (folder / "role.py").write_text(ROLE)
        command = [sys.executable, "-c", SUPERVISOR, str(folder / "role.py"), str(self.diary), str(deadline), *roles]
        self.complaints = folder / "stderr"
        with self.complaints.open("w") as stderr:
            self.process = subprocess.Popen(command, stderr=stderr)

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.diary.read_text().splitlines()]

    def did(self, *, without_ids: bool = True) -> list[str]:
        return (
            [" ".join(line[:2]) for line in self.lines()] if without_ids else [" ".join(line) for line in self.lines()]
        )

    def pid(self, role: str) -> int:
        return [int(line[2]) for line in self.lines() if line[:2] == [role, "ready"]][-1]

    def until(self, what: str, count: int = 1) -> None:
        end = time.monotonic() + 20
        while sum(line.startswith(what) for line in self.did(without_ids=False)) < count:
            assert time.monotonic() < end, f"never happened: {what}; what did: {self.did()}"
            time.sleep(0.01)

    def end(self) -> int:
        return self.process.wait(20)


def test_roles_stop_one_after_another_in_the_order_of_the_journey(tmp_path: Path) -> None:
    world = World(tmp_path, "collect=good", "process=good", "deliver=good")
    world.until("all ready")

    world.process.terminate()

    assert world.end() == 0
    assert world.did()[3:] == [
        "all ready",
        "before stop",
        "collect asked",
        "collect ended",
        "process asked",
        "process ended",
        "deliver asked",
        "deliver ended",
    ]


def test_whoever_stops_it_before_it_is_ready_gets_no_complaint(tmp_path: Path) -> None:
    world = World(tmp_path, "collect=slow")
    world.until("collect begun")

    world.process.terminate()

    assert world.end() == 0
    assert world.did() == ["collect begun", "before stop", "collect asked", "collect ended"]
    assert "never retrieved" not in world.complaints.read_text()


def test_roles_beside_each_other_stop_together(tmp_path: Path) -> None:
    """Else a second one that has work to end would find the time used up."""
    world = World(tmp_path, "process=good", "deliver=stubborn", "deliver-2=stubborn", deadline=0.3)
    world.until("all ready")

    world.process.terminate()

    assert world.end() == 0
    last = world.did()[-4:]
    assert last[:2] == ["process asked", "process ended"]
    assert sorted(last[2:]) == ["deliver asked", "deliver-2 asked"]


def test_cores_that_the_other_roles_leave_deliver() -> None:
    deliverers = {cores: processes_for(cores)["deliver"] for cores in (1, 2, 3, 4, 6, 64)}
    assert deliverers == {1: 1, 2: 1, 3: 1, 4: 2, 6: 4, 64: 4}


def test_a_role_that_dies_is_started_again(tmp_path: Path) -> None:
    world = World(tmp_path, "collect=good", "process=good")
    world.until("all ready")
    first = world.pid("process")

    os.kill(first, signal.SIGKILL)

    world.until("process ready", 2)
    assert world.pid("process") != first
    world.process.terminate()
    assert world.end() == 0


def test_a_role_that_cannot_start_ends_the_others_and_is_named(tmp_path: Path) -> None:
    world = World(tmp_path, "collect=good", "process=broken")

    assert world.end() == 0

    assert [line for line in world.did(without_ids=False) if line.startswith("failed")] == [
        "failed: process could not start (exit 7); what it said is above"
    ]
    assert "all ready" not in world.did()
    assert not [pid for line in world.lines() if line[1] == "ready" and psutil.pid_exists(pid := int(line[2]))]


def test_at_the_deadline_a_stubborn_role_is_killed(tmp_path: Path) -> None:
    world = World(tmp_path, "collect=stubborn", "process=good", deadline=0.3)
    world.until("all ready")

    world.process.terminate()

    assert world.end() == 0
    assert not psutil.pid_exists(world.pid("collect"))
    assert not psutil.pid_exists(world.pid("process"))


def test_a_second_signal_kills_at_once(tmp_path: Path) -> None:
    world = World(tmp_path, "collect=stubborn", "process=stubborn", deadline=600)
    world.until("all ready")

    world.process.send_signal(signal.SIGINT)
    world.until("collect asked")
    world.process.send_signal(signal.SIGINT)

    assert world.end() == 0
    assert not psutil.pid_exists(world.pid("collect"))
    assert not psutil.pid_exists(world.pid("process"))


def test_roles_notice_that_their_supervisor_was_killed(tmp_path: Path) -> None:
    world = World(tmp_path, "collect=good", "process=good")
    world.until("all ready")

    world.process.kill()

    world.until("collect orphaned")
    world.until("process orphaned")
    world.end()


@pytest.mark.parametrize(("deaths", "pause"), [(1, 0.25), (2, 0.5), (3, 1.0), (8, 30.0), (2_000, 30.0)])
def test_pauses_grow_to_a_bound(deaths: int, pause: float) -> None:
    assert pause_before_restart(deaths) == pause
