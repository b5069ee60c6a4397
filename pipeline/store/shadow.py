"""A scratch store in which recorded events are resolved by other rules, while the store in use goes on. It is a file that says how far
it is, so that whoever was stopped goes on there.

Of events that retention has removed the store in use still has the evidence: ids in the order in which they were mapped, and which
were seen together. That goes through the rules first; what those events contributed beside it stays with the ids.

Who is deleted meanwhile is taken out, with everybody whom the rules mix with them: what those did is not complete then, so they are
maimed, and nobody may be settled with them until all was resolved once more."""

import sqlite3
import time
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson
from sqlalchemy import Connection, TextClause, func, select, text

from pipeline.graph import Graph
from pipeline.identity import Rules
from pipeline.log import Batch, Record
from pipeline.parse import Work, nothing, parse
from pipeline.privacy.marks import mark as mark_of
from pipeline.profile import ACCOUNTS, message_key
from pipeline.recorded import Place, Recorded
from pipeline.store import accepted, barred, bulk, erasures, forget, schema, sightings, windows, withdrawn
from pipeline.store.accepted import Row
from pipeline.store.database import Database
from pipeline.store.graph import load, save
from pipeline.store.intake import applied_positions, apply
from pipeline.store.migrate import migrate
from pipeline.store.rules import stored_form
from pipeline.store.splits import family_of
from schemas.events import Event, ExternalId, Origin, encode_event
from schemas.topics import EVENTS

_PAGE: Final = 20_000
_EVIDENCE_PAGE: Final = 5_000  # rows in one transaction
_REMOVED: Final = 2_000  # events at a time
_FORM: Final = 2  # of these files: one of another form is not gone on with
_HOUR: Final = 3_600_000_000  # µs; no transaction lasts longer, and no clock is so wrong
_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    # Where each event was accepted, and its place here.
    """CREATE TABLE IF NOT EXISTS origins (partition INTEGER, "offset" INTEGER, place INTEGER, PRIMARY KEY (partition, "offset")) WITHOUT ROWID""",
    # Ids of whom not all is here; empty: of somebody who has none.
    "CREATE TABLE IF NOT EXISTS maimed (key TEXT PRIMARY KEY) WITHOUT ROWID",
    """CREATE TABLE IF NOT EXISTS evidence
       (seq INTEGER, source TEXT, message_id TEXT, type TEXT, at INTEGER, created_at INTEGER, a TEXT, b TEXT)""",
)
_EVIDENCE: Final = """
    SELECT seq, source, message_id, type, at, created_at, a, b FROM evidence WHERE (seq, source, message_id) > (?, ?, ?)
    ORDER BY seq, source, message_id LIMIT ?
"""
_IDS: Final = ("nodes.key", "violations.key", "moves.key", "links.node", "evidence.a", "evidence.b", "maimed.key")
_ALIVE: Final = "SELECT key FROM nodes WHERE profile IS NOT NULL AND key {}"
_MAIMED: Final = "SELECT key FROM maimed WHERE key {}"
_HEALED: Final = "DELETE FROM maimed WHERE key {} RETURNING key"
_TORN: Final = "DELETE FROM evidence WHERE {} {{}} RETURNING a, b"
_HERE: Final = 'SELECT * FROM events WHERE partition = 0 AND "offset" {}'
_PLACE: Final = 'DELETE FROM origins WHERE partition = ? AND "offset" = ? RETURNING place'
_OLD_NODES: Final = text("""
    SELECT nodes.key AS after, nodes.seq, nodes.source, nodes.message_id, 'identify' AS type, nodes.added_at AS at,
      CASE WHEN profiles.source = nodes.source AND profiles.message_id = nodes.message_id THEN profiles.created_at END AS created_at,
      nodes.key AS a, NULL AS b
    FROM nodes LEFT JOIN profiles ON profiles.id = nodes.home
    WHERE nodes.key > :after AND nodes.profile IS NOT NULL AND nodes.seq < :before ORDER BY nodes.key LIMIT :most
""")
_OLD_EDGES: Final = text("""
    SELECT a AS after, b AS after_b, seq, source, message_id, type, first_at AS at, NULL AS created_at, a, b FROM edges
    WHERE (a, b) > (:after, :after_b) AND seq < :before ORDER BY a, b LIMIT :most
""")
_APART: Final = text(
    "SELECT key, added_at, source, message_id, apart FROM nodes WHERE apart IS NOT NULL ORDER BY seq, key"
)
_EVENTS: Final = text(
    'SELECT key, node, "offset" FROM events WHERE partition = 0 AND "offset" > :after ORDER BY "offset" LIMIT :most'
)
_WATERMARK: Final = text("""
    SELECT (SELECT count(*) FROM tombstones), (SELECT coalesce(max(deleted_at), 0) FROM tombstones),
      (SELECT coalesce(max(at), 0) FROM splits), (SELECT coalesce(max(lifted_at), 0) FROM splits)
""")
_FORGET_STATE: Final = (
    "UPDATE nodes SET events = 0, first_seen = NULL, last_seen = NULL, last_source = '', last_message = ''",
    "UPDATE profiles SET events = 0, first_seen = 4611686018427387904, last_seen = 0, last_source = '', last_message = ''",
    "UPDATE edges SET count = 0",
)


