"""What becomes of a body: accepted events, refused ones with their reason, and whole requests that cannot be taken."""

import gzip
import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

import brotli
import pytest
import zstandard

from collector.accept import EVENTS_LIMIT, Accepted, accept
from collector.body import BODY_LIMIT, decompress
from collector.headers import Authorization, client_ip, preflight
from collector.ids import MessageIds
from collector.item import EVENT_LIMIT
from collector.routes import ROUTES
from collector.timestamps import event_time, parse_time
from pipeline.log.contract import Draft, Drafts
from schemas.errors import Refused
from schemas.events import Event, Origin, Resolved, decode_event, iso, materialize
from schemas.reasons import REMEDIES, Reason

NOW = 1_767_225_785_200_000  # 2026-01-01T00:03:05.200Z
SOURCES = {"wk": "web", "wk2": "app"}


def taken(
    body: bytes | Mapping[str, Any],
    path: str = "/v1/t",
    *,
    source: str | None = "web",
    ip: str | None = "203.0.113.7",
) -> Accepted:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return accept(
        raw,
        ROUTES[path],
        source=source,
        sources=SOURCES,
        received_at=NOW,
        ip=ip,
        new_id=iter(f"new-{n}" for n in range(10_000)).__next__,
    )


def events(body: bytes | Mapping[str, Any], path: str = "/v1/t", **how: Any) -> list[Event]:
    return [decode_event(record.value) for record in taken(body, path, **how).records]


def one(body: bytes | Mapping[str, Any], path: str = "/v1/t", **how: Any) -> Event:
    (event,) = events(body, path, **how)
    return event


def batch(*items: Any, **envelope: Any) -> dict[str, Any]:
    return {"batch": list(items), **envelope}


def track(**fields: Any) -> dict[str, Any]:
    return {"type": "track", "event": "A", "userId": "u", **fields}


