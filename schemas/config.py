"""The shape of `millrace.yaml`. `millrace schema` prints its JSON Schema; unknown keys are faults."""

import re
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from schemas.identity import IdentityConfig
from schemas.topics import INTERNAL_SOURCE

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
EventType = Literal["track", "identify", "page", "screen", "group", "alias"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_ORIGIN: Final = r"^[a-z][a-z0-9+.-]*://[A-Za-z0-9.\[\]:_-]+$"
_PUBLIC_KEY: Final = r"^\s*-----BEGIN (RSA )?PUBLIC KEY-----[\s\S]+-----END (RSA )?PUBLIC KEY-----\s*$"
_WRITE_KEY: Final = r"[A-Za-z0-9._~!$&()*+,;=@-]+"


def _an_origin(text: str) -> str:
    """As browsers send it (RFC 6454), or it would never be equal to what they send."""
    if not re.search(_ORIGIN, text) or re.search(r"^(https:.*:443|http:.*:80)$", text):
        raise ValueError(
            "is not an origin as browsers send it; write scheme, host and any unusual port, as https://shop.example, and nothing "
            "behind"
        )
    return text


def _a_public_key(text: str) -> str:
    if not re.search(_PUBLIC_KEY, text):
        raise ValueError("is not a public key in PEM; give what stands from -----BEGIN PUBLIC KEY----- to its END")
    return text


def a_write_key(key: str) -> str:
    """One that works wherever SDKs put it: in the path of an address, and before the colon of HTTP Basic. ValueError otherwise."""
    if not re.fullmatch(_WRITE_KEY, key):
        raise ValueError(
            "holds a character that means something else in an address or in HTTP Basic; use letters, digits, - . _ and ~"
        )
    return key


Origin = Annotated[str, AfterValidator(_an_origin), Field(json_schema_extra={"pattern": _ORIGIN})]
PublicKey = Annotated[str, AfterValidator(_a_public_key), Field(json_schema_extra={"pattern": _PUBLIC_KEY})]
WriteKey = Annotated[SecretStr, AfterValidator(lambda key: SecretStr(a_write_key(key.get_secret_value())))]


class OAuthClientConfig(_Model):
    """A server that gets tokens for a source by signing with its private key."""

    keys: dict[str, PublicKey] = Field(
        description="RSA public keys (PEM) by key id; two while one replaces the other.", min_length=1, max_length=2
    )


class FunctionConfig(_Model):
    """A function of yours, and how it is run."""

    name: Name = Field(description="Its file in the functions' folder, without .py.")
    settings: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="What its handlers get as `settings`, secrets included."
    )
    timeout: float = Field(5.0, gt=0, le=60, description="Seconds that one call of a handler may take.")
    memory_mb: int = Field(256, ge=16, le=65_536, description="Memory it may use, in MiB.")
    processes: int = Field(1, ge=1, le=64, description="Processes that run it side by side.")
    batch: int = Field(20, ge=1, le=400, description="Most events in one call of on_batch.")


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Function = Annotated[FunctionConfig, BeforeValidator(_named, json_schema_input_type=Name | FunctionConfig)]
"""A function, or only its name."""


class FunctionsConfig(_Model):
    """Code of yours that events pass through."""

    folder: str = Field("functions", min_length=1, description="Where the files are; relative to this file's folder.")


class SourceConfig(_Model):
    """Where events come from: a web page, an app, a server."""

    write_key: WriteKey = Field(
        description="Authorises writing to this source. Public by design in browsers.", min_length=1
    )
    second_write_key: WriteKey | None = Field(
        None,
        description="Another write key that is as good, for as long as senders change from one to the other.",
        min_length=1,
    )
    enabled: bool = Field(
        True,
        description="A source that is not is still answered with success, and each event refused as source_disabled.",
    )
    origins: tuple[Origin, ...] | None = Field(
        None,
        description="Origins of the pages that may send, like https://shop.example; any when left out. What does not come "
        "from a page (servers, apps) names no origin and is not restricted.",
    )
    oauth_clients: dict[str, OAuthClientConfig] = Field(
        default_factory=dict,
        description="Servers that authenticate by OAuth (client credentials at /token), by client id. The write key goes on to "
        "work beside it, unless require_oauth is set.",
    )
    require_oauth: bool = Field(
        False,
        description="Only requests with a token get in; a write key alone is refused as oauth_required. Needs oauth_clients.",
    )
    events_per_second: float | None = Field(
        None,
        gt=0,
        description="Most events per second on average that each collect process takes, with bursts of ten seconds' worth; beyond, "
        "senders get 429 and when to try again. No limit when left out.",
    )

    function: Function | None = Field(
        None, description="Changes, drops or splits each event before identity and everything else."
    )

    @model_validator(mode="after")
    def _can_be_reached(self) -> "SourceConfig":
        if self.require_oauth and not self.oauth_clients:
            raise ValueError(
                "require_oauth without oauth_clients lets nobody in; name a client, or leave require_oauth out"
            )
        return self


