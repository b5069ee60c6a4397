"""The warehouse in one DuckDB file: a schema per source, a table per call type, one more per event name.

A batch is one transaction, the changes of the schema included, and `_loaded` lists the message ids that went in with it:
whatever is repeated, whoever dies, each message is there once. DuckDB lets one process at a time have the file, and people
want to look into it; so it is opened for work and closed when there is none.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import structlog
from pydantic import Field

from destinations.contract import (
    DELIVERED,
    Action,
    Definition,
    Delivered,
    Env,
    Hear,
    Outcome,
    Person,
    RawEvent,
    Rejected,
    Retry,
    Row,
    Settings,
)
from destinations.warehouse.arrow import array_of, times_of
from destinations.warehouse.inference import Type
from destinations.warehouse.latest import Clock, decode_clocks, encode_clocks, fold
from destinations.warehouse.naming import SYSTEM_TABLES, schema_name
from destinations.warehouse.profiles import DEFAULT_SCHEMA, OWNER, TRAITS, TRAITS_FIXED, Profiles, TraitsRow, rows_of
from destinations.warehouse.rows import OVERFLOW, TIME_COLUMNS, Rows, build
from destinations.warehouse.tables import Stray, Table, assemble, column_of, order_of
from schemas.changes import ProfileChange
from schemas.errors import Unavailable
from schemas.events import TYPES

log = structlog.get_logger()
T = TypeVar("T")

IDLE: Final = 0.1  # seconds without work after which the file is closed: a trickle of events must not lock people out
HOLD: Final = 5.0  # seconds after which the file is closed between two batches, however busy
LOADED: Final = "_loaded"
_SQL_TYPES: Final[Mapping[Type, str]] = {
    "boolean": "BOOLEAN",
    "bigint": "BIGINT",
    "double": "DOUBLE",
    "timestamp": "TIMESTAMP",
    "text": "VARCHAR",
}
_TYPES: Final[Mapping[str, Type]] = {sql: kind for kind, sql in _SQL_TYPES.items()}
_TIME: Final = "TIMESTAMP"
_ENTITY_COLUMNS: Final = {"id": "VARCHAR", "profile_id": "VARCHAR", "received_at": _TIME, "uuid_ts": _TIME}
_HIDDEN: Final = {"_key": "UBIGINT", "_clock": "VARCHAR"}
_HASH: Final = "md5_number_lower"  # of an id: comparing eight bytes spares reading every id of a large table
# Must give what `inference` gives for the same values, so that batches can be cut anywhere; a test compares them.
_WIDENINGS: Final[Mapping[tuple[str, str], str]] = {
    ("bigint", "double"): "CAST({0} AS DOUBLE)",
    ("boolean", "text"): "CAST({0} AS VARCHAR)",
    ("bigint", "text"): "CAST({0} AS VARCHAR)",
    ("double", "text"): "CASE WHEN {0} = trunc({0}) AND abs({0}) < 1e15 THEN CAST(CAST({0} AS BIGINT) AS VARCHAR)"
    " ELSE CAST({0} AS VARCHAR) END",
    ("timestamp", "text"): "strftime({0}, '%Y-%m-%dT%H:%M:%S.%fZ')",
}


class DuckDBSettings(Settings):
    """Where the warehouse is, and what it may use."""

    path: str = Field("warehouse.duckdb", min_length=1, description="The file; relative to the data folder.")
    memory_mb: int = Field(512, ge=64, description="Memory that DuckDB may use, in MiB.")
    max_tables: int = Field(
        1_000, ge=1, description="Most event tables of one source. Further events are kept in tracks, as JSON."
    )
    max_columns: int = Field(
        1_000, ge=1, description="Most columns made from properties in one table. Further ones are kept as JSON."
    )
    profiles: bool | Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,62}$")] = Field(
        False, description="Tables of who is who: true for a schema called profiles, or the name of another."
    )

    @property
    def profiles_schema(self) -> str | None:
        """The schema of the tables of who is who; None: they are not wanted."""
        return (DEFAULT_SCHEMA if self.profiles is True else self.profiles) or None

    def faults(self, sources: Collection[str]) -> Sequence[tuple[str, str]]:
        """Tables of who is who would overwrite those of a source in the same schema."""
        taken = [one for one in sources if schema_name(one) == self.profiles_schema]
        return [("profiles", f"is the schema of source {one} too; name another") for one in taken]


class _Refused(Exception):
    """The file cannot be used now. `after` is in seconds."""

    def __init__(self, reason: str, after: float) -> None:
        super().__init__(reason)
        self.after = after


# ── The file ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _File:
    """The open file and what its schemas look like. Used by one thread at a time."""

    con: Any
    opened: float
    tables: dict[tuple[str, str], dict[str, Type]]
    owners: dict[str, str]  # source of each schema

    def execute(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self.con.execute(sql, values or None).fetchall()
        return rows

    @contextmanager
    def given(self, name: str, columns: Mapping[str, Any]) -> Iterator[None]:
        """Lets statements read Arrow arrays as a table called `name`."""
        import pyarrow as pa

        self.con.register(name, pa.table(dict(columns)))
        try:
            yield
        finally:
            self.con.unregister(name)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self.con.begin()
        yield
        self.con.commit()


def _open(path: Path, memory_mb: int, now: float) -> _File:
    """Opens or creates the file. Raises _Refused with a reason for people."""
    import duckdb

    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{memory_mb}MiB",
        "threads": 1,  # a batch is too small to share out; a second thread costs more than it gives
        "preserve_insertion_order": False,
        "checkpoint_threshold": "128MiB",  # each checkpoint rewrites the last rows of every table; closing makes one too
        "autoinstall_known_extensions": False,  # nothing is fetched behind the operator's back
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        con = duckdb.connect(str(path), config=config)
    except (duckdb.Error, OSError) as error:
        raise _refusal(error) from error
    try:
        return _File(con, now, _tables(con), _owners(con))
    except duckdb.Error:
        con.close()
        raise


def _refusal(error: Exception) -> _Refused:
    """Names what keeps the file from being used, by the words of DuckDB and the system."""
    text = str(error).lower()
    if "lock" in text or "different configuration" in text or "already attached" in text:
        return _Refused("warehouse file is locked by another program", 2.0)
    if "not a valid duckdb" in text or "corrupt" in text or "checksum" in text:
        return _Refused("warehouse file is not a sound DuckDB database; restore it or move it away", 60.0)
    if "newer version" in text or "version number" in text:
        return _Refused("warehouse file was written by another version of DuckDB", 60.0)
    if any(words in text for words in ("no space", "disk quota", "disk full", "file too large")):
        return _Refused("the disk of the warehouse file is full", 30.0)
    if isinstance(error, PermissionError) or "permission denied" in text or "read-only" in text:
        return _Refused("warehouse file cannot be written: permission denied", 30.0)
    if isinstance(error, OSError) or "cannot open file" in text or "is a directory" in text:
        return _Refused("warehouse file cannot be opened", 30.0)
    return _Refused(f"warehouse failed: {type(error).__name__}", 10.0)


def _tables(con: Any) -> dict[tuple[str, str], dict[str, Type]]:
    rows = con.execute(
        "SELECT schema_name, table_name, column_name, data_type FROM duckdb_columns()"
        " SEMI JOIN (SELECT table_oid FROM duckdb_tables() WHERE database_name = current_database()) USING (table_oid)"
        " WHERE database_name = current_database() AND NOT internal ORDER BY table_oid, column_index"
    ).fetchall()
    tables: dict[tuple[str, str], dict[str, Type]] = {}
    for schema, table, column, kind in rows:
        tables.setdefault((schema, table), {})[column] = _TYPES.get(kind, "text")
    return tables


def _owners(con: Any) -> dict[str, str]:
    rows = con.execute(
        "SELECT schema_name, comment FROM duckdb_tables()"
        " WHERE database_name = current_database() AND table_name = ? AND comment IS NOT NULL",
        [LOADED],
    ).fetchall()
    return dict(rows)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


# ── Loading ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Load:
    """One batch on its way into the open file, within a transaction."""

    file: _File
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
            raise _Refused(f"schema {schema} is a source's; name another under settings.profiles", 60.0)
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
            table = f"{_quoted(name)}.{_quoted(LOADED)}"
            self.file.execute(f"CREATE SCHEMA IF NOT EXISTS {_quoted(name)}")
            self.file.execute(f"CREATE TABLE {table} (_key UBIGINT NOT NULL, id VARCHAR NOT NULL)")
            self.file.execute(f"COMMENT ON TABLE {table} IS {_literal(owner)}")
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
                    f"SELECT id FROM {_quoted(schemas[source])}.{_quoted(LOADED)}"
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
                    f"INSERT INTO {_quoted(schemas[source])}.{_quoted(LOADED)} SELECT {_HASH}(id), id FROM _ids"
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
        into = ", ".join(map(_quoted, (*arrays, "uuid_ts")))
        chosen = ", ".join(map(_quoted, arrays))
        with self.file.given("_rows", arrays):
            self.file.execute(
                f"INSERT INTO {_quoted(schema)}.{_quoted(name)} ({into})"
                f" SELECT {chosen}, make_timestamp({self.micros}) FROM _rows"
            )

    def _assembled(self, schema: str, name: str, rows: Rows, fixed: Mapping[str, str], stray: Stray) -> Table:
        """Settles the columns and makes the table ready for them."""
        known = self.file.tables.get((schema, name), {})
        where = f"{_quoted(schema)}.{_quoted(name)}"

        def exact(column: str) -> bool:
            bigint = _quoted(column)
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
                comment = _literal(table.odd[column])
                self.file.execute(f"COMMENT ON COLUMN {where}.{_quoted(column)} IS {comment}")
        return table

    def _create(self, schema: str, name: str, fixed: Mapping[str, str], table: Table, event: str | None) -> None:
        columns = dict(fixed) | {column: _SQL_TYPES[kind] for column, kind in table.added}
        where = f"{_quoted(schema)}.{_quoted(name)}"
        lines = ", ".join(f"{_quoted(column)} {kind}" for column, kind in columns.items())
        self.file.execute(f"CREATE TABLE {where} ({lines})")
        if event is not None:
            self.file.execute(f"COMMENT ON TABLE {where} IS {_literal(event)}")
        self.file.tables[schema, name] = {column: _TYPES.get(kind, "text") for column, kind in columns.items()}
        log.info("warehouse table created", schema=schema, table=name, columns=len(columns))

    def _alter(self, schema: str, name: str, table: Table) -> None:
        known = self.file.tables[schema, name]
        where = f"{_quoted(schema)}.{_quoted(name)}"
        for column, steps in table.widened:
            quoted, expression, kind = _quoted(column), _quoted(column), known[column]
            for step in steps:
                expression = _WIDENINGS[kind, step].format(f"({expression})")
                kind = step
            self.file.execute(f"ALTER TABLE {where} ALTER {quoted} TYPE {_SQL_TYPES[kind]} USING {expression}")
            log.info("warehouse column widened", schema=schema, table=name, column=column, type=kind)
            known[column] = kind
        for column, kind in table.added:
            self.file.execute(f"ALTER TABLE {where} ADD COLUMN {_quoted(column)} {_SQL_TYPES[kind]}")
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
        where = f"{_quoted(schema)}.{_quoted(name)}"
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
            f"CASE WHEN s.{_quoted(flags[one])} THEN o.{_quoted(one)} ELSE s.{_quoted(one)} END"
            if one in flags
            else f"s.{_quoted(one)}"
            for one in changed
        ]
        chosen += [f"o.{_quoted(one)}" for one in kept]
        into = ", ".join(map(_quoted, ("id", "uuid_ts", "_key", "_clock", *changed, *kept)))
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


# ── Forgetting ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _without(file: _File, people: Sequence[Person]) -> int:
    """Deletes every row of these people, within a transaction; how many."""
    wanted = {
        "profile": [one for person in people for one in person.profiles],
        "formerly": [one for person in people for one in person.formerly],
        "user": _ids_of(people, "user_id"),
        "anonymous": _ids_of(people, "anonymous_id"),
    }
    count = 0
    for (schema, table), columns in sorted(file.tables.items()):
        if table == LOADED:
            continue
        where = f"{_quoted(schema)}.{_quoted(table)}"
        theirs = _theirs(columns, table)
        if not theirs:
            continue
        with ExitStack() as given:
            for name, values in wanted.items():
                given.enter_context(file.given(f"_{name}", {"id": array_of("text", values)}))
            if table == "accounts":  # nobody's own: only who was seen with it goes
                file.execute(f"UPDATE {where} SET profile_id = NULL WHERE profile_id IN (SELECT id FROM _profile)")
                continue
            told = "id" if "id" in columns else "NULL"
            gone = file.execute(f"DELETE FROM {where} WHERE {' OR '.join(theirs)} RETURNING {told}")
        count += len(gone)
        if gone and told == "id" and (schema, LOADED) in file.tables and table != "users":
            with file.given("_ids", {"id": array_of("text", [one for (one,) in gone])}):
                loaded = f"{_quoted(schema)}.{_quoted(LOADED)}"
                file.execute(f"DELETE FROM {loaded} WHERE id IN (SELECT id FROM _ids)")
    return count


def _ids_of(people: Sequence[Person], kind: str) -> list[str]:
    return [value for person in people for of, value in person.ids if of == kind]


def _theirs(columns: Mapping[str, Type], table: str) -> list[str]:
    """What makes a row one of theirs. A profile that was taken apart may still be somebody's: of its rows, those with their ids."""
    named = []
    if "user_id" in columns:
        named.append("user_id IN (SELECT id FROM _user)")
    if "anonymous_id" in columns:
        named.append("anonymous_id IN (SELECT id FROM _anonymous)")
    if table == "users":
        named.append("id IN (SELECT id FROM _user)")
    found = []
    if "profile_id" in columns:
        found.append("profile_id IN (SELECT id FROM _profile)")
        if named:
            found.append(f"(profile_id IN (SELECT id FROM _formerly) AND ({' OR '.join(named)}))")
    if table == "users":
        found.append("id IN (SELECT id FROM _user)")
    return found + [
        f"{column} IN (SELECT id FROM _profile)"
        for column in ("segment_id", "canonical_segment_id")
        if column in columns
    ]