# ── One event ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_single_call_becomes_one_record_that_keeps_the_clients_bytes() -> None:
    """Vector 1 of the tracking API."""
    body = (
        b'{"type":"track","event":"A","userId":null,"anonymousId":"x","writeKey":"wk",'
        b'"timestamp":"2026-01-01T00:00:00.000Z","sentAt":"2026-01-01T00:00:01.000Z","messageId":"m1"}'
    )
    result = taken(body, source=None)
    assert (result.source, result.accepted, result.refused, result.answer) == ("web", {"web": 1}, {}, None)
    (record,) = result.records
    assert (record.key, record.timestamp, record.offset) == (b"x", NOW // 1000, -1)
    assert decode_event(record.value) == Event(
        source="web",
        type="track",
        message_id="m1",
        anonymous_id="x",
        user_id=None,
        timestamp=NOW - 1_000_000,
        sent_at=1_767_225_601_000_000,
        received_at=NOW,
        channel="client",
        ip="203.0.113.7",
        refused=None,
        body=body,
    )


@pytest.mark.parametrize("name", ["identify", "track", "page", "screen", "group", "alias"])
def test_the_path_names_the_type_and_whose_semantics_hold(name: str) -> None:
    body = {"type": "other", "userId": "u", "event": "A", "groupId": "g", "previousId": "p"}
    long, short = one(body, f"/v1/{name}"), one(body, f"/v1/{name[0]}")
    assert (long.type, long.channel, long.ip) == (name, "server", None)
    assert (short.type, short.channel, short.ip) == (name, "client", "203.0.113.7")


def test_every_path_is_served_with_and_without_version_and_trailing_slash() -> None:
    for name in ("track", "t", "batch", "b", "import"):
        paths = {f"{prefix}/{name}{slash}" for prefix in ("", "/v1", "/v1/v1") for slash in ("", "/")}
        assert paths <= ROUTES.keys()
        assert len({ROUTES[path] for path in paths}) == 1


def test_a_server_that_speaks_for_the_device_gets_its_address_noted() -> None:
    assert one(track(context={"direct": True}), "/v1/track").ip == "203.0.113.7"
    direct, other = events(batch(track(context={"direct": True}), track()), "/v1/batch")
    assert (direct.ip, other.ip) == ("203.0.113.7", None)


def test_a_missing_message_id_is_made() -> None:
    assert [one(track(messageId=given)).message_id for given in (None, "", "m")] == ["new-0", "new-0", "m"]


def test_made_message_ids_are_random_uuids_of_version_4() -> None:
    ids = MessageIds()
    made = [ids() for _ in range(1_000)]
    assert len(set(made)) == 1_000
    pattern = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
    assert all(pattern.fullmatch(one) for one in made)


@pytest.mark.parametrize(
    ("anonymous_id", "user_id", "key"), [("a", "u", b"a"), (None, "u", b"u"), ("", "u", b"u"), ("a", "  ", b"a")]
)
def test_the_anonymous_id_is_the_key_else_the_user_id_and_blank_ids_are_none(
    anonymous_id: str | None, user_id: str, key: bytes
) -> None:
    (record,) = taken(track(anonymousId=anonymous_id, userId=user_id)).records
    event = decode_event(record.value)
    assert (record.key, event.refused) == (key, None)
    assert (event.anonymous_id or event.user_id) == key.decode()


# ── Reasons ───────────────────────────────────────────────────────────────────────────────────────────────────────

PREFERENCES = "Segment Consent Preference Updated"

REFUSALS: list[tuple[str, Any]] = [
    ("bad_request", "a string"),
    ("bad_request", None),
    ("bad_request", [1, 2]),
    ("bad_request", {"userId": "u"}),
    ("bad_request", {"type": "trick", "userId": "u"}),
    ("bad_request", {"type": ["track"], "userId": "u"}),
    ("no_user_anon_id", {"type": "track", "event": "A"}),
    ("no_user_anon_id", {"type": "track", "event": "A", "userId": None, "anonymousId": None}),
    ("no_user_anon_id", {"type": "group", "groupId": "g"}),
    ("id_not_string", {"type": "track", "event": "A", "userId": ""}),
    ("id_not_string", {"type": "track", "event": "A", "userId": " \t"}),
    ("id_not_string", {"type": "track", "event": "A", "userId": 5}),
    ("id_not_string", {"type": "track", "event": "A", "userId": "u", "anonymousId": {"a": 1}}),
    ("event_not_defined", {"type": "track", "userId": "u"}),
    ("event_not_defined", {"type": "track", "userId": "u", "event": None}),
    ("event_not_defined", {"type": "track", "userId": "u", "event": ""}),
    ("event_not_string", {"type": "track", "userId": "u", "event": 7}),
    ("properties_not_object", track(properties="x")),
    ("properties_not_object", track(properties=[])),
    ("properties_not_object", {"type": "page", "userId": "u", "properties": 1}),
    ("traits_not_object", {"type": "identify", "userId": "u", "traits": True}),
    ("traits_not_object", {"type": "group", "userId": "u", "groupId": "g", "traits": "x"}),
    ("name_not_string", {"type": "page", "userId": "u", "name": 1}),
    ("name_not_string", {"type": "screen", "userId": "u", "name": ""}),
    ("category_not_string", {"type": "page", "userId": "u", "category": {}}),
    ("consent_categorypreferences_should_exist", track(event=PREFERENCES)),
    ("consent_categorypreferences_should_exist", track(event=PREFERENCES, context={"consent": {}})),
    (
        "consent_categorypreferences_fields_should_be_object",
        track(event=PREFERENCES, context={"consent": {"categoryPreferences": [True]}}),
    ),
    (
        "consent_categorypreferences_fields_should_be_bool",
        track(event=PREFERENCES, context={"consent": {"categoryPreferences": {"ads": "yes"}}}),
    ),
    (
        "consent_version_should_be_number",
        track(event=PREFERENCES, context={"consent": {"categoryPreferences": {"ads": True}, "version": "2"}}),
    ),
    (
        "device_advertisingid_should_be_string",
        track(
            event=PREFERENCES,
            context={"consent": {"categoryPreferences": {"ads": True}}, "device": {"advertisingId": 5}},
        ),
    ),
    ("context_not_object", track(context="x")),
    ("integrations_not_object", track(integrations=["All"])),
    ("group_id_required", {"type": "group", "userId": "u"}),
    ("group_id_required", {"type": "group", "userId": "u", "groupId": 5}),
    ("previous_id_required", {"type": "alias", "userId": "u"}),
    ("user_id_required", {"type": "alias", "anonymousId": "a", "previousId": "p"}),
    ("id_too_long", track(userId="u" * 513)),
    ("id_too_long", {"type": "group", "userId": "u", "groupId": "g" * 513}),
    ("message_id_not_string", track(messageId=5)),
    ("message_id_too_long", track(messageId="m" * 101)),
    ("message_too_large", track(properties={"p": "x" * EVENT_LIMIT})),
    ("nested_too_deeply", track(properties=json.loads('{"a":' * 200 + "1" + "}" * 200))),
]


@pytest.mark.parametrize(("reason", "item"), REFUSALS)
def test_a_refused_event_keeps_its_bytes_and_gets_its_reason_while_its_neighbours_go_on(reason: str, item: Any) -> None:
    good = track(messageId="good")
    result = taken(batch(good, item, good), "/v1/batch")
    first, refused, last = [decode_event(record.value) for record in result.records]
    assert (first.refused, refused.refused, last.refused) == (None, reason, None)
    assert refused.body == json.dumps(item).encode()
    assert (result.accepted, result.refused) == ({"web": 2}, {("web", reason): 1})
    assert len(refused.message_id) <= 100


def test_every_reason_is_listed_with_a_remedy() -> None:
    assert set(REMEDIES) == set(Reason)
    assert all(remedy.endswith(".") and len(remedy) < 120 for remedy in REMEDIES.values())
    reached = {reason for reason, _ in REFUSALS} | {
        Reason.UNKNOWN_SOURCE,
        Reason.TOO_MANY_EVENTS,
        Reason.SOURCE_DISABLED,
        Reason.POISON_RECORD,  # the pipeline's, as the next two are
        Reason.SUPPRESSED,
        Reason.DELETED,
    }
    assert reached == set(Reason)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/t", {"event": "A", "userId": "u", "writeKey": "wk"}),
        ("/v1/batch", {"batch": [track(), 7], "writeKey": "wk"}),
        ("/v1/batch", {"batch": [track(writeKey="wk"), track(writeKey="wk2")]}),
    ],
)
def test_events_of_a_disabled_source_are_kept_as_refused(path: str, body: Mapping[str, Any]) -> None:
    result = accept(
        json.dumps(body).encode(),
        ROUTES[path],
        source=None,
        sources=SOURCES,
        received_at=NOW,
        ip=None,
        new_id=MessageIds(),
        disabled={"web"},
    )
    kept = [decode_event(record.value) for record in result.records]
    assert {event.refused for event in kept if event.source == "web"} == {"source_disabled"}
    assert {event.refused for event in kept if event.source == "app"} <= {None}
    assert result.answer is None


