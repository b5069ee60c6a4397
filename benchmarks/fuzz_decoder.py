"""Coverage-guided hostile bytes for everything that decodes them: `python -m benchmarks.fuzz_decoder [libFuzzer's flags]`.

The first byte chooses a decoder: request bodies (single calls and batches, plain and compressed), records of the log. Whatever
comes, a decoder answers with a value or with its own refusal; what it accepts can be read back, and every event of a batch is in
the books. `-max_total_time=600` ends it after ten minutes; a fault is printed with the bytes that made it.
"""

import sys
from collections.abc import Callable
from typing import Final

import atheris
import msgspec
import orjson

with atheris.instrument_imports(include=["collector", "schemas", "pipeline.extract", "pipeline.parse"]):
    from collector.accept import Accepted, accept
    from collector.body import decompress
    from collector.routes import ROUTES, Route
    from pipeline.extract import extractor
    from pipeline.identity import Rules
    from pipeline.log import Batch, Record
    from pipeline.parse import parse
    from schemas.errors import Refused
    from schemas.events import Resolved, decode_event, decode_resolved, materialize

RECEIVED: Final = 1_790_000_000_000_000
_extract = extractor(Rules())


def take(body: bytes, route: Route) -> None:
    """Accepts a body; its events are refused or accepted, and can be read by who comes next."""
    try:
        taken = accept(
            body,
            route,
            source="web",
            sources={"wk": "web"},
            received_at=RECEIVED,
            ip="203.0.113.7",
            new_id=lambda: "made",
        )
    except Refused:
        return
    assert len(taken.records) == sum(taken.accepted.values()) + sum(taken.refused.values())
    _read_back(taken)


def _read_back(taken: "Accepted") -> None:
    for offset, record in enumerate(taken.records):
        event = decode_event(record.value)
        assert event.message_id or event.refused
        work = parse([Batch("events", 0, [record._replace(offset=offset)], offset + 1)])
        assert len(work.events) + len(work.refusals) == 1
        if event.refused is None:
            orjson.loads(orjson.dumps(orjson.loads(event.body)))


def inflate(body: bytes) -> None:
    encoding = (b"gzip", b"deflate", b"br", b"zstd", b"gzip, br", b"none")[body[0] % 6] if body else b""
    try:
        decompress(body[1:], encoding)
    except Refused:
        return


def read_event(value: bytes) -> None:
    try:
        event = decode_event(b"\0\0\0\0\x01" + value)
    except ValueError:
        return
    try:
        _extract(event)
    except (ValueError, msgspec.MsgspecError):
        return


def read_resolved(value: bytes) -> None:
    try:
        resolved: Resolved = decode_resolved(b"\0\0\0\0\x03" + value)
        materialize(resolved)
    except ValueError:
        return


def parse_record(value: bytes) -> None:
    work = parse([Batch("events", 0, [Record(b"", value, 0, 0)], 1)])
    assert len(work.events) + len(work.refusals) == 1


DECODERS: Final[tuple[Callable[[bytes], None], ...]] = (
    lambda body: take(body, ROUTES["/v1/t"]),
    lambda body: take(body, ROUTES["/v1/identify"]),
    lambda body: take(body, ROUTES["/v1/group"]),
    lambda body: take(body, ROUTES["/v1/alias"]),
    lambda body: take(body, ROUTES["/v1/batch"]),
    lambda body: take(body, ROUTES["/v1/b"]),
    inflate,
    read_event,
    read_resolved,
    parse_record,
)


def one(data: bytes) -> None:
    """What the fuzzer calls."""
    if data:
        DECODERS[data[0] % len(DECODERS)](data[1:])


def main() -> None:
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
