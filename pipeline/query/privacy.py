"""`/api/regulations`, `/api/suppressions`, and deleting a single identifier: what is asked for, taken and told."""

import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, cast

from sqlalchemy import Connection

from pipeline.identity import MAX_ID_BYTES, Rules
from pipeline.privacy.marks import mark
from pipeline.query.pages import limit_of
from pipeline.store import erasures, identifiers, scratches
from pipeline.store.database import Database
from pipeline.store.erasures import Regulation, Telling
from pipeline.store.rules import latest
from schemas.errors import Refused
from schemas.events import ExternalId, iso
from schemas.privacy_api import (
    KINDS,
    DestinationStatus,
    ExternalIdDeleted,
    ExternalIdDeletedAnswer,
    RegulationAnswer,
    RegulationMade,
    RegulationMadeAnswer,
    RegulationsPage,
    RegulationView,
    Status,
    StreamStatus,
    Suppression,
    SuppressionsPage,
)

MOST: Final = 5_000  # ids in one request
_WORKSPACE: Final = "default"
_NOT_OURS: Final = ("OBJECT_ID",)


# ── Requests ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def regulate(
    database: Database, body: Mapping[str, Any], destinations: Collection[str], forgetful: Collection[str]
) -> RegulationMadeAnswer:
    """Takes a request. Suppression and its lifting hold at once; deletion begins with the next look of the process role. Of the
    `destinations`, the `forgetful` can delete."""
    unknown = sorted(body.keys() - {"regulationType", "subjectType", "subjectIds"})
    if unknown:
        raise Refused("validation_error", f"A regulation has no {unknown[0][:100]!r}.")
    kind = body.get("regulationType")
    if not isinstance(kind, str) or kind not in KINDS:
        raise Refused("validation_error", f"regulationType must be one of {', '.join(KINDS)}.")
    told = {name: "INITIALIZED" if name in forgetful else "NOT_SUPPORTED" for name in destinations}
    made = await database.run(lambda connection: _take(connection, kind, _subjects(connection, body), told))
    return RegulationMadeAnswer(data=RegulationMade(regulateId=made.id, overallStatus=cast(Status, made.status)))


def _take(
    connection: Connection, kind: str, subjects: Sequence[ExternalId], destinations: Mapping[str, str]
) -> Regulation:
    now, name = time.time_ns() // 1_000, "reg_" + secrets.token_hex(12)
    deletes = "DELETE" in kind
    receipt: dict[str, Any] = {}
    if kind == "UNSUPPRESS":
        receipt["unsuppressed"] = erasures.unsuppress(connection, subjects)
    elif kind.startswith("SUPPRESS"):
        receipt["suppressed"] = erasures.suppress(connection, subjects, name, now, in_clear=True)
    key = erasures.key_of(connection)
    made = Regulation(
        id=name,
        kind=kind,
        status="INITIALIZED" if deletes else "FINISHED",
        created_at=now,
        finished_at=None if deletes else now,
        marks=[mark(key, one).hex() for one in subjects],
        work={"subjects": [str(one) for one in subjects]} if deletes else None,
        receipt=receipt,
    )
    erasures.add(connection, made, {} if not deletes or kind.endswith("_INTERNAL") else destinations)
    return made


def _subjects(connection: Connection, body: Mapping[str, Any]) -> list[ExternalId]:
    given, kind = body.get("subjectIds"), body.get("subjectType", "EXTERNAL_ID")
    if not isinstance(given, list) or not given or not all(isinstance(one, str) for one in given):
        raise Refused("validation_error", "subjectIds must be a list of at least one text.")
    if len(given) > MOST:
        raise Refused("validation_error", f"A request may name {MOST:,} ids; send the others with another.")
    if not isinstance(kind, str) or kind in _NOT_OURS:
        raise Refused("validation_error", "subjectType must be USER_ID, another id type in capitals, or EXTERNAL_ID.")
    rules = latest(connection)
    whole = kind == "EXTERNAL_ID"
    return list(dict.fromkeys(subject(one if whole else f"{kind.lower()}:{one}", rules) for one in given))


def subject(named: str, rules: Rules) -> ExternalId:
    """An id of a person, `type:value`, as events bring it. Refused when it is not one."""
    kind, _, value = named.partition(":")
    if kind not in rules.types:
        raise Refused(
            "validation_error", f"{kind[:100]!r} is no id type of this space; write type:value, such as user_id:u1."
        )
    if rules.type(kind).collection == "accounts":
        raise Refused(
            "validation_error", f"{kind} names an account; people are deleted and suppressed by their own ids."
        )
    normal = rules.normalize(kind, value)
    if not normal or "\0" in normal or len(normal.encode(errors="surrogatepass")) > MAX_ID_BYTES:
        raise Refused("validation_error", f"An id of {kind} is empty, longer than {MAX_ID_BYTES} bytes, or holds NUL.")
    return ExternalId(kind, normal)


