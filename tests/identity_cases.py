"""The identity specification's hard cases as data, in its notation, and the events that they stand for.

u user_id, e email, a anonymous_id, p phone, i ios.id, f ios.idfa, g ga_client_id, k ios.push_token, L loyalty_id, all configured;
g of a group call is a groupId. Events are separated by `;`, the ids of one event by `+`. Behind them come traits and `t=`, the
time of the event (8d, 7d-1s; otherwise its number in seconds), and `id=`, its messageId. Quoted values are literal: `_` is a
space, `{}` the name of the run.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, NamedTuple

import orjson

from pipeline.identity import (
    BLOCKED,
    MALFORMED,
    MAPPING_LIMIT,
    MERGE_LIMIT,
    NO_IDS,
    OVER_LIMIT,
    OVER_TIME_LIMIT,
    Rules,
)
from schemas.events import Event
from schemas.identity import BlockedConfig, IdentityConfig, IdTypeConfig

TYPES: Final = {
    "u": "user_id",
    "e": "email",
    "a": "anonymous_id",
    "p": "phone",
    "i": "ios.id",
    "f": "ios.idfa",
    "g": "ga_client_id",
    "k": "ios.push_token",
    "L": "loyalty_id",
}
LETTERS: Final = {name: letter for letter, name in TYPES.items()} | {"group_id": "g"}
SECOND: Final = 1_000_000
BASE: Final = 1_790_000_000 * SECOND
RECEIVED: Final = BASE + 400 * 86_400 * SECOND  # of the first event; the others follow by the second

SHORT: Final = {
    OVER_LIMIT: "limit",
    OVER_TIME_LIMIT: "time",
    BLOCKED: "blocked",
    MERGE_LIMIT: "merges",
    MAPPING_LIMIT: "mappings",
    NO_IDS: "no ids",
    MALFORMED: "malformed",
}


def config(
    priority: Sequence[str] = ("user_id", "email"), merges: int = 1_000, mappings: int = 10_000, **types: IdTypeConfig
) -> IdentityConfig:
    """The default rules with phone and loyalty_id, and what is said of other types."""
    phone = {"phone": IdTypeConfig(traits=("phone",)), "loyalty_id": IdTypeConfig()}
    return IdentityConfig(
        types=phone | types, priority=tuple(priority), merges_per_profile=merges, ids_per_profile=mappings
    )


@dataclass(frozen=True)
class Case:
    """What happens, and who there is then: the ids of each person in the order of creation, with a number of events where it
    is not told by the case; traits of the first person; ids refused, each time. `change` is a configuration from an event on."""

    title: str
    history: str
    people: Sequence[str]
    refused: Sequence[str] = ()
    traits: Mapping[str, Any] = field(default_factory=dict)
    config: IdentityConfig = field(default_factory=config)
    change: tuple[int, IdentityConfig] | None = None
    events: Sequence[int] | None = None
    accounts: Sequence[tuple[str, Mapping[str, Any]]] = ()
    links: Sequence[str] = ()
    merges: int | None = None

    def rules(self, number: int) -> Rules:
        """In force for the event of a number."""
        return self._rules[self.change is not None and number >= self.change[0]]

    @cached_property
    def _rules(self) -> tuple[Rules, Rules]:
        """Before and after the change: what is compiled for them is found again by their identity."""
        return Rules(self.config), Rules(self.change[1] if self.change else self.config, 2)


class State(NamedTuple):
    """Who there is: (ids, events, traits) of each person and each account in order of creation; who is linked; what was
    refused, how often; and how many profiles were absorbed."""

    people: Sequence[tuple[Sequence[str], int, Mapping[str, Any]]]
    accounts: Sequence[tuple[Sequence[str], int, Mapping[str, Any]]]
    links: frozenset[tuple[str, str]]
    refused: Mapping[str, int]
    merges: int


def events(case: Case, name: str) -> list[Event]:
    """The events of a case; `name` keeps the ids of one run from those of another."""
    return [_event(text.strip(), number, name) for number, text in enumerate(case.history.split(";"))]


def shown(key: str, name: str) -> str:
    """A node's key as the cases write it."""
    kind, _, value = key.partition(":")
    if not kind:
        return ""
    value = value.replace(name, "").replace("@x.test", "")
    letter = LETTERS[kind]
    return value if value.startswith(letter) else letter + value


