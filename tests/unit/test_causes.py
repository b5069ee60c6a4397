"""What a person is told to do about a cause."""

import pytest

from destinations import oauth
from destinations.http import failure
from pipeline.delivery.batching import PAYLOAD_VALIDATION_FAILED
from pipeline.delivery.decide import UNSUPPORTED_EVENT_TYPE
from pipeline.delivery.membership import INVALID_AUDIENCE_MEMBERSHIP
from schemas.causes import cause_of, remedy_of

OF_ANYTHING = remedy_of("words that nobody has thought of")
OF_EXCEPTIONS = remedy_of("ZeroDivisionError")
OF_STATUSES = remedy_of("http 418")


@pytest.mark.parametrize("reason", [value for name, value in vars(failure).items() if name.isupper()])
def test_every_way_in_which_an_exchange_fails_has_a_remedy_of_its_own(reason: str) -> None:
    assert remedy_of(cause_of(reason)) not in (OF_ANYTHING, OF_EXCEPTIONS)


@pytest.mark.parametrize(
    "code",
    [
        PAYLOAD_VALIDATION_FAILED,
        UNSUPPORTED_EVENT_TYPE,
        INVALID_AUDIENCE_MEMBERSHIP,
        oauth.REFRESH_FAILED,
        "FILTERED_FIELDS_NEEDED",
    ],
)
def test_a_code_of_ours_is_not_taken_for_a_bug_of_a_destination(code: str) -> None:
    assert remedy_of(code) not in (OF_ANYTHING, OF_EXCEPTIONS)


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 408, 413, 422, 423, 429, 500, 501, 502, 503, 529])
def test_the_statuses_that_services_use_have_remedies_of_their_own(status: int) -> None:
    assert remedy_of(f"http {status}") not in (OF_ANYTHING, OF_STATUSES)


@pytest.mark.parametrize("status", [401, 403, 429, 503])
def test_what_is_tried_again_by_itself_is_not_told_as_something_to_retry(status: int) -> None:
    assert "by itself" in remedy_of(f"http {status}") or "goes on" in remedy_of(f"http {status}")
