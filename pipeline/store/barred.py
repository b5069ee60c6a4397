"""What may not pass: events of suppressed ids, and events from before their person was deleted. Nothing is kept of them but that they came."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import orjson
from sqlalchemy import Connection, text

from pipeline.graph import Graph
from pipeline.identity import Demoted, Rules
from pipeline.parse import Parsed, Refusal, Work
from pipeline.privacy.marks import mark
from pipeline.privacy.placeholder import erased
from pipeline.store import bulk, schema
from pipeline.store.erasures import IDENTIFIER, PERSON, key_of
from schemas.events import Event, ExternalId, Origin, encode_event
from schemas.reasons import Reason

DELETED_ID: Final = "Identifier deleted"

_ANY: Final = text("SELECT EXISTS (SELECT 1 FROM tombstones), EXISTS (SELECT 1 FROM suppressions)")
_TOMBSTONES: Final = "SELECT mark, kind, deleted_at FROM tombstones WHERE mark {}"
_SUPPRESSIONS: Final = "SELECT mark FROM suppressions WHERE mark {}"
_UNCLAIM: Final = "DELETE FROM nodes WHERE profile IS NULL AND key {} RETURNING key"
_ERASED: Final = text("""
    SELECT partition, "offset", profile FROM erased
    WHERE partition = :partition AND "offset" >= :first AND "offset" < :end AND profile <> ''
""")


@dataclass(slots=True)
class Barred:
    """A poll without what may not pass, which is among its refusals now, and where that stands."""

    work: Work
    places: list[Origin] = field(default_factory=list)


def bar(connection: Connection, work: Work, applied: Mapping[int, int], rules: Rules) -> Barred:
    """Takes out of a poll what may not pass. The ids' nodes are locked: whoever deletes them is through, or waits."""
    deleted, suppressed = connection.execute(_ANY).one()
    if not deleted and not suppressed:
        return Barred(work)
    fresh = [one for one in work.events if one.origin.offset >= applied[one.origin.partition] and not one.correction]
    unfit = {
        one.origin: list(claims(one.body, rules))
        for one in work.refusals
        if one.origin.offset >= applied[one.origin.partition]
    }
    named = {one for parsed in fresh for one in parsed.found.ids}.union(*unfit.values())
    marks = _Marks(connection, named, deleted=deleted, suppressed=suppressed)
    if not marks.touched:  # as with nearly every poll
        return Barred(work)
    return _parted(work, {one.origin for one in fresh}, unfit, marks)


def _parted(work: Work, fresh: set[Origin], unfit: Mapping[Origin, Sequence[ExternalId]], marks: "_Marks") -> Barred:
    made = Barred(work)
    events: list[Parsed] = []
    refusals: list[Refusal] = []
    for parsed in work.events:
        event, ids = parsed.event, parsed.found.ids
        if parsed.origin not in fresh or marks.touched.isdisjoint(ids):
            events.append(parsed)
            continue
        at = min(event.timestamp, event.received_at)
        code = marks.verdict(ids, at)
        if code is None:
            events.append(marks.without_deleted_ids(parsed, at))
            continue
        made.places.append(parsed.origin)
        refusals.append(Refusal(parsed.origin, event.source, "", code, event.received_at, b""))
    for refusal in work.refusals:
        code = marks.verdict(unfit.get(refusal.origin, ()), refusal.received_at)
        if code is not None:
            made.places.append(refusal.origin)
            refusal = refusal._replace(message_id="", code=code, body=b"")
        refusals.append(refusal)
    made.work = Work(events, refusals, work.ends)
    return made


def nameless(connection: Connection, work: Work) -> set[Origin]:
    """Where those events stand of which no id is left, since all were deleted."""
    deleted, _ = connection.execute(_ANY).one()
    if not deleted:
        return set()
    named = {one for parsed in work.events for one in parsed.found.ids}
    marks = _Marks(connection, named, deleted=True, suppressed=False)
    return {
        parsed.origin
        for parsed in work.events
        if not marks.touched.isdisjoint(parsed.found.ids)
        and not parsed.found.accounts
        and not marks.without_deleted_ids(parsed, min(parsed.event.timestamp, parsed.event.received_at)).found.ids
    }


