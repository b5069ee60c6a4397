"""Mappings: a typical one of 14 fields, compiled, against the same written by hand in Python.

`python -m benchmarks.mapping [--rounds N] [--json FILE]`. CPU (user + system) per event, of a purchase of about 1 KB that is decoded
already; the floor is the function that a person would write for it.
"""

import argparse
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.results import Result, finish, result
from pipeline.language.mapping import compile_mapping
from pipeline.language.triggers import compile_trigger

EVENT: Final[dict[str, Any]] = {
    "type": "track",
    "event": "Order Completed",
    "messageId": "6f2c7a54-0c0e-4a3e-9d6e-4b7f4f7f9c11",
    "userId": "u-10045",
    "anonymousId": "b3f0c7de-6d5a-4b0e-9f0a-0c2f2f0c8a51",
    "timestamp": "2026-11-21T09:05:07.120Z",
    "context": {
        "ip": "203.0.113.7",
        "locale": "en-GB",
        "page": {"url": "https://shop.example/checkout", "path": "/checkout", "title": "Checkout"},
        "traits": {"email": "Ann@Example.com", "phone": "+44 20 7946 0991"},
        "userAgent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36",
    },
    "properties": {
        "order_id": "50314b8e",
        "total": 27.5,
        "currency": "EUR",
        "coupon": None,
        "products": [
            {"sku": "45790-32", "name": "Monopoly", "price": 19, "quantity": 1},
            {"sku": "46493-32", "name": "Uno", "price": 3, "quantity": 2},
        ],
    },
}
MAPPING: Final[dict[str, Any]] = {
    "event_name": {"@path": "$.event"},
    "event_id": {"@path": "$.messageId"},
    "time": {"@path": "$.timestamp"},
    "user": {
        "@if": {"exists": {"@path": "$.userId"}, "then": {"@path": "$.userId"}, "else": {"@path": "$.anonymousId"}}
    },
    "email": {"@case": {"operator": "lower", "value": {"@path": "$.context.traits.email"}}},
    "phone": {"@replace": {"pattern": " ", "replacement": "", "value": {"@path": "$.context.traits.phone"}}},
    "ip": {"@path": "$.context.ip"},
    "agent": {"@path": "$.context.userAgent"},
    "url": {"@path": "$.context.page.url"},
    "order": {"@path": "$.properties.order_id"},
    "title": {"@template": "{{properties.currency}} {{properties.total}}"},
    "coupon": {"@excludeWhenNull": {"@path": "$.properties.coupon"}},
    "lines": {"@arrayPath": ["$.properties.products", {"id": {"@path": "$.sku"}, "count": {"@path": "$.quantity"}}]},
    "source": "shop",
}


def by_hand(event: dict[str, Any]) -> dict[str, Any]:
    """What MAPPING makes."""
    context, properties = event["context"], event["properties"]
    traits = context["traits"]
    made = {
        "event_name": event["event"],
        "event_id": event["messageId"],
        "time": event["timestamp"],
        "user": event["userId"] if event.get("userId") is not None else event["anonymousId"],
        "email": traits["email"].lower(),
        "phone": traits["phone"].replace(" ", ""),
        "ip": context["ip"],
        "agent": context["userAgent"],
        "url": context["page"]["url"],
        "order": properties["order_id"],
        "title": f"{properties['currency']} {properties['total']}",
        "lines": [{"id": one["sku"], "count": one["quantity"]} for one in properties["products"]],
        "source": "shop",
    }
    if properties["coupon"] is not None:
        made["coupon"] = properties["coupon"]
    return made


def cpu_of(work: Callable[[dict[str, Any]], object], rounds: int) -> float:
    """Microseconds for each event."""
    for _ in range(1_000):
        work(EVENT)
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(rounds):
        work(EVENT)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return ((after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)) / rounds * 1e6


def main(argv: list[str] | None = None) -> list[Result]:
    """Runs and prints; returns the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200_000)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(argv)
    mapped = compile_mapping(MAPPING)
    assert mapped(EVENT) == by_hand(EVENT), "both make the same"
    trigger = compile_trigger("type = 'track' and event = 'Order Completed' and properties.total > 0")
    liquid = compile_mapping({"text": {"@liquid": "{{ event | upcase }} {% if properties.total > 20 %}big{% endif %}"}})
    floor = cpu_of(by_hand, asked.rounds)
    results = [
        result("mapping of 14 fields", cpu_of(mapped, asked.rounds), "µs CPU", floor=floor),
        result("trigger of 3 conditions", cpu_of(trigger, asked.rounds), "µs CPU"),
        result("Liquid template", cpu_of(liquid, asked.rounds), "µs CPU"),
    ]
    return finish("mappings, for each event", results, asked.json)


if __name__ == "__main__":
    main()
