"""One real Apache Kafka broker (KRaft, broker and controller in one) from the jars in `.kafka/libs`.

It starts in 2 s and restarts on its data in 3 s. A class-data-sharing archive would save 0.3 s a start and cost 3 s and
50 MB once (measured), so there is none.
"""

import asyncio
import base64
import logging
import os
import shutil
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from tests.services.process import Service, ServiceAbsent, free_ports, temporary_folder

ROOT: Final = Path(__file__).parents[2]
PATIENCE: Final = 90.0  # seconds a start may take on a busy machine
JAVA_OPTIONS: Final = ("-Xms128m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")

# The defaults of the internal topics (50 partitions, three replicas) and the 128 MiB cleaner buffer are for clusters.
# The session timeout bounds how long a killed broker's registration keeps its successor out (9 s by default).
SETTINGS: Final = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={folder}/data
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
offsets.topic.num.partitions=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
log.cleaner.dedupe.buffer.size=2097152
log.retention.check.interval.ms=1000
auto.create.topics.enable=false
num.network.threads=2
num.io.threads=2
controlled.shutdown.enable=false
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=300
"""

LOGGING: Final = """
rootLogger.level=warn
rootLogger.appenderRef.console.ref=console
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d{ISO8601} %p %c{1} %m%n
"""


class KafkaBroker:
    """A broker on a port of its own that keeps its data over `kill` and `start`.

    Methods block; from async code call them through `asyncio.to_thread`."""

    def __init__(self, libs: Path) -> None:
        self._libs = libs
        self._folder = temporary_folder("kafka")
        self._service = Service("Kafka", self._folder / "output.log")
        self._port, controller = free_ports(2)
        self.bootstrap = f"127.0.0.1:{self._port}"
        (self._folder / "server.properties").write_text(
            SETTINGS.format(port=self._port, controller=controller, folder=self._folder)
        )
        (self._folder / "log4j2.properties").write_text(LOGGING)
        self._format()

    @property
    def pid(self) -> int:
        return self._service.pid

    @property
    def running(self) -> bool:
        return self._service.running

    def start(self) -> None:
        """Returns when an admin request is answered, which is later than when the port opens."""
        self._service.spawn(self._java("kafka.Kafka", str(self._folder / "server.properties")))
        deadline = time.monotonic() + PATIENCE
        while not _answers(self.bootstrap):
            if not self._service.running:
                raise self._service.failed("ended while starting")
            if time.monotonic() > deadline:
                raise self._service.failed(f"did not answer within {PATIENCE:.0f} s")
            time.sleep(0.05)

    def kill(self) -> None:
        """kill -9."""
        self._service.kill()

    def pause(self) -> None:
        """Stops the process where it is: connections stay open and nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """An orderly end; the data stay."""
        self._service.signal(signal.SIGTERM)

    def remove(self) -> None:
        """The end of broker and data."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _format(self) -> None:
        cluster = base64.urlsafe_b64encode(os.urandom(16)).rstrip(b"=").decode()
        if cluster.startswith("-"):  # would read as an option
            cluster = "A" + cluster[1:]
        properties = str(self._folder / "server.properties")
        self._service.spawn(
            self._java("kafka.tools.StorageTool", "format", "--cluster-id", cluster, "--config", properties)
        )
        if self._service.wait(PATIENCE) != 0:
            raise self._service.failed("could not format its data folder")

    def _java(self, main: str, *arguments: str) -> list[str]:
        folder = self._folder
        logs = (f"-Dlog4j2.configurationFile=file:{folder}/log4j2.properties", f"-Dkafka.logs.dir={folder}/logs")
        return ["java", *JAVA_OPTIONS, *logs, "-cp", f"{self._libs}/*", main, *arguments]


def kafka_libs() -> Path:
    """The folder of the broker's jars. ServiceAbsent with the remedy when there is none."""
    libs = Path(os.environ.get("MILLRACE_KAFKA_LIBS") or ROOT / ".kafka" / "libs")
    if not any(libs.glob("kafka_2.13-*.jar")):
        raise ServiceAbsent(
            "no Apache Kafka broker: `make kafka` fetches it (needs java 17 and mvn); "
            "or set MILLRACE_KAFKA_LIBS=/folder/of/jars or MILLRACE_TEST_KAFKA=host:port of a running one"
        )
    if shutil.which("java") is None:
        raise ServiceAbsent("no Apache Kafka broker: java is missing; install a Java 17 runtime")
    return libs


def _answers(bootstrap: str) -> bool:
    host, port = bootstrap.split(":")
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex((host, int(port))) != 0:
            return False
    # A loop in a thread of its own: callers may be inside one.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, _lists_topics(bootstrap)).result()


async def _lists_topics(bootstrap: str) -> bool:
    logger = logging.getLogger("aiokafka")
    before, logger.disabled = logger.disabled, True
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=3_000)
    try:
        await admin.start()
        await admin.list_topics()
    except (KafkaError, OSError):
        return False
    finally:
        await admin.close()
        logger.disabled = before
    return True