def test_honest_consent_events_pass() -> None:
    context = {"consent": {"categoryPreferences": {"ads": True}, "version": 2}, "device": {"advertisingId": "i"}}
    assert one(track(event=PREFERENCES, context=context)).refused is None


def test_brackets_in_strings_are_not_nesting() -> None:
    assert one(track(properties={"p": '[{"\\' * 300})).refused is None


def test_a_refused_event_shows_what_is_usable_of_it() -> None:
    item = {"type": "track", "userId": "u", "anonymousId": "a", "messageId": "m", "event": 7}
    event = one(batch(item), "/v1/batch")
    assert (event.type, event.user_id, event.anonymous_id, event.message_id) == ("track", "u", "a", "m")


def test_a_single_call_that_is_too_large_is_kept_and_answered_with_400() -> None:
    result = taken(track(properties={"p": "x" * EVENT_LIMIT}))
    assert [decode_event(record.value).refused for record in result.records] == ["message_too_large"]
    assert result.answer is not None
    assert (result.answer.status, result.answer.code) == (400, "message_too_large")
    assert "Exceed payload limit" in result.answer.message


def test_an_event_of_exactly_the_limit_passes() -> None:
    frame = len(json.dumps(track(properties={"p": ""})))
    assert one(track(properties={"p": "x" * (EVENT_LIMIT - frame)})).refused is None


def test_events_beyond_the_limit_of_a_batch_are_refused() -> None:
    result = taken(batch(*[track()] * (EVENTS_LIMIT + 2)), "/v1/batch")
    assert (result.accepted, result.refused) == ({"web": 2_500}, {("web", "too_many_events"): 2})
    assert len(result.records) == EVENTS_LIMIT + 2