def watermark(connection: Connection) -> list[int]:
    """Changes whenever people do something that resolved events do not tell of."""
    return list(connection.execute(_WATERMARK).one())


def came_apart(before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether somebody was taken apart, or that was lifted, between two watermarks. A deletion takes splits with it."""
    return any(now > was for was, now in zip(before[2:], after[2:], strict=True))


def any_maimed(connection: Connection, keys: Iterable[str]) -> bool:
    """Whether what one of these ids did is not complete in a scratch store."""
    return bool(bulk.select(connection, _MAIMED, sorted(keys)))


class _Gone(NamedTuple):
    """What the store in use says of deletions: the key that ids are hashed with, when each was deleted, by its hash, those whose requests
    are under way in clear, and where events stood on `events`."""

    key: bytes
    tombstones: Mapping[bytes, int]
    ids: Sequence[str]
    origins: Sequence[Origin]


class Shadow:
    """The scratch store of one set of rules. `heed` is called again and again, between transactions: it calls `forget` when somebody was
    deleted. Blocks."""

    def __init__(self, path: Path, rules: Rules, heed: Callable[[], None]) -> None:
        self.path, self.rules, self._heed = path, rules, heed
        self.database = Database(f"sqlite:///{path}", repeatable=True)
        migrate(self.database)
        for statement in _TABLES:
            self.database.run_sync(lambda connection: connection.exec_driver_sql(statement))  # noqa: B023 - called at once
        self.database.overwrite_deleted()  # while it is small: the first time, all of it is written anew

    def close(self) -> None:
        self.database.close()

    # ── How far it is ─────────────────────────────────────────────────────────────────────────────────────────────

    def is_begun(self, mark: Sequence[int]) -> bool:
        """Whether there is something to go on with: of these rules, and of people as they were left."""
        wanted = {
            "rules": stored_form(self.rules.config),
            "version": self.rules.version,
            "form": _FORM,
            "mark": list(mark),
        }
        return self.database.read_sync(lambda connection: all(_note(connection, *one) for one in wanted.items()))

    def places(self) -> dict[int, Place]:
        """How far every partition of `resolved` is taken in."""
        found = self.database.read_sync(lambda connection: _noted(connection, "places"))
        return {
            int(number): Place(offset, {int(one): mark for one, mark in marks.items()})
            for number, (offset, marks) in (found or {}).items()
        }

    def begin(self, live: Database, before: int) -> None:
        """Takes what the store in use knows beside the log: evidence from before a time (µs), who was deleted, who is kept apart."""
        begun = {"since": _now() - _HOUR, "mark": live.read_sync(watermark)}
        self.database.run_sync(lambda connection: _put(connection, begun))
        gone = self._deleted(live, 0)
        self.database.run_sync(lambda connection: _bar(connection, gone))
        self._apart(live)
        if before:
            self._evidence(live, before)
            self._resolve_evidence()
        told = {"rules": stored_form(self.rules.config), "version": self.rules.version, "form": _FORM, "places": {}}
        self.database.run_sync(lambda connection: _put(connection, told))

    # ── Events ────────────────────────────────────────────────────────────────────────────────────────────────────

    def take(self, live: Database, some: Sequence[Recorded], places: Mapping[int, Place]) -> None:
        """Resolves recorded events; `places` is how far they reach."""
        self._heed()
        gone = live.read_sync(lambda connection: erasures.erased_among(connection, (one.origin for one in some)))
        kept = [one for one in some if one.origin not in gone and not one.event.refused]
        told = {
            number: [place.offset, {str(n): mark for n, mark in place.marks.items()}]
            for number, place in places.items()
        }
        self.database.run_sync(lambda connection: self._take(connection, kept, told))

    def _take(self, connection: Connection, some: Sequence[Recorded], places: Mapping[int, Any]) -> None:
        if some:
            first = applied_positions(connection).get(0, 0)
            batch = [Record(b"", encode_event(one.event), one.stamp, first + n) for n, one in enumerate(some)]
            work = parse([Batch(EVENTS, 0, batch, batch[-1].offset + 1)], nothing, self.rules)
            gone = barred.nameless(connection, work)  # what they did stays with those who have it
            work = Work([one for one in work.events if one.origin not in gone], work.refusals, work.ends)
            seq = max(_noted(connection, "seq") or 0, some[0].stamp * 1000)
            apply(connection, work, {}, self.rules, seq=seq)
            connection.exec_driver_sql("DELETE FROM refusals")  # nobody asks for them here, and they would hold bodies
            origins = [(*one.origin, first + n) for n, one in enumerate(some)]
            connection.exec_driver_sql("INSERT OR REPLACE INTO origins VALUES (?, ?, ?)", origins)
            _put(connection, {"seq": seq + len(some)})
        _put(connection, {"places": {str(number): place for number, place in places.items()}})

    def misplaced(self, live: Database, after: int) -> tuple[list[str], int]:
        """Ids of people who have an event that hangs on another id in the store in use, among some events after a place of this store;
        and the place reached, the same once there are no more."""
        rows = self.database.read_sync(lambda one: one.execute(_EVENTS, {"after": after, "most": _PAGE}).all())
        known = live.read_sync(
            lambda one: {row.key: row.node for row in withdrawn.with_keys(one, [bytes(row.key) for row in rows])}
        )
        found = [row.node or known[bytes(row.key)] for row in rows if known.get(bytes(row.key), row.node) != row.node]
        return found, rows[-1].offset if rows else after

    # ── Who was deleted meanwhile ─────────────────────────────────────────────────────────────────────────────────

    @property
    def is_maimed(self) -> bool:
        """Whether somebody is left of whom not all is here."""
        return self.database.read_sync(lambda one: one.exec_driver_sql("SELECT 1 FROM maimed").first()) is not None

    def forget(self, live: Database, mark: Sequence[int], copy: sqlite3.Connection | None = None) -> bool:
        """Takes out whom the store in use has deleted, and whoever is mixed with them; from a copy of its nodes, too. `mark` is its
        watermark, of before. False when something of them may be left in the files: try again."""
        since = _now() - _HOUR
        gone = self._deleted(live, self.database.read_sync(lambda connection: int(_noted(connection, "since"))))
        known = self.database.read_sync(_bars)
        fresh = {one for one, at in gone.tombstones.items() if known.get(one) != at}
        told = {key: marked for key in gone.ids if (marked := mark_of(gone.key, key)) in fresh}
        ids = set(told)
        if fresh.difference(told.values()):  # nobody says any more whose they are
            ids |= self._named(gone.key, fresh, copy)
        if copy is not None:
            copy.executemany("DELETE FROM nodes WHERE key = ?", [(one,) for one in sorted(ids)])
            copy.commit()

        def work(connection: Connection) -> None:
            self._forget(connection, live, ids, _places(connection, gone.origins))
            _bar(connection, gone)
            _put(connection, {"mark": list(mark), "since": since})

        self.database.run_sync(work)
        return self.database.overwrite_deleted()

    def _deleted(self, live: Database, since: int) -> _Gone:
        """What was deleted from a time on (µs). Without one, only who: no event is here yet."""

        def read(connection: Connection) -> _Gone:
            tombstones, erased = schema.tombstones.c, schema.erased.c
            every = (
                select(tombstones.mark, func.max(tombstones.deleted_at))
                .where(tombstones.deleted_at >= since)
                .group_by(tombstones.mark)
            )
            places = select(erased.partition, erased.offset).where(erased.at >= since)
            return _Gone(
                erasures.known_key(connection) or b"",
                {bytes(marked): at for marked, at in connection.execute(every)},
                [key for one in erasures.under_way(connection) for key in (one.work or {}).get("ids", ())],
                [Origin(*row) for row in connection.execute(places)] if since else (),
            )

        return live.read_sync(read)

    def _named(self, key: bytes, wanted: Container[bytes], copy: sqlite3.Connection | None) -> set[str]:
        """Ids with one of these hashes, wherever one may stand: all of them are looked at."""

        def found(run: Callable[[str], Iterable[Any]], column: str) -> set[str]:
            rows = run(f"SELECT {column} FROM {column.partition('.')[0]} WHERE {column} IS NOT NULL")
            return {one for (one,) in rows if mark_of(key, one) in wanted}

        def read(connection: Connection) -> set[str]:
            return set[str]().union(*(found(connection.exec_driver_sql, column) for column in _IDS))

        return self.database.read_sync(read) | (set() if copy is None else found(copy.execute, "nodes.key"))

    def _forget(self, connection: Connection, live: Database, ids: Collection[str], places: Sequence[int]) -> None:
        events = [Row(bytes(row[0]), *row[1:]) for row in bulk.select(connection, _HERE, places)]
        family = family_of(connection, keys={*ids, *(row.node for row in events if row.node)}, lock=False)
        keys = sorted({*ids, *family.nodes})
        others = {
            key for column in ("a", "b") for row in bulk.select(connection, _TORN.format(column), keys) for key in row
        }
        maimed = set(_alive(live, {*keys, *others} - {None}))
        loose = [row for row in events if not row.node]
        withdrawn.remove(connection, loose)
        for start in range(0, len(keys), _REMOVED):
            some = keys[start : start + _REMOVED]
            while rows := accepted.delete(connection, some, _REMOVED):
                maimed |= _still_there(live, rows)
        maimed |= _still_there(live, loose)
        forget.take_out(connection, keys, sorted(family.profiles))
        bulk.select(connection, _HEALED, keys)
        if maimed:
            connection.exec_driver_sql("INSERT OR IGNORE INTO maimed VALUES (?)", [(key,) for key in sorted(maimed)])

    # ── Evidence ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _apart(self, live: Database) -> None:
        """Ids that a split holds are there from the start, each alone, so that its sides never meet."""
        rows = live.read_sync(lambda connection: connection.execute(_APART).all())
        graph = Graph()
        for row in rows:
            one = ExternalId(*row.key.split(":", 1))
            if self._is_id(one):
                at = row.added_at or 0
                event = _event(row.source, row.message_id, "identify", at, at)
                key = message_key(f"{row.source}\0{row.key}", row.message_id)
                accounts = self._is_account(one)
                graph.apply(event, key, () if accounts else [one], None, self.rules, [one] if accounts else ())
                node = graph.nodes[str(one)]
                node.apart = orjson.loads(row.apart)
                assert node.profile is not None, "it was just mapped"
                graph.profiles[node.profile].apart = list(node.apart)
        self.database.run_sync(lambda connection: save(connection, graph))

    def _evidence(self, live: Database, before: int) -> None:
        for statement, first in ((_OLD_NODES, {"after": ""}), (_OLD_EDGES, {"after": "", "after_b": ""})):
            after: dict[str, str] = first
            while rows := self._old(live, statement, after | {"before": before, "most": _PAGE}):
                self.database.run_sync(lambda connection: _keep(connection, rows))
                after = {name: getattr(rows[-1], name) for name in first}
        self.database.run_sync(
            lambda connection: connection.exec_driver_sql(
                "CREATE INDEX evidence_in_order ON evidence (seq, source, message_id)"
            )
        )

    def _old(self, live: Database, statement: TextClause, values: Mapping[str, Any]) -> Sequence[Any]:
        self._heed()  # before: what is read then is of nobody who is gone, or of somebody who is found to be the next time
        return live.read_sync(lambda connection: connection.execute(statement, values).all())

    def _resolve_evidence(self) -> None:
        after: tuple[int, str, str] = (-1, "", "")
        while True:
            self._heed()
            rows = self.database.read_sync(lambda connection: _some_evidence(connection, after))  # noqa: B023 - called at once
            if not rows:
                break
            some = list(self._groups(rows))
            self.database.run_sync(lambda connection: self._resolve(connection, some))  # noqa: B023 - called at once
            after = rows[-1][:3]
        for statement in (*_FORGET_STATE, "DELETE FROM evidence", "DROP INDEX evidence_in_order"):
            self.database.run_sync(lambda connection: connection.exec_driver_sql(statement))  # noqa: B023 - called at once

    def _groups(self, rows: Iterable[Any]) -> Iterator["_Seen"]:
        """Of each event the ids that it was seen with, in serial order. The event itself is gone."""
        for (seq, source, message, kind), group in groupby(rows, key=lambda row: (*row[:3], row.type)):
            parts = list(group)
            keys = dict.fromkeys(key for row in parts for key in (row.a, row.b) if key is not None)
            at = min(row.at or 0 for row in parts)
            created = next((row.created_at for row in parts if row.created_at is not None), at)
            ids = [ExternalId(*key.split(":", 1)) for key in keys]
            named = [self._normal(one) for one in ids if self._is_id(one)]
            yield _Seen(seq, _event(source, message, kind, at, created), named)

    def _resolve(self, connection: Connection, some: Sequence["_Seen"]) -> None:
        graph = load(connection, (str(one) for seen in some for one in seen.ids))
        windows.complete(connection, graph, self.rules.windowed)
        graph.seq = _noted(connection, "seq") or 0
        for seq, event, ids in some:
            graph.seq = max(graph.seq, seq - 1)
            kept, refused = self.rules.arrange(ids)
            people = [one for one in kept if not self._is_account(one)]
            accounts = [one for one in kept if self._is_account(one)]
            key = message_key(event.source, event.message_id)
            graph.apply(event, key, people, None, self.rules, accounts, refused)
        save(connection, graph)
        sightings.save(connection, graph)
        _put(connection, {"seq": graph.seq})

    def _is_id(self, one: ExternalId) -> bool:
        kind = self.rules.types.get(one.type)
        return kind is not None and kind.enabled

    def _is_account(self, one: ExternalId) -> bool:
        return self.rules.type(one.type).collection == ACCOUNTS

    def _normal(self, one: ExternalId) -> ExternalId:
        return ExternalId(one.type, self.rules.normalize(one.type, one.value))


class _Seen(NamedTuple):
    """Ids that were seen on one event that is gone, and when in the serial order."""

    seq: int
    event: Event
    ids: Sequence[ExternalId]


def _event(source: str, message: str, kind: str, at: int, received_at: int) -> Event:
    return Event(source, kind, message, None, None, at, None, max(at, received_at), "server", None, None, b"{}")


def _keep(connection: Connection, rows: Iterable[Any]) -> None:
    values = [(row.seq, row.source, row.message_id, row.type, row.at, row.created_at, row.a, row.b) for row in rows]
    connection.connection.cursor().executemany("INSERT INTO evidence VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)


def _some_evidence(connection: Connection, after: tuple[int, str, str]) -> Sequence[Any]:
    """Rows behind a place, all of each event."""
    most = _EVIDENCE_PAGE
    while True:
        rows = connection.exec_driver_sql(_EVIDENCE, (*after, most)).fetchall()
        whole = [row for row in rows if row[:3] != rows[-1][:3]]
        if len(rows) < most:
            return rows
        if whole:
            return whole
        most *= 2


# ── Who was deleted ───────────────────────────────────────────────────────────────────────────────────────────────


def _bar(connection: Connection, gone: _Gone) -> None:
    """Events of deleted people are no more. Those of others that name one of their ids are, and do not bring it back."""
    if gone.key:
        bulk.upsert(connection, schema.privacy_key, [(1, gone.key)])
    rows = [(marked, erasures.IDENTIFIER, at) for marked, at in sorted(gone.tombstones.items())]
    bulk.upsert(connection, schema.tombstones, rows)


def _bars(connection: Connection) -> dict[bytes, int]:
    table = schema.tombstones.c
    return {bytes(marked): at for marked, at in connection.execute(select(table.mark, table.deleted_at))}


def _places(connection: Connection, origins: Iterable[Origin]) -> list[int]:
    """Where these events stand here."""
    run = connection.connection.cursor().execute
    return [place for one in origins for (place,) in run(_PLACE, tuple(one)).fetchall()]


def _now() -> int:
    return time.time_ns() // 1_000


def _alive(live: Database, keys: Iterable[str]) -> list[str]:
    """Those that are somebody's."""
    return [key for (key,) in live.read_sync(lambda connection: bulk.select(connection, _ALIVE, sorted(keys)))]


def _still_there(live: Database, rows: Sequence[Row]) -> set[str]:
    """What events hang on in the store in use that were taken out here."""
    found = live.read_sync(lambda connection: withdrawn.with_keys(connection, [row.key for row in rows]))
    return {row.node for row in found}


# ── Notes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _noted(connection: Connection, name: str) -> Any:
    found = connection.exec_driver_sql("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
    return None if found is None else orjson.loads(found[0])


def _note(connection: Connection, name: str, wanted: Any) -> bool:
    return bool(_noted(connection, name) == wanted)


def _put(connection: Connection, notes: Mapping[str, Any]) -> None:
    for name, value in notes.items():
        connection.exec_driver_sql("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, orjson.dumps(value).decode()))
