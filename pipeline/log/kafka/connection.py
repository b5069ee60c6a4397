"""Where the cluster is, how to prove who we are, and how long to wait for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ssl import SSLError
from typing import Any, Final
from urllib.parse import parse_qsl

from aiokafka.helpers import create_ssl_context

from schemas.errors import ConfigError

PATIENCE: Final = 12.0  # seconds until an unreachable cluster is reported as such
REQUEST_TIMEOUT_MS: Final = 10_000
SETTINGS: Final = ("security_protocol", "sasl_mechanism", "username", "password", "ssl_cafile")
PROTOCOLS: Final = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


@dataclass(frozen=True, slots=True)
class Connection:
    """`servers` are host:port; `options` are what every client of the cluster takes. Printing it shows no secret."""

    servers: tuple[str, ...]
    options: Mapping[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> "Connection":
        """Reads `host:port[,host:port][?security_protocol=SASL_SSL&sasl_mechanism=…&username=…&password=…&ssl_cafile=…]`.

        ConfigError names every fault."""
        address, _, query = text.partition("?")
        servers = tuple(one.strip() for one in address.strip("/").split(",") if one.strip())
        settings = dict(parse_qsl(query))
        faults = [*_address_faults(servers, address), *_setting_faults(settings)]
        if faults:
            raise ConfigError(*faults)
        return cls(servers, _options(list(servers), settings))

    def __str__(self) -> str:
        return f"kafka://{','.join(self.servers)}"


def _address_faults(servers: tuple[str, ...], address: str) -> list[str]:
    if not servers:
        return [f"log kafka://{address}: no broker is named; use kafka://host:port[,host:port]"]
    return [
        f"log kafka://{address}: {one!r} is not host:port"
        for one in servers
        if not one.rpartition(":")[0] or not one.rpartition(":")[2].isdecimal()
    ]


def _setting_faults(settings: Mapping[str, str]) -> list[str]:
    faults = [
        f"log kafka://: unknown setting {name!r}; known are {', '.join(SETTINGS)}"
        for name in settings
        if name not in SETTINGS
    ]
    protocol = settings.get("security_protocol", "PLAINTEXT")
    if protocol not in PROTOCOLS:
        faults.append(f"log kafka://: security_protocol {protocol!r}; use one of {', '.join(PROTOCOLS)}")
    mechanism = settings.get("sasl_mechanism", "PLAIN")
    if mechanism not in MECHANISMS:
        faults.append(f"log kafka://: sasl_mechanism {mechanism!r}; use one of {', '.join(MECHANISMS)}")
    if protocol.startswith("SASL") and not (settings.get("username") and settings.get("password")):
        faults.append(f"log kafka://: {protocol} needs username and password")
    return faults


def _options(servers: list[str], settings: Mapping[str, str]) -> dict[str, Any]:
    protocol = settings.get("security_protocol", "PLAINTEXT")
    options: dict[str, Any] = {
        "bootstrap_servers": servers,
        "client_id": "millrace",
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "security_protocol": protocol,
    }
    if protocol.endswith("SSL"):
        cafile = settings.get("ssl_cafile")
        try:
            options["ssl_context"] = create_ssl_context(cafile=cafile)
        except (OSError, SSLError) as error:
            raise ConfigError(f"log kafka://: ssl_cafile {cafile!r} cannot be read: {error}") from error
    if protocol.startswith("SASL"):
        options["sasl_mechanism"] = settings.get("sasl_mechanism", "PLAIN")
        options["sasl_plain_username"] = settings["username"]
        options["sasl_plain_password"] = settings["password"]
    return options
