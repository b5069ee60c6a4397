"""Requests on their way: the bytes that each holds, the one answer that each gets, and what is counted of it.

Memory is bounded: what is in flight is counted in bytes, and beyond the limit new requests are put off before their bodies are read.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog

from collector.accept import Accepted
from collector.answers import SUCCESS, error_body
from collector.counts import Counts
from collector.sources import RateLimited
from schemas.errors import Refused, Unavailable

log = structlog.get_logger()

CALM: Final = 600_000_000  # microseconds without a refusal after which another one is news
INTERNAL_ERROR: Final = error_body("internal", "an error of the server; try again")


class Exchange(ABC):
    """One request on its way: the bytes it holds, its source once known, whether the answer was given."""

    __slots__ = ("answered", "charged", "origin", "source")

    def __init__(self, origin: bytes | None = None) -> None:
        self.origin = origin  # of the page that sends, if any
        self.answered = False
        self.charged = 0
        self.source = ""

    @abstractmethod
    def reply(self, status: int, body: bytes, after: float | None) -> None:
        """Gives the answer; called once, or `succeed` is. `after` is Retry-After in seconds."""

    def succeed(self) -> None:
        """Gives the answer that nothing was lost."""
        self.reply(200, SUCCESS, None)


class Exchanges:
    """Those of one server. `in_flight_bytes` is what all of them hold."""

    def __init__(self, *, clock: Callable[[], int], max_in_flight_bytes: int) -> None:
        self.counts = Counts()
        self.in_flight_bytes = 0
        self._clock = clock
        self._max_in_flight_bytes = max_in_flight_bytes
        self._refusing: dict[tuple[str, str], int] = {}  # when a source was last refused for a reason

    def charge(self, exchange: Exchange, size: int) -> None:
        """Counts bytes as in flight until the exchange ends. A request on its own always fits."""
        others = self.in_flight_bytes - exchange.charged
        if others > 0 and self.in_flight_bytes + size > self._max_in_flight_bytes:
            raise Unavailable("too much is being received; send again", after=1)
        exchange.charged += size
        self.in_flight_bytes += size

    def release(self, exchange: Exchange) -> None:
        """The exchange holds nothing any more."""
        self.in_flight_bytes -= exchange.charged
        exchange.charged = 0

    def refuse(self, exchange: Exchange, refused: Refused) -> None:
        """Answers a request that is wrong as a whole. Nothing of it is in the books, so the log says when such requests begin to
        come: many SDKs tell nobody."""
        kind, now = (exchange.source, refused.code), self._clock()
        self.counts.turned_away[kind] += 1
        if now - self._refusing.get(kind, -CALM) >= CALM:
            log.warning("requests refused", source=exchange.source, code=refused.code, reason=refused.message)
        self._refusing[kind] = now
        after = refused.after if isinstance(refused, RateLimited) else None
        self._answer(exchange, refused.status, error_body(refused.code, refused.message), after)
        self.release(exchange)

    def put_off(self, exchange: Exchange, unavailable: Unavailable) -> None:
        """Answers a request that is to come again."""
        self._answer_unavailable(exchange, unavailable)
        self.release(exchange)

    def abandon(self, exchange: Exchange) -> None:
        """The client left before its request was complete: there is nobody to answer."""
        self.counts.disconnected += 1
        exchange.answered = True
        self.release(exchange)

    def _fail(self, exchange: Exchange) -> None:
        log.exception("request failed", source=exchange.source)
        self._answer(exchange, 500, INTERNAL_ERROR)
        self.release(exchange)

    def _finish_singles(self, singles: Sequence[Exchange], sizes: Mapping[str, int], *, late: bool) -> None:
        """Usual calls, with the bytes of their bodies by source. Those that were `late` have been told to come again."""
        counts = self.counts
        for source, size in sizes.items():
            counts.bytes[source] += size
        for source, number in Counter([exchange.source for exchange in singles]).items():
            counts.accepted[source] += number
            if not late:
                counts.requests[source, 200] += number
        if not late:
            for exchange in singles:
                exchange.answered = True
                exchange.succeed()

    def _finish(self, exchange: Exchange, accepted: Accepted, size: int) -> None:
        counts = self.counts
        counts.bytes[accepted.source] += size
        for source, number in accepted.accepted.items():
            counts.accepted[source] += number
        for pair, number in accepted.refused.items():
            counts.refused[pair] += number
        answer = accepted.answer
        if answer is None:
            if not exchange.answered:
                exchange.answered = True
                counts.requests[exchange.source, 200] += 1
                exchange.succeed()
        else:
            self._answer(exchange, answer.status, error_body(answer.code, answer.message))

    def _answer_unavailable(self, exchange: Exchange, unavailable: Unavailable) -> None:
        self._answer(exchange, 503, error_body("unavailable", str(unavailable)), unavailable.after)

    def _answer(self, exchange: Exchange, status: int, body: bytes, after: float | None = None) -> None:
        if exchange.answered:
            return
        exchange.answered = True
        self.counts.requests[exchange.source, status] += 1
        exchange.reply(status, body, after)