# ── Whole requests ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/t", b""),
        ("/v1/t", b"not json"),
        ("/v1/t", b"[]"),
        ("/v1/t", b"5"),
        ("/v1/t", b"null"),
        ("/v1/t", b"{} {}"),
        ("/v1/t", b'{"userId":"u","event":"A","properties":{"a":NaN}}'),
        ("/v1/t", b'{"userId":"u","event":"A","x":"\xff"}'),
        ("/v1/t", b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}"),
        ("/v1/b", b'{"batch":[,],"sentAt":"x"}'),
        ("/v1/b", b'{"batch":5}'),
        ("/v1/b", b'{"batch":null}'),
        ("/v1/b", b"{}"),
        ("/v1/b", b"[]"),
    ],
)
def test_what_is_not_the_json_of_its_path_is_refused_as_a_whole(path: str, body: bytes) -> None:
    with pytest.raises(Refused) as refused:
        taken(body, path)
    assert (refused.value.status, refused.value.code) == (400, "invalid_request")


def test_a_body_over_the_limit_is_refused_as_a_whole() -> None:
    with pytest.raises(Refused) as refused:
        taken(b" " * (BODY_LIMIT + 1))
    assert (refused.value.status, refused.value.code) == (400, "body_too_large")


def test_an_empty_batch_stores_nothing() -> None:
    assert taken(batch(), "/v1/batch") == Accepted("web", Drafts([], 0), {})


def test_a_byte_order_mark_is_taken_off() -> None:
    assert one(b"\xef\xbb\xbf" + json.dumps(track()).encode()).body == json.dumps(track()).encode()


def test_lone_surrogates_and_nul_are_replaced_wherever_they_hide_and_nothing_else_is() -> None:
    body = (
        rb'{"userId":"u","event":"A\ud83d","n":"\u0000","pair":"\ud83d\ude00","text":"\\ud83d\\u0000","low":"\udE00x"}'
    )
    mended = (
        rb'{"userId":"u","event":"A\ufffd","n":"\ufffd","pair":"\ud83d\ude00","text":"\\ud83d\\u0000","low":"\ufffdx"}'
    )
    assert (one(body).body, one(body).refused) == (mended, None)
    (event,) = events(b'{"batch":[' + body.replace(b"{", b'{"type":"track",') + b"]}", "/v1/b")
    assert event.body == mended.replace(b"{", b'{"type":"track",')


# ── Write keys ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_header_wins_over_the_envelope_and_the_envelope_over_the_event() -> None:
    body = batch(track(writeKey="wk2"), writeKey="wk")
    assert one(body, "/v1/b", source="shop").source == "shop"
    assert one(body, "/v1/b", source=None).source == "web"
    assert one(batch(track(writeKey="wk2")), "/v1/b", source=None).source == "app"


@pytest.mark.parametrize("key", [None, "", "other", 5, ["wk"]])
def test_a_missing_or_unknown_write_key_refuses_the_request(key: Any) -> None:
    for body, path in ((track(writeKey=key), "/v1/t"), (batch(track(), writeKey=key), "/v1/b")):
        with pytest.raises(Refused) as refused:
            taken(body, path, source=None)
        assert (refused.value.status, refused.value.code) == (400, "unknown_source")


def test_events_of_a_batch_go_each_to_the_source_of_its_own_key() -> None:
    body = batch(track(), track(writeKey="wk2"), track(writeKey="wk"), track(writeKey="no"))
    result = taken(body, "/v1/b", source=None)
    got = [(event.source, event.refused) for event in (decode_event(record.value) for record in result.records)]
    assert sorted(got, key=str) == [("app", "unknown_source"), ("app", "unknown_source"), ("app", None), ("web", None)]
    assert (result.accepted, result.refused) == ({"app": 1, "web": 1}, {("app", "unknown_source"): 2})


@pytest.mark.parametrize(
    ("header", "source"),
    [
        (None, None),
        (b"Basic d2s6", "web"),  # wk:
        (b"Basic d2s=", "web"),  # wk
        (b"Basic d2s", "web"),  # without padding
        (b"basic  d2s6", "web"),
        (b"Basic d2s6c2VjcmV0", "web"),  # wk:secret
        (b"Basic Og==", None),  # an empty user
        (b"Basic ?", None),
        (b"Bearer abc", None),
    ],
)
def test_basic_auth_is_read_with_and_without_colon(header: bytes | None, source: str | None) -> None:
    assert Authorization(SOURCES).source(header) == source


def test_an_unknown_key_in_the_header_is_refused_even_if_the_body_has_a_known_one() -> None:
    with pytest.raises(Refused) as refused:
        Authorization(SOURCES).source(b"Basic bm86")
    assert refused.value.code == "unknown_source"


# ── What a batch adds ─────────────────────────────────────────────────────────────────────────────────────────────


