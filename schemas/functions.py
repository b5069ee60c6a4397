"""What a function of the customer's may raise, and the codes of what can become of an event in one.

Function files import the three exceptions from `millrace.functions`.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Retry(Exception):
    """Try this event again: after `after` seconds, else by the schedule."""

    def __init__(self, reason: str = "", after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after = after


class Drop(Exception):
    """This event goes no further. It is counted as filtered."""


class Invalid(Exception):
    """This event can never be taken. It goes to the dead letters, at a source to the refused events."""


class FunctionCode(StrEnum):
    """Why an event ended in a function. Names are the reference's where it has one."""

    DROPPED = "FILTERED_AT_INSERT_FUNCTION"
    UNSUPPORTED = "UNSUPPORTED_EVENT_TYPE"
    INVALID = "MESSAGE_REJECTED"
    RETRY = "RETRY"
    RETRIES_SPENT = "RETRY_ERROR"
    RAISED = "FUNCTION_RAISED"
    ANSWER = "FUNCTION_ANSWER_INVALID"
    TIMEOUT = "FUNCTION_TIMEOUT"
    MEMORY = "FUNCTION_OUT_OF_MEMORY"
    CRASHED = "FUNCTION_CRASHED"
    LOCKED_OUT = "FUNCTIONS_LOCK_OUT"
    BAD_DEPLOY = "BAD_DEPLOY"


HANDLERS: Final = ("on_track", "on_identify", "on_page", "on_screen", "on_group", "on_alias", "on_delete", "on_batch")

_MEND = "Mend the function; try it on the event with `millrace functions test`."
FUNCTION_REMEDIES: Final[Mapping[str, str]] = {
    FunctionCode.DROPPED: "The function dropped it; nothing to do, unless it should not.",
    FunctionCode.UNSUPPORTED: "Give the function a handler for events of this type, if it is to take them.",
    FunctionCode.INVALID: "The function refused it; its words say why.",
    FunctionCode.RETRY: "The function asked for another try; see why, where the reason does not say.",
    FunctionCode.RETRIES_SPENT: "The function asked for another try each time; see what it waits for.",
    FunctionCode.RAISED: _MEND,
    FunctionCode.ANSWER: _MEND,
    FunctionCode.TIMEOUT: "Make the function faster, or raise its timeout.",
    FunctionCode.MEMORY: "Let the function use less memory, or raise its memory_mb.",
    FunctionCode.CRASHED: _MEND,
    FunctionCode.LOCKED_OUT: "The function failed again and again and is left alone for a while; mend it and start the role again.",
    FunctionCode.BAD_DEPLOY: "Mend the function's file, so that it can be loaded.",
}
"""What a person can do about each code."""
