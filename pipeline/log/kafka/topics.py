"""Creates the topics that are missing, checks those that were there, and learns how many partitions there are."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from pipeline.log.contract import Retention
from pipeline.log.kafka.checks import judge
from pipeline.log.kafka.connection import PATIENCE, Connection
from schemas.errors import ConfigError

MAX_BATCH_BYTES: Final = 2 << 20  # what the broker takes of topics that we make: twice the largest record
SMALLEST_SEGMENT: Final = 1 << 20  # bytes, the broker's own limit
LARGEST_SEGMENT: Final = 1 << 30  # bytes
SEGMENTS_KEPT: Final = 8  # retention removes whole segments: it is right to one eighth
WEEK_MS: Final = 7 * 86_400_000

log = structlog.get_logger()


async def ensure_topics(
    connection: Connection, names: Sequence[str], *, partitions: int, retention: Retention
) -> dict[str, int]:
    """The partition count of every topic, all of which exist afterwards. ConfigError when the cluster cannot be reached
    within `PATIENCE`, or refuses, or has a topic that cannot hold what is promised."""
    async with _admin(connection) as admin:
        try:
            async with asyncio.timeout(PATIENCE):
                made: set[str] = set()
                missing = set(names) - set(await admin.list_topics())
                if missing:
                    replicas = min(3, len((await admin.describe_cluster())["brokers"]))
                    settings = topic_settings(partitions, retention, replicas)
                    made = await _create(admin, sorted(missing), partitions, replicas, settings)
                topics = await _topics(admin, names)
                await _check(admin, {name: topics[name] for name in names if name not in made})
                return {name: len(topics[name]) for name in names}
        except (KafkaError, OSError, TimeoutError) as error:
            raise ConfigError(f"log {connection}: Kafka refused to list or create topics: {error!r}") from error


def topic_settings(partitions: int, retention: Retention, replicas: int) -> dict[str, str]:
    """The settings a topic is created with. Kafka counts bytes per partition, Millrace per topic. Of three replicas one may
    fail: what is acknowledged is on two."""
    milliseconds = max(1, round(retention.seconds * 1_000))
    share = max(1, retention.bytes // partitions)
    return {
        "retention.ms": str(milliseconds),
        "retention.bytes": str(share),
        "segment.bytes": str(min(LARGEST_SEGMENT, max(SMALLEST_SEGMENT, share // SEGMENTS_KEPT))),
        "segment.ms": str(min(WEEK_MS, max(1_000, milliseconds // SEGMENTS_KEPT))),
        "min.insync.replicas": "2" if replicas >= 3 else "1",
        "max.message.bytes": str(MAX_BATCH_BYTES),
        # A record's time is the caller's business; the default refuses what is an hour ahead of the broker's clock.
        "message.timestamp.after.max.ms": str(2**63 - 1),
    }


async def _create(
    admin: AIOKafkaAdminClient, names: Sequence[str], partitions: int, replicas: int, settings: Mapping[str, str]
) -> set[str]:
    """Returns those that we made; another process may have been faster."""
    wanted = [
        NewTopic(one, num_partitions=partitions, replication_factor=replicas, topic_configs=settings) for one in names
    ]
    answer = await admin.create_topics(wanted)
    made: set[str] = set()
    for name, code, *detail in answer.topic_errors:
        error = for_code(code)
        if code == 0:
            made.add(name)
            log.info("topic created", topic=name, partitions=partitions, replicas=replicas)
        elif error is not TopicAlreadyExistsError:
            raise error(*detail)
    return made


_Partitions = Sequence[Mapping[str, Any]]


async def _topics(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, _Partitions]:
    """The partitions of each topic. Metadata of one just created may take a moment to reach every broker."""
    while True:
        found = {
            one["topic"]: one["partitions"]
            for one in await admin.describe_topics(list(names))
            if one["error_code"] == 0 and all(each["leader"] >= 0 for each in one["partitions"])
        }
        if set(found) == set(names):
            return found
        await asyncio.sleep(0.05)


async def _check(admin: AIOKafkaAdminClient, topics: Mapping[str, _Partitions]) -> None:
    """ConfigError with every fault; a risk is a line for the operator."""
    faults: list[str] = []
    for name, settings in (await _settings(admin, list(topics))).items():
        replicas = min(len(one["replicas"]) for one in topics[name])
        found = judge(name, settings, replicas)
        faults += found.faults
        for risk in found.risks:
            log.warning("topic can lose events", topic=name, replicas=replicas, remedy=risk)
    if faults:
        raise ConfigError(*faults)


async def _settings(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """The settings of each topic that we may look at."""
    if not names:
        return {}
    found: dict[str, dict[str, str]] = {}
    for answer in await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in names]):
        for code, message, _, name, entries in answer.resources:
            if code:
                remedy = "allow DescribeConfigs on it"
                log.warning("topic settings not checked", topic=name, error=message or str(code), remedy=remedy)
            else:
                found[name] = {key: value for key, value, *_ in entries}
    return found


@asynccontextmanager
async def _admin(connection: Connection) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = await _reach(connection)
    try:
        yield admin
    finally:
        await admin.close()


async def _reach(connection: Connection) -> AIOKafkaAdminClient:
    """Tries until `PATIENCE` is over: a broker may be starting beside us."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while True:
        admin = AIOKafkaAdminClient(**connection.options)
        try:
            async with asyncio.timeout_at(deadline):
                await admin.start()
        except (KafkaError, OSError) as error:
            await admin.close()
            if asyncio.get_running_loop().time() + 0.25 > deadline:
                raise ConfigError(
                    f"log {connection}: cannot reach Kafka; is it running at {' or '.join(connection.servers)}, "
                    "and do its security settings match?"
                ) from error
            await asyncio.sleep(0.25)
        except BaseException:
            await admin.close()
            raise
        else:
            return admin
