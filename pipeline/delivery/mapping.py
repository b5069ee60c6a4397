"""Which of a destination's mappings an event triggers, and the payloads they make of it: looked up and compiled once."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, NamedTuple, cast

from pydantic import ValidationError

from destinations.contract import (
    MESSAGE_ID,
    Action,
    Definition,
    Member,
    Payload,
    Preset,
    RawEvent,
    Synced,
    filled_fields,
)
from pipeline.delivery.batching import PAYLOAD_VALIDATION_FAILED, SWITCHES, Batching, batching, encoded, switches
from pipeline.delivery.limits import Destination
from pipeline.delivery.membership import INVALID_AUDIENCE_MEMBERSHIP, membership
from pipeline.delivery.shared import whole
from pipeline.language.filters import Filter, FilterError
from pipeline.language.mapping import MappingError, compile_mapping
from pipeline.language.rules import compile_rules
from pipeline.language.triggers import compile_trigger
from schemas.config import DestinationLimits, MappingConfig, SyncMode
from schemas.events import Resolved

NO_MATCHING_MAPPING: Final = "NO_MATCHING_MAPPING"
SYNC_MODE: Final = "__segment_internal_sync_mode"  # where a mapping of the reference has its mode

Build = Callable[[RawEvent], Any]
"""A payload from an event. ValueError says what is wrong, in words without values."""


@dataclass(frozen=True, slots=True)
class Route:
    """A mapping as the engine takes it. `trigger` None: every event of the action's types."""

    name: str
    action: Action[Any, Any]
    trigger: Filter | None
    build: Build | None  # None: the event itself
    batching: Batching

    def payload(self, event: RawEvent) -> Any:
        """What the action gets of an event. ValueError says, in words without values, why there is nothing."""
        if self.build is not None:
            return self.build(event)
        return encoded(event) if self.action.encoded else event


@dataclass(frozen=True, slots=True)
class Routing:
    """All that a destination does. `triggered`: its mappings are told apart by triggers, which see events before a function
    does; else each event goes to the first action that takes its type, as the function left it."""

    routes: Sequence[Route]
    triggered: bool
    by_type: Mapping[str, Sequence[Route]]
    shape: Callable[[RawEvent], RawEvent] | None
    only: Route | None = None
    """Where there is nothing to choose: every event goes by it, and events go together whatever they hold."""

    def of_type(self, kind: str) -> Sequence[Route]:
        """The mappings whose action takes events of this type."""
        return self.by_type.get(kind, ())

    def triggered_by(self, resolved: Resolved) -> Sequence[Route]:
        """The mappings that an event triggers, in order. ValueError when its body cannot be read."""
        routes = self.of_type(resolved.event.type)
        if not any(route.trigger for route in routes):
            return routes
        event = whole(resolved)
        if self.shape is not None:
            event = self.shape(event)
        return [route for route in routes if route.trigger is None or route.trigger(event)]


def routing(destination: Destination) -> Routing:
    """Everything looked up once. The configuration has been checked: `mapping_faults` finds nothing in it."""
    definition = destination.definition
    wanted = configured(definition, destination.mappings, destination.presets)
    if wanted is None:
        routes = [_plain(action, destination.limits) for action in definition.actions]
        first: dict[str, Sequence[Route]] = {}
        for route in routes:
            for kind in route.action.types:
                first.setdefault(kind, (route,))
        one = routes[0]
        alone = all(taken == (one,) for taken in first.values()) and one.batching.counts_only
        return Routing(routes, False, first, None, one if alone else None)
    routes = list(_routes(definition, wanted, destination.limits))
    kinds = {kind for action in definition.actions for kind in action.types}
    by_type = {kind: [route for route in routes if kind in route.action.types] for kind in kinds}
    return Routing(routes, True, by_type, compile_rules(None, destination.filters).shape)


