"""Changes of who is who, as they stand on `profile-changes`. Field meanings: `avro/profile_change.avsc`."""

from collections.abc import Sequence
from hashlib import sha1
from typing import Final, Literal, NamedTuple, get_args

from schemas.events import ExternalId
from schemas.framing import Framing

Kind = Literal["created", "ids_added", "merged", "unmerged", "remerged", "id_removed", "deleted"]
KINDS: Final[Sequence[str]] = get_args(Kind)
FRAMING: Final = Framing("profile_change", 4, "profile change")


class Cause(NamedTuple):
    """What a change came from: an event, or what an operator asked for. Times are UTC microseconds since 1970."""

    source: str
    message_id: str
    type: str
    timestamp: int
    received_at: int
    name: str | None = None


class Removed(NamedTuple):
    """An identifier that is forgotten: its value is not known any more."""

    type: str
    hash: str


class ProfileChange(NamedTuple):
    """A record of `profile-changes`. `kind` is one of `KINDS`; a reader leaves out those of a later version that it does not know."""

    id: str
    kind: str
    profile: str
    seq: int
    cause: Cause
    collection: str = "users"
    other: str | None = None
    profiles: Sequence[str] = ()
    ids: Sequence[ExternalId] = ()
    removed: Sequence[Removed] = ()


def encode_change(change: ProfileChange) -> bytes:
    """The record value, in the Confluent wire format. Text that is no Unicode is written as the log's other records write it."""
    return FRAMING.encode(
        {
            "id": _unicode(change.id),
            "kind": change.kind,
            "profile": change.profile,
            "collection": change.collection,
            "other": change.other,
            "profiles": change.profiles,
            "ids": [{"type": _unicode(one.type), "id": _unicode(one.value)} for one in change.ids],
            "removed": [one._asdict() for one in change.removed],
            "seq": change.seq,
            "timestamp": change.cause.timestamp,
            "received_at": change.cause.received_at,
            "source": _unicode(change.cause.source),
            "message_id": _unicode(change.cause.message_id),
            "type": change.cause.type,
            "name": None if change.cause.name is None else _unicode(change.cause.name),
        }
    )


def decode_change(value: bytes) -> ProfileChange:
    """Reads a value of `profile-changes`. ValueError when it is not one."""
    raw = FRAMING.decode(value)
    cause = Cause(*(raw.pop(name) for name in Cause._fields))
    ids = tuple(ExternalId(one["type"], one["id"]) for one in raw.pop("ids"))
    removed = tuple(Removed(**one) for one in raw.pop("removed"))
    profiles = tuple(raw.pop("profiles"))
    return ProfileChange(**raw, cause=cause, ids=ids, removed=removed, profiles=profiles)


def identifier_hash(one: ExternalId) -> str:
    """The key of an identifier in a warehouse: the SHA-1 of its type directly followed by its value, as hex (Segment's
    `external_id_hash`)."""
    return sha1(f"{one.type}{one.value}".encode(errors="surrogatepass"), usedforsecurity=False).hexdigest()


def _unicode(text: str) -> str:
    return text if text.isascii() else text.encode(errors="replace").decode()
