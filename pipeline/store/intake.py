"""One transaction per poll of the log: deduplicate, resolve, fold into profiles, count, move the position."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from sqlalchemy import Connection, select

from pipeline.changes import Made, changes_of, news_of
from pipeline.corrections import filled
from pipeline.graph import Graph, Move
from pipeline.identity import Rules
from pipeline.moving import movable
from pipeline.parse import Parsed, Refusal, Work
from pipeline.store import accepted, barred, bulk, fences, partings, schema, sightings, usage, windows
from pipeline.store.accepted import Applied, Row
from pipeline.store.graph import load, merges_into, save
from pipeline.store.moving import load_evidence, moves_of, save_moves
from pipeline.usage import Usage, month_of
from schemas.changes import ProfileChange
from schemas.events import ExternalId, Origin


class Emission(NamedTuple):
    """An accepted event that `resolved` must hold: its profile (empty: none) and the identifiers that were promoted."""

    origin: Origin
    profile: str
    ids: Sequence[ExternalId]
    fallback_key: bytes  # partition key when there is no profile, else empty
    value: bytes
    context: bytes | None = None
    changes: Sequence[ProfileChange] = ()  # of who is who, that it made
    left: Sequence[str] = ()  # the profiles that its ids were of until then

    @property
    def key(self) -> bytes:
        """What its partition of `resolved` is found by."""
        return self.profile.encode() or self.fallback_key


def positions(connection: Connection) -> dict[int, int]:
    """Where the pipeline has to begin, per partition: the first record whose emission is not known to have happened."""
    table = schema.positions
    return {row.partition: row.emitted for row in connection.execute(select(table.c.partition, table.c.emitted))}


def applied_positions(connection: Connection) -> dict[int, int]:
    """The next record the pipeline will apply, per partition."""
    table = schema.positions
    return {row.partition: row.applied for row in connection.execute(select(table.c.partition, table.c.applied))}


def apply(
    connection: Connection, work: Work, emitted: Mapping[int, int], rules: Rules, *, seq: int | None = None
) -> list[Emission]:
    """Applies what is new, and answers what `resolved` must get, in the order of the log.

    Records below the applied position were applied before: by us, when the answer to a commit was lost or a process died
    before it had emitted them, or by another member. They change nothing and are emitted again. `emitted` is how far
    the caller knows that emission has come; it is written with the position. `seq` is where these events stand in the serial
    order: the present (µs), unless they are recorded ones."""
    applied = _lock_positions(connection, work, emitted)
    seen = accepted.find(connection, [one.key for one in work.events])
    again, named = _read_through(work.events, applied)
    graph = load(connection, map(str, named))
    load_evidence(connection, graph, movable(work.events, graph, rules), rules)
    windows.complete(connection, graph, rules.windowed)
    graph.seq = time.time_ns() // 1000 if seq is None else seq
    held = barred.bar(connection, work, applied, rules)
    work = held.work
    made = _made_again(connection, [one for one in again if one.key in seen], seen, graph)
    emissions, rows, counts, used = _resolve(work, applied, seen, graph, rules, made)
    if len(emissions) > len(rows):
        emissions = _with_left(connection, emissions, applied)
    emissions = partings.behind(connection, emissions, applied, work.events)
    refusals, refused_again = _parted(work.refusals, applied)
    if gone := barred.placeholders(connection, again, refused_again):
        emissions += [Emission(origin, profile, (), b"", value) for origin, profile, value in gone]
        emissions.sort(key=lambda one: one.origin)
    for refusal in refusals:
        counts[refusal.source, refusal.origin.partition, "refused"] += 1
    save_moves(connection, graph)
    save(connection, graph)
    sightings.save(connection, graph)
    bulk.insert(connection, schema.refusals, [(*one.origin, *one[1:]) for one in refusals])
    fresh = ((one.origin, one.left) for one in emissions if one.left and _is_fresh(one, applied))
    fences.keep(connection, fresh, emitted)
    if held.places:
        barred.save(connection, held)
    barred.unclaim(connection, graph)
    _count(connection, counts)
    usage.count(connection, used)
    now = time.time_ns() // 1000
    bulk.upsert(
        connection,
        schema.positions,
        [
            (partition, max(end, applied[partition]), emitted.get(partition, 0), now)
            for partition, end in sorted(work.ends.items())
        ],
        set_={"emitted": _greatest(connection)},
    )
    accepted.insert(connection, rows)
    return emissions


def _read_through(events: Iterable[Parsed], applied: Mapping[int, int]) -> tuple[list[Parsed], set[ExternalId]]:
    """Events that were applied before, and the identifiers of all."""
    again: list[Parsed] = []
    named: set[ExternalId] = set()
    for parsed in events:
        (partition, offset), _, _, found, _, _, _ = parsed
        named.update(found[0])
        if found[1]:
            named.update(found[1])
        if offset < applied[partition]:
            again.append(parsed)
    return again, named


def _parted(refusals: Iterable[Refusal], applied: Mapping[int, int]) -> tuple[list[Refusal], list[Refusal]]:
    """Those that are new, and those that were there before."""
    fresh: list[Refusal] = []
    again: list[Refusal] = []
    for one in refusals:
        (fresh if one.origin.offset >= applied[one.origin.partition] else again).append(one)
    return fresh, again


def _greatest(connection: Connection) -> str:
    most = "GREATEST" if connection.dialect.name == "postgresql" else "MAX"
    return f"{most}(positions.emitted, excluded.emitted)"


def _lock_positions(connection: Connection, work: Work, emitted: Mapping[int, int]) -> dict[int, int]:
    """The applied position per partition, locked: a member that lost the partition without knowing waits here, and then
    finds its records applied."""
    table = schema.positions
    wanted = sorted(work.ends)
    statement = select(table.c.partition, table.c.applied).where(table.c.partition.in_(wanted)).order_by("partition")
    applied = {row.partition: row.applied for row in connection.execute(statement.with_for_update())}
    missing = [partition for partition in wanted if partition not in applied]
    if missing:
        bulk.insert(connection, table, [(partition, 0, 0, 0) for partition in missing])
    return applied | dict.fromkeys(missing, 0)


def _with_left(connection: Connection, emissions: Sequence[Emission], applied: Mapping[int, int]) -> list[Emission]:
    """Those that were applied before with what they left then. After a crash only."""
    spans: dict[int, tuple[int, int]] = {}
    for one in emissions:
        if not _is_fresh(one, applied):
            partition, offset = one.origin
            first, end = spans.get(partition, (offset, offset + 1))
            spans[partition] = min(first, offset), max(end, offset + 1)
    kept = fences.kept(connection, spans)
    return [one._replace(left=kept[one.origin]) if one.origin in kept else one for one in emissions]


def _is_fresh(one: Emission, applied: Mapping[int, int]) -> bool:
    return one.origin.offset >= applied[one.origin.partition]


# A third of the cost of calling the classes.
_new_row = partial(tuple.__new__, Row)
_new_emission = partial(tuple.__new__, Emission)
_HERE = Applied(Origin(-1, -1), "", 0)  # stands for events of this poll: nothing that was applied before is one of them
_Counts = Counter[tuple[str, int, str]]


def _resolve(
    work: Work,
    applied: Mapping[int, int],
    seen: dict[bytes, Applied],
    graph: Graph,
    rules: Rules,
    made: Made,
) -> tuple[list[Emission], list[Row], _Counts, Mapping[usage.Key, Usage]]:
    emissions: list[Emission] = []
    rows: list[Row] = []
    counts: _Counts = Counter()
    used: defaultdict[usage.Key, Usage] = defaultdict(Usage)
    now = time.time_ns() // 1000
    promoted: Sequence[ExternalId]
    changes: Sequence[ProfileChange]
    left: Sequence[str]
    for parsed in work.events:
        origin, key, event, found, value, context, correction = parsed
        partition, offset = origin
        known = seen.get(key)
        if offset < applied[partition]:
            if known is not None and known.origin == origin:
                profile, promoted = known.profile, _promoted(parsed, known.profile, graph)
                value = _corrected(parsed, promoted, graph) if correction else value
                news = None if correction else news_of(parsed, graph, made)
                changes = () if news is None else changes_of(event, key, news)
                emissions.append(
                    Emission(origin, profile, promoted, b"" if profile else event.key, value, context, changes)
                )
            continue
        if known is not None:
            counts[event.source, partition, "duplicates"] += 1
            continue
        changes = left = ()
        if correction:
            profile, node, at = graph.profile_of(found.ids[0]) or "", "", event.timestamp
            promoted = _promoted(parsed, profile, graph)
            value = _corrected(parsed, promoted, graph)
            counts[event.source, partition, "accepted"] += 1
        else:
            ids, accounts, refused, traits, consent = found
            profile, node, promoted, _, _ = graph.apply(event, key, ids, traits, rules, accounts, refused, consent)
            if graph.left is not None:
                left = graph.left
            if graph.news is not None:
                if graph.news.moved:
                    rows = _with_heirs(rows, graph.news.moved)
                changes = changes_of(event, key, graph.news)
            source, _, _, anonymous_id, user_id, at, _, received_at, _, _, _, body = event
            if at > received_at:
                at = received_at
            used[month_of(received_at), source, partition].add(len(body), user_id or anonymous_id)
        fallback = b""
        if not profile:
            counts[event.source, partition, "unresolved"] += 1
            fallback = event.key
        seen[key] = _HERE
        rows.append(_new_row((key, partition, offset, profile, node, now, at)))
        emissions.append(_new_emission((origin, profile, promoted, fallback, value, context, changes, left)))
    for (_, source, partition), month in used.items():
        counts[source, partition, "accepted"] += month.events
    return emissions, rows, counts, used


def _with_heirs(rows: Sequence[Row], moved: Iterable[Move]) -> list[Row]:
    """Events of this poll that hung on what moved hang on its heir."""
    heirs = {move.key: move.heir for move in moved if move.events}
    return [row._replace(node=heirs[row.node]) if row.node in heirs else row for row in rows] if heirs else [*rows]


def _made_again(connection: Connection, again: Sequence[Parsed], seen: Mapping[bytes, Applied], graph: Graph) -> Made:
    """The merges and moves that events which were applied before may have made then. After a crash only."""
    if not again:
        return Made((), ())
    named = {each for one in again for each in (*one.found.ids, *one.found.accounts)}
    reached = {graph.profile_of(one) for one in named} | {seen[one.key].profile for one in again}
    merges = merges_into(connection, sorted(one for one in reached if one))
    return Made(merges, moves_of(connection, sorted(map(str, named))))


def _corrected(parsed: Parsed, ids: Sequence[ExternalId], graph: Graph) -> bytes:
    """What a correction tells now. Whoever was forgotten since is not told of again: it names nobody then."""
    profile = graph.profile_of(ids[0]) if ids else None
    return filled(parsed.event, profile or "", ids, graph.profiles[profile].traits if profile else {})


def _promoted(parsed: Parsed, profile: str, graph: Graph) -> list[ExternalId]:
    """Which identifiers of an event applied earlier led to its profile, and to its account."""
    ids, accounts = parsed.found.ids, parsed.found.accounts
    survivor = graph.canonical(profile) if profile in graph.profiles else None
    account = next((reached for one in accounts if (reached := graph.profile_of(one)) is not None), None)
    return [
        *(one for one in ids if survivor is not None and graph.profile_of(one) == survivor),
        *(one for one in accounts if account is not None and graph.profile_of(one) == account),
    ]


_COUNTERS = ("accepted", "duplicates", "refused", "unresolved")


def _count(connection: Connection, counts: _Counts) -> None:
    keys = sorted({(source, partition) for source, partition, _ in counts})
    bulk.upsert(
        connection,
        schema.intake,
        [(*key, *(counts[(*key, name)] for name in _COUNTERS)) for key in keys],
        set_={name: f"intake.{name} + excluded.{name}" for name in _COUNTERS},
    )
