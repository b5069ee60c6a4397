"""millrace.yaml becomes the expected object, or every fault at once with its place and remedy."""

from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from millrace.config.load import Loaded, load_file, load_text
from schemas.config import (
    AlertsConfig,
    CollectorConfig,
    Config,
    DestinationConfig,
    DestinationFilter,
    DestinationLimits,
    EmailChannel,
    EnrichConfig,
    FilterConfig,
    GeoConfig,
    LogConfig,
    MappingConfig,
    OAuthClientConfig,
    OutboundConfig,
    RetentionConfig,
    SlackChannel,
    SourceConfig,
    WebhookChannel,
)
from schemas.errors import ConfigError
from schemas.identity import BlockedConfig, IdentityConfig, IdTypeConfig

ROOT = Path(__file__).parents[2]


class CrmSettings(BaseModel):
    """Stands in for a destination's own settings."""

    model_config = ConfigDict(extra="forbid")
    api_key: SecretStr
    batch_size: int = Field(100, ge=1)
    region: str = "eu"

    @field_validator("region")
    @classmethod
    def _talkative(cls, region: str) -> str:
        if region not in ("eu", "us"):
            raise ValueError(f"region {region} does not exist")
        return region


def load(text: str, **variables: str) -> Loaded:
    return load_text(text, "millrace.yaml", variables, lambda: {"crm": CrmSettings})


def faults(text: str, **variables: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text, **variables)
    return list(caught.value.faults)


def test_a_source_that_requires_oauth_needs_a_client() -> None:
    assert faults("sources: {web: {write_key: k, require_oauth: true}}") == [
        "millrace.yaml:1 sources.web: require_oauth without oauth_clients lets nobody in; name a client, or leave "
        "require_oauth out"
    ]


def test_events_are_enriched_by_their_user_agent_unless_it_is_said_otherwise() -> None:
    assert load("").config.enrich == EnrichConfig(user_agent=True, bots=True, geo=None)
    wanted = load("enrich: {user_agent: false, geo: {database: city.mmdb}}").config.enrich
    assert wanted == EnrichConfig(user_agent=False, bots=True, geo=GeoConfig(database="city.mmdb"))


def test_a_whole_file_is_read() -> None:
    loaded = load(
        """
sources:
  web: {write_key: "${KEY}"}
destinations:
  sales:
    type: crm
    sources: [web]
    filter: {types: [track], events: [Order Completed]}
    settings:
      api_key: ${TOKEN:-none}
      batch_size: ${SIZE:-7}
log:
  partitions: 3
  retention: {days: 1.5, gigabytes: 2}
""",
        KEY="12345",
    )

    assert loaded.config == Config(
        sources={"web": SourceConfig(write_key=SecretStr("12345"))},
        destinations={
            "sales": DestinationConfig(
                type="crm",
                sources=("web",),
                filter=FilterConfig(types=("track",), events=("Order Completed",)),
                settings={"api_key": "none", "batch_size": "7"},
            )
        },
        log=LogConfig(partitions=3, retention=RetentionConfig(days=1.5, gigabytes=2)),
    )
    assert loaded.settings == {"sales": CrmSettings(api_key=SecretStr("none"), batch_size=7)}


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "sources:\ndestinations:\nlog:\n"])
def test_an_empty_file_and_empty_sections_say_nothing(text: str) -> None:
    assert load(text) == Loaded(Config())


def test_no_destinations_differs_from_not_saying() -> None:
    assert load("destinations: {}").config.destinations == {}
    assert load("").config.destinations is None