def test_context_of_the_batch_merges_deeply_under_the_events_own_and_numbers_stay_exact() -> None:
    item = track(context={"app": {"name": "mine"}, "ip": None, "n": 12345678901234567890})
    added = {"app": {"name": "theirs", "build": "7"}, "ip": "1.1.1.1", "locale": "de"}
    body = batch(item, track(), context=added, integrations={"All": False, "X": {"a": 1}})
    first, second = events(body, "/v1/batch")
    assert json.loads(first.body)["context"] == {
        "app": {"name": "mine", "build": "7"},
        "ip": "1.1.1.1",
        "n": 12345678901234567890,
        "locale": "de",
    }
    assert json.loads(second.body) == {**track(), "context": added, "integrations": {"All": False, "X": {"a": 1}}}


def test_an_events_integration_wins_whole() -> None:
    body = batch(
        track(integrations={"X": {"b": 2}, "All": True}), integrations={"X": {"a": 1}, "All": False, "Y": True}
    )
    assert json.loads(one(body, "/v1/batch").body)["integrations"] == {"X": {"b": 2}, "All": True, "Y": True}


def test_an_empty_context_of_the_batch_changes_no_byte() -> None:
    raw = b'{"batch":[ {"type":"track", "event":"A","userId":"u"} ],"context":{},"integrations":null}'
    assert one(raw, "/v1/import/").body == b'{"type":"track", "event":"A","userId":"u"}'


def test_what_a_batch_adds_counts_against_the_limit_of_an_event() -> None:
    refused = one(batch(track(), context={"p": "x" * EVENT_LIMIT}), "/v1/batch")
    assert (refused.refused, refused.body) == ("message_too_large", json.dumps(track()).encode())


def test_what_a_batch_adds_cannot_blow_up_memory() -> None:
    result = taken(batch(*[track()] * 2_000, context={"p": "x" * 30_000}), "/v1/batch")
    assert sum(len(record.value) for record in result.records) < 20 << 20
    assert sum(result.accepted.values()) + sum(result.refused.values()) == 2_000


# ── Names of old libraries ────────────────────────────────────────────────────────────────────────────────────────


def test_names_of_old_libraries_stand_in_for_missing_ones() -> None:
    old = {
        "action": "track",
        "sessionId": "s",
        "event": "A",
        "options": {"locale": "de", "providers": {"All": False}},
    }
    event = one(batch(old), "/v1/batch")
    assert (event.type, event.anonymous_id, event.refused) == ("track", "s", None)
    assert json.loads(event.body) == {
        "type": "track",
        "anonymousId": "s",
        "event": "A",
        "context": {"locale": "de"},
        "integrations": {"All": False},
    }
    alias = one({"from": "p", "to": "u"}, "/v1/alias")
    assert (alias.type, alias.user_id, json.loads(alias.body)) == ("alias", "u", {"previousId": "p", "userId": "u"})


def test_they_mean_nothing_where_todays_names_are() -> None:
    body = json.dumps(track(sessionId=5, options={"a": 1}, context={}, to="x", **{"from": "y"})).encode()
    assert one(body).body == body
    assert one(body).anonymous_id is None


# ── Times ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("timestamp", "sent_at", "expected"),
    [
        ("2026-01-01T00:00:00.000Z", "2026-01-01T00:00:05.000Z", "2026-01-01T00:03:00.200Z"),  # device 3 min slow
        (None, "2026-01-01T00:00:05.000Z", "2026-01-01T00:03:05.200Z"),
        ("2020-01-01T00:00:00Z", "", "2020-01-01T00:00:00.000Z"),  # vector 10: an import
        ("2020-01-01T00:00:00Z", None, "2020-01-01T00:00:00.000Z"),
        ("2020-01-01T00:00:00Z", "nonsense", "2020-01-01T00:00:00.000Z"),
        ("2026-01-01T01:00:00Z", "2026-01-01T02:00:00Z", "2025-12-31T23:03:05.200Z"),  # clock ahead
        ("2026-01-01T00:00:05Z", "2026-01-01T00:00:00Z", "2026-01-01T00:03:10.200Z"),  # in the future, not clamped
        ("nonsense", "2026-01-01T00:00:05.000Z", "2026-01-01T00:03:05.200Z"),
        (1767225600, None, "2026-01-01T00:03:05.200Z"),
        ("9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "2026-01-01T00:03:05.200Z"),  # no calendar holds it
    ],
)
def test_the_time_of_an_event_is_corrected_by_the_devices_clock(timestamp: Any, sent_at: Any, expected: str) -> None:
    assert iso(one(track(timestamp=timestamp, sentAt=sent_at)).timestamp) == expected