def configured(
    definition: Definition[Any, Any],
    mappings: Sequence[MappingConfig] | None,
    presets: bool | Sequence[str] | None = None,
) -> Sequence[MappingConfig] | None:
    """The mappings of a destination: its configuration's, then the presets that are on; None where there are neither."""
    shipped = [
        MappingConfig(name=one.name, action=one.action, trigger=one.trigger, mapping=one.mapping)
        for one in definition.presets
        if _is_on(one, mappings, presets)
    ]
    return None if mappings is None and not shipped else [*(mappings or ()), *shipped]


def _is_on(preset: Preset, mappings: Sequence[MappingConfig] | None, presets: bool | Sequence[str] | None) -> bool:
    if presets is None:
        return preset.on and mappings is None
    return presets if isinstance(presets, bool) else preset.name in presets


def names_of(mappings: Sequence[MappingConfig]) -> list[str]:
    """What mappings are called: as they say, else as their actions, the second one `action-2`."""
    seen: Counter[str] = Counter()
    names = []
    for one in mappings:
        if one.name is None:
            seen[one.action] += 1
        count = seen[one.action]
        names.append(one.name or (one.action if count == 1 else f"{one.action}-{count}"))
    return names


def _plain(action: Action[Any, Any], limits: DestinationLimits | None) -> Route:
    build = None if action.payload is None else mapping(cast(type[Payload], action.payload), _mode(action, None))
    return Route(action.name, action, None, build, batching(action, None, limits))


def _routes(
    definition: Definition[Any, Any], wanted: Sequence[MappingConfig], limits: DestinationLimits | None
) -> Iterator[Route]:
    actions = {action.name: action for action in definition.actions}
    used: set[str] = set()
    for name, one in zip(names_of(wanted), wanted, strict=True):
        action = actions[one.action]
        again = action.name in used
        used.add(action.name)
        if not one.enabled:
            continue
        text = action.subscribe if one.trigger is None else one.trigger
        trigger = None if text.strip() == "all" else compile_trigger(text)
        build = None
        if action.payload is not None:
            directives = _directives(action, one)
            made = _defaults(action.payload) if directives is None else directives
            build = _builder(action.payload, made, f":{name}" if again else "", _mode(action, one))
        yield Route(name, action, trigger, build, batching(action, one, limits))


def _directives(action: Action[Any, Any], one: MappingConfig) -> dict[str, Any] | None:
    """A mapping without what it says of batches and modes among its fields."""
    said = {*switches(action, one), SYNC_MODE}
    return one.mapping and {key: value for key, value in one.mapping.items() if key not in said}


def _mode(action: Action[Any, Any], one: MappingConfig | None) -> SyncMode | None:
    """A mapping's mode, else the action's."""
    said: SyncMode | None = None if one is None else one.sync_mode or (one.mapping or {}).get(SYNC_MODE)
    return said or next(iter(action.sync_modes), None)


# ── Payloads ──────────────────────────────────────────────────────────────────────────────────────────────────────


@cache
def mapping(payload: type[Payload], mode: SyncMode | None = None) -> Build:
    """Makes a payload of an event by its fields' default mappings."""
    return _builder(payload, _defaults(payload), "", mode)


def _defaults(payload: type[Payload]) -> dict[str, Any]:
    found = {}
    for name, field in payload.model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and "mapped" in extra and name != MESSAGE_ID:
            found[name] = extra["mapped"]
    return found


def _builder(payload: type[Payload], directives: Mapping[str, Any], suffix: str, mode: SyncMode | None) -> Build:
    """What an event lacks is left to the field's default. `suffix` tells the ids of payloads apart that are made of one event."""
    made = compile_mapping(directives)
    validate = payload.model_validate
    always = {"sync_mode": mode} if issubclass(payload, Synced) else {}
    tells = issubclass(payload, Member)

    def build(event: RawEvent) -> Payload:
        found = made(event)
        if not isinstance(found, dict):
            raise ValueError(f"{PAYLOAD_VALIDATION_FAILED}: the mapping gives no object")
        filled = {**found, **always, MESSAGE_ID: event["messageId"] + suffix}
        if tells:
            filled["member"] = _member(event, mode)
        try:
            return validate(filled)
        except ValidationError as error:
            wrong = sorted({".".join(map(str, one["loc"])) for one in error.errors()})
            raise ValueError(f"{PAYLOAD_VALIDATION_FAILED}: {', '.join(wrong)}") from error

    return build


