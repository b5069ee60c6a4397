"""The versions of the identity configuration: each decision records the one that it was made under."""

import time
from collections.abc import Sequence
from typing import Final, NamedTuple

import orjson
from sqlalchemy import Connection, text

from pipeline.identity import Rules
from pipeline.store import bulk, schema
from schemas.identity import IdentityConfig

_LATEST: Final = text("SELECT version, rules FROM identity_rules ORDER BY version DESC LIMIT 1")
_ONE: Final = text("SELECT rules FROM identity_rules WHERE version = :version")
_ALL: Final = text("SELECT version, at, rules FROM identity_rules ORDER BY version")


class Version(NamedTuple):
    """A configuration and when (microseconds) it was first in force."""

    version: int
    at: int
    config: IdentityConfig


def in_force(connection: Connection, config: IdentityConfig) -> Rules:
    """The configuration's rules under their version: the latest one when nothing has changed, else a new one. Two processes
    that bring the same change agree on one version."""
    wanted = stored_form(config)
    latest = connection.execute(_LATEST).first()
    if latest is not None and latest.rules == wanted:
        return Rules(config, latest.version)
    version = 1 if latest is None else latest.version + 1
    bulk.insert(connection, schema.identity_rules, [(version, time.time_ns() // 1000, wanted)])
    return Rules(config, version)


def latest(connection: Connection) -> Rules:
    """The rules that events are resolved by at present; the built-in ones as long as nothing was."""
    found = connection.execute(_LATEST).first()
    return Rules() if found is None else Rules(IdentityConfig.model_validate_json(found.rules), found.version)


def rules_of(connection: Connection, version: int) -> Rules | None:
    """The rules that were in force under a version; None when there is none of that number."""
    found = connection.execute(_ONE, {"version": version}).scalar()
    return None if found is None else Rules(IdentityConfig.model_validate_json(found), version)


def versions(connection: Connection) -> Sequence[Version]:
    """Every configuration there was, the first one first."""
    return [
        Version(row.version, row.at, IdentityConfig.model_validate_json(row.rules)) for row in connection.execute(_ALL)
    ]


def stored_form(config: IdentityConfig) -> str:
    """The whole configuration as JSON, what is left out as it is built in: two that mean the same are the same text."""
    return orjson.dumps(config.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS).decode()
