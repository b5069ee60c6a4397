"""What a profile is made of, and how it combines. Pure.

Every piece of state is a value with an associative, commutative, idempotent or additive combination, so that profiles
merge from their cached rows and come apart again from their nodes: a trait is the latest of its writes (null is a
tombstone), a counter is a sum, first and last seen are a minimum and a maximum.
"""

from bisect import insort
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Final

from schemas.identity import WINDOWED_MOST, Collection

Stamp = tuple[
    int, int, str, str
]  # timestamp (never after received_at), received_at, messageId, source: the order of writes
Write = Sequence[Any]  # timestamp, received_at, messageId, value, source; rows of old have no source
Traits = dict[str, Write]
USERS: Final = "users"
ACCOUNTS: Final = "accounts"

_BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_KSUID_EPOCH: Final = 1_400_000_000
_PREFIXES: Final[Mapping[Collection, str]] = {USERS: "use_", ACCOUNTS: "acc_"}


@dataclass(slots=True)
class Profile:
    """A person, or an account. `ids` counts external ids by type, `added` says when those of types with a window came; times are
    microseconds, `seq` those of the serial order. `source` and `message_id` are of the event that created it, `merges` how many profiles it is
    made of beside itself."""

    id: str
    created_at: int
    merged_into: str | None = None
    ids: dict[str, int] = field(default_factory=dict)
    traits: Traits = field(default_factory=dict)
    events: int = 0
    first_seen: int = 1 << 62
    last_seen: int = 0
    collection: Collection = USERS
    seq: int = 0
    source: str = ""
    message_id: str = ""
    last_source: str = ""
    last_message: str = ""
    added: dict[str, list[int]] = field(default_factory=dict)
    apart: list[str] = field(default_factory=list)
    merges: int = 0
    consent: Traits = field(default_factory=dict)
    """What was last said of each category; under no name, when all of them were refused."""
    disputed: dict[str, Sequence[Any]] = field(default_factory=dict)
    """Categories on which profiles differed when they merged, with the latest stamp there was then."""


@dataclass(slots=True)
class Node:
    """An external id in the graph, with the state that its own events contributed. `home` is the profile it was first mapped
    to, `source`, `message_id` and `rules` tell of the event that mapped it; `apart` names the splits that hold it, as
    split:side. `former` is the profile under which the events that it partitions stood last, where that is another than `profile`."""

    key: str
    profile: str | None = None
    traits: Traits = field(default_factory=dict)
    events: int = 0
    first_seen: int = 1 << 62
    last_seen: int = 0
    added_at: int | None = None
    home: str | None = None
    seq: int = 0
    source: str = ""
    message_id: str = ""
    rules: int = 0
    last_source: str = ""
    last_message: str = ""
    apart: list[str] = field(default_factory=list)
    consent: Traits = field(default_factory=dict)
    former: str | None = None


def message_key(source: str, message_id: str) -> bytes:
    """16 bytes that stand for (source, messageId): the key of deduplication."""
    return blake2b(f"{source}\0{message_id}".encode(errors="surrogatepass"), digest_size=16).digest()


