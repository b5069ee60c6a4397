"""Why an event was refused: the codes, each with what a person can do about it.

The response stays 200 where the SDKs need it to, so these are the only trace of a refusal: they ride on the event in the log.
Codes of the tracking API keep their names; the rest are ours, for what its list leaves open.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from schemas.functions import FUNCTION_REMEDIES


class Reason(StrEnum):
    """A reason code, as it stands in `refused` of the event record."""

    BAD_REQUEST = "bad_request"
    UNKNOWN_SOURCE = "unknown_source"
    NO_USER_ANON_ID = "no_user_anon_id"
    ID_NOT_STRING = "id_not_string"
    EVENT_NOT_DEFINED = "event_not_defined"
    EVENT_NOT_STRING = "event_not_string"
    PROPERTIES_NOT_OBJECT = "properties_not_object"
    TRAITS_NOT_OBJECT = "traits_not_object"
    NAME_NOT_STRING = "name_not_string"
    CATEGORY_NOT_STRING = "category_not_string"
    CONSENT_MISSING = "consent_categorypreferences_should_exist"
    CONSENT_NOT_OBJECT = "consent_categorypreferences_fields_should_be_object"
    CONSENT_NOT_BOOL = "consent_categorypreferences_fields_should_be_bool"
    CONSENT_VERSION_NOT_NUMBER = "consent_version_should_be_number"
    ADVERTISING_ID_NOT_STRING = "device_advertisingid_should_be_string"
    # Ours from here on.
    CONTEXT_NOT_OBJECT = "context_not_object"
    INTEGRATIONS_NOT_OBJECT = "integrations_not_object"
    GROUP_ID_REQUIRED = "group_id_required"
    PREVIOUS_ID_REQUIRED = "previous_id_required"
    USER_ID_REQUIRED = "user_id_required"
    ID_TOO_LONG = "id_too_long"
    MESSAGE_ID_NOT_STRING = "message_id_not_string"
    MESSAGE_ID_TOO_LONG = "message_id_too_long"
    MESSAGE_TOO_LARGE = "message_too_large"
    NESTED_TOO_DEEPLY = "nested_too_deeply"
    TOO_MANY_EVENTS = "too_many_events"
    SOURCE_DISABLED = "source_disabled"
    POISON_RECORD = "poison_record"
    SUPPRESSED = "suppressed"
    DELETED = "deleted"


def remedy_for(code: str | None) -> str | None:
    """What a person can do about a reason code; None for one that is not known, from another version perhaps."""
    if code in _CODES:
        return REMEDIES[Reason(code)]
    return FUNCTION_REMEDIES.get((code or "").partition(":")[0])


_CODES: Final = frozenset(Reason)

REMEDIES: Final[Mapping[Reason, str]] = {
    Reason.BAD_REQUEST: "Send one JSON object per event, with a type of track, identify, page, screen, group or alias.",
    Reason.UNKNOWN_SOURCE: "Use the write key of a configured source.",
    Reason.NO_USER_ANON_ID: "Give the event a userId or an anonymousId.",
    Reason.ID_NOT_STRING: "Send userId and anonymousId as non-empty strings: numbers in quotes.",
    Reason.EVENT_NOT_DEFINED: "Name the track call's event.",
    Reason.EVENT_NOT_STRING: "Send the name of the track call's event as a string.",
    Reason.PROPERTIES_NOT_OBJECT: "Send properties as a JSON object, or leave them out.",
    Reason.TRAITS_NOT_OBJECT: "Send traits as a JSON object, or leave them out.",
    Reason.NAME_NOT_STRING: "Send the name of the page or screen as a non-empty string, or leave it out.",
    Reason.CATEGORY_NOT_STRING: "Send the category of the page or screen as a non-empty string, or leave it out.",
    Reason.CONSENT_MISSING: "Send context.consent.categoryPreferences with the consent event.",
    Reason.CONSENT_NOT_OBJECT: "Send context.consent.categoryPreferences as a JSON object.",
    Reason.CONSENT_NOT_BOOL: "Send each category of context.consent.categoryPreferences as true or false.",
    Reason.CONSENT_VERSION_NOT_NUMBER: "Send context.consent.version as a number.",
    Reason.ADVERTISING_ID_NOT_STRING: "Send context.device.advertisingId as a string.",
    Reason.CONTEXT_NOT_OBJECT: "Send context as a JSON object, or leave it out.",
    Reason.INTEGRATIONS_NOT_OBJECT: "Send integrations as a JSON object, or leave it out.",
    Reason.GROUP_ID_REQUIRED: "Give the group call a groupId that is a non-empty string.",
    Reason.PREVIOUS_ID_REQUIRED: "Give the alias call a previousId that is a non-empty string.",
    Reason.USER_ID_REQUIRED: "Give the alias call a userId, the new id, that is a non-empty string.",
    Reason.ID_TOO_LONG: "Keep userId, anonymousId, groupId and previousId within 512 characters.",
    Reason.MESSAGE_ID_NOT_STRING: "Send messageId as a string, or leave it out.",
    Reason.MESSAGE_ID_TOO_LONG: "Keep messageId within 100 characters.",
    Reason.MESSAGE_TOO_LARGE: "Keep an event, with what the batch adds to it, within 32 KiB of JSON.",
    Reason.NESTED_TOO_DEEPLY: "Keep an event within 128 levels of nesting.",
    Reason.TOO_MANY_EVENTS: "Send at most 2,500 events in a batch.",
    Reason.POISON_RECORD: "Find out what else writes to the log: this record is not the collector's.",
    Reason.SUPPRESSED: "Nothing is kept of a suppressed id; `millrace privacy unsuppress` lifts that.",
    Reason.DELETED: "Nothing is kept of a deleted person from before the deletion; newer events begin a new profile.",
    Reason.SOURCE_DISABLED: "Enable the source, or let its senders stop.",
}
