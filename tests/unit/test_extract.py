"""Where identifiers are read from, what is none, and which traits an event writes."""

from typing import Any

import orjson
import pytest

from pipeline.extract import Extract, Found
from pipeline.identity import Demoted, Rules
from schemas.events import Event, ExternalId
from schemas.identity import IdentityConfig, IdTypeConfig
from schemas.reasons import Reason

CONFIG = IdentityConfig(
    types={
        "phone": IdTypeConfig(traits=("phone",)),
        "app_id": IdTypeConfig(traits=("app_id",)),
        "loyalty_id": IdTypeConfig(case_sensitive=False),
        "domain": IdTypeConfig(collection="accounts", traits=("domain",)),
    }
)


def read(kind: str = "track", user: str | None = None, config: IdentityConfig = CONFIG, **body: Any) -> Found | Reason:
    raw = orjson.dumps({"type": kind, **body})
    event = Event("web", kind, "m", None, user, 1, None, 1, "server", None, None, raw)
    return Extract(Rules(config))(event)


def ids(*given: Any, **body: Any) -> list[str]:
    found = read(*given, **body)
    assert isinstance(found, Found)
    return [str(one) for one in (*found.ids, *found.accounts)]


def refused(**body: Any) -> list[tuple[str, str]]:
    found = read(**body)
    assert isinstance(found, Found)
    return [(str(one.id), one.violation) for one in found.refused]


def external(**entry: Any) -> dict[str, Any]:
    whole = {"id": "L-1", "type": "loyalty_id", "collection": "users", "encoding": "none"} | entry
    return {"externalIds": [{key: value for key, value in whole.items() if value is not None}]}


def test_the_specifications_own_example():
    assert ids(
        anonymousId="ignored: the envelope has it",
        context=external(id="L-2209") | {"traits": {"email": "mia@shop.test"}},
        properties={"seat": "12C", "phone": "+358401234567"},
    ) == ["email:mia@shop.test", "loyalty_id:l-2209", "phone:+358401234567"]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("identify", ["email:t@x", "email:c@x", "app_id:t", "app_id:c", "phone:t", "phone:c"]),
        ("group", ["email:t@x", "email:c@x", "app_id:t", "app_id:c", "phone:t", "phone:c"]),
        ("track", ["email:t@x", "email:c@x", "email:p@x", "app_id:c", "app_id:p", "phone:c", "phone:p"]),
        ("page", ["email:t@x", "email:c@x", "email:p@x", "app_id:c", "app_id:p", "phone:c", "phone:p"]),
        ("alias", ["email:t@x", "email:c@x", "app_id:c", "phone:c"]),
    ],
)
def test_traits_and_properties_are_read_by_the_kind_of_call(kind: str, expected: list[str]):
    holders = {
        name: {"email": f"{letter}@x", "phone": letter, key: letter}
        for name, letter, key in (("traits", "t", "appId"), ("properties", "p", "app_id"), ("of context", "c", "appId"))
    }
    assert (
        ids(
            kind,
            traits=holders["traits"],
            properties=holders["properties"],
            context={"traits": holders["of context"]},
        )
        == expected
    )


def test_email_in_properties_can_be_turned_off():
    assert ids(config=IdentityConfig(email_in_properties=False), properties={"email": "a@x"}) == []


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (
            {"type": "Android", "id": "d", "advertisingId": "g", "adTrackingEnabled": True, "token": "t"},
            ["android.id:d", "android.idfa:g", "android.push_token:t"],
        ),
        (
            {"type": "ios", "id": "d", "advertisingId": "g", "adTrackingEnabled": "true", "token": "t"},
            ["ios.id:d", "ios.push_token:t"],
        ),
        ({"type": "windows", "id": "d", "token": "t"}, []),
        ({"id": "d"}, []),
        ("iPhone", []),
    ],
)
def test_identifiers_of_devices(device: Any, expected: list[str]):
    assert ids(context={"device": device}) == expected


def test_identifiers_that_tools_put_into_the_context():
    context = {
        "integrations": {"Google Analytics": {"clientId": "c.1"}},
        "Braze": {"braze_id": "b"},
        "traits": {"crossDomainId": "x"},
    }
    legacy = IdentityConfig(types={"braze_id": IdTypeConfig(), "cross_domain_id": IdTypeConfig()})

    assert ids(context=context) == ["ga_client_id:c.1"]
    assert ids(config=legacy, context=context) == ["braze_id:b", "cross_domain_id:x", "ga_client_id:c.1"]


