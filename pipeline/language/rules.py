"""A destination's filters: which events it gets, and which of their fields. Compiled once, pure.

Samples are taken first, then drops, then fields dropped, then fields allowed, in whatever order they are written. An event for
which one of the conditions cannot be evaluated does not leave: the filter may be there to keep it, or a field of it, in.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from pipeline.language.filters import Condition, Filter, compile_condition, compile_filter, everything, steps_of
from schemas.config import AllowPropertiesAction, DestinationFilter, DropAction, DropPropertiesAction, SampleAction

Shape = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""An event with the fields that may leave; itself when that is all of them. It is not changed. Withheld when it cannot be told."""


class Withheld(ValueError):
    """A condition cannot be evaluated for an event, so that it does not leave."""


class Rules(NamedTuple):
    """`passes` tells whether a destination gets an event; None: every one. `shape` takes fields out; None: none."""

    passes: Filter | None
    shape: Shape | None


def compile_rules(where: str | None, filters: Sequence[DestinationFilter]) -> Rules:
    """The filters of one destination. FilterError when an expression is none."""
    chosen = [(compile_condition(one.if_), action) for one in filters if one.enabled for action in one.actions]
    kept: list[Filter] = [_sampled(matches, action) for matches, action in chosen if isinstance(action, SampleAction)]
    kept += [_false(matches) for matches, action in chosen if isinstance(action, DropAction)]
    if where is not None:
        kept.append(compile_filter(where))
    dropped = [(one, _tree(action.fields)) for one, action in chosen if isinstance(action, DropPropertiesAction)]
    allowed = [(one, _tree(action.fields)) for one, action in chosen if isinstance(action, AllowPropertiesAction)]
    kept += [_evaluable(matches) for matches, _ in (*dropped, *allowed) if matches is not everything]
    return Rules(_all(kept) if kept else None, _shape(dropped, allowed) if dropped or allowed else None)


def _all(filters: Sequence[Filter]) -> Filter:
    if len(filters) == 1:
        return filters[0]
    return lambda event: all(one(event) for one in filters)


def _false(matches: Condition) -> Filter:
    return lambda event: matches(event) is False


def _evaluable(matches: Condition) -> Filter:
    return lambda event: matches(event) is not None


# ── Samples ───────────────────────────────────────────────────────────────────────────────────────────────────────

_WHOLE: Final = 1 << 64


def _sampled(matches: Condition, action: SampleAction) -> Filter:
    """By the value at the path, else by messageId: an event that is tried again, or replayed, has the same luck."""
    steps, share = steps_of(action.path or "messageId"), action.percent * _WHOLE

    def passes(event: Mapping[str, Any]) -> bool:
        meant = matches(event)
        return meant is False or (meant is True and _luck(_at(event, steps)) < share)

    return passes


def _luck(value: Any) -> int:
    text = json.dumps(value, sort_keys=True)  # in ASCII, whatever is in it
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())


def _at(event: Any, steps: Iterable[str]) -> Any:
    for step in steps:
        if not isinstance(event, dict):
            return None
        event = event.get(step)
    return event


# ── Fields ────────────────────────────────────────────────────────────────────────────────────────────────────────

_Tree = dict[str, Any]
"""Names as they are nested: a dictionary for what lies deeper, None for a field that is meant whole."""
_Keys = Sequence[tuple[Sequence[str], _Tree]]


def _tree(fields: Mapping[str, Sequence[str]]) -> _Keys:
    """Containers by their steps, each with its keys."""
    return [(steps_of(container), _nested(keys)) for container, keys in fields.items()]


def _nested(keys: Sequence[str]) -> _Tree:
    tree: _Tree = {}
    for key in sorted(keys):  # what is meant whole comes before what lies in it
        *above, last = steps_of(key)
        place: _Tree | None = tree
        for step in above:
            place = place.setdefault(step, {}) if place is not None else None
        if place is not None:
            place[last] = None
    return tree


def _shape(dropped: Sequence[tuple[Condition, _Keys]], allowed: Sequence[tuple[Condition, _Keys]]) -> Shape:
    changes = [(*one, _without) for one in dropped] + [(*one, _only) for one in allowed]

    def shape(event: Mapping[str, Any]) -> Mapping[str, Any]:
        made: Any = event
        for matches, containers, change in changes:
            meant = matches(event)
            if meant is None:
                raise Withheld("the condition of a filter cannot be evaluated")
            if meant:
                for steps, tree in containers:
                    made = _within(made, steps, tree, change)
        return made  # type: ignore[no-any-return]  # made of the event

    return shape


def _within(value: Any, steps: Sequence[str], tree: _Tree, change: Callable[[dict[str, Any], _Tree], Any]) -> Any:
    """The value with what is at the steps changed. A list stands for each of its objects."""
    if isinstance(value, list):
        return [_within(one, steps, tree, change) for one in value]
    if not isinstance(value, dict):
        return value
    if not steps:
        return change(value, tree)
    if steps[0] not in value:
        return value
    return value | {steps[0]: _within(value[steps[0]], steps[1:], tree, change)}


def _without(value: dict[str, Any], tree: _Tree) -> dict[str, Any]:
    made = {name: one for name, one in value.items() if name not in tree or tree[name] is not None}
    for name, deeper in tree.items():
        if deeper is not None and name in made:
            made[name] = _within(made[name], (), deeper, _without)
    return made


def _only(value: dict[str, Any], tree: _Tree) -> dict[str, Any]:
    return {
        name: one if tree[name] is None else _within(one, (), tree[name], _only)
        for name, one in value.items()
        if name in tree
    }