def save(connection: Connection, barred: Barred) -> None:
    """Lists the records whose bytes are still to be erased."""
    now = time.time_ns() // 1000
    bulk.insert(connection, schema.erased, [(*place, "", "", now, 0) for place in barred.places])


def unclaim(connection: Connection, graph: Graph) -> None:
    """Nodes that were claimed, so that they could be locked, and were mapped to nobody go again."""
    if connection.dialect.name == "postgresql":
        bulk.select(connection, _UNCLAIM, sorted(key for key, node in graph.nodes.items() if node.profile is None))


def placeholders(
    connection: Connection, events: Iterable[Parsed], refusals: Iterable[Refusal]
) -> list[tuple[Origin, str, bytes]]:
    """Of records below the applied position those whose person was deleted before it was known that they were emitted: origin, the
    profile that they were emitted to, and what stands for them. Without them the books of destinations would lack an event."""
    spans: dict[int, list[int]] = {}
    known = {one.origin: one.event for one in events} | {one.origin: _event(one) for one in refusals}
    for partition, offset in known:
        spans.setdefault(partition, []).append(offset)
    found = []
    for partition, offsets in spans.items():
        wanted = {"partition": partition, "first": min(offsets), "end": max(offsets) + 1}
        for _, offset, profile in connection.execute(_ERASED, wanted):
            origin = Origin(partition, offset)
            if origin in known:
                found.append((origin, profile, encode_event(erased(known[origin]))))
    return found


def _event(refusal: Refusal) -> Event:
    at = refusal.received_at
    return Event(refusal.source, "track", "", None, None, at, None, at, "server", None, None, b"")


class _Marks:
    """What is known of the ids of a poll. `touched` are those that are suppressed or were deleted."""

    def __init__(self, connection: Connection, ids: Iterable[ExternalId], *, deleted: bool, suppressed: bool) -> None:
        key = key_of(connection)
        of = {mark(key, one): one for one in ids}
        held = bulk.select(connection, _SUPPRESSIONS, list(of), kind="bytea") if suppressed else ()
        gone = bulk.select(connection, _TOMBSTONES, list(of), kind="bytea") if deleted else ()
        self._suppressed = {of[bytes(one)] for (one,) in held}
        self._deleted = {(of[bytes(one)], kind): at for one, kind, at in gone}
        self.touched = self._suppressed | {one for one, _ in self._deleted}

    def verdict(self, ids: Sequence[ExternalId], at: int) -> str | None:
        """Why what came with these ids at a time does not pass."""
        if not self._suppressed.isdisjoint(ids):
            return Reason.SUPPRESSED
        if any(at <= self._deleted.get((one, PERSON), -1) for one in ids):
            return Reason.DELETED
        return None

    def without_deleted_ids(self, parsed: Parsed, at: int) -> Parsed:
        """An event from before one of its ids was deleted does not bring it back."""
        found = parsed.found
        gone = {one for one in found.ids if at <= self._deleted.get((one, IDENTIFIER), -1)}
        if not gone:
            return parsed
        refused = [*found.refused, *(Demoted(ExternalId(one.type, "*"), DELETED_ID) for one in sorted(gone))]
        return parsed._replace(found=found._replace(ids=[one for one in found.ids if one not in gone], refused=refused))


def claims(body: bytes, rules: Rules) -> Iterator[ExternalId]:
    """The ids that an unfit event seems to name. It need not even be JSON; then it names nobody that could be told."""
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError:
        return
    if not isinstance(given, dict):
        return
    context = given.get("context")
    places = [
        given.get("traits"),
        given.get("properties"),
        context.get("traits") if isinstance(context, dict) else None,
    ]
    values = [("user_id", given.get("userId")), ("anonymous_id", given.get("anonymousId"))]
    values += [("user_id", given.get("previousId"))]
    values += [("email", one.get("email")) for one in places if isinstance(one, dict)]
    for kind, value in values:
        if isinstance(value, str | int) and not isinstance(value, bool):
            yield ExternalId(kind, rules.normalize(kind, str(value)))
