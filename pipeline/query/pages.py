"""Lists that are given out page by page."""

import base64
import binascii
from collections.abc import Mapping

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
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= most:
        raise Refused("validation_error", f"limit must be a whole number from 1 to {most}.")
    return int(text)


def key_of(query: Mapping[str, str]) -> str:
    """The key that the query's cursor holds; empty for the first page. Refused when it cannot be read."""
    try:
        return base64.urlsafe_b64decode(query.get("next", "")).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise unreadable() from error


def unreadable() -> Refused:
    return Refused("invalid_request_error", "The cursor cannot be read; begin again without `next`.")
