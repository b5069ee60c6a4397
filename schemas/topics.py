"""The log's topics and how a key finds its partition."""

from typing import Final
from zlib import crc32

EVENTS: Final = "events"
RESOLVED: Final = "resolved"
PROFILE_CHANGES: Final = "profile-changes"
DEAD_LETTERS: Final = "dead-letters"
TOPICS: Final = (EVENTS, RESOLVED, PROFILE_CHANGES, DEAD_LETTERS)

INTERNAL_SOURCE: Final = "millrace"
"""The source of what we put on the log ourselves. It has no write key, and no configuration may name it."""


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key: CRC-32 modulo the count, which librdkafka calls its `consistent` partitioner."""
    return crc32(key) % partitions
