"""What an operator does around the profile API: tokens, the record of who read whom, a whole profile, all of them."""

import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from pipeline.profile import values
from pipeline.query.pages import limit_of
from pipeline.query.profile_api import export
from pipeline.query.profile_api.app import ProfileApi
from pipeline.query.profile_api.tokens import OPERATOR, new_token
from pipeline.store import people, profiles, reads, tokens
from pipeline.store.database import Database
from pipeline.store.profiles import Found
from pipeline.store.reads import EVERYBODY
from pipeline.store.tokens import Token
from schemas.api import ExternalIdView, ProfileRead, ProfileReads, ProfileView, TokenMade, TokensPage, TokenView
from schemas.errors import Refused
from schemas.events import iso


async def show(api: ProfileApi, database: Database, address: str, query: Mapping[str, str]) -> ProfileView:
    """The whole profile in one object, an account's too. Refused when there is none."""
    head = await api.found(address, query)
    api.audit.note(OPERATOR.id, "profile", (head.id,))
    [found] = await database.read(lambda connection: profiles.whole(connection, [head]))
    return summary(found)


def summary(found: Found) -> ProfileView:
    """The whole profile in one object."""
    head = found.head
    return ProfileView(
        id=found.id,
        collection="accounts" if head.collection == "accounts" else "users",
        external_ids=[
            ExternalIdView(type=one.external.type, id=one.external.value, created_at=iso(one.added_at))
            for one in found.external_ids
        ],
        traits=values(found.traits),
        events=head.events,
        first_seen=iso(head.first_seen),
        last_seen=iso(head.last_seen),
        created_at=iso(head.created_at),
        merged=found.merged,
    )


async def every_profile(
    api: ProfileApi, database: Database, query: Mapping[str, str]
) -> tuple[Mapping[str, str], AsyncIterator[bytes]]:
    """Headers and lines of an export. The headers say what an interrupted one goes on with, and about how many there are."""
    wanted = export.asked(query, time.time_ns() // 1_000)
    total = await database.read(people.count)
    api.audit.note(OPERATOR.id, "export", (EVERYBODY,))
    return {"Millrace-Export-As-Of": str(wanted.as_of), "Millrace-Export-Profiles": str(total)}, wanted.lines(database)


# ── Tokens ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def make_token(api: ProfileApi, database: Database, body: Mapping[str, Any]) -> TokenMade:
    """A token by `name`, with `scopes` (profiles:read), `traits` (all) and `requests_per_second` (1,000). The only time that its
    secret is told."""
    unknown = body.keys() - {"name", "scopes", "traits", "requests_per_second"}
    if unknown:
        raise Refused("validation_error", f"A token has no {sorted(unknown)[0][:100]!r}.")
    name, per_second = body.get("name", ""), body.get("requests_per_second", 1_000)
    if not isinstance(name, str) or type(per_second) is not int:
        raise Refused("validation_error", "name must be a text, and requests_per_second a whole number.")
    scopes = _names(body, "scopes")
    token, secret = new_token(
        name,
        scopes=frozenset(("profiles:read",)) if scopes is None else scopes,
        traits=_names(body, "traits"),
        per_second=per_second,
    )
    await database.run(lambda connection: tokens.add(connection, token, secret))
    await api.tokens.refresh()
    return TokenMade(token=secret, **_shown(token))


async def list_tokens(database: Database) -> TokensPage:
    """All tokens there ever were, without their secrets."""
    return TokensPage(data=[TokenView(**_shown(one)) for one in await database.read(tokens.every)])


async def revoke_token(api: ProfileApi, database: Database, token: str) -> TokenView:
    """Ends a token; other processes notice within a second. Refused when there is none."""
    at = time.time_ns() // 1_000
    found = None if "\0" in token else await database.run(lambda connection: tokens.revoke(connection, token, at))
    if found is None:
        raise Refused("not_found", "There is no token with this id; list them for the ids.", status=404)
    await api.tokens.refresh()
    return TokenView(**_shown(found))


def _names(body: Mapping[str, Any], name: str) -> frozenset[str] | None:
    given = body.get(name)
    if given is None:
        return None
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise Refused("validation_error", f"{name} must be a list of texts.")
    return frozenset(given)


def _shown(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "scopes": sorted(token.scopes),
        "traits": None if token.traits is None else sorted(token.traits),
        "requests_per_second": token.per_second,
        "created_at": iso(token.created_at),
        "revoked_at": None if token.revoked_at is None else iso(token.revoked_at),
    }


# ── Who read whom ─────────────────────────────────────────────────────────────────────────────────────────────────


async def reads_of(api: ProfileApi, database: Database, address: str, query: Mapping[str, str]) -> ProfileReads:
    """Who read a profile, by any id that it has or had, the latest first: at most `limit` (1 to 1,000, default 100) rows."""
    limit = limit_of(query, default=100, most=1_000)
    head = await api.found(address, query)
    await api.audit.flush()

    def read(connection: Any) -> Any:
        [found] = profiles.whole(connection, [head])
        return reads.of_profiles(connection, [found.id, *found.merged], limit), tokens.every(connection)

    rows, known = await database.read(read)
    names = {one.id: one.name for one in known} | {OPERATOR.id: OPERATOR.name}
    return ProfileReads(
        data=[
            ProfileRead(
                profile=read.profile,
                token=read.token,
                name=names.get(read.token),
                resource=read.resource,
                count=times.reads,
                first_at=iso(times.first_at),
                last_at=iso(times.last_at),
            )
            for read, times in rows
        ]
    )
