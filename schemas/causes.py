"""What dead letters have in common: the cause of a reason, and what a person can do about it."""

from collections.abc import Mapping
from typing import Final

from schemas.functions import FUNCTION_REMEDIES

LONGEST: Final = 100  # characters of a cause: it is the key of an index

_LATER: Final = "Mend the service. What waits is tried again by itself; what is dead has to be retried then."
_CREDENTIALS: Final = "Correct the credentials in the destination's settings; it goes on where it stopped."
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
    "connection lost": _LATER,
    "http exchange failed": "What answers there does not speak HTTP/1.1; correct the address in the destination's settings, or the service.",
    "request cannot be sent": "Correct the address or the headers in the destination's settings, then retry.",
    "address is not public; name its network under outbound.allow": "If it is meant to be reached, name its network under outbound.allow "
    "and start the role again; else correct the address in the destination's settings.",
    "warehouse is out of memory; raise memory_mb": "Raise memory_mb in the destination's settings and start the role again.",
    "OAUTH_REFRESH_FAILED": "Correct the credentials under oauth in the destination's settings; it goes on where it stopped.",
    "INVALID_AUDIENCE_MEMBERSHIP": "The event does not say whether somebody is in or out; narrow the mapping's trigger, or set sync_mode.",
    "FILTERED_FIELDS_NEEDED": "The filter takes out fields without which the event cannot be put together; correct its fields, then retry.",
    "host not found": "Correct the address in the destination's settings, then retry.",
    "tls handshake failed": "Mend the service's certificate, or name its authority under outbound.ca_file, then retry.",
    "http 400": "The service does not understand the request; compare its sample with the service's manual, then retry.",
    "http 401": _CREDENTIALS,
    "http 403": _CREDENTIALS,
    "http 404": "Correct the address in the destination's settings, then retry.",
    "http 405": "Correct the address in the destination's settings, then retry.",
    "http 409": "The service has something that contradicts the event; look there, then retry or purge.",
    "http 410": "The address is gone for good; correct it in the destination's settings, then retry.",
    "http 413": "The service takes less at once; send it smaller batches, or drop the large fields, then retry.",
    "http 422": "The service refuses a value of the event; correct the mapping or the service's schema, then retry.",
    "http 408": _LATER,
    "http 423": _LATER,
    "http 429": "The service takes less than it gets; lower limits.events_per_second. What waits is tried again by itself.",
    "http 501": "The service cannot do what it is asked to; see its manual, then retry or purge.",
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
    if cause.startswith("http 3"):
        return "The service has moved; redirects are not followed. Correct the address in the destination's settings, then retry."
    if cause.startswith("http "):
        return "The service refuses the event; see its manual for this status, then retry or purge."
    return _CODE if cause.isidentifier() else "See the sample; mend what it names, then retry, or purge."
