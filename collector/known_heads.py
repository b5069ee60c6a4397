"""Heads of requests that came before. A client repeats its head but for the length of the body, so what the parser said of it the first
time is known of it the next: most requests need no parser. Proxies and tracing add lines that are different each time, and browsers tell
who they are; without these lines such heads are alike as well.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from collector.headers import Headers, content_encoding
from collector.routes import Route

MOST: Final = 4_096
MOST_BYTES: Final = 2_048
DIGITS: Final = 9  # more are for the parser to refuse
_LENGTH: Final = b"ength: "
_LENGTH_SIZE: Final = len(_LENGTH)
# Fields that say nothing of how a request is to be taken, as they are usually spelled. X-Forwarded-For does, and its values are read.
_VARYING: Final = (
    *("User-Agent", "Referer", "Accept-Language", "Cookie", "Forwarded", "X-Real-Ip", "True-Client-Ip"),
    *("X-Request-Id", "X-Correlation-Id", "X-Amzn-Trace-Id", "X-Cloud-Trace-Context", "Cf-Ray", "Cf-Connecting-Ip"),
    *("Traceparent", "Tracestate", "Baggage", "X-Amz-Cf-Id"),
)


class KnownHead(NamedTuple):
    """What the parser made of a head, wherever its body ends. The connection stays open."""

    route: Route
    authorization: bytes | None
    origin: bytes | None
    encoding: bytes
    forwarded: Sequence[bytes]  # the values of X-Forwarded-For


class KnownHeads:
    """Heads by what there is of them beside the number behind the first field whose name ends in length; that of the body, as `learn` makes
    sure. Bounded: rather than finding out which are old, all are forgotten. `alike` are heads by their constant lines."""

    def __init__(self) -> None:
        self._heads: dict[bytes, KnownHead] = {}
        self._numbers: dict[bytes, int] = {}
        self.alike: dict[bytes, KnownHead] = {}

    def __len__(self) -> int:
        return len(self._heads)

    def find(self, data: bytes) -> tuple[KnownHead, int, int] | None:
        """The head that data begins with, the length of its body, and where that begins."""
        end = data.find(b"\r\n\r\n") + 4
        at = data.find(_LENGTH, 0, end) + _LENGTH_SIZE
        stop = data.find(b"\r", at, end)
        head = data[:at] + data[stop:end]
        known = self._heads.get(head)
        if known is None and (known := self._find_alike(head)) is None:
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
        known = KnownHead(
            route,
            values.get(b"authorization"),
            values.get(b"origin"),
            content_encoding(headers),
            [value for name, value in headers if name == b"x-forwarded-for"],
        )
        key = head[:at] + head[stop:]
        constant, forwarded = _constant(key)
        _keep(self._heads, key, known)
        if len(forwarded) == len(known.forwarded):  # spelled in the usual way
            _keep(self.alike, constant, known._replace(forwarded=()))

    def _find_alike(self, head: bytes) -> KnownHead | None:
        """A head that has the constant lines of one that came before."""
        if len(head) > MOST_BYTES:
            return None
        constant, forwarded = _constant(head)
        known = self.alike.get(constant)
        if known is None:
            return None
        if forwarded:
            known = KnownHead(*known[:-1], forwarded)
        _keep(self._heads, head, known)
        return known

    def _number(self, digits: bytes) -> int | None:
        if not digits.isdigit() or len(digits) > DIGITS:
            return None
        if len(self._numbers) >= MOST:
            self._numbers.clear()
        number = self._numbers[digits] = int(digits)
        return number


def _keep(heads: dict[bytes, KnownHead], key: bytes, head: KnownHead) -> None:
    if len(heads) >= MOST:
        heads.clear()
    heads[key] = head


def _constant(head: bytes) -> tuple[bytes, Sequence[bytes]]:
    """A head without the lines that vary, and the values of X-Forwarded-For."""
    parts = _LINES.split(head)
    return b"".join(parts[::2]), [value for value in parts[1::2] if value is not None]


def _lines(names: Iterable[str]) -> "re.Pattern[bytes]":
    """Finds whole lines with these fields, the value of the first one apart. No control characters in them, and no line that is continued by the
    next (what is left of that is in no head that became known, either): all other is the parser's to judge."""
    first, *others = [
        "-".join(f"[{word[0]}{word[0].lower()}]{_tail(word)}" for word in name.split("-")) for name in names
    ]
    value = "[!-~](?:[ -~]*[!-~])?"
    return re.compile(f"\r\n(?:{first}: ({value})|(?:{'|'.join(others)}): {value})(?=\r\n[^ \t])".encode())


def _tail(word: str) -> str:
    return f"[{word[1]}{word[1].upper()}]" if word in ("Id", "Ip") else word[1:]


_LINES: Final = _lines(("X-Forwarded-For", *_VARYING))
_PECULIAR: Final = frozenset((b"expect", b"transfer-encoding", b"upgrade"))
