"""The receiver of the webhook, a process of its own: writes down what it gets, in the order it gets it, and is moody.

Each request that it takes is one line, the JSON array as it came. Sometimes it refuses with 500 or 429, sometimes it takes
the events and the answer is lost. Run as `python -m tests.crash.sink PORT FILE SEED`.
"""

import asyncio
import sys
from pathlib import Path
from random import Random
from typing import BinaryIO, Final

from aiohttp import web

HANGING: Final = 6.0  # seconds, longer than the webhook's time limit


class Sink:
    """Takes requests and remembers them in a file."""

    def __init__(self, file: BinaryIO, random: Random) -> None:
        self._file, self._random = file, random

    async def receive(self, request: web.Request) -> web.Response:
        body = await request.read()
        mood = self._random.random()
        if mood < 0.015:
            return web.Response(status=500)
        if mood < 0.03:
            return web.Response(status=429, headers={"Retry-After": "1"})
        self._file.write(body + b"\n")  # in one piece: the file is not buffered
        if mood < 0.04:
            return web.Response(status=502)
        if mood < 0.045:
            await asyncio.sleep(HANGING)
        return web.Response(status=200)


def main(port: int, file: Path, seed: int) -> None:
    with file.open("ab", buffering=0) as opened:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/", Sink(opened, Random(seed)).receive)
        web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None, shutdown_timeout=1)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