def test_every_fault_is_reported_at_once_with_line_key_and_remedy() -> None:
    assert faults(
        """\
sorces: {}
sources:
  web:
    writekey: k1
  Bad Name:
    write_key: k2
  app:
    write_key: 99
destinations:
  a:
    type: crn
  b:
    type: crm
    sources: [wob]
    filter:
      types: [trakc]
    settings:
      batch_size: many
      regoin: eu
  c:
    type: crm
    settings: {api_key: "${CRM_KEY}"}
log:
  partitions: 0
  retention: forever
"""
    ) == [
        f"millrace.yaml:1 sorces: unknown key; did you mean sources? (known: {', '.join(Config.model_fields)})",
        "millrace.yaml:3 sources.web.write_key: required; add `write_key: …`",
        "millrace.yaml:4 sources.web.writekey: unknown key; did you mean write_key? (known: write_key, "
        "second_write_key, enabled, origins, oauth_clients, require_oauth, events_per_second, function)",
        "millrace.yaml:5 sources.Bad Name: is not a name; start with a lower-case letter, then letters, digits, _ or -, "
        "63 in all at most",
        "millrace.yaml:8 sources.app.write_key: must be text; put it in quotes",
        "millrace.yaml:11 destinations.a.type: unknown destination type; did you mean crm? (known: crm)",
        "millrace.yaml:14 destinations.b.sources[0]: unknown source; did you mean web? (known: web, Bad Name, app)",
        "millrace.yaml:16 destinations.b.filter.types[0]: must be 'track', 'identify', 'page', 'screen', 'group' or 'alias'; "
        "did you mean track?",
        "millrace.yaml:17 destinations.b.settings.api_key: required; add `api_key: …`",
        "millrace.yaml:18 destinations.b.settings.batch_size: must be a whole number",
        "millrace.yaml:19 destinations.b.settings.regoin: unknown key; did you mean region? "
        "(known: api_key, batch_size, region)",
        "millrace.yaml:22 destinations.c.settings.api_key: environment variable CRM_KEY is not set; set it, or give a "
        "default: ${CRM_KEY:-default}",
        "millrace.yaml:24 log.partitions: must be greater than or equal to 1",
        "millrace.yaml:25 log.retention: must be a mapping: `key: value` lines, indented",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "sources:\n  web: [\n",
            "millrace.yaml:3: not valid YAML: while parsing a flow node, expected the node content, but found '<stream end>'; "
            "mend it, then check again",
        ),
        ("log: !!python/name:os.system", "could not determine a constructor"),
        (
            "a: 1\n---\nb: 2\n",
            "millrace.yaml:2: not valid YAML: expected a single document in the stream, but found another",
        ),
        ("[]", "millrace.yaml:1: must be a mapping"),
        ("log:\n  partitions: 3\n  partitions: 4\n", "millrace.yaml:3 log.partitions: is given twice, first in line 2"),
        ("log: &again\n  retention: *again\n", "millrace.yaml:2 log.retention: an alias points at what it stands in"),
        ("log: {partitions: 2024-99-99}", "millrace.yaml:1 log.partitions: looks like a date"),
        ("? [a]\n: b\n", "millrace.yaml:1: a key must be plain text"),
        ("sources: {a: {write_key: x}, b: {write_key: x}}", "sources.b.write_key: is also the write key of source a"),
        (
            "sources: {a: {write_key: x}, b: {write_key: y, second_write_key: x}}",
            "sources.b.second_write_key: is also the write key of source a",
        ),
        ("sources: {a: {write_key: ''}}", "sources.a.write_key: must not be empty"),
        *(
            (
                f"sources: {{a: {{write_key: '{key}'}}}}",
                "write_key: holds a character that means something else in an add",
            )
            for key in ("a:b", "a/b", "a b", "a%2F", "a?", "ключ")
        ),
        *(
            (
                f"sources: {{a: {{write_key: k, origins: ['{origin}']}}}}",
                "origins[0]: is not an origin as browsers send it",
            )
            for origin in (
                "shop.example",
                "https://shop.example/",
                "https://shop.example:443",
                "http://shop.example:80",
                "*",
            )
        ),
        (
            "sources: {a: {write_key: k, oauth_clients: {c: {keys: {k1: nothing}}}}}",
            "sources.a.oauth_clients.c.keys.k1: is not a public key in PEM; give what stands from",
        ),
        ("sources: {a: {write_key: '${'}}", "sources.a.write_key: a reference is not closed or not named"),
        ("sources: {a: }", "sources.a: must be a mapping"),
        ("destinations: {a: {}}", "destinations.a.type: required"),
        ("destinations: [a]", "destinations: must be a mapping"),
        (
            f"destinations: {{a: {{type: crm, filters: [{{title: {'t' * 65}, if: all, actions: [{{type: DROP}}]}}]}}}}",
            "destinations.a.filters[0].title: must have at most 64 characters",
        ),
        (
            f"destinations: {{a: {{type: crm, mappings: [{'{action: a, mapping: {}}, ' * 51}]}}}}",
            "destinations.a.mappings: must have at most 50 items, not 51",
        ),
        ("destinations: {a: {type: crm, sources: [web]}}", "sources[0]: unknown source; known: default"),
    ],
)
def test_what_is_wrong_is_said(text: str, fault: str) -> None:
    found = faults(text)
    assert [one for one in found if fault in one], found


