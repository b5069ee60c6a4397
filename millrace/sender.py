"""Sends events in order, singly and in batches as clients do, and goes on through short outages."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Any, Final, NamedTuple

from millrace.client import Client
from schemas.errors import Unavailable

Event = dict[str, Any]

LARGEST_BATCH: Final = 50


class Request(NamedTuple):
    """A path, its body, and the events in it."""

    path: str
    body: Any
    events: Sequence[Event]


@dataclass(slots=True)
class Summary:
    """What was acknowledged."""

    events: int = 0
    requests: int = 0
    seconds: float = 0.0
    types: Counter[str] = field(default_factory=Counter)
    user_id: str | None = None  # somebody who logged in

    def add(self, events: Sequence[Event]) -> None:
        self.requests += 1
        self.events += len(events)
        self.types.update(event["type"] for event in events)
        self.user_id = next((event["userId"] for event in reversed(events) if "userId" in event), self.user_id)

    def as_dict(self) -> dict[str, Any]:
        return {
            "events": self.events,
            "requests": self.requests,
            "seconds": round(self.seconds, 3),
            "types": dict(sorted(self.types.items())),
            "user_id": self.user_id,
        }


def requests(events: Iterator[Event], count: int, random: Random) -> Iterator[Request]:
    """The first `count` events as requests: every third or so alone, the others in batches of a random size."""
    left = count
    while left:
        if random.random() < 0.35:
            (event,) = islice(events, 1)
            body = {name: value for name, value in event.items() if name != "type"}
            yield Request(f"/v1/{event['type']}", body, [event])
            left -= 1
        else:
            batch = list(islice(events, min(left, random.randint(2, LARGEST_BATCH))))
            yield Request("/v1/batch", {"batch": batch}, batch)
            left -= len(batch)


def send_all(
    client: Client,
    calls: Iterable[Request],
    *,
    rate: float | None,
    sent: Callable[[int], None],
    patience: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Summary:
    """Sends one request after another. `rate` is events a second. Unavailable once nothing was acknowledged for
    `patience` seconds."""
    summary, begin = Summary(), clock()
    for call in calls:
        if rate is not None:
            sleep(max(0.0, begin + summary.events / rate - clock()))
        _send_one(client, call, patience, clock, sleep)
        summary.add(call.events)
        sent(len(call.events))
    summary.seconds = clock() - begin
    return summary


def _send_one(
    client: Client, call: Request, patience: float, clock: Callable[[], float], sleep: Callable[[float], None]
) -> None:
    """Again and again while nothing is acknowledged: messageId makes that harmless."""
    since, pause = clock(), 0.1
    while True:
        try:
            client.post(call.path, call.body)
            return
        except Unavailable:
            if clock() - since + pause > patience:
                raise
        sleep(pause)
        pause = min(pause * 2, 2.0)
