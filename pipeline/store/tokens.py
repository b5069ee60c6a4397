"""Tokens that programs read profiles with. Of the secret itself only its hash is kept."""

from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import orjson
from sqlalchemy import Connection, select, update

from pipeline.store import bulk, schema

SCOPES: Final = ("profiles:read", "profiles:search", "profiles:delete_identifier")


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What a program may do: `traits` are the only ones it sees (None: all), `per_second` how many requests one process answers
    it. Times are microseconds."""

    id: str
    name: str
    scopes: frozenset[str]
    traits: frozenset[str] | None
    per_second: int
    created_at: int
    revoked_at: int | None = None


def hash_of(secret: str) -> str:
    """SHA-256, which is enough: the secrets are 192 random bits, nothing that could be guessed."""
    return sha256(secret.encode()).hexdigest()


def add(connection: Connection, token: Token, secret: str) -> None:
    """Makes a token known."""
    row = (
        token.id,
        token.name,
        hash_of(secret),
        _json(token.scopes),
        None if token.traits is None else _json(token.traits),
        token.per_second,
        token.created_at,
        token.revoked_at,
    )
    bulk.insert(connection, schema.tokens, [row])


def every(connection: Connection) -> list[Token]:
    """All there ever were, in the order they were made."""
    table = schema.tokens
    return [_token(row) for row in connection.execute(select(table).order_by(table.c.created_at, table.c.id))]


def valid(connection: Connection) -> dict[str, Token]:
    """Those that have not been revoked, by the hash of their secret."""
    rows = connection.execute(select(schema.tokens).where(schema.tokens.c.revoked_at.is_(None)))
    return {row.hash: _token(row) for row in rows}


def revoke(connection: Connection, token: str, at: int) -> Token | None:
    """Ends a token for good; the first time counts. None when there is none."""
    table = schema.tokens
    connection.execute(update(table).where(table.c.id == token, table.c.revoked_at.is_(None)).values(revoked_at=at))
    row = connection.execute(select(table).where(table.c.id == token)).first()
    return None if row is None else _token(row)


def _token(row: Any) -> Token:
    return Token(
        id=row.id,
        name=row.name,
        scopes=frozenset(orjson.loads(row.scopes)),
        traits=None if row.traits is None else frozenset(orjson.loads(row.traits)),
        per_second=row.per_second,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
    )


def _json(names: Collection[str]) -> str:
    return orjson.dumps(sorted(names)).decode()
