"""The Avro records on the log: written and read by hand, held to fastavro byte for byte, and compatible over versions."""

from importlib.resources import files
from io import BytesIO
from typing import Any

import fastavro
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.events import (
    EVENT_HEADER,
    FENCED_HEADER,
    RESOLVED_HEADER,
    RESOLVED_V1_HEADER,
    Event,
    ExternalId,
    Fence,
    Origin,
    Resolved,
    decode_event,
    decode_resolved,
    encode_event,
    encode_resolved,
    iso,
    materialize,
    origin_of,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=80) | st.text("ab", min_size=60, max_size=70)
longs = (
    st.integers(-(2**63), 2**63 - 1)
    | st.integers(1_600_000_000_000_000, 1_900_000_000_000_000)
    | st.sampled_from([0, -1, 63, 64, 8191, 8192, 2**41 - 1, 2**41, 2**55 - 1, 2**55])
)
events = st.builds(
    Event,
    source=texts,
    type=st.sampled_from(["track", "identify", "page", "screen", "group", "alias", ""]),
    message_id=texts,
    anonymous_id=st.none() | texts,
    user_id=st.none() | texts,
    timestamp=longs,
    sent_at=st.none() | longs,
    received_at=longs,
    channel=st.sampled_from(["client", "server"]),
    ip=st.none() | texts,
    refused=st.none() | texts,
    body=st.binary(max_size=300) | st.binary(min_size=8_150, max_size=8_250),
)
resolved_parts = st.tuples(
    texts,
    st.builds(Origin, st.integers(0, 2**31 - 1), longs),
    st.lists(st.builds(ExternalId, texts, texts)),
    events,
    st.none() | st.binary(max_size=300) | st.binary(min_size=4_090, max_size=4_100),
    st.lists(st.builds(Fence, texts, st.integers(0, 2**31 - 1), longs), max_size=3).map(tuple),
)

EVENT = Event(
    source="web",
    type="track",
    message_id="m1",
    anonymous_id="a1",
    user_id=None,
    timestamp=1_767_225_600_000_000,
    sent_at=1_767_225_601_000_000,
    received_at=1_767_225_602_345_678,
    channel="client",
    ip="203.0.113.7",
    refused=None,
    body=b'{"event":"Order Completed","writeKey":"wk","timestamp":"2026-01-01T00:00:00Z","_metadata":{},"email":"x@y.z"}',
)


def plain(schema: Any) -> Any:
    """The schema without logical types, so that fastavro reads times as the integers they are."""
    if isinstance(schema, dict):
        return {key: plain(value) for key, value in schema.items() if key != "logicalType"}
    return [plain(one) for one in schema] if isinstance(schema, list) else schema


def parsed(event: str, resolved: str) -> tuple[Any, Any]:
    """Two schemas of the avro folder; the second holds the first."""
    named: dict[str, Any] = {}
    texts = [(files("schemas") / "avro" / path).read_bytes() for path in (event, resolved)]
    first, second = (fastavro.parse_schema(plain(orjson.loads(text)), named) for text in texts)
    return first, second


EVENT_SCHEMA, RESOLVED_SCHEMA = parsed("event.avsc", "resolved.avsc")
_, UNFENCED_SCHEMA = parsed("event.avsc", "history/resolved.v2.avsc")

ResolvedParts = tuple[str, Origin, list[ExternalId], Event, bytes | None, tuple[Fence, ...]]


def written(schema: Any, record: dict[str, Any]) -> bytes:
    out = BytesIO()
    fastavro.schemaless_writer(out, schema, record)
    return out.getvalue()


def resolved_record(
    profile_id: str,
    origin: Origin,
    ids: list[ExternalId],
    event: Event,
    context: bytes | None = None,
    fences: tuple[Fence, ...] = (),
) -> dict[str, Any]:
    return {
        "profile_id": profile_id,
        "partition": origin.partition,
        "offset": origin.offset,
        "external_ids": [{"type": one.type, "id": one.value} for one in ids],
        "context": context,
        "fences": [one._asdict() for one in fences],
        "event": event._asdict(),
    }


# ── Written by hand ───────────────────────────────────────────────────────────────────────────────────────────────


@given(events)
def test_an_event_is_written_byte_for_byte_as_fastavro_writes_it(event: Event) -> None:
    assert encode_event(event) == EVENT_HEADER + written(EVENT_SCHEMA, event._asdict())