_ID: Final = re.compile(r"""([a-zA-Z])(?:"([^"]*)"|'([^']*)'|(~)|(\w*))$""")


def _value(token: str, name: str) -> tuple[str, str | None]:
    match = _ID.match(token)
    assert match is not None, token
    letter, literal, own, null, plain = match.groups()
    if null:
        return letter, None
    if literal is not None:
        return letter, literal.replace("_", " ").replace("{}", name)
    if own is not None:
        return letter, name + own
    return letter, f"{name}{letter}{plain}" + ("@x.test" if letter == "e" else "")


def _event(text: str, number: int, name: str) -> Event:
    words = text.split()
    kind = words.pop(0) if words[0] in ("group", "alias", "identify") else ""
    ids = words.pop(0).split("+")
    group = words.pop(0) if kind == "group" else ""
    given = dict(word.split("=") for word in words)
    at = BASE + _seconds(given.pop("t", f"{number}s")) * SECOND
    message = f"{name}{given.pop('id', f'm{number}')}"
    lacks, tracking = given.pop("lacks", None), given.pop("tracking", "true") == "true"
    previous = given.pop("previousId", None)
    traits: dict[str, Any] = {key: None if value == "null" else value for key, value in given.items()}
    kind = kind or ("identify" if traits else "track")
    context: dict[str, Any] = {}
    body: dict[str, Any] = {"type": kind, "messageId": message, "context": context}
    if traits:
        body["traits"] = traits
    if group:
        body["groupId"] = f"{name}{group}"
    if previous:
        body["previousId"] = _value(previous, name)[1]
    own: dict[str, str | None] = {}
    for token in ids:
        letter, value = _value(token, name)
        if letter in "ua":
            own[letter] = value
        else:
            _put(body, context, letter, value, tracking)
    for entry in context.get("externalIds", ()):
        entry.pop(lacks, None)
    received = RECEIVED + number * SECOND
    raw = orjson.dumps(body)
    return Event("web", kind, message, own.get("a"), own.get("u"), at, None, received, "server", None, None, raw)


def _put(body: dict[str, Any], context: dict[str, Any], letter: str, value: str | None, tracking: bool) -> None:
    device = context.get("device", {"type": "iOS"})
    match letter:
        case "e":
            holder = context.setdefault("traits", {})
            if "email" in holder:
                holder = body.setdefault("properties", {})
            holder["email"] = value
        case "p":
            body.setdefault("properties" if body["type"] == "track" else "traits", {})["phone"] = value
        case "L":
            entry = {"id": value, "type": "loyalty_id", "collection": "users", "encoding": "none"}
            context.setdefault("externalIds", []).append(entry)
        case "g":
            context["integrations"] = {"Google Analytics": {"clientId": value}}
        case "i" | "f" | "k":
            place = {"i": "id", "f": "advertisingId", "k": "token"}[letter]
            context["device"] = device | {place: value, "adTrackingEnabled": tracking}


_UNITS: Final = {"s": 1, "h": 3_600, "d": 86_400, "": 1}


def _seconds(text: str) -> int:
    parts = re.findall(r"([+-]?\d+)([shd]?)", text)
    return sum(int(number) * _UNITS[unit] for number, unit in parts)


def refused(violations: Mapping[tuple[str, str], int], name: str) -> dict[str, int]:
    """Refusals by (node key, violation) as the cases write them."""
    return {f"{shown(key, name)} {SHORT[violation]}".strip(): count for (key, violation), count in violations.items()}


