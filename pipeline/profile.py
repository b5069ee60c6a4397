"""What a profile is made of, and how it combines. Pure.

Every piece of state is a value with an associative, commutative, idempotent or additive combination, so that profiles
merge from their cached rows and come apart again from their nodes: a trait is the latest of its writes (null is a
tombstone), a counter is a sum, first and last seen are a minimum and a maximum.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

Stamp = tuple[int, int, str]  # timestamp (never after received_at), received_at, messageId: the order of writes
Traits = dict[str, tuple[int, int, str, Any]]  # name -> stamp and value; JSON keeps it as a list

_BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_KSUID_EPOCH: Final = 1_400_000_000


@dataclass(slots=True)
class Profile:
    """A person. `ids` counts external ids by type; times are microseconds."""

    id: str
    created_at: int
    merged_into: str | None = None
    ids: dict[str, int] = field(default_factory=dict)
    traits: Traits = field(default_factory=dict)
    events: int = 0
    first_seen: int = 1 << 62
    last_seen: int = 0


@dataclass(slots=True)
class Node:
    """An external id in the graph, with the state that its own events contributed."""

    key: str
    profile: str | None = None
    traits: Traits = field(default_factory=dict)
    events: int = 0
    first_seen: int = 1 << 62
    last_seen: int = 0
    added_at: int | None = None


def message_key(source: str, message_id: str) -> bytes:
    """16 bytes that stand for (source, messageId): the key of deduplication."""
    return blake2b(f"{source}\0{message_id}".encode(errors="surrogatepass"), digest_size=16).digest()


def profile_id(key: bytes, created_at: int) -> str:
    """`use_` and 27 base-62 characters, KSUID-shaped: the second it was created, then the key of the message that
    created it. A replay of the same log gives the same ids."""
    seconds = min(max(created_at // 1_000_000 - _KSUID_EPOCH, 0), (1 << 32) - 1)
    number = int.from_bytes(seconds.to_bytes(4, "big") + key, "big")
    digits = []
    for _ in range(27):
        number, digit = divmod(number, 62)
        digits.append(_BASE62[digit])
    return "use_" + "".join(reversed(digits))


def write_traits(into: Traits, traits: Mapping[str, Any], stamp: Stamp) -> bool:
    """Lets newer writes win; says whether anything changed."""
    changed = False
    for name, value in traits.items():
        known = into.get(name)
        if known is None or tuple(known[:3]) < stamp:
            into[name] = (*stamp, value)
            changed = True
    return changed


def seen(state: Profile | Node, at: int) -> None:
    """Counts one event."""
    state.events += 1
    state.first_seen = min(state.first_seen, at)
    state.last_seen = max(state.last_seen, at)


def absorb(survivor: Profile, other: Profile) -> None:
    """Merges `other` into `survivor`: costs what the two hold now, not their history."""
    for name, write in other.traits.items():
        known = survivor.traits.get(name)
        if known is None or tuple(known[:3]) < tuple(write[:3]):
            survivor.traits[name] = write
    for kind, count in other.ids.items():
        survivor.ids[kind] = survivor.ids.get(kind, 0) + count
    survivor.events += other.events
    survivor.first_seen = min(survivor.first_seen, other.first_seen)
    survivor.last_seen = max(survivor.last_seen, other.last_seen)
    other.merged_into = survivor.id


def values(traits: Traits) -> dict[str, Any]:
    """The traits as people see them: values only, tombstones gone, names sorted."""
    return {name: write[3] for name, write in sorted(traits.items()) if write[3] is not None}