class FilterConfig(_Model):
    """Which events a destination gets. Every rule given must hold; the rest is counted as FILTERED_BY_RULES."""

    types: tuple[EventType, ...] | None = Field(None, description="Only these call types.")
    events: tuple[str, ...] | None = Field(None, description="Of track calls, only these event names.")
    where: str | None = Field(
        None, description="Only events for which this expression of the filter language is true, as type = 'track'."
    )


FieldPath = Annotated[str, Field(pattern=r"[^.]")]  # names something
Keys = dict[str, tuple[FieldPath, ...]]


class DropAction(_Model):
    """The event is not delivered."""

    type: Literal["DROP"]


class SampleAction(_Model):
    """Of the events, or of the values at a path, a share is delivered: always the same ones."""

    type: Literal["SAMPLE"]
    percent: float = Field(ge=0, le=1, description="The share that is kept, from 0 to 1.")
    path: FieldPath | None = Field(
        None, description="Events with one value here are kept or dropped together, as userId."
    )


class DropPropertiesAction(_Model):
    """Fields are taken out of the event."""

    type: Literal["DROP_PROPERTIES"]
    fields: Keys = Field(
        description="What goes, by container: properties, context.traits; an empty name is the event itself."
    )


class AllowPropertiesAction(_Model):
    """Of the containers named, other fields are taken out of the event."""

    type: Literal["ALLOW_PROPERTIES"]
    fields: Keys = Field(description="What stays, by container.")


FilterAction = Annotated[
    DropAction | SampleAction | DropPropertiesAction | AllowPropertiesAction, Field(discriminator="type")
]


class DestinationFilter(_Model):
    """A destination filter of the reference. All samples are taken first, then drops, then fields dropped, then allowed."""

    title: str = Field("", max_length=64, description="For people.")
    description: str = Field("", description="For people.")
    if_: str = Field(alias="if", description="Of which events, in the filter language; all is every event.")
    enabled: bool = Field(True, description="Whether it counts.")
    actions: tuple[FilterAction, ...] = Field(description="What is done with them.")


def _not_a_number(name: str) -> str:
    if name[:1].isdigit():
        raise ValueError("a consent category begins with no digit; SDKs cannot name it")
    return name


SyncMode = Literal["add", "update", "upsert", "delete", "mirror"]


class MappingConfig(_Model):
    """What a destination does with which events. An event does all that it triggers."""

    name: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="What it is called in dead letters and in the ledger; the action's name when left out.",
    )
    action: str = Field(
        description="What the destination is to do; `millrace destinations describe` lists its actions."
    )
    trigger: str | None = Field(
        None, description="Of which events, in the filter language; the action's own when left out."
    )
    mapping: dict[str, Any] | None = Field(
        None,
        repr=False,
        description="How the payload is made of the event: directives by field. All fields' defaults when left out.",
    )
    enabled: bool = Field(True, description="Whether it counts.")
    batch_size: int | None = Field(None, ge=1, description="Most payloads in one call; the action's when left out.")
    batch_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Most bytes of JSON in one call; the action's when left out. A payload that is larger goes alone.",
    )
    batch_keys: tuple[FieldPath, ...] = Field(
        default=(), max_length=10, description="Payloads go together only if they are equal at these paths."
    )
    sync_mode: SyncMode | None = Field(
        default=None,
        description="How the service's records are kept in step, where the action knows modes: its first when left out.",
    )