def test_a_bom_and_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "millrace.yaml"
    file.write_bytes(b"\xef\xbb\xbflog: {partitions: 2}\n")
    assert load_file(file, {}, None).config.log.partitions == 2

    file.write_bytes(b"# caf\xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 5; save it as UTF-8"):
        load_file(file, {}, None)


def test_variables_follow_the_shell() -> None:
    def said(text: str, **variables: str) -> str:
        settings = load(
            f"destinations: {{sales: {{type: crm, settings: {{api_key: '{text}'}}}}}}", **variables
        ).settings
        found = settings["sales"]
        assert isinstance(found, CrmSettings)
        return found.api_key.get_secret_value()

    assert said("${A}-${B:-b}", A="a") == "a-b"
    assert said("${A:-b}", A="") == "b"
    assert said("$${A}", A="a") == "${A}"
    assert said("$A {A}", A="a") == "$A {A}"
    assert said("${A}", A="a: [b]") == "a: [b]"
    assert said("${A}", A="${B}", B="b") == "${B}"


def test_merge_keys_and_anchors_work() -> None:
    loaded = load(
        """
destinations:
  one: &base
    type: crm
    settings: &settings {api_key: k, batch_size: 5}
  two:
    <<: *base
    settings: {<<: *settings, region: us}
"""
    )
    assert loaded.settings == {
        "one": CrmSettings(api_key=SecretStr("k"), batch_size=5),
        "two": CrmSettings(api_key=SecretStr("k"), batch_size=5, region="us"),
    }


def test_secrets_print_nowhere() -> None:
    secret = "s3cr3t-value"
    text = """
sources: {{web: {{write_key: '${{K}}'}}, app: {{write_key: '${{K}}'}}}}
destinations: {{sales: {{type: crm, settings: {{api_key: {key}, region: '${{K}}'}}}}}}
"""
    said = "\n".join(faults(text.format(key="['${K}']"), K=secret))
    assert secret not in said
    assert "region ********** does not exist" in said

    loaded = load("destinations: {sales: {type: crm, settings: {api_key: '${K}'}}}", K=secret)
    assert secret not in repr(loaded)


def test_without_models_the_settings_of_destinations_are_left_alone() -> None:
    text = "destinations: {sales: {type: anything, settings: {api_key: '${UNSET}'}}}"

    loaded = load_text(text, "millrace.yaml", {}, None)

    assert loaded.config.destinations == {"sales": DestinationConfig(type="anything", settings={"api_key": "${UNSET}"})}
    assert loaded.settings == {}


class Anything(BaseModel):
    """Takes any settings, so that the examples are tested for what they say and not for one destination."""

    model_config = ConfigDict(extra="allow")


def example(name: str) -> dict[str, Any]:
    models = {"duckdb": Anything, "webhook": Anything}
    return load_file(ROOT / name, {}, lambda: models).config.model_dump(exclude_defaults=True)


def test_the_minimal_file_says_one_source() -> None:
    assert example("millrace.minimal.yaml") == {"sources": {"website": {"write_key": SecretStr("wk_change_me")}}}


