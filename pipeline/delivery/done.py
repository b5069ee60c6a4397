"""What of an event that triggers several mappings need not be done again, in memory and as the ledger keeps it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import orjson

from destinations.contract import DELIVERED, Delivered, Filtered, Outcome, Rejected, Retry

Done = Mapping[str, Outcome]
"""Outcomes by the name of the mapping; never Retry."""

NOTHING: Final[Done] = MappingProxyType({})
_WORDS: Final = {Delivered: "delivered", Filtered: "filtered", Rejected: "dead"}


def without_rejections(done: Done) -> Done:
    """What an event that is put back does not do again."""
    return {name: one for name, one in done.items() if not isinstance(one, Rejected)} if done else done


def encode_done(done: Done) -> str:
    """JSON: `{"name": ["delivered", ""]}`; empty for nothing, as mostly."""
    if not done:
        return ""
    return orjson.dumps({name: _pair(one) for name, one in done.items()}).decode()


def _pair(outcome: Outcome) -> tuple[str, str]:
    assert not isinstance(outcome, Retry), "what is to be tried again is not done"
    return _WORDS[type(outcome)], "" if isinstance(outcome, Delivered) else outcome.reason


def decode_done(text: str) -> Done:
    """What `encode_done` wrote."""
    if not text:
        return NOTHING
    return {name: _outcome(word, reason) for name, (word, reason) in orjson.loads(text).items()}


def _outcome(word: str, reason: str) -> Outcome:
    if word == "delivered":
        return DELIVERED
    return Filtered(reason) if word == "filtered" else Rejected(reason)
