"""Dead letters, for people: by cause, one by one, and what can be done with them."""

import base64
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final

from pydantic import ValidationError
from sqlalchemy import Connection

from pipeline.query.pages import limit_of, opened, sealed
from pipeline.query.times import micros_of
from pipeline.store import letters
from pipeline.store.database import Database
from pipeline.store.letters import Chosen, Group, Letter, Place, Sample
from pipeline.store.replays import destination_of
from schemas.api import (
    Cursor,
    DeadLetter,
    DeadLetterGroup,
    DeadLetterList,
    DeadLettersPage,
    DeadLetterView,
    DeadLetterViews,
    ExchangeSample,
    LettersChosen,
    LettersMoved,
)
from schemas.causes import remedy_of
from schemas.errors import Refused
from schemas.events import decode_resolved, iso, materialize
from schemas.exact_json import json_loads
from schemas.openapi import TEXT, Parameter, whole

MOST_GROUPS: Final = 500
MOST_LETTERS: Final = 200
LOOKED: Final = 5_000  # letters looked at in one request, so that none takes long
SHOWN: Final = 50  # destinations of one event

GROUPS: Final = (
    Parameter("destination", "Only of this destination, or of a replay by its name in the ledger.", TEXT),
    Parameter("cause", "Only with this cause.", TEXT),
    Parameter("since", "Died at this time or later, ISO 8601.", TEXT),
    Parameter("until", "Died before this time, ISO 8601.", TEXT),
    Parameter("limit", "At most so many.", whole(1, MOST_GROUPS, 100)),
    Parameter("next", "The cursor of the page before.", TEXT),
)
LIST: Final = (
    *GROUPS[1:4],
    Parameter("limit", "At most so many.", whole(1, MOST_LETTERS, 50)),
    GROUPS[5],
)

_Move = Callable[[Connection, str, Sequence[Place], int], int]


async def groups(database: Database, query: Mapping[str, str], url: str) -> DeadLettersPage:
    """A page of groups by destination and cause."""
    limit = limit_of(query, default=100, most=MOST_GROUPS)
    found = opened(query, "dead-letters", str)
    after = None if found is None else (found[0], found[1][0])
    chosen = _chosen(query, query.get("destination"))
    rows = await database.read(partial(letters.groups, chosen=chosen, after=after, most=limit + 1))
    shown, more = rows[:limit], len(rows) > limit
    following = sealed("dead-letters", shown[-1].destination, shown[-1].cause) if more else ""
    return DeadLettersPage(
        data=[_group(one) for one in shown], cursor=Cursor(url=url, has_more=more, next=following, limit=limit)
    )


async def listed(database: Database, destination: str, query: Mapping[str, str], url: str) -> DeadLetterList:
    """A page of a destination's letters. One that has few of many may be empty and yet go on."""
    limit = limit_of(query, default=50, most=MOST_LETTERS)
    after = _place(query, destination)
    chosen = _chosen(query, destination)
    found, last = await database.read(
        partial(letters.walk, destination=destination, chosen=chosen, after=after, most=limit, looked=LOOKED)
    )
    return DeadLetterList(
        data=[DeadLetter(**_facts(one)) for one in found],
        cursor=Cursor(url=url, has_more=last is not None, next=_sealed(destination, last), limit=limit),
    )


async def show(database: Database, message_id: str) -> DeadLetterViews:
    """What is dead of an event. Refused when nothing is."""
    wanted = message_id.replace("\0", "\ufffd")

    def read(connection: Connection) -> list[DeadLetterView]:
        return [
            _view(letter, value, letters.sample_of(connection, destination_of(letter.destination), letter.cause))
            for letter, value in letters.of_message(connection, wanted, SHOWN)
        ]

    found = await database.read(read)
    if not found:
        raise Refused("not_found", "No dead letter has this messageId; `millrace event` tells its path.", status=404)
    return DeadLetterViews(letters=found)


