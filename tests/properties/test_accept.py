"""Laws of accepting: nothing but Refused is ever raised, every event is accounted for, times follow the formula."""

import json
from datetime import UTC, datetime, timedelta, timezone
from itertools import accumulate
from typing import Any
from unittest import mock

from hypothesis import example, given, settings
from hypothesis import strategies as st

from collector.accept import Accepted, accept, accept_singles, single
from collector.body import decompress
from collector.headers import Authorization, client_ip
from collector.item import DEPTH_LIMIT
from collector.plain import all_shallow
from collector.routes import ROUTES
from collector.timestamps import EARLIEST, LATEST, event_time, parse_time
from pipeline.log.contract import Draft
from schemas.errors import Refused
from schemas.events import ExternalId, Origin, Resolved, decode_event, materialize
from schemas.reasons import Reason

NOW = 1_767_225_600_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(
    [
        "type",
        "messageId",
        "anonymousId",
        "userId",
        "timestamp",
        "sentAt",
        "event",
        "name",
        "category",
        "groupId",
        "previousId",
        "properties",
        "traits",
        "context",
        "integrations",
        "writeKey",
        "action",
        "sessionId",
        "from",
        "to",
        "options",
        "batch",
        "extra",
    ]
)
objects = st.dictionaries(names, json_values | st.sampled_from(["track", "alias", "u", "wk"]), max_size=8)


def taken(body: bytes, path: str) -> Accepted | None:
    try:
        return accept(
            body,
            ROUTES[path],
            source=None,
            sources={"wk": "web"},
            received_at=NOW,
            ip=None,
            new_id=lambda: "new",
        )
    except Refused:
        return None


def assert_balanced(result: Accepted) -> None:
    """Each record is counted once, and what is accepted can be materialised."""
    assert len(result.records) == sum(result.accepted.values()) + sum(result.refused.values())
    for record in result.records:
        event = decode_event(record.value)
        if event.refused is None:
            materialize(Resolved("p", Origin(0, 0), (ExternalId("user_id", "u"),), event))
        else:
            assert Reason(event.refused)


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()), st.sampled_from(sorted(ROUTES)))
def test_any_bytes_are_taken_or_refused(body: bytes, path: str) -> None:
    result = taken(body, path)
    if result is not None:
        assert_balanced(result)


@given(objects, st.sampled_from(sorted(ROUTES)))
def test_any_object_is_taken_or_refused_and_what_is_taken_balances(body: dict[str, Any], path: str) -> None:
    result = taken(json.dumps({**body, "writeKey": "wk"}).encode(), path)
    if result is not None:
        assert_balanced(result)


good_events = st.fixed_dictionaries(
    {"type": st.just("track"), "event": st.text(min_size=1, max_size=10), "userId": st.just("u")},
    optional={"properties": st.dictionaries(st.text(max_size=5), json_values, max_size=3)},
)


@given(
    st.lists(st.tuples(st.just(True), good_events) | st.tuples(st.just(False), objects | json_values), max_size=8),
    st.none() | st.dictionaries(st.text(max_size=5), json_values, max_size=3),
)
def test_the_good_events_of_a_batch_all_go_through_whatever_their_neighbours_are(
    items: list[tuple[bool, Any]], context: dict[str, Any] | None
) -> None:
    batch = [{**item, "messageId": f"m{n}"} if good else item for n, (good, item) in enumerate(items)]
    body = json.dumps({"batch": batch, "writeKey": "wk", "context": context}).encode()
    result = taken(body, "/v1/batch")
    assert result is not None
    assert_balanced(result)
    through = {event.message_id for record in result.records if not (event := decode_event(record.value)).refused}
    assert len(result.records) == len(items)
    assert {f"m{n}" for n, (good, _) in enumerate(items) if good} <= through


times = st.sampled_from(
    [
        "2026-01-01T00:00:00.000Z",
        "2026-01-01T00:00:00.999Z",
        "2026-01-01T00:00:01.000Z",
        "2026-01-01T00:00:00Z",
        "2026-01-01T00:00:00.123456Z",
        "2026-01-01",
        "1969-12-31T23:59:59.999Z",
        "1970-01-01T00:00:00.000Z",
        "0001-01-01T00:00:00.000Z",
        "9999-12-31T23:59:59.000Z",
        "9999-12-31T23:59:59.999Z",
        "never",
        "",
        7,
        None,
    ]
)


def mostly(usual: str, *unusual: Any) -> st.SearchStrategy[Any]:
    return st.integers(0, 9).flatmap(lambda n: st.sampled_from([usual, *unusual]) if n == 9 else st.just(usual))


