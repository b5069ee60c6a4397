"""Pages about one profile, from its rows. Pure; what they answer is plain data, since this is the hot path."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pipeline.profile import Traits, latest_preferences, preferences, stamp_of, values
from pipeline.query.pages import limit_of, opened, sealed
from pipeline.store.consent import Stated
from pipeline.store.people import Link
from pipeline.store.profiles import Found, Head, Held, Id, Merged, brought_by
from schemas.errors import Refused
from schemas.events import ExternalId, iso
from schemas.exact_json import json_loads

Query = Mapping[str, str]
CLASSES: Final = ("custom", "computed_trait", "audience", "sql_trait", "journey", "prediction")


def traits_page(head: Head, query: Query, url: str, allowed: frozenset[str] | None) -> dict[str, Any]:
    """Traits in alphabetical order, `limit` (1 to 200, default 20) at a time; `allowed` are the only ones that are shown.
    A page goes on behind the last name that was shown, so that each is given once whatever is written meanwhile."""
    limit = limit_of(query, default=20, most=200)
    verbose = flag(query, "verbose")
    wanted = names_of(query, "include")
    kind = one_of(query, "class", CLASSES)
    behind = opened(query, "traits", str)
    traits: Traits = json_loads(head.traits)
    names = [
        name
        for name, write in traits.items()
        if write[3] is not None
        and (not wanted or name in wanted)
        and (allowed is None or name in allowed)
        and (kind is None or class_of(write) == kind)
        and (behind is None or name > behind[1][0])
    ]
    names.sort()
    page, more = names[:limit], len(names) > limit
    shown = {name: _verbose(traits[name]) if verbose else traits[name][3] for name in page}
    return {"traits": shown, "cursor": cursor(url, limit, sealed("traits", head.id, page[-1]) if more else None)}


def class_of(write: Sequence[Any]) -> str:
    """What kind of trait it is. Whatever an event wrote is custom; nothing else writes traits."""
    return "custom"


def _verbose(write: Sequence[Any]) -> dict[str, Any]:
    return {
        "value": write[3],
        "source_id": write[4] if len(write) > 4 else None,
        "updated_at": iso(write[0]),
        "message_id": write[2],
        "class": class_of(write),
    }


def external_ids_page(
    head: Head, ids: Sequence[Id], merges: Sequence[Merged], query: Query, url: str
) -> dict[str, Any]:
    """External ids in the order they were added, `limit` (1 to 100, default 25) at a time."""
    limit = limit_of(query, default=25, most=100)
    verbose = flag(query, "verbose")
    wanted = names_of(query, "include")
    behind = opened(query, "external_ids", int, str)
    kept = [one for one in ids if not wanted or one.external.type in wanted]
    if behind is not None:
        kept = [one for one in kept if (one.added_at, one.key) > tuple(behind[1])]
    page, more = kept[:limit], len(kept) > limit
    items = [id_item(head.collection, one.external, one.added_at, one.source, one.message_id) for one in page]
    if verbose:
        brought = brought_by(merges, head.id)
        for item, one in zip(items, page, strict=True):
            item |= {"mapped_by_merge": brought.get(one.home or ""), "config_version": one.rules}
    following = sealed("external_ids", head.id, page[-1].added_at, page[-1].key) if more else None
    return {"data": items, "cursor": cursor(url, limit, following)}


def id_item(collection: str, one: ExternalId, added_at: int, source: str, message_id: str) -> dict[str, Any]:
    """An external id with the event that mapped it."""
    return {
        "source_id": source or None,
        "collection": collection,
        "id": one.value,
        "type": one.type,
        "created_at": iso(added_at),
        "encoding": "none",
        "first_message_id": message_id or None,
    }


def metadata(head: Head) -> dict[str, Any]:
    """The life of a profile. After a merge: the beginning of the earliest, the end of the latest."""
    return {
        "created_at": iso(head.created_at),
        "updated_at": iso(head.last_seen),
        "expires_at": None,
        "first_message_id": head.message_id or None,
        "first_source_id": head.source or None,
        "last_message_id": head.last_message or None,
        "last_source_id": head.last_source or None,
    }


def consent(stated: Stated, query: Query) -> dict[str, Any]:
    """What a person prefers by category; with `verbose`, since when and by which event."""
    categories: dict[str, Any] = dict(preferences(*stated))
    if flag(query, "verbose"):
        writes = latest_preferences(stated.consent)
        categories = {name: _verbose_consent(value, writes[name]) for name, value in categories.items()}
    return {"consent": {"categories": categories}}


def _verbose_consent(value: bool | str, write: Sequence[Any]) -> dict[str, Any]:
    at, _, message, source = stamp_of(write)
    return {"value": value, "source_id": source, "updated_at": iso(at), "message_id": message}


def merges_page(head: Head, ids: Sequence[Id], merges: Sequence[Merged], query: Query, url: str) -> dict[str, Any]:
    """The merges that made a profile, in order, `limit` (1 to 100, default 20) at a time."""
    limit = limit_of(query, default=20, most=100)
    behind = opened(query, "merges", int, str)
    kept = [one for one in merges if behind is None or (one.seq, one.id) > tuple(behind[1])]
    page, more = kept[:limit], len(kept) > limit
    homes: dict[str, list[str]] = {}
    for one in ids:
        homes.setdefault(one.home or "", []).append(one.key)
    data = [
        {
            "merge_id": one.id,
            "survivor": one.survivor,
            "absorbed": one.absorbed,
            "at": iso(one.at),
            "trigger": {"message_id": one.message_id, "source_id": one.source, "type": one.type},
            "external_ids_moved": [] if one.undone_by else homes.get(one.absorbed, []),
            "config_version": one.rules,
            "reversible": one.undone_by is None,
            "undone_by": one.undone_by,
        }
        for one in page
    ]
    following = sealed("merges", head.id, page[-1].seq, page[-1].id) if more else None
    return {"data": data, "cursor": cursor(url, limit, following)}


def link_item(collection: str, other: Found, links: Sequence[Link], most: int) -> dict[str, Any]:
    """The other side of links: at most `most` of its ids."""
    return {
        "to_collection": collection,
        "id": other.id,
        "external_ids": [id_view(collection, one) for one in other.external_ids[:most]],
        "linked_at": iso(min(one.first_at for one in links)),
        "last_seen_at": iso(max(one.last_at for one in links)),
    }


def id_view(collection: str, one: Held) -> dict[str, Any]:
    """An external id in short."""
    return {
        "id": one.external.value,
        "type": one.external.type,
        "source_id": one.source or None,
        "collection": collection,
        "created_at": iso(one.added_at),
        "encoding": "none",
    }


# ── Many at once ──────────────────────────────────────────────────────────────────────────────────────────────────

PARTS: Final = ("external_ids", "traits", "metadata", "merged", "consent")


def fields_of(wanted: Any) -> frozenset[str]:
    """What is to be told of each profile: parts, or single traits as `traits.NAME`; by default its ids and traits. Refused when it
    is something else."""
    if wanted is None:
        return frozenset(("external_ids", "traits"))
    if not isinstance(wanted, list) or len(wanted) > 300 or not all(isinstance(one, str) for one in wanted):
        raise Refused("validation_error", "fields must be a list of at most 300 names.")
    unknown = sorted(one for one in wanted if one not in PARTS and not one.startswith("traits."))
    if unknown:
        raise Refused("validation_error", f"fields knows {', '.join(PARTS)} and traits.NAME, not {unknown[0][:100]!r}.")
    return frozenset(wanted)


def profile_item(
    found: Found,
    fields: frozenset[str],
    allowed: frozenset[str] | None,
    preferences: Mapping[str, bool | str] | None = None,
) -> dict[str, Any]:
    """A profile with the fields that were asked for; `allowed` are the only traits that are shown. `preferences` are by category, and
    needed where consent is asked for."""
    item: dict[str, Any] = {"id": found.id}
    if "external_ids" in fields:
        item["external_ids"] = [id_view(found.head.collection, one) for one in found.external_ids]
    named = {one.removeprefix("traits.") for one in fields if one.startswith("traits.")}
    if "traits" in fields or named:
        item["traits"] = {
            name: value
            for name, value in values(found.traits).items()
            if ("traits" in fields or name in named) and (allowed is None or name in allowed)
        }
    if "metadata" in fields:
        item["metadata"] = metadata(found.head) | {"events": found.events}
    if "merged" in fields:
        item["merged"] = found.merged
    if "consent" in fields:
        item["consent"] = {"categories": dict(preferences or {})}
    return item


# ── Parameters ────────────────────────────────────────────────────────────────────────────────────────────────────


def cursor(url: str, limit: int, following: str | None) -> dict[str, Any]:
    """Where a list goes on; `following` is a sealed cursor, None on the last page."""
    return {"url": url, "has_more": following is not None, "next": following or "", "limit": limit}


def names_of(query: Query, name: str) -> frozenset[str]:
    """A list of names with commas between them; empty when there is none."""
    return frozenset(one for one in query.get(name, "").split(",") if one)


def flag(query: Query, name: str) -> bool:
    """A parameter that is `true` or `false`."""
    return one_of(query, name, ("true", "false")) == "true"


def one_of(query: Query, name: str, known: Iterable[str]) -> str | None:
    """A parameter with a fixed set of values; None without it. Refused when it has another."""
    text = query.get(name, "")
    if text and text not in known:
        raise Refused("validation_error", f"{name} must be one of {', '.join(known)}.")
    return text or None
