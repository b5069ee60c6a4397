"""What a function of the customer's may raise, and the codes of what can become of an event in one.

Function files import the three exceptions from `millrace.functions`.
"""

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
