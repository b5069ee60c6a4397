"""A population that is easy to check: each message says what it does to profiles and where it stands in its device's order.

People own up to three devices. They look around, log in, click newsletters, log out, come back on another device, send
what an offline phone had kept, and cause events on a server. No one exceeds an identity limit, so that any order of the
same messages must give the same profiles.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from random import Random
from typing import Any, Final
from uuid import UUID

MOST_DEVICES: Final = 3
TABLES: Final = {"track": "tracks", "identify": "identifies", "page": "pages"}
EVENT_TABLES: Final = {
    "Product Viewed": "product_viewed",
    "Order Completed": "order_completed",
    "Newsletter Clicked": "newsletter_clicked",
    "Invoice Paid": "invoice_paid",
}
_PLANS: Final = ("free", "club", "business")
_PADDING: Final = "Sourdough is flour, water and time. " * 4


@dataclass(frozen=True, slots=True)
class Message:
    """One event. `number` orders the messages of one `device`, where `ordered` says that it may be relied on; `at` is in
    milliseconds and different for every message."""

    id: str
    device: str  # anonymousId, else userId: the partition key
    number: int
    kind: str
    event: str | None
    ids: tuple[str, ...]
    at: int
    traits: Mapping[str, Any]
    body: bytes
    ordered: bool = True
    twin: bytes | None = None  # the same message as another part of the shop sends it: under another key


@dataclass(slots=True)
class _Device:
    anonymous_id: str
    logged_in: bool = False
    numbers: Iterator[int] = field(default_factory=count)


class Person:
    """Somebody who acts. `clock` is shared by everyone, so that no two messages have one time."""

    def __init__(self, number: int, random: Random, clock: Iterator[int], start: datetime) -> None:
        self.user_id = f"u{number}"
        self.email = f"person.{number}@example.com"
        self._random, self._clock, self._start = random, clock, start
        self._devices: list[_Device] = []
        self._server_numbers = count()
        self._logins = 0

    def visit(self) -> list[Message]:
        """What happens on one device until it is left again, in order. Must be sent in order."""
        if self._logins and self._random.random() < 0.1:
            return [self._server_event() for _ in range(self._random.randint(1, 3))]
        device = self._device()
        messages = list(self._look_around(device))
        if self._random.random() < (0.15 if device.logged_in else 0.4):
            messages += self._log_in(device)
        elif not device.logged_in and self._random.random() < 0.15:
            messages.append(
                self._track(device, "Newsletter Clicked", {"email": self.email.upper()}, more=self._emails())
            )
        if device.logged_in and self._random.random() < 0.3:
            messages.append(self._track(device, "Order Completed", {"revenue": self._random.randint(1, 90)}))
        if self._random.random() < 0.1:
            device.logged_in = False
        return messages

    def _device(self) -> _Device:
        if not self._devices or (len(self._devices) < MOST_DEVICES and self._random.random() < 0.25):
            self._devices.append(_Device(str(UUID(int=self._random.getrandbits(128), version=4))))
        return self._random.choice(self._devices)

    def _look_around(self, device: _Device) -> Iterator[Message]:
        yield self._event(device, "page", {"name": "Home", "properties": {"path": "/"}})
        for _ in range(self._random.randint(0, 9)):
            yield self._track(device, "Product Viewed", {"sku": f"p-{self._random.randint(1, 99)}"})

    def _log_in(self, device: _Device) -> Iterator[Message]:
        device.logged_in = True
        self._logins += 1
        traits = {"email": self.email, "logins": self._logins, "plan": self._random.choice(_PLANS)}
        if self._random.random() < 0.5:
            traits["nickname"] = self._random.choice((None, "Addie", "Millie"))
        yield self._event(device, "identify", {"traits": traits}, more=self._emails(), traits=traits)

    def _emails(self) -> tuple[str, ...]:
        return (f"email:{self.email}",)

    # ── Messages ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _track(self, device: _Device, event: str, properties: Mapping[str, Any], more: tuple[str, ...] = ()) -> Message:
        return self._event(device, "track", {"event": event, "properties": properties}, more=more)

    def _event(
        self,
        device: _Device,
        kind: str,
        content: Mapping[str, Any],
        *,
        more: tuple[str, ...] = (),
        traits: Mapping[str, Any] | None = None,
    ) -> Message:
        at, message_id = self._time(), self._message_id()
        who = {"anonymousId": device.anonymous_id} | ({"userId": self.user_id} if device.logged_in else {})
        body = _body(kind, message_id, at, who, content)
        twin = None
        if kind == "track" and device.logged_in and self._random.random() < 0.02:
            twin = _body(kind, message_id, at, {"userId": self.user_id}, content)
        return Message(
            id=message_id,
            device=device.anonymous_id,
            number=next(device.numbers),
            kind=kind,
            event=content.get("event"),
            ids=(*self._user(device.logged_in), *more, f"anonymous_id:{device.anonymous_id}"),
            at=at,
            traits=traits or {},
            body=body,
            ordered=twin is None,
            twin=twin,
        )

    def _server_event(self) -> Message:
        at, message_id = self._time(), self._message_id()
        content = {"event": "Invoice Paid", "properties": {"amount": self._random.randint(1, 90)}}
        return Message(
            id=message_id,
            device=self.user_id,
            number=next(self._server_numbers),
            kind="track",
            event="Invoice Paid",
            ids=self._user(True),
            at=at,
            traits={},
            body=_body("track", message_id, at, {"userId": self.user_id}, content),
        )

    def _user(self, known: bool) -> tuple[str, ...]:
        return (f"user_id:{self.user_id}",) if known else ()

    def _message_id(self) -> str:
        return f"m-{self._random.getrandbits(96):024x}"

    def _time(self) -> int:
        """Now and then an hour late, as from a phone that was offline."""
        late = 3_600_000 if self._random.random() < 0.1 else 0
        return int(self._start.timestamp() * 1000) + next(self._clock) - late


def population(people: int, random: Random) -> list[Person]:
    """So many people, whose messages are of the past: nobody's clock is ahead."""
    clock, start = count(), datetime.now(UTC) - timedelta(hours=2)
    return [Person(number, random, clock, start) for number in range(people)]


