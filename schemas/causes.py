"""What dead letters have in common: the cause of a reason, and what a person can do about it."""

from collections.abc import Mapping
from typing import Final

from schemas.functions import FUNCTION_REMEDIES

LONGEST: Final = 100  # characters of a cause: it is the key of an index

_LATER: Final = "Mend the service. What waits is tried again by itself; what is dead has to be retried then."
_CODE: Final = (
    "The destination's code failed on the event; the log of the deliver role has the trace. Mend it, then retry."
)
_REMEDIES: Final[Mapping[str, str]] = {
    "PAYLOAD_VALIDATION_FAILED": "Correct the mapping, or what the source sends in the fields that are named, then retry.",
    "UNSUPPORTED_EVENT_TYPE": "The destination does not take events of this type any more; purge them.",
    "the body cannot be read": "Find out what else writes to the log: this record is not the pipeline's. Purge it.",
    "no longer in the ledger": "Its bytes are gone; purge it.",
    "cannot be a row": "The event has a value that the warehouse has no type for; correct the source, then purge it.",
    "timeout": _LATER,
    "connection refused": _LATER,
    "cannot connect": _LATER,
    "host not found": "Correct the address in the destination's settings, then retry.",
    "tls handshake failed": "Mend the service's certificate, or name its authority under outbound.ca_file, then retry.",
    "http 400": "The service does not understand the request; compare its sample with the service's manual, then retry.",
    "http 404": "Correct the address in the destination's settings, then retry.",
    "http 405": "Correct the address in the destination's settings, then retry.",
    "http 409": "The service has something that contradicts the event; look there, then retry or purge.",
    "http 410": "The address is gone for good; correct it in the destination's settings, then retry.",
    "http 413": "The service takes less at once; send it smaller batches, or drop the large fields, then retry.",
    "http 422": "The service refuses a value of the event; correct the mapping or the service's schema, then retry.",
}


def cause_of(reason: str) -> str:
    """What groups a reason with others: its words before the first colon, at most 100 characters."""
    return reason.partition(":")[0].strip()[:LONGEST]


def remedy_of(cause: str) -> str:
    """What a person can do about events that died of it."""
    known = _REMEDIES.get(cause) or FUNCTION_REMEDIES.get(cause)
    if known is not None:
        return known
    if cause.startswith("http 5"):
        return _LATER
    if cause.startswith("http "):
        return "The service refuses the event; see its manual for this status, then retry or purge."
    if cause.startswith("address is not public"):
        return "Name its network under outbound.allow, then retry."
    return _CODE if cause.isidentifier() else "See the sample; mend what it names, then retry, or purge."
