"""The `identity` section of `millrace.yaml`: what it means, and what is said of its faults."""

from collections.abc import Sequence

import pytest

from millrace.config.load import load_text
from pipeline.identity import Rules
from schemas.errors import ConfigError
from schemas.identity import BlockedConfig, IdentityConfig, IdTypeConfig


def faults(text: str) -> Sequence[str]:
    with pytest.raises(ConfigError) as raised:
        load_text(text, "millrace.yaml", {}, None)
    return list(raised.value.faults)


def test_every_fault_names_its_line_and_a_remedy():
    assert faults(
        """\
identity:
  types:
    phone: {}
    Sms: {}
    profile_id: {}
    card:
      limit: 0
      window: dayly
      blocked:
        patterns: ["ok", "(open", "a(?=b)", ""]
    cookie: {limit: 5000, window: weekly}
    user_id: {collection: accounts}
    group_id:
      limt: 3
  priority: [user_id, fone, card]
  merges_per_profile: -1
  ids_per_profile: 0
"""
    ) == [
        "millrace.yaml:4 identity.types.Sms: is not a type; start with a lower-case letter, then lower-case letters, digits, "
        "_ . or -",
        "millrace.yaml:5 identity.types.profile_id: profile_id addresses profiles by their own ids; choose another name",
        "millrace.yaml:7 identity.types.card.limit: must be greater than or equal to 1",
        "millrace.yaml:8 identity.types.card.window: must be 'ever', 'weekly', 'monthly' or 'annually'",
        "millrace.yaml:10 identity.types.card.blocked.patterns[1]: is not a regular expression of RE2 (missing ): (open); it knows "
        "no look-around and no back-references",
        "millrace.yaml:10 identity.types.card.blocked.patterns[2]: is not a regular expression of RE2 (invalid perl operator: (?=); "
        "it knows no look-around and no back-references",
        "millrace.yaml:10 identity.types.card.blocked.patterns[3]: must not be empty; give a value",
        "millrace.yaml:11 identity.types.cookie: a limit with a window is 1,000 at most; lower it, or count `ever`",
        "millrace.yaml:12 identity.types.user_id.collection: user_id names users; leave it out",
        "millrace.yaml:14 identity.types.group_id.limt: unknown key; did you mean limit? (known: enabled, collection, traits, "
        "limit, window, case_sensitive, latest_owner, blocked)",
        "millrace.yaml:15 identity.priority[1]: unknown id type; did you mean phone? (known: Sms, android.id, android.idfa, "
        "android.push_token, anonymous_id, card, cookie, email, ga_client_id, group_id, ios.id, ios.idfa, ios.push_token, phone, "
        "profile_id, user_id)",
        "millrace.yaml:16 identity.merges_per_profile: must be greater than or equal to 0",
        "millrace.yaml:17 identity.ids_per_profile: must be greater than or equal to 1",
    ]


def test_a_pattern_has_256_characters_at_most():
    [fault] = faults(f"identity: {{types: {{user_id: {{blocked: {{patterns: [{'x' * 257}]}}}}}}}}")
    assert fault.startswith("millrace.yaml:1 identity.types.user_id.blocked.patterns[0]:")
    assert "256 characters" in fault


def test_user_id_comes_first_then_email_then_the_rest_by_the_alphabet():
    config = IdentityConfig(types={"loyalty_id": IdTypeConfig(), "braze_id": IdTypeConfig()})
    assert list(Rules(config).types) == [
        "user_id",
        "email",
        "android.id",
        "android.idfa",
        "android.push_token",
        "anonymous_id",
        "braze_id",
        "ga_client_id",
        "group_id",
        "ios.id",
        "ios.idfa",
        "ios.push_token",
        "loyalty_id",
    ]


@pytest.mark.parametrize(
    ("value", "blocked"),
    [
        ("0000-0000", True),
        ("0", True),
        ("-1", True),
        ("NULL", True),
        ("Anonymous", True),
        ("-12", False),
        ("anonymous2", False),
        ("100", False),
    ],
)
def test_suggested_values_name_nobody_whatever_their_case(value: str, blocked: bool):
    assert Rules().type("loyalty_id").blocks(value) is blocked
    assert Rules().type("user_id").blocks(value) is blocked


def test_patterns_are_found_anywhere_and_values_as_a_whole():
    blocked = BlockedConfig(values=("Guest",), patterns=("test", "^qa-"), suggested=False)
    kind = Rules(IdentityConfig(types={"user_id": IdTypeConfig(blocked=blocked)})).type("user_id")

    assert [
        value for value in ("guest", "my-test-1", "qa-7", "my-qa-7", "guests", "null", "000") if kind.blocks(value)
    ] == [
        "guest",
        "my-test-1",
        "qa-7",
    ]


def test_a_pattern_that_backtracks_elsewhere_takes_no_time_here():
    blocked = BlockedConfig(patterns=("^(a|aa|a?)*(b|bb)*c$",))
    kind = Rules(IdentityConfig(types={"user_id": IdTypeConfig(blocked=blocked)})).type("user_id")

    assert not kind.blocks("a" * 400 + "bd")
