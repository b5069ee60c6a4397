"""What an operator is told when something needs a person, and when it no longer does."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One message to one channel. `id` is the same for every repetition of the same message; times are microseconds."""

    id: str
    alert: str  # what it is about: destination crm paused
    state: Literal["firing", "resolved", "test"]
    text: str  # what is wrong, in a sentence
    remedy: str  # what to do or where to look
    since: int
    at: int
