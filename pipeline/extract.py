"""What identity needs of an event: the identifiers in the places that the rules name, and the traits that it writes. Pure.

Of the body only those places are decoded; the rest is skipped over.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple

import msgspec

from pipeline.identity import (
    BLOCKED,
    HAS_NUL,
    MALFORMED,
    MAX_ID_BYTES,
    NOT_A_VALUE,
    TOO_LONG,
    UNKNOWN_TYPE,
    Demoted,
    IdType,
    Rules,
)
from schemas.events import Event, ExternalId
from schemas.exact_json import json_loads
from schemas.reasons import Reason


class Found(NamedTuple):
    """What an event says. `ids` name the person and `accounts` the account, both the most trusted first; `refused` are
    identifiers that by some rule are none; `traits` is what an identify writes to the person and a group to the account; `consent`
    what the person prefers by category, None where nothing is said of it."""

    ids: Sequence[ExternalId]
    accounts: Sequence[ExternalId]
    refused: Sequence[Demoted]
    traits: Mapping[str, Any] | None
    consent: Mapping[str, bool] | None = None


_Other = list[msgspec.Raw] | str | float | bool | None  # what is no object holds nothing
_NOTHING: Final = msgspec.Raw(b"null")


class _Device(msgspec.Struct, gc=False, rename="camel"):
    type: Any = None
    id: Any = None
    advertising_id: Any = None
    ad_tracking_enabled: Any = None
    token: Any = None


class _Google(msgspec.Struct, gc=False, rename="camel"):
    client_id: Any = None


class _Integrations(msgspec.Struct, gc=False):
    google: _Google | _Other = msgspec.field(default=None, name="Google Analytics")


class _Braze(msgspec.Struct, gc=False):
    braze_id: Any = None


class _Consent(msgspec.Struct, gc=False):
    preferences: Any = msgspec.field(default=None, name="categoryPreferences")


class _Bound(NamedTuple):
    """The name of a trait that holds an identifier, and the field of the holder that it is decoded into."""

    key: str
    field: str
    type: IdType


class _Places(NamedTuple):
    """Which traits and properties of a call are identifiers."""

    traits: Sequence[_Bound]
    context_traits: Sequence[_Bound]
    properties: Sequence[_Bound]


class Extract:
    """Reads events under some rules."""

    def __init__(self, rules: Rules) -> None:
        self._types = {name: one for name, one in rules.types.items() if one.enabled}
        self._known: _Known = {name: {} for name in self._types}
        self._plain: dict[tuple[str | None, str | None], Found] = {}
        self._alias_identifies = rules.config.alias_identifies
        bound = [(key, one) for one in self._types.values() for key in one.keys]
        email = [("email", self._types["email"])] if "email" in self._types else []
        cross = [("crossDomainId", self._types["cross_domain_id"])] if "cross_domain_id" in self._types else []
        fields = {key: f"key_{number}" for number, (key, _) in enumerate([*email, *cross, *bound])}

        def places(*holders: Iterable[tuple[str, IdType]]) -> _Places:
            return _Places(*([_Bound(key, fields[key], one) for key, one in dict.fromkeys(each)] for each in holders))

        of_page = [*(email if rules.config.email_in_properties else ()), *bound]
        self._identifying = places([*email, *bound], [*email, *cross, *bound], [])
        self._viewing = places(email, [*email, *cross, *bound], of_page)
        self._alias = places(email, [*email, *cross, *bound], [])
        holder: Any = msgspec.defstruct(
            "Holder",
            [(name, Any, None) for name in fields.values()],
            rename={name: key for key, name in fields.items()},
            gc=False,
        )
        sparse, context = _body(holder | _Other, None)
        self._sparse: msgspec.json.Decoder[Any] = msgspec.json.Decoder(sparse)
        self._whole: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_body(msgspec.Raw, _NOTHING)[0])
        self._blank = [
            sparse(properties=properties, context=of) for of in (context(), None) for properties in (holder(), None)
        ]

    def __call__(self, event: Event) -> Found | Reason:
        """A reason when the event is to be refused. ValueError when what is needed of the body is not JSON."""
        kind, user_id, anonymous_id = event.type, event.user_id, event.anonymous_id
        body = self._decoded(kind, event.body)
        if body is None or body in self._blank:
            return self._plainly(user_id, anonymous_id)
        if kind == "track" and _is_blank(getattr(body.context, "group_id", None)):
            return Reason.GROUP_ID_REQUIRED
        reading = _Reading(self._types, self._known)
        if user_id is not None:
            reading.add("user_id", user_id)
        traits = self._read(kind, body, reading)
        if anonymous_id is not None:
            reading.add("anonymous_id", anonymous_id)
        return reading.arranged(traits, _consent(body.context))

    def _plainly(self, user_id: str | None, anonymous_id: str | None) -> Found:
        """What an event says whose body says nothing, as with most of a kind that is no identify. It is the same for each of a visitor."""
        found = self._plain.get((user_id, anonymous_id))
        if found is None:
            reading = _Reading(self._types, self._known)
            reading.add("user_id", user_id)
            reading.add("anonymous_id", anonymous_id)
            if len(self._plain) >= _REMEMBERED:
                self._plain.clear()
            found = self._plain[user_id, anonymous_id] = reading.arranged(None, None)
        return found

    def _decoded(self, kind: str, body: bytes) -> Any:
        """The places of the body; None when it is no object."""
        try:
            return (self._whole if kind in _WHOLE else self._sparse).decode(body)
        except msgspec.ValidationError:
            return None
        except (msgspec.DecodeError, RecursionError) as error:
            raise ValueError(f"the body is not JSON: {error}") from error

    def _read(self, kind: str, body: Any, reading: "_Reading") -> Mapping[str, Any] | None:
        context: Any = body.context if isinstance(body.context, msgspec.Struct) else None
        if context is not None and context.external_ids is not None:
            reading.external_ids(context.external_ids)
        written: Mapping[str, Any] | None = None
        traits, of_context = body.traits, None if context is None else context.traits
        if kind in _WHOLE:
            places, traits = self._identifying, json_loads(bytes(traits))
            of_context = None if of_context is None or of_context is _NOTHING else json_loads(bytes(of_context))
            written = of_context if kind == "identify" and traits is None else traits
            reading.add("group_id", body.group_id if kind == "group" else None)
        else:
            places = self._viewing if kind in _VIEWS else self._alias
            if kind == "alias" and self._alias_identifies:
                reading.add("user_id", body.previous_id)
        if traits is not None:
            reading.held(traits, places.traits)
        if of_context is not None:
            reading.held(of_context, places.context_traits)
        if body.properties is not None:
            reading.held(body.properties, places.properties)
        if context is not None:
            _of_context(context, reading)
        return written if isinstance(written, dict) else None


_WHOLE: Final = frozenset({"identify", "group"})
_VIEWS: Final = frozenset({"track", "page", "screen"})


@lru_cache(maxsize=8)
def extractor(rules: Rules) -> Extract:
    """One per rules."""
    return Extract(rules)


def _body(traits: Any, nothing: Any) -> tuple[Any, Any]:
    """The places of a body, and of its context, whose traits are decoded in one way or another."""
    context: Any = msgspec.defstruct(
        "Context",
        [
            ("traits", traits, nothing),
            ("device", _Device | _Other, None),
            ("external_ids", Any, None),
            ("group_id", Any, None),
            ("integrations", _Integrations | _Other, None),
            ("braze", _Braze | _Other, None),
            ("consent", _Consent | _Other, None),
        ],
        rename={"external_ids": "externalIds", "group_id": "groupId", "braze": "Braze"},
        gc=False,
    )
    body = msgspec.defstruct(
        "Body",
        [
            ("traits", traits, nothing),
            ("properties", traits, nothing),
            ("context", context | _Other, None),
            ("group_id", Any, None),
            ("previous_id", Any, None),
        ],
        rename="camel",
        gc=False,
    )
    return body, context


def _of_context(context: Any, reading: "_Reading") -> None:
    """Identifiers that devices and tools put into the context."""
    if isinstance(context.device, _Device):
        _of_device(context.device, reading)
    if context.group_id is not None:
        reading.add("group_id", context.group_id)
    if isinstance(context.integrations, _Integrations) and isinstance(context.integrations.google, _Google):
        reading.add("ga_client_id", context.integrations.google.client_id)
    if isinstance(context.braze, _Braze):
        reading.add("braze_id", context.braze.braze_id)


def _of_device(device: _Device, reading: "_Reading") -> None:
    system = device.type.lower() if isinstance(device.type, str) else None
    if system in ("android", "ios"):
        reading.add(f"{system}.id", device.id)
        reading.add(f"{system}.push_token", device.token)
        if device.ad_tracking_enabled is True:
            reading.add(f"{system}.idfa", device.advertising_id)


def _consent(context: Any) -> Mapping[str, bool] | None:
    """Preferences by category. What is no category or no answer says nothing; nor does an object without them."""
    given = getattr(getattr(context, "consent", None), "preferences", None)
    if not isinstance(given, dict):
        return None
    stated = {name: value for name, value in given.items() if isinstance(value, bool) and _is_category(name)}
    if given and not stated:
        return None
    return stated if len(stated) <= _CATEGORIES else dict(sorted(stated.items())[:_CATEGORIES])


def _is_category(name: str) -> bool:
    return 0 < len(name) < 35 and not name[0].isdigit() and "\0" not in name


_CATEGORIES: Final = 100  # of one event: more than any banner asks for


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


class _Reading:
    """Collects the identifiers of one event. `known` remembers what became of values, since most come again and again."""

    __slots__ = ("found", "known", "refused", "types")

    def __init__(self, types: Mapping[str, IdType], known: "_Known") -> None:
        self.types, self.known = types, known
        self.found: list[ExternalId] = []
        self.refused: list[Demoted] = []

    def add(self, kind: str, value: Any) -> None:
        """An identifier of a type that may not be enabled. A blank one is none."""
        if value is not None and (one := self.types.get(kind)) is not None:
            self._add(one, value)

    def held(self, holder: Any, bounds: Sequence[_Bound]) -> None:
        """Identifiers among traits or properties: a dictionary, a decoded holder, or something that holds nothing."""
        if isinstance(holder, dict):
            for key, _, kind in bounds:
                if (value := holder.get(key)) is not None:
                    self._add(kind, value)
        elif isinstance(holder, msgspec.Struct):
            for _, field, kind in bounds:
                if (value := getattr(holder, field)) is not None:
                    self._add(kind, value)

    def external_ids(self, given: Any) -> None:
        """context.externalIds: entries that are not whole are passed over."""
        for entry in given if isinstance(given, list) else [given]:
            self._external_id(entry if isinstance(entry, dict) else {})

    def _external_id(self, entry: Mapping[str, Any]) -> None:
        name, value = entry.get("type"), entry.get("id")
        kind = self.types.get(name) if isinstance(name, str) else None
        shown = name if isinstance(name, str) else ""
        if kind is None and shown and shown == shown.lower():
            self._refuse(shown, value, UNKNOWN_TYPE)
        elif (
            kind is None
            or value is None
            or entry.get("collection") != kind.collection
            or entry.get("encoding") != "none"
        ):
            self._refuse(shown, value, MALFORMED)
        else:
            self._add(kind, value)

    def _add(self, kind: IdType, value: Any) -> None:
        if type(value) is not str:
            if type(value) is not int:
                self._refuse(kind.name, "", NOT_A_VALUE)
                return
            value = str(value)
        one = self.known[kind.name].get(value) or self._new(kind, value)
        if one is not None and one not in self.found:
            self.found.append(one)

    def _new(self, kind: IdType, raw: str) -> ExternalId | None:
        """The identifier that a value is, remembered; None when it is none, with the reason unless it is blank."""
        value = kind.normalize(raw)
        if not value:
            return None
        if len(value) * 4 > MAX_ID_BYTES and len(value.encode(errors="replace")) > MAX_ID_BYTES:
            self._refuse(kind.name, value, TOO_LONG)
        elif "\0" in value:
            self._refuse(kind.name, value, HAS_NUL)
        elif kind.blocks(value):
            self._refuse(kind.name, value, BLOCKED)
        else:
            known = self.known[kind.name]
            if len(known) >= _REMEMBERED:
                known.clear()
            one = known[raw] = ExternalId(kind.name, value)
            return one
        return None

    def _refuse(self, kind: str, value: Any, violation: str) -> None:
        """Keeps a form of the value that can be stored and shown."""
        text = value if isinstance(value, str) else ""
        shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
        self.refused.append(Demoted(ExternalId(_clean(kind[:_SHOWN]), _clean(shown)), violation))

    def arranged(self, traits: Mapping[str, Any] | None, consent: Mapping[str, bool] | None) -> Found:
        """Ids of the person and of the account, the most trusted first, ids of one type as they came."""
        found, types = self.found, self.types
        if len(found) > 1:
            found.sort(key=lambda one: types[one[0]].rank)
        accounts = [one for one in found if types[one[0]].collection == "accounts"]
        if accounts:
            found = [one for one in found if types[one[0]].collection == "users"]
        return _found((found, accounts, self.refused, traits, consent))


_found: Final = partial(tuple.__new__, Found)  # a third of the cost of calling the class
_Known = dict[str, dict[str, ExternalId]]  # by type and value as it came
_REMEMBERED: Final = 50_000  # values of a type, and visitors: some ten megabytes each
_SHOWN: Final = 100  # characters of a value that is too much


def _clean(text: str) -> str:
    return text.replace("\0", "\ufffd").encode(errors="replace").decode()