def _rewritten(path: Path, memory_mb: int) -> None:
    """Writes the file anew, since deleted rows stay in the old one's free blocks. Whoever has the old one open keeps it until they
    close it."""
    import duckdb

    whole = path.resolve()
    fresh = whole.with_name(f"{whole.name}.rewriting")
    for left in (fresh, fresh.with_name(f"{fresh.name}.wal")):
        left.unlink(missing_ok=True)
    con = duckdb.connect(str(fresh), config={"memory_limit": f"{memory_mb}MiB", "threads": 1})
    try:
        own = con.execute("SELECT current_database()").fetchone()
        assert own is not None
        con.execute(f"ATTACH {_literal(str(whole))} AS before (READ_ONLY)")
        con.execute(f"COPY FROM DATABASE before TO {_quoted(own[0])}")
        con.execute("DETACH before")
    finally:
        con.close()
    descriptor = os.open(fresh, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    fresh.replace(whole)
    whole.with_name(f"{whole.name}.wal").unlink(missing_ok=True)


# ── The destination ───────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Warehouse:
    """The warehouse while Millrace runs. Its file is opened and closed as there is work, always in `thread`."""

    settings: DuckDBSettings
    env: Env
    thread: ThreadPoolExecutor
    file: _File | None = None
    loads: int = 0
    timer: asyncio.TimerHandle | None = field(default=None)

    @property
    def path(self) -> Path:
        return Path(self.env.folder) / self.settings.path

    def load(self, events: Sequence[RawEvent]) -> list[Outcome]:
        """Loads a batch in one transaction. When an event makes that impossible, halves are tried until it stands alone."""
        import duckdb

        try:
            rejected = self._transact(lambda load: load.run(events))
        except _Refused as error:
            return [Retry(str(error), error.after)] * len(events)
        except (duckdb.DataError, ValueError, TypeError, OverflowError) as error:
            if len(events) == 1:
                return [Rejected(f"cannot be a row: {type(error).__name__}")]
            middle = len(events) // 2
            return self.load(events[:middle]) + self.load(events[middle:])
        except duckdb.OutOfMemoryException:
            if len(events) == 1:
                return [Retry("warehouse is out of memory; raise memory_mb", 10.0)]
            middle = len(events) // 2
            return self.load(events[:middle]) + self.load(events[middle:])
        except (duckdb.IOException, duckdb.FatalException, duckdb.TransactionException) as error:
            return [_failed(error)] * len(events)
        return [Rejected(rejected[at]) if at in rejected else DELIVERED for at in range(len(events))]

    def hear(self, changes: Sequence[ProfileChange], schema: str) -> Delivered | Retry:
        """Takes in changes of who is who in one transaction."""
        import duckdb

        try:
            self._transact(lambda load: load.hear(changes, schema))
        except _Refused as error:
            return Retry(str(error), error.after)
        except duckdb.OutOfMemoryException:
            return Retry("warehouse is out of memory; raise memory_mb", 10.0)
        except (duckdb.IOException, duckdb.FatalException, duckdb.TransactionException) as error:
            return _failed(error)
        return DELIVERED

    def _transact(self, work: Callable[["_Load"], T]) -> T:
        self.loads += 1
        now = self.env.now()
        if self.file is None:
            self.file = _open(self.path, self.settings.memory_mb, now)
        try:
            with self.file.transaction():
                done = work(_Load(self.file, self.settings, round(now * 1_000_000)))
        except BaseException:
            self.close()  # rolls back, and forgets what this transaction made of the schemas
            raise
        if not 0 <= self.env.now() - self.file.opened < HOLD:
            self.close()
        return done

    def forget(self, people: Sequence[Person]) -> list[Outcome]:
        """Deletes the rows of these people and writes the file anew without them."""
        import duckdb

        if not self.path.exists():
            return [DELIVERED] * len(people)
        try:
            if self.file is None:
                self.file = _open(self.path, self.settings.memory_mb, self.env.now())
            with self.file.transaction():
                count = _without(self.file, people)
            self.close()
            _rewritten(self.path, self.settings.memory_mb)
        except _Refused as error:
            return [Retry(str(error), error.after)] * len(people)
        except (duckdb.Error, OSError) as error:
            self.close()
            refusal = _refusal(error)
            log.warning("warehouse has not forgotten yet", error=f"{type(error).__name__}: {error}")
            return [Retry(str(refusal), refusal.after)] * len(people)
        log.info("warehouse written anew without people who were deleted", people=len(people), rows=count)
        return [DELIVERED] * len(people)

    def close(self) -> None:
        """Closes the file; the next load opens it."""
        file, self.file = self.file, None
        if file is not None:
            file.con.close()

    def close_after(self, loads: int) -> None:
        """Closes the file unless there was another load since."""
        if self.loads == loads:
            self.close()

    def rest(self) -> None:
        """Sees to it, from the event loop, that the file is closed once there is no more work."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = asyncio.get_running_loop().call_later(IDLE, self._close_later, self.loads)

    def _close_later(self, loads: int) -> None:
        self.thread.submit(self.close_after, loads).add_done_callback(_report)


def _failed(error: Exception) -> Retry:
    log.warning("warehouse load failed", error=f"{type(error).__name__}: {error}")
    refusal = _refusal(error)
    return Retry(str(refusal), refusal.after)


def _report(done: "Future[None]") -> None:
    error = done.exception()
    if error is not None:
        log.warning("warehouse file not closed cleanly", error=f"{type(error).__name__}: {error}")


@asynccontextmanager
async def connect(settings: DuckDBSettings, env: Env) -> AsyncIterator[Warehouse]:
    """Opens nothing yet: the file belongs to whoever needs it until there are events."""
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="warehouse")
    warehouse = Warehouse(settings, env, thread)
    try:
        yield warehouse
    finally:
        if warehouse.timer is not None:
            warehouse.timer.cancel()
        await asyncio.get_running_loop().run_in_executor(thread, warehouse.close)
        thread.shutdown(wait=False)


async def check(warehouse: Warehouse) -> None:
    """Opens the file if it is there, else asks whether it could be made."""
    await asyncio.get_running_loop().run_in_executor(warehouse.thread, _probe, warehouse)


def _probe(warehouse: Warehouse) -> None:
    path = warehouse.path
    if path.exists():
        try:
            _open(path, warehouse.settings.memory_mb, warehouse.env.now()).con.close()
        except _Refused as error:
            raise Unavailable(f"duckdb: {error}", after=error.after) from error
        return
    folder = next(one for one in path.absolute().parents if one.exists())
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Unavailable("duckdb: the folder of the warehouse file cannot be written", after=30.0)


async def load_events(warehouse: Warehouse, batch: Sequence[RawEvent]) -> Sequence[Outcome]:
    """Loads a batch in the warehouse's thread. Cancelled, it leaves the thread to finish: what got in is in once."""
    outcomes = await asyncio.get_running_loop().run_in_executor(warehouse.thread, warehouse.load, batch)
    warehouse.rest()
    return outcomes


async def forget(warehouse: Warehouse, people: Sequence[Person]) -> Sequence[Outcome]:
    """In the warehouse's thread, between two loads."""
    return await asyncio.get_running_loop().run_in_executor(warehouse.thread, warehouse.forget, people)


def hear(settings: DuckDBSettings) -> Hear[Warehouse] | None:
    """What takes in changes of who is who, where their tables are wanted."""
    schema = settings.profiles_schema
    if schema is None:
        return None

    async def load_changes(warehouse: Warehouse, changes: Sequence[ProfileChange]) -> Delivered | Retry:
        outcome = await asyncio.get_running_loop().run_in_executor(warehouse.thread, warehouse.hear, changes, schema)
        warehouse.rest()
        return outcome

    return load_changes


def preview(settings: DuckDBSettings, batch: Sequence[RawEvent]) -> Sequence[Row]:
    """The rows of events, as if each table had been made for them alone: values before their columns' types."""
    made = build(batch)
    return [
        Row(f"{schema_name(source)}.{name}", {column: values[at] for column, values in chunk.columns.items()})
        for (source, name), rows in sorted(made.tables.items())
        for chunk in rows.chunks
        for at in range(len(chunk.order))
    ]


definition: Final[Definition[DuckDBSettings, Warehouse]] = Definition(
    name="duckdb",
    description="A warehouse in one local DuckDB file: a table per call type and one per event name.",
    settings=DuckDBSettings,
    warehouse=True,
    exclusive=True,
    connect=connect,
    check=check,
    preview=preview,
    forget=forget,
    hear=hear,
    actions=(
        Action(
            name="load_events",
            payload=None,
            types=TYPES,
            max_batch=5_000,
            deliver=load_events,
            atomic=True,
            concurrency=1,
        ),
    ),
)