def test_an_events_own_sent_at_is_preferred_to_the_batchs() -> None:
    at = "2026-01-01T00:00:00Z"
    body = batch(
        track(timestamp=at, sentAt=at),
        track(timestamp=at, sentAt=None),
        track(timestamp=at, sentAt=""),
        sentAt="2026-01-01T00:01:00Z",
    )
    got = [(iso(event.timestamp), event.sent_at and iso(event.sent_at)) for event in events(body, "/v1/batch")]
    assert got == [
        ("2026-01-01T00:03:05.200Z", "2026-01-01T00:00:00.000Z"),
        ("2026-01-01T00:02:05.200Z", "2026-01-01T00:01:00.000Z"),
        ("2026-01-01T00:00:00.000Z", None),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-01T00:00:00Z", 0),
        ("2026-01-01t00:00:00z", 0),
        ("2026-01-01T00:00:00", 0),
        ("2026-01-01T02:00:00+02:00", 0),
        ("2026-01-01T05:30:00+0530", 0),
        ("2025-12-31T19:00:00.5-05:00", 500_000),
        ("2026-01-01T00:00:00.1234567Z", 123_456),
        ("2026-01-01T00:00:00.123456789+00:00", 123_456),
        ("2025-12-31T23:59:60Z", 0),  # a leap second
        ("2025-12-31T24:00:00.000Z", 0),
        ("", None),
        ("now", None),
        ("2026-13-01T00:00:00Z", None),
        ("2026-01-01T00:00:00.000Zjunk", None),
        ("0001-01-01T00:00:00+14:00", None),
        (0, None),
        (None, None),
        ({}, None),
    ],
)
def test_times_are_read_in_every_form_that_senders_use(text: Any, expected: int | None) -> None:
    assert parse_time(text) == (None if expected is None else 1_767_225_600_000_000 + expected)


def test_the_worked_example_of_the_specification_holds() -> None:
    original, sent_at, received_at = map(
        parse_time, ("2026-01-01T10:00:00.000Z", "2026-01-01T10:00:05.000Z", "2026-01-01T10:03:05.200Z")
    )
    assert received_at is not None
    assert iso(event_time(original, sent_at, received_at)) == "2026-01-01T10:03:00.200Z"


# ── Below the JSON ────────────────────────────────────────────────────────────────────────────────────────────────


def gzipped(body: bytes) -> bytes:
    """The same bytes at any time: they are in the names of tests."""
    return gzip.compress(body, mtime=0)


@pytest.mark.parametrize(
    ("encoding", "wire"),
    [
        (b"", b"body"),
        (b"identity", b"body"),
        (b"gzip", gzipped(b"body")),
        (b" GZip ", gzipped(b"body")),
        (b"gzip", gzipped(b"bo") + gzipped(b"dy")),
        (b"deflate", zlib.compress(b"body")),
        (b"deflate", zlib.compress(b"body")[2:-4]),
        (b"deflate", b"\x08\x04\x00\xfb\xffbody\x01\x00\x00\xff\xff"),  # bare, and begins as a header might
        (b"br", brotli.compress(b"body")),
        (b"zstd", zstandard.compress(b"body")),
        (b"zstd", zstandard.compress(b"bo") + zstandard.compress(b"dy")),
        (b"gzip, br", brotli.compress(gzipped(b"body"))),
        (b"gzip, br, gzip", gzipped(brotli.compress(gzipped(b"body")))),
    ],
)
def test_bodies_are_decompressed(encoding: bytes, wire: bytes) -> None:
    assert decompress(wire, encoding) == b"body"


