"""What comes back."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Answer(NamedTuple):
    """A final status and what came with it. `raw` is names and values as they were sent; `body` as it was sent, but for chunks;
    `whole` is False where it broke off, took too long or was longer than wanted: the status stands all the same."""

    status: int
    raw: Sequence[tuple[bytes, bytes]]
    body: bytes
    whole: bool

    @property
    def headers(self) -> Mapping[str, str]:
        """By name in lower case; of several with one name, the values in a row."""
        found: dict[str, str] = {}
        for name, value in self.raw:
            key, text = name.decode("latin-1").lower(), value.decode("latin-1")
            found[key] = f"{found[key]}, {text}" if key in found else text
        return found
