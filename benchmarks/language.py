"""Filters: the CPU that one evaluation takes, against the same predicate written in Python by hand.

`python -m benchmarks.language [--evaluations N] [--json FILE]`. Half of the events pass. Both sides are called through the same loop, whose
own cost is taken off.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.results import Result, finish, result
from pipeline.language.filters import Filter, compile_filter

ROUNDS: Final = 5  # of which the fastest counts: the others shared the core

Event = Mapping[str, Any]


def _named(event: Event) -> bool:
    return event.get("type") == "track" and event.get("event") == "Order Completed"


def _chosen(event: Event) -> bool:
    return event.get("event") in ("Order Completed", "Order Refunded", "Order Updated")


def _valuable(event: Event) -> bool:
    properties = event.get("properties")
    total = properties.get("total") if isinstance(properties, dict) else None
    context = event.get("context")
    page = context.get("page") if isinstance(context, dict) else None
    path = page.get("path") if isinstance(page, dict) else None
    return (
        event.get("type") == "track"
        and isinstance(total, int | float)
        and total > 50
        and isinstance(path, str)
        and path.startswith("/shop/")
    )


def _outside(event: Event) -> bool:
    context = event.get("context")
    traits = context.get("traits") if isinstance(context, dict) else None
    email = traits.get("email") if isinstance(traits, dict) else None
    within = isinstance(email, str) and "@shop.example" in email.lower()
    properties = event.get("properties")
    tags = properties.get("tags") if isinstance(properties, dict) else None
    return not within and isinstance(tags, list) and len(tags) > 0


CASES: Final[Mapping[str, tuple[str, Callable[[Event], bool]]]] = {
    "type and name": ("type = 'track' and event = 'Order Completed'", _named),
    "one of three names": ("event in ['Order Completed', 'Order Refunded', 'Order Updated']", _chosen),
    "number and pattern": (
        "type = 'track' and properties.total > 50 and match(context.page.path, '/shop/*')",
        _valuable,
    ),
    "two functions": (
        "!contains(lowercase(context.traits.email), '@shop.example') and length(properties.tags) > 0",
        _outside,
    ),
}


def events() -> list[Event]:
    """As destinations get them; every second passes all filters."""
    return [
        {
            "type": "track" if passes else "page",
            "event": "Order Completed" if passes else "Product Viewed",
            "messageId": f"m{number}",
            "userId": f"u{number}",
            "properties": {"total": 80.5 if passes else 20, "currency": "EUR", "tags": ["a", "b"] if passes else []},
            "context": {
                "page": {"path": "/shop/checkout" if passes else "/blog/today", "title": "Shop"},
                "traits": {"email": f"Person{number}@mail.example" if passes else "Staff@shop.example"},
            },
        }
        for number in range(100)
        for passes in (True, False)
    ]


def cost(predicate: Filter, over: Sequence[Event], evaluations: int) -> float:
    """CPU microseconds per evaluation."""
    times = range(max(1, evaluations // len(over)))

    def spent(one: Callable[[Event], object]) -> float:
        took = []
        for _ in range(ROUNDS):
            began = time.process_time()
            for _ in times:
                for event in over:
                    one(event)
            took.append(time.process_time() - began)
        return min(took)

    return (spent(predicate) - spent(_nothing)) / (len(times) * len(over)) * 1e6


def _nothing(_: Event) -> None:
    pass


def main(argv: list[str] | None = None) -> list[Result]:
    """Measures each filter."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.language", description=__doc__)
    parser.add_argument("--evaluations", type=int, default=200_000)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(argv)
    over = events()
    results = []
    for name, (text, by_hand) in CASES.items():
        passes = compile_filter(text)
        assert [passes(event) for event in over] == [by_hand(event) for event in over]
        floor = cost(by_hand, over, asked.evaluations)
        results.append(
            result(f"filter: {name}", cost(passes, over, asked.evaluations), "µs CPU per evaluation", floor=floor)
        )
    return finish("language", results, asked.json)


if __name__ == "__main__":
    main()
