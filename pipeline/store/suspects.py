"""Ids and profiles that look wrong, with how sure that is and what mends each: before a shared device or a placeholder value
has merged half of the people into one.

Goes through indexes in order, or through profiles page by page; memory is bounded by what is shown.
"""

import heapq
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log2
from shlex import quote
from typing import Final

from sqlalchemy import Connection, select, text

from pipeline.identity import Rules
from pipeline.store import bulk, schema
from pipeline.store.people import keys_with
from schemas.exact_json import json_loads

PAGE: Final = 10_000  # profiles at a time
FEW: Final = 3  # people on one id, or refusals, below which nothing is said
LARGE: Final = 20  # ids or merges of one profile, below which nothing is said however small the others are
BEYOND: Final = 10  # times the average that makes a profile large
REFUSING: Final = 20  # ids refused to one profile, below which nothing is said

PLACEHOLDERS: Final = (
    "undefined", "none", "n/a", "na", "nan", "nil", "null", "unknown", "test", "guest", "user", "default", "anonymous",
    "[object Object]", "{{user_id}}", "${user_id}", "%user_id%", "<user_id>", "true", "false", "0", "-1", "xxx", "asdf",
    "undefined@undefined", "null@null", "none@none.com", "test@test.com", "a@a.com", "no@email.com", "na@na.com",
)  # fmt: skip
"""Values that programs and people write where there is no id."""
_BEGINNINGS: Final = ("test@", "noreply@", "no-reply@", "donotreply@", "example@", "noemail@", "none@", "unknown@")
_ZEROES: Final = "00000"


@dataclass(frozen=True, slots=True)
class Suspect:
    """`subject` is an id or a profile, `score` from 0 to 100, `counts` what was counted, `mend` commands and settings."""

    kind: str
    subject: str
    score: int
    says: str
    counts: Mapping[str, int]
    mend: Sequence[str]


def suspects(connection: Connection, rules: Rules, most: int = 50) -> list[Suspect]:
    """The worst `most`, the worst first."""
    found = (
        *_shared(connection, rules, most),
        *_bridges(connection, rules, most),
        *_placeholders(connection, rules, most),
        *_large(connection, rules, most),
        *_refusing(connection, rules, most),
    )
    return sorted(found, key=lambda one: (-one.score, one.kind, one.subject))[:most]


# ── Ids ───────────────────────────────────────────────────────────────────────────────────────────────────────────

_REFUSED: Final = text(
    """
    SELECT key, count(DISTINCT profile) AS profiles, sum(count) AS times FROM violations
    WHERE profile <> '' AND key NOT LIKE '%:*' GROUP BY key HAVING count(DISTINCT profile) >= :few
    ORDER BY profiles DESC, key LIMIT :most
    """
)


def _shared(connection: Connection, rules: Rules, most: int) -> Iterator[Suspect]:
    """An id that many people bring and one holds: a shared device, a family's e-mail address."""
    rows = connection.execute(_REFUSED, {"few": FEW, "most": most}).all()
    held = _profile_mates(connection, [row.key for row in rows], rules)
    for key, profiles, times in rows:
        yield Suspect(
            "shared_id",
            key,
            _score(40, 12, int(profiles) + 1, 2),
            f"was refused to {profiles:,} profiles, {int(times):,} times: many people share it",
            {"profiles": int(profiles), "refused": int(times)},
            [*_cut(key, held.get(key)), _block(key)],
        )


_BRIDGES: Final = """
    SELECT hub, count(*) AS people FROM (
      SELECT a AS hub FROM edges WHERE b LIKE :kind AND a NOT LIKE :kind
      UNION ALL SELECT b FROM edges WHERE a LIKE :kind AND b NOT LIKE :kind
    ) linked GROUP BY hub HAVING count(*) >= :few ORDER BY people DESC, hub LIMIT :most
"""
_NEIGHBOURS: Final = "SELECT a, b FROM edges WHERE a {}"
_NEIGHBOURS_BACK: Final = "SELECT b, a FROM edges WHERE b {}"