@pytest.mark.parametrize(
    ("encoding", "wire", "code"),
    [
        (b"gzip", b"body", "invalid_encoding"),
        (b"gzip", gzipped(b"body")[:-1], "invalid_encoding"),
        (b"gzip", gzipped(b"body") + b"junk", "invalid_encoding"),
        (b"deflate", b"\xff", "invalid_encoding"),
        (b"br", b"body", "invalid_encoding"),
        (b"br", brotli.compress(b"body")[:-1], "invalid_encoding"),
        (b"zstd", b"body", "invalid_encoding"),
        (b"zstd", zstandard.compress(b"body")[:-1], "invalid_encoding"),
        (b"zstd", zstandard.compress(b"body") + b"junk", "invalid_encoding"),
        (b"lzma", b"body", "unsupported_encoding"),
        (b"gzip, gzip, gzip, gzip", b"body", "unsupported_encoding"),
        (b"gzip", gzipped(b" " * (BODY_LIMIT + 1)), "body_too_large"),
        (b"gzip", gzipped(b" " * BODY_LIMIT) + gzipped(b" "), "body_too_large"),
        (b"gzip", gzipped(b" " * (50 << 20)), "body_too_large"),
        (b"br", brotli.compress(b" " * (200 << 20), quality=1), "body_too_large"),
        (b"zstd", zstandard.compress(b" " * (200 << 20)), "body_too_large"),
        (b"gzip, br", brotli.compress(gzipped(b" " * (50 << 20))), "body_too_large"),
        (b"", b" " * (BODY_LIMIT + 1), "body_too_large"),
    ],
)
def test_broken_unknown_and_exploding_encodings_are_refused(encoding: bytes, wire: bytes, code: str) -> None:
    with pytest.raises(Refused) as refused:
        decompress(wire, encoding)
    assert (refused.value.status, refused.value.code) == (400, code)


@pytest.mark.parametrize(
    ("forwarded", "hops", "expected"),
    [
        ([], 0, "10.0.0.1"),
        ([b"1.1.1.1"], 0, "10.0.0.1"),
        ([b"9.9.9.9, 1.1.1.1"], 1, "1.1.1.1"),
        ([b"9.9.9.9", b"1.1.1.1, 2.2.2.2"], 2, "1.1.1.1"),
        ([b"1.1.1.1"], 2, "10.0.0.1"),  # a proxy was passed by
        ([b"[2001:db8::1]:443"], 1, "2001:db8::1"),
        ([b"1.1.1.1:5000"], 1, "1.1.1.1"),
        ([b"::ffff:1.1.1.1"], 1, "1.1.1.1"),
        ([b"unknown"], 1, "10.0.0.1"),
        ([], 1, "10.0.0.1"),
    ],
)
def test_the_callers_address_is_the_peers_or_what_a_trusted_proxy_says(
    forwarded: list[bytes], hops: int, expected: str
) -> None:
    assert client_ip("10.0.0.1", forwarded, hops) == expected


def test_a_mapped_ipv4_peer_is_an_ipv4_address() -> None:
    assert [client_ip(peer, [], 0) for peer in ("::ffff:1.2.3.4", "2001:db8::1", None)] == [
        "1.2.3.4",
        "2001:db8::1",
        None,
    ]


def test_a_preflight_names_what_sdks_send_and_echoes_what_else_is_asked_for() -> None:
    """Vector 2 of the tracking API."""
    answer = dict(
        preflight(
            {
                b"origin": b"https://shop.example",
                b"access-control-request-headers": b"authorization,x-retry-count, x-mine,\tbad name",
                b"access-control-request-private-network": b"true",
            }
        )
    )
    assert answer == {
        b"access-control-allow-origin": b"https://shop.example",
        b"access-control-allow-credentials": b"true",
        b"vary": b"Origin",
        b"access-control-expose-headers": b"Retry-After, X-RateLimit-Reset",
        b"access-control-allow-methods": b"GET, POST, OPTIONS",
        b"access-control-allow-headers": b"Authorization, Content-Type, X-Retry-Count, x-mine",
        b"access-control-max-age": b"86400",
        b"access-control-allow-private-network": b"true",
        b"content-length": b"0",
    }


# ── Hostile JSON ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("depth", [129, 5_000, 100_000])
def test_an_event_that_is_nested_too_deeply_is_refused_alone(depth: int) -> None:
    """However deep it is, its neighbours go on."""
    deep = b'{"type":"track","event":"A","userId":"u","properties":%b}' % (b'{"a":' * depth + b"1" + b"}" * depth)
    good = b'{"type":"track","event":"A","userId":"u"}'
    for extra in (b"", b',"context":{"app":{"name":"shop"}}'):
        if len(deep) > 400_000:
            deep = b"[" * 200_000 + b"]" * 200_000
        taken_events = events(b'{"batch":[%b,%b,%b]%b}' % (good, deep, good, extra), "/v1/batch")
        too_large = len(deep) > EVENT_LIMIT
        assert [event.refused for event in taken_events] == [
            None,
            "message_too_large" if too_large else "nested_too_deeply",
            None,
        ]
        assert taken_events[1].body == deep


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"batch":[],"context":%b}' % (b'{"a":' * 5_000 + b"1" + b"}" * 5_000),
        b'{"batch":%b}' % (b"[" * 100_000),
    ],
)
def test_a_body_that_is_nested_too_deeply_elsewhere_is_refused(body: bytes) -> None:
    with pytest.raises(Refused) as refused:
        taken(body, "/v1/batch")
    assert refused.value.code == "invalid_request"


