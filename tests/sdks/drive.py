"""Runs a driver: a process of its own that makes calls with a real SDK and ends when it has sent them."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.sdks.calls import Call
from tests.sdks.running import PATIENCE, Source

DRIVERS: Final = Path(__file__).with_name("drivers")


def node(modules: Path, sdk: str, source: Source, calls: Sequence[Call], options: Mapping[str, Any]) -> None:
    order = {
        "sdk": sdk,
        "writeKey": source.write_key,
        "host": source.running.address,
        "options": options,
        "calls": calls,
    }
    run(["node", str(DRIVERS / "node.cjs")], order, {"SDK_MODULES": str(modules)})


def python(path: Path, sdk: str, source: Source, calls: Sequence[Call], options: Mapping[str, Any]) -> None:
    order = {
        "sdk": sdk,
        "write_key": source.write_key,
        "host": source.running.address,
        "options": options,
        "calls": calls,
    }
    # -S leaves out our own packages: the SDK meets its own dependencies and no others.
    run([sys.executable, "-S", str(DRIVERS / "python.py")], order, {"PYTHONPATH": str(path)})


def run(command: Sequence[str], order: Mapping[str, Any], variables: Mapping[str, str]) -> str:
    """The driver's standard output. It fails when the SDK reports an error."""
    done = subprocess.run(
        command,
        input=json.dumps(order),
        env={**os.environ, "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost", **variables},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def version(modules: Path, package: str) -> str:
    """The version of an npm package, as it stands in its own package.json."""
    said: str = json.loads((modules / package / "package.json").read_text())["version"]
    return said


def python_version(path: Path, distribution: str) -> str:
    (info,) = path.glob(f"{distribution.replace('-', '_')}-*.dist-info")
    return info.name.removesuffix(".dist-info").rpartition("-")[2]
