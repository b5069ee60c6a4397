"""Makes calls with a Python SDK: reads {sdk, write_key, host, options, calls} from standard input, ends when all is sent.

Runs on its own, with the SDK and nothing else on the path."""

import importlib
import json
import re
import sys
from datetime import datetime


def main():
    order = json.load(sys.stdin)
    sdk = importlib.import_module(order["sdk"])
    failures = []
    client = sdk.Client(
        order["write_key"],
        host=order["host"],
        on_error=lambda error, items: failures.append(error),
        **order["options"],
    )
    for call in order["calls"]:
        arguments = {snake_case(name): value for name, value in call.items() if name != "type"}
        if "timestamp" in arguments:
            arguments["timestamp"] = datetime.fromisoformat(arguments["timestamp"].replace("Z", "+00:00"))
        getattr(client, call["type"])(**arguments)
    if not order["options"].get("sync_mode"):
        client.shutdown()
    sys.exit(f"{failures}" if failures else 0)


def snake_case(name):
    return re.sub(r"(?<=[a-z])([A-Z])", lambda found: "_" + found[1].lower(), name)


main()
