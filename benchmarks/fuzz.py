"""Ten minutes of hostile bytes: `python -m benchmarks.fuzz [--minutes M] [--seed S]`.

Valid requests are cut, mixed, repeated and mutated, and given to the collector's protocol class piece by piece, without a socket in between.
Whatever comes: nothing is raised, what is answered is proper HTTP, and when the client has gone nothing is left of it. A server that has
seen such heads before answers what one does that sees all for the first time. What fails is printed with its seed, from which it comes again.
"""

import argparse
import asyncio
import gzip
import random
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, cast

import structlog
import uvicorn
from structlog.testing import capture_logs
from uvicorn.server import ServerState

from benchmarks.results import Result, finish, result
from collector.app import create_collector
from collector.headers import Headers
from collector.known_heads import KnownHeads
from collector.protocol import IngestProtocol, protocol_class
from collector.routes import Route
from pipeline.log.contract import Log, Record

_EVENT: Final = b'{"type":"track","event":"A","userId":"u","properties":{"n":[1,2.5,"\\u00e4",null]},"writeKey":"wk"}'
_BATCH: Final = b'{"batch":[%b,%b],"writeKey":"wk","context":{"a":{"b":1}}}' % (_EVENT, _EVENT)
_RESPONSE: Final = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]+\r\n((?:[^\r\n:]+: [^\r\n]*\r\n)*)\r\n")
_INTERESTING: Final = (
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"0\r\n\r\n",
    b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Upgrade: h2c\r\nConnection: upgrade\r\n", b"HTTP/1.0", b"\xff\xfe",
    b"Content-Encoding: gzip\r\n", b"X-Request-Id: c\r\n", b"cookie: d\r\n", b"{" * 2000, b"[" * 2000, b'"', b"\\ud800", b"\\", b"1e999", b"NaN", b"-", b"CONNECT a:1 HTTP/1.1\r\n\r\n",
)  # fmt: skip


class _Discarding:
    """A log that holds everything at once."""

    async def append(self, topic: str, records: Sequence[Record]) -> None:
        await asyncio.sleep(0)


class Transport(asyncio.Transport):
    """Where a connection would be: remembers what was written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written = b""
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.closing:
            self.written += bytes(data)

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Forgetful(KnownHeads):
    """Knows no head."""

    def learn(self, head: bytes, headers: Headers, route: Route) -> None:
        """Does not."""


class Target:
    """A collector, and one connection after the other to it."""

    def __init__(self, known_heads: KnownHeads) -> None:
        self.collector = create_collector(log=cast(Log, _Discarding()), sources={"wk": "web"})
        self._class = protocol_class(self.collector.intake)
        self._class.known_heads = known_heads
        self._config = uvicorn.Config(self.collector, http=self._class, ws="none", lifespan="off", log_level="critical")
        self._config.load()

    async def talk(self, pieces: Sequence[bytes]) -> list[int]:
        """The statuses answered to these bytes. AssertionError when something is wrong."""
        state, transport = ServerState(), Transport()
        protocol: IngestProtocol = self._class(self._config, state, {}, asyncio.get_running_loop())
        with capture_logs() as said:
            protocol.connection_made(transport)
            for piece in pieces:
                if not transport.closing:
                    protocol.data_received(piece)
                await asyncio.sleep(0)
            for _ in range(2_000):
                if len(protocol._turns) <= (protocol._taking is not None):
                    break
                await asyncio.sleep(0)
            statuses = list(statuses_in(transport.written))
            protocol.connection_lost(None)
            for _ in range(2_000):  # what was taken goes on into the log
                if not state.tasks and not self.collector.in_flight_bytes:
                    break
                await asyncio.sleep(0)
        assert not state.tasks, "the application still works for a client that is gone"
        assert self.collector.in_flight_bytes == 0, f"{self.collector.in_flight_bytes} bytes are left"
        errors = [one for one in said if one["log_level"] in ("error", "critical")]
        assert not errors, errors
        assert 500 not in statuses
        return statuses


def statuses_in(written: bytes) -> Iterator[int]:
    """Of each answer in turn. AssertionError when it is not proper HTTP."""
    at = 0
    while at < len(written):
        response = _RESPONSE.match(written, at)
        assert response is not None, f"not HTTP: {written[at : at + 200]!r}"
        status = int(response[1])
        length = re.search(rb"(?im)^content-length: (\d+)", response[2])
        at = response.end() + (int(length[1]) if length is not None else 0)
        assert at <= len(written), "an answer without its end"
        if status != 100:
            yield status


def requests() -> list[bytes]:
    packed = gzip.compress(_BATCH)
    chunks = b"7\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (_BATCH[:7], len(_BATCH) - 7, _BATCH[7:])
    head = b"POST %b HTTP/1.1\r\nHost: a\r\n"
    return [
        head % b"/v1/t" + b"Content-Length: %d\r\n\r\n" % len(_EVENT) + _EVENT,
        head % b"/v1/batch" + b"Authorization: Basic d2s6\r\nContent-Length: %d\r\n\r\n" % len(_BATCH) + _BATCH,
        head % b"/b?x=y"
        + b"User-Agent: a\r\nX-Forwarded-For: 1.2.3.4, b\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
        % len(packed)
        + packed,
        head % b"/v1/import/" + b"Transfer-Encoding: chunked\r\n\r\n" + chunks,
        head % b"/v1/m" + b"Content-Length: 2\r\n\r\n{}",
        b"GET /v1/projects/wk/settings HTTP/1.1\r\nHost: a\r\n\r\n",
        b"OPTIONS /v1/t HTTP/1.1\r\nHost: a\r\nOrigin: https://b\r\n\r\n",
    ]


def mutated(chance: random.Random) -> list[bytes]:
    """A conversation, broken somewhere, in pieces."""
    whole = bytearray(b"".join(chance.choices(requests(), k=chance.randint(1, 4))))
    for _ in range(chance.choice((0, 1, 1, 2, 5, 20))):
        at = chance.randrange(len(whole) + 1)
        kind = chance.randrange(5)
        if kind == 0 and at < len(whole):
            whole[at] = chance.randrange(256)
        elif kind == 1:
            whole[at:at] = chance.choice(_INTERESTING)
        elif kind == 2:
            del whole[at : at + chance.randint(1, 30)]
        elif kind == 3:
            whole[at:at] = whole[max(0, at - chance.randint(1, 200)) : at]
        else:
            whole[at:at] = chance.randbytes(chance.randint(1, 20))
    cuts = sorted(chance.randrange(len(whole) + 1) for _ in range(chance.randint(0, 6)))
    return [bytes(whole[a:b]) for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


async def fuzz(seconds: float, seed: int) -> int:
    """How many conversations there were."""
    knowing, forgetful = Target(KnownHeads()), Target(Forgetful())
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        pieces = mutated(random.Random(f"{seed}/{number}"))
        try:
            statuses = await asyncio.wait_for(knowing.talk(pieces), 10)
            expected = await asyncio.wait_for(forgetful.talk(pieces), 10)
            # What refuses a request by its head closes the connection; if all of the body is there, it need not.
            assert statuses[: len(expected)] == expected, f"{statuses} instead of {expected}"
        except Exception:
            print(f"seed {seed}, conversation {number}: {pieces!r}", file=sys.stderr)
            raise
        number += 1
    return number


def main(argv: list[str] | None = None) -> list[Result]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    asked: Any = parser.parse_args(argv)
    structlog.configure()
    count = asyncio.run(fuzz(asked.minutes * 60, asked.seed))
    return finish("fuzz", [result("conversations without a fault", count, "")], asked.json)


if __name__ == "__main__":
    main()