def loaded_key(loaded: Loaded) -> str:
    """A key is a key, whatever its digits."""
    key = loaded.config.sources["backend"].oauth_clients["reports"].keys["reports-2026"]
    assert key.startswith("-----BEGIN PUBLIC KEY-----")
    return key


def test_the_reference_file_says_everything() -> None:
    loaded = load_file(ROOT / "millrace.example.yaml", {}, lambda: {"duckdb": Anything, "webhook": Anything})

    assert loaded.config == Config(
        sources={
            "website": SourceConfig(
                write_key=SecretStr("wk_website"), origins=("https://shop.example", "https://www.shop.example")
            ),
            "backend": SourceConfig(
                write_key=SecretStr("wk_backend"),
                second_write_key=SecretStr("wk_backend_next"),
                enabled=True,
                oauth_clients={"reports": OAuthClientConfig(keys={"reports-2026": loaded_key(loaded)})},
                events_per_second=5000,
            ),
        },
        destinations={
            "warehouse": DestinationConfig(type="duckdb", settings={"path": "warehouse.duckdb"}),
            "orders": DestinationConfig(
                type="webhook",
                sources=("backend",),
                filter=FilterConfig(
                    types=("track",),
                    events=("Order Completed",),
                    where="properties.total > 0 and !match(context.page.path, '/test/*')",
                ),
                filters=(
                    DestinationFilter.model_validate(
                        {
                            "title": "Not to leave the house",
                            "if": "all",
                            "actions": [
                                {
                                    "type": "DROP_PROPERTIES",
                                    "fields": {"properties": ["card.number"], "context": ["ip"]},
                                }
                            ],
                        }
                    ),
                ),
                consent=("shop",),
                limits=DestinationLimits(
                    events_per_second=50, concurrency=4, retry_hours=48, batch_size=200, batch_bytes=1_000_000
                ),
                mappings=(
                    MappingConfig(
                        name="Orders",
                        action="send_data",
                        trigger="type = 'track' and properties.total > 0",
                        mapping={
                            "data": {
                                "order": {"@path": "$.properties.order_id"},
                                "buyer": {
                                    "@if": {
                                        "exists": {"@path": "$.userId"},
                                        "then": {"@path": "$.userId"},
                                        "else": {"@path": "$.anonymousId"},
                                    }
                                },
                                "title": {"@template": "{{properties.currency}} {{properties.total}}"},
                                "lines": {
                                    "@arrayPath": [
                                        "$.properties.products",
                                        {"sku": {"@path": "$.sku"}, "name": {"@path": "$.name"}},
                                    ]
                                },
                            }
                        },
                        batch_size=50,
                        batch_bytes=500_000,
                        batch_keys=("data.order",),
                    ),
                ),
                presets=("People",),
                settings={"url": "http://127.0.0.1:9000/orders", "secret": "change-me"},
            ),
        },
        identity=IdentityConfig(
            types={
                "user_id": IdTypeConfig(limit=1),
                "anonymous_id": IdTypeConfig(limit=5, window="weekly"),
                "phone": IdTypeConfig(
                    traits=("phone", "mobile_number"),
                    case_sensitive=True,
                    blocked=BlockedConfig(values=("+10000000000",), patterns=("^555", "test")),
                ),
                "loyalty_id": IdTypeConfig(collection="users"),
            }
        ),
        alerts=AlertsConfig(
            channels={
                "night": WebhookChannel(
                    type="webhook", url=SecretStr("http://127.0.0.1:9000/night"), secret=SecretStr("change-me")
                ),
                "team": SlackChannel(type="slack", url=SecretStr("https://slack.example/services/T0/B0/x")),
                "mail": EmailChannel(
                    type="email",
                    host="mail.shop.example",
                    user="robot",
                    password=SecretStr("change-me"),
                    sender="millrace@shop.example",
                    to=("night@shop.example",),
                ),
            }
        ),
        outbound=OutboundConfig(allow=(IPv4Network("127.0.0.0/8"),)),
        log=LogConfig(partitions=8, retention=RetentionConfig(days=30, gigabytes=64)),
    )