Category = Annotated[str, Field(min_length=1, max_length=34), AfterValidator(_not_a_number)]


RETRY_HOURS: Final = 24.0


class DestinationLimits(_Model):
    """How much of a destination is used, and for how long it is tried. What is left out is as its type has it."""

    events_per_second: float | None = Field(
        None,
        gt=0,
        le=1_000_000,
        description="Most events per second, of all processes together. While several sources wait they have equal parts of it.",
    )
    concurrency: int | None = Field(None, ge=1, le=64, description="Most requests at once of each process.")
    retry_hours: float | None = Field(
        None,
        ge=1,
        le=168,
        description="How long an event that fails is tried again before it is a dead letter; 24 where its type does not say.",
    )
    batch_size: int | None = Field(
        default=None, ge=1, description="Most events in one call, of every mapping that has no batch_size of its own."
    )
    batch_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Most bytes of JSON in one call, of every mapping that has no batch_bytes of its own. What is larger goes alone.",
    )


class DestinationConfig(_Model):
    """A tool that gets events."""

    type: str = Field(description="Name of the destination, as `millrace destinations` lists them.")
    sources: tuple[Name, ...] | None = Field(None, description="Only events of these sources; all when left out.")
    filter: FilterConfig = Field(
        default=FilterConfig(types=None, events=None, where=None), description="Which events it gets."
    )
    filters: tuple[DestinationFilter, ...] = Field(
        (), max_length=50, description="Filters as the reference has them: dropped events, samples, dropped fields."
    )
    consent: tuple[Category, ...] = Field(
        (),
        description="Consent categories: an event that states preferences passes only if it agrees to all of these.",
    )
    limits: DestinationLimits = Field(
        default=DestinationLimits(events_per_second=None, concurrency=None, retry_hours=None),
        description="How much of it is used, and for how long it is tried.",
    )
    function: Function | None = Field(
        None, description="Changes, enriches or drops each event that passed the filter, before it is mapped."
    )
    mappings: tuple[MappingConfig, ...] | None = Field(
        None,
        max_length=50,
        description="What it does with which events, in order. What the destination ships when left out.",
    )
    presets: bool | tuple[str, ...] | None = Field(
        default=None,
        description="Which of the mappings that its type ships are on, after those in mappings: all, none, or these by name. When left "
        "out, those that are on by default, unless there are mappings.",
    )
    settings: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="Settings of the destination's type."
    )  # unvalidated, so secrets in it are plain text: never printed


class RetentionConfig(_Model):
    """How long the log keeps events. Whole segments go when either bound is passed."""

    days: float = Field(30, gt=0, description="Age in days.")
    gigabytes: float = Field(64, gt=0, description="Size of one topic in GiB.")


class LogConfig(_Model):
    """The event log."""

    partitions: int = Field(8, ge=1, le=1024, description="Partitions of topics that do not exist yet.")
    retention: RetentionConfig = Field(default=RetentionConfig(days=30, gigabytes=64))


class CollectorConfig(_Model):
    """The HTTP face."""

    trusted_hops: int = Field(
        0,
        ge=0,
        le=16,
        description="Own proxies in front; each adds to X-Forwarded-For, from which the client's IP is read.",
    )
    keep_ip: Literal["all", "ipv4", "none"] = Field(
        "all",
        description="Which addresses of clients become context.ip of their events. One that the client itself gives stays.",
    )


class WebhookChannel(_Model):
    """Gets notices as signed JSON objects."""

    type: Literal["webhook"]
    url: SecretStr = Field(description="Address that gets POST requests with a JSON object.", min_length=1)
    secret: SecretStr | None = Field(
        None, min_length=1, description="Signs each body: HMAC-SHA256 in the header Millrace-Signature."
    )


class SlackChannel(_Model):
    """A channel of Slack."""

    type: Literal["slack"]
    url: SecretStr = Field(description="Address of an incoming webhook; who has it can write.", min_length=1)


