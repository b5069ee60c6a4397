"""What it costs to count attempts, per event in batches of 100, against reading such an event from the log.

`python -m benchmarks.observing [--events N] [--json FILE]`.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.results import Result, finish, result
from destinations.contract import DELIVERED, Rejected
from destinations.registry import definition
from pipeline.delivery.attempt import Attempt
from pipeline.delivery.lanes import Item, Lane, Partition
from pipeline.delivery.limits import Destination
from pipeline.delivery.observing import Observer
from pipeline.store.ledger import Claim
from schemas.events import Event, Origin, decode_resolved, encode_event, encode_resolved

BATCH = 100
ACCEPTED = 1_790_000_000_000_000


def main(argv: list[str] | None = None) -> list[Result]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.observing", description=__doc__)
    parser.add_argument("--events", type=int, default=500_000)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(argv)
    one = definition("webhook")
    settings = one.settings.model_validate({"url": "https://crm.test/"})
    clock = iter(range(1, 1 << 62))
    observer = Observer(
        Destination(name="crm", definition=one, settings=settings), lambda: ACCEPTED / 1e6 + next(clock) / 1e3
    )
    value = encode_resolved("p", Origin(0, 0), (), encode_event(_event()))
    items = [_item(value) for _ in range(BATCH)]
    delivered = Attempt(items, [DELIVERED] * BATCH)
    refused = Attempt(items, [*[DELIVERED] * (BATCH - 1), Rejected("http 422")])
    floor = _micros(lambda: [decode_resolved(value) for _ in range(BATCH)], asked.events)
    results = [
        result("count a delivery", _micros(lambda: observer.note(delivered, ()), asked.events), "µs", floor=floor),
        result("one of 100 refused", _micros(lambda: observer.note(refused, ()), asked.events), "µs", floor=floor),
    ]
    return finish("what is seen of deliveries, CPU per event", results, asked.json)


def _event() -> Event:
    return Event(
        source="web",
        type="track",
        message_id="m",
        anonymous_id="a",
        user_id=None,
        timestamp=ACCEPTED,
        sent_at=None,
        received_at=ACCEPTED,
        channel="client",
        ip=None,
        refused=None,
        body=b'{"type":"track","event":"Clicked","properties":{"total":5}}',
    )


def _item(value: bytes) -> Item:
    item = Item(Lane(Partition(Claim(0, 0, 0, {}, ())), "p", 0), 0, "web", "m")
    item.resolved = decode_resolved(value)
    item.received_at = item.resolved.event.received_at
    return item


def _micros(work: Callable[[], object], events: int) -> float:
    began = time.process_time()
    for _ in range(events // BATCH):
        work()
    return (time.process_time() - began) / (events // BATCH * BATCH) * 1e6


if __name__ == "__main__":
    main(sys.argv[1:])
