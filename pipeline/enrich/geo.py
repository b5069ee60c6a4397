"""Where an address is, from a database file in MaxMind's format with the fields of its City or Country edition."""

import os
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Any, Final

import maxminddb
import orjson
import structlog

from schemas.errors import ConfigError

REMEMBERED: Final = 16_384  # addresses
LONGEST: Final = 45  # characters of an address

log = structlog.get_logger()

_UNREADABLE: Final = (OSError, ValueError, maxminddb.InvalidDatabaseError)


class Geo:
    """An open database. ConfigError when it cannot be read. For one thread at a time."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._stamp = _stamp(path)
        self._damaged = False
        try:
            self._reader = maxminddb.open_database(path)
        except _UNREADABLE as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(
                f"enrich.geo.database {path}: {reason}; give a database in MaxMind's format, or leave enrich.geo out"
            ) from error
        self._known = lru_cache(maxsize=REMEMBERED)(self._describe)
        log.info("geo database opened", path=path, **self._version())

    def describe(self, ip: str) -> bytes | None:
        """The inside of a JSON object: `location` with `city`, `region`, `country` (English names), `latitude` and `longitude` (texts, as
        the tracking API has them). None for what is no public address, or not known."""
        return self._known(ip) if len(ip) <= LONGEST else None

    def refresh(self) -> None:
        """Takes up a file that was put in this one's place; goes on with the old one while the new cannot be read. (Put it there by
        renaming: a file that is overwritten changes under our feet.)"""
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            reader = maxminddb.open_database(self._path)
        except _UNREADABLE as error:
            log.warning("geo database not replaced: the one before is used", path=self._path, error=str(error))
            return
        self._reader.close()
        self._reader = reader
        self._damaged = False
        self._known.cache_clear()
        log.info("geo database replaced", path=self._path, **self._version())

    def close(self) -> None:
        self._reader.close()

    def _version(self) -> Mapping[str, Any]:
        about = self._reader.metadata()
        return {"kind": about.database_type, "built": about.build_epoch}

    def _describe(self, ip: str) -> bytes | None:
        try:
            address = ip_address(ip.strip())
        except ValueError:
            return None
        if isinstance(address, IPv6Address):
            address = address.ipv4_mapped or address
            if isinstance(address, IPv6Address) and self._reader.metadata().ip_version == 4:
                return None
        if not address.is_global:
            return None
        try:
            location = _location(self._reader.get(address))
        except maxminddb.InvalidDatabaseError as error:  # no reason to hold up events
            if not self._damaged:
                log.warning("geo database is damaged: put a whole one in its place", path=self._path, error=str(error))
            self._damaged = True
            return None
        return orjson.dumps({"location": location})[1:-1] if location else None


def _stamp(path: str) -> tuple[int, int, int] | None:
    """What changes when another file takes its place; None while there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _location(record: Any) -> Mapping[str, str]:
    """Databases differ in what they hold; what is missing or of another shape is left out."""
    if not isinstance(record, dict):
        return {}
    divisions = record.get("subdivisions")
    point = record.get("location")
    fields = {
        "city": _name(record.get("city")),
        "region": _name(divisions[0]) if isinstance(divisions, list) and divisions else None,
        "country": _name(record.get("country")),
    }
    if isinstance(point, dict):
        fields |= {name: _degrees(point.get(name)) for name in ("latitude", "longitude")}
    return {name: value for name, value in fields.items() if value is not None}


def _name(place: Any) -> str | None:
    if not isinstance(place, dict):
        return None
    names = place.get("names")
    name = names.get("en") if isinstance(names, dict) else None
    code = place.get("iso_code")
    return name if isinstance(name, str) else code if isinstance(code, str) else None


def _degrees(value: Any) -> str | None:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
