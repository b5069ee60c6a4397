"""What is said of a topic that somebody else made."""

from collections.abc import Mapping

import pytest

from pipeline.log.contract import MAX_RECORD_BYTES
from pipeline.log.kafka.checks import judge

DEFAULT = {
    "max.message.bytes": "1048588",
    "min.insync.replicas": "1",
    "cleanup.policy": "delete",
    "unclean.leader.election.enable": "false",
}


def words(settings: Mapping[str, str], replicas: int) -> tuple[list[str], list[str]]:
    """The settings that faults and risks ask for."""
    found = judge("t", {**DEFAULT, **settings}, replicas)
    return [one.split("--add-config ")[1] for one in found.faults], [
        one.split("--add-config ")[1] for one in found.risks
    ]


@pytest.mark.parametrize(
    ("settings", "replicas", "faults", "risks"),
    [
        ({}, 1, [], []),
        ({}, 2, [], []),
        ({}, 3, [], ["min.insync.replicas=2"]),
        ({"min.insync.replicas": "2"}, 3, [], []),
        ({"min.insync.replicas": "3"}, 3, [], []),
        ({"min.insync.replicas": "2"}, 1, ["min.insync.replicas=1"], []),
        ({"min.insync.replicas": "4"}, 3, ["min.insync.replicas=2"], []),
        ({"max.message.bytes": str(MAX_RECORD_BYTES)}, 1, ["max.message.bytes=1048588"], []),
        ({"max.message.bytes": str(MAX_RECORD_BYTES + 1_024)}, 1, [], []),
        ({"cleanup.policy": "compact,delete"}, 1, ["cleanup.policy=delete"], []),
        ({"unclean.leader.election.enable": "true"}, 2, [], ["unclean.leader.election.enable=false"]),
        ({"unclean.leader.election.enable": "true"}, 1, [], []),
    ],
)
def test_what_breaks_a_promise_is_a_fault_and_what_may_is_a_risk(
    settings: dict[str, str], replicas: int, faults: list[str], risks: list[str]
) -> None:
    """Kafka's own defaults are taken as they are, but for the one that makes three replicas worth no more than one."""
    assert words(settings, replicas) == (faults, risks)
