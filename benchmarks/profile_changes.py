"""What `profile-changes` costs an event: `python -m benchmarks.profile_changes [--json FILE]`.

An event whose ids are known changes nothing; the floor is to apply it and to note it for `resolved`. One of a new person costs what is
told of it beside that.
"""

import argparse
import gc
import timeit
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import orjson

from benchmarks.results import Result, finish, result
from pipeline.changes import changes_of
from pipeline.graph import Graph
from pipeline.identity import Rules
from pipeline.profile import message_key
from pipeline.store.intake import Emission
from schemas.changes import ProfileChange, encode_change
from schemas.events import Event, ExternalId, Origin

ROUNDS: Final = 20_000
AT: Final = 1_790_000_000_000_000
BODY: Final = orjson.dumps({"type": "track", "event": "Product Viewed", "properties": {"note": "n" * 900}})


def event(number: int) -> tuple[Event, bytes, list[ExternalId]]:
    message, user, device = f"message-{number:09d}", f"user-{number}", f"device-{number}"
    made = Event("web", "track", message, device, user, AT + number, None, AT + number, "server", None, None, BODY)
    return made, message_key("web", message), [ExternalId("user_id", user), ExternalId("anonymous_id", device)]


def known() -> tuple[Callable[[], None], Callable[[], None]]:
    """Applies an event that changes nothing: with what tells of changes, and without."""
    one, key, ids = event(0)
    graph, rules = Graph(), Rules()
    graph.apply(one, key, ids, None, rules)
    emissions: list[Emission] = []

    def told() -> None:
        changes: Sequence[ProfileChange] = ()
        outcome = graph.apply(one, key, ids, None, rules)
        if graph.news is not None:
            changes = changes_of(one, key, graph.news)
        emissions.append(Emission(Origin(0, 0), outcome.profile, ids, b"", one.body, None, changes))
        [change for each in emissions if each.changes for change in each.changes]
        emissions.clear()

    def silent() -> None:
        outcome = graph.apply(one, key, ids, None, rules)
        emissions.append(Emission(Origin(0, 0), outcome.profile, ids, b"", one.body, None))
        emissions.clear()

    return told, silent


def new() -> Callable[[], None]:
    """What is told of an event that creates a profile."""
    one, key, ids = event(0)
    graph = Graph()
    graph.apply(one, key, ids, None, Rules())
    news = graph.news
    assert news is not None
    return lambda: [encode_change(change) for change in changes_of(one, key, news)].clear()


def micros(work: Callable[[], None]) -> float:
    """The best of several runs, in microseconds: the others tell of the machine."""
    gc.collect()
    return min(timeit.repeat(work, number=ROUNDS, repeat=9)) / ROUNDS * 1e6


def main(argv: list[str] | None = None) -> list[Result]:
    """Runs and prints; returns the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile_changes", description=__doc__)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(argv)
    told, silent = known()
    results = [
        result(
            "an event that changes nothing (floor: nothing is told of any)", micros(told), "µs", floor=micros(silent)
        ),
        result("what is told of an event that creates a profile", micros(new()), "µs"),
    ]
    return finish("profile_changes", results, asked.json)


if __name__ == "__main__":
    main()
