"""Clients that behave as SDKs do: what gets no 200 is sent again under the same messageId, and some of what got one too.

Remembers what was answered 200 and what was sent without ever getting that answer.
"""

import asyncio
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Final

import aiohttp

from tests.crash.shop import Message, Person

CLIENTS: Final = 32
MOST_IN_BATCH: Final = 60
IMPATIENT: Final = 0.02  # of visits give up after the first failure: the tab was closed
SINGLES: Final = 0.04  # of visits are sent call by call
REPEATED: Final = 0.08  # of requests come again later, although they were answered
GIVING_UP: Final = 180.0  # seconds; no outage of the test lasts as long
AGAIN: Final = (500, 502, 503, 504, 429)


class Load:
    """Everybody's clients. `rate` is in messages per second, repeats not counted."""

    def __init__(self, url: str, write_key: str, people: Sequence[Person], *, rate: float, random: Random) -> None:
        self._url, self._write_key = url, write_key
        self._people, self._random = people, random
        self._pace = _Pace(rate)
        self._later: list[tuple[float, int, list[Message]]] = []
        self._tick = count()
        self.sent: dict[str, Message] = {}
        self.answered: set[str] = set()
        self.repeats = 0
        self.failures = 0  # requests that got no 200
        self.surprises: list[str] = []  # answers that no outage explains
        self.trap: Callable[[], None] | None = None  # called at the very next 200, once

    async def run(self, total: int, storm: "asyncio.Task[None]") -> None:
        """Sends until `total` messages were answered and the storm is over; then what was to be repeated."""
        async with aiohttp.ClientSession(
            headers={"Authorization": f"Basic {b64encode(f'{self._write_key}:'.encode()).decode()}"},
            connector=aiohttp.TCPConnector(limit=CLIENTS * 2),
            timeout=aiohttp.ClientTimeout(total=20),
        ) as http:
            async with asyncio.TaskGroup() as group:
                for number in range(CLIENTS):
                    group.create_task(self._client(http, self._people[number::CLIENTS], total, storm))
            for _, _, messages in sorted(self._later):
                await self._again(http, messages)

    async def _client(
        self, http: aiohttp.ClientSession, people: Sequence[Person], total: int, storm: "asyncio.Task[None]"
    ) -> None:
        """One client carries several people, and sends one request at a time: a person's messages are in order."""
        while len(self.answered) < total or not storm.done():
            if storm.done():
                storm.result()
            await self._repeat_what_is_due(http)
            if self._random.random() < SINGLES:
                for message in self._random.choice(people).visit():
                    await self._send(http, [message])
                continue
            batch: list[Message] = []
            while len(batch) < MOST_IN_BATCH * self._random.random():
                batch += self._random.choice(people).visit()
            await self._send(http, batch)

    async def _send(self, http: aiohttp.ClientSession, messages: list[Message]) -> None:
        if not messages:
            return
        await self._pace.take(len(messages))
        for one in messages:
            self.sent[one.id] = one
        links = any(one.kind == "identify" for one in messages)  # what later messages rely on must arrive
        patient = links or self._random.random() >= IMPATIENT
        bodies = [one.body for one in messages]
        if self._random.random() < 0.05:
            bodies.append(self._random.choice(bodies))  # twice in one request
        twins = [one.twin for one in messages if one.twin is not None]
        answers = await asyncio.gather(
            self._deliver(http, _path(messages, bodies), bodies, patient),
            *(self._deliver(http, "track", [one], patient) for one in twins),
        )
        if not answers[0]:
            self.answered.update(one.id for one in messages if one.twin is not None and all(answers[1:]))
            return
        self.answered.update(one.id for one in messages)
        if self._random.random() < REPEATED:
            heappush(self._later, (time.monotonic() + self._random.uniform(0.5, 20), next(self._tick), messages))

    async def _repeat_what_is_due(self, http: aiohttp.ClientSession) -> None:
        while self._later and self._later[0][0] <= time.monotonic():
            await self._again(http, heappop(self._later)[2])

    async def _again(self, http: aiohttp.ClientSession, messages: list[Message]) -> None:
        bodies = [one.body for one in messages]
        self.repeats += len(messages)
        await self._deliver(http, "batch", bodies, True)

    async def _deliver(self, http: aiohttp.ClientSession, path: str, bodies: Sequence[bytes], patient: bool) -> bool:
        """Whether the request was answered 200."""
        body = b'{"batch":[' + b",".join(bodies) + b"]}" if path == "batch" else bodies[0]
        give_up = time.monotonic() + GIVING_UP
        for wait in self._waits():
            status = await self._post(http, path, body)
            if status == 200:
                self._spring()
                return True
            self.failures += 1
            if not patient:
                return False
            if time.monotonic() > give_up:
                self.surprises.append(f"no 200 for {GIVING_UP:.0f} s, at last {status or 'no answer'}")
                return False
            await asyncio.sleep(wait)
        raise AssertionError("waits never end")

    async def _post(self, http: aiohttp.ClientSession, path: str, body: bytes) -> int | None:
        try:
            async with http.post(
                f"{self._url}/v1/{path}", data=body, headers={"Content-Type": "application/json"}
            ) as response:
                answer = await response.text()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
        if response.status != 200 and response.status not in AGAIN:
            self.surprises.append(f"{path} answered {response.status}: {answer[:200]}")
        return response.status

    def _spring(self) -> None:
        trap, self.trap = self.trap, None
        if trap is not None:
            trap()

    def _waits(self) -> Iterator[float]:
        """Seconds between tries, without all clients coming at once."""
        for attempt in count():
            yield min(0.1 * 1.6**attempt, 2.0) * self._random.uniform(0.5, 1.0)


def _path(messages: Sequence[Message], bodies: Sequence[bytes]) -> str:
    return messages[0].kind if len(bodies) == 1 else "batch"


class _Pace:
    """Lets so many messages per second through. After an outage it catches up for a while, not for ever."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._next = time.monotonic()

    async def take(self, messages: int) -> None:
        now = time.monotonic()
        self._next = max(self._next, now - 5.0) + messages / self._rate
        if self._next > now:
            await asyncio.sleep(self._next - now)