def expected(case: Case) -> State:
    """What a case says, with what it need not say left as it was found (see `found`)."""
    return State(
        [(sorted(one.split()), 0, {}) for one in case.people],
        [(one.split(), 0, traits) for one, traits in case.accounts],
        frozenset((link.split("-")[0], link.split("-")[1]) for link in case.links),
        dict(Counter(case.refused)),
        0,
    )


def check(case: Case, found: State) -> None:
    """Compares what there is with what the case says."""
    wanted = expected(case)
    assert [ids for ids, _, _ in found.people] == [ids for ids, _, _ in wanted.people]
    assert found.refused == wanted.refused
    assert [(ids, traits) for ids, _, traits in found.accounts] == [(ids, traits) for ids, _, traits in wanted.accounts]
    assert found.links == wanted.links
    if case.traits:
        assert found.people[0][2] == case.traits
    if case.events is not None:
        assert [count for _, count, _ in found.people] == list(case.events)
    if case.merges is not None:
        assert found.merges == case.merges


_CARD: Final = IdTypeConfig(limit=1)
_ZEROES: Final = "00000000-0000-0000-0000-000000000000"
_TEST: Final = IdTypeConfig(limit=1, blocked=BlockedConfig(patterns=("^test-",)))

CASES: Final[Mapping[int, Case]] = {
    1: Case("anonymous, then known", "a1; u1+a1; a1", ["u1 a1"], events=[3], merges=0),
    2: Case("second device", "u1+a1; a2; u1+a2", ["u1 a1 a2"], merges=1),
    3: Case("logout without reset", "u1+a1; a1; u2+a1; a1", ["u1 a1", "u2"], ["a1 limit"], events=[3, 1]),
    4: Case("logout with reset", "u1+a1; a2; u2+a2", ["u1 a1", "a2 u2"]),
    5: Case("shared tablet, user ids", "u1+i1; u2+i1; u3+i1", ["u1 i1", "u2", "u3"], ["i1 limit"] * 2),
    6: Case("shared tablet, emails only", "e1+i1; e2+i1; e3+i1", ["e1 e2 e3 i1"]),
    7: Case(
        "the same with an email limit of 1",
        "e1+i1; e2+i1; e3+i1",
        ["e1 i1", "e2", "e3"],
        ["i1 limit"] * 2,
        config=config(email=IdTypeConfig(limit=1)),
    ),
    8: Case("same email, new user id", "u1+e1; u2+e1", ["u1 e1", "u2"], ["e1 limit"]),
    9: Case("two emails, one user", "u1+e1; u1+e2", ["u1 e1 e2"]),
    10: Case("sixth email", "u1+e1; u1+e2; u1+e3; u1+e4; u1+e5; u1+e6; e6", ["u1 e1 e2 e3 e4 e5", "e6"], ["e6 limit"]),
    11: Case(
        "sixth email without a user id",
        "e1+a1; e2+a1; e3+a1; e4+a1; e5+a1; e6+a1",
        ["e1 e2 e3 e4 e5 a1", "e6"],
        ["a1 limit"],
    ),
    12: Case("phone changed, number recycled", "u1+p1; u1+p2; u2+p1", ["u1 p1 p2", "u2"], ["p1 limit"]),
    13: Case("recycled phone, no user id", "p1+a1; p1+a2", ["p1 a1 a2"]),
    14: Case(
        "blocked null",
        'u"null"+a1; u"null"+a2; u"-1"',
        ["a1", "a2"],
        ["unull blocked", "unull blocked", "u-1 blocked", "no ids"],
    ),
    15: Case("zero advertising id", f'u1+f"{_ZEROES}"; u2+f"{_ZEROES}"', ["u1", "u2"], [f"f{_ZEROES} blocked"] * 2),
    16: Case(
        "blocked by a pattern",
        'u"test-77"+e1; u"test-78"+e1',
        ["e1"],
        ["utest-77 blocked", "utest-78 blocked"],
        config=config(user_id=_TEST),
        events=[2],
    ),
    17: Case("empty and blank ids", 'u""+a1; u"__"+a1; e~+a1', ["a1"], events=[3]),
    18: Case(
        "traits out of order",
        "u1 t=100 plan=pro; u1 t=50 plan=free city=Lyon",
        ["u1"],
        traits={"plan": "pro", "city": "Lyon"},
    ),
    19: Case("null, then a late value", "u1 t=10 tier=A; u1 t=30 tier=null; u1 t=20 tier=B", ["u1"], traits={}),
    20: Case(
        "merge of traits",
        "a1+e1 t=10 name=Old city=Rome; u1 t=20 name=New; u1+e1 t=30",
        ["a1 e1 u1"],
        traits={"name": "New", "city": "Rome"},
    ),
    21: Case("chain of three", "a1; e1; p1; a1+e1; e1+p1", ["a1 e1 p1"], merges=2),
    22: Case("three at once", "a1; e1; u1; u1+e1+a1", ["a1 e1 u1"], merges=2, events=[4]),
    23: Case(
        "partial merge of three", "u1+a1; e1+a2; u2+p1; u1+e1+p1", ["u1 a1 e1 a2", "u2 p1"], ["p1 limit"], merges=1
    ),
    24: Case("foreign anonymous id", "u1+e1; u2+a1; u1+e2+a1", ["u1 e1 e2", "u2 a1"], ["a1 limit"]),
    25: Case(
        "innocent id sacrificed",
        "u1; u2+e2; a9; u1+e2+a9",
        ["u1", "u2 e2", "a9"],
        ["a9 limit", "e2 limit"],
        events=[2, 1, 1],
    ),
    26: Case(
        "crossed logins", "u1+a1; u2+a2; u1+a2; u2+a1", ["u1 a1", "u2 a2"], ["a2 limit", "a1 limit"], events=[2, 2]
    ),
    27: Case("order dependence", "u2+a1; u1+a1", ["u2 a1", "u1"], ["a1 limit"]),
    28: Case("attach race", "e1+a1; u1+e9; u2+e1; u1+e1", ["u2 e1 a1", "u1 e9"], ["e1 limit"]),
    29: Case("demote, then bridge", "a1+e1; u1+a1; u2+e1; u2+a1+e5", ["u1 a1 e1", "u2 e5"], ["e1 limit", "a1 limit"]),
    30: Case(
        "merge sum over the limit",
        "u1+e1; u1+e2; u1+e3; a1+e4; a1+e5; a1+e6; u1+a1",
        ["u1 e1 e2 e3", "a1 e4 e5 e6"],
        ["a1 limit"],
        merges=0,
    ),
    31: Case(
        "sixth device",
        "u1+a1; u1+a2; u1+a3; u1+a4; u1+a5; a6; u1+a6; a6+e1; u1+e1",
        ["u1 a1 a2 a3 a4 a5", "a6 e1"],
        ["a6 limit", "e1 limit"],
    ),
    32: Case("duplicate messageId", "u1+a1 id=m; u1+a1 id=m", ["u1 a1"], events=[1]),
    33: Case(
        "weekly 5, anonymous",
        "u1+a1 t=1h; u1+a2 t=2h; u1+a3 t=3h; u1+a4 t=4h; u1+a5 t=5h; u1+a6 t=6h; u1+a7 t=8d",
        ["u1 a1 a2 a3 a4 a5 a7"],
        ["a6 time"],
        config=config(anonymous_id=IdTypeConfig(window="weekly")),
    ),
    34: Case(
        "window boundary",
        "u1+a1 t=0s; u1+a2 t=7d-1s; u1+a3 t=7d+1s",
        ["u1 a1 a3"],
        ["a2 time"],
        config=config(anonymous_id=IdTypeConfig(limit=1, window="weekly")),
    ),
    35: Case(
        "monthly expiry",
        "u1+p1 t=0d; u1+p2 t=10d; u1+p2 t=31d",
        ["u1 p1 p2"],
        ["p2 time"],
        config=config(phone=IdTypeConfig(traits=("phone",), limit=1, window="monthly")),
    ),
    36: Case(
        "window counts across a merge",
        "u1+a1; u1+a2; u1+a3; e1+a4; e1+a5; e1+a6; u1+e1; u1+e1 t=8d",
        ["u1 a1 a2 a3 e1 a4 a5 a6"],
        ["e1 time"],
        config=config(anonymous_id=IdTypeConfig(window="weekly")),
        merges=1,
    ),
    37: Case(
        "merge limit",
        "u1; a1; u1+a1; a2; u1+a2; a3; u1+a3",
        ["u1 a1 a2", "a3"],
        ["a3 merges"],
        config=config(merges=2),
        events=[6, 1],
        merges=2,
    ),
    38: Case(
        "mapping limit",
        "u1+a1; u1+a2; u1+a3; a3",
        ["u1 a1 a2", "a3"],
        ["a3 mappings"],
        config=config(mappings=3),
        events=[3, 1],
    ),
    39: Case(
        "user_id 2, email 1, email first",
        "u1+e1; u2+e1; u3+e1",
        ["e1 u1 u2"],
        ["u3 limit"],
        config=config(("email", "user_id"), user_id=IdTypeConfig(limit=2), email=IdTypeConfig(limit=1)),
        events=[3],
    ),
    40: Case(
        "loyalty limit 1, default order",
        "L1+e1; L2+e1",
        ["e1 L1"],
        ["L2 limit"],
        config=config(loyalty_id=_CARD),
        events=[2],
    ),
    41: Case(
        "the same, loyalty before email",
        "L1+e1; L2+e1",
        ["e1 L1", "L2"],
        ["e1 limit"],
        config=config(("user_id", "loyalty_id", "email"), loyalty_id=_CARD),
    ),
    42: Case(
        "rules tightened",
        "u1+e1; u2+e1; u1+a1; u3+e1; u2+e2",
        ["u1 u2 e1 a1 e2", "u3"],
        ["e1 limit"],
        config=config(user_id=IdTypeConfig(limit=2)),
        change=(2, config()),
        events=[4, 1],
    ),
    44: Case("cookie id survives a reset", "u1+a1+g1; u2+a2+g1; a3+g1", ["u1 a1 g1 a3", "u2 a2"], ["g1 limit"]),
    45: Case("shared mailbox", "u1+e1; u2+e1; e1", ["u1 e1", "u2"], ["e1 limit"], events=[2, 1]),
    46: Case("push token moves", "u1+k1; u2+k1", ["u1 k1", "u2"], ["k1 limit"]),
    47: Case("late identify", "a1 t=300; u1+a1 t=100 src=ad", ["u1 a1"], traits={"src": "ad"}),
    48: Case("email case and spaces", 'e"_{}Jane@X.test_"+a1; e"{}jane@x.test"+a2', ["ejane a1 a2"]),
    49: Case("two emails on one event", "u1+e1+e2; e2", ["u1 e1 e2"], events=[2]),
    50: Case("one cookie, two logins", "u1+a1; u2+a1", ["u1 a1", "u2"], ["a1 limit"]),
    51: Case("two bridges", "u1; e1; a1; u1+e1; e1+a1", ["u1 e1 a1"], merges=2),
    52: Case("created many times over", "; ".join(["u9+a9"] * 50), ["u9 a9"], events=[50]),
    53: Case("alias", "u1+a1; alias u2 previousId=u1", ["u1 a1", "u2"], merges=0),
    54: Case(
        "group membership",
        "u1+a1; group u1 g7 plan=ent; group u2 g7",
        ["u1 a1", "u2"],
        accounts=[("g7", {"plan": "ent"})],
        links=["u1-g7", "u2-g7"],
    ),
    55: Case("group, then login", "group a5 g7; u5+a5", ["a5 u5"], accounts=[("g7", {})], links=["a5-g7"]),
    56: Case(
        "two groups", "group u1 g1; group u1 g2", ["u1"], accounts=[("g1", {}), ("g2", {})], links=["u1-g1", "u1-g2"]
    ),
    60: Case("advertising not tracked", "a1+i1+f1 tracking=false", ["a1 i1"]),
    61: Case("external id without encoding", "a1+L1 lacks=encoding", ["a1"], ["L1 malformed"]),
    62: Case("one value, two types", "p'100'; L'100'", ["p100", "L100"]),
    63: Case("server only, then client", "a1; u1; u1+a1; u1", ["a1 u1"], events=[4], merges=1),
    64: Case("a time in the future", "u1 t=402d plan=x; u1 t=400d plan=y", ["u1"], traits={"plan": "y"}),
}
"""43 is in the tests of splits, 57 and 58 in those of deletion, 59 and 65 are tests of their own over these."""

