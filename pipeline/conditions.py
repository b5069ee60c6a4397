"""Conditions on a person's traits, ids and consent: the tree that audiences and searches are made of, as JSON. Pure.

    {"and": [{"trait": "plan", "op": "equals", "value": "pro"}, {"not": {"id": "email", "op": "ends_with", "value": "@shop.test"}}]}

A leaf names a `trait` (a dot leads into an object), an `id` by its type, or a category of `consent`, which is true, false or
"conflict". Without a value, as a category that was never asked for, a comparison is false and its negation true (specification of
audiences, section 3.2); an id of several values matches when one of them does.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from pipeline.profile import CONFLICT
from schemas.errors import Refused
from schemas.events import ExternalId
from schemas.exact_json import json_dumps

MOST: Final = 100  # leaves and groups in one tree
DEEPEST: Final = 10

Traits = Mapping[str, Any]


class Person(NamedTuple):
    """What conditions are about: trait values, external ids, and preferences by category."""

    traits: Traits
    ids: Sequence[ExternalId] = ()
    consent: Mapping[str, bool | str] = {}


@dataclass(frozen=True, slots=True)
class Leaf:
    """One comparison. `what` is trait, id or consent, `name` of which one."""

    what: str
    name: str
    op: str
    value: Any

    def holds(self, person: Person, now: datetime) -> bool:
        """Whether it is true of a person; `now` is the time to which days are relative."""
        negated, op = _NEGATED.get(self.op, (False, self.op))
        return negated is not any(_OPERATORS[op](one, self.value, now) for one in self._found(person))

    def _found(self, person: Person) -> Sequence[Any]:
        if self.what == "id":
            return [one.value for one in person.ids if one.type == self.name]
        held = trait_at(person.traits, self.name) if self.what == "trait" else person.consent.get(self.name)
        return [] if held is None else [held]


@dataclass(frozen=True, slots=True)
class Group:
    """`and`, `or` and `not` of other conditions."""

    kind: str
    parts: "Sequence[Condition]"

    def holds(self, person: Person, now: datetime) -> bool:
        if self.kind == "not":
            return not self.parts[0].holds(person, now)
        held = (one.holds(person, now) for one in self.parts)
        return all(held) if self.kind == "and" else any(held)


Condition = Leaf | Group


def parse(tree: Any) -> Condition:
    """The condition that a JSON value describes. Refused, with the place in the tree, when it is none."""
    parsed = _parsed(tree, "where", 1)
    if sum(1 for _ in _every(parsed)) > MOST:
        raise _wrong("where", f"has more than {MOST} conditions; split the question")
    return parsed


def leaves(condition: Condition) -> Iterator[Leaf]:
    """Every comparison in it."""
    return (one for one in _every(condition) if isinstance(one, Leaf))


def required(condition: Condition) -> Sequence[Leaf]:
    """Comparisons that must be true, and need a value to be, whenever the whole is."""
    if isinstance(condition, Leaf):
        return () if condition.op in _NEGATED else (condition,)
    if condition.kind == "and":
        return [leaf for one in condition.parts for leaf in required(one)]
    return ()


def needles(condition: Condition) -> Sequence[str]:
    """Texts that the stored JSON of the traits holds whenever the condition is true: what a database can look for without
    knowing JSON. Equal strings are found as they are written, since we wrote them."""
    found = []
    for leaf in required(condition):
        if leaf.what == "trait" and "." not in leaf.name:
            found.append(json_dumps(leaf.name).decode() + ":[")
            if leaf.op == "equals" and isinstance(leaf.value, str):
                found.append("," + json_dumps(leaf.value).decode())
    return found


def trait_at(traits: Traits, name: str) -> Any:
    """A trait by its name, or what a path with dots leads to; None when there is nothing."""
    if name in traits or "." not in name:
        return traits.get(name)
    held: Any = traits
    for part in name.split("."):
        held = held.get(part) if isinstance(held, Mapping) else None
    return held


# ── Reading ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _every(condition: Condition) -> Iterator[Condition]:
    yield condition
    if isinstance(condition, Group):
        for one in condition.parts:
            yield from _every(one)


def _parsed(tree: Any, place: str, depth: int) -> Condition:
    if not isinstance(tree, dict):
        raise _wrong(place, 'must be an object such as {"trait": "plan", "op": "equals", "value": "pro"}')
    if depth > DEEPEST:
        raise _wrong(place, f"is nested more than {DEEPEST} deep")
    for kind in ("and", "or"):
        if tree.keys() == {kind}:
            if not isinstance(tree[kind], list) or not tree[kind]:
                raise _wrong(f"{place}.{kind}", "must be a list of conditions, not empty")
            parts = [_parsed(one, f"{place}.{kind}[{n}]", depth + 1) for n, one in enumerate(tree[kind])]
            return Group(kind, parts)
    if tree.keys() == {"not"}:
        return Group("not", [_parsed(tree["not"], f"{place}.not", depth + 1)])
    return _leaf(tree, place)


def _leaf(tree: Mapping[str, Any], place: str) -> Leaf:
    what = next((one for one in _KINDS if one in tree), "id")
    name, op = tree.get(what), tree.get("op")
    if not isinstance(name, str) or not name or not tree.keys() <= {what, "op", "value"}:
        raise _wrong(
            place, "must have `and`, `or` or `not` alone, or one of `trait`, `id`, `consent` with `op` and `value`"
        )
    if not isinstance(op, str) or op not in _VALUES:
        raise _wrong(f"{place}.op", f"must be one of {', '.join(_VALUES)}")
    accepts, wanted = _VALUES[op]
    if not accepts(tree.get("value")) or (what == "id" and op in _NOT_OF_IDS):
        raise _wrong(place, f"{op} {'does not compare an id with that' if what == 'id' else 'needs ' + wanted}")
    if what == "consent" and not _is_of_consent(op, tree.get("value")):
        raise _wrong(place, f"compares consent: {_PREFERENCE}")
    if what == "id" and "\0" in f"{name}{tree.get('value')}":
        raise _wrong(place, "holds a NUL character, which no id does")
    return Leaf(what, name, op, tree.get("value"))


def _wrong(place: str, problem: str) -> Refused:
    return Refused("validation_error", f"{place} {problem}.")


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | bool | int | float)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= MOST and all(_is_scalar(one) for one in value)


def _is_days(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 36_500


def _is_of_consent(op: str, value: Any) -> bool:
    if op in ("exists", "not_exists"):
        return True
    wanted = value if op == "one_of" else [value]
    return op in ("equals", "not_equals", "one_of") and all(isinstance(one, bool) or one == CONFLICT for one in wanted)


def _is_moment(value: Any) -> bool:
    return _moment(value) is not None


def _moment(value: Any) -> datetime | None:
    """A full ISO timestamp with its zone: anything less names no instant."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return moment if moment is not None and moment.tzinfo is not None else None


