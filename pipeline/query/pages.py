"""Lists that are given out page by page."""

import base64
from collections.abc import Mapping
from typing import Any

import orjson

from schemas.api import Cursor
from schemas.errors import Refused


def cursor(url: str, limit: int, key: str | None) -> Cursor:
    """Where the list goes on: at `key`, or nowhere."""
    following = "" if key is None else base64.urlsafe_b64encode(key.encode()).decode()
    return Cursor(url=url, has_more=key is not None, next=following, limit=limit)


def limit_of(query: Mapping[str, str], *, default: int, most: int) -> int:
    """How long a page is wanted. Refused when it is not a whole number from 1 to `most`."""
    text = query.get("limit")
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= most or len(text) > 9:
        raise Refused("validation_error", f"limit must be a whole number from 1 to {most}.")
    return int(text)


def key_of(query: Mapping[str, str]) -> str:
    """The key that the query's cursor holds; empty for the first page. Refused when it cannot be read."""
    try:
        return base64.urlsafe_b64decode(query.get("next", "")).decode()
    except ValueError as error:  # binascii.Error and UnicodeDecodeError among them
        raise unreadable() from error


def unreadable() -> Refused:
    return Refused("invalid_request_error", "The cursor cannot be read; begin again without `next`.")


# ── Lists that go on behind a key ─────────────────────────────────────────────────────────────────────────────────


def sealed(kind: str, owner: str, *key: str | int) -> str:
    """A cursor: of which list of whom, and the key of the last item that was given out."""
    return base64.urlsafe_b64encode(orjson.dumps([kind, owner, *key])).decode().rstrip("=")


def opened(query: Mapping[str, str], kind: str, *types: type) -> tuple[str, list[Any]] | None:
    """Whose list the query's cursor is of, and its key; None for the first page. Refused when it is not a cursor of this
    kind of list, with a key of these types."""
    found = _unsealed(query.get("next") or "")
    if not found:
        return None
    if len(found) != 2 + len(types) or found[0] != kind or not isinstance(found[1], str):
        raise unreadable()
    key: list[Any] = found[2:]
    if not all(type(one) is wanted and _storable(one) for one, wanted in zip(key, types, strict=True)):
        raise unreadable()
    return found[1], key


def owner_of(query: Mapping[str, str]) -> str:
    """Whose list the query's cursor is of. Refused when it is no cursor."""
    found = _unsealed(query.get("next") or "")
    if len(found) < 2 or not isinstance(found[1], str) or not _storable(found[1]):
        raise unreadable()
    return found[1]


def _unsealed(text: str) -> list[Any]:
    if not text:
        return []
    try:
        found = orjson.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except ValueError as error:
        raise unreadable() from error
    if not isinstance(found, list):
        raise unreadable()
    return found


def _storable(key: object) -> bool:
    return "\0" not in key if isinstance(key, str) else isinstance(key, int) and abs(key) < 1 << 62
