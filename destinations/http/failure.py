"""Why there was no answer, in a few words that group, without addresses or secrets."""

from typing import Final

from schemas.errors import Unavailable

ADDRESS_REFUSED: Final = "address is not public; name its network under outbound.allow"
CANNOT_CONNECT: Final = "cannot connect"
HOST_NOT_FOUND: Final = "host not found"
LOST: Final = "connection lost"
MALFORMED: Final = "http exchange failed"  # the answer is no HTTP/1.1, or its head is beyond all bounds
REFUSED: Final = "connection refused"
TIMEOUT: Final = "timeout"
TLS_FAILED: Final = "tls handshake failed"
UNSENDABLE: Final = "request cannot be sent"


class ExchangeFailed(Unavailable):
    """No status came back. Whether the service has the request is not known, unless nothing could be connected to.

    `reason` is one of this module's, perhaps with more after a colon."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