async def retry(database: Database, destinations: Collection[str], body: dict[str, Any]) -> LettersMoved:
    """Puts letters back, at most so many as one request may look at; the answer says where to go on. Refused when nobody
    would deliver them."""
    chosen = _body(body)
    name = destination_of(chosen.destination)
    if name not in destinations:
        raise Refused(
            "unknown_destination",
            f"No destination is called {name[:100]!r}: letters would wait for ever. Configure it, or purge them.",
            status=409,
        )
    return await _move(database, chosen, letters.put_back)


async def purge(database: Database, body: dict[str, Any]) -> LettersMoved:
    """Gives letters up, likewise."""
    return await _move(database, _body(body), letters.give_up)


async def _move(database: Database, body: LettersChosen, move: _Move) -> LettersMoved:
    name = body.destination
    query = {"next": body.next} | {key: value for key in ("cause", "since", "until") if (value := getattr(body, key))}
    chosen, after = _chosen(query, name), _place(query, name)
    found, last = await database.read(
        partial(letters.walk, destination=name, chosen=chosen, after=after, most=LOOKED, looked=LOOKED)
    )
    places = [Place(one.partition, one.offset) for one in found]
    at = time.time_ns() // 1_000
    count = 0 if not places else await database.run(lambda connection: move(connection, name, places, at))
    return LettersMoved(count=count, next=_sealed(name, last))


# ── What is asked ─────────────────────────────────────────────────────────────────────────────────────────────────


def _body(body: dict[str, Any]) -> LettersChosen:
    try:
        return LettersChosen.model_validate(body)
    except ValidationError as error:
        raise Refused("validation_error", "; ".join(fault(one) for one in error.errors())) from error


def fault(one: Any) -> str:
    return f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}"


def _chosen(query: Mapping[str, str], destination: str | None) -> Chosen:
    return Chosen(
        destination=_text(destination),
        cause=_text(query.get("cause")),
        since=micros_of(query, "since"),
        until=micros_of(query, "until"),
    )


def _text(words: str | None) -> str | None:
    """PostgreSQL has no NUL in text, and nothing in the ledger has."""
    return None if words is None else words.replace("\0", "\ufffd")


def _place(query: Mapping[str, str], destination: str) -> Place | None:
    found = opened(query, "letters", int, int)
    if found is None:
        return None
    owner, (partition, offset) = found
    if owner != destination or not 0 <= partition < 1 << 15 or offset < 0:
        raise Refused("invalid_request_error", "The cursor is of another list; begin again without `next`.")
    return Place(partition, offset)


def _sealed(destination: str, place: Place | None) -> str:
    return "" if place is None else sealed("letters", destination, *place)


# ── What is answered ──────────────────────────────────────────────────────────────────────────────────────────────


def _group(one: Group) -> DeadLetterGroup:
    return DeadLetterGroup(
        destination=one.destination,
        cause=one.cause,
        count=one.letters,
        first_at=iso(one.first_at),
        last_at=iso(one.last_at),
        message_id=one.message_id,
        reason=one.reason,
        remedy=remedy_of(one.cause),
    )


def _facts(one: Letter) -> dict[str, Any]:
    return {
        "destination": one.destination,
        "source": one.source,
        "message_id": one.message_id,
        "profile": one.profile or None,
        "cause": one.cause,
        "reason": one.reason,
        "remedy": remedy_of(one.cause),
        "attempts": one.attempts,
        "first_at": iso(one.first_at),
        "died_at": iso(one.died_at),
        "partition": one.partition,
        "offset": one.offset,
    }


def _view(letter: Letter, value: bytes | None, sample: Sample | None) -> DeadLetterView:
    return DeadLetterView(
        **_facts(letter),
        event=None if value is None else _event(value),
        record=None if value is None else base64.b64encode(value).decode(),
        sample=None if sample is None else _exchange(sample),
    )


def _exchange(sample: Sample) -> ExchangeSample:
    return ExchangeSample(
        at=iso(sample.at),
        message_id=sample.message_id,
        request=json_loads(sample.request.encode()),
        answer=json_loads(sample.answer.encode()) if sample.answer else None,
    )


def _event(value: bytes) -> Mapping[str, Any] | None:
    try:
        return materialize(decode_resolved(value))
    except ValueError:
        return None
