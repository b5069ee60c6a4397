"""Heads of requests that came before. A client repeats its head but for the length of the body, so what the parser said of it the first
time is known of it the next: most requests need no parser.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from collector.headers import Headers, content_encoding
from collector.routes import Route

MOST: Final = 4_096
MOST_BYTES: Final = 2_048
_LENGTH: Final = b"ength: "


class KnownHead(NamedTuple):
    """What the parser made of a head, wherever its body ends."""

    route: Route
    keep_alive: bool
    authorization: bytes | None
    origin: bytes | None
    encoding: bytes
    forwarded: Sequence[bytes]  # the values of X-Forwarded-For


def template(data: bytes, end: int) -> tuple[bytes, bytes]:
    """The head that ends at `end`, without the number behind the first field whose name ends in length; and that number. What has no
    such field has no template that `learn` keeps."""
    at = data.find(_LENGTH, 0, end) + len(_LENGTH)
    stop = data.find(b"\r", at, end)
    return data[:at] + data[stop:end], data[at:stop]


class KnownHeads(dict[bytes, KnownHead]):
    """By template. Bounded: rather than finding out which are old, all are forgotten."""

    def learn(self, head: bytes, headers: Headers, route: Route, keep_alive: bool) -> None:
        """Keeps what `headers` say, which the parser found in a whole head; if the number that its template lacks is that of the body, and
        nothing else in it tells where the body ends or how it comes."""
        values = dict(headers)
        if len(head) > MOST_BYTES or not values.keys().isdisjoint(_PECULIAR):
            return
        key, digits = template(head, len(head))
        if not digits.isdigit() or values.get(b"content-length") != digits or not _is_of_the_body(head):
            return
        if len(self) >= MOST:
            self.clear()
        self[key] = KnownHead(
            route,
            keep_alive,
            values.get(b"authorization"),
            values.get(b"origin"),
            content_encoding(headers),
            [value for name, value in headers if name == b"x-forwarded-for"],
        )


_PECULIAR: Final = frozenset((b"expect", b"transfer-encoding", b"upgrade"))


def _is_of_the_body(head: bytes) -> bool:
    at = head.find(_LENGTH)
    name = head[head.rfind(b"\n", 0, at) + 1 : at + len(_LENGTH)]
    return name.lower() == b"content-length: "