def _bridges(connection: Connection, rules: Rules, most: int) -> Iterator[Suspect]:
    """An id that ties several ids of a trusted type together: a device over which people were merged."""
    for kind in rules.config.priority:
        least = max(FEW, min(rules.type(kind).limit, 1_000) // 2)
        asked = {"kind": f"{kind}:%", "few": least, "most": most}
        hubs = {row.hub: int(row.people) for row in connection.execute(text(_BRIDGES), asked)}
        lesser = [key for key in hubs if rules.type(key.partition(":")[0]).rank > rules.type(kind).rank]
        near: defaultdict[str, list[str]] = defaultdict(list)
        for sql in (_NEIGHBOURS, _NEIGHBOURS_BACK):
            for hub, other in bulk.select(connection, sql, sorted(lesser)):
                if other.startswith(f"{kind}:"):
                    near[hub].append(other)
        for key in lesser:
            yield Suspect(
                "bridge",
                key,
                _score(35, 12, hubs[key], FEW - 1),
                f"ties {hubs[key]:,} ids of type {kind} together: people who share it became one",
                {"people": hubs[key]},
                [_command("unmerge --cut", key, other) for other in sorted(near[key])[1:4]] + [_block(key)],
            )


def _placeholders(connection: Connection, rules: Rules, most: int) -> Iterator[Suspect]:
    """Values that stand where there was no id, and nobody has blocked."""
    kinds = [name for name, one in rules.types.items() if one.enabled]
    values = {form for value in PLACEHOLDERS for form in (value, value.lower(), value.upper(), value.capitalize())}
    wanted = [f"{kind}:{value}" for kind in kinds for value in sorted(values)]
    keys = {
        key for (key,) in bulk.select(connection, "SELECT key FROM nodes WHERE profile IS NOT NULL AND key {}", wanted)
    }
    for kind in kinds:
        keys.update(
            one for one in keys_with(connection, f"{kind}:{_ZEROES}", "", most) if not one.partition(":")[2].strip("0-")
        )
    for beginning in _BEGINNINGS:
        keys.update(keys_with(connection, f"email:{beginning}", "", most))
    table = schema.nodes.c
    events = {
        row.key: row.events
        for start in range(0, len(keys), 500)
        for row in connection.execute(
            select(table.key, table.events).where(table.key.in_(sorted(keys)[start : start + 500]))
        )
    }
    worst = heapq.nlargest(most, events, key=lambda key: (events[key], key))
    held = _profile_mates(connection, worst, rules)
    for key in worst:
        sure = 60 if key.partition(":")[2].lower() in {value.lower() for value in PLACEHOLDERS} else 35
        yield Suspect(
            "placeholder",
            key,
            _score(sure, 5, events[key] + 1, 1),
            f"looks like no id of anybody: {events[key]:,} events hang on it",
            {"events": events[key]},
            [_block(key), *_cut(key, held.get(key))],
        )


# ── Profiles ──────────────────────────────────────────────────────────────────────────────────────────────────────

_ROOTS: Final = text(
    """
    SELECT id, ids, merges, events FROM profiles WHERE id > :after AND merged_into IS NULL ORDER BY id LIMIT :most
    """
)
_LATEST_MERGE: Final = """
    WITH RECURSIVE family(root, id) AS (
      SELECT id, id FROM profiles WHERE id {}
      UNION ALL SELECT family.root, profiles.id FROM profiles JOIN family ON profiles.merged_into = family.id
    )
    SELECT family.root, merges.id, merges.seq FROM merges JOIN family ON merges.absorbed = family.id
    WHERE merges.undone_by IS NULL
"""
_Large = tuple[int, str, int, int]  # ids, profile, merges, events


def _large(connection: Connection, rules: Rules, most: int) -> Iterator[Suspect]:
    """Profiles with far more ids, or made of far more profiles, than others."""
    by_ids: list[_Large] = []
    by_merges: list[_Large] = []
    profiles = ids = merges = 0
    for name, held, joined, events in _roots(connection):
        profiles, ids, merges = profiles + 1, ids + held, merges + joined
        _keep(by_ids, (held, name, joined, events), most)
        _keep(by_merges, (joined, name, held, events), most)
    if not profiles:
        return
    normal = max(LARGE, BEYOND * ids / profiles)
    many = max(LARGE, BEYOND * merges / profiles)
    grown = {name: (held, joined, events) for held, name, joined, events in by_ids if held >= normal}
    grown |= {name: (held, joined, events) for joined, name, held, events in by_merges if joined >= many}
    latest: dict[str, tuple[int, str]] = {}
    for root, merge, seq in bulk.select(connection, _LATEST_MERGE, sorted(grown)):
        latest[root] = max(latest.get(root, (0, "")), (seq, merge))
    for name, (held, joined, events) in sorted(grown.items()):
        average = ids / profiles
        yield Suspect(
            "large_profile",
            name,
            max(_score(30, 10, held, normal), _score(30, 10, joined, many)),
            f"has {held:,} ids and is made of {joined + 1:,} profiles, where {average:.1f} ids are the average",
            {"ids": held, "merges": joined, "events": events},
            [f"millrace identity explain {name}"]
            + ([f"millrace identity unmerge {latest[name][1]}"] if name in latest else []),
        )


def _roots(connection: Connection) -> Iterator[tuple[str, int, int, int]]:
    after = ""
    while rows := connection.execute(_ROOTS, {"after": after, "most": PAGE}).all():
        for name, ids, merges, events in rows:
            yield name, sum(json_loads(ids).values()), merges, events
        after = rows[-1][0]


def _keep(heap: list[_Large], one: _Large, most: int) -> None:
    if len(heap) < most:
        heapq.heappush(heap, one)
    elif one > heap[0]:
        heapq.heapreplace(heap, one)


_REFUSING_PROFILES: Final = text(
    """
    SELECT profile, count(DISTINCT key) AS keys, sum(count) AS times FROM violations WHERE profile <> ''
    GROUP BY profile HAVING count(DISTINCT key) >= :few ORDER BY keys DESC, profile LIMIT :most
    """
)


def _refusing(connection: Connection, rules: Rules, most: int) -> Iterator[Suspect]:
    """A profile to which many ids were refused: somebody who is several people, or a limit that is too low."""
    for profile, keys, times in connection.execute(_REFUSING_PROFILES, {"few": REFUSING, "most": most}):
        yield Suspect(
            "refusing_profile",
            profile,
            _score(20, 10, int(keys), REFUSING),
            f"had {int(keys):,} ids refused, {int(times):,} times: several people in one, or a limit that is too low",
            {"ids_refused": int(keys), "refused": int(times)},
            [f"millrace identity explain {profile}"],
        )


# ── What mends ────────────────────────────────────────────────────────────────────────────────────────────────────


def _score(least: float, each: float, number: float, normal: float) -> int:
    """`least` at what is just beyond normal, `each` more for every doubling."""
    return 0 if number < normal else min(100, round(least + each * log2(max(1.0, number / normal))))


def _profile_mates(connection: Connection, keys: Iterable[str], rules: Rules) -> dict[str, str]:
    """For each id the most trusted other one that it is linked with."""
    best: dict[str, str] = {}
    wanted = sorted(set(keys))
    for sql in (_NEIGHBOURS, _NEIGHBOURS_BACK):
        for key, other in bulk.select(connection, sql, wanted):
            if key not in best or _trust(other, rules) < _trust(best[key], rules):
                best[key] = other
    return best


def _trust(key: str, rules: Rules) -> tuple[int, str]:
    return rules.type(key.partition(":")[0]).rank, key


def _cut(key: str, other: str | None) -> list[str]:
    return [] if other is None else [_command("unmerge --cut", other, key)]


def _command(verb: str, *ids: str) -> str:
    return " ".join(("millrace identity", verb, *map(quote, ids)))


def _block(key: str) -> str:
    kind, _, value = key.partition(":")
    return f"identity.types.{kind}.blocked.values: [{json.dumps(value, ensure_ascii=False)}]"