def test_a_single_event_that_is_nested_too_deeply_for_the_decoder_is_refused() -> None:
    with pytest.raises(Refused) as refused:
        taken(b'{"event":"A","userId":"u","properties":%b}' % (b"[" * 5_000 + b"]" * 5_000))
    assert refused.value.message == "body is nested too deeply: an event has at most 128 levels"


@pytest.mark.parametrize(
    "number", ["9007199254740993", "18446744073709551615", "-9223372036854775808", "1e400", "0." + "1" * 50]
)
def test_a_number_is_kept_digit_by_digit(number: str) -> None:
    body = b'{"event":"A","userId":"u","properties":{"n":%b}}' % number.encode()
    assert one(body).body == body


@pytest.mark.parametrize("number", [9_007_199_254_740_993, 2**64 - 1, -(2**63)])
def test_an_integer_of_64_bits_reaches_destinations_exactly(number: int) -> None:
    event = one(b'{"event":"A","userId":"u","properties":{"n":%d}}' % number)
    assert materialize(Resolved("p", Origin(0, 0), (), event))["properties"] == {"n": number}


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "01", "+1", "1.", ".5", "0x1f", "'a'", "[1,]"])
def test_what_is_no_json_is_refused_wherever_it_stands(value: str) -> None:
    for path, body in (
        ("/v1/t", f'{{"event":"A","userId":"u","properties":{{"n":{value}}}}}'),
        ("/v1/batch", f'{{"batch":[{{"type":"track","event":"A","userId":"u","properties":{{"n":{value}}}}}]}}'),
    ):
        with pytest.raises(Refused) as refused:
            taken(body.encode(), path)
        assert refused.value.code == "invalid_request"


def test_of_a_key_that_stands_twice_the_last_one_counts_everywhere() -> None:
    event = one(b'{"event":"A","event":"B","userId":"u","userId":"v","properties":{"n":1,"n":2}}')
    full = materialize(Resolved("p", Origin(0, 0), (), event))
    assert (event.user_id, full["event"], full["userId"], full["properties"]) == ("v", "B", "v", {"n": 2})


@pytest.mark.parametrize("text", [r"\ud800", r"\udc00x", r"\ud800\ud800", r"\u0000"])
def test_text_that_no_database_holds_is_mended(text: str) -> None:
    for event in (
        one(f'{{"event":"A{text}","userId":"u","properties":{{"n":"{text}"}}}}'.encode()),
        one(f'{{"batch":[{{"type":"track","event":"A{text}","userId":"u"}}]}}'.encode(), "/v1/batch"),
    ):
        assert materialize(Resolved("p", Origin(0, 0), (), event))["event"].startswith("A\ufffd")


def none_is_plain(plains: Any, bodies: Any, *_: Any, **__: Any) -> tuple[list[Draft], list[int], int]:
    """What stands in for the quick way, so that the general one has to look at everything."""
    return [], list(range(len(bodies))), 0


def test_an_event_in_order_is_taken_in_the_same_way_whichever_way_looks_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick way and the general one."""
    bodies = [json.dumps(one).encode() for one in (track(), track(messageId="m", timestamp="2026-01-01T00:00:00.123Z"))]
    envelope = b'{"batch":[%b],"sentAt":"2026-01-01T00:00:01.000Z"}' % b",".join(bodies)
    quick = [taken(body) for body in bodies] + [taken(envelope, "/v1/batch")]
    monkeypatch.setattr("collector.accept.plain_drafts", none_is_plain)
    general = [taken(body) for body in bodies] + [taken(envelope, "/v1/batch")]
    assert [tuple(one.records) for one in quick] == [tuple(one.records) for one in general]
    assert [(one.accepted, one.records.size) for one in quick] == [(one.accepted, one.records.size) for one in general]
