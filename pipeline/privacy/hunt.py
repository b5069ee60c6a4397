"""Which records on the log are of people who are deleted, and what takes their place. Pure, apart from asking whose an event is."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import orjson

from pipeline.extract import Found, extractor
from pipeline.identity import Rules
from pipeline.log import Record
from pipeline.privacy.placeholder import (
    erased_event,
    erased_letter,
    is_erased,
    resolved_placeholder,
)
from pipeline.profile import message_key
from schemas.changes import decode_change, encode_change
from schemas.dead_letters import DeadLetter, decode_dead_letter
from schemas.events import Event, ExternalId, Origin, decode_event, decode_resolved
from schemas.topics import DEAD_LETTERS, EVENTS, PROFILE_CHANGES, RESOLVED

_FEW: Final = 16  # values that are looked for before a record is read
Kept = Callable[[Collection[bytes]], Collection[bytes]]
"""Of some keys of deduplication those whose events the store holds: they are somebody's who is there."""
Changes = Mapping[int, tuple[bytes, bytes]]
Records = Sequence[tuple[int, Record]]


@dataclass(slots=True)
class Hunted:
    """Who is looked for: ids with the time up to which their events go, profiles, and places on `events` that are known to be
    theirs."""

    ids: dict[str, int] = field(default_factory=dict)
    profiles: set[str] = field(default_factory=set)
    origins: set[Origin] = field(default_factory=set)


class Hunt:
    """Judges records of each topic."""

    def __init__(self, hunted: Hunted, rules: Rules, kept: Kept) -> None:
        self._hunted = hunted
        self._rules = rules
        self._extract = extractor(rules)
        self._kept = kept
        self._values = _values(hunted.ids)
        self.judges: Mapping[str, Callable[[Records], Changes]] = {
            EVENTS: self.events,
            RESOLVED: self.resolved,
            DEAD_LETTERS: self.dead_letters,
            PROFILE_CHANGES: self.profile_changes,
        }

    def events(self, records: Records) -> Changes:
        """Those at the known places, and those that name one of the ids, are old enough, and were not taken to be somebody else's:
        duplicates, refused ones, and such as nobody has applied yet."""
        changes: dict[int, tuple[bytes, bytes]] = {}
        doubtful: dict[int, bytes] = {}
        for number, (partition, record) in enumerate(records):
            if Origin(partition, record.offset) in self._hunted.origins:
                if not _bare(record.value):
                    changes[number] = (b"", erased_event(record.value))
            elif (key := self._doubtful(record.value)) is not None:
                doubtful[number] = key
        kept = self._kept(set(doubtful.values())) if doubtful else ()
        for number, key in doubtful.items():
            if key not in kept:
                changes[number] = (b"", erased_event(records[number][1].value))
        return changes

    def resolved(self, records: Records) -> Changes:
        changes = {}
        for number, (_, record) in enumerate(records):
            try:
                one = decode_resolved(record.value)
            except ValueError:
                continue
            theirs = one.origin in self._hunted.origins or one.profile_id in self._hunted.profiles
            if theirs and not is_erased(one.event):
                changes[number] = (record.key if one.profile_id else b"", resolved_placeholder(one))
        return changes

    def dead_letters(self, records: Records) -> Changes:
        changes = {}
        for number, (_, record) in enumerate(records):
            try:
                letter = decode_dead_letter(record.value)
            except ValueError:
                continue
            if letter.value is not None and self._is_theirs(letter, letter.value):
                changes[number] = (record.key, erased_letter(record.value))
        return changes

    def profile_changes(self, records: Records) -> Changes:
        changes = {}
        for number, (_, record) in enumerate(records):
            try:
                change = decode_change(record.value)
            except ValueError:
                continue
            if change.kind == "deleted" or (change.kind == "id_removed" and change.other is None):
                continue  # ours, of what is gone
            if change.profile not in self._hunted.profiles and change.other not in self._hunted.profiles:
                continue
            whole = change.profile in self._hunted.profiles  # all its ids, also those that were deleted from it before
            left = [] if whole else [one for one in change.ids if str(one) not in self._hunted.ids]
            if len(left) < len(change.ids) or change.cause.message_id:
                cause = change.cause._replace(message_id="", type="", name=None)
                changes[number] = (record.key, encode_change(change._replace(ids=left, cause=cause)))
        return changes

    def names(self, body: bytes) -> bool:
        """Whether an event that was refused names one of the ids, in whatever place."""
        return any(str(one) in self._hunted.ids for one in _claimed(body, self._rules))

    # ── Inside ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _doubtful(self, value: bytes) -> bytes | None:
        """The key of an event that may be theirs."""
        if not self._hunted.ids:
            return None
        if self._values and b"\\" not in value:
            lowered = value.lower()
            if not any(one in lowered for one in self._values):
                return None
        try:
            event = decode_event(value)
        except ValueError:
            return None
        if is_erased(event):
            return None
        at = min(event.timestamp, event.received_at) if event.refused is None else event.received_at
        theirs = any(at <= self._hunted.ids.get(str(one), -1) for one in self._named(event))
        return message_key(event.source, event.message_id) if theirs else None

    def _named(self, event: Event) -> Iterable[ExternalId]:
        if event.refused is None:
            try:
                found = self._extract(event)
            except ValueError:
                found = None
            if isinstance(found, Found):
                return found.ids
        ids = [*_claimed(event.body, self._rules)]
        for kind, given in (("user_id", event.user_id), ("anonymous_id", event.anonymous_id)):
            if given:
                ids.append(ExternalId(kind, self._rules.normalize(kind, given)))
        return ids

    def _is_theirs(self, letter: DeadLetter, value: bytes) -> bool:
        if letter.topic == EVENTS:
            return Origin(letter.partition, letter.offset) in self._hunted.origins
        try:
            one = decode_resolved(value)
        except ValueError:
            return False
        return one.origin in self._hunted.origins or one.profile_id in self._hunted.profiles


def _values(ids: Collection[str]) -> Sequence[bytes]:
    """What a record must hold to name one of the ids, in lower case; empty when every record has to be read."""
    values = [one.partition(":")[2].lower() for one in ids]
    plain = all(value.isascii() and "\\" not in value and '"' not in value for value in values)
    return [value.encode() for value in values] if plain and len(values) <= _FEW else []


def _bare(value: bytes) -> bool:
    try:
        return is_erased(decode_event(value))
    except ValueError:
        return not value


def _claimed(body: bytes, rules: Rules) -> list[ExternalId]:
    """Every text and number of a JSON body, as an id of each type that it could be."""
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError:
        return []
    found: list[ExternalId] = []
    stack = [given]
    while stack:
        one = stack.pop()
        if isinstance(one, dict):
            stack.extend(one.values())
        elif isinstance(one, list):
            stack.extend(one)
        elif isinstance(one, str | int) and not isinstance(one, bool):
            found += [ExternalId(kind, rules.normalize(kind, str(one))) for kind in rules.types]
    return found
