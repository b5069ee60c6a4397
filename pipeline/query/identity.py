"""`/api/identity`: why a profile is what it is, taking profiles apart and together again, and what looks wrong."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import structlog

from pipeline.identity import Rules
from pipeline.log import Log
from pipeline.profile import Node, Profile, values
from pipeline.split import Family
from pipeline.store import splits
from pipeline.store.database import Database
from pipeline.store.explain import Explained, Row, explain
from pipeline.store.rules import latest
from pipeline.store.splits import Done
from pipeline.store.suspects import suspects
from pipeline.telling import tell
from schemas.errors import Refused, Unavailable
from schemas.events import ExternalId, iso
from schemas.exact_json import json_loads
from schemas.identity_api import (
    Cause,
    ExplainedAccount,
    ExplainedId,
    ExplainedLink,
    ExplainedMerge,
    ExplainedMove,
    ExplainedProfile,
    ExplainedRefusal,
    ExplainedRules,
    ExplainedSplit,
    Explanation,
    Part,
    SplitDone,
    Suspects,
    SuspectView,
)

logger = structlog.get_logger()

SHOWN: Final = 1_000  # ids of one profile in the answer to a split


# ── Explaining ────────────────────────────────────────────────────────────────────────────────────────────────────


async def explanation(database: Database, address: str) -> Explanation:
    """Of the profile at `type:value` or a profile id, absorbed ones too. Refused (404) when there is none."""
    found = await database.read(lambda connection: explain(connection, _normal(address, latest(connection))))
    if found is None:
        raise Refused("not_found", "Profile was not found.", status=404)
    return _explained(found)


def _explained(found: Explained) -> Explanation:
    head = next(one for one in found.profiles if one["id"] == found.profile)
    return Explanation(
        profile=found.profile,
        collection=head["collection"],
        events=head["events"],
        profiles=[
            ExplainedProfile(
                id=one["id"],
                created_at=iso(one["created_at"]),
                message_id=one["message_id"],
                source_id=one["source"],
                merged_into=one["merged_into"],
            )
            for one in found.profiles
        ],
        ids=[_id(one) for one in found.ids],
        links=[
            ExplainedLink(a=one["a"], b=one["b"], count=one["count"], cause=_cause(one), **_times(one))
            for one in found.links
        ],
        accounts=[
            ExplainedAccount(
                id=one["node"],
                account=one["account"],
                count=one["count"],
                message_id=one["message_id"],
                source_id=one["source"],
                **_times(one),
            )
            for one in found.accounts
        ],
        merges=[
            ExplainedMerge(
                id=one["id"],
                survivor=one["survivor"],
                absorbed=one["absorbed"],
                at=iso(one["at"]),
                cause=_cause(one),
                undone_by=one["undone_by"],
            )
            for one in found.merges
        ],
        moves=[_move(one) for one in found.moves],
        splits=[_split(one) for one in found.splits],
        refused=[
            ExplainedRefusal(
                id=one["key"],
                profile=one["profile"],
                violation=one["violation"],
                count=one["count"],
                cause=_cause(one),
                **_times(one),
            )
            for one in found.refused
        ],
        rules=[
            ExplainedRules(version=one["version"], at=iso(one["at"]), rules=json_loads(one["rules"]))
            for one in found.rules
        ],
    )


def _id(one: Row) -> ExplainedId:
    kind, _, value = one["key"].partition(":")
    return ExplainedId(
        id=one["key"],
        type=kind,
        value=value,
        added_at=_time(one["added_at"]),
        cause=Cause(message_id=one["message_id"], source_id=one["source"], config_version=one["rules"]),
        first_profile=one["home"],
        events=one["events"],
        first_seen=_time(one["first_seen"]),
        last_seen=_time(one["last_seen"]),
        apart=one["apart"],
    )


def _move(one: Row) -> ExplainedMove:
    return ExplainedMove(
        id=one["key"],
        left=one["left_profile"],
        joined=one["joined"],
        at=iso(one["at"]),
        cause=_cause(one),
        mapped_at=iso(one["was_added_at"]),
        mapped_by=one["was_message_id"],
    )


def _split(one: Row) -> ExplainedSplit:
    detail = json_loads(one["detail"])
    return ExplainedSplit(
        id=one["id"],
        at=iso(one["at"]),
        profile=one["profile"],
        other=one["other"],
        merge=one["merge"],
        cut=detail["cut"],
        links=[row[:2] for row in detail["edges"]],
        lifted_at=_time(one["lifted_at"]),
    )


def _cause(one: Row) -> Cause:
    return Cause(message_id=one["message_id"], type=one["type"], source_id=one["source"], config_version=one["rules"])


def _times(one: Row) -> dict[str, str]:
    return {"first_at": iso(one["first_at"]), "last_at": iso(one["last_at"])}


def _time(at: int | None) -> str | None:
    return None if at is None else iso(at)


# ── Splitting ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def unmerge(log: Log, database: Database, body: Mapping[str, Any]) -> SplitDone:
    """Undoes `merge`, or takes the two ids of `cut` apart; with `dry_run` only says what that would do."""
    _check(body, "merge", "cut")
    merge, ids, dry_run = body.get("merge"), body.get("cut"), _dry_run(body)
    if (merge is None) == (ids is None):
        raise Refused("validation_error", 'Give either "merge": its id, or "cut": two ids as type:value.')
    if ids is None:
        wanted = _text(merge, "merge")
        return await _done(
            log, database, "unmerge", dry_run, lambda c, r: splits.unmerge(c, wanted, r, dry_run=dry_run)
        )
    if not isinstance(ids, list) or len(ids) != 2:
        raise Refused("validation_error", "cut must be two ids, such as user_id:u1 and anonymous_id:a2.")
    a, b = (_text(one, "cut") for one in ids)
    return await _done(
        log,
        database,
        "unmerge",
        dry_run,
        lambda c, r: splits.unmerge_ids(c, _external(a, r), _external(b, r), r, dry_run=dry_run),
    )


async def remerge(log: Log, database: Database, body: Mapping[str, Any]) -> SplitDone:
    """Lifts `split`; with `dry_run` only says what that would do."""
    _check(body, "split")
    split, dry_run = _text(body.get("split"), "split"), _dry_run(body)
    return await _done(log, database, "remerge", dry_run, lambda c, r: splits.remerge(c, split, r, dry_run=dry_run))


async def unmerge_of(log: Log, database: Database, address: str, body: Mapping[str, Any]) -> SplitDone:
    """Undoes `merge_id`, which must be one of the profile at an address."""
    _check(body, "merge_id")
    merge, dry_run = _text(body.get("merge_id"), "merge_id"), _dry_run(body)
    found = await database.read(lambda connection: explain(connection, _normal(address, latest(connection))))
    if found is None:
        raise Refused("not_found", "Profile was not found.", status=404)
    if merge not in {one["id"] for one in found.merges}:
        raise Refused("not_found", f"The profile has no merge {merge}; list its merges for the ids.", status=404)
    return await _done(log, database, "unmerge", dry_run, lambda c, r: splits.unmerge(c, merge, r, dry_run=dry_run))


async def _done(
    log: Log, database: Database, done: Literal["unmerge", "remerge"], dry_run: bool, work: Any
) -> SplitDone:
    run = database.read if dry_run else database.run
    made: Done = await run(lambda connection: work(connection, latest(connection)))
    if not dry_run:
        try:
            await tell(log, database)
        except Unavailable as error:
            logger.warning("destinations are told of a split later", split=made.split.id, error=str(error))
    return _shown(made, done, dry_run)


def _shown(made: Done, done: Literal["unmerge", "remerge"], dry_run: bool) -> SplitDone:
    change, before = made.change, made.before
    after = Family(before.nodes | change.nodes, before.profiles | change.profiles)
    merges = change.merges.items()
    return SplitDone(
        split=made.split.id,
        done=done,
        dry_run=dry_run,
        before=_parts(before),
        after=_parts(after),
        links_cut=[list(pair) for pair in sorted(change.cut)],
        links_restored=[list(pair) for pair in sorted(change.restored)],
        merges_undone=sorted(name for name, (_, undone_by) in merges if undone_by is not None),
        merges_restored=sorted(
            name for name, (_, undone_by) in merges if undone_by is None and name not in before.merges
        ),
        destinations_told=[one.message for one in made.told],
    )


def _parts(family: Family) -> list[Part]:
    """The canonical profiles, the earliest first."""
    held: dict[str, list[Node]] = {}
    for node in family.nodes.values():
        held.setdefault(family.root_of(node.key), []).append(node)
    roots = [one for one in family.profiles.values() if one.merged_into is None]
    return [_part(one, held.get(one.id, ())) for one in sorted(roots, key=lambda one: (one.created_at, one.id))]


def _part(profile: Profile, nodes: Iterable[Node]) -> Part:
    ids = [node.key for node in sorted(nodes, key=lambda node: (node.seq, node.key))]
    return Part(id=profile.id, ids=ids[:SHOWN], events=profile.events, traits=values(profile.traits))


# ── Suspects ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def suspicious(database: Database, query: Mapping[str, str]) -> Suspects:
    """The worst `limit` (1 to 500, default 50), the worst first."""
    limit = query.get("limit", "50")
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:6]) <= 500:
        raise Refused("validation_error", "limit must be a number from 1 to 500.")
    found = await database.read(lambda connection: suspects(connection, latest(connection), int(limit)))
    return Suspects(
        suspects=[
            SuspectView(
                kind=one.kind,
                subject=one.subject,
                score=one.score,
                says=one.says,
                counts=one.counts,
                mend=one.mend,
            )
            for one in found
        ]
    )


# ── What is asked for ─────────────────────────────────────────────────────────────────────────────────────────────


def _normal(address: str, rules: Rules) -> str:
    """How the store is asked for a profile: by an id in the form in which ids are compared, or by its own."""
    if "\0" in address or not address:
        raise Refused(
            "invalid_request_error", "Name a profile as type:value, for example user_id:u1, or by its profile id."
        )
    return str(_external(address, rules)) if ":" in address else address


def _external(text: str, rules: Rules) -> ExternalId:
    kind, colon, value = text.partition(":")
    if not kind or not colon or not value:
        raise Refused("validation_error", f"{text[:100]} is not an id; write type:value, such as user_id:u1.")
    return ExternalId(kind, rules.normalize(kind, value))


def _check(body: Mapping[str, Any], *names: str) -> None:
    unknown: Sequence[str] = sorted(body.keys() - {*names, "dry_run"})
    if unknown:
        raise Refused("validation_error", f"There is no {unknown[0][:100]!r}; give {' or '.join(names)}, and dry_run.")


def _dry_run(body: Mapping[str, Any]) -> bool:
    given = body.get("dry_run", False)
    if not isinstance(given, bool):
        raise Refused("validation_error", "dry_run must be true or false.")
    return given


def _text(given: Any, name: str) -> str:
    if not isinstance(given, str) or not given or "\0" in given:
        raise Refused("validation_error", f"{name} must be a text without NUL characters.")
    return given
