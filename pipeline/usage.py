"""What people pay for elsewhere: events, bytes and unique users of a source in a month, UTC by when they were received.

Unique users are estimated by HyperLogLog: 4,096 registers, so that the standard error is 1.04/√4096 = 1.6 % whatever the number,
and sketches of several partitions join into one without counting anybody twice. A user is a userId, else an anonymousId.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from math import inf, log, sqrt
from typing import Final

BITS: Final = 12
REGISTERS: Final = 1 << BITS
STANDARD_ERROR: Final = 1.04 / sqrt(REGISTERS)
_REST: Final = 64 - BITS  # bits of a hash that are looked through for its first one


@dataclass(slots=True)
class Usage:
    """Of one source, month and partition."""

    events: int = 0
    bytes: int = 0
    users: set[str] = field(default_factory=set)

    def add(self, size: int, user: str | None) -> None:
        self.events += 1
        self.bytes += size
        if user is not None:
            self.users.add(user)


def month_of(micros: int) -> str:
    """`2026-11`, for UTC microseconds since 1970."""
    return _month_of_day(micros // 86_400_000_000)


@lru_cache(maxsize=64)
def _month_of_day(day: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)).strftime("%Y-%m")


# ── The sketch ────────────────────────────────────────────────────────────────────────────────────────────────────


def with_users(registers: bytes, users: set[str]) -> bytes:
    """The sketch (b"" is empty) after these users; the same bytes when all were known to it."""
    changed = bytearray(registers or bytes(REGISTERS))
    for user in users:
        number = int.from_bytes(blake2b(user.encode(errors="surrogatepass"), digest_size=8).digest())
        rank = _REST - (number & ((1 << _REST) - 1)).bit_length() + 1
        index = number >> _REST
        if changed[index] < rank:
            changed[index] = rank
    return bytes(changed)


def joined(one: bytes, other: bytes) -> bytes:
    """The sketch of the users of both."""
    if not one or not other:
        return one or other
    return bytes(map(max, one, other))


def estimate(registers: bytes) -> int:
    """How many users there were, by Ertl's estimator: unbiased from zero to the billions without tables."""
    if not registers:
        return 0
    counts = [0] * (_REST + 2)
    for register in registers:
        counts[register] += 1
    z = REGISTERS * _tau(1 - counts[_REST + 1] / REGISTERS)
    for count in reversed(counts[1 : _REST + 1]):
        z = (z + count) / 2
    z += REGISTERS * _sigma(counts[0] / REGISTERS)
    return round(REGISTERS**2 / (2 * log(2) * z)) if z != inf else 0


def _sigma(x: float) -> float:
    if x == 1:
        return inf
    y, z, before = 1.0, x, -1.0
    while z != before:
        x *= x
        before = z
        z += x * y
        y += y
    return z


def _tau(x: float) -> float:
    if x in (0, 1):
        return 0.0
    y, z, before = 1.0, 1 - x, -1.0
    while z != before:
        x = sqrt(x)
        before = z
        y /= 2
        z -= (1 - x) ** 2 * y
    return z / 3
