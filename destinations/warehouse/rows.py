"""What events become in tables, pure: for each source, rows by table, column by column.

Events with the same keys in the same order share a plan (which leaf goes to which column), made once and kept. What is
left to do per event is to walk its values; the rest happens per column.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, NamedTuple

from destinations.contract import RawEvent
from destinations.warehouse.inference import text_of
from destinations.warehouse.naming import MAX_NAME, columns_of, event_table

MAX_DEPTH: Final = 10  # deeper objects become JSON text
OVERFLOW: Final = "_overflow"  # JSON of what found no column
TEXT_COLUMNS: Final = ("id", "anonymous_id", "user_id", "profile_id")
TIME_COLUMNS: Final = ("received_at", "sent_at", "original_timestamp", "timestamp")
_TABLES: Final[Mapping[str, str]] = {
    "track": "tracks",
    "identify": "identifies",
    "page": "pages",
    "screen": "screens",
    "group": "groups",
    "alias": "aliases",
}
_SPECIAL: Final[Mapping[str, tuple[str, ...]]] = {  # columns that only this type has
    "track": ("event", "event_text"),
    "identify": (),
    "page": ("name", "category"),
    "screen": ("name", "category"),
    "group": ("group_id",),
    "alias": ("previous_id",),
}
_OPEN, _CLOSE, _BODY = 0, 1, 2  # marks between keys: never equal to a key, which is a string


class Chunk(NamedTuple):
    """Rows of events that look alike. `columns` are aligned with `order`, the events' indexes in the batch; `odd` tells
    the path of those whose name does not."""

    order: Sequence[int]
    columns: Mapping[str, Sequence[Any]]
    odd: Mapping[str, str]


@dataclass(slots=True)
class Rows:
    """Rows of one table. `fixed` names the text columns that every row has, besides the times."""

    fixed: tuple[str, ...]
    chunks: list[Chunk] = field(default_factory=list)
    first: int = 0  # index of the first event that needs the table
    event: str | None = None  # the event name, of an event's table
    entity: str | None = None  # the column that names the entity, of `users` and `accounts`


class Built(NamedTuple):
    """What became of a batch: tables by source and name, and events that cannot be rows, by index, with the reason."""

    tables: Mapping[tuple[str, str], Rows]
    rejected: Mapping[int, str]


class _Plan(NamedTuple):
    """Where an event's values go: index of the value, name of the column."""

    context: tuple[tuple[int, str], ...]
    body: tuple[tuple[int, str], ...]
    odd: Mapping[str, str]


def build(events: Sequence[RawEvent], limit: int = MAX_NAME) -> Built:
    """Turns events into rows. `limit` is the longest name that the database takes, in bytes."""
    groups: dict[tuple[str, str, str | None, tuple[Any, ...]], tuple[list[int], list[list[Any]]]] = {}
    rejected: dict[int, str] = {}
    for index, event in enumerate(events):
        try:
            key, values = _values(event)
        except _Unfit as error:
            rejected[index] = str(error)
            continue
        group = groups.get(key)
        if group is None:
            group = groups[key] = ([], [])
        group[0].append(index)
        group[1].append(values)
    tables: dict[tuple[str, str], Rows] = {}
    for (source, kind, name, keys), (order, rows) in groups.items():
        _place(tables, source, kind, name, _plan(kind, keys, limit), order, rows, limit)
    return Built(tables, rejected)


class _Unfit(Exception):
    """This event cannot be a row; the text says why."""


# ── One event ─────────────────────────────────────────────────────────────────────────────────────────────────────

_FIXED: Final = 12  # values before the leaves: see _values


def _values(event: RawEvent) -> tuple[tuple[str, str, str | None, tuple[Any, ...]], list[Any]]:
    """What the event looks like (its source, type, event name and keys), and its values: the fixed ones, then the
    leaves of the context, then those of the properties or traits."""
    get = event.get
    kind = get("type")
    if kind == "track":
        name = get("event")
        if type(name) is not str or not name:
            raise _Unfit("track without an event name")
        body = get("properties")
        special, other = name, None
    elif kind == "identify":
        body, name, special, other = get("traits"), None, None, None
    elif kind in ("page", "screen"):
        body, name, special, other = get("properties"), None, get("name"), get("category")
    elif kind in ("group", "alias"):
        body, name, special, other = get("traits"), None, get("groupId" if kind == "group" else "previousId"), None
    else:
        raise _Unfit(f"no table for type {kind!r:.40}")
    message_id = get("messageId")
    if type(message_id) is not str or not message_id:
        raise _Unfit("no message id")
    context = get("context")
    values: list[Any] = [
        message_id,
        get("anonymousId"),
        get("userId"),
        get("profileId"),
        get("receivedAt"),
        get("sentAt"),
        get("originalTimestamp"),
        get("timestamp"),
        special,
        other,
        None,
        None,
    ]
    keys: list[Any] = []
    if type(context) is dict:
        _flatten(context, keys, values, MAX_DEPTH)
    elif context is not None:
        values[10] = context
    keys.append(_BODY)
    if type(body) is dict:
        _flatten(body, keys, values, MAX_DEPTH)
    elif body is not None:
        values[11] = body
    return (get("source") or "events", kind, name, tuple(keys)), values


def _flatten(node: dict[str, Any], keys: list[Any], values: list[Any], depth: int) -> None:
    """Appends the keys of an object in document order, marks around nested ones, and the values of its leaves."""
    for key, value in node.items():
        keys.append(key)
        if type(value) is dict and depth > 1:
            keys.append(_OPEN)
            _flatten(value, keys, values, depth - 1)
            keys.append(_CLOSE)
        else:
            values.append(value)