@given(resolved_parts)
def test_a_resolved_event_is_written_byte_for_byte_as_fastavro_writes_it(
    parts: ResolvedParts,
) -> None:
    """The event is nested by copying the bytes that were read from `events`. Without fences, it is a record of the version before:
    nothing is paid for what most records do not have."""
    profile_id, origin, ids, event, context, fences = parts
    header, schema = (FENCED_HEADER, RESOLVED_SCHEMA) if fences else (RESOLVED_HEADER, UNFENCED_SCHEMA)
    expected = header + written(schema, resolved_record(*parts))
    assert encode_resolved(profile_id, origin, ids, encode_event(event), context, fences) == expected


# ── Read by hand ──────────────────────────────────────────────────────────────────────────────────────────────────


@given(events)
def test_an_event_is_read_as_it_was_written(event: Event) -> None:
    assert decode_event(encode_event(event)) == event


@given(resolved_parts)
def test_a_resolved_event_is_read_as_it_was_written(
    parts: ResolvedParts,
) -> None:
    profile_id, origin, ids, event, context, fences = parts
    value = encode_resolved(profile_id, origin, ids, encode_event(event), context, fences)
    assert decode_resolved(value) == Resolved(profile_id, origin, tuple(ids), event, context, fences)


def test_ids_are_those_of_each_event_whatever_its_profile_had_before() -> None:
    one, two = ExternalId("user_id", "u1"), ExternalId("email", "a@b.c")
    for ids in ((one,), (one, two), (), (two,), (one, two), (one, two)):
        value = encode_resolved("p1", Origin(0, 0), ids, encode_event(EVENT))
        assert decode_resolved(value).external_ids == ids


@pytest.mark.parametrize("fences", [(), (Fence("p2", 1, 7),)])
@pytest.mark.parametrize("origin", [Origin(0, 0), Origin(300, 70_000), Origin(1, 1 << 40)])
def test_the_origin_is_told_without_reading_the_rest(origin: Origin, fences: tuple[Fence, ...]) -> None:
    value = encode_resolved("Zoë" * 40, origin, (), encode_event(EVENT), fences=fences)
    assert origin_of(value) == origin
    for broken in (b"", value[:7], b"poison", EVENT_HEADER + value[5:]):
        with pytest.raises(ValueError, match="not a resolved record"):
            origin_of(broken)


def test_a_resolved_event_of_the_first_version_is_read() -> None:
    _, first = parsed("history/event.v1.avsc", "history/resolved.v1.avsc")
    record = resolved_record("p", Origin(1, 2), [ExternalId("user_id", "u1")], EVENT)
    value = RESOLVED_V1_HEADER + written(first, record)
    assert decode_resolved(value) == Resolved("p", Origin(1, 2), (ExternalId("user_id", "u1"),), EVENT)


def test_an_array_in_sized_blocks_as_other_writers_make_it_is_read() -> None:
    head = RESOLVED_HEADER + b"\x02p\x04\x06"  # profile "p", partition 2, offset 3
    block = b"\x02\x0euser_id\x04u1"[1:]
    array = b"\x01" + bytes((len(block) << 1,)) + block + b"\x02" + block + b"\x00"
    expected = (ExternalId("user_id", "u1"),) * 2
    assert decode_resolved(head + array + b"\x00" + encode_event(EVENT)[5:]).external_ids == expected


@given(events, st.data())
def test_a_value_that_was_cut_or_lengthened_is_a_poison_record(event: Event, data: st.DataObject) -> None:
    value = encode_event(event)
    with pytest.raises(ValueError, match="not an event record"):
        decode_event(value[: data.draw(st.integers(0, len(value) - 1))])
    with pytest.raises(ValueError, match="not an event record"):
        decode_event(value + b"\x00")


@given(st.binary())
@example(b"\xff" * 40)
@example(b"\x01")
def test_any_bytes_are_a_record_or_a_value_error(junk: bytes) -> None:
    resolved = [(header, decode_resolved) for header in (RESOLVED_HEADER, FENCED_HEADER, RESOLVED_V1_HEADER)]
    for header, decode in ((EVENT_HEADER, decode_event), *resolved, (b"", decode_event)):
        try:
            decode(header + junk)
        except ValueError:
            continue