_LATEST: Final = IdentityConfig(
    types=dict(config().types)
    | {"ios.push_token": IdTypeConfig(latest_owner=True, limit=2), "ios.idfa": IdTypeConfig(latest_owner=True)}
)

LATEST_OWNER: Final[Mapping[str, Case]] = {
    "46, the token goes with its latest owner": Case(
        "", "u1+k1; u2+k1", ["u1", "u2 k1"], config=_LATEST, events=[1, 1], merges=0
    ),
    "the token comes back with its first owner": Case(
        "", "u1+k1; u2+k1; u1+k1", ["u1 k1", "u2"], config=_LATEST, events=[2, 1]
    ),
    "what hangs on a token stays with its owner": Case(
        "", "u1+k1; k1 plan=pro; u2+k1; k1", ["u1", "u2 k1"], config=_LATEST, events=[2, 2], traits={"plan": "pro"}
    ),
    "it joins no two people, not even one nobody knows": Case(
        "", "u1+a1+k1; a2+k1; u2+a2+k1", ["u1 a1", "a2 u2 k1"], config=_LATEST, events=[1, 2], merges=0
    ),
    "a profile that has no other id goes along": Case(
        "", "k1; u1+k1; u2; k2; u2+k2", ["k1 u1", "u2 k2"], config=_LATEST, events=[2, 3], merges=1
    ),
    "what others decide is decided without it": Case(
        "", "u1; u2+e2; k1; u1+e2+k1", ["u1 k1", "u2 e2"], ["e2 limit"], config=_LATEST, events=[3, 1], merges=1
    ),
    "a token over the limit stays where it is": Case(
        "", "u1+k1; u1+k2; u2+k3; u1+k3; k3", ["u1 k1 k2", "u2 k3"], ["k3 limit"], config=_LATEST, events=[3, 2]
    ),
    "an account hears of whoever the token was of": Case(
        "",
        "u1+k1; group k1 g7; u2+k1",
        ["u1", "u2 k1"],
        config=_LATEST,
        accounts=[("g7", {})],
        links=["u1-g7"],
        events=[2, 1],
    ),
    "a chain of owners": Case(
        "", "u1+k1; k1; u2+k1; k1; u3+k1; k1; u1+k1", ["u1 k1", "u2", "u3"], config=_LATEST, events=[3, 2, 2]
    ),
    "an id that was seen with nothing but the token stays connected": Case(
        "", "u1+k1; f1+k1; u2+k1; u1+f1", ["u1 f1", "u2 k1"], config=_LATEST, events=[3, 1], merges=0
    ),
}
"""The option of case 46: tokens belong to their latest owner."""
