"""Whether a topic that somebody else made can hold what is promised. Pure."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from pipeline.log.contract import MAX_RECORD_BYTES

LARGEST_BATCH: Final = MAX_RECORD_BYTES + 1_024  # the largest record alone in its batch
KAFKA_DEFAULT: Final = 1_048_588


class Findings(NamedTuple):
    """`faults` keep us from starting, `risks` are for the operator to know; each names its remedy."""

    faults: Sequence[str]
    risks: Sequence[str]


def judge(topic: str, settings: Mapping[str, str], replicas: int) -> Findings:
    """Looks at the settings of a topic, as Kafka reports them, and the replicas of its partition with the fewest."""
    faults, risks = [], []
    largest, in_sync = int(settings["max.message.bytes"]), int(settings["min.insync.replicas"])
    if largest < LARGEST_BATCH:
        faults.append(
            f"topic {topic}: max.message.bytes is {largest}, so that large records would never be taken; "
            + _set(topic, f"max.message.bytes={KAFKA_DEFAULT}")
        )
    if in_sync > replicas:
        faults.append(
            f"topic {topic}: min.insync.replicas is {in_sync} of {replicas} replicas, so that nothing would ever be "
            "acknowledged; give it more replicas, or " + _set(topic, f"min.insync.replicas={max(1, replicas - 1)}")
        )
    if "compact" in settings["cleanup.policy"]:
        faults.append(
            f"topic {topic}: cleanup.policy is {settings['cleanup.policy']}, which keeps one event of each person; "
            + _set(topic, "cleanup.policy=delete")
        )
    if replicas >= 3 and in_sync < 2:
        risks.append(
            f"an event may be acknowledged by one broker alone and lost with it; {_set(topic, 'min.insync.replicas=2')}"
        )
    if replicas > 1 and settings["unclean.leader.election.enable"] == "true":
        risks.append(
            "a broker that lags behind may take over, and acknowledged events be lost; "
            + _set(topic, "unclean.leader.election.enable=false")
        )
    return Findings(faults, risks)


def _set(topic: str, setting: str) -> str:
    return f"use kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config {setting}"
