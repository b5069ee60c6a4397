"""What `profile-changes` says of an event, of a profile that was taken apart or is one again, and of what was deleted. Pure.

Ids of changes are made from what caused them, so that a change that is told again, be it from what the database still knows of it, is
the same change.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Final, NamedTuple

import msgspec

from pipeline.graph import Graph, Merge, Move, News, founded_by
from pipeline.parse import Parsed
from pipeline.profile import ACCOUNTS, USERS, Node
from pipeline.split import Change, Family
from schemas.changes import Cause, Kind, ProfileChange, Removed, identifier_hash
from schemas.events import Event, ExternalId
from schemas.identity import Collection
from schemas.topics import INTERNAL_SOURCE

MOST: Final = 1_000
"""Ids and profiles that one record names at most, so that it fits the log."""


class _Named(msgspec.Struct):
    event: str | None = None
    name: str | None = None


# ── Of events ─────────────────────────────────────────────────────────────────────────────────────────────────────


def changes_of(event: Event, key: bytes, news: News) -> list[ProfileChange]:
    """What an event changed, merges last; `key` is the event's of deduplication."""
    cause = Cause(
        event.source,
        event.message_id,
        event.type,
        min(event.timestamp, event.received_at),
        event.received_at,
        _name(event),
    )
    mapped: defaultdict[str, list[Node]] = defaultdict(list)
    for node in news.mapped:
        assert node.home is not None, "an id has a home once it is mapped"
        mapped[node.home].append(node)
    made = []
    for profile, nodes in mapped.items():
        ids = [ExternalId(*node.key.split(":", 1)) for node in nodes]
        new = profile in news.founded
        made.append(
            ProfileChange(
                id=f"created:{profile}" if new else f"ids_added:{profile}:{key.hex()}",
                kind="created" if new else "ids_added",
                profile=profile,
                seq=nodes[0].seq,
                cause=cause,
                collection=collection_of(profile),
                profiles=[profile] if new else [],
                ids=ids,
            )
        )
    return _left(key, cause, news.moved) + made + [_merged(one, cause) for one in news.merged]


class Made(NamedTuple):
    """The merges of some profiles and the moves of some ids, in serial order."""

    merges: Sequence[Merge]
    moves: Sequence[Move]


def news_of(parsed: Parsed, graph: Graph, made: Made) -> News | None:
    """What an event that was applied earlier changed, as nodes, merges and moves tell. `graph` has its ids, `made` are the merges of
    the profiles that they belong to, and the moves of the ids. What was forgotten since is not told."""
    event = parsed.event
    keys = [str(one) for one in (*parsed.found.accounts, *parsed.found.ids)]
    nodes = [graph.nodes[key] for key in keys if key in graph.nodes]
    nodes += [_was(one) for one in made.moves if one.key in keys]
    mapped = [one for one in nodes if one.home is not None and _is_of(one, event)]
    merged = [one for one in made.merges if _is_of(one, event)]
    moved = [one for one in made.moves if _is_of(one, event)]
    if not mapped and not merged:
        return None
    founded = {founded_by(event, parsed.key, collection) for collection in (USERS, ACCOUNTS)}
    return News([one for one in founded if any(node.home == one for node in mapped)], mapped, merged, moved)


def _was(move: Move) -> Node:
    """The id as it was mapped until it moved."""
    return Node(
        move.key,
        move.left,
        home=move.was_home,
        seq=move.was_seq,
        source=move.was_source,
        message_id=move.was_message_id,
    )


def _is_of(one: Node | Merge | Move, event: Event) -> bool:
    return one.message_id == event.message_id and one.source == event.source


def _left(key: bytes, cause: Cause, moved: Iterable[Move]) -> list[ProfileChange]:
    """What the profiles lost that ids left."""
    lost: defaultdict[tuple[str, str], list[Move]] = defaultdict(list)
    for one in moved:
        lost[one.left, one.joined].append(one)
    return [
        ProfileChange(
            id=f"id_removed:{left}:{key.hex()}",
            kind="id_removed",
            profile=left,
            seq=moves[0].seq,
            cause=cause,
            collection=collection_of(left),
            other=joined,
            removed=[_removed(one.key) for one in moves],
        )
        for (left, joined), moves in lost.items()
    ]


def _removed(key: str) -> Removed:
    one = ExternalId(*key.split(":", 1))
    return Removed(one.type, identifier_hash(one))


def _merged(one: Merge, cause: Cause) -> ProfileChange:
    return ProfileChange(
        id=f"merged:{one.id}",
        kind="merged",
        profile=one.survivor,
        seq=one.seq,
        cause=cause,
        collection=collection_of(one.survivor),
        other=one.absorbed,
        profiles=[one.absorbed],
    )


def _name(event: Event) -> str | None:
    """A track's event, a page's or screen's name."""
    if event.type not in ("track", "page", "screen"):
        return None
    try:
        named = msgspec.json.decode(event.body, type=_Named)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None  # some other form than text
    return named.event if event.type == "track" else named.name


def collection_of(profile: str) -> Collection:
    """Which collection a profile is of, by its id."""
    return ACCOUNTS if profile.startswith("acc_") else USERS


# ── Of what operators do ──────────────────────────────────────────────────────────────────────────────────────────


def changes_of_split(split: str, kind: Kind, at: int, before: Family, change: Change) -> list[ProfileChange]:
    """What a split (`unmerged`) or its lifting (`remerged`) changed: every id and every profile that belongs to another canonical
    profile than before, by where it is now and where it was."""
    after = Family(before.nodes | change.nodes, before.profiles | change.profiles)
    ids: defaultdict[tuple[str, str], list[ExternalId]] = defaultdict(list)
    profiles: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for key in sorted(before.nodes):
        if (now := after.root_of(key)) != (then := before.root_of(key)):
            ids[now, then].append(ExternalId(*key.split(":", 1)))
    for one in sorted(after.profiles):
        then = before.root(one) if one in before.profiles else ""
        if (now := after.root(one)) != then:
            profiles[now, then or before.root(next(iter(before.profiles)))].append(one)
    cause = Cause(INTERNAL_SOURCE, split, "unmerge" if kind == "unmerged" else "remerge", at, at)
    return [
        ProfileChange(
            id=f"{kind}:{split}:{now}:{then}:{start // MOST}",
            kind=kind,
            profile=now,
            seq=at,
            cause=cause,
            collection=collection_of(now),
            other=then,
            profiles=profiles[now, then][start : start + MOST],
            ids=ids[now, then][start : start + MOST],
        )
        for now, then in dict.fromkeys(chain(profiles, ids))
        for start in range(0, max(len(profiles[now, then]), len(ids[now, then])), MOST)
    ]


def deleted(deletion: str, profile: str, at: int, profiles: Sequence[str] = ()) -> ProfileChange:
    """A person or an account is gone. `deletion` names it, the same each time it is told; `profiles` are the ids of those that it
    had absorbed; `at` is in UTC microseconds since 1970."""
    cause = Cause(INTERNAL_SOURCE, deletion, "delete", at, at)
    return ProfileChange(
        f"deleted:{deletion}", "deleted", profile, at, cause, collection_of(profile), profiles=list(profiles)
    )


def id_removed(deletion: str, profile: str, at: int, kind: str, hashed: str) -> ProfileChange:
    """An identifier of `profile` is forgotten. `hashed` is its `schemas.changes.identifier_hash`."""
    cause = Cause(INTERNAL_SOURCE, deletion, "delete", at, at)
    removed = [Removed(kind, hashed)]
    return ProfileChange(
        f"id_removed:{deletion}", "id_removed", profile, at, cause, collection_of(profile), removed=removed
    )