usual_events = st.fixed_dictionaries(
    {
        "type": mostly("track", "identify", "page", "screen", "alias", "Track"),
        "event": mostly("A", "", "Segment Consent Preference Updated"),
        "userId": mostly("u", "", " ", "\u00e9" * 512, "x" * 513, 7),
    },
    optional={
        "messageId": mostly("m", "", "\u00e9", "x" * 101),
        "anonymousId": mostly("a", "", "\t", "\U0001f600" * 512),
        "timestamp": times,
        "originalTimestamp": times,
        "sentAt": times,
        "context": st.sampled_from([None, {}, {}, {"direct": True}, {"direct": False}]),
        "properties": st.sampled_from([{}, {"deep": [[]]}, 7]),
    },
)


@settings(max_examples=300)
@given(st.lists(usual_events, max_size=6), times, st.booleans())
def test_the_short_way_and_the_general_way_make_the_same_of_every_event(
    events: list[dict[str, Any]], sent_at: Any, one_by_one: bool
) -> None:
    bodies = [json.dumps({**event, "writeKey": "wk"}, ensure_ascii=False).encode() for event in events]
    if not one_by_one:
        bodies = [b'{"batch":[%b],"writeKey":"wk","sentAt":%b}' % (b",".join(bodies), json.dumps(sent_at).encode())]
    path = "/v1/t" if one_by_one else "/v1/batch"
    quick = [whole(taken(body, path)) for body in bodies]
    with mock.patch("collector.accept.plain_drafts", none_is_plain):
        general = [whole(taken(body, path)) for body in bodies]
    assert quick == general


usual_bodies = usual_events.map(lambda event: json.dumps({**event, "writeKey": "wk"}, ensure_ascii=False).encode())
broken_bodies = st.sampled_from(
    [
        b"",
        b" ",
        b"{",
        b"}",
        b"1}",
        b'{"userId":"u","event":"A",',
        b'"writeKey":"wk"}',
        b'{"userId":"u","event":"A","writeKey":"wk"}\n{"userId":"v","event":"A","writeKey":"wk"}',
        b'{"userId":"u","event":"A","writeKey":"wk"}{"userId":"v","event":"A","writeKey":"wk"}',
        b'\n{"userId":"u","event":"A","writeKey":"wk"}',
        b'{"userId":"u","event":"A",\r\n"writeKey":"wk"}\n',
        b'\xef\xbb\xbf{"userId":"u","event":"A","writeKey":"wk"}',
        b'{"userId":"u","event":"A","writeKey":"wk","name":"\xff"}',
        b'{"userId":"u","event":"A","writeKey":"wk","x":"\\u0000"}',
        b'{"userId":"u","event":"A","writeKey":"wk","x":"\\ud800"}',
        b'{"userId":"\\u00e9","event":"A","writeKey":"wk"}',
        b'{"userId":"u","event":"A","writeKey":"off"}',
        b'{"userId":"u","event":"A","writeKey":7}',
        b'{"userId":"u","event":"A","writeKey":"wk","deep":' + b"[" * 200 + b"]" * 200 + b"}",
        b'{"userId":"u","event":"A","writeKey":"wk","long":"' + b"x" * 33_000 + b'"}',
    ]
)


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            usual_bodies | usual_bodies | usual_bodies | broken_bodies,
            st.sampled_from(["/v1/t", "/v1/i", "/v1/p", "/v1/track", "/v1/alias", "/v1/import"]),
            st.sampled_from([None, None, "named", "closed"]),
            st.sampled_from([None, "203.0.113.9"]),
        ).filter(lambda one: ROUTES[one[1]].type is not None),
        min_size=1,
        max_size=6,
    )
)
@example(
    [
        (b" ", "/v1/t", None, None),
        (
            b'{"userId":"u","event":"A","writeKey":"wk"}\n{"userId":"v","event":"A","writeKey":"wk"}',
            "/v1/t",
            None,
            None,
        ),
    ]
)
@example(
    [
        (b'{"userId":"u","event":"A","writeKey":"wk"}{"userId":"v","event":"A","writeKey":"wk"}', "/v1/t", None, None),
        (b"", "/v1/t", None, None),
    ]
)
def test_calls_that_are_taken_together_come_to_what_each_comes_to_alone(
    calls: list[tuple[bytes, str, str | None, str | None]],
) -> None:
    sources, disabled = {"wk": "web", "off": "closed"}, {"closed"}
    calls_of_routes = [(body, ROUTES[path], source, ip) for body, path, source, ip in calls]
    together = accept_singles(
        calls_of_routes, sources=sources, received_at=NOW, new_id=lambda: "new", disabled=disabled
    )
    others = set(together.left)
    expected = []
    for number, (body, route, source, ip) in enumerate(calls_of_routes):
        if number in others:
            continue
        with mock.patch("collector.accept.plain_drafts", none_is_plain):
            expected.append(
                accept(
                    body,
                    route,
                    source=source,
                    sources=sources,
                    received_at=NOW,
                    ip=ip,
                    new_id=lambda: "new",
                    disabled=disabled,
                )
            )
    alone = [single(source, row) for source, row in zip(together.sources, together.rows, strict=True)]
    assert [whole(one) for one in alone] == [whole(one) for one in expected]
    assert together.size == sum(one.records.size for one in expected)


