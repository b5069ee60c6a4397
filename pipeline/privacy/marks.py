"""Ids as they are kept of people who are gone: hashed with a key of this installation. Pure."""

from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b

from schemas.events import ExternalId


@lru_cache(maxsize=50_000)
def mark(key: bytes, one: ExternalId | str) -> bytes:
    """16 bytes that stand for an id, `type:value`."""
    return blake2b(str(one).encode(errors="surrogatepass"), key=key, digest_size=16).digest()


def marks(key: bytes, ids: Iterable[ExternalId | str]) -> dict[str, bytes]:
    """The mark of each id, by `type:value`."""
    return {str(one): mark(key, one) for one in ids}