async def regulation(database: Database, name: str) -> RegulationAnswer:
    """A request by id. Refused (404) when there is none."""

    def read(connection: Connection) -> tuple[Regulation | None, list[Telling]]:
        return erasures.find(connection, name), erasures.tellings(connection, regulation=name)

    found, told = (None, []) if "\0" in name else await database.read(read)
    if found is None:
        raise Refused("not_found", "There is no regulation with this id; list them for the ids.", status=404)
    return RegulationAnswer(data=_view(found, told))


async def regulations(database: Database, query: Mapping[str, str]) -> RegulationsPage:
    """Requests, the latest first: `limit` (1 to 100, default 20), `next`."""
    limit, following = limit_of(query, default=20, most=100), query.get("next", "")
    if following and not (following.isascii() and following.isdigit()):
        raise Refused("invalid_request_error", "next must be what the page before said.")

    def read(connection: Connection) -> list[tuple[Regulation, list[Telling]]]:
        some = erasures.page(connection, before=int(following) if following else None, most=limit)
        return [(one, erasures.tellings(connection, regulation=one.id)) for one in some]

    found = await database.read(read)
    more = str(found[-1][0].created_at) if len(found) == limit else ""
    return RegulationsPage(data=[_view(*one) for one in found], next=more)


def _view(one: Regulation, told: Sequence[Telling]) -> RegulationView:
    statuses = [
        DestinationStatus(
            name=each.destination,
            id=each.destination,
            status=cast(Status, each.status),
            errString=each.error,
            finishedAt=None if each.finished_at is None else iso(each.finished_at),
        )
        for each in told
    ]
    return RegulationView(
        id=one.id,
        workspaceId=_WORKSPACE,
        regulationType=one.kind,
        overallStatus=cast(Status, one.status),
        createdAt=iso(one.created_at),
        finishedAt=None if one.finished_at is None else iso(one.finished_at),
        streamStatus=[StreamStatus(id=_WORKSPACE, destinationStatus=statuses)] if statuses else [],
        phase=None if one.work is None else one.work.get("phase", "people"),
        subjects=one.marks,
        receipt=one.receipt,
    )


# ── Suppressions ──────────────────────────────────────────────────────────────────────────────────────────────────


async def suppressions(database: Database, query: Mapping[str, str]) -> SuppressionsPage:
    """Suppressed ids: `id` asks for one, otherwise `limit` (1 to 1,000, default 100) and `next`."""
    limit, following = limit_of(query, default=100, most=1_000), query.get("next", "")
    try:
        bytes.fromhex(following)
    except ValueError as error:
        raise Refused("invalid_request_error", "next must be what the page before said.") from error

    def read(connection: Connection) -> list[tuple[str, str | None, int]]:
        if asked := query.get("id"):
            one = erasures.is_suppressed(connection, subject(asked, latest(connection)))
            return [] if one is None else [one]
        return erasures.suppressed(connection, after=following, most=limit)

    found = await database.read(read)
    more = found[-1][0] if len(found) == limit and not query.get("id") else ""
    return SuppressionsPage(data=[Suppression(hash=a, id=b, since=iso(at)) for a, b, at in found], next=more)


# ── A single identifier ───────────────────────────────────────────────────────────────────────────────────────────


async def delete_identifier(database: Database, named: str, body: Mapping[str, Any]) -> ExternalIdDeletedAnswer:
    """Deletes the one identifier in `delete_external_ids` from the profile at `user_id:value`. Refused with the reference's codes."""
    kind, _, value = named.partition(":")
    wanted = body.get("delete_external_ids")
    if not isinstance(wanted, list) or len(wanted) != 1 or body.keys() != {"delete_external_ids"}:
        raise Refused(
            "bad_request",
            'delete_external_ids must be a list of one identifier, such as {"type": "phone", "id": "+358401234567"}.',
        )
    one = wanted[0]
    if (
        not isinstance(one, dict)
        or one.keys() != {"type", "id"}
        or not all(isinstance(each, str) for each in one.values())
    ):
        raise Refused("bad_request", "An identifier to delete has a type and an id, both texts.")
    given: tuple[str, str] = one["type"], one["id"]

    def delete(connection: Connection) -> identifiers.Forgotten:
        rules = latest(connection)
        if given[0] not in rules.types:
            raise Refused(
                "unsupported_eid_type",
                f"{given[0][:100]!r} is no id type of this space; types are configured under identity.types.",
            )
        person = ExternalId(kind, rules.normalize(kind, value))
        return identifiers.delete(connection, person, ExternalId(given[0], rules.normalize(*given)), rules)

    if "\0" in value or "\0" in given[1]:
        raise Refused("bad_request", "An id cannot hold a NUL character.")
    gone = await database.run(delete)
    await database.run(scratches.disturb)
    return ExternalIdDeletedAnswer(data=ExternalIdDeleted(profile=gone.profile, deleted_at=iso(gone.at)))
