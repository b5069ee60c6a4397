"""Names of tables and columns, pure: the same event name gives the same table wherever it is computed.

Names are ASCII, lower snake case. `snake_case` follows the published algorithm byte for byte; the rest decides what that
leaves open: names it would empty, names that are taken, names too long.
"""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Final, NamedTuple

SYSTEM_TABLES: Final = frozenset(("tracks", "identifies", "users", "pages", "screens", "groups", "accounts", "aliases"))
RESERVED_COLUMNS: Final = frozenset(
    (
        "id",
        "anonymous_id",
        "user_id",
        "group_id",
        "previous_id",
        "profile_id",
        "event",
        "event_text",
        "received_at",
        "sent_at",
        "original_timestamp",
        "timestamp",
        "uuid",
        "uuid_ts",
        "loaded_at",
    )
)
MAX_NAME: Final = 255
_LOWER: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789")
_UPPER: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_DIGITS: Final = frozenset(b"0123456789")
_WORD: Final = _LOWER | _UPPER
_UNDERSCORE: Final = ord("_")


@lru_cache(maxsize=65_536)
def snake_case(name: str) -> str:
    """`Order Completed` → `order_completed`. Empty when nothing in the name is an ASCII letter or digit."""
    raw = name.encode(errors="replace")
    stop = _plain_prefix(raw)
    if stop == len(raw):
        return name
    out = bytearray(raw[:stop])
    at = stop
    if _goes_on(raw[:stop], raw[stop]):
        at = _take_word(raw, at, out)
    while True:
        while at < len(raw) and raw[at] not in _WORD:
            at += 1
        if at == len(raw):
            return out.decode()
        if out and out[-1] != _UNDERSCORE:
            out.append(_UNDERSCORE)
        at = _take_word(raw, at, out)


def _plain_prefix(raw: bytes) -> int:
    """Where the part that is snake case already ends."""
    for at, byte in enumerate(raw):
        inner = 0 < at < len(raw) - 1 and byte == _UNDERSCORE and raw[at + 1] in _LOWER
        if byte not in _LOWER and not inner:
            return at
    return len(raw)


def _goes_on(prefix: bytes, stopper: int) -> bool:
    """Whether an upper-case byte after `prefix` belongs to the prefix's last word: no lower-case letter in it yet."""
    if stopper not in _UPPER:
        return False
    return not any(byte in _LOWER and byte not in _DIGITS for byte in prefix.rpartition(b"_")[2])


def _take_word(raw: bytes, at: int, out: bytearray) -> int:
    """Appends a run of upper case and digits, then one of lower case and digits; returns where they end."""
    start = at
    while at < len(raw) and raw[at] in _UPPER:
        at += 1
    while at < len(raw) and raw[at] in _LOWER:
        at += 1
    out += raw[start:at].lower()
    return at


def _slug(name: str, kind: str) -> str:
    """Snake case; what that would empty is transliterated, else named by its hash."""
    slug = snake_case(name)
    if slug:
        return slug
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return snake_case(plain) or f"{kind}_{_hash(name)}"


def _hash(name: str) -> str:
    return sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]


def fit(name: str, limit: int) -> str:
    """`name`, or its beginning with a hash of the whole when it is longer than `limit` bytes."""
    return name if len(name) <= limit else f"{name[: limit - 9]}_{_hash(name)}"


@lru_cache(maxsize=65_536)
def event_table(event: str, limit: int = MAX_NAME) -> str:
    """The table of a track event. Names of system tables get the prefix `event_`."""
    slug = _slug(event, "event")
    return fit(f"event_{slug}" if slug in SYSTEM_TABLES else slug, limit)


@lru_cache(maxsize=4_096)
def schema_name(source: str) -> str:
    """The schema of a source. Those that databases keep for themselves get the prefix `source_`."""
    slug = _slug(source, "source")
    return f"source_{slug}" if slug in ("information_schema", "pg_catalog", "main", "_millrace") else slug


class Named(NamedTuple):
    """A leaf and its column. `leaf` is its index among the leaves; `odd` when the name cannot be guessed from the path."""

    leaf: int
    column: str
    odd: bool


def columns_of(paths: Sequence[Sequence[str]], prefix: str = "", limit: int = MAX_NAME) -> list[Named]:
    """Columns of the leaves of one object, `paths` in document order. Every key is snake-cased on its own, then joined.

    Spellings of one path share a column, and the last wins. When different paths meet, the shallower keeps the name and
    the other gets `_2`. Without a `prefix`, reserved names and those of context columns get a leading underscore."""
    slugs = [tuple(_slug(key, "col") for key in path) for path in paths]
    last = {slug: leaf for leaf, slug in enumerate(slugs)}  # later spellings overwrite earlier ones
    taken: set[str] = set()
    named: list[Named] = []
    bases = {"_".join(slug) for slug in last}
    for slug, leaf in sorted(last.items(), key=lambda item: len(item[0])):  # stable: document order within a depth
        plain = "_".join(slug)
        base = plain
        number = 1
        while base in taken or (number > 1 and base in bases):
            number += 1
            base = f"{plain}_{number}"
        taken.add(base)
        column = f"{prefix}{base}" if prefix or not _is_reserved(base) else f"_{base}"
        column = fit(column, limit)
        named.append(Named(leaf, column, column != f"{prefix}{'_'.join(map(snake_case, paths[leaf]))}"))
    return sorted(named)


def _is_reserved(column: str) -> bool:
    return column in RESERVED_COLUMNS or column.startswith("context_")
