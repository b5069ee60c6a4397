"""Message ids for events that bring none."""

import os
from typing import Final

_BULK: Final = 256


class MessageIds:
    """Random UUIDs (version 4), drawn from the system's randomness in bulk: a tenth of `uuid.uuid4`'s cost."""

    def __init__(self) -> None:
        self._pool: list[str] = []
        os.register_at_fork(after_in_child=self._pool.clear)

    def __call__(self) -> str:
        if not self._pool:
            self._pool.extend(_uuids(_BULK))
        return self._pool.pop()


def _uuids(count: int) -> list[str]:
    digits = os.urandom(16 * count).hex()
    return [_uuid(digits[at : at + 32]) for at in range(0, len(digits), 32)]


def _uuid(h: str) -> str:
    """Thirty-two random hex digits with the version and the variant set."""
    return f"{h[:8]}-{h[8:12]}-4{h[13:16]}-{_VARIANT[h[16]]}{h[17:20]}-{h[20:]}"


_VARIANT: Final = {digit: "89ab"[number % 4] for number, digit in enumerate("0123456789abcdef")}
