"""What stands on the log in the place of a record that was erased: its source, its type and when it was received. Pure.

A record keeps its place, since positions and books count it; nothing of the person is left in it. Always shorter than what it
replaces, so that it fits there; what could not be read becomes nothing."""

from dataclasses import replace
from typing import Final

from schemas.dead_letters import decode_dead_letter, encode_dead_letter
from schemas.events import Event, Resolved, decode_event, decode_resolved, encode_event, encode_resolved
from schemas.reasons import Reason

_MARK: Final = str(Reason.DELETED)
_ROOM: Final = 4  # bytes by which it has to be shorter, see `Erasable.scrub`


def erased(event: Event) -> Event:
    """The event without anything of its sender's."""
    at = event.received_at
    return Event(event.source, event.type, "", None, None, at, None, at, event.channel, None, _MARK, b"")


def is_erased(event: Event) -> bool:
    """Whether this is what `erased` leaves."""
    return event.refused == _MARK and not event.body


def without_person(resolved: Resolved) -> Resolved:
    """A resolved event after `erased`. The profile's id, which is nobody's any more, stays: it finds the partition."""
    return replace(resolved, external_ids=(), event=erased(resolved.event), context=None)


def erased_event(value: bytes) -> bytes:
    """For a value of `events`; itself when it is one already."""
    try:
        event = decode_event(value)
    except ValueError:
        return b""
    if is_erased(event):
        return value
    made = encode_event(erased(event))
    return made if len(made) + _ROOM <= len(value) else b""


def erased_resolved(value: bytes) -> bytes:
    """For a value of `resolved`."""
    try:
        resolved = decode_resolved(value)
    except ValueError:
        return b""
    return resolved_placeholder(resolved)


def resolved_placeholder(resolved: Resolved) -> bytes:
    """For a resolved event that is decoded."""
    event = encode_event(erased(resolved.event))
    return encode_resolved(resolved.profile_id, resolved.origin, (), event)


def erased_letter(value: bytes) -> bytes:
    """For a value of `dead-letters`: what had died, without its bytes."""
    letter = decode_dead_letter(value)
    return encode_dead_letter(letter._replace(value=None, reason=_MARK))