def _member(event: RawEvent, mode: SyncMode | None) -> bool:
    member = membership(event, mode)
    if member is None:
        raise ValueError(INVALID_AUDIENCE_MEMBERSHIP)
    return member


# ── Faults ────────────────────────────────────────────────────────────────────────────────────────────────────────


class MappingsFault(NamedTuple):
    """What is wrong with `mappings`: the keys and indices that lead there, what, and what to do."""

    path: tuple[str | int, ...]
    what: str


def preset_faults(definition: Definition[Any, Any], presets: bool | Sequence[str] | None) -> Iterator[MappingsFault]:
    """What is wrong with `presets`."""
    known = [one.name for one in definition.presets]
    for index, name in enumerate(presets if not isinstance(presets, bool) and presets else ()):
        if name not in known:
            there = f"there are {', '.join(known)}" if known else f"{definition.name} ships none"
            yield MappingsFault((index,), f"unknown preset; {there}")


def mapping_faults(
    definition: Definition[Any, Any], mappings: Sequence[MappingConfig], presets: bool | Sequence[str] | None = None
) -> Iterator[MappingsFault]:
    """Everything that is wrong with the mappings of a destination, beside presets that are on."""
    shipped = {one.name for one in definition.presets if _is_on(one, mappings, presets)}
    actions = {action.name: action for action in definition.actions}
    owners: dict[str, int] = {}
    for index, (name, one) in enumerate(zip(names_of(mappings), mappings, strict=True)):
        if owners.setdefault(name, index) != index:
            yield MappingsFault((index, "name"), f"is also the name of mapping {owners[name] + 1}; choose another")
        elif name in shipped:
            yield MappingsFault((index, "name"), "is also the name of a preset that is on; choose another")
        action = actions.get(one.action)
        if action is None:
            yield MappingsFault((index, "action"), f"unknown action; there are {', '.join(actions)}")
            continue
        if one.trigger is not None:
            try:
                compile_trigger(one.trigger)
            except FilterError as error:
                yield MappingsFault((index, "trigger"), str(error))
        if (mode := _mode(action, one)) is not None and mode not in action.sync_modes:
            known = f"choose one of {', '.join(action.sync_modes)}" if action.sync_modes else "leave it out"
            yield MappingsFault((index, "sync_mode"), f"is no mode of {action.name}; {known}")
        if one.mapping is not None:
            yield from _field_faults(action, one, index)


def _field_faults(action: Action[Any, Any], one: MappingConfig, index: int) -> Iterator[MappingsFault]:
    payload = action.payload
    if payload is None:
        yield MappingsFault((index, "mapping"), f"{action.name} takes whole events; leave mapping out")
        return
    directives = _directives(action, one)
    for key, value in switches(action, one).items():
        fits, what = SWITCHES[key]
        if value is not None and not fits(value):
            yield MappingsFault((index, "mapping", key), what)
    try:
        compile_mapping(directives)
    except MappingError as error:
        for fault in error.faults:
            yield MappingsFault((index, "mapping", *fault.path), fault.what)
    fields, filled = payload.model_fields, filled_fields(payload)
    directive = any(key.startswith("@") or key == "__segment_internal_directive" for key in directives or ())
    for key in directives or ():
        if key in filled:
            yield MappingsFault((index, "mapping", key), "is the event's own; leave it out")
        elif key not in fields and not directive:
            listed = ", ".join(name for name in fields if name not in filled)
            yield MappingsFault((index, "mapping", key), f"unknown field; {action.name} has {listed}")
    for name, field in fields.items():
        if field.is_required() and name not in filled and name not in (directives or ()) and not directive:
            yield MappingsFault((index, "mapping"), f"needs {name}: {field.description}")