class EmailChannel(_Model):
    """A mailbox."""

    type: Literal["email"]
    host: str = Field(description="Mail server.", min_length=1)
    port: int = Field(587, ge=1, le=65535, description="Its port for submission.")
    security: Literal["starttls", "tls", "none"] = Field("starttls", description="How the connection is protected.")
    user: str | None = Field(None, description="User at the mail server.")
    password: SecretStr | None = Field(None, description="Password at the mail server.")
    sender: str = Field(description="Address that the messages come from.", pattern=r"^[^@\s]+@[^@\s]+$")
    to: tuple[Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+$")], ...] = Field(
        description="Who gets them.", min_length=1
    )


Channel = Annotated[WebhookChannel | SlackChannel | EmailChannel, Field(discriminator="type")]


class AlertsConfig(_Model):
    """Who is told when something needs a person, and from when on."""

    channels: dict[Name, Channel] = Field(
        default_factory=dict,
        description="Where alerts go, by name. Without any they are in the log and `millrace alerts`.",
    )
    delivery_rate_below: float | None = Field(
        0.95, gt=0, le=1, description="Share of events delivered of those settled in an hour, per destination."
    )
    volume_drop_above: float | None = Field(
        0.5, gt=0, lt=1, description="By how much a source's 24 hours may fall behind the 24 before."
    )
    lag_minutes_above: float | None = Field(10, gt=0, description="How long an event may wait for its destination.")
    dead_letters_above: int | None = Field(0, ge=0, description="Dead letters in an hour, per destination.")


class OutboundConfig(_Model):
    """Where destinations may connect to."""

    allow: tuple[IPv4Network | IPv6Network, ...] = Field(
        (),
        description="Networks beside the public internet, such as 127.0.0.0/8 or 10.1.2.3/32. All other private, local and "
        "special addresses are refused, whatever name, number or redirect leads to them.",
    )
    ca_file: str | None = Field(
        None,
        min_length=1,
        description="File of certificates (PEM) to trust beside the system's; relative to the data folder.",
    )


class GeoConfig(_Model):
    """Where an address is."""

    database: str = Field(
        min_length=1,
        description="File in MaxMind's format, City or Country; relative to the data folder. Replace it by renaming another onto it: it "
        "is taken up at once.",
    )


class EnrichConfig(_Model):
    """What the server adds to an event's context where the client said nothing of it."""

    user_agent: bool = Field(True, description="browser, os and device, from the user agent and its client hints.")
    bots: bool = Field(True, description="bot: whether the user agent is a robot's.")
    geo: GeoConfig | None = Field(
        None, description="location, from the IP address. Private addresses are not looked up."
    )


class Config(_Model):
    """Everything that `millrace.yaml` says."""

    sources: dict[Name, SourceConfig] = Field(
        default_factory=dict,
        description="Sources by name. When none is named there is one, `default`, with the write key "
        "MILLRACE_WRITE_KEY, else one made at the first start.",
    )
    destinations: dict[Name, DestinationConfig] | None = Field(
        None,
        description="Destinations by name. When the section is left out there is one, `warehouse`: the DuckDB file "
        "warehouse.duckdb in the data folder. `{}` means none.",
    )
    collector: CollectorConfig = Field(
        default=CollectorConfig(trusted_hops=0, keep_ip="all"), description="The HTTP face."
    )
    enrich: EnrichConfig = Field(
        default=EnrichConfig(user_agent=True, bots=True, geo=None),
        description="What the server adds to an event's context where the client said nothing of it.",
    )
    identity: IdentityConfig = Field(default_factory=IdentityConfig, description="How events become profiles.")
    alerts: AlertsConfig = Field(default_factory=AlertsConfig, description="Who is told when something needs a person.")
    outbound: OutboundConfig = Field(
        default=OutboundConfig(allow=(), ca_file=None), description="Where destinations may connect to."
    )
    functions: FunctionsConfig = Field(
        default=FunctionsConfig(folder="functions"), description="Code of yours that events pass through."
    )
    log: LogConfig = Field(default=LogConfig(), description="The event log.")

    @field_validator("sources")
    @classmethod
    def _not_ours(cls, sources: dict[str, SourceConfig]) -> dict[str, SourceConfig]:
        if INTERNAL_SOURCE in sources:
            raise ValueError(f"{INTERNAL_SOURCE} is the source of what we tell ourselves; choose another name")
        return sources
