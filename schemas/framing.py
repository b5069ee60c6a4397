"""Records in the Confluent wire format whose speed does not matter: a zero byte, the schema's id, the Avro body.

`events.py` does the same by hand for what passes with every event. Times stay integers, UTC microseconds since 1970: no logical types.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from io import BytesIO
from typing import Any

import fastavro
import orjson


@dataclass(frozen=True)
class Framing:
    """A topic's records. `schema` is the name of a file in `avro/`, `id` what stands in front of what was written with it, `what`
    names one for people."""

    schema: str
    id: int
    what: str

    @property
    def header(self) -> bytes:
        return b"\x00" + self.id.to_bytes(4, "big")

    def encode(self, record: Mapping[str, Any]) -> bytes:
        """The record value. ValueError when it is not of the schema."""
        out = BytesIO()
        out.write(self.header)
        fastavro.schemaless_writer(out, self._parsed, record)
        return out.getvalue()

    def decode(self, value: bytes) -> dict[str, Any]:
        """Reads a record value. ValueError when it is not one."""
        if value[:5] != self.header:
            raise ValueError(f"not a {self.what}: starts with {value[:5].hex()}")
        body = BytesIO(value[5:])
        try:
            raw: Any = fastavro.schemaless_reader(body, self._parsed, None)
        except (EOFError, IndexError, ValueError, OverflowError, TypeError, MemoryError) as error:
            raise ValueError(f"not a {self.what}: {error}") from error
        return dict(raw)

    @cached_property
    def _parsed(self) -> Any:
        schema = orjson.loads((files("schemas") / "avro" / f"{self.schema}.avsc").read_bytes())
        for field in schema["fields"]:
            if isinstance(field["type"], dict) and "logicalType" in field["type"]:
                field["type"] = field["type"]["type"]
        return fastavro.parse_schema(schema)
