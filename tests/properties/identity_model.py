"""Section 4 of the identity specification, as plainly as it can be written: what the product is compared with.

Written from the specification alone and slow on purpose: it shares no code with the product, keeps one flat list of people, and
counts everything anew for each event.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Id = tuple[str, str]


class Said(NamedTuple):
    """One accepted event: the identifiers on it in the order of extraction, and the traits that it writes."""

    message: tuple[str, str]  # source, messageId
    ids: Sequence[Id]
    at: int
    received_at: int
    traits: Mapping[str, Any] = {}


@dataclass(frozen=True)
class ModelRules:
    """`limits` holds (count, window) by type, window 0 for ever; other types have 5. `blocked` are values in lower case."""

    limits: Mapping[str, tuple[int, int]] = field(default_factory=lambda: {"user_id": (1, 0)})
    priority: Sequence[str] = ("user_id", "email")
    blocked: frozenset[str] = frozenset({"-1", "null", "anonymous"})
    merges: int = 1_000
    mappings: int = 10_000


@dataclass(eq=False)
class Person:
    """`added` has each of its ids with the time it was added; `writes` has each trait with when it was written."""

    name: str
    created: int
    added: dict[Id, int] = field(default_factory=dict)
    writes: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    events: list[int] = field(default_factory=list)
    merges: int = 0


class Model:
    """Everybody there is, after some events."""

    def __init__(self, name: Callable[[Said], str]) -> None:
        self.name = name
        self.people: list[Person] = []
        self.seen: set[tuple[str, str]] = set()
        self.violations: Counter[tuple[Id, str]] = Counter()

    def owner(self, one: Id) -> Person | None:
        return next((person for person in self.people if one in person.added), None)

    def apply(self, said: Said, rules: ModelRules) -> tuple[str, list[Id]] | None:
        """The name of the person the event belongs to and the ids it promotes, highest first; None when it is a repeat."""
        if said.message in self.seen:  # step 1
            return None
        self.seen.add(said.message)
        at = min(said.at, said.received_at)
        ids: list[Id] = []
        for one in said.ids:  # steps 3 and 4
            if not one[1].strip("0-") or one[1].lower() in rules.blocked:
                self.violations[one, "ID value blocked"] += 1
            elif one not in ids:
                ids.append(one)
        if not ids:
            self.violations[("", ""), "No matching identifiers on event"] += 1
            return "", []

        def rank(one: Id) -> Any:
            return (0, rules.priority.index(one[0]), "") if one[0] in rules.priority else (1, 0, one[0])

        ids.sort(key=rank)
        while len(ids) > 1 and (why := self.broken(ids, at, rules, rank)):  # steps 5 to 8
            self.violations[ids.pop(), why] += 1
        people = self.reached(ids)
        total = sum(len(person.added) for person in people)
        merges = sum(person.merges for person in people) + len(people) - 1
        if len(people) > 1 and (merges > rules.merges or total > rules.mappings):  # step 10
            for one in [one for one in ids if self.owner(one) not in (None, people[0])]:
                ids.remove(one)
                self.violations[one, "Profile merge limit exceeded"] += 1
            people = people[:1]
        person = self.survivor(people, said)
        for one in list(ids):  # steps 9 and 12
            if self.owner(one) is None and len(person.added) >= rules.mappings:
                ids.remove(one)
                self.violations[one, "Identifier mapping limit exceeded"] += 1
            else:
                person.added.setdefault(one, at)
        for trait, value in said.traits.items():  # step 13
            write = (at, said.received_at, said.message[1], said.message[0])
            if trait not in person.writes or person.writes[trait][0] < write:
                person.writes[trait] = (write, value)
        person.events.append(at)
        return person.name, ids

    def reached(self, ids: Sequence[Id]) -> list[Person]:
        found: list[Person] = []
        for one in ids:
            person = self.owner(one)
            if person is not None and person not in found:
                found.append(person)
        return found

    def broken(self, ids: Sequence[Id], at: int, rules: ModelRules, rank: Callable[[Id], Any]) -> str | None:
        """The violation of the highest type that would have too many values, and more than anybody has already."""
        people = self.reached(ids)
        fresh = [one for one in ids if self.owner(one) is None]
        kinds = {kind for person in people for kind, _ in person.added} | {kind for kind, _ in fresh}
        for kind in sorted(kinds, key=lambda kind: rank((kind, ""))):
            limit, window = rules.limits.get(kind, (5, 0))

            def count(added: Mapping[Id, int], kind: str = kind, window: int = window) -> int:
                return sum(1 for one, when in added.items() if one[0] == kind and (not window or when > at - window))

            parts = [count(person.added) for person in people]
            whole = sum(parts) + count(dict.fromkeys(fresh, at))
            if whole > limit and whole > max(parts, default=0):
                return f"Identifier value {'time ' if window else ''}limit exceeded"
        return None

    def survivor(self, people: Sequence[Person], said: Said) -> Person:
        if not people:
            self.people.append(Person(self.name(said), said.received_at))
            return self.people[-1]
        first, *others = sorted(people, key=lambda person: (person.created, person.name))  # step 11
        for other in others:
            first.added |= other.added
            first.events += other.events
            first.merges += 1 + other.merges
            for trait, write in other.writes.items():
                first.writes[trait] = max(first.writes.get(trait, write), write, key=lambda one: one[0])
            self.people.remove(other)
        return first
