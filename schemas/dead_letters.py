"""Dead letters on the log: what cannot proceed, why, and its original bytes. Field meanings: `avro/dead_letter.avsc`."""

from functools import cache
from importlib.resources import files
from io import BytesIO
from typing import Any, Final, NamedTuple

import fastavro
import orjson

SCHEMA_ID: Final = 3  # events.py holds 1 and 2
HEADER: Final = b"\x00" + SCHEMA_ID.to_bytes(4, "big")


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
    out = BytesIO()
    out.write(HEADER)
    fastavro.schemaless_writer(out, _schema(), letter._asdict())
    return out.getvalue()


def decode_dead_letter(value: bytes) -> DeadLetter:
    """Reads a value of `dead-letters`. ValueError when it is not one."""
    if value[:5] != HEADER:
        raise ValueError(f"not a dead letter: starts with {value[:5].hex()}")
    try:
        raw: Any = fastavro.schemaless_reader(BytesIO(value[5:]), _schema(), None)
    except (EOFError, IndexError, ValueError, OverflowError, TypeError) as error:
        raise ValueError(f"not a dead letter: {error}") from error
    return DeadLetter(**raw)


@cache
def _schema() -> Any:
    """Times stay integers: no logical types."""
    schema = orjson.loads((files("schemas") / "avro" / "dead_letter.avsc").read_bytes())
    for field in schema["fields"]:
        if isinstance(field["type"], dict):
            field["type"] = field["type"]["type"]
    return fastavro.parse_schema(schema)
