"""What `millrace privacy` says of a request."""

from typing import Any

from millrace.cli.privacy import receipt_lines

DONE: dict[str, Any] = {
    "id": "reg_1",
    "regulationType": "DELETE_ONLY",
    "overallStatus": "PARTIAL_SUCCESS",
    "createdAt": "2026-11-21T10:00:00.000Z",
    "finishedAt": "2026-11-21T10:00:07.000Z",
    "phase": None,
    "receipt": {"erased": {"events": 1_234, "people": 1}, "log": "overwritten in place", "log_gone_by": None},
    "streamStatus": [
        {
            "id": "default",
            "destinationStatus": [
                {"name": "crm", "status": "NOT_SUPPORTED", "errString": "no forget_url is configured"},
                {"name": "warehouse", "status": "FINISHED", "errString": ""},
            ],
        }
    ],
}


def test_a_receipt_says_what_was_erased_where() -> None:
    assert receipt_lines(DONE) == [
        "reg_1  DELETE_ONLY  PARTIAL_SUCCESS",
        "  asked       2026-11-21T10:00:00.000Z",
        "  done        2026-11-21T10:00:07.000Z",
        "  events                                  1,234",
        "  people                                      1",
        "  log         overwritten in place",
        "  destination crm  NOT_SUPPORTED: no forget_url is configured",
        "  destination warehouse  FINISHED",
    ]


def test_a_request_under_way_says_what_is_being_done() -> None:
    under_way = DONE | {"finishedAt": None, "phase": "settle", "receipt": {}, "streamStatus": []}
    assert receipt_lines(under_way)[-1] == "  now         waiting for what is on its way to destinations"
