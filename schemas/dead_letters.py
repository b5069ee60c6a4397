"""Dead letters on the log: what cannot proceed, why, and its original bytes. Field meanings: `avro/dead_letter.avsc`."""

from typing import Final, NamedTuple

from schemas.framing import Framing

FRAMING: Final = Framing("dead_letter", 3, "dead letter")


class DeadLetter(NamedTuple):
    """A record that cannot proceed. `at` is in UTC microseconds since 1970."""

    stage: str
    destination: str | None
    reason: str
    attempts: int
    at: int
    topic: str
    partition: int
    offset: int
    value: bytes | None


def encode_dead_letter(letter: DeadLetter) -> bytes:
    """The record value, in the Confluent wire format."""
    return FRAMING.encode(letter._asdict())


def decode_dead_letter(value: bytes) -> DeadLetter:
    """Reads a value of `dead-letters`. ValueError when it is not one."""
    return DeadLetter(**FRAMING.decode(value))