def _body(kind: str, message_id: str, at: int, who: Mapping[str, str], content: Mapping[str, Any]) -> bytes:
    timestamp = datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds")
    context = {"library": {"name": "crash", "version": "1"}, "locale": "en-GB", "page": {"title": _PADDING}}
    whole = {"type": kind, "messageId": message_id, "timestamp": timestamp, **who, **content, "context": context}
    return json.dumps(whole, separators=(",", ":")).encode()


# ── What must come of them ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Profile:
    """What a person's profile must hold; `traits` without those that were deleted."""

    ids: tuple[str, ...]  # sorted
    events: int
    traits: Mapping[str, Any]


def expected_profiles(messages: Iterable[Message]) -> dict[tuple[str, ...], Profile]:
    """The profiles that these messages, each once, must give: connected ids, with the latest write of each trait. By the
    ids of a profile."""
    messages = list(messages)
    groups: dict[str, list[Message]] = {}
    root = _components(messages)
    for one in messages:
        groups.setdefault(root[one.ids[0]], []).append(one)
    ids: dict[str, list[str]] = {}
    for name, top in root.items():
        ids.setdefault(top, []).append(name)
    profiles = [Profile(tuple(sorted(ids[top])), len(group), _traits(group)) for top, group in groups.items()]
    return {one.ids: one for one in profiles}


def _components(messages: Iterable[Message]) -> dict[str, str]:
    """Each id's representative."""
    parent: dict[str, str] = {}

    def find(one: str) -> str:
        parent.setdefault(one, one)
        while parent[one] != one:
            parent[one] = one = parent[parent[one]]
        return one

    for message in messages:
        first, *others = message.ids
        for other in others:
            parent[find(other)] = find(first)
        find(first)
    return {one: find(one) for one in parent}


def _traits(messages: Iterable[Message]) -> dict[str, Any]:
    written: dict[str, Any] = {}
    for message in sorted(messages, key=lambda one: one.at):
        written |= message.traits
    return {name: value for name, value in sorted(written.items()) if value is not None}
