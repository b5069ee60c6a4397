"""Who is who in the warehouse: the tables of Segment's Profiles Sync, in a schema of their own.

`id_graph_updates`, `external_id_mapping_updates` and `profile_traits_updates` are only ever added to; the first two tell of changes of
profiles, the third of identifies. What holds now is in the views `profile_merges`, `user_identifiers`, `user_traits` and `id_graph`. Only people are in
them: accounts are no part of the reference's tables.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple, Protocol

from destinations.contract import RawEvent
from destinations.warehouse.arrow import array_of, times_of
from destinations.warehouse.inference import Type, json_text, parse_timestamp, text_of
from destinations.warehouse.pointers import Pointer, Pointers
from destinations.warehouse.rows import TEXT_COLUMNS, TIME_COLUMNS, Chunk, Rows, build
from schemas.changes import Cause, ProfileChange, identifier_hash
from schemas.events import iso
from schemas.exact_json import json_loads
from schemas.topics import INTERNAL_SOURCE

OWNER: Final = "profiles of all sources"  # no source can be called so
DEFAULT_SCHEMA: Final = "profiles"
TRAITS: Final = "profile_traits_updates"
_TRIGGER: Final = (
    "triggering_event_type",
    "triggering_event_id",
    "triggering_event_name",
    "triggering_event_source_id",
    "triggering_event_source_name",
    "triggering_event_source_slug",
)
_TIMES: Final = ("timestamp", "received_at")
_GRAPH: Final = ("segment_id", "canonical_segment_id", *_TRIGGER)
_MAPPING: Final = ("id", "external_id_hash", "external_id_type", "external_id_value", "segment_id", *_TRIGGER)
TRAITS_FIXED: Final = {
    **dict.fromkeys(("id", "segment_id", *_TRIGGER, "__removed"), "VARCHAR"),
    **dict.fromkeys((*_TIMES, "uuid_ts"), "TIMESTAMP"),
    "seq": "BIGINT",
}
"""Columns of `profile_traits_updates` beside those of traits. `__removed` is the JSON array of the names that became null."""

_TABLES: Final[Mapping[str, Sequence[str]]] = {  # columns of text; each has `seq` and the times too
    "id_graph_updates": _GRAPH,
    "_profiles": _GRAPH,  # the newest of them
    "external_id_mapping_updates": (*_MAPPING, "__operation"),
    "_traits": (
        "segment_id",
        "name",
        "value",
        "json",
        "happened",
        "received",
        "message",
    ),  # the newest write; null: removed
}
_KINDS: Final[Mapping[str, Type]] = {"VARCHAR": "text", "BIGINT": "bigint", "TIMESTAMP": "timestamp"}
_VIEWS: Final = {
    "id_graph": """
        SELECT segment_id, canonical_segment_id, uuid_ts, timestamp, seq FROM {0}.id_graph_updates
        QUALIFY row_number() OVER (PARTITION BY segment_id ORDER BY seq DESC) = 1
    """,
    "profile_merges": """
        SELECT canonical_segment_id, segment_id, seq, received_at, uuid_ts, timestamp FROM {0}._profiles
    """,
    "user_identifiers": """
        SELECT coalesce(p.canonical_segment_id, m.segment_id) AS canonical_segment_id, m.external_id_type AS type,
          m.external_id_value AS value, m.seq, m.received_at, m.uuid_ts, m.timestamp
        FROM (
          SELECT * FROM {0}.external_id_mapping_updates
          QUALIFY row_number() OVER (PARTITION BY external_id_hash ORDER BY seq DESC) = 1
        ) m LEFT JOIN {0}._profiles p USING (segment_id) WHERE m.__operation = 'CREATED'
    """,
    "user_traits": """
        SELECT canonical_segment_id, name, value, seq, received_at, uuid_ts, timestamp FROM (
          SELECT * FROM (
            SELECT coalesce(p.canonical_segment_id, t.segment_id) AS canonical_segment_id, t.* EXCLUDE (segment_id)
            FROM {0}._traits t LEFT JOIN {0}._profiles p USING (segment_id)
          ) QUALIFY row_number()
            OVER (PARTITION BY canonical_segment_id, name ORDER BY happened DESC, received DESC, message DESC) = 1
        ) WHERE json IS NOT NULL
    """,
}


class File(Protocol):
    """The open warehouse file, within a transaction."""

    tables: dict[tuple[str, str], dict[str, Type]]

    def execute(self, sql: str, *values: Any) -> list[tuple[Any, ...]]: ...

    def given(self, name: str, columns: Mapping[str, Any]) -> AbstractContextManager[None]: ...


class Write(NamedTuple):
    """The newest write of a trait: when, in the order of writes, and what, as JSON; None: it was removed. Events say their times in
    milliseconds; of two in the same one the greater message id is the later."""

    at: str
    received: str
    message: str
    json: str | None


class TraitsRow(NamedTuple):
    """A row of `profile_traits_updates` to be: the traits that it touches, null for those that it removes."""

    id: str
    segment: str
    cause: Cause
    traits: Mapping[str, Any]


class Profiles:
    """The tables in one schema, within one transaction. `micros` is now, in Unix microseconds."""

    def __init__(self, file: File, schema: str, micros: int) -> None:
        self._file, self.schema, self._micros = file, schema, micros
        self._quoted = '"' + schema.replace('"', '""') + '"'
        if (schema, "_profiles") not in file.tables:
            self._create()

    def _create(self) -> None:
        for name, texts in _TABLES.items():
            times = dict.fromkeys((*_TIMES, "uuid_ts"), "TIMESTAMP")
            self._create_table(name, dict.fromkeys(texts, "VARCHAR") | {"seq": "BIGINT"} | times)
        self._create_table(TRAITS, TRAITS_FIXED)
        for name, sql in _VIEWS.items():
            self._file.execute(f"CREATE VIEW {self._quoted}.{name} AS {sql.format(self._quoted)}")

    def _create_table(self, name: str, columns: Mapping[str, str]) -> None:
        lines = ", ".join(f"{column} {kind}" for column, kind in columns.items())
        self._file.execute(f"CREATE TABLE {self._quoted}.{name} ({lines})")
        self._file.tables[self.schema, name] = {column: _KINDS[kind] for column, kind in columns.items()}

    # Changes of who is who

    def hear(self, changes: Iterable[ProfileChange]) -> list[TraitsRow]:
        """Writes changes that were not heard before; what merges combine is left to be written."""
        ours = sorted((one for one in changes if one.collection == "users"), key=lambda one: (one.seq, one.id))
        named = {name for one in ours for name in (one.profile, *one.profiles, *filter(None, [one.other]))}
        pointers = Pointers(self._pointers(named))
        held = self._held({pointers.canonical(name) for name in named})
        rows: list[Pointer] = []
        combined: list[TraitsRow] = []
        for one in ours:
            if one.kind == "merged" and one.other is not None:
                gained = _gained(held, pointers.canonical(one.other), pointers.canonical(one.profile))
                if gained:
                    combined.append(TraitsRow(one.id, one.profile, one.cause, gained))
            rows += pointers.hear(one)
        self._insert("id_graph_updates", _GRAPH, [_graph_row(one) for one in rows])
        changed = [pointers.newest[one] for one in sorted(pointers.changed)]
        self._delete("_profiles", [one.segment for one in changed])
        self._insert("_profiles", _GRAPH, [_graph_row(one) for one in changed])
        self._insert("external_id_mapping_updates", (*_MAPPING, "__operation"), _mapping_rows(ours))
        self.forget([name for one in ours if one.kind == "deleted" for name in (one.profile, *one.profiles)])
        return combined

    def _pointers(self, named: Collection[str]) -> list[Pointer]:
        """Of all that lead where these profiles lead."""
        columns = ", ".join((*_GRAPH, "seq", *(f"epoch_us({one})" for one in _TIMES)))
        with self._file.given("_named", {"segment_id": array_of("text", sorted(named))}):
            rows = self._file.execute(
                f"SELECT {columns} FROM {self._quoted}._profiles WHERE canonical_segment_id IN"
                f" (SELECT segment_id FROM _named UNION ALL SELECT canonical_segment_id FROM {self._quoted}._profiles"
                " SEMI JOIN _named USING (segment_id))"
            )
        return [
            Pointer(segment, canonical, seq, Cause(source, message, kind, at, received, name))
            for segment, canonical, kind, message, name, source, _, _, seq, at, received in rows
        ]

    def forget(self, profiles: Sequence[str]) -> None:
        """Removes all that is known of profiles that were deleted, and of those that they had absorbed."""
        gone = {*profiles, *(one.segment for one in self._pointers(profiles) if one.canonical in profiles)}
        for table in (*_TABLES, TRAITS):
            self._delete(table, sorted(gone))

    # Traits

    def identified(self, events: Iterable[RawEvent]) -> list[TraitsRow]:
        """Takes in what identifies write, in their order; the rows of those that change a trait.

        What is told after a split is how things are, and no newer than what it takes the place of: a late event is measured by that."""
        known = [one for one in events if _identifies(one)]
        if not known:
            return []
        pointers = Pointers(self._pointers({one["profileId"] for one in known}))
        held = self._held({pointers.canonical(one["profileId"]) for one in known})
        fresh: dict[tuple[str, str], Write | None] = {}
        rows = []
        for one in known:
            segment = one["profileId"]
            canonical = pointers.canonical(segment)
            clock = min(one["timestamp"], one["receivedAt"]), one["receivedAt"], one["messageId"]
            now = held.setdefault(canonical, {})
            touched = {}
            for name, value in one["traits"].items():
                write, before = Write(*clock, None if value is None else json_text(value)), now.get(name)
                if one.get("source") == INTERNAL_SOURCE and before is not None:
                    if before.json == write.json:
                        continue
                    write = before._replace(json=write.json)
                    fresh |= {(each, name): None for each in pointers.family(canonical)}
                    del now[name]
                elif (known_write := fresh.get((segment, name))) is not None and known_write[:3] >= clock:
                    continue
                fresh[segment, name] = write
                if _newer(now, name, write) and write.json != (None if before is None else before.json):
                    touched[name] = value
            if touched:
                rows.append(TraitsRow(one["messageId"], segment, _cause_of(one), touched))
        self._write(fresh)
        return rows

    def _held(self, canonical: Collection[str]) -> dict[str, dict[str, Write]]:
        """The newest write of each trait of these profiles."""
        found: dict[str, dict[str, Write]] = {}
        with self._file.given("_named", {"canonical_segment_id": array_of("text", sorted(canonical))}):
            rows = self._file.execute(
                "SELECT canonical_segment_id, name, happened, received, message, json FROM ("
                " SELECT coalesce(p.canonical_segment_id, t.segment_id) AS canonical_segment_id, t.* EXCLUDE (segment_id)"
                f" FROM {self._quoted}._traits t LEFT JOIN {self._quoted}._profiles p USING (segment_id)"
                ") SEMI JOIN _named USING (canonical_segment_id)"
            )
        for profile, name, *columns in rows:
            _newer(found.setdefault(profile, {}), name, Write(*columns))
        return found

    def _write(self, fresh: Mapping[tuple[str, str], Write | None]) -> None:
        """Lets newer writes take the place of what is stored; None removes it."""
        gone = [key for key, write in fresh.items() if write is None]
        same = "t.segment_id = f.segment_id AND t.name = f.name"
        with self._file.given("_fresh", _keys(gone)):
            self._file.execute(f"DELETE FROM {self._quoted}._traits t USING _fresh f WHERE {same}")
        kept = {key: write for key, write in fresh.items() if write is not None}
        writes = list(kept.values())
        columns: dict[str, Any] = {
            **_keys(list(kept)),
            "value": array_of("text", [None if one.json is None else text_of(json_loads(one.json)) for one in writes]),
            "json": array_of("text", [one.json for one in writes]),
            "happened": array_of("text", [one.at for one in writes]),
            "received": array_of("text", [one.received for one in writes]),
            "message": array_of("text", [one.message for one in writes]),
            "timestamp": times_of([one.at for one in writes])[0],
            "received_at": times_of([one.received for one in writes])[0],
        }
        with self._file.given("_fresh", columns):
            self._file.execute(
                f"DELETE FROM {self._quoted}._traits t USING _fresh f WHERE {same}"
                " AND (t.happened, t.received, t.message) <= (f.happened, f.received, f.message)"
            )
            self._file.execute(
                f"INSERT INTO {self._quoted}._traits ({', '.join(columns)}, seq, uuid_ts)"
                f" SELECT *, {self._micros}, make_timestamp({self._micros}) FROM _fresh f"
                f" WHERE NOT EXISTS (SELECT 1 FROM {self._quoted}._traits t WHERE {same})"
            )

    def next_seq(self) -> int:
        """The place of the next row of traits: now, and after every row there is."""
        [(last,)] = self._file.execute(f"SELECT max(seq) FROM {self._quoted}.{TRAITS}")
        return self._micros if last is None else max(self._micros, last + 1)

    # Rows

    def _insert(self, table: str, texts: Sequence[str], rows: Sequence["_Row"]) -> None:
        if not rows:
            return
        columns = {name: array_of("text", [one.texts[at] for one in rows]) for at, name in enumerate(texts)}
        columns["seq"] = array_of("bigint", [one.seq for one in rows])
        columns["timestamp"] = array_of("timestamp", [one.cause.timestamp for one in rows])
        columns["received_at"] = array_of("timestamp", [one.cause.received_at for one in rows])
        with self._file.given("_rows", columns):
            self._file.execute(
                f"INSERT INTO {self._quoted}.{table} ({', '.join(columns)}, uuid_ts)"
                f" SELECT *, make_timestamp({self._micros}) FROM _rows"
            )

    def _delete(self, table: str, segments: Sequence[str]) -> None:
        if segments:
            with self._file.given("_gone", {"segment_id": array_of("text", segments)}):
                self._file.execute(
                    f"DELETE FROM {self._quoted}.{table} WHERE segment_id IN (SELECT segment_id FROM _gone)"
                )


def _keys(keys: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {
        "segment_id": array_of("text", [segment for segment, _ in keys]),
        "name": array_of("text", [name for _, name in keys]),
    }


class _Row(NamedTuple):
    texts: Sequence[str | None]
    seq: int
    cause: Cause


def rows_of(changes: Sequence[TraitsRow]) -> Rows:
    """The rows of `profile_traits_updates`, columns for traits made as those of identifies are."""
    events = [
        {
            "type": "identify",
            "source": OWNER,
            "messageId": one.id,
            "timestamp": iso(one.cause.timestamp),
            "receivedAt": iso(one.cause.received_at),
            "traits": one.traits,
        }
        for one in changes
    ]
    made = Rows(("id", "segment_id", *_TRIGGER, "__removed"))
    for chunk in build(events).tables[OWNER, "identifies"].chunks:
        its = [changes[at] for at in chunk.order]
        removed = [[name for name, value in one.traits.items() if value is None] for one in its]
        columns: dict[str, Sequence[Any]] = {
            f"_{name}" if name in TRAITS_FIXED else name: values
            for name, values in chunk.columns.items()
            if name not in (*TEXT_COLUMNS, *TIME_COLUMNS)
        }
        columns |= {name: chunk.columns[name] for name in ("id", *_TIMES)}
        columns["segment_id"] = [one.segment for one in its]
        columns |= dict(zip(_TRIGGER, zip(*(trigger(one.cause) for one in its), strict=True), strict=True))
        columns["__removed"] = [json_text(names) if names else None for names in removed]
        made.chunks.append(Chunk(chunk.order, columns, chunk.odd))
    return made


def trigger(cause: Cause) -> Sequence[str | None]:
    """The columns that say what caused a row. A source of ours has one name, which is its id and slug too."""
    return cause.type, cause.message_id, cause.name, cause.source, cause.source, cause.source


def _graph_row(one: Pointer) -> _Row:
    return _Row((one.segment, one.canonical, *trigger(one.cause)), one.seq, one.cause)


def _mapping_rows(changes: Iterable[ProfileChange]) -> list[_Row]:
    rows = []
    for change in changes:
        for one in change.ids:
            hashed = identifier_hash(one)
            texts = (
                f"{change.id}:{hashed}",
                hashed,
                one.type,
                one.value,
                change.profile,
                *trigger(change.cause),
                "CREATED",
            )
            rows.append(_Row(texts, change.seq, change.cause))
        for gone in change.removed:
            texts = (
                f"{change.id}:{gone.hash}",
                gone.hash,
                gone.type,
                None,
                change.profile,
                *trigger(change.cause),
                "REMOVED",
            )
            rows.append(_Row(texts, change.seq, change.cause))
    return rows


def _gained(held: dict[str, dict[str, Write]], absorbed: str, survivor: str) -> dict[str, Any]:
    """Combines the traits of two profiles; what the survivor did not have so before."""
    if absorbed == survivor:
        return {}
    into, gained = held.setdefault(survivor, {}), {}
    for name, write in held.pop(absorbed, {}).items():
        before = into.get(name)
        if _newer(into, name, write) and write.json != (None if before is None else before.json):
            gained[name] = None if write.json is None else json_loads(write.json)
    return gained


def _newer(into: dict[str, Write], name: str, write: Write) -> bool:
    if name in into and into[name][:3] >= write[:3]:
        return False
    into[name] = write
    return True


def _identifies(event: RawEvent) -> bool:
    """Whether it writes traits of a profile. A function may have made anything of an event."""
    said = (event.get(name) for name in ("profileId", "timestamp", "receivedAt", "messageId"))
    return event.get("type") == "identify" and all(said) and isinstance(event.get("traits"), dict)


def _cause_of(event: RawEvent) -> Cause:
    at, received = (parse_timestamp(event[name]) or 0 for name in ("timestamp", "receivedAt"))
    return Cause(event.get("source") or "", event["messageId"], event["type"], at, received)
