"""One batch on its way into the file.

A batch is one transaction, the changes of the schema included, and `_loaded` lists the message ids that went in with it:
whatever is repeated, whoever dies, each message is there once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import structlog

from destinations.contract import RawEvent
from destinations.warehouse.arrow import array_of, times_of
from destinations.warehouse.duckdb.file import KINDS, LOADED, SQL_TYPES, File, Refused, literal, quoted
from destinations.warehouse.duckdb.settings import DuckDBSettings
from destinations.warehouse.inference import Type
from destinations.warehouse.latest import Clock, decode_clocks, encode_clocks, fold
from destinations.warehouse.naming import SYSTEM_TABLES, schema_name
from destinations.warehouse.profiles import OWNER, TRAITS, TRAITS_FIXED, Profiles, TraitsRow, rows_of
from destinations.warehouse.rows import OVERFLOW, TIME_COLUMNS, Rows, build
from destinations.warehouse.tables import Stray, Table, assemble, column_of, order_of
from schemas.changes import ProfileChange

log = structlog.get_logger()

_TIME: Final = "TIMESTAMP"
_ENTITY_COLUMNS: Final = {"id": "VARCHAR", "profile_id": "VARCHAR", "received_at": _TIME, "uuid_ts": _TIME}
_HIDDEN: Final = {"_key": "UBIGINT", "_clock": "VARCHAR"}
_HASH: Final = "md5_number_lower"  # of an id: comparing eight bytes spares reading every id of a large table
# Must give what `inference` gives for the same values, so that batches can be cut anywhere; a test compares them.
WIDENINGS: Final[Mapping[tuple[str, str], str]] = {
    ("bigint", "double"): "CAST({0} AS DOUBLE)",
    ("boolean", "text"): "CAST({0} AS VARCHAR)",
    ("bigint", "text"): "CAST({0} AS VARCHAR)",
    ("double", "text"): "CASE WHEN {0} = trunc({0}) AND abs({0}) < 1e15 THEN CAST(CAST({0} AS BIGINT) AS VARCHAR)"
    " ELSE CAST({0} AS VARCHAR) END",
    ("timestamp", "text"): "strftime({0}, '%Y-%m-%dT%H:%M:%S.%fZ')",
}


@dataclass(frozen=True, slots=True)
class Load:
    """One batch on its way into the open file, within a transaction."""

    file: File
    settings: DuckDBSettings
    micros: int  # now, in Unix microseconds: uuid_ts

    def run(self, events: Sequence[RawEvent]) -> dict[int, str]:
        """Loads the events that are not there yet. Returns those that cannot be rows, by index, with the reason."""
        schemas = {source: self._schema(source) for source in dict.fromkeys(map(_source_of, events))}
        fresh = self._unseen(events, schemas)
        built = build([events[at] for at in fresh])
        tracks_stray: dict[str, Stray] = {}
        for (source, name), rows in sorted(built.tables.items(), key=lambda item: item[1].first):
            if rows.event is not None and not self._has_room(schemas[source], name):
                stray = tracks_stray.setdefault(source, {})
                stray |= {index: {"properties": events[fresh[index]].get("properties")} for index in order_of(rows)}
                continue
            if rows.event is not None:  # claims its place among the tables
                self._fill(schemas[source], name, rows, {})
        for (source, name), rows in built.tables.items():
            if rows.event is None and rows.entity is None:
                self._fill(schemas[source], name, rows, tracks_stray.get(source, {}) if name == "tracks" else {})
            elif rows.entity is not None:
                self._upsert(schemas[source], name, rows)
        loaded = [at for row, at in enumerate(fresh) if row not in built.rejected]
        self._note(events, loaded, schemas)
        if self.settings.profiles_schema is not None:
            profiles = self._profiles(self.settings.profiles_schema)
            self._fill_traits(profiles, profiles.identified([events[at] for at in loaded]))
        return {fresh[row]: reason for row, reason in built.rejected.items()}

    def hear(self, changes: Sequence[ProfileChange], schema: str) -> None:
        """Takes in the changes of who is who that are not there yet."""
        profiles = self._profiles(schema)
        heard = [{"source": OWNER, "messageId": one.id} for one in changes]
        fresh = self._unseen(heard, {OWNER: schema})
        self._fill_traits(profiles, profiles.hear([changes[at] for at in fresh]))
        self._note(heard, fresh, {OWNER: schema})

    def _profiles(self, schema: str) -> Profiles:
        if self.file.owners.get(schema, OWNER) != OWNER:
            raise Refused(f"schema {schema} is a source's; name another under settings.profiles", 60.0)
        self._own(schema, OWNER)
        return Profiles(self.file, schema, self.micros)

    def _fill_traits(self, profiles: Profiles, changes: Sequence[TraitsRow]) -> None:
        """Adds to `profile_traits_updates`, in order."""
        if not changes:
            return
        rows, schema, first = rows_of(changes), profiles.schema, profiles.next_seq()
        times, stray = _times(rows, {})
        table = self._assembled(schema, TRAITS, rows, TRAITS_FIXED, stray)
        arrays = {column: array_of("text", values) for column, values in table.fixed.items()}
        arrays |= {column: times[column] for column in ("timestamp", "received_at")}
        arrays |= {column: array_of(_kind(one.type), one.values) for column, one in table.columns.items()}
        arrays["seq"] = array_of("bigint", [first + at for at in table.order])
        self._insert(schema, TRAITS, arrays)

    # The schema of a source, and the ids that it has

    def _schema(self, source: str) -> str:
        """The schema of a source, created when it is new. Two sources never share one: the later gets a suffix."""
        name = schema_name(source)
        if self.file.owners.get(name, source) != source:
            name = f"{name}_{sha256(source.encode()).hexdigest()[:8]}"
        self._own(name, source)
        return name

    def _own(self, name: str, owner: str) -> None:
        """Creates a schema when it is new, with the list of what is loaded into it."""
        if (name, LOADED) not in self.file.tables:
            table = f"{quoted(name)}.{quoted(LOADED)}"
            self.file.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(name)}")
            self.file.execute(f"CREATE TABLE {table} (_key UBIGINT NOT NULL, id VARCHAR NOT NULL)")
            self.file.execute(f"COMMENT ON TABLE {table} IS {literal(owner)}")
            self.file.tables[name, LOADED] = {}
            self.file.owners[name] = owner

    def _unseen(self, events: Sequence[RawEvent], schemas: Mapping[str, str]) -> list[int]:
        """Indexes of the events whose message ids are new, each once."""
        first: dict[str, dict[Any, int]] = {}
        for at, event in enumerate(events):
            first.setdefault(_source_of(event), {}).setdefault(event.get("messageId"), at)
        unseen: list[int] = []
        for source, ids in first.items():
            texts = [one for one in ids if isinstance(one, str)]
            with self.file.given("_ids", {"id": array_of("text", texts)}):
                known = self.file.execute(
                    f"SELECT id FROM {quoted(schemas[source])}.{quoted(LOADED)}"
                    f" SEMI JOIN (SELECT {_HASH}(id) AS _key FROM _ids) USING (_key)"
                )
            for (one,) in known:
                ids.pop(one, None)
            unseen += ids.values()
        return sorted(unseen)

    def _note(self, events: Sequence[RawEvent], loaded: Sequence[int], schemas: Mapping[str, str]) -> None:
        """Lists the message ids that this transaction brings in."""
        ids: dict[str, list[str]] = {}
        for at in loaded:
            ids.setdefault(_source_of(events[at]), []).append(events[at]["messageId"])
        for source, texts in ids.items():
            with self.file.given("_ids", {"id": array_of("text", texts)}):
                self.file.execute(
                    f"INSERT INTO {quoted(schemas[source])}.{quoted(LOADED)} SELECT {_HASH}(id), id FROM _ids"
                )

    # Tables of events

    def _has_room(self, schema: str, table: str) -> bool:
        if (schema, table) in self.file.tables:
            return True
        taken = sum(1 for where, name in self.file.tables if where == schema and name not in _NOT_EVENTS)
        return taken < self.settings.max_tables

    def _fill(self, schema: str, name: str, rows: Rows, stray: Stray) -> None:
        """Inserts rows of events."""
        times, stray = _times(rows, stray)
        fixed = dict.fromkeys(rows.fixed, "VARCHAR") | dict.fromkeys((*TIME_COLUMNS, "uuid_ts"), _TIME)
        table = self._assembled(schema, name, rows, fixed, stray)
        arrays = {column: array_of("text", values) for column, values in table.fixed.items()} | times
        arrays |= {column: array_of(_kind(one.type), one.values) for column, one in table.columns.items()}
        self._insert(schema, name, arrays)

    def _insert(self, schema: str, name: str, arrays: Mapping[str, Any]) -> None:
        into = ", ".join(map(quoted, (*arrays, "uuid_ts")))
        chosen = ", ".join(map(quoted, arrays))
        with self.file.given("_rows", arrays):
            self.file.execute(
                f"INSERT INTO {quoted(schema)}.{quoted(name)} ({into})"
                f" SELECT {chosen}, make_timestamp({self.micros}) FROM _rows"
            )

    def _assembled(self, schema: str, name: str, rows: Rows, fixed: Mapping[str, str], stray: Stray) -> Table:
        """Settles the columns and makes the table ready for them."""
        known = self.file.tables.get((schema, name), {})
        where = f"{quoted(schema)}.{quoted(name)}"

        def exact(column: str) -> bool:
            bigint = quoted(column)
            lost = f"CAST(CAST({bigint} AS DOUBLE) AS HUGEINT) <> CAST({bigint} AS HUGEINT)"
            return not self.file.execute(f"SELECT 1 FROM {where} WHERE {lost} LIMIT 1")

        made = sum(1 for column in known if column not in fixed and column not in _HIDDEN and column != OVERFLOW)
        table = assemble(rows, known, exact, max(self.settings.max_columns - made, 0), stray)
        if (schema, name) not in self.file.tables:
            self._create(schema, name, fixed, table, rows.event)
        else:
            self._alter(schema, name, table)
        for column, _ in table.added:
            if column in table.odd:
                comment = literal(table.odd[column])
                self.file.execute(f"COMMENT ON COLUMN {where}.{quoted(column)} IS {comment}")
        return table

    def _create(self, schema: str, name: str, fixed: Mapping[str, str], table: Table, event: str | None) -> None:
        columns = dict(fixed) | {column: SQL_TYPES[kind] for column, kind in table.added}
        where = f"{quoted(schema)}.{quoted(name)}"
        lines = ", ".join(f"{quoted(column)} {kind}" for column, kind in columns.items())
        self.file.execute(f"CREATE TABLE {where} ({lines})")
        if event is not None:
            self.file.execute(f"COMMENT ON TABLE {where} IS {literal(event)}")
        self.file.tables[schema, name] = {column: KINDS.get(kind, "text") for column, kind in columns.items()}
        log.info("warehouse table created", schema=schema, table=name, columns=len(columns))

    def _alter(self, schema: str, name: str, table: Table) -> None:
        known = self.file.tables[schema, name]
        where = f"{quoted(schema)}.{quoted(name)}"
        for column, steps in table.widened:
            here = expression = quoted(column)
            kind = known[column]
            for step in steps:
                expression = WIDENINGS[kind, step].format(f"({expression})")
                kind = step
            self.file.execute(f"ALTER TABLE {where} ALTER {here} TYPE {SQL_TYPES[kind]} USING {expression}")
            log.info("warehouse column widened", schema=schema, table=name, column=column, type=kind)
            known[column] = kind
        for column, kind in table.added:
            self.file.execute(f"ALTER TABLE {where} ADD COLUMN {quoted(column)} {SQL_TYPES[kind]}")
            known[column] = kind

    # Latest states

    def _upsert(self, schema: str, name: str, rows: Rows) -> None:
        """Brings users or accounts up to date, column by column."""
        assert rows.entity is not None
        times, stray = _times(rows, {})
        table = self._assembled(schema, name, rows, _ENTITY_COLUMNS | _HIDDEN, stray)
        entities: Sequence[str] = [str(one) for one in table.fixed[rows.entity]]
        supplied = self._supplied(rows, table)
        stamps = [array.cast("int64").to_pylist() for array in (times["timestamp"], times["received_at"])]
        clocks: list[Clock] = list(zip(*stamps, map(str, table.fixed["id"]), strict=True))
        where = f"{quoted(schema)}.{quoted(name)}"
        with self.file.given("_ids", {"id": array_of("text", list(dict.fromkeys(entities)))}):
            states = self.file.execute(
                f"SELECT id, _clock FROM {where} SEMI JOIN (SELECT {_HASH}(id) AS _key FROM _ids) USING (_key)"
            )
        known = {entity: decode_clocks(clock) for entity, clock in states}
        changes = fold(zip(entities, clocks, supplied, strict=True), known)
        if not changes:
            return
        sources: dict[str, Any] = {
            "profile_id": array_of("text", table.fixed["profile_id"]),
            "received_at": times["received_at"],
        }
        present = self.file.tables[schema, name]
        nulls = {column for columns in set(supplied) for column in columns if column in present} - {*sources, OVERFLOW}
        sources |= {column: array_of(present[column], [None] * len(entities)) for column in sorted(nulls)}
        sources |= {column: array_of(_kind(one.type), one.values) for column, one in table.columns.items()}
        staged = {
            "id": array_of("text", [one.entity for one in changes]),
            "_clock": array_of("text", [encode_clocks(one.clocks) for one in changes]),
        }
        flags: dict[str, str] = {}
        for number, (column, array) in enumerate(sources.items()):
            import pyarrow as pa

            winners = [one.rows.get(column) for one in changes]
            staged[column] = array.take(pa.array(winners, pa.int64()))
            if None in winners:
                flags[column] = f"_keep_{number}"
                staged[flags[column]] = array_of("boolean", [winner is None for winner in winners])
        self._replace(schema, name, where, staged, list(sources), flags)

    def _supplied(self, rows: Rows, table: Table) -> list[tuple[str, ...]]:
        """The columns that each row supplies, nulls included. What went to the overflow counts as that column."""
        supplied: list[tuple[str, ...]] = []
        ignored = {*rows.fixed, *TIME_COLUMNS, OVERFLOW}
        overflow = table.columns.get(OVERFLOW)
        for chunk in rows.chunks:
            columns = ("profile_id", "received_at", *(one for one in chunk.columns if one not in ignored))
            supplied += [columns] * len(chunk.order)
        if overflow is None:
            return supplied
        return [
            columns if value is None else (*columns, OVERFLOW)
            for columns, value in zip(supplied, overflow.values, strict=True)
        ]

    def _replace(
        self,
        schema: str,
        name: str,
        where: str,
        staged: Mapping[str, Any],
        changed: Sequence[str],
        flags: Mapping[str, str],
    ) -> None:
        """Puts new rows in the place of old ones, keeping the old values that `flags` tell to keep."""
        kept = [one for one in self.file.tables[schema, name] if one not in (*_HIDDEN, "id", "uuid_ts", *changed)]
        chosen = ['s."id"', "make_timestamp(" + str(self.micros) + ")", f"{_HASH}(s.id)", "s._clock"]
        chosen += [
            f"CASE WHEN s.{quoted(flags[one])} THEN o.{quoted(one)} ELSE s.{quoted(one)} END"
            if one in flags
            else f"s.{quoted(one)}"
            for one in changed
        ]
        chosen += [f"o.{quoted(one)}" for one in kept]
        into = ", ".join(map(quoted, ("id", "uuid_ts", "_key", "_clock", *changed, *kept)))
        with self.file.given("_rows", staged):
            self.file.execute(
                f"CREATE OR REPLACE TEMP TABLE _old AS SELECT * FROM {where}"
                f" SEMI JOIN (SELECT {_HASH}(id) AS _key FROM _rows) USING (_key)"
            )
            self.file.execute(
                f"DELETE FROM {where} WHERE _key IN (SELECT {_HASH}(id) FROM _rows) AND id IN (SELECT id FROM _rows)"
            )
            self.file.execute(
                f"INSERT INTO {where} ({into}) SELECT {', '.join(chosen)} FROM _rows s LEFT JOIN _old o ON s.id = o.id"
            )
            self.file.execute("DROP TABLE temp._old")


_NOT_EVENTS: Final = SYSTEM_TABLES | {LOADED}


def _source_of(event: RawEvent) -> str:
    return event.get("source") or "events"


def _kind(kind: Type | None) -> Type:
    assert kind is not None
    return kind


def _times(rows: Rows, stray: Stray) -> tuple[dict[str, Any], Stray]:
    """The time columns as arrays. A client's timestamp that is none goes to the overflow."""
    arrays: dict[str, Any] = {}
    stray = dict(stray)
    order = order_of(rows)
    for column in TIME_COLUMNS:
        arrays[column], odd = times_of(column_of(rows, column))
        if odd and column != "original_timestamp":
            raise ValueError(f"{column} is not an ISO 8601 timestamp")
        for row, value in odd.items():
            stray[order[row]] = stray.get(order[row], {}) | {column: value}
    return arrays, stray