# ── The plan of a shape ───────────────────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=10_000)
def _plan(kind: str, keys: tuple[Any, ...], limit: int) -> _Plan:
    at = keys.index(_BODY)
    context, body = list(_paths(keys[:at])), list(_paths(keys[at + 1 :]))
    odd: dict[str, str] = {}
    columns: list[tuple[tuple[int, str], ...]] = []
    start = _FIXED
    for label, paths, prefix in (("context", context, "context_"), (_BODIES[kind], body, "")):
        named = columns_of(paths, prefix, limit)
        columns.append(tuple((start + one.leaf, one.column) for one in named))
        odd |= {one.column: ".".join((label, *paths[one.leaf])) for one in named if one.odd}
        start += len(paths)
    return _Plan(columns[0], columns[1], odd)


_BODIES: Final[Mapping[str, str]] = dict.fromkeys(("track", "page", "screen"), "properties") | dict.fromkeys(
    ("identify", "group", "alias"), "traits"
)


def _paths(keys: Sequence[Any]) -> Iterator[tuple[str, ...]]:
    """The path of each leaf, in document order."""
    path: list[str] = []
    for at, key in enumerate(keys):
        if key is _OPEN:
            continue
        if key is _CLOSE:
            path.pop()
            continue
        if at + 1 < len(keys) and keys[at + 1] is _OPEN:
            path.append(key)
        else:
            yield (*path, key)


# ── Rows that look alike ──────────────────────────────────────────────────────────────────────────────────────────


def _place(
    tables: dict[tuple[str, str], Rows],
    source: str,
    kind: str,
    name: str | None,
    plan: _Plan,
    order: Sequence[int],
    rows: Sequence[Sequence[Any]],
    limit: int,
) -> None:
    """Adds rows that share a plan to every table that they belong to."""
    values = list(zip(*rows, strict=True))
    fixed: dict[str, Sequence[Any]] = {column: values[at] for at, column in enumerate((*TEXT_COLUMNS, *TIME_COLUMNS))}
    context: dict[str, Sequence[Any]] = {column: values[at] for at, column in plan.context}
    body: dict[str, Sequence[Any]] = {column: values[at] for at, column in plan.body}
    special = _SPECIAL[kind]
    stray = _stray(values, kind)
    if kind == "track":
        assert name is not None
        table = event_table(name, limit)
        named = {"event": [table] * len(order), "event_text": values[8]}
        _add(tables, source, "tracks", special, Chunk(order, fixed | named | context | stray, plan.odd))
        rows_of = _add(tables, source, table, special, Chunk(order, fixed | named | context | body | stray, plan.odd))
        rows_of.event = rows_of.event or name
        return
    columns = fixed | dict(zip(special, (values[8], values[9]), strict=False)) | context
    if kind in ("page", "screen"):
        body = _without_repeats(body, columns)
    _add(tables, source, _TABLES[kind], special, Chunk(order, columns | body | stray, plan.odd))
    if kind == "identify":
        _add_entities(tables, source, "users", "user_id", Chunk(order, columns | body, plan.odd))
    elif kind == "group":
        kept = {column: values for column, values in columns.items() if column not in context}
        _add_entities(tables, source, "accounts", "group_id", Chunk(order, kept | body, plan.odd))


def _stray(values: Sequence[Sequence[Any]], kind: str) -> dict[str, Sequence[Any]]:
    """A context or body that is no object has no columns; it is kept in the overflow column."""
    context, body = values[10], values[11]
    if context.count(None) == len(context) and body.count(None) == len(body):
        return {}
    pairs = zip(context, body, strict=True)
    named = ({"context": one, _BODIES[kind]: other} for one, other in pairs)
    kept = ({name: value for name, value in both.items() if value is not None} for both in named)
    return {OVERFLOW: [both or None for both in kept]}


def _without_repeats(body: dict[str, Sequence[Any]], columns: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Libraries send a page's name and category a second time as properties. Equal ones need no second column; the
    property stands in for a missing field, and one that differs moves to `_name`."""
    merged = dict(body)
    for column in ("name", "category"):
        given = merged.pop(column, None)
        if given is None:
            continue
        field_values = columns[column]
        merged[column] = [
            text_of(two) if one is None and two is not None else one
            for one, two in zip(field_values, given, strict=True)
        ]
        merged[f"_{column}"] = [
            None if one is None or one == two else two for one, two in zip(field_values, given, strict=True)
        ]
    return merged


def _add(tables: dict[tuple[str, str], Rows], source: str, table: str, special: tuple[str, ...], chunk: Chunk) -> Rows:
    rows = tables.get((source, table))
    if rows is None:
        rows = tables[source, table] = Rows((*TEXT_COLUMNS, *special), first=chunk.order[0])
    rows.chunks.append(chunk)
    rows.first = min(rows.first, chunk.order[0])
    return rows


def _add_entities(tables: dict[tuple[str, str], Rows], source: str, table: str, entity: str, chunk: Chunk) -> None:
    """Adds the rows that name an entity to the table of latest states. `id` stays the message id here: it decides
    between events of one instant."""
    names = chunk.columns[entity]
    chosen = [at for at, name in enumerate(names) if name]
    if not chosen:
        return
    if len(chosen) < len(names):
        columns = {column: [values[at] for at in chosen] for column, values in chunk.columns.items()}
        chunk = Chunk([chunk.order[at] for at in chosen], columns, chunk.odd)
    _add(tables, source, table, (entity,) if entity != "user_id" else (), chunk).entity = entity