# ── Over versions ─────────────────────────────────────────────────────────────────────────────────────────────────

FOLDER = files("schemas") / "avro" / "history"
HISTORY = [(event.name, resolved.name) for event in FOLDER.iterdir() for resolved in FOLDER.iterdir()]
HISTORY = sorted(pair for pair in HISTORY if pair[0].startswith("event.") and pair[1].startswith("resolved."))


@pytest.mark.parametrize("versions", HISTORY, ids=" in ".join)
def test_records_of_every_past_version_are_read_with_the_current_schema_and_the_other_way_round(
    versions: tuple[str, str],
) -> None:
    """Whichever version of an event stands in whichever version of a resolved one."""
    record = resolved_record("p1", Origin(1, 2), [ExternalId("user_id", "u1")], EVENT, fences=(Fence("p2", 3, 4),))
    absent: dict[str, Any] = {"context": None, "fences": []}
    past = parsed(*(f"history/{one}" for one in versions))
    for value, old, new in zip((EVENT._asdict(), record), past, (EVENT_SCHEMA, RESOLVED_SCHEMA), strict=True):
        for writer, reader in ((old, new), (new, old)):
            read: Any = fastavro.schemaless_reader(BytesIO(written(writer, value)), writer, reader)
            told = {field["name"] for field in writer["fields"]}
            assert read == {field: value[field] if field in told else absent[field] for field in read}


def test_the_current_schemas_are_the_last_of_the_history() -> None:
    for name in ("event", "resolved"):
        newest = max((int(one.name.split(".")[1][1:]), one) for one in FOLDER.iterdir() if one.name.startswith(name))[1]
        assert (files("schemas") / "avro" / f"{name}.avsc").read_text() == newest.read_text(), f"add {name} to history/"


# ── As destinations see it ────────────────────────────────────────────────────────────────────────────────────────


def resolved(event: Event) -> Resolved:
    return Resolved("p1", Origin(0, 7), (ExternalId("anonymous_id", "a1"),), event)


def test_a_destination_sees_the_clients_fields_with_the_servers_set_and_the_internal_ones_gone() -> None:
    seen = materialize(resolved(EVENT))
    expected = {
        "event": "Order Completed",
        "email": "x@y.z",
        "type": "track",
        "messageId": "m1",
        "anonymousId": "a1",
        "originalTimestamp": "2026-01-01T00:00:00Z",
        "timestamp": "2026-01-01T00:00:00.000Z",
        "sentAt": "2026-01-01T00:00:01.000Z",
        "receivedAt": "2026-01-01T00:00:02.345Z",
        "context": {"ip": "203.0.113.7"},
        "profileId": "p1",
        "externalIds": [{"type": "anonymous_id", "id": "a1"}],
    }
    assert {name: seen[name] for name in expected} == expected
    assert {"writeKey", "projectId", "_metadata"}.isdisjoint(seen)


def test_an_ip_that_the_client_gave_stays() -> None:
    event = EVENT._replace(body=b'{"context":{"ip":"0.0.0.0"}}')
    assert materialize(resolved(event))["context"] == {"ip": "0.0.0.0"}


def test_a_number_beyond_a_double_is_null_rather_than_poison() -> None:
    seen = materialize(
        resolved(EVENT._replace(body=b'{"properties":{"a":1e999,"b":-1e999,"c":1.5,"d":9007199254740993}}'))
    )
    assert seen["properties"] == {"a": None, "b": None, "c": 1.5, "d": 9007199254740993}


@pytest.mark.parametrize("body", [b"[]", b"", b"{", b'{"a":NaN}', b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"])
def test_a_body_that_is_no_object_is_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError):
        materialize(resolved(EVENT._replace(body=body)))


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (1_767_225_600_123_999, "2026-01-01T00:00:00.123Z"),
        (-62_135_596_800_000_000, "0001-01-01T00:00:00.000Z"),
        (253_402_300_799_999_999, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_times_are_written_with_milliseconds_and_z(micros: int, text: str) -> None:
    assert iso(micros) == text


def test_a_time_outside_the_calendar_is_a_value_error() -> None:
    for micros in (253_402_300_800_000_000, -62_135_596_800_000_001):
        with pytest.raises(ValueError, match="years 1 to 9999"):
            iso(micros)