@pytest.mark.parametrize("name", ["millrace.minimal.yaml", "millrace.example.yaml"])
def test_the_shipped_files_pass_the_real_checks(name: str) -> None:
    from millrace.settings import settings_models

    assert load_file(ROOT / name, {}, settings_models).config.sources


def test_the_reference_file_names_every_key_there_is() -> None:
    text = (ROOT / "millrace.example.yaml").read_text()
    for model in (
        Config,
        CollectorConfig,
        SourceConfig,
        OAuthClientConfig,
        DestinationConfig,
        FilterConfig,
        MappingConfig,
        EnrichConfig,
        GeoConfig,
        IdentityConfig,
        IdTypeConfig,
        BlockedConfig,
        LogConfig,
        RetentionConfig,
    ):
        assert [name for name in model.model_fields if f"{name}:" not in text] == []


def test_a_fault_of_an_expression_with_a_variable_does_not_quote_it() -> None:
    text = "destinations:\n  crm:\n    type: crm\n    filter: {where: 'userId = 1 ${KEY}'}\n"
    with pytest.raises(ConfigError) as raised:
        load_text(text, "millrace.yaml", {"KEY": "hidden words"}, None)
    assert str(raised.value) == (
        "millrace.yaml:4 destinations.crm.filter.where: is no expression once its variables are filled in (character 12); "
        "put a variable in quotes"
    )


def test_an_expression_that_is_none_is_a_fault_with_its_place_in_the_file(tmp_path: Path) -> None:
    text = """
destinations:
  crm:
    type: crm
    filter: {where: "type == 'track'"}
    filters:
      - if: all
        actions: [{type: DROP}]
      - if: includes(event, 'x')
        actions: [{type: SAMPLE, percent: 2}]
    consent: [7-days]
"""
    with pytest.raises(ConfigError) as raised:
        load_text(text, "millrace.yaml", {}, None)
    assert str(raised.value).splitlines() == [
        "millrace.yaml:5 destinations.crm.filter.where: expected a path, a value or a function, found = (character 7)",
        "millrace.yaml:9 destinations.crm.filters[1].if: unknown function includes; there are bool, contains, kebabcase, "
        "length, lowercase, match, number, snakecase, string, titlecase, typeof, uppercase (character 1)",
        "millrace.yaml:10 destinations.crm.filters[1].actions[0].SAMPLE.percent: must be less than or equal to 1",
        "millrace.yaml:11 destinations.crm.consent[0]: a consent category begins with no digit; SDKs cannot name it",
    ]


def test_every_fault_of_mappings_is_named_with_its_line() -> None:
    from millrace.settings import settings_models

    text = """destinations:
  crm:
    type: webhook
    settings: {url: https://crm.example/hook}
    mappings:
      - action: send_dta
      - action: send_data
        trigger: type =
        mapping:
          data:
            plan:
              "@pth": $.properties.plan
          other: 1
      - action: send_events
        mapping: {data: 1}
      - action: send_data
        mapping: {}
"""
    with pytest.raises(ConfigError) as caught:
        load_text(text, "millrace.yaml", {}, settings_models)
    above = "destinations.crm.mappings"
    assert list(caught.value.faults) == [
        f"millrace.yaml:6 {above}[0].action: unknown action; there are send_events, send_data",
        f"millrace.yaml:8 {above}[1].trigger: expected a path, a value or a function, found the end (character 7)",
        f"millrace.yaml:11 {above}[1].mapping.data.plan: unknown directive @pth; did you mean @path?",
        f"millrace.yaml:13 {above}[1].mapping.other: unknown field; send_data has data",
        f"millrace.yaml:15 {above}[2].mapping: send_events takes whole events; leave mapping out",
        f"millrace.yaml:17 {above}[3].mapping: needs data: What stands in the array, any JSON; the whole event by default.",
    ]


def test_a_process_that_does_not_deliver_needs_no_mappings() -> None:
    text = "destinations: {crm: {type: crm, mappings: [{action: x, mapping: {data: '${UNSET}'}}]}}"
    assert load_text(text, "millrace.yaml", {}, None).config.destinations
