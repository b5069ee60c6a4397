"""SIGTERM under load: a collector of its own process answers every request that it was sent, and keeps what it answered."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from millrace import data_folder
from pipeline.log import open_log
from schemas.events import decode_event
from schemas.topics import EVENTS
from tests.acceptance.conftest import until
from tests.http import connected, post

CLIENTS = 24


def a_collector(folder: Path) -> subprocess.Popen[bytes]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
    variables = clean | {"MILLRACE_PORT": "0", "MILLRACE_WRITE_KEY": "wk"}
    command = [sys.executable, "-m", "millrace", "collect", "--data", str(folder)]
    with (folder.parent / "collect.log").open("w") as log:
        return subprocess.Popen(command, env=variables, stdout=log, stderr=log)


def a_batch(name: str) -> bytes:
    items = [{"type": "track", "event": "A", "userId": "u", "messageId": f"{name}-{n}"} for n in range(5)]
    return json.dumps({"batch": items, "writeKey": "wk"}).encode()


async def send_until_told_to_stop(
    port: int, number: int, sent: set[str], answered: set[str], going: asyncio.Event
) -> None:
    """Every third request goes out before the answer to the one before it has come. Only an answer that says so ends the
    connection: EOFError when a request is left without one."""
    async with connected(port) as client:
        turn = 0
        while True:
            names = [f"{number}-{turn}"] + ([f"{number}-{turn}-more"] if turn % 3 == 0 else [])
            for name in names:
                client.send(post("/v1/batch", a_batch(name)))
                sent.add(name)
            for name in names:
                reply = await client.reply()
                assert reply.status == 200
                answered.add(name)
                if reply.headers.get("connection") == "close":
                    return
            turn += 1
            if turn == 20:
                going.set()


async def events_of(folder: Path) -> set[str]:
    found = set()
    async with open_log(f"embedded://{folder / 'log'}") as log:
        for partition, (at, end) in (await log.bounds(EVENTS)).items():
            while at < end:
                batch = await log.read(EVENTS, partition, at)
                assert batch is not None
                found |= {decode_event(record.value).message_id for record in batch.records}
                at = batch.next_offset
    return found


async def test_sigterm_under_load_leaves_no_request_unanswered_and_loses_none(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    process = a_collector(folder)
    sent: set[str] = set()
    answered: set[str] = set()
    try:
        until(lambda: data_folder.recall(folder, data_folder.ADDRESS) is not None)
        port = urlsplit(data_folder.recall(folder, data_folder.ADDRESS) or "").port
        assert port is not None
        going = asyncio.Event()
        clients = asyncio.gather(
            *[send_until_told_to_stop(port, number, sent, answered, going) for number in range(CLIENTS)]
        )
        await going.wait()
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(clients, 30)
        assert await asyncio.to_thread(process.wait, 30) == 0
    finally:
        process.kill()
        process.wait()
    # Of two requests sent at once, the second may come after the answer that ended the connection: it was not taken.
    untaken = sent - answered
    assert all(name.endswith("-more") for name in untaken)
    kept = await events_of(folder)
    assert kept == {f"{name}-{n}" for name in answered for n in range(5)}