_KINDS: Final = ("trait", "id", "consent")
_PREFERENCE: Final = f"use equals, not_equals or one_of with true, false or {CONFLICT!r}, or exists or not_exists"
_TEXT, _NUMBER, _SCALAR = "a text", "a number", "a text, a number or a boolean"
_LIST = f"a list of at most {MOST} texts, numbers or booleans"
_MOMENT, _DAYS = "an ISO timestamp with its zone", "a number of days"
_VALUES: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "equals": (_is_scalar, _SCALAR),
    "not_equals": (_is_scalar, _SCALAR),
    "one_of": (_is_list, _LIST),
    "less_than": (_is_number, _NUMBER),
    "greater_than": (_is_number, _NUMBER),
    "less_or_equal": (_is_number, _NUMBER),
    "greater_or_equal": (_is_number, _NUMBER),
    "contains": (_is_scalar, _SCALAR),
    "not_contains": (_is_scalar, _SCALAR),
    "contains_any_of": (_is_list, _LIST),
    "starts_with": (_is_text, _TEXT),
    "ends_with": (_is_text, _TEXT),
    "exists": (lambda value: value is None, "no value"),
    "not_exists": (lambda value: value is None, "no value"),
    "before_date": (_is_moment, _MOMENT),
    "after_date": (_is_moment, _MOMENT),
    "within_last": (_is_days, _DAYS),
    "within_next": (_is_days, _DAYS),
    "before_last": (_is_days, _DAYS),
    "after_next": (_is_days, _DAYS),
}
_NEGATED: Final = {"not_equals": (True, "equals"), "not_contains": (True, "contains"), "not_exists": (True, "exists")}
_NOT_OF_IDS: Final = frozenset(list(_VALUES)[3:7] + list(_VALUES)[14:])


# ── Comparing ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _equal(held: Any, wanted: Any) -> bool:
    """Numbers by value, everything else by type and value."""
    if _is_number(held) and _is_number(wanted):
        return bool(held == wanted)
    return type(held) is type(wanted) and held == wanted


def _contains(held: Any, wanted: Any) -> bool:
    if isinstance(held, list):
        return any(_equal(one, wanted) for one in held)
    return isinstance(held, str) and isinstance(wanted, str) and wanted in held


def _number(compare: Callable[[Any, Any], bool]) -> "_Operator":
    return lambda held, wanted, _: _is_number(held) and compare(held, wanted)


def _date(compare: Callable[[datetime, datetime, datetime], bool], *, days: int = 0) -> "_Operator":
    """Compares a moment with another, and with now; `days` says to which side of now a number of them leads."""

    def holds(held: Any, wanted: Any, now: datetime) -> bool:
        moment = _moment(held)
        other = now + days * timedelta(days=wanted) if days else _moment(wanted)
        return moment is not None and other is not None and compare(moment, other, now)

    return holds


_Operator = Callable[[Any, Any, datetime], bool]
_OPERATORS: Final[Mapping[str, _Operator]] = {
    "equals": lambda held, wanted, _: _equal(held, wanted),
    "one_of": lambda held, wanted, _: any(_equal(held, one) for one in wanted),
    "less_than": _number(lambda held, wanted: bool(held < wanted)),
    "greater_than": _number(lambda held, wanted: bool(held > wanted)),
    "less_or_equal": _number(lambda held, wanted: bool(held <= wanted)),
    "greater_or_equal": _number(lambda held, wanted: bool(held >= wanted)),
    "contains": lambda held, wanted, _: _contains(held, wanted),
    "contains_any_of": lambda held, wanted, _: any(_contains(held, one) for one in wanted),
    "starts_with": lambda held, wanted, _: isinstance(held, str) and held.startswith(wanted),
    "ends_with": lambda held, wanted, _: isinstance(held, str) and held.endswith(wanted),
    "exists": lambda held, wanted, _: True,
    "before_date": _date(lambda held, other, _: held < other),
    "after_date": _date(lambda held, other, _: held > other),
    "within_last": _date(lambda held, other, now: other <= held <= now, days=-1),
    "within_next": _date(lambda held, other, now: now <= held <= other, days=1),
    "before_last": _date(lambda held, other, _: held < other, days=-1),
    "after_next": _date(lambda held, other, _: held > other, days=1),
}
