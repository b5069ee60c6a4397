"""What a path of the profile API names. Pure.

The path is taken apart as it came, before anything is decoded, so that an encoded slash or colon stays part of a value. What RFC 3986
lets stand in a path is taken as it is; the reference asks for everything to be encoded, and reads `+` as a space as it does.
"""

import re
from collections.abc import Callable
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from schemas.errors import Refused
from schemas.events import ExternalId

Normalize = Callable[[str, str], str]
"""An identifier's type and value -> the form in which values are compared."""

COLLECTIONS: Final = ("users", "accounts")
LONGEST: Final = 2_048  # characters of an address
_LEGAL: Final = re.compile(rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})*")


class Target(NamedTuple):
    """`/v1/spaces/SPACE/collections/COLLECTION/profiles/…`: the segments behind it, still encoded."""

    space: str
    collection: str
    rest: tuple[bytes, ...]


def target(raw_path: bytes) -> Target | None:
    """What a path addresses; None when the profile API has nothing like it."""
    parts = raw_path.split(b"/")
    if parts[-1] == b"" and len(parts) > 2:
        parts.pop()
    if len(parts) < 7 or len(parts) > 10 or parts[:2] != [b"", b"v1"]:
        return None
    if parts[2] not in (b"spaces", b"namespaces") or parts[4] != b"collections" or parts[6] != b"profiles":
        return None
    return Target(decoded(parts[3]), decoded(parts[5]), tuple(parts[7:]))


def decoded(segment: bytes) -> str:
    """A segment of a path as text. Refused when it is not percent-encoded UTF-8."""
    if not _LEGAL.fullmatch(segment):
        raise _not_encoded()
    try:
        return unquote_to_bytes(segment.replace(b"+", b" ")).decode()
    except UnicodeDecodeError as error:
        raise _not_encoded() from error


def checked_collection(collection: str) -> str:
    """`users` or `accounts`; Refused for anything else."""
    if collection not in COLLECTIONS:
        raise Refused("validation_error", f"The collection must be one of {', '.join(COLLECTIONS)}.")
    return collection


def address(named: str, normalize: Normalize) -> str:
    """What the store finds a profile by, from `type:value` (the first colon splits) or a profile id. Refused when it is neither."""
    kind, colon, value = named.partition(":")
    if not kind or (colon and not value) or "\0" in named or len(named) > LONGEST:
        raise Refused(
            "invalid_request_error", "Address a profile as type:value, for example user_id:u1, or by its profile id."
        )
    if not colon:
        return kind
    return value if kind == "profile_id" else str(ExternalId(kind, normalize(kind, value)))


def _not_encoded() -> Refused:
    return Refused(
        "invalid_request_error",
        "The address is not percent-encoded UTF-8; encode the id's value, `+` as %2B for example.",
    )