def profile_id(key: bytes, created_at: int, collection: Collection = USERS) -> str:
    """`use_` (of an account `acc_`) and 27 base-62 characters, KSUID-shaped: the second it was created, then the key of the message that
    created it. A replay of the same log gives the same ids."""
    seconds = min(max(created_at // 1_000_000 - _KSUID_EPOCH, 0), (1 << 32) - 1)
    return _PREFIXES[collection] + base62(seconds.to_bytes(4, "big") + key, 27)


def base62(data: bytes, length: int) -> str:
    """The bytes as a number of `length` base-62 digits, as many as are needed to tell any two apart."""
    number = int.from_bytes(data, "big")
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_BASE62[digit])
    return "".join(reversed(digits))


def stamp_of(write: Write) -> Stamp:
    """When a trait was written, in the order of writes."""
    return write[0], write[1], write[2], write[4] if len(write) > 4 else ""


def write_traits(into: Traits, traits: Mapping[str, Any], stamp: Stamp) -> bool:
    """Lets newer writes win; says whether anything changed."""
    changed = False
    at, received_at, message_id, source = stamp
    for name, value in traits.items():
        known = into.get(name)
        if known is None or known[0] < at or (known[0] == at and stamp_of(known) < stamp):
            into[name] = (at, received_at, message_id, value, source)
            changed = True
    return changed


def take_newer(into: Traits, other: Traits) -> None:
    """Lets the newer of two writes win."""
    for name, write in other.items():
        known = into.get(name)
        if known is None or stamp_of(known) < stamp_of(write):
            into[name] = write


def seen(state: Profile | Node, at: int, source: str, message_id: str) -> None:
    """Counts one event."""
    state.events += 1
    if at < state.first_seen:
        state.first_seen = at
    if at > state.last_seen:
        state.last_seen, state.last_message, state.last_source = at, message_id, source
    elif at == state.last_seen:
        later(state, at, message_id, source)


def later(state: Profile | Node, at: int, message_id: str, source: str) -> None:
    """Keeps the later of two events; of the same instant, the greater messageId and source."""
    if (at, message_id, source) > (state.last_seen, state.last_message, state.last_source):
        state.last_seen, state.last_message, state.last_source = at, message_id, source


def inherit(heir: Node, gone: Node) -> None:
    """Lets a node have what hangs on another one: traits, sums and marks of splits."""
    take_newer(heir.traits, gone.traits)
    take_newer(heir.consent, gone.consent)
    heir.events += gone.events
    heir.first_seen = min(heir.first_seen, gone.first_seen)
    later(heir, gone.last_seen, gone.last_message, gone.last_source)
    if gone.apart:
        heir.apart = sorted({*heir.apart, *gone.apart})


def absorb(survivor: Profile, other: Profile) -> None:
    """Merges `other` into `survivor`: costs what the two hold now, not their history. `other` holds nothing from then on."""
    take_newer(survivor.traits, other.traits)
    if other.consent:
        take_newer(survivor.consent, other.consent)
    if other.disputed:
        dispute(survivor, other.disputed)
    for kind, count in other.ids.items():
        survivor.ids[kind] = survivor.ids.get(kind, 0) + count
    survivor.events += other.events
    survivor.first_seen = min(survivor.first_seen, other.first_seen)
    later(survivor, other.last_seen, other.last_message, other.last_source)
    survivor.merges += 1 + other.merges
    if other.apart:
        survivor.apart = sorted({*survivor.apart, *other.apart})
    for kind, times in other.added.items():
        survivor.added[kind] = sorted([*survivor.added.get(kind, ()), *times])[-WINDOWED_MOST:]
    other.merged_into = survivor.id
    _empty(other)


def emptied(profile: Profile) -> Profile:
    """What is left of a profile once another holds its state: who it was."""
    left = replace(profile)
    _empty(left)
    return left


def _empty(profile: Profile) -> None:
    profile.ids, profile.traits, profile.added, profile.apart = {}, {}, {}, []
    profile.consent, profile.disputed = {}, {}
    profile.events, profile.first_seen, profile.merges = 0, 1 << 62, 0
    profile.last_seen, profile.last_source, profile.last_message = 0, "", ""


def drop_id(profile: Profile, kind: str, at: int | None) -> None:
    """Counts an external id no more that was mapped at a time; its state is another id's by now."""
    profile.ids[kind] -= 1
    if not profile.ids[kind]:
        del profile.ids[kind]
    times = profile.added.get(kind, [])
    if at in times:
        times.remove(at)
        if not times:
            del profile.added[kind]


def add_id(profile: Profile, kind: str, at: int, *, windowed: bool) -> None:
    """Counts an external id that was just mapped to the profile."""
    profile.ids[kind] = profile.ids.get(kind, 0) + 1
    if windowed:
        times = profile.added.setdefault(kind, [])
        insort(times, at)
        del times[:-WINDOWED_MOST]


def combined(profile: Profile, nodes: Iterable[Node], windowed: Container[str] = ()) -> Profile:
    """The profile as its nodes make it: what its row must say at any time. `windowed` are the types whose limit has a
    window."""
    made = emptied(profile)
    for node in nodes:
        kind = node.key.partition(":")[0]
        added = {kind: [node.added_at]} if kind in windowed and node.added_at is not None else {}
        part = Profile("", 0, None, {kind: 1}, node.traits, node.events, node.first_seen, node.last_seen)
        part.last_source, part.last_message = node.last_source, node.last_message
        part.added, part.apart, part.consent = added, node.apart, node.consent
        absorb(made, part)
    made.merges, made.disputed = profile.merges, dict(profile.disputed)  # of merges, which nodes know nothing of
    return made


def values(traits: Traits) -> dict[str, Any]:
    """The traits as people see them: values only, tombstones gone, names sorted."""
    return {name: write[3] for name, write in sorted(traits.items()) if write[3] is not None}


# ── Consent ───────────────────────────────────────────────────────────────────────────────────────────────────────

CONFLICT: Final = "conflict"
_EVERY: Final = ""  # in place of a category: whoever prefers nothing refuses all


def write_consent(into: Traits, preferences: Mapping[str, bool], stamp: Stamp) -> None:
    """Lets newer preferences win; an empty object refuses every category there is."""
    write_traits(into, preferences or {_EVERY: False}, stamp)


def preferences(consent: Traits, disputed: Mapping[str, Sequence[Any]]) -> dict[str, bool | str]:
    """What a person last said of each category, sorted by name, on whatever device; `conflict` where profiles that merged had said
    different things and nobody has said anything since. A category that is not there was never collected: that is no consent."""
    return {
        name: CONFLICT if (held := disputed.get(name)) is not None and tuple(held) >= stamp_of(write) else write[3]
        for name, write in latest_preferences(consent).items()
    }


def disputes(first: Profile, second: Profile) -> dict[str, Stamp]:
    """The categories on which two profiles differ that are about to merge, with the latest stamp of each. One that was never collected
    counts as refused."""
    if not first.consent and not second.consent:
        return {}
    one, other = (preferences(each.consent, each.disputed) for each in (first, second))
    return {
        name: max(_stamps(name, first.consent, second.consent))
        for name in sorted(one.keys() | other.keys())
        if one.get(name, False) != other.get(name, False)
    }


def _stamps(category: str, *consents: Traits) -> list[Stamp]:
    """When each of them said something of a category, or refused all."""
    return [stamp_of(consent[name]) for consent in consents for name in (category, _EVERY) if name in consent]


def dispute(profile: Profile, held: Mapping[str, Sequence[Any]]) -> None:
    """Adds categories that are disputed; of one that was already, the later stamp counts."""
    for name, stamp in held.items():
        known = profile.disputed.get(name)
        if known is None or tuple(known) < tuple(stamp):
            profile.disputed[name] = stamp


def latest_preferences(consent: Traits) -> dict[str, Write]:
    """The write that counts for each category."""
    every = consent.get(_EVERY)
    return {
        name: every if every is not None and stamp_of(every) > stamp_of(write) else write
        for name, write in sorted(consent.items())
        if name != _EVERY
    }