def none_is_plain(plains: Any, bodies: Any, *_: Any, **__: Any) -> tuple[list[Draft], list[int], int]:
    """What stands in for the quick way, so that the general one has to look at everything."""
    return [], list(range(len(bodies))), 0


def whole(taken: Accepted | None) -> Any:
    return taken and (
        taken.source,
        list(taken.records),
        taken.records.size,
        taken.accepted,
        taken.refused,
        str(taken.answer),
    )


@given(st.binary(), st.sampled_from([b"", b"gzip", b"deflate", b"br", b"zstd", b"br, gzip"]))
def test_any_wire_is_decompressed_or_refused(wire: bytes, encoding: bytes) -> None:
    try:
        decompress(wire, encoding)
    except Refused:
        return


@given(st.binary(), st.lists(st.binary(), max_size=3), st.integers(0, 3))
def test_any_header_is_read_or_refused(header: bytes, forwarded: list[bytes], hops: int) -> None:
    client_ip("127.0.0.1", forwarded, hops)
    for authorization in (header, b"Basic " + header):
        try:
            Authorization({"wk": "web"}).source(authorization)
        except Refused:
            continue


# ── Times ─────────────────────────────────────────────────────────────────────────────────────────────────────────

moments = st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
zones = st.none() | st.integers(-14 * 60, 14 * 60)


def micros(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


@given(moments, zones, st.integers(0, 9), st.sampled_from("Tt"), st.sampled_from("Zz"), st.booleans(), st.data())
def test_a_time_is_read_in_any_form(
    moment: datetime, zone: int | None, digits: int, t: str, z: str, colon: bool, data: st.DataObject
) -> None:
    nanos = f"{moment.microsecond:06d}{data.draw(st.integers(0, 999)):03d}"
    local = moment if zone is None else moment.astimezone(timezone(timedelta(minutes=zone)))
    text = local.strftime(f"%Y-%m-%d{t}%H:%M:%S") + (f".{nanos[:digits]}" if digits else "")
    if zone is None:
        text += z
    else:
        sign, (hours, minutes) = "-" if zone < 0 else "+", divmod(abs(zone), 60)
        text += f"{sign}{hours:02d}{':' if colon else ''}{minutes:02d}"
    kept = int(nanos[: min(digits, 6)].ljust(6, "0"))
    assert parse_time(text) == micros(moment.replace(microsecond=kept))


@given(st.none() | moments, st.none() | moments, moments)
def test_the_time_of_an_event_follows_the_formula(
    original: datetime | None, sent_at: datetime | None, received_at: datetime
) -> None:
    if original is None:
        expected = received_at
    elif sent_at is None:
        expected = original
    else:
        expected = received_at - (sent_at - original)
    numbers = [None if moment is None else micros(moment) for moment in (original, sent_at)]
    assert event_time(numbers[0], numbers[1], micros(received_at)) == micros(expected)


@given(*[st.integers(EARLIEST, LATEST)] * 3)
def test_the_time_of_an_event_is_always_one_a_calendar_holds(original: int, sent_at: int, received_at: int) -> None:
    assert EARLIEST <= event_time(original, sent_at, received_at) <= LATEST


@given(st.text() | st.text("0123456789-:.+TtZz ", max_size=40) | json_values)
def test_any_value_is_a_time_or_none(value: Any) -> None:
    parsed = parse_time(value)
    assert parsed is None or EARLIEST <= parsed <= LATEST


@given(
    st.lists(st.sampled_from([b"{" * 70, b"[" * 70, b'{"a":[]}', b"x" * 500, b"x" * 3_900]), max_size=12),
    st.integers(1, 9_000),
)
@example([b"x" * 3_900, b"{" * 70, b"x" * 500, b"[" * 70], 640)
def test_what_is_called_shallow_has_no_part_with_more_brackets_than_levels_are_allowed(
    pieces: list[bytes], longest: int
) -> None:
    whole = b"".join(pieces)
    if all_shallow(whole, longest):
        opened = [0, *accumulate(byte in b"{[" for byte in whole)]
        assert all(opened[min(at + longest, len(whole))] - before <= DEPTH_LIMIT for at, before in enumerate(opened))
