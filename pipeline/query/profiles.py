"""`/api/profiles` and the first part of the profile API (traits, external_ids), in the reference's shapes."""

from collections.abc import Mapping
from typing import Any

from pipeline.identity import Rules
from pipeline.profile import values
from pipeline.query.pages import cursor, key_of, limit_of
from pipeline.store.database import Database
from pipeline.store.profiles import Found, find
from schemas.api import ExternalIdItem, ExternalIdsPage, ExternalIdView, ProfileView, TraitsPage
from schemas.errors import Refused
from schemas.events import iso

_NOT_FOUND = Refused("not_found", "Profile was not found.", status=404)


async def look_up(database: Database, address: str) -> Found:
    """The profile at `type:value`, or at a bare profile id. Refused when there is none."""
    kind, colon, value = address.partition(":")
    if not colon:
        kind, value = "profile_id", address
    if not value or "\0" in address:
        raise Refused("invalid_request_error", "Address a profile as type:value, for example user_id:u1.")
    found = await database.read(lambda connection: find(connection, kind, Rules().normalize(kind, value)))
    if found is None:
        raise _NOT_FOUND
    return found


def summary(found: Found) -> ProfileView:
    """The whole profile in one object."""
    return ProfileView(
        id=found.id,
        external_ids=[
            ExternalIdView(type=one.type, id=one.value, created_at=iso(at)) for one, at in found.external_ids
        ],
        traits=values(found.traits),
        events=found.events,
        first_seen=iso(found.head.first_seen),
        last_seen=iso(found.head.last_seen),
        created_at=iso(found.head.created_at),
        merged=found.merged,
    )


def traits_page(found: Found, query: Mapping[str, str], url: str) -> TraitsPage:
    """Traits in alphabetical order, `limit` (1 to 200, default 20) at a time."""
    limit = limit_of(query, default=20, most=200)
    include = {name for name in query.get("include", "").split(",") if name}
    names = [name for name in values(found.traits) if not include or name in include]
    names = [name for name in names if name >= key_of(query)]
    page, rest = names[:limit], names[limit:]
    shown: dict[str, Any] = {name: found.traits[name][3] for name in page}
    if query.get("verbose") == "true":
        shown = {
            name: {"value": value, "updated_at": iso(found.traits[name][0]), "message_id": found.traits[name][2]}
            for name, value in shown.items()
        }
    return TraitsPage(traits=shown, cursor=cursor(url, limit, rest[0] if rest else None))


def external_ids_page(found: Found, query: Mapping[str, str], url: str) -> ExternalIdsPage:
    """External ids in the order they were added, `limit` (1 to 100, default 25) at a time."""
    limit = limit_of(query, default=25, most=100)
    include = {name for name in query.get("include", "").split(",") if name}
    kept = [(str(one), one, at) for one, at in found.external_ids if not include or one.type in include]
    after = key_of(query)
    start = next((i for i, (key, _, _) in enumerate(kept) if key == after), None) if after else 0
    if start is None:
        raise Refused("invalid_request_error", "The cursor is not one of this list; begin again without `next`.")
    page, rest = kept[start : start + limit], kept[start + limit :]
    return ExternalIdsPage(
        data=[ExternalIdItem(type=one.type, id=one.value, created_at=iso(at)) for _, one, at in page],
        cursor=cursor(url, limit, rest[0][0] if rest else None),
    )