def test_a_type_that_is_not_enabled_is_not_read():
    config = IdentityConfig(types={"email": IdTypeConfig(enabled=False)})
    assert ids(user="u1", config=config, traits={"email": "a@x"}) == ["user_id:u1"]


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"encoding": None}, ("loyalty_id:L-1", "External id malformed")),
        ({"encoding": "base64"}, ("loyalty_id:L-1", "External id malformed")),
        ({"collection": None}, ("loyalty_id:L-1", "External id malformed")),
        ({"collection": "accounts"}, ("loyalty_id:L-1", "External id malformed")),
        ({"id": None}, ("loyalty_id:", "External id malformed")),
        ({"type": None}, (":L-1", "External id malformed")),
        ({"type": "Loyalty_Id"}, ("Loyalty_Id:L-1", "External id malformed")),
        ({"type": "card"}, ("card:L-1", "Identifier type not configured")),
    ],
)
def test_external_ids_that_are_not_whole_are_passed_over_and_noted(entry: dict[str, Any], why: tuple[str, str]):
    assert refused(user="u1", context=external(**entry)) == [why]
    assert ids(user="u1", context=external(**entry)) == ["user_id:u1"]


@pytest.mark.parametrize("entries", ["L-1", {"id": "L-1"}, [1], [None]])
def test_external_ids_of_another_shape_are_noted(entries: Any):
    assert refused(user="u1", context={"externalIds": entries})[0][1] == "External id malformed"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (" A@X.test ", ["email:a@x.test"]),
        (17, ["email:17"]),
        (12345678901234567890123, ["email:12345678901234567890123"]),
        ("", []),
        ("  ", []),
        (None, []),
    ],
)
def test_values_that_are_ids_or_blank(value: Any, expected: list[str]):
    raw = str(value).encode() if isinstance(value, int) else orjson.dumps(value)
    event = Event(
        "web", "identify", "m", None, None, 1, None, 1, "server", None, None, b'{"traits":{"email":%s}}' % raw
    )
    found = Extract(Rules())(event)

    assert isinstance(found, Found)
    assert [str(one) for one in found.ids] == expected
    assert found.refused == []


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (True, ("email:", "Identifier value is not text or a whole number")),
        (1.5, ("email:", "Identifier value is not text or a whole number")),
        (["a"], ("email:", "Identifier value is not text or a whole number")),
        ({}, ("email:", "Identifier value is not text or a whole number")),
        ("é" * 251, ("email:" + "é" * 100 + "…", "Identifier value over 500 bytes")),
        ("a\0b", ("email:a\ufffdb", "Identifier value holds a NUL character")),
        ("null", ("email:null", "ID value blocked")),
    ],
)
def test_values_that_are_no_ids_are_noted_with_the_reason(value: Any, why: tuple[str, str]):
    assert refused(kind="identify", traits={"email": value}) == [why]


def test_a_value_of_500_bytes_is_an_id():
    assert ids("identify", traits={"email": "é" * 250}) == ["email:" + "é" * 250]


def test_groups_name_accounts():
    assert read("group", "u1", groupId="g7", traits={"domain": "x.test", "plan": "ent"}) == Found(
        [ExternalId("user_id", "u1")],
        [ExternalId("domain", "x.test"), ExternalId("group_id", "g7")],
        [],
        {"domain": "x.test", "plan": "ent"},
    )
    assert ids("track", "u1", context={"groupId": 7}) == ["user_id:u1", "group_id:7"]


@pytest.mark.parametrize("blank", ["", "  "])
def test_a_track_with_an_empty_group_is_refused_with_its_reason(blank: str):
    assert read("track", "u1", context={"groupId": blank}) == Reason.GROUP_ID_REQUIRED
    assert ids("page", "u1", context={"groupId": blank}) == ["user_id:u1"]
    assert ids("track", "u1", context={"groupId": None}) == ["user_id:u1"]


