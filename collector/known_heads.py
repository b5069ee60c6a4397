"""Heads of requests that came before. A client repeats its head but for the length of the body, so what the parser said of it the first
time is known of it the next: most requests need no parser.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from collector.headers import Headers, content_encoding
from collector.routes import Route

MOST: Final = 4_096
MOST_BYTES: Final = 2_048
DIGITS: Final = 9  # more are for the parser to refuse
_LENGTH: Final = b"ength: "
_LENGTH_SIZE: Final = len(_LENGTH)


class KnownHead(NamedTuple):
    """What the parser made of a head, wherever its body ends. The connection stays open."""

    route: Route
    authorization: bytes | None
    origin: bytes | None
    encoding: bytes
    forwarded: Sequence[bytes]  # the values of X-Forwarded-For


class KnownHeads:
    """Heads by what there is of them beside the number behind the first field whose name ends in length; that of the body, as `learn` makes
    sure. Bounded: rather than finding out which are old, all are forgotten."""

    def __init__(self) -> None:
        self._heads: dict[bytes, KnownHead] = {}
        self._numbers: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._heads)

    def find(self, data: bytes) -> tuple[KnownHead, int, int] | None:
        """The head that data begins with, the length of its body, and where that begins."""
        end = data.find(b"\r\n\r\n") + 4
        at = data.find(_LENGTH, 0, end) + _LENGTH_SIZE
        stop = data.find(b"\r", at, end)
        known = self._heads.get(data[:at] + data[stop:end])
        if known is None:
            return None
        length = self._numbers.get(data[at:stop])
        if length is None and (length := self._number(data[at:stop])) is None:
            return None
        return known, length, end

    def learn(self, head: bytes, headers: Headers, route: Route) -> None:
        """Keeps what `headers` say, which the parser found in a whole head that lets the connection stay open, if nothing but one number
        says where the body ends."""
        values = dict(headers)
        if len(head) > MOST_BYTES or not values.keys().isdisjoint(_PECULIAR):
            return
        at = head.find(_LENGTH) + _LENGTH_SIZE
        stop = head.find(b"\r", at)
        name = head[head.rfind(b"\n", 0, at) + 1 : at]
        if name.lower() != b"content-length: " or values.get(b"content-length") != head[at:stop]:
            return
        if len(self._heads) >= MOST:
            self._heads.clear()
        self._heads[head[:at] + head[stop:]] = KnownHead(
            route,
            values.get(b"authorization"),
            values.get(b"origin"),
            content_encoding(headers),
            [value for name, value in headers if name == b"x-forwarded-for"],
        )

    def _number(self, digits: bytes) -> int | None:
        if not digits.isdigit() or len(digits) > DIGITS:
            return None
        if len(self._numbers) >= MOST:
            self._numbers.clear()
        number = self._numbers[digits] = int(digits)
        return number


_PECULIAR: Final = frozenset((b"expect", b"transfer-encoding", b"upgrade"))
