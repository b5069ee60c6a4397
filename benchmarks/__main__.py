"""`make bench`: every benchmark in turn, as tables and as one JSON file (`benchmarks/results/latest.json`)."""

import argparse
import importlib
import os
import platform
import sys
import time
from pathlib import Path

import orjson

NAMES = (
    "collector",
    "log",
    "pipeline",
    "http_client",
    "delivery",
    "observing",
    "isolation",
    "warehouse",
    "identity_scale",
    "simulate",
    "resolving_again",
    "profile_api",
    "profile_changes",
    "warehouse_profiles",
    "language",
    "mapping",
    "forgetting",
    "end_to_end",
)


def main(argv: list[str] | None = None) -> None:
    """Runs those named, else all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(NAMES))
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "latest.json")
    asked = parser.parse_args(argv)
    unknown = set(asked.names) - set(NAMES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    results = {name: importlib.import_module(f"benchmarks.{name}").main([]) for name in asked.names or NAMES}
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    machine = {"python": platform.python_version(), "system": platform.platform(), "cores": os.cpu_count()}
    taken = {"taken_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": machine, "results": results}
    asked.json.write_bytes(orjson.dumps(taken, option=orjson.OPT_INDENT_2))
    print(f"written to {asked.json}", file=sys.stderr)


if __name__ == "__main__":
    main()