def test_an_alias_names_the_previous_user_only_where_the_rules_say_so():
    assert ids("alias", "u2", previousId="u1") == ["user_id:u2"]
    assert ids("alias", "u2", previousId="u1", config=IdentityConfig(alias_identifies=True)) == [
        "user_id:u2",
        "user_id:u1",
    ]


@pytest.mark.parametrize(
    ("kind", "body", "written"),
    [
        ("identify", {"traits": {"a": 1}, "context": {"traits": {"b": 2}}}, {"a": 1}),
        ("identify", {"context": {"traits": {"b": 2}}}, {"b": 2}),
        ("identify", {"traits": [1], "context": {"traits": {"b": 2}}}, None),
        ("identify", {"context": 7}, None),
        ("group", {"traits": {"a": 1}, "context": {"traits": {"b": 2}}}, {"a": 1}),
        ("group", {"context": {"traits": {"b": 2}}}, None),
        ("track", {"traits": {"a": 1}, "properties": {"c": 3}}, None),
    ],
)
def test_which_traits_are_written(kind: str, body: dict[str, Any], written: Any):
    found = read(kind, "u1", **body)
    assert isinstance(found, Found)
    assert found.traits == written


@pytest.mark.parametrize("body", [b"[]", b"7", b'"text"', b"null"])
def test_a_body_that_is_no_object_holds_nothing(body: bytes):
    event = Event("web", "track", "m", "a1", None, 1, None, 1, "server", None, None, body)
    assert Extract(Rules())(event) == Found([ExternalId("anonymous_id", "a1")], [], [], None)


def test_what_a_visitors_events_share_is_no_part_of_what_one_of_them_says_beside_it():
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("page", {}),
        ("track", {"context": {"device": {"type": "ios", "id": "d1"}}}),
        ("track", {"properties": {"sku": 1}, "context": {"ip": "192.0.2.1"}}),
        ("track", {"context": {"consent": {"categoryPreferences": {"ads": True}}}}),
        ("track", {"context": {"groupId": "  "}}),
        ("alias", {"previousId": "u0"}),
        ("group", {"groupId": "g1", "traits": {"plan": "x"}}),
        ("identify", {"traits": {"email": "a@x.test"}}),
        ("track", {"context": {"traits": {"email": "b@x.test"}}}),
        ("screen", {}),
    ]
    events = [
        Event("web", kind, f"m{number}", device, user, 1, None, 1, "server", None, None, orjson.dumps(body))
        for number, (kind, body) in enumerate(bodies * 2)
        for device, user in (("a1", "u1"), ("a1", None), (None, "u1"), ("u1", "a1"))
    ]
    one = Extract(Rules(CONFIG))
    assert [one(event) for event in events] == [Extract(Rules(CONFIG))(event) for event in events]


@pytest.mark.parametrize("body", [b"", b"{", b"{'a':1}"])
def test_a_body_that_is_no_json_is_an_error(body: bytes):
    event = Event("web", "track", "m", "a1", None, 1, None, 1, "server", None, None, body)
    with pytest.raises(ValueError, match="not JSON"):
        Extract(Rules())(event)


def test_blocked_ids_are_left_out_and_noted():
    found = read("track", "null", properties={"phone": "000"})
    assert found == Found(
        [],
        [],
        [
            Demoted(ExternalId("user_id", "null"), "ID value blocked"),
            Demoted(ExternalId("phone", "000"), "ID value blocked"),
        ],
        None,
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"categoryPreferences": {"ads": True, "Mail-2": False}}, {"ads": True, "Mail-2": False}),
        ({"categoryPreferences": {}}, {}),
        (
            {"categoryPreferences": {"1ads": True, "": True, "x" * 35: True, "ads": "yes", "mail": False}},
            {"mail": False},
        ),
        ({"categoryPreferences": {"ads": "yes"}}, None),
        ({"categoryPreferences": [True]}, None),
        ({}, None),
        (None, None),
        ("no", None),
    ],
)
@pytest.mark.parametrize("kind", ["track", "identify", "group"])
def test_preferences_are_read_from_any_event_that_states_them(kind: str, given: Any, said: Any):
    found = read(kind, "u1", groupId="g1", traits={"plan": "pro"}, context={"consent": given})
    assert isinstance(found, Found)
    assert found.consent == said
