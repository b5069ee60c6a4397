"""A scratch store in which recorded events are resolved by other rules, while the store in use goes on. It is a file that says how far
it is, so that whoever was stopped goes on there.

Of events that retention has removed the store in use still has the evidence: ids in the order in which they were mapped, and which
were seen together. That goes through the rules first; what those events contributed beside it stays with the ids."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson
from sqlalchemy import Connection, select, text

from pipeline.graph import Graph
from pipeline.identity import Rules
from pipeline.log import Batch, Record
from pipeline.parse import nothing, parse
from pipeline.profile import ACCOUNTS, message_key
from pipeline.recorded import Place, Recorded
from pipeline.store import bulk, erasures, schema, sightings, windows, withdrawn
from pipeline.store.database import Database
from pipeline.store.graph import load, save
from pipeline.store.intake import applied_positions, apply
from pipeline.store.migrate import migrate
from pipeline.store.rules import stored_form
from schemas.events import Event, ExternalId, encode_event
from schemas.topics import EVENTS

_PAGE: Final = 20_000
_GROUPS: Final = 2_000  # of evidence, in one transaction
_NOTES: Final = "CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL)"
_EVIDENCE: Final = """
    CREATE TABLE evidence (seq INTEGER, source TEXT, message_id TEXT, type TEXT, at INTEGER, created_at INTEGER, a TEXT, b TEXT)
"""
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
    SELECT (SELECT count(*) FROM tombstones), (SELECT coalesce(max(deleted_at), 0) FROM tombstones), (SELECT coalesce(max(at), 0) FROM suppressions),
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


class Shadow:
    """The scratch store of one set of rules. `check` raises when somebody has been deleted whom it may hold; it is asked again and again.
    Blocks."""

    def __init__(self, path: Path, rules: Rules, check: Callable[[], None]) -> None:
        self.path, self.rules, self._check = path, rules, check
        self.database = Database(f"sqlite:///{path}", repeatable=True)
        migrate(self.database)
        self.database.run_sync(lambda connection: connection.exec_driver_sql(_NOTES))

    def close(self) -> None:
        self.database.close()

    # ── How far it is ─────────────────────────────────────────────────────────────────────────────────────────────

    def is_begun(self, mark: Sequence[int]) -> bool:
        """Whether there is something to go on with: of these rules, and of people as they were left."""
        wanted = {"rules": stored_form(self.rules.config), "version": self.rules.version, "mark": list(mark)}
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
        mark = live.read_sync(watermark)
        self.database.run_sync(lambda connection: _copy_bars(live, connection))
        self._apart(live)
        if before:
            self._evidence(live, before)
            self._resolve_evidence()
        told = {"rules": stored_form(self.rules.config), "version": self.rules.version, "mark": mark, "places": {}}
        self.database.run_sync(lambda connection: _put(connection, told))

    # ── Events ────────────────────────────────────────────────────────────────────────────────────────────────────

    def take(self, live: Database, some: Sequence[Recorded], places: Mapping[int, Place]) -> None:
        """Resolves recorded events; `places` is how far they reach."""
        self._check()
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
            seq = max(_noted(connection, "seq") or 0, some[0].stamp * 1000)
            apply(connection, work, {}, self.rules, seq=seq)
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
        self.database.run_sync(lambda connection: connection.exec_driver_sql("DROP TABLE IF EXISTS evidence"))
        self.database.run_sync(lambda connection: connection.exec_driver_sql(_EVIDENCE))
        for statement, first in ((_OLD_NODES, {"after": ""}), (_OLD_EDGES, {"after": "", "after_b": ""})):
            after: dict[str, str] = first
            while rows := live.read_sync(
                lambda connection: connection.execute(statement, after | {"before": before, "most": _PAGE}).all()  # noqa: B023 - called at once
            ):
                self._check()
                self.database.run_sync(lambda connection: _keep(connection, rows))
                after = {name: getattr(rows[-1], name) for name in first}
        self.database.run_sync(
            lambda connection: connection.exec_driver_sql(
                "CREATE INDEX evidence_in_order ON evidence (seq, source, message_id)"
            )
        )

    def _resolve_evidence(self) -> None:
        some: list[_Seen] = []
        with self.database.engine.connect() as reading:
            for one in self._groups(reading):
                some.append(one)
                if len(some) == _GROUPS:
                    self._check()
                    self.database.run_sync(lambda connection: self._resolve(connection, some))  # noqa: B023 - called at once
                    some = []
        self.database.run_sync(lambda connection: self._resolve(connection, some))
        for statement in _FORGET_STATE:
            self.database.run_sync(lambda connection: connection.exec_driver_sql(statement))  # noqa: B023 - called at once

    def _groups(self, reading: Connection) -> Iterator["_Seen"]:
        """Of each event the ids that it was seen with, in serial order. The event itself is gone."""
        rows = reading.exec_driver_sql("SELECT * FROM evidence ORDER BY seq, source, message_id")
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


def _copy_bars(live: Database, connection: Connection) -> None:
    """Who was deleted or suppressed: what is recorded of them does not pass here either."""
    for table in (schema.tombstones, schema.suppressions, schema.privacy_key):
        rows = live.read_sync(lambda one: [tuple(row) for row in one.execute(select(table))])  # noqa: B023 - called at once
        bulk.upsert(connection, table, rows)


# ── Notes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _noted(connection: Connection, name: str) -> Any:
    found = connection.exec_driver_sql("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
    return None if found is None else orjson.loads(found[0])


def _note(connection: Connection, name: str, wanted: Any) -> bool:
    return bool(_noted(connection, name) == wanted)


def _put(connection: Connection, notes: Mapping[str, Any]) -> None:
    for name, value in notes.items():
        connection.exec_driver_sql("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, orjson.dumps(value).decode()))
